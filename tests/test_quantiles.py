"""Fitted bucket limits: against NumPy's buckets, and what each promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.features.quantiles import quantile_boundaries


@given(st.integers(2, 300), st.integers(1, 40), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_distinct_values_fall_into_buckets_of_equal_numbers(num_values, num_buckets, seed):
    values = np.random.default_rng(seed).permutation(num_values).astype(np.float32)
    limits = quantile_boundaries(values, num_buckets)
    counts = np.bincount(np.searchsorted(limits, values, side="right"), minlength=len(limits) + 1)
    if num_buckets <= num_values:
        assert len(counts) == num_buckets
        assert counts.max() - counts.min() <= 2
    else:
        assert counts.tolist() == [1] * num_values


@given(st.lists(st.sampled_from([0.0, 0.1, -3.5, 7.25, 1e-20, 1e30, np.nan, np.inf]), max_size=40), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_whatever_repeats_no_bucket_is_empty(values, num_buckets):
    limits = quantile_boundaries(values, num_buckets)
    finite = np.float32([value for value in values if np.isfinite(value)])
    assert len(limits) < num_buckets
    assert list(limits) == sorted(set(limits))
    if len(finite):
        counts = np.bincount(np.searchsorted(np.float32(limits), finite, side="right"), minlength=len(limits) + 1)
        assert counts.min() > 0
        # All that can be told apart is, where there are buckets enough; and some of it, where there are two.
        num_distinct = len(set(finite.tolist()))
        assert len(limits) + 1 >= (num_distinct if num_distinct <= num_buckets else min(num_buckets, 2))
    else:
        assert limits == ()


def test_a_frequent_value_has_a_bucket_of_its_own():
    # The others are divided as if it were not there.
    assert quantile_boundaries([0] * 50 + list(range(1, 51)), 4) == (1.0, 18.0, 34.0)
    assert quantile_boundaries([0] * 950 + list(range(1, 51)), 6) == (1.0, 11.0, 21.0, 31.0, 41.0)
    assert quantile_boundaries([5] * 90 + [1] * 5 + [9] * 5, 10) == (5.0, 9.0)


def test_limits_are_written_as_short_as_float32_allows():
    values = np.float32([0.1, 0.2, 0.3, 1 / 3])
    limits = quantile_boundaries(values, 4)
    assert limits == (0.2, 0.3, 0.33333334)
    assert np.float32(limits).tolist() == values[1:].tolist()


def test_values_that_are_one_in_float32_are_not_divided():
    assert quantile_boundaries([1.0, 1.0 + 1e-12], 2) == ()


def test_no_buckets():
    with pytest.raises(ValueError, match="num_buckets is 0; give 1 or more"):
        quantile_boundaries([1.0], 0)
