"""Times in expressions: against Python's datetime, in graphs as they are exported, and every mistake in them."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
import tensorflow as tf
from config_helpers import FEATURE, FIELD, assert_only_problem, case
from feature_helpers import expr_feature
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.features.expression import ExpressionError, parse_expression
from easyrec_mm.features.numpy_transform import NumpyTransform
from easyrec_mm.features.tensorflow_transform import FeatureTransform

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
FIRST, LAST = -62_135_510_400, 253_402_214_400  # a day within Python's years 1 to 9999
PARTS = {
    "hour": lambda time: time.hour,
    "weekday": lambda time: time.weekday(),
    "monthday": lambda time: time.day,
    "month": lambda time: time.month,
}
# Limits of days, weeks, months and years, leap years among them, before and after 1970.
LIMITS = [
    int((datetime(year, month, day, tzinfo=timezone.utc) - EPOCH).total_seconds()) + second
    for year in (1, 1600, 1899, 1900, 1904, 1969, 1970, 1972, 2000, 2023, 2024, 2038, 2100, 9999)
    for month, day in ((1, 2), (2, 28), (3, 1), (3, 2), (12, 31))
    for second in (-1, 0, 1, 3599, 3600)
]
TIMES = st.one_of(
    st.integers(FIRST, LAST),
    st.sampled_from(LIMITS),
    st.integers(FIRST // 3600, LAST // 3600).map(lambda hour: 3600 * hour),
    st.integers(FIRST // 86400, LAST // 86400).map(lambda day: 86400 * day - 1),
)
OFFSETS = (0, 8, -5, 5.5, 5.75, -9.5, 14, -12, 5.1)


def computed(expression, numbers=None, **columns):
    """The values of an expression, which both back ends, also in an optimised graph, compute alike."""
    feature = expr_feature("f", tuple(columns), 1, expression=expression, **(numbers or {}))
    number = len(next(iter(columns.values())))
    by_numpy = NumpyTransform([feature])(columns, number)["f"]
    transform = FeatureTransform([feature])
    tensors = {name: tf.constant(values) for name, values in columns.items()}
    np.testing.assert_array_equal(transform(tensors)["f"], by_numpy)
    # With its inputs open, as in training and in exported models.
    specs = {name: tf.TensorSpec([None], tensor.dtype, name) for name, tensor in tensors.items()}
    graph = tf.function(transform, input_signature=[specs], autograph=False)
    np.testing.assert_array_equal(graph(tensors)["f"], by_numpy)
    return by_numpy.ravel().tolist()


def time_of(seconds, offset=0.0):
    return (EPOCH + timedelta(seconds=seconds)).astimezone(timezone(timedelta(hours=offset)))


@given(st.lists(TIMES, min_size=50, max_size=200), st.sampled_from(OFFSETS), st.sampled_from(sorted(PARTS)))
@settings(max_examples=12, deadline=None)
def test_parts_of_times_are_those_of_python(times, offset, part):
    expected = [PARTS[part](time_of(time, offset)) for time in times]
    assert computed(f"{part}(t, {offset})", t=np.array(times)) == expected
    milliseconds = np.array(times) * 1000 + np.arange(len(times)) * 7 % 1000
    assert computed(f"{part}(from_millis(t), {offset})", t=milliseconds) == expected


@pytest.mark.parametrize("part", PARTS)
def test_limits_of_days_months_and_years(part):
    assert computed(f"{part}(t)", t=np.array(LIMITS)) == [PARTS[part](time_of(time)) for time in LIMITS]


@given(st.lists(TIMES, min_size=10, max_size=50), st.sampled_from(OFFSETS[:-1]), st.integers(0, 5))
@settings(max_examples=8, deadline=None)
def test_texts_are_the_times_that_python_writes(times, offset, form):
    moments = [time_of(time, offset) for time in times]
    write = [
        lambda moment: moment.isoformat(),
        lambda moment: moment.isoformat(" ", "microseconds"),
        lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%S%z").rjust(24, "0"),
        lambda moment: moment.astimezone(timezone.utc).replace(tzinfo=None).isoformat() + "Z",
        lambda moment: moment.replace(tzinfo=None).isoformat(" ", "minutes"),
        lambda moment: moment.date().isoformat(),
    ][form]
    texts = [write(moment) for moment in moments]
    read = [datetime.fromisoformat(text.replace("Z", "+00:00")) for text in texts]
    exact = [
        int((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp() // 1) for moment in read
    ]
    # Each second counts, which float32 would lose.
    assert computed("from_text(t) - day == second", t=texts, day=np.array(exact) - 7, second=np.full(len(exact), 7)) \
        == [1.0] * len(exact)  # fmt: skip
    assert computed("hour(from_text(t))", t=texts) == [time_of(time).hour for time in exact]


def test_a_second_counts_in_the_age_of_an_item():
    shown, created = np.array([1_796_083_199, 1_796_083_200]), np.array([1_700_000_000_999] * 2)
    # 64 bits until the end: only a result beyond 16777216 would be rounded.
    assert computed("shown - from_millis(created) - 96083190", shown=shown, created=created) == [9.0, 10.0]
    assert computed("shown - from_millis(created) >= 96083200", shown=shown, created=created) == [0.0, 1.0]
    assert computed("hour(shown)", shown=shown) == [23.0, 0.0]


def test_offsets_may_be_fields_and_no_text_is_0():
    offsets = np.float32([0, 5.5, -3])
    assert computed("hour(t, zone)", t=np.array([0, 0, 0]), zone=offsets) == [0.0, 5.0, 21.0]
    assert computed("weekday(from_text(t))", t=["", "2026-11-30"]) == [3.0, 0.0]
    assert computed("hour(t + 0 * t)", t=np.array([2**62, -(2**62)])) == [
        float(limit // 3600 % 24) for limit in (2**53, -(2**53))
    ]


def test_division_has_the_same_last_digit_everywhere():
    """A graph would multiply by the reciprocal of a constant, so that 7 of 24 parts were 6."""
    numbers = np.arange(1, 5000)
    assert computed("n / 3600 * 3600 == n", n=numbers) == [float(n / 3600 * 3600 == n) for n in numbers.tolist()]
    scaled = {"min_value": 0.0, "max_value": 24.0}
    assert computed("hour(t)", scaled, t=numbers * 3600) == (numbers % 24 / np.float32(24)).astype(np.float32).tolist()
    parts = {**scaled, "boundaries": tuple(i / 24 for i in range(24))}
    assert computed("hour(t)", parts, t=numbers * 3600) == (1 + numbers % 24).tolist()


MISTAKES = {
    "hour(t, 480)": "'hour(t, 480)': hour takes a time, and hours ahead of UTC: hour(t, 8)",
    "weekday(t, -28800)": "weekday takes a time, and hours ahead of UTC",
    "hour(t, 8, 0)": "hour takes 1 to 2 arguments, not 3",
    "from_text(t + 1)": "'from_text(t + 1)': from_text takes the name of a field",
    "hours(t)": "no function 'hours'; did you mean 'hour'?",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_names_the_function(text):
    with pytest.raises(ExpressionError) as caught:
        parse_expression(text)
    assert MISTAKES[text] in str(caught.value)


def expression_of(name, other, expression):
    settings = f"input_names: ['{name}', '{other}'] feature_type: ExprFeature expression: '{expression}'"
    return f"{FEATURE[name]}=feature_name: '{name}' {settings}"


@pytest.mark.parametrize(
    ("changes", "place", "says"),
    [
        case(
            expression_of("fans_num", "level", "from_text(fans_num) + level"),
            place=f"{FEATURE['fans_num']}.input_names",
            says="'fans_num' must be a STRING field to hold the text of a time, for from_text",
        ),
        case(
            expression_of("city", "level", "hour(city) + level"),
            place=f"{FEATURE['city']}.expression",
            says="'city' is text, which is a time only in from_text(city)",
        ),
        case(
            expression_of("city", "level", "from_text(city) + city * level"),
            place=f"{FEATURE['city']}.expression",
            says="reads 'city' as the text of a time and as a number; read it in one way",
        ),
        case(
            f"{FIELD['level']}.input_type=DOUBLE",
            expression_of("level", "day_h", "hour(level + 60, day_h)"),
            place=f"{FEATURE['level']}.expression",
            says="'level' is a FLOAT or DOUBLE, which is read with 32 bits: too few for the seconds of a time",
        ),
    ],
)
def test_a_field_must_contain_times(problems, changes, place, says):
    assert_only_problem(problems(changes), place, says)
