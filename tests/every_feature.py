"""Data and a config with every kind of feature, and a store of vectors that they need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as Pillow
from training_helpers import optimizer

from easyrec_mm.cli.main import main

NUM_GROUPS, GROUP_SIZE = 24, 3
# Items that have a vector in the store; two more have none.
NUM_TITLES = 8
CONFIG = r"""
train_input_path: "%(folder)s/data.txt"
model_dir: "%(folder)s/m"
data_config {
  input_type: GroupRTPInput
  batch_size: 8
  image_root: "%(folder)s"
  num_parallel_calls: 1
  separator: "\002"
  rtp_separator: ";"
  selected_cols: "0,1,2,3"
  label_fields: "click"
  input_fields { input_name: "click" input_type: INT32 }
  input_fields { input_name: "user" input_type: STRING }
  input_fields { input_name: "category" input_type: STRING }
  input_fields { input_name: "price" input_type: FLOAT }
  input_fields { input_name: "budget" input_type: INT64 default_val: "5" }
  input_fields { input_name: "is_new" input_type: BOOL }
  input_fields { input_name: "clicks_of" input_type: STRING }
  input_fields { input_name: "seen" input_type: STRING }
  input_fields { input_name: "seen_prices" input_type: STRING }
  input_fields { input_name: "seen_looks" input_type: STRING }
  input_fields { input_name: "seen_categories" input_type: STRING }
  input_fields { input_name: "look" input_type: STRING default_val: "1,0,0,0" }
  input_fields { input_name: "item" input_type: INT64 }
  input_fields { input_name: "seen_items" input_type: STRING }
  input_fields { input_name: "shown_at" input_type: INT64 }
  input_fields { input_name: "listed_at" input_type: STRING }
  input_fields { input_name: "path" input_type: STRING }
  input_fields { input_name: "size" input_type: INT32 }
}
feature_config {
  features { input_names: "user" feature_type: IdFeature hash_bucket_size: 50 embedding_dim: 3 }
  features {
    input_names: "price" feature_type: RawFeature numeric_transform: LOG1P boundaries: [0.5, 1, 2] embedding_dim: 2
  }
  features {
    feature_name: "wanted" input_names: ["price", "budget", "is_new"] feature_type: ExprFeature
    expression: "((price <= budget) & is_new) * log1p(price) / budget"
  }
  features {
    feature_name: "clicks_of_category" input_names: ["category", "clicks_of"] feature_type: LookupFeature
    separator: "|" kv_separator: ":" num_buckets: 10 embedding_dim: 3
  }
  features {
    input_names: "seen" feature_type: SequenceFeature separator: "|" max_seq_len: 3 kept_end: LAST combiner: "max"
    hash_bucket_size: 50 embedding_dim: 3 embedding_name: "user"
  }
  features {
    input_names: "seen_prices" feature_type: SequenceFeature sub_feature_type: RawFeature numeric_transform: LOG1P
    boundaries: [0.5, 1, 2] combiner: "sum" separator: "|"
  }
  features {
    input_names: "seen_looks" feature_type: SequenceFeature sub_feature_type: RawFeature raw_input_dim: 4
    seq_multi_sep: "x" embedding_dim: 2 separator: "|"
  }
  features {
    feature_name: "looks" input_names: "seen_looks" feature_type: SequenceFeature sub_feature_type: RawFeature
    raw_input_dim: 4 seq_multi_sep: "x" separator: "|" max_seq_len: 4
  }
  features { input_names: "category" feature_type: IdFeature vocab_list: ["c0", "c1"] embedding_dim: 2 }
  features {
    input_names: "seen_categories" feature_type: SequenceFeature separator: "," max_seq_len: 3 kept_end: LAST
    vocab_list: ["c0", "c1"] embedding_dim: 2 embedding_name: "category"
  }
  features { input_names: "look" feature_type: VectorFeature vector_dim: 4 separator: "," }
  features {
    feature_name: "title" input_names: "item" feature_type: VectorFeature vector_dim: 5 vector_store: "%(titles)s"
  }
  features {
    feature_name: "seen_titles" input_names: "seen_items" feature_type: SequenceFeature sub_feature_type: VectorFeature
    vector_dim: 5 vector_store: "%(titles)s" separator: "," max_seq_len: 3 combiner: "max"
  }
  features {
    feature_name: "codes" input_names: "item" feature_type: CodeFeature vector_store: "%(titles)s/codes"
    vector_dim: 2 hash_bucket_size: 40 embedding_dim: 3
  }
  features {
    feature_name: "hour" input_names: "shown_at" feature_type: ExprFeature
    expression: "hour(from_millis(shown_at), 5.5)" boundaries: [6, 12, 18] embedding_dim: 2
  }
  features {
    feature_name: "is_new_today" input_names: ["shown_at", "listed_at"] feature_type: ExprFeature
    expression: "from_millis(shown_at) - from_text(listed_at) < 86400"
  }
  features { input_names: "path" feature_type: ImgFeature img_shape { width: 12 height: 12 } }
  features { input_names: "size" feature_type: SampleNumFeature }
}
model_config {
  model_class: "E2E_MM_DBMTL"
  feature_groups { group_name: "img" feature_names: "path" }
  feature_groups {
    group_name: "all"
    feature_names: ["user", "price", "wanted", "clicks_of_category", "seen", "seen_prices", "seen_looks"]
    feature_names: ["title", "seen_titles", "codes", "hour", "is_new_today"]
    sequence_features {
      group_name: "din"
      allow_key_search: true
      seq_att_map { key: ["user", "category"] hist_seq: ["seen", "seen_categories"] }
      seq_dnn { hidden_units: [8, 1] }
    }
    sequence_features {
      group_name: "look_alike" allow_key_search: true seq_att_map { key: "look" hist_seq: "looks" }
      seq_dnn { hidden_units: [4, 1] use_bn: false }
    }
    sequence_features { group_name: "titles" seq_att_map { key: "title" hist_seq: "seen_titles" } }
    sequence_features {
      group_name: "look" need_key_feature: false seq_att_map { key: "path" hist_seq: "looks" }
    }
  }
  embedding_regularization: 1e-4
  e2e_mm_dbmtl {
    img_model { num_classes: 4 }
    task_towers { tower_name: "click" label_name: "click" dnn { hidden_units: [8] } }
  }
}
train_config { %(optimizer)s precision: FLOAT32 num_epochs: 1 log_step_count_steps: 1 }
"""


def sample(rng: np.random.Generator) -> dict[str, str]:
    """Texts of a sample's values in the order of the row; some are empty."""
    clicks = "|".join(f"c{i}:{rng.integers(12)}" for i in rng.integers(0, 3, rng.integers(0, 4)))
    num_seen = rng.integers(0, 6)
    return {
        "user": f"u{rng.integers(20)}",
        "category": f"c{rng.integers(3)}",
        "price": f"{rng.lognormal(1, 1):.2f}",
        "budget": str(rng.integers(-1, 9)) if rng.random() < 0.8 else "",
        "is_new": str(rng.random() < 0.5),
        "clicks_of": clicks,
        "seen": "|".join(f"u{rng.integers(20)}" for _ in range(num_seen)),
        "seen_prices": "|".join(f"{rng.lognormal(1, 1):.2f}" for _ in range(num_seen)),
        "seen_looks": "|".join("x".join(f"{x:.2f}" for x in rng.normal(size=4)) for _ in range(num_seen)),
        "seen_categories": ",".join(f"c{rng.integers(3)}" for _ in range(num_seen)),
        "look": ",".join(f"{x:.2f}" for x in rng.normal(size=4)) if rng.random() < 0.8 else "",
        "item": str(rng.integers(NUM_TITLES + 2)),
        "seen_items": ",".join(str(rng.integers(NUM_TITLES + 2)) for _ in range(rng.integers(0, 6))),
        # Full hours and days, at which a second more or less counts, and one millisecond before.
        "shown_at": str((1_796_083_200 + 1800 * rng.integers(96)) * 1000 - rng.integers(2)),
        "listed_at": f"2026-12-01T{rng.integers(24):02}:30:00+05:30" if rng.random() < 0.8 else "",
    }


def sample_names() -> list[str]:
    return list(sample(np.random.default_rng(0)))


def samples_of(line: str) -> list[str]:
    return line.split(";")[1].split("\x01")


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for i in range(NUM_GROUPS):
        Pillow.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(folder / f"{i}.png")
        clicks = "\x01".join(str(rng.integers(2)) for _ in range(GROUP_SIZE))
        samples = "\x01".join("\x02".join(sample(rng).values()) for _ in range(GROUP_SIZE))
        lines.append(f"{clicks};{samples};{i}.png;{GROUP_SIZE}")
    (folder / "data.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    titles = f"lmdb://{folder}/titles"
    write_titles(folder, titles, "words")
    assert main(["quantize", "--store", titles, "--codes", "2x3"]) == 0
    settings = {"folder": folder, "optimizer": optimizer(), "titles": titles}
    (folder / "x.config").write_text(CONFIG % settings, encoding="utf-8")


def write_titles(folder: Path, store: str, origin: str) -> None:
    """Vectors of items, those of an origin always the same."""
    rng = np.random.default_rng(len(origin))
    vectors = [vector.tolist() for vector in rng.normal(size=(NUM_TITLES, 5))]
    pq.write_table(pa.table({"item": list(range(NUM_TITLES)), "vector": vectors}), folder / "titles.parquet")
    arguments = ["--store", store, "--input", f"{folder}/titles.parquet", "--key_column", "item", "--origin", origin]
    assert main(["store", "load", *arguments]) == 0
