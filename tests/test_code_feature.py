"""Codes as a feature: rows of prefixes in all forms of a model, and items that training has not seen."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from code_helpers import CODES, CONFIG, FEATURES, NUM_NEW, NUM_OLD, put, write_log
from onnx import TensorProto, helper
from sklearn.metrics import roc_auc_score

from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import ConfigError, StoreError
from easyrec_mm.explain.path import ends_of, logits_at
from easyrec_mm.export.code_ids import prefix_id_nodes
from easyrec_mm.features.categories import Categories
from easyrec_mm.features.code_feature import CodeFeature
from easyrec_mm.features.feature import StoredVectors
from easyrec_mm.features.numbers import Numbers
from easyrec_mm.features.numpy_back_end import NumpyBackEnd
from easyrec_mm.features.tensorflow_back_end import TensorFlowBackEnd
from easyrec_mm.network.layers.embedding import table_ids
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.store.feature_vectors import VectorStores


def code_feature(levels, rows, uri="lmdb://x"):
    stored = StoredVectors(uri, levels)
    return CodeFeature(
        name="look",
        inputs=("item",),
        width=2 * levels,
        table="look",
        categories=Categories("hash", rows),
        stored=stored,
    )


# --- Rows of prefixes


@pytest.mark.parametrize(("levels", "rows"), [(1, 7), (4, 1000), (16, 2**40)])
def test_rows_of_prefixes_are_the_polynomial_everywhere(levels, rows):
    """In Python's whole numbers, NumPy, TensorFlow and ONNX Runtime, for the largest codes, too."""
    feature = code_feature(levels, rows)
    codes = np.random.default_rng(0).integers(0, 65537, (50, levels))
    codes[0], codes[1] = 0, 2**24 - 1
    prime, base = 2**31 - 1, 5**13
    expected = [
        [
            (sum(c * pow(base, i + 1, prime) for i, c in enumerate(row[: n + 1])) + pow(base, 17 + n, prime))
            % prime
            % rows
            for n in range(levels)
        ]
        for row in codes.tolist()
    ]
    np.testing.assert_array_equal(np.stack(feature.prefix_ids(codes.astype(np.int64)), 1), expected)
    floats = codes.astype(np.float32)
    assert table_ids(feature, tf.constant(floats)).numpy().reshape(-1, levels).tolist() == expected
    nodes, constants = prefix_id_nodes(feature)
    graph = helper.make_graph(
        nodes,
        "ids",
        [helper.make_tensor_value_info("look", TensorProto.FLOAT, ["S", levels])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.INT64, ["S", levels])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"look": floats})[0].tolist() == expected


def test_prefixes_share_rows_as_far_as_their_codes_agree():
    rows = 1 << 20
    feature = code_feature(3, rows)
    ids = np.stack(feature.prefix_ids(np.array([[5, 7, 9], [5, 7, 8], [5, 6, 9], [4, 7, 9]])), 1)
    same = ids[:, None] == ids[None]
    assert same[0].tolist() == [[True] * 3, [True, True, False], [True, False, False], [False] * 3]


@pytest.mark.parametrize("rows", [1 << 20, 1 << 16, 10_007])
def test_no_more_prefixes_share_a_row_than_by_chance(rows):
    codes = np.stack(np.meshgrid(*[np.arange(1, 41)] * 3), -1).reshape(-1, 3)
    ids = np.stack(code_feature(3, rows).prefix_ids(codes), 1)
    num_prefixes = 40 + 40**2 + 40**3
    expected = rows * (1 - (1 - 1 / rows) ** num_prefixes)
    assert len(np.unique(ids)) > 0.99 * expected
    assert ids.min() >= 0
    assert ids.max() < rows


@pytest.mark.parametrize(("levels", "separator"), [(1, ""), (3, "_"), (3, "|")])
def test_codes_in_the_row(levels, separator):
    """As both back ends read them; other texts are refused."""
    feature = replace(code_feature(levels, 100), stored=None, numbers=Numbers(levels), separator=separator)
    ids = [[12, 200, 3][:levels], [1, 0, 65536][:levels]]
    texts = [separator.join(map(str, row)) for row in ids]
    values = [*texts, ""]
    by_numpy = feature.values({"item": values}, NumpyBackEnd({}))["look"]
    by_tensorflow = feature.values({"item": tf.constant(values)}, TensorFlowBackEnd({}))["look"]
    np.testing.assert_array_equal(by_numpy, np.float32([*ids, [0] * levels]))
    np.testing.assert_array_equal(by_tensorflow, by_numpy)
    ((_, pattern),) = feature.patterns()
    assert all(re.fullmatch(pattern, text) for text in [*texts, separator.join(["7.0"] * levels)])
    wrong = [f"{texts[0]}{separator}1" if separator else "1_2", f"{texts[0]}x", "-1", "1.5", "a", texts[0][:-1] + "_"]
    assert not any(re.fullmatch(pattern, text) for text in wrong)


# --- Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", r"vector_dim: is 0; give the number of levels of the codes, 1 to 16"),
        ("vector_dim: 17", r"vector_dim: is 17; give the number of levels"),
        ("vector_dim: 2", r"embedding_dim: is 0; give the width of the embedding of each level of 'look'"),
        ("vector_dim: 2 embedding_dim: 4", r"hash_bucket_size: is 0; give the number of rows that the prefixes"),
        ("vector_dim: 2 num_buckets: 4", r"num_buckets: has no effect on CodeFeature 'look'; remove it"),
        (f"{CODES[26:]} max_missing_share: 0.1", r"max_missing_share: has no effect without vector_store"),
        (f'{CODES[26:]} vector_store: "x"', r"vector_store: 'x': no store has the scheme"),
        (f'{CODES[26:]} separator: ""', r"separator: is empty; give the character between values"),
    ],
)
def test_settings_that_are_wrong(tmp_path, settings, message):
    feature = f'features {{ feature_name: "look" input_names: "item" feature_type: CodeFeature {settings} }}'
    path = tmp_path / "x.config"
    path.write_text(CONFIG % {"folder": tmp_path, "name": "m", "features": feature}, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_pipeline(str(path))


def test_codes_are_not_wide(tmp_path):
    text = CONFIG % {"folder": tmp_path, "name": "m", "features": FEATURES["text"]}
    path = tmp_path / "x.config"
    path.write_text(text.replace('"all" feature', '"all" wide_deep: WIDE_AND_DEEP feature'), encoding="utf-8")
    with pytest.raises(ConfigError, match="'look' is of type CodeFeature, which cannot be WIDE"):
        load_pipeline(str(path))


def test_a_store_of_vectors_in_place_of_codes(tmp_path):
    uri = f"lmdb://{tmp_path}/store"
    put(uri, {"a": np.ones(2, np.float32)})
    with pytest.raises(StoreError, match=f"'look': {uri}: generation 1 holds vectors, not codes; .* {uri}/codes$"):
        VectorStores([code_feature(2, 10, uri)])


# --- A model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trainings with codes of a store, with codes in the row, and with hashed ids; their predictions of new items."""
    folder = tmp_path_factory.mktemp("codes")
    write_log(folder)
    for name in FEATURES:
        config = ["--pipeline_config", f"{folder}/{name}.config"]
        assert main(["train", *config]) == 0
        predict = ["--predict_input_path", f"{folder}/new.csv", "--output", f"{folder}/{name}.parquet"]
        assert main(["predict", *config, *predict, "--reserved_columns", "click,item,semantic_id"]) == 0
    return folder


def predicted(folder, name):
    return pq.read_table(f"{folder}/{name}.parquet").to_pylist()


def test_new_items_start_warm(trained):
    """They are predicted by the codes that they share with old ones; their own ids say nothing."""
    aucs = {}
    for name in FEATURES:
        rows = predicted(trained, name)
        aucs[name] = roc_auc_score([row["click"] for row in rows], [row["probs_click"] for row in rows])
    assert aucs["codes"] > 0.85  # 0.9 at best, for clicks are drawn with probabilities of 0.9 and 0.1
    assert aucs["ids"] < 0.65
    assert {row["item"] for row in predicted(trained, "codes")} == {f"i{i}" for i in range(NUM_OLD, NUM_OLD + NUM_NEW)}


def test_codes_in_the_row_are_those_of_the_store(trained):
    """The two trainings differ in nothing else."""
    by_row, by_key = ([row["probs_click"] for row in predicted(trained, name)] for name in ("text", "codes"))
    assert by_row == by_key
    assert np.std(by_key) > 0.1


def test_check_shows_codes(trained, capsys):
    assert main(["check", "--pipeline_config", f"{trained}/codes.config"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ *look +CodeFeature \(store\) +8 +300 +0.0% +0.0%", out, re.MULTILINE), out


def test_attributions_and_tables_of_codes(trained):
    """The ends of an attribution's path give the logits of the model; the rows of a table are those of the prefixes."""
    pipeline = load_pipeline(f"{trained}/codes.config")
    model = MultimodalModel(pipeline.config, pipeline.schema)
    codes = {"look": tf.constant([[1.0, 2.0], [1.0, 3.0], [0.0, 0.0]])}
    ends = ends_of(model, codes)
    assert ends.numbers["look"].shape == (3, 8)
    np.testing.assert_allclose(
        logits_at(model, ends, ends.numbers, None)["click"], model.rec(codes, None)[0]["click"], rtol=1e-6
    )
    table = model.rec.feature_embedding.tables["look"].embeddings.numpy()
    ids = np.stack(pipeline.schema.features[0].prefix_ids(np.array([[1, 2], [1, 3], [0, 0]])), 1)
    np.testing.assert_array_equal(ends.numbers["look"], table[ids].reshape(3, 8))
