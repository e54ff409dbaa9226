"""Times of text against Python's datetime, and sides that do not depend on how a day wrote its keys."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyrec_mm.grouping.sides import SideRule
from easyrec_mm.grouping.times import date_order, times_of

EPOCH = dt.datetime(1970, 1, 1)
MOMENTS = st.datetimes(dt.datetime(1000, 1, 1), dt.datetime(9999, 12, 31))


def microseconds(moment):
    return (moment - EPOCH) // dt.timedelta(microseconds=1)


@given(st.lists(MOMENTS, min_size=1), st.sampled_from(["ymd", "dmy", "mdy"]), st.sampled_from("-/."), st.booleans())
def test_dates_with_and_without_a_time_of_day(moments, order, separator, is_padded):
    def text(moment):
        width = "02" if is_padded else ""
        parts = {"y": str(moment.year), "m": f"{moment.month:{width}}", "d": f"{moment.day:{width}}"}
        return separator.join(parts[part] for part in order) + f" {moment:%H:%M:%S.%f}"

    times = times_of(pa.array([text(moment) for moment in moments]), order)
    assert times.to_pylist() == [microseconds(moment) for moment in moments]


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("2026-1-9", "2026-01-09"),
        ("2026-11-27T10:00:00+02:00", "2026-11-27T08:00"),
        ("2026-11-27 10:00-0530", "2026-11-27T15:30"),
        ("2026-11-27 10:00:00Z", "2026-11-27T10:00"),
        ("2026-11-27 10:00:00.25 UTC", "2026-11-27T10:00:00.250000"),
        ("20261127", "2026-11-27"),
        ("2026112713", "2026-11-27T13:00"),
        ("20261127T131415", "2026-11-27T13:14:15"),
    ],
)
@pytest.mark.parametrize("order", ["ymd", "dmy"])
def test_other_ways_to_write_times(text, iso, order):
    expected = microseconds(dt.datetime.fromisoformat(iso))
    found = times_of(pa.array([text]), order)[0].as_py()
    assert found == (expected if order == "ymd" or "-" not in text else None)


@pytest.mark.parametrize("text", ["", "x", "2026-02-30", "2026-13-01", "2026-01-00", "2026-01-01 25:00", "1-2-3", None])
def test_what_is_no_time(text):
    assert times_of(pa.array([text, "2026-01-01"]), "ymd").to_pylist()[0] is None


def test_the_order_is_the_only_one_in_which_all_are_times():
    assert date_order(pa.array(["31/12/2026", "01/02/2026", None, ""])) == "dmy"
    assert date_order(pa.array(["01/02/2026", "12/31/2026"])) == "mdy"
    assert date_order(pa.array(["2026-1-9", "2026-01-10"])) == "ymd"
    with pytest.raises(ValueError, match="'1/2/2026' may have the day or the month first"):
        date_order(pa.array(["1/2/2026", "3/4/2026"]))
    with pytest.raises(ValueError, match="'week 3' is not a date or time like the others"):
        date_order(pa.array(["2026-01-01", "week 3"]))
    with pytest.raises(ValueError, match="is not a date or time like the others"):
        date_order(pa.array(["2026-11-27", "31/12/2026"]))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50), st.integers(0, 2**32))
def test_a_key_is_on_the_same_side_as_number_and_as_text(keys, seed):
    rule = SideRule("user", "user", 0.4)
    as_numbers = rule.sides(pa.table({"user": pa.array(keys)}), seed)
    as_texts = rule.sides(pa.table({"user": pa.array([str(key) for key in keys])}), seed)
    np.testing.assert_array_equal(as_numbers, as_texts)


def test_days_of_times_of_text_are_divided_by_time():
    rule = SideRule("time", "day", 0.5, cut=microseconds(dt.datetime(2026, 2, 1)), order="dmy")
    sides = rule.sides(pa.table({"day": ["31/1/2026", "1/2/2026", "2/1/2026", "10/10/2025"]}), 0)
    assert sides.tolist() == [0, 1, 0, 0]
