"""Rows of tables whose vocabulary has changed: matched by the text of values, against plain dicts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyrec_mm.features.categories import Categories
from easyrec_mm.features.table_rows import UnlikeRowsError, rows_before


def words(*values):
    return Categories("vocabulary", len(values) + 1, values)


@given(*[st.lists(st.text(max_size=3), unique=True, max_size=12)] * 2)
def test_a_row_is_that_of_the_same_text(before, now):
    expected = [before.index(text) if text in before else -1 for text in now] + [len(before)]
    assert rows_before({"f": words(*before)}, {"f": words(*now)}).tolist() == expected


def numbers(num_ids):
    return Categories("identity", num_ids)


def buckets(num_ids):
    return Categories("hash", num_ids)


def test_numbers_keep_their_rows():
    assert rows_before({"f": numbers(2)}, {"f": numbers(4)}).tolist() == [0, 1, -1, -1]
    assert rows_before({"f": numbers(4)}, {"f": numbers(2)}).tolist() == [0, 1]
    assert rows_before({"f": buckets(3)}, {"f": buckets(3)}).tolist() == [0, 1, 2]


def test_features_that_share_a_table():
    a, b, longer = words("a", "b"), words("b", "a"), words("a", "c", "b")
    # Of one vocabulary, also one that has come later.
    assert rows_before({"f": a, "g": a}, {"f": longer, "h": longer}).tolist() == [0, -1, 1, 2]
    # A row stands for a value of each: "c" of f and "a" of g, which had row 1.
    assert rows_before({"f": a, "g": b}, {"f": words("a", "c"), "g": b}).tolist() == [0, 1, 2]
    with pytest.raises(UnlikeRowsError, match=r"the values of its features \(f, g\) have moved to different rows"):
        rows_before({"f": a, "g": b}, {"f": a, "g": a})
    with pytest.raises(UnlikeRowsError, match="other features share it now"):
        rows_before({"f": a, "g": b}, {"h": a})


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        (buckets(12), buckets(20), "hash_bucket_size was 12, is 20: values have other rows with it"),
        (buckets(3), words("a", "b"), "its rows are chosen by a vocabulary, were chosen by hash_bucket_size"),
        (words("0", "1"), numbers(3), "its rows are chosen by num_buckets, were chosen by a vocabulary"),
    ],
)
def test_rows_that_stand_for_other_values(before, now, says):
    with pytest.raises(UnlikeRowsError, match=says):
        rows_before({"f": before}, {"f": now})


def test_a_large_vocabulary_in_another_order():
    rng = np.random.default_rng(0)
    order = rng.permutation(100_000)
    before = words(*(f"v{i}" for i in range(100_000)))
    rows = rows_before({"f": before}, {"f": words(*(f"v{i}" for i in order))})
    np.testing.assert_array_equal(rows, [*order, 100_000])
