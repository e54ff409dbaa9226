"""The NumPy transform of the server against the TensorFlow transform of training and the exported models."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from feature_helpers import (
    combo_feature,
    expr_feature,
    id_feature,
    id_sequence,
    lookup_feature,
    raw_feature,
    raw_sequence,
    tag_feature,
)

from easyrec_mm.features.numpy_transform import NumpyTransform
from easyrec_mm.features.tensorflow_transform import FeatureTransform

FIELDS = {
    "user": "string", "count": "int64", "score": "float32", "flag": "bool", "shop": "string", "digit": "string",
    "vector": "string", "number": "string", "tags": "string", "rows": "string", "pairs": "string", "weights": "string",
    "key": "int64", "map": "string", "vectors": "string",
}  # fmt: skip

FEATURES = [
    id_feature("user", ("user",), 4, "t", "hash", 1_000_003),
    id_feature("count", ("count",), 4, "t", "hash", 999),
    id_feature("flag", ("flag",), 4, "t", "hash", 999),
    id_feature("score", ("score",), 4, "t", "hash", 999_983),
    id_feature("score_2", ("score",), 4, "t", "hash", 999_983, precision=2),
    id_feature("row", ("count",), 4, "t", "identity", 50),
    id_feature("row_of_text", ("digit",), 4, "t", "identity", 5),
    id_feature("shop", ("shop",), 4, "t", "vocabulary", 4, vocabulary=("a", "b", "é")),
    id_feature("count_known", ("count",), 4, "t", "vocabulary", 3, vocabulary=("7", "-3")),
    combo_feature("cross", ("user", "count", "score"), 4, "t", "hash", 999_983, precision=1),
    raw_feature("score_raw", ("score",), 1),
    raw_feature("count_raw", ("count",), 1),
    raw_feature("scaled", ("score",), 1, min_value=-3.7, max_value=11.3),
    raw_feature("bucket", ("score",), 5, boundaries=(-1.1, 0.0, 0.3, 2.7)),
    raw_feature("number", ("number",), 1),
    raw_feature("log", ("count",), 1, log1p="before"),
    raw_feature("log_scaled", ("score",), 1, min_value=-3.7, max_value=11.3, log1p="before"),
    raw_feature("scaled_log", ("score",), 1, min_value=-3.7, max_value=11.3, log1p="after"),
    raw_feature("log_bucket", ("score",), 5, boundaries=(-0.9, 0.0, 0.3, 1.2), log1p="before"),
    expr_feature("age", ("count", "score"), 1, expression="log1p(abs(count)) / clip(score, 0.5, 2) + exp(score)"),
    expr_feature("ratio", ("score", "number"), 1, expression="score / number", log1p="before"),
    expr_feature("root", ("score", "count"), 1, expression="sqrt(score) - log(score) * log1p(-count)"),
    expr_feature("larger", ("score", "flag"), 1, expression="((score > 0.25) & flag) | (score == 0.35)"),
    expr_feature("either", ("score", "flag"), 1, expression="where(flag, min(score, 1, -1), floor(-score) * 1e30)"),
    expr_feature("parts", ("score", "count"), 5, expression="score * count", boundaries=(0, 1)),
    raw_feature("vector", ("vector",), 3, dim=3, separator=","),
    tag_feature("tags", ("tags",), 4, "t", "hash", 999_983, separator="|"),
    tag_feature("rows", ("rows",), 4, "t", "identity", 9, separator="||"),
    tag_feature("pairs", ("pairs",), 4, "t", "hash", 999, separator=",", kv_separator=":"),
    lookup_feature("found", ("key", "map"), 4, "t", "hash", 999, separator="|", kv_separator=":", max_selected=2),
    lookup_feature(
        "found_row", ("digit", "map"), 4, "t", "identity", 5, separator="|", kv_separator=":", max_selected=9
    ),
    id_sequence("seen", ("tags",), 4, "t", "hash", 999, separator="|"),
    id_sequence("seen_last", ("rows",), 4, "t", "identity", 9, separator="||", max_length=2, keeps_last=True),
    id_sequence("seen_known", ("tags",), 4, "t", "vocabulary", 3, ("t1é", "t2é"), separator="|", max_length=1),
    raw_sequence("numbers", ("weights",), 1, separator="|", max_value=3.5, log1p="after"),
    raw_sequence("buckets", ("weights",), 3, separator="|", boundaries=(-0.5, 1.25), log1p="before"),
    raw_sequence("vectors", ("vectors",), 2, separator="|", dim=2, number_separator=",", max_length=2),
    tag_feature("weighted", ("tags", "weights"), 4, "t", "hash", 999, separator="|"),
]


def random_fields(rng, num):
    """Texts and numbers of every form that input formats accept, empty ones among them."""

    def texts(most, alphabet):
        lengths = rng.integers(0, most, num)
        letters = rng.choice(list(alphabet), (num, most))
        return ["".join(row[:length]) for row, length in zip(letters, lengths, strict=True)]

    def numbers(count):
        values = rng.normal(0, 10.0 ** rng.integers(-3, 4, count))
        forms = ("{:.3f}", "{:g}", " {:.1e}", "{:+.7f}", "{:.0f}")
        return [forms[form].format(value) for form, value in zip(rng.integers(0, 5, count), values, strict=True)]

    def lists(separator, parts):
        lengths = rng.integers(0, 4, num)
        values = iter(parts(int(lengths.sum())))
        return lengths, [separator.join(next(values) for _ in range(length)) for length in lengths]

    lengths, tags = lists("|", lambda count: [f"t{i}é" for i in rng.integers(0, 9999, count)])
    _, rows = lists("||", lambda count: [str(i) for i in rng.integers(-2, 12, count)])
    _, pairs = lists(",", lambda count: [f"k{i}:{w}" for i, w in enumerate(numbers(count))])
    _, maps = lists("|", lambda count: [f"{k}:{v}" for k, v in rng.integers(-1, 8, (count, 2))])
    _, pairs_of_numbers = lists("|", lambda count: [",".join(numbers(2)) for _ in range(count)])
    weights = ["|".join(numbers(length)) for length in lengths]
    vectors = [",".join(numbers(3)) if filled else "" for filled in rng.random(num) < 0.9]
    score = rng.normal(0, 3, num).astype(np.float32)
    score[::7] = rng.choice(np.float32([-1.1, 0.0, 0.3, 2.7, 0.25, 0.35]), len(score[::7]))
    return {
        "user": texts(40, "abz019 _-é漢\x1d"),
        "count": rng.integers(-(10**12), 10**12, num) % (10 ** rng.integers(1, 12, num)),
        "score": score,
        "flag": rng.random(num) < 0.5,
        "shop": rng.choice(["a", "b", "é", "", "x"], num).tolist(),
        "digit": rng.choice(["", "-1", " 3", "7", "+4 ", "99"], num).tolist(),
        "vector": vectors,
        "number": numbers(num),
        "tags": tags,
        "rows": rows,
        "pairs": pairs,
        "weights": weights,
        "key": rng.integers(-1, 8, num),
        "map": maps,
        "vectors": pairs_of_numbers,
    }


def both(fields, features=FEATURES):
    """What the two make of the same fields: the inputs of the ONNX model."""
    used = {name: fields[name] for feature in features for name in feature.inputs}
    tensors = {
        name: tf.cast(value, tf.int64) if np.asarray(value).dtype == bool else tf.constant(value)
        for name, value in used.items()
    }
    values = FeatureTransform(features)(tensors)
    for feature in features:
        if feature.is_list:
            value = values[feature.name]
            values.setdefault(feature.weight_key, value.with_flat_values(tf.ones([tf.shape(value.flat_values)[0]])))
    padded = {name: v.to_tensor() if isinstance(v, tf.RaggedTensor) else v for name, v in values.items()}
    return NumpyTransform(features)(used, len(next(iter(used.values())))), {
        name: value.numpy() for name, value in padded.items()
    }


def test_equal_on_a_million_values():
    num = 20_000
    values, expected = both(random_fields(np.random.default_rng(0), num))
    assert values.keys() == expected.keys()
    assert sum(value.size for value in expected.values()) > 1_000_000
    for name, value in expected.items():
        assert values[name].dtype == value.dtype, name
        np.testing.assert_array_equal(values[name], value, err_msg=name)


def test_samples_without_any_element_have_one_that_is_not_there():
    features = [feature for feature in FEATURES if feature.name in ("seen", "vectors")]
    values, _ = both({"tags": ["", "||"], "vectors": ["", ""]}, features)
    assert {name: value.tolist() for name, value in values.items()} == {
        "seen": [[0], [0]], "seen:weight": [[0.0], [0.0]],
        "vectors": [[[0.0, 0.0]]] * 2, "vectors:weight": [[0.0], [0.0]],
    }  # fmt: skip


def test_samples_without_any_tag_have_one_that_weighs_nothing():
    values, _ = both(
        {"tags": ["", "||"], "weights": ["", ""]}, [feature for feature in FEATURES if feature.name == "tags"]
    )
    np.testing.assert_array_equal(values["tags:weight"], [[0.0], [0.0]])
    assert values["tags"].shape == (2, 1)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"tags": ["a|b"], "weights": ["1"]}, "weighted"),
        ({"pairs": ["a:x"]}, "pairs"),
        ({"digit": ["x"]}, "row_of_text"),
        ({"vector": ["1,2"]}, "vector"),
    ],
)
def test_text_of_another_form_is_refused(fields, name):
    transform = NumpyTransform([f for f in FEATURES if f.name == name])
    with pytest.raises(ValueError, match=r"differ|could not convert|invalid literal|cannot reshape"):
        transform(fields, 1)


def test_a_field_given_once_counts_for_all():
    fields = random_fields(np.random.default_rng(1), 50)
    transform = NumpyTransform(FEATURES)
    for shared in (("user", "flag", "tags", "weights"), ("count", "score"), tuple(FIELDS)):
        once = {name: value[:1] if name in shared else value for name, value in fields.items()}
        repeated = {
            name: np.repeat(value[:1], 50) if isinstance(value, np.ndarray) else [value[0]] * 50
            for name, value in fields.items()
        }
        expected = transform({name: repeated[name] if name in shared else fields[name] for name in FIELDS}, 50)
        values = transform(once, 50)
        assert values.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(values[name], value, err_msg=name)
