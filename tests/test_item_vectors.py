"""Vectors of other models as parts of the item vector: in the row, and in a store by key."""

from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from flow_helpers import run
from training_helpers import NUM_GROUPS, Training, make_training_data, optimizer, use_backbone_of_three_stages

import easyrec_mm as er
from easyrec_mm.cli.main import main
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.embedding.image_model import PictureEmbedder
from easyrec_mm.errors import ConfigError, StoreError
from easyrec_mm.evaluation.evaluator import vectors_of
from easyrec_mm.store import open_store
from easyrec_mm.store.records import State

# Of the groups' field `look`, in the row; the last group has none.
LOOKS = np.random.default_rng(1).normal(size=(NUM_GROUPS, 3)).round(3).astype(np.float32)
# In the store, by the field `item`, i0 to i6; i6 is not there.
KEYED = np.random.default_rng(2).normal(size=(6, 4)).round(3).astype(np.float32)
GATED = "item_fusion { gated { dim: 6 } }"
IMAGE_GROUP = 'feature_groups { group_name: "img" feature_names: "path" }'
CONTENTS = ("vector_look", "vector_keyed")


def look_of(group):
    return ";".join(f"{number:g}" for number in LOOKS[group]) if group < NUM_GROUPS - 1 else ""


def write_looks(folder, clicks_follow_looks=False):
    """Add `look` to the samples of none.txt, as looks.txt."""
    lines = []
    for group, line in enumerate((folder / "none.txt").read_text().splitlines()):
        clicks, kinds, samples, path, size = line.split("|")
        with_look = [f"{sample}\x02{look_of(group)}" for sample in samples.split("\x01")]
        if clicks_follow_looks:
            clicks = "\x01".join([str(int(LOOKS[group][0] > 0))] * int(size))
        lines.append("|".join([clicks, kinds, "\x01".join(with_look), path, size]))
    (folder / "looks.txt").write_text("\n".join(lines) + "\n")


def load_store(folder, origin="words", seed=0):
    """Write the vectors of i0 to i5 to a store; its URI."""
    vectors = KEYED if not seed else KEYED + 1
    rows = [f"i{i},{' '.join(f'{n:g}' for n in vector)}" for i, vector in enumerate(vectors)]
    (folder / "keyed.csv").write_text("key,vector\n" + "\n".join(rows) + "\n")
    uri = f"lmdb://{folder}/keyed"
    run("store", "load", "--store", uri, "--input", folder / "keyed.csv", "--separator", " ", "--origin", origin)
    return uri


def vector_training(data, folder, uri, vector_models="", **settings):
    """A training of items with a picture or none, the vector in the row, and that in the store."""
    fields = 'input_fields { input_name: "price" input_type: FLOAT }'
    looks = 'features { input_names: "look" feature_type: VectorFeature vector_dim: 3 separator: ";" per_group: true }'
    keyed = (
        f'features {{ feature_name: "keyed" input_names: "item" feature_type: VectorFeature vector_dim: 4 '
        f'vector_store: "{uri}" per_group: true }}'
    )
    size = 'features { input_names: "size" feature_type: SampleNumFeature }'
    models = vector_models or (
        f'vector_model {{ feature_name: "look" dim: 4 }} vector_model {{ feature_name: "keyed" dim: 0 }} {GATED}'
    )
    changes = {
        fields: f'{fields} input_fields {{ input_name: "look" input_type: STRING }}',
        size: f"{looks} {keyed} {size}",
        "l2_regularization: 0": f"l2_regularization: 0 {models}",
        **settings.pop("changes", {}),
    }
    return Training(data, folder, file="looks.txt", changes=changes, **settings)


@pytest.fixture(scope="module", autouse=True)
def _small_backbone():
    with pytest.MonkeyPatch.context() as patch:
        use_backbone_of_three_stages(patch)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = make_training_data(tmp_path_factory.mktemp("data"))
    write_looks(folder, clicks_follow_looks=True)
    return SimpleNamespace(folder=folder, uri=load_store(folder))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A training of one epoch, in which the vectors are random weights' work, and its exports."""
    folder = tmp_path_factory.mktemp("trained")
    training = vector_training(data.folder, folder, data.uri, img_model="no_image_vector: true").run()
    out = folder / "out"
    folders = [f"--{kind}_model_export_dir={out / kind}" for kind in ("img", "rec", "total")]
    run("export", "--model_dir", training.model_dir, "--eval_input_path", data.folder / "looks.txt", *folders)
    return SimpleNamespace(training=training, out=out)


def groups_of(data):
    return [line.split("|") for line in (data.folder / "looks.txt").read_text().splitlines()]


def expected_vectors(model, data):
    """The item vector of each group, of its parts and the weights of the fusion alone."""
    weights = {name: v.numpy() for name, v in model.named_variables().items()}
    vectors = []
    for group, (_, _, samples, path, _) in enumerate(groups_of(data)):
        image = weights["image/item/no_image"]
        if path:
            image = model.image(tf.io.decode_png((data.folder / path).read_bytes())[None]).numpy()[0]
        look = weights["image/vector_look/no_vector_look/vector"]
        if look_of(group):
            kernel, bias = (weights[f"image/vector_look/tower/projection/{name}"] for name in ("kernel", "bias"))
            look = LOOKS[group] @ kernel + bias
        number = int(samples.split("\x02")[1][1:])
        keyed = KEYED[number] if number < len(KEYED) else weights["image/vector_keyed/no_vector_keyed/vector"]
        parts = {"image": image, "vector_look": look, "vector_keyed": keyed}

        def layer(name, x, weights=weights):
            return x @ weights[f"image/fusion/{name}/kernel"] + weights[f"image/fusion/{name}/bias"]

        values = np.stack([np.tanh(layer(f"{kind}_projection", x)) for kind, x in parts.items()])
        gates = np.exp(layer("gate", np.concatenate(list(parts.values()))).reshape(3, -1))
        vectors.append((values * gates / gates.sum(0)).sum(0))
    return np.stack(vectors)


def test_a_batch_has_the_vectors_of_its_items(data, tmp_path):
    pipeline = vector_training(data.folder, tmp_path, data.uri, img_model="no_image_vector: true").pipeline
    inputs = Input(
        pipeline.config.data_config, pipeline.schema, f"{data.folder}/looks.txt", "eval_input_path",
        BadRecords(None, 1.0),
    )  # fmt: skip
    shown = {kind: [] for kind in CONTENTS}
    for item in inputs.batches():
        for kind, contents in item.batch.contents.items():
            assert len(set(contents.key.numpy().tolist())) == len(contents.key)
            of_samples = tf.gather(contents.of_image, item.batch.sample_image)
            values, is_there = (tf.gather(x, of_samples).numpy() for x in (contents.values, contents.is_there))
            np.testing.assert_array_equal(values.any(1), is_there)
            shown[kind].append(values)
    sizes = [int(size) for *_, size in groups_of(data)]
    nothing = np.zeros_like
    looks = [LOOKS[group] if look_of(group) else nothing(LOOKS[0]) for group in range(NUM_GROUPS)]
    keyed = [KEYED[group % 7] if group % 7 < len(KEYED) else nothing(KEYED[0]) for group in range(NUM_GROUPS)]
    np.testing.assert_array_equal(np.concatenate(shown["vector_look"]), np.repeat(looks, sizes, axis=0))
    np.testing.assert_array_equal(np.concatenate(shown["vector_keyed"]), np.repeat(keyed, sizes, axis=0))


def test_vectors_alone_are_learned(data, tmp_path):
    models = 'vector_model { feature_name: "look" dim: 8 }'
    no_pictures = {
        'feature_groups { group_name: "img" feature_names: "path" }': "",
        "img_model { num_classes: 4  }": "",
    }
    training = vector_training(
        data.folder, tmp_path, data.uri, models, train="num_epochs: 30", optimizers=optimizer(rate=0.05), head="",
        changes={"batch_size: 4": "batch_size: 12", **no_pictures},
    ).run()  # fmt: skip
    losses = [line["loss_click"] for line in training.log]
    assert losses[-1] < 0.3 * losses[0]
    assert "image/vector_look/no_vector_look/vector" in training.changed()


@pytest.mark.slow
def test_exports_and_embedding_agree_with_the_network(data, trained, tmp_path):
    expected = expected_vectors(trained.training.model, data)
    rows = [
        {"key": f"k{group}", "path": path, "item": samples.split("\x02")[1], "look": look_of(group)}
        for group, (_, _, samples, path, _) in enumerate(groups_of(data))
    ]
    lists = [[float(number) for number in row["look"].split(";")] if row["look"] else None for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "texts.parquet")
    as_lists = pa.Table.from_pylist(rows).drop_columns("look").append_column("look", pa.array(lists))
    pq.write_table(as_lists, tmp_path / "lists.parquet")
    for runtime, table in {"tensorflow": "texts.parquet", "onnx": "lists.parquet"}.items():
        store = f"lmdb://{tmp_path}/{runtime}"
        run("embed", "--img_model_dir", trained.out / "img", "--input", tmp_path / table, "--key_column", "key",
            "--path_column", "path", "--image_root", data.folder, "--store", store, "--runtime", runtime,
            "--bad_pictures", tmp_path / "bad.jsonl")  # fmt: skip
        with closing(open_store(store)) as opened:
            stored = opened.get_many([f"k{group}" for group in range(NUM_GROUPS)])
        assert (stored.states == State.PRESENT).all()
        np.testing.assert_allclose(stored.vectors, expected, atol=1e-5)
    # The item of group 6 is i6.
    assert (
        '"path": "i6", "problem": "feature \'keyed\': its store has no vector' in (tmp_path / "bad.jsonl").read_text()
    )
    (tmp_path / "moved").mkdir()
    row = next(row for row in rows if row["path"])
    query = {
        "picture": data.folder / row["path"], "fields": {"item": row["item"], "look": row["look"]},
        "img_model_dir": trained.out / "img", "top_k": 1,
    }  # fmt: skip
    found = er.search(store, **query, vector_stores={"keyed": load_store(tmp_path / "moved")})
    assert found["key"].tolist() == [row["key"]]
    assert found["distance"][0] == pytest.approx(0, abs=1e-4)
    other = load_store(tmp_path, origin="other words", seed=1)
    with pytest.raises(er.UserError, match="not the vectors that the model was trained with"):
        er.search(store, **query, vector_stores={"keyed": other})


@pytest.mark.slow
def test_an_image_model_computes_vectors_for_a_server(data, trained):
    embedder = PictureEmbedder(str(trained.out / "img"), {"keyed": data.uri})
    assert set(embedder.fields) == {"item", "look"}
    assert not embedder.is_without_picture(["", " "])
    expected = expected_vectors(trained.training.model, data)
    groups = [group for group, (_, _, _, path, _) in enumerate(groups_of(data)) if not path]
    fields = {
        "item": [groups_of(data)[group][2].split("\x02")[1] for group in groups],
        "look": [look_of(group) for group in groups],
    }
    made = embedder.embed([[] for _ in groups], fields)
    np.testing.assert_allclose(np.stack(made), expected[groups], atol=1e-5)


@pytest.mark.slow
def test_vectors_of_another_origin_are_refused(data, trained, tmp_path):
    other = load_store(tmp_path, origin="other words", seed=1)
    with pytest.raises(StoreError, match="not the vectors that the model was trained with"):
        PictureEmbedder(str(trained.out / "img"), {"keyed": other})
    checkpoint = str(trained.training.model_dir / "model.ckpt-3")
    with closing(vectors_of(trained.training.pipeline.schema, checkpoint)) as vectors:
        assert vectors.generations["keyed"].fingerprint == "words"
    flags = ["--img_model_dir", trained.out / "img", "--vector_store", f"keyed={other}"]
    assert main(["embed", *map(str, flags), "--input", "x.csv", "--store", f"lmdb://{tmp_path}/s"]) == 1


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        ('vector_model { feature_name: "lok" }', r"vector_model\[0\].feature_name: no VectorFeature named 'lok'"),
        ('vector_model { feature_name: "item" }', "'item' is a IdFeature; name a VectorFeature"),
        ('vector_model { feature_name: "look" } vector_model { feature_name: "look" }', "'look' is named twice"),
    ],
)
def test_a_vector_model_that_names_no_vector_of_items(data, tmp_path, models, problem):
    with pytest.raises(ConfigError, match=problem):
        vector_training(data.folder, tmp_path, data.uri, models)


def test_a_vector_of_items_has_one_value_per_group_and_one_place(data, tmp_path):
    per_group = {'separator: ";" per_group: true': 'separator: ";"'}
    with pytest.raises(ConfigError, match="'look' may differ within a group; set per_group: true on it"):
        vector_training(data.folder, tmp_path, data.uri, changes=per_group)
    deep = {'["user", "item", "price"]': '["user", "item", "price", "look"]'}
    with pytest.raises(ConfigError, match="'look' is in a feature group, too"):
        vector_training(data.folder, tmp_path, data.uri, changes=deep)
