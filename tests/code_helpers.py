"""A small log whose clicks depend on clusters of items, vectors of the items, and configs that read their codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from easyrec_mm.cli.main import main
from easyrec_mm.store import Record, open_store
from easyrec_mm.store.records import content_hash

NUM_CLUSTERS, WIDTH = 8, 6
# Items of the training, and those that come later.
NUM_OLD, NUM_NEW = 160, 80
SHAPE = "2x8"
CODES = "feature_type: CodeFeature vector_dim: 2 hash_bucket_size: 300 embedding_dim: 4"
FEATURES = {
    "codes": f'features {{ feature_name: "look" input_names: "item" {CODES} vector_store: "%(store)s/codes" }}',
    "text": f'features {{ feature_name: "look" input_names: "semantic_id" {CODES} }}',
    "ids": 'features { feature_name: "look" input_names: "item" hash_bucket_size: 300 embedding_dim: 8 }',
}
CONFIG = """
train_input_path: "%(folder)s/old.csv"
eval_input_path: "%(folder)s/new.csv"
model_dir: "%(folder)s/%(name)s"
data_config {
  input_type: CSVInput with_header: true batch_size: 64 label_fields: "click"
  input_fields { input_name: "click" input_type: INT32 }
  input_fields { input_name: "item" input_type: STRING }
  input_fields { input_name: "semantic_id" input_type: STRING }
}
feature_config { %(features)s }
model_config {
  model_class: "E2E_MM_DBMTL"
  feature_groups { group_name: "all" feature_names: "look" }
  e2e_mm_dbmtl { task_towers { tower_name: "click" label_name: "click" dnn { hidden_units: [8] use_bn: false } } }
}
train_config {
  optimizer_config { adam_optimizer { learning_rate { constant_learning_rate { learning_rate: 0.02 } } } }
  precision: FLOAT32 num_epochs: 4 log_step_count_steps: 50
}
"""


def cluster_vectors(number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors float32 of well separated clusters, and the cluster of each."""
    rng = np.random.default_rng(seed)
    centres = 4 * rng.normal(size=(NUM_CLUSTERS, WIDTH))
    clusters = np.arange(number) % NUM_CLUSTERS
    return (centres[clusters] + 0.3 * rng.normal(size=(number, WIDTH))).astype(np.float32), clusters


def put(uri: str, vectors: dict[str, np.ndarray | None], fingerprint: str = "tower") -> None:
    """Write vectors into a store; None marks a key absent."""
    store = open_store(uri, writable=True)
    width = next(len(vector) for vector in vectors.values() if vector is not None)
    generation = store.begin(fingerprint, width, "float32")
    hashes = {key: bytes(16) if v is None else content_hash(v.tobytes()) for key, v in vectors.items()}
    store.put_many(generation, [Record(key, vector, hashes[key], 0) for key, vector in vectors.items()])
    store.complete(generation)
    store.close()


def write_log(folder: Path) -> None:
    """Write the vectors of old and new items, their codes, the logs of both, and the configs."""
    store = f"lmdb://{folder}/store"
    vectors, clusters = cluster_vectors(NUM_OLD + NUM_NEW)
    keys = [f"i{i}" for i in range(len(vectors))]
    put(store, dict(zip(keys[:NUM_OLD], vectors, strict=False)))
    assert main(["quantize", "--store", store, "--codes", SHAPE]) == 0
    put(store, dict(zip(keys[NUM_OLD:], vectors[NUM_OLD:], strict=True)))
    assert main(["quantize", "--store", store, "--output", f"{folder}/codes.csv"]) == 0
    lines = (folder / "codes.csv").read_text(encoding="utf-8").splitlines()[1:]
    ids = {line.split(",")[0].strip('"'): line.split(",")[-1].strip('"') for line in lines}
    rng = np.random.default_rng(1)
    for name, items in (("old", range(NUM_OLD)), ("new", range(NUM_OLD, len(keys)))):
        rows = ["click,item,semantic_id"]
        for i in rng.permutation(np.repeat(items, 10)):
            click = int(rng.random() < (0.9 if clusters[i] % 2 else 0.1))
            rows.append(f"{click},{keys[i]},{ids[keys[i]]}")
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for name, features in FEATURES.items():
        settings = {"folder": folder, "name": name, "features": features % {"store": store}}
        (folder / f"{name}.config").write_text(CONFIG % settings, encoding="utf-8")
