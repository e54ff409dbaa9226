"""Each kind of feature against plain Python and NumPy, and the patterns against both regular expression engines."""

import re

import feature_helpers as make
import numpy as np
import pytest
import tensorflow as tf
from data_helpers import schema
from feature_helpers import combo_feature
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.features.tensorflow_back_end import split_texts
from easyrec_mm.features.tensorflow_transform import FeatureTransform
from easyrec_mm.features.text_patterns import INTEGER_PATTERN, NUMBER_PATTERN, VALUE_PATTERNS


def transform(feature, **fields):
    """What one feature becomes: NumPy arrays, ragged ones as lists; with weights a pair."""
    tensors = {name: as_tensor(values) for name, values in fields.items()}
    features = FeatureTransform([feature])(tensors)
    found = [
        value.to_list() if isinstance(value, tf.RaggedTensor) else value.numpy()
        for value in (features.pop(name) for name in (feature.name, feature.weight_key) if name in features)
    ]
    assert not features
    return found[0] if len(found) == 1 else tuple(found)


def as_tensor(values):
    if isinstance(values[0], str | bytes):
        return tf.constant(values, tf.string)
    return tf.constant(values, tf.int64 if isinstance(values[0], int) else tf.float32)


def id_feature(encoding="hash", num_ids=1000, **options):
    return make.id_feature("f", ("x",), 4, "t", encoding, num_ids, **options)


def tag_feature(encoding="hash", num_ids=1000, inputs=("x",), **options):
    return make.tag_feature("f", inputs, 4, "t", encoding, num_ids, **{"separator": "|", **options})


def raw_feature(**options):
    return make.raw_feature("f", ("x",), options.pop("width", 1), **options)


def buckets(texts, num_ids=1000):
    """farmhash64 of the texts, modulo the number of rows, by the op whose constants the first test pins."""
    return tf.strings.to_hash_bucket_fast(tf.constant(texts, tf.string), num_ids).numpy().tolist()


# Hashing.


def test_hash_is_farmhash_fingerprint64():
    # farmhash::Fingerprint64 of these strings; a table that was trained with them must never be read with others.
    fingerprints = {
        "": 0x9AE16A3B2F90404F,
        "a": 0xB3454265B6DF75E3,
        "hello": 0xB48BE5A931380CE8,
    }
    num_ids = 2**40
    found = transform(id_feature(num_ids=num_ids), x=list(fingerprints))
    assert found.tolist() == [value % num_ids for value in fingerprints.values()]
    assert found.dtype == np.int64


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
    found = transform(id_feature("identity", 10), x=[str(value) for value in values] if as_text else values)
    assert found.tolist() == expected


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


def test_combo_hashes_its_inputs_joined():
    feature = combo_feature("f", ("x", "z", "w"), 4, "t", "hash", 1000, precision=1)
    found = transform(feature, x=["a", "ab", ""], z=[1, -2, 3], w=[0.25, 1.0, 0.0])
    texts = ["a\x1d1\x1d0.2", "ab\x1d-2\x1d1.0", "\x1d3\x1d0.0"]
    assert found.tolist() == buckets(texts)


def test_combo_tells_its_inputs_apart():
    feature = combo_feature("f", ("x", "z"), 4, "t", "hash", 2**40)
    found = transform(feature, x=["ab", "a", "", "abc"], z=["c", "bc", "abc", ""])
    assert len(set(found.tolist())) == 4


def test_inputs_are_taken_in_the_order_of_the_feature():
    forward = combo_feature("f", ("x", "z"), 4, "t", "hash", 1000)
    assert transform(forward, z=["2"], x=["1"]).tolist() == buckets(["1\x1d2"])


# Tags.


@pytest.mark.parametrize("separator", ["|", "||", "é", " ", "."])
def test_empty_tags_are_dropped(separator):
    samples = [["a", "b"], ["", "a", "", "", "c", ""], [""], [], ["", ""], ["d"]]
    texts = [separator.join(tags) for tags in samples]
    expected = [[tag for tag in text.split(separator) if tag] for text in texts]
    assert split_texts(tf.constant(texts), separator).to_list() == [[tag.encode() for tag in tags] for tags in expected]
    found = transform(tag_feature(separator=separator), x=texts)
    assert found == [buckets(tags) if tags else [] for tags in expected]


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


def lookup_feature(encoding="hash", num_ids=1000, **options):
    settings = {"separator": "|", "kv_separator": ":", "max_selected": 10, **options}
    return make.lookup_feature("f", ("k", "m"), 4, "t", encoding, num_ids, **settings)


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


def sequence_feature(elements="id", **options):
    settings = {"separator": "|", **options}
    if elements == "id":
        encoding, num_ids = settings.pop("encoding", "hash"), settings.pop("num_ids", 1000)
        return make.id_sequence("f", ("x",), 4, "t", encoding, num_ids, **settings)
    return make.raw_sequence("f", ("x",), settings.pop("width", 4), **settings)


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
    expected = [some[-most:] if keeps_last else some[:most] for some in elements]
    found = transform(feature, x=[separator.join(sample) for sample in samples])
    assert found == [buckets(some) if some else [] for some in expected]


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


# Numbers.


def test_a_number_stays_as_it_is():
    values = [0.5, -3.0, 1e30]
    found = transform(raw_feature(), x=values)
    np.testing.assert_array_equal(found, np.float32(values)[:, None])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(transform(raw_feature(), x=[3, -4]), [[3.0], [-4.0]])
    np.testing.assert_array_equal(transform(raw_feature(), x=["1.5", "", " 2e1"]), [[1.5], [0.0], [20.0]])


@pytest.mark.parametrize("separator", ["|", "||", " "])
def test_vectors(separator):
    feature = raw_feature(width=3, dim=3, separator=separator)
    texts = [separator.join(numbers) for numbers in (["1", "-2.5", "3e2"], [".5", "0", "7"])]
    np.testing.assert_array_equal(transform(feature, x=[*texts, ""]), [[1, -2.5, 300], [0.5, 0, 7], [0, 0, 0]])


def floats(low, high):
    """Without those below 1.2e-38, which TensorFlow takes for 0."""
    return st.floats(low, high, width=32, allow_subnormal=False)


@given(st.lists(floats(-(2**20), 2**20), min_size=1, max_size=5), floats(-1024, 1024), floats(2**-10, 1024))
@settings(max_examples=20, deadline=None)
def test_numbers_are_scaled_to_their_limits(values, low, extent):
    high = low + extent
    found = transform(raw_feature(min_value=low, max_value=high), x=values)
    expected = (np.float32(values) - np.float32(low)) / np.float32(high - low)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6, atol=2e-38)


def test_limits_become_0_and_1():
    found = transform(raw_feature(min_value=-1.0, max_value=3.0), x=[-1.0, 3.0, 1.0, 7.0])
    np.testing.assert_array_equal(found[:, 0], [0, 1, 0.5, 2])


@given(
    st.lists(floats(-100, 100), min_size=1, max_size=6, unique=True),
    st.lists(floats(-150, 150), min_size=1, max_size=8),
)
@settings(max_examples=40, deadline=None)
def test_buckets_equal_searchsorted(boundaries, values):
    boundaries = sorted(boundaries)
    values = [*values, *boundaries]  # the limits themselves
    found = transform(raw_feature(boundaries=tuple(boundaries), width=len(boundaries) + 1), x=values)
    assert found.tolist() == np.searchsorted(np.float32(boundaries), np.float32(values), side="right").tolist()
    assert found.dtype == np.int64


def test_a_bucket_holds_its_lower_limit():
    found = transform(raw_feature(boundaries=(1.0, 2.5)), x=[0.0, 0.999, 1.0, 2.4, 2.5, 1e9, -1e9])
    assert found.tolist() == [0, 0, 1, 1, 2, 2, 0]


@given(st.lists(floats(-(2**100), 2**100), min_size=1, max_size=8), floats(-1024, 1024), floats(2**-10, 1024))
@settings(max_examples=40, deadline=None)
def test_log1p_before_and_after_scaling(values, low, extent):
    def log1p(x):
        return np.sign(x) * np.log1p(np.abs(x))

    numbers = np.float32(values)
    found = transform(raw_feature(log1p="before"), x=values)
    np.testing.assert_allclose(found[:, 0], log1p(numbers.astype(np.float64)), rtol=1e-7, atol=1e-45)
    assert found.dtype == np.float32
    high = low + extent
    scaled = raw_feature(min_value=low, max_value=high, log1p="before")
    expected = (log1p(numbers.astype(np.float64)) - low) / (high - low)
    np.testing.assert_allclose(transform(scaled, x=values)[:, 0], expected, rtol=1e-3, atol=1e-3)
    scaled = raw_feature(min_value=low, max_value=high, log1p="after")
    expected = log1p((numbers.astype(np.float64) - low) / (high - low))
    np.testing.assert_allclose(transform(scaled, x=values)[:, 0], expected, rtol=1e-3, atol=1e-3)


def test_log1p_of_counts_is_log1p():
    found = transform(raw_feature(log1p="before"), x=[0, 1, 99, -1, -99])
    np.testing.assert_allclose(found[:, 0], [0, np.log(2), np.log(100), -np.log(2), -np.log(100)], rtol=1e-7)


def test_boundaries_divide_what_log1p_made():
    limits = tuple(np.log1p([10.0, 100.0]).tolist())
    found = transform(raw_feature(boundaries=limits, log1p="before"), x=[0.0, 9.9, 10.1, 99.0, 101.0])
    assert found.tolist() == [0, 0, 1, 1, 2]
    vector = raw_feature(width=2, dim=2, separator=",", log1p="before")
    np.testing.assert_allclose(transform(vector, x=["3,-3", ""]), [[np.log(4), -np.log(4)], [0, 0]], rtol=1e-7)


def test_buckets_of_text_integers_and_scaled_numbers():
    assert transform(raw_feature(boundaries=(0.0, 2.0)), x=["", "-1", "2"]).tolist() == [1, 0, 2]
    assert transform(raw_feature(boundaries=(0.0, 2.0)), x=[-5, 0, 1, 2]).tolist() == [0, 1, 1, 2]
    scaled = raw_feature(boundaries=(0.5,), min_value=0.0, max_value=10.0)
    assert transform(scaled, x=[4.9, 5.0]).tolist() == [0, 1]


# Several features, and no sample.


def test_features_share_fields_and_come_in_the_order_of_the_schema():
    features = [
        make.id_feature("hashed", ("x",), 4, "t", "hash", 50),
        make.id_feature("row", ("n",), 4, "t2", "identity", 3),
        combo_feature("cross", ("x", "n"), 4, "t3", "hash", 50),
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
    one = FeatureTransform(features)
    fields = {"x": tf.constant(["b:1|z:2", ""]), "v": tf.constant(["1,2", ""])}
    eager = one(fields)
    graph = tf.function(one, autograph=False)(fields)
    assert list(eager) == list(graph) == ["tags", "tags:weight", "vector"]
    for name, value in eager.items():
        as_list = (lambda v: v.to_list()) if isinstance(value, tf.RaggedTensor) else (lambda v: v.numpy().tolist())
        assert as_list(value) == as_list(graph[name])


# Patterns: what a field's text must look like.


def patterns_of(*features, **dtypes):
    return schema({"y": "float32"}, dtypes, features).text_patterns()


def both_match(patterns, text):
    """Whether the text matches; the two engines must agree."""
    python = all(re.fullmatch(pattern, text) for pattern in patterns)
    re2 = all(bool(tf.strings.regex_full_match(text, pattern)) for pattern in patterns)
    assert python == re2, (patterns, text)
    return python


def is_number(text, kind=float, separators="", largest_exponent=99):
    """Python's opinion, on decimal text of the lengths and exponents that the format allows."""
    if set(text) - (set("0123456789+-.eE \t") - set(separators)):
        return False
    digits = re.split("[eE]", text.strip(" \t"))
    if (kind is int and len(digits[0].lstrip("+-")) > 18) or any(len(part.lstrip("+-")) > 2 for part in digits[1:]):
        return False
    try:
        kind(text)
        return all(int(exponent) <= largest_exponent for exponent in digits[1:])
    except ValueError:
        return False


number_texts = st.one_of(
    st.text("0159+-.eE \t", max_size=7),
    st.text("0123456789", min_size=15, max_size=20),
    st.floats(width=32).map(str),
    st.integers(-(10**20), 10**20).map(str),
    st.text(max_size=4),
).filter(lambda text: "\x00" not in text)


@given(number_texts)
@settings(max_examples=300, deadline=None)
def test_numbers_are_what_python_takes_for_numbers(text):
    assert both_match([NUMBER_PATTERN], text) == is_number(text)
    assert both_match([INTEGER_PATTERN], text) == is_number(text, int)
    if is_number(text):
        with np.errstate(over="ignore"):
            assert tf.strings.to_number(text).numpy() == np.float32(float(text))
    if is_number(text, int):
        assert tf.strings.to_number(text, tf.int64).numpy() == int(text)


@given(
    st.one_of(st.sampled_from(["true", "FALSE", "tRue", "0", "1", "01", "truefalse", "", " 1"]), st.text(max_size=5))
)
@settings(max_examples=60, deadline=None)
def test_truth_values(text):
    both_match([VALUE_PATTERNS["bool"]], text)


def test_truth_values_are_two_words_and_two_digits():
    accepted = [text for text in ("true", "False", "TRUE", "0", "1") if both_match([VALUE_PATTERNS["bool"]], text)]
    assert len(accepted) == 5
    assert not any(
        both_match([VALUE_PATTERNS["bool"]], text) for text in ("", "2", "yes", "t", "true ", "10", "truefalse")
    )


def parts(text, separator):
    return [part for part in text.split(separator) if part]


# Of numbers within a string field: docs/data_format.md.
LARGEST_EXPONENT = 19


def vector_reference(separator, dim):
    return lambda text: (
        len(text.split(separator)) == dim
        and all(is_number(part, float, separator, LARGEST_EXPONENT) for part in text.split(separator))
    )


def weights_reference(separator):
    return lambda text: all(is_number(part, float, separator, LARGEST_EXPONENT) for part in parts(text, separator))


def rows_reference(separator):
    return lambda text: all(is_number(part, int) for part in parts(text, separator))


def pairs_reference(separator, kv_separator, is_key=lambda key: True):
    def accepts(text):
        pairs = [part.split(kv_separator) for part in parts(text, separator)]
        return all(
            len(pair) == 2 and is_key(pair[0]) and is_number(pair[1], largest_exponent=LARGEST_EXPONENT)
            for pair in pairs
        )

    return accepts


def map_reference(separator, kv_separator, is_value=lambda value: True):
    def accepts(text):
        pairs = [part.split(kv_separator) for part in parts(text, separator)]
        return all(len(pair) == 2 and is_value(pair[1]) for pair in pairs)

    return accepts


TEXT_FORMS = {
    "vector": (raw_feature(width=2, dim=2, separator="|"), "x", vector_reference("|", 2), "12.-e|| "),
    "vector of 3, comma": (raw_feature(width=3, dim=3, separator=","), "x", vector_reference(",", 3), "12.,,"),
    "vector, space": (raw_feature(width=2, dim=2, separator=" "), "x", vector_reference(" ", 2), "12.\t  "),
    "vector, minus": (raw_feature(width=2, dim=2, separator="-"), "x", vector_reference("-", 2), "12.--+"),
    "vector, point": (raw_feature(width=2, dim=2, separator="."), "x", vector_reference(".", 2), "12..-e"),
    "vector, e": (raw_feature(width=2, dim=2, separator="e"), "x", vector_reference("e", 2), "12.ee-+"),
    "vector, several": (raw_feature(width=2, dim=2, separator="||"), "x", vector_reference("||", 2), "12|||"),
    "number": (raw_feature(), "x", lambda text: is_number(text, largest_exponent=LARGEST_EXPONENT), "12.-+e "),
    "expression": (
        make.expr_feature("f", ("x",), 1, expression="x + 1"), "x",
        lambda text: is_number(text, largest_exponent=LARGEST_EXPONENT),
        "12.-+e ",
    ),
    "row": (id_feature("identity", 5), "x", lambda text: is_number(text, int), "12.-+ "),
    "rows": (tag_feature("identity", 5), "x", rows_reference("|"), "12|| -"),
    "rows, space": (tag_feature("identity", 5, separator=" "), "x", rows_reference(" "), "12  \t"),
    "rows, point": (tag_feature("identity", 5, separator="."), "x", rows_reference("."), "12.. "),
    "weights": (tag_feature(inputs=("x", "w")), "w", weights_reference("|"), "12|.|- "),
    "pairs": (tag_feature(kv_separator=":"), "x", pairs_reference("|", ":"), "a1::||."),
    "pairs, special": (tag_feature(separator="]", kv_separator="^"), "x", pairs_reference("]", "^"), "a1^^]]\\"),
    "pairs, minus": (tag_feature(separator=",", kv_separator="-"), "x", pairs_reference(",", "-"), "a1--,,"),
    "pairs, equals": (tag_feature(separator="&", kv_separator="="), "x", pairs_reference("&", "="), "aé1==&& "),
    "map": (lookup_feature(), "m", map_reference("|", ":"), "a1::||."),
    "map of rows": (
        lookup_feature("identity", 5, separator=","), "m",
        map_reference(",", ":", lambda value: is_number(value, int)), "a1::,,-.",
    ),
    "row sequence": (sequence_feature(encoding="identity"), "x", rows_reference("|"), "12|| -"),
    "number sequence": (sequence_feature("raw"), "x", weights_reference("|"), "12|.|- e"),
    "vector sequence": (
        sequence_feature("raw", dim=2, number_separator=":"), "x",
        lambda text: all(vector_reference(":", 2)(part) for part in parts(text, "|")), "12::||.-",
    ),
    "pairs of rows": (
        tag_feature("identity", 5, kv_separator=":"), "x",
        pairs_reference("|", ":", lambda key: is_number(key, int)), "12::||.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXT_FORMS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_patterns_accept_what_python_accepts_and_the_transform_takes(name, data):
    feature, field, reference, alphabet = TEXT_FORMS[name]
    text = data.draw(st.text(alphabet, min_size=1, max_size=9))
    accepts = both_match(patterns_of(feature, x="string", w="string", k="string", m="string")[field], text)
    assert accepts == reference(text)
    if accepts:
        transform(feature, **{name: [text] for name in feature.inputs})  # without an error


def test_a_pattern_does_not_reach_over_a_line_end():
    # Input formats join values by line ends before they match them.
    pattern = patterns_of(tag_feature(kv_separator=":"), x="string")["x"][0]
    assert both_match([pattern], "a:1|b:2")
    assert not both_match([pattern], "a\nb:1")


@pytest.mark.parametrize("raw_dim", [1, 2, 400, 401, 402, 801, 1500])
def test_patterns_of_long_vectors_count_exactly(raw_dim):
    pattern = patterns_of(raw_feature(width=raw_dim, dim=raw_dim, separator="|"), x="string")["x"][0]
    lengths = [length for length in (raw_dim - 1, raw_dim, raw_dim + 1) if length]
    assert [both_match([pattern], "|".join(["1"] * length)) for length in lengths] == [n == raw_dim for n in lengths]


@pytest.mark.parametrize("raw_dim", [2, 128, 768])
def test_patterns_of_sequences_of_long_vectors_count_exactly(raw_dim):
    feature = sequence_feature("raw", dim=raw_dim, number_separator=",")
    pattern = patterns_of(feature, x="string")["x"][0]
    elements = [",".join(["1"] * length) for length in (raw_dim - 1, raw_dim, raw_dim + 1)]
    found = [both_match([pattern], f"{elements[1]}|{element}") for element in elements]
    assert found == [False, True, False]


def test_fields_have_the_patterns_of_their_type_and_of_every_feature():
    features = [
        make.id_feature("a", ("text",), 4, "t", "hash", 9),
        make.id_feature("b", ("number",), 4, "t2", "identity", 9),
        make.raw_feature("c", ("both",), 1),
        make.id_feature("d", ("both",), 4, "t3", "identity", 9),
    ]
    found = patterns_of(*features, text="string", number="int64", price="float32", vip="bool", both="string")
    number_of_a_string, integer = found.pop("both")
    assert found == {
        "y": [NUMBER_PATTERN],
        "number": [INTEGER_PATTERN],
        "price": [NUMBER_PATTERN],
        "vip": [VALUE_PATTERNS["bool"]],
        "group_size": [INTEGER_PATTERN],
    }
    assert integer == INTEGER_PATTERN
    # A number within a string cannot be too large for float32: nothing checks it once more.
    for text, accepted in {"1.5": True, "-2e19": True, "1e-99": True, "1e20": False, "1e99": False}.items():
        assert both_match([number_of_a_string], text) == accepted


def test_the_patterns_that_are_rewritten_still_hold_what_is_replaced():
    # A separator is taken out of these by text; were they written otherwise, it would stay in.
    for pattern in (NUMBER_PATTERN, INTEGER_PATTERN):
        assert pattern.count(r"[ \t]*") == 2
        assert "[+-]?" in pattern
    for separator in " +-.e":
        feature = raw_feature(width=2, dim=2, separator=separator)
        pattern = patterns_of(feature, x="string")["x"][0]
        accepted = [text for text in ("12", "1", "2") if both_match([pattern], separator.join([text, text]))]
        assert accepted == ["12", "1", "2"]
        doubled = (separator.join(["1", "", "2"]), separator.join(["", "1", "2"]), separator.join(["1", "2", ""]))
        assert not any(both_match([pattern], text) for text in doubled)
