"""Matching of texts takes a time proportional to their length, whatever a client or a file contains."""

from __future__ import annotations

import re
import time
import tracemalloc

import pytest
import tensorflow as tf
from data_helpers import schema
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_transform_patterns import TEXT_FORMS, patterns_of
from transform_helpers import id_feature, raw_feature, sequence_feature, tag_feature

from easyrec_mm.features.text_patterns import NUMBER_PATTERN
from easyrec_mm.serving.field_values import RequestError, field_values
from easyrec_mm.serving.request import RequestReader

# Generous for a time that grows with the length; one that grows with its square takes many times as long.
LENGTH, MOST_SECONDS = 30_000, 2.0


def match(patterns, text):
    """Match by both engines within the time."""
    for matches in (
        lambda: [re.fullmatch(pattern, text) is not None for pattern in patterns],
        lambda: [bool(tf.strings.regex_full_match(text, pattern)) for pattern in patterns],
    ):
        started = time.perf_counter()
        matches()
        assert time.perf_counter() - started < MOST_SECONDS, (patterns, text[:60])


@pytest.mark.parametrize("name", TEXT_FORMS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_texts_of_features(name, data):
    feature, field, _, alphabet = TEXT_FORMS[name]
    unit = data.draw(st.text(alphabet, min_size=1, max_size=6))
    end = data.draw(st.text(f"{alphabet}x", max_size=2))
    match(
        patterns_of(feature, x="string", w="string", k="string", m="string")[field], unit * (LENGTH // len(unit)) + end
    )


@given(st.text("0123456789.+-eE \t", min_size=1, max_size=6), st.sampled_from(["", "x", " ", "e"]))
@example("1", "x")
@settings(max_examples=30, deadline=None)
def test_numbers(unit, end):
    match([NUMBER_PATTERN], unit * (LENGTH // len(unit)) + end)


@pytest.mark.parametrize("dim", [3, 8, 16, 400])
@pytest.mark.parametrize("last", ["", "nan", "x"])
def test_vectors_with_one_number_that_is_wrong(dim, last):
    """Not an attack, but whole numbers of three digits of which the last one is missing."""
    feature = raw_feature(width=dim, dim=dim, separator=",")
    match(patterns_of(feature, x="string")["x"], ",".join([*["123"] * (dim - 1), *([last] if last else [])]))
    match(patterns_of(feature, x="string")["x"], ",".join(["1" * (LENGTH // dim)] * dim) + "x")


@pytest.mark.parametrize(
    ("feature", "text"),
    [
        (tag_feature(kv_separator=":"), "a:1|" * 200_000 + "x"),
        (tag_feature("identity", 5), "|" * 1_000_000 + "x"),
        (sequence_feature("raw"), "1|" * 400_000 + "x"),
        (raw_feature(width=3, dim=3, separator=","), "1" * 1_000_000),
    ],
    ids=["pairs", "nothing", "numbers", "digits"],
)
def test_a_request_with_a_long_text_takes_memory_of_its_length(feature, text):
    values = field_values(schema({"y": "float32"}, {"x": "string"}, [feature]))["x"]
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match=r"instance 0: x: .* does not have the form that its feature needs"):
            values.read([text], "instance")
        assert tracemalloc.get_traced_memory()[1] < 10 * len(text)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", [b'"{' * 300_000, b'{"' + b'\\"{' * 300_000, b'{"' + b'\\"{' * 300_000 + b"\\"])
def test_a_body_with_texts_that_do_not_end(text):
    reader = RequestReader(schema({"y": "float32"}, {"x": "string"}, [id_feature(num_ids=9)]), 3)
    started = time.perf_counter()
    with pytest.raises(RequestError, match=r"the body is not JSON|more than .* objects"):
        reader.read(b'{"instances": [' + text)
    assert time.perf_counter() - started < MOST_SECONDS


def test_a_number_of_too_many_digits():
    values = field_values(schema({"y": "float32"}, {"x": "string"}, [raw_feature(width=2, dim=2, separator=",")]))["x"]
    assert values.read(["1," + "1" * 20, "0." + "1" * 60 + ",2"], "instance")
    for text in ("1," + "1" * 21, "1" * 21 + ".5,-2"):
        with pytest.raises(RequestError, match=r"instance 1: x: .* does not have the form that its feature needs"):
            values.read(["1,2", text], "instance")
