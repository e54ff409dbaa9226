"""The patterns of texts against plain Python, by both regular expression engines."""

import re

import feature_helpers as make
import numpy as np
import pytest
import tensorflow as tf
from data_helpers import schema
from hypothesis import given, settings
from hypothesis import strategies as st
from transform_helpers import id_feature, lookup_feature, raw_feature, sequence_feature, tag_feature, transform

from easyrec_mm.features.text_patterns import INTEGER_PATTERN, NUMBER_PATTERN, VALUE_PATTERNS, list_of, vector


def patterns_of(*features, **dtypes):
    return schema({"y": "float32"}, dtypes, features).text_patterns()


def both_match(patterns, text):
    """Whether the text matches; the two engines must agree."""
    python = all(re.fullmatch(pattern, text) for pattern in patterns)
    re2 = all(bool(tf.strings.regex_full_match(text, pattern)) for pattern in patterns)
    assert python == re2, (patterns, text)
    return python


@pytest.mark.parametrize("separator", [",", "|", "\x1d"])
def test_the_longest_vector_that_a_config_may_have_is_matched(separator):
    """Groups are matched many lines at a time, and a sequence's elements many at a time: their patterns are longer."""
    pattern, text = vector(separator, separator, 8192), separator.join(["1.5"] * 8192)
    assert both_match([rf"(?:{pattern})(?:\n(?:{pattern}))*", list_of(pattern, ";")], text)
    for wrong in (f"{text}{separator}1", text[: -len("1.5") - 1]):
        assert not both_match([pattern], wrong)


def is_number(text, kind=float, separators="", within_text=False):
    """Python's opinion, on decimal text of the lengths and exponents that the format allows: docs/data_format.md."""
    largest_exponent = 19 if within_text else 99
    if set(text) - (set("0123456789+-.eE \t") - set(separators)):
        return False
    digits = re.split("[eE]", text.strip(" \t"))
    if (kind is int and len(digits[0].lstrip("+-")) > 18) or any(len(part.lstrip("+-")) > 2 for part in digits[1:]):
        return False
    if within_text and len(digits[0].lstrip("+-").partition(".")[0]) > 20:
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


def vector_reference(separator, dim):
    return lambda text: (
        len(text.split(separator)) == dim
        and all(is_number(part, float, separator, within_text=True) for part in text.split(separator))
    )


def weights_reference(separator):
    return lambda text: all(is_number(part, float, separator, within_text=True) for part in parts(text, separator))


def rows_reference(separator):
    return lambda text: all(is_number(part, int) for part in parts(text, separator))


def pairs_reference(separator, kv_separator, is_key=lambda key: True):
    def accepts(text):
        pairs = [part.split(kv_separator) for part in parts(text, separator)]
        return all(len(pair) == 2 and is_key(pair[0]) and is_number(pair[1], within_text=True) for pair in pairs)

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
    "number": (raw_feature(), "x", lambda text: is_number(text, within_text=True), "12.-+e "),
    "expression": (
        make.expr_feature("f", ("x",), 1, expression="x + 1"), "x",
        lambda text: is_number(text, within_text=True),
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
def test_patterns_of_vectors_limit_the_digits_of_each_number(raw_dim):
    for feature, separators in (
        (raw_feature(width=raw_dim, dim=raw_dim, separator="|"), "|"),
        (raw_feature(width=raw_dim, dim=raw_dim, separator="."), "."),
        (sequence_feature("raw", dim=raw_dim, number_separator=","), ","),
    ):
        patterns = patterns_of(feature, x="string")["x"]
        fraction = "" if separators == "." else f".{'9' * 30}"
        ones = ["1"] * (raw_dim - 1)
        for last, accepted in (("9" * 20 + fraction, True), ("9" * 21, False), ("-" + "9" * 21 + fraction, False)):
            assert both_match(patterns, separators.join([*ones, last])) == accepted
            assert both_match(patterns, separators.join([last, *ones])) == accepted


@pytest.mark.parametrize("raw_dim", [2, 128, 768])
def test_patterns_of_sequences_of_long_vectors_count_exactly(raw_dim):
    feature = sequence_feature("raw", dim=raw_dim, number_separator=",")
    pattern = patterns_of(feature, x="string")["x"][0]
    elements = [",".join(["1"] * length) for length in (raw_dim - 1, raw_dim, raw_dim + 1)]
    matches = [both_match([pattern], f"{elements[1]}|{element}") for element in elements]
    assert matches == [False, True, False]


def test_fields_have_the_patterns_of_their_type_and_of_every_feature():
    features = [
        make.id_feature("a", ("text",), 4, "t", "hash", 9),
        make.id_feature("b", ("number",), 4, "t2", "identity", 9),
        make.raw_feature("c", ("both",), 1),
        make.id_feature("d", ("both",), 4, "t3", "identity", 9),
    ]
    patterns = patterns_of(*features, text="string", number="int64", price="float32", vip="bool", both="string")
    *number_of_a_string, integer = patterns.pop("both")
    assert patterns == {
        "y": [NUMBER_PATTERN],
        "number": [INTEGER_PATTERN],
        "price": [NUMBER_PATTERN],
        "vip": [VALUE_PATTERNS["bool"]],
        "group_size": [INTEGER_PATTERN],
    }
    assert integer == INTEGER_PATTERN
    # A number within a string cannot be too large for float32: nothing checks it once more.
    accepted_texts = {"1.5": True, "-2e19": True, "1e-99": True, "1e20": False, "1e99": False, "9" * 21: False}
    for text, accepted in accepted_texts.items():
        assert both_match(number_of_a_string, text) == accepted


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
