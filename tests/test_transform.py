"""Categories, crosses, tags, maps and sequences against plain Python, and several features at once."""

import feature_helpers as make
import numpy as np
import pytest
import tensorflow as tf
from feature_helpers import combo_feature
from hypothesis import given, settings
from hypothesis import strategies as st
from transform_helpers import buckets, id_feature, lookup_feature, raw_feature, sequence_feature, tag_feature, transform

from easyrec_mm.features.tensorflow_back_end import split_texts
from easyrec_mm.features.tensorflow_transform import FeatureTransform

# Hashing.


def test_hash_is_farmhash_fingerprint64():
    # farmhash::Fingerprint64 of these strings; a table that was trained with them must never be read with others.
    fingerprints = {
        "": 0x9AE16A3B2F90404F,
        "a": 0xB3454265B6DF75E3,
        "hello": 0xB48BE5A931380CE8,
    }
    num_ids = 2**40
    ids = transform(id_feature(num_ids=num_ids), x=list(fingerprints))
    assert ids.tolist() == [value % num_ids for value in fingerprints.values()]
    assert ids.dtype == np.int64


@given(st.lists(st.one_of(st.text(max_size=20), st.binary(max_size=20)), min_size=1, max_size=8), st.integers(1, 10**9))
@settings(max_examples=20, deadline=None)
def test_text_is_hashed_as_it_stands(texts, num_ids):
    texts = [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text for text in texts]
    assert transform(id_feature(num_ids=num_ids), x=texts).tolist() == buckets(texts, num_ids)


def test_integers_are_hashed_as_decimal_text():
    values = [0, 7, -3, 10**17, -(10**17), 2**53 + 1]
    assert transform(id_feature(), x=values).tolist() == buckets([str(value) for value in values])


@pytest.mark.parametrize("precision", [0, 2, 5])
def test_numbers_are_hashed_as_text_of_fixed_precision(precision):
    values = np.float32([0.0, 1.0, 0.1, 2.675, -12.3456789, 1e10, 0.00001, 0.5, 1.5]).tolist()
    texts = [f"{value:.{precision}f}" for value in values]
    assert transform(id_feature(precision=precision), x=values).tolist() == buckets(texts)


def test_a_number_is_hashed_from_its_float32():
    # 0.1 is 0.100000001490116... in float32.
    assert transform(id_feature(precision=12), x=[0.1]).tolist() == buckets(["0.100000001490"])


# Identity.


@pytest.mark.parametrize("as_text", [False, True])
def test_identity_is_the_value_and_row_0_outside(as_text):
    values = [0, 1, 9, 10, 11, -1, -10, 10**17, 3]
    expected = [value if 0 <= value < 10 else 0 for value in values]
    ids = transform(id_feature("identity", 10), x=[str(value) for value in values] if as_text else values)
    assert ids.tolist() == expected


def test_identity_of_text_forms():
    assert transform(id_feature("identity", 10), x=["", " 3 ", "+4", "007", "\t5"]).tolist() == [0, 3, 4, 7, 5]


# Vocabularies.


def test_vocabulary_rows_and_the_last_one_for_the_unknown():
    vocabulary = ("M", "F", "é", "")
    feature = id_feature("vocabulary", 5, vocabulary=vocabulary)
    texts = ["F", "M", "x", "", "é", "f", " M"]
    assert transform(feature, x=texts).tolist() == [
        vocabulary.index(text) if text in vocabulary else len(vocabulary) for text in texts
    ]


def test_vocabulary_of_numbers():
    integers = id_feature("vocabulary", 4, vocabulary=("10", "2", "-1"))
    assert transform(integers, x=[2, -1, 10, 3]).tolist() == [1, 2, 0, 3]
    numbers = id_feature("vocabulary", 3, vocabulary=("0.50", "2.00"), precision=2)
    assert transform(numbers, x=[2.0, 0.5, 0.501, 0.51]).tolist() == [1, 0, 0, 2]


# Crosses.


def test_combo_is_the_crossed_column_of_tensorflow():
    """The rows that EasyRec's feature, a crossed_column in graph mode, gave for these texts and 1000 rows."""
    feature = combo_feature("f", ("x", "y"), 4, "t", "hash", 1000)
    assert transform(feature, x=["M", "F", "M", "F"], y=["c1", "c2", "c3", "c1"]).tolist() == [240, 747, 299, 278]


def test_combo_of_older_models_hashes_its_inputs_joined():
    feature = combo_feature("f", ("x", "z", "w"), 4, "t", "hash", 1000, precision=1, is_crossed=False)
    ids = transform(feature, x=["a", "ab", ""], z=[1, -2, 3], w=[0.25, 1.0, 0.0])
    texts = ["a\x1d1\x1d0.2", "ab\x1d-2\x1d1.0", "\x1d3\x1d0.0"]
    assert ids.tolist() == buckets(texts)


def test_combo_tells_its_inputs_apart():
    feature = combo_feature("f", ("x", "z"), 4, "t", "hash", 2**40)
    ids = transform(feature, x=["ab", "a", "", "abc"], z=["c", "bc", "abc", ""])
    assert len(set(ids.tolist())) == 4


def test_inputs_are_taken_in_the_order_of_the_feature():
    forward = combo_feature("f", ("x", "z"), 4, "t", "hash", 1000, is_crossed=False)
    assert transform(forward, z=["2"], x=["1"]).tolist() == buckets(["1\x1d2"])


# Tags.


@pytest.mark.parametrize("separator", ["|", "||", "é", " ", "."])
def test_empty_tags_are_dropped(separator):
    samples = [["a", "b"], ["", "a", "", "", "c", ""], [""], [], ["", ""], ["d"]]
    texts = [separator.join(tags) for tags in samples]
    expected = [[tag for tag in text.split(separator) if tag] for text in texts]
    assert split_texts(tf.constant(texts), separator).to_list() == [[tag.encode() for tag in tags] for tags in expected]
    ids = transform(tag_feature(separator=separator), x=texts)
    assert ids == [buckets(tags) if tags else [] for tags in expected]


def test_no_tag_at_all():
    assert transform(tag_feature(), x=["", "|", ""]) == [[], [], []]
    assert split_texts(tf.constant([], tf.string), "|").to_list() == []


def test_tags_of_each_encoding():
    assert transform(tag_feature("identity", 10), x=["1|9", "10|-1", " 3"]) == [[1, 9], [0, 0], [3]]
    with_vocabulary = tag_feature("vocabulary", 3, vocabulary=("red", "blue"))
    assert transform(with_vocabulary, x=["blue|green", "red"]) == [[1, 2], [0]]


def test_weights_behind_tags():
    ids, weights = transform(tag_feature(kv_separator=":"), x=["a:1|b:0.5", "", "|c:-2e1||d: 3 |", ":4"])
    assert ids == [buckets(["a", "b"]), [], buckets(["c", "d"]), buckets([""])]
    assert weights == [[1.0, 0.5], [], [-20.0, 3.0], [4.0]]


def test_weights_behind_tags_that_are_rows():
    ids, weights = transform(tag_feature("identity", 5, kv_separator="="), x=["4=.5|5=2"])
    assert ids == [[4, 0]]
    assert weights == [[0.5, 2.0]]


def test_weights_of_a_second_input():
    feature = tag_feature(inputs=("x", "w"))
    ids, weights = transform(feature, x=["a|b", "", "|c|"], w=["1|0.25", "", "||-3"])
    assert ids == [buckets(["a", "b"]), [], buckets(["c"])]
    assert weights == [[1.0, 0.25], [], [-3.0]]


# Maps.


def test_a_lookup_takes_what_the_map_has_for_the_key():
    keys, maps = ["a", "b", "c", "", "a"], ["a:1|b:2|a:3", "|b:x||c:y|", "a:1", "a:1|:none", ""]
    assert transform(lookup_feature(), k=keys, m=maps) == [
        buckets(["1", "3"]),
        buckets(["x"]),
        [],
        buckets(["none"]),
        [],
    ]
    assert transform(lookup_feature(max_selected=1), k=keys, m=maps)[0] == buckets(["1"])


def test_a_key_that_is_a_number_is_its_decimal_text():
    assert transform(lookup_feature("identity", 9), k=[7, -3], m=["7:1|07:2|7:11", "-3:4"]) == [[1, 0], [4]]
    vocabulary = lookup_feature("vocabulary", 3, vocabulary=("x", "y"))
    assert transform(vocabulary, k=["é", "e"], m=["é:y|é:z", "é:y"]) == [[1, 2], []]


lists = st.lists(st.tuples(st.sampled_from(["a", "b", "é", ""]), st.sampled_from(["1", "2", ""])), max_size=6)


@given(st.lists(st.tuples(st.sampled_from(["a", "é", "", "z"]), lists), min_size=1, max_size=6), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_lookups_against_plain_python(samples, most):
    keys = [key for key, _ in samples]
    maps = ["//".join(f"{key}->{value}" for key, value in pairs) for _, pairs in samples]
    feature = lookup_feature(separator="//", kv_separator="->", max_selected=most)
    expected = [[value for other, value in pairs if other == key][:most] for key, pairs in samples]
    assert transform(feature, k=keys, m=maps) == [buckets(values) if values else [] for values in expected]


# Sequences.


def test_a_sequence_of_ids_keeps_its_order_and_repeats():
    texts = ["b|a|b", "", "|c||a|"]
    assert transform(sequence_feature(), x=texts) == [buckets(["b", "a", "b"]), [], buckets(["c", "a"])]
    rows = sequence_feature(encoding="identity", num_ids=5)
    assert transform(rows, x=["4|5| 3", "-1", ""]) == [[4, 0, 3], [0], []]
    known = sequence_feature(encoding="vocabulary", num_ids=3, vocabulary=("a", "b"))
    assert transform(known, x=["b|x|a", ""]) == [[1, 2, 0], []]


@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "c", "", "é"]), max_size=7), min_size=1, max_size=6),
    st.integers(1, 5), st.booleans(), st.sampled_from(["|", "||"]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_long_sequence_keeps_one_end(samples, most, keeps_last, separator):
    feature = sequence_feature(separator=separator, max_length=most, keeps_last=keeps_last)
    elements = [[element for element in sample if element] for sample in samples]
    expected = [sequence[-most:] if keeps_last else sequence[:most] for sequence in elements]
    ids = transform(feature, x=[separator.join(sample) for sample in samples])
    assert ids == [buckets(sequence) if sequence else [] for sequence in expected]


def test_sequences_of_numbers():
    assert transform(sequence_feature("raw"), x=["1|-2.5", "", "|3e1|"]) == [[[1.0], [-2.5]], [], [[30.0]]]
    scaled = sequence_feature("raw", min_value=0.0, max_value=4.0, max_length=2, keeps_last=True)
    assert transform(scaled, x=["9|1|2", ""]) == [[[0.25], [0.5]], []]
    logs = transform(sequence_feature("raw", log1p="before"), x=["0|1"])
    np.testing.assert_allclose(logs, [[[0.0], [np.log(2)]]], rtol=1e-7)
    assert transform(sequence_feature("raw", boundaries=(0.0, 2.0)), x=["-1|2", "", "0"]) == [[0, 2], [], [1]]


def test_sequences_of_vectors():
    feature = sequence_feature("raw", dim=2, number_separator=",")
    assert transform(feature, x=["1,2|3,-4", "", "|.5,0|"]) == [[[1.0, 2.0], [3.0, -4.0]], [], [[0.5, 0.0]]]


# Several features, and no sample.


def test_features_share_fields_and_come_in_the_order_of_the_schema():
    features = [
        make.id_feature("hashed", ("x",), 4, "t", "hash", 50),
        make.id_feature("row", ("n",), 4, "t2", "identity", 3),
        combo_feature("cross", ("x", "n"), 4, "t3", "hash", 50, is_crossed=False),
        make.raw_feature("number", ("n",), 1),
    ]
    values = FeatureTransform(features)({"x": tf.constant(["a", "b"]), "n": tf.constant([1, 5], tf.int64)})
    assert list(values) == ["hashed", "row", "cross", "number"]
    assert values["hashed"].numpy().tolist() == buckets(["a", "b"], 50)
    assert values["row"].numpy().tolist() == [1, 0]
    assert values["cross"].numpy().tolist() == buckets(["a\x1d1", "b\x1d5"], 50)
    assert values["number"].numpy().tolist() == [[1.0], [5.0]]


@pytest.mark.parametrize(
    ("feature", "shape"),
    [
        (id_feature(), [0]),
        (id_feature("identity", 3), [0]),
        (id_feature("vocabulary", 2, vocabulary=("a",)), [0]),
        (tag_feature(kv_separator=":"), [0, None]),
        (tag_feature(separator="||"), [0, None]),
        (raw_feature(), [0, 1]),
        (raw_feature(width=3, dim=3, separator="|"), [0, 3]),
        (raw_feature(boundaries=(1.0,)), [0]),
        (sequence_feature(max_length=2), [0, None]),
        (sequence_feature("raw", dim=2, number_separator=","), [0, None, 2]),
    ],
)
def test_no_sample(feature, shape):
    fields = {"x": tf.constant([], tf.string)}
    values = FeatureTransform([feature])(fields)
    assert values["f"].shape.as_list() == shape


def test_the_same_in_a_graph():
    features = [
        make.tag_feature(
            "tags", ("x",), 4, "t", "vocabulary", 3, vocabulary=("a", "b"), separator="|", kv_separator=":"
        ),
        make.raw_feature("vector", ("v",), 2, dim=2, separator=","),
    ]
    layer = FeatureTransform(features)
    fields = {"x": tf.constant(["b:1|z:2", ""]), "v": tf.constant(["1,2", ""])}
    eager = layer(fields)
    graph = tf.function(layer, autograph=False)(fields)
    assert list(eager) == list(graph) == ["tags", "tags:weight", "vector"]
    for name, value in eager.items():
        as_list = (lambda v: v.to_list()) if isinstance(value, tf.RaggedTensor) else (lambda v: v.numpy().tolist())
        assert as_list(value) == as_list(graph[name])
