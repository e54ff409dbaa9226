"""Every schedule against its formula in plain Python, at its borders and between them."""

import math

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from easyrec_mm.config.learning_rates import schedule_warnings
from easyrec_mm.protos.optimizer_pb2 import LearningRate
from easyrec_mm.protos.train_pb2 import TrainConfig
from easyrec_mm.training.learning_rates import SCHEDULES, Schedule

# Of the training, at which schedules end that have no end of their own.
END = 50_000


def line(step, num_steps, start, end):
    return start + (end - start) * step / num_steps


def constant(step, learning_rate=0.002, warmup_steps=0):
    return line(step, warmup_steps, 0.0, learning_rate) if step < warmup_steps else learning_rate


def exponential(
    step,
    initial_learning_rate=0.002,
    decay_steps=4000000,
    decay_factor=0.95,
    staircase=True,
    burnin_learning_rate=0.0,
    burnin_steps=0,
    min_learning_rate=0.0,
):
    if step < burnin_steps:
        start = burnin_learning_rate if burnin_learning_rate > 0 else initial_learning_rate
        rate = line(step, burnin_steps, start, initial_learning_rate)
    else:
        periods = (step - burnin_steps) / decay_steps
        rate = initial_learning_rate * decay_factor ** (math.floor(periods) if staircase else periods)
    return max(rate, min_learning_rate)


def manual(step, schedule, initial_learning_rate=0.002, warmup=False):
    first_step, first_rate = schedule[0]
    if step < first_step:
        return line(step, first_step, initial_learning_rate, first_rate) if warmup else initial_learning_rate
    return [rate for border, rate in schedule if border <= step][-1]


def cosine(
    step,
    learning_rate_base=0.002,
    total_steps=END,
    warmup_learning_rate=0.0002,
    warmup_steps=10000,
    hold_base_rate_steps=0,
):
    if step < warmup_steps:
        return line(step, warmup_steps, warmup_learning_rate, learning_rate_base)
    if step < warmup_steps + hold_base_rate_steps:
        return learning_rate_base
    if step >= total_steps:
        return 0.0
    start = warmup_steps + hold_base_rate_steps
    return learning_rate_base * (1 + math.cos(math.pi * (step - start) / (total_steps - start))) / 2


def poly(step, learning_rate_base, power, total_steps=END, end_learning_rate=0.0, warmup_steps=0):
    if step < warmup_steps:
        return line(step, warmup_steps, 0.0, learning_rate_base)
    if step >= total_steps:
        return end_learning_rate
    left = 1 - (step - warmup_steps) / (total_steps - warmup_steps)
    return (learning_rate_base - end_learning_rate) * left**power + end_learning_rate


REFERENCES = {
    "constant_learning_rate": constant,
    "exponential_decay_learning_rate": exponential,
    "manual_step_learning_rate": manual,
    "cosine_decay_learning_rate": cosine,
    "poly_decay_learning_rate": poly,
}

EXPONENTIAL = {"initial_learning_rate": 0.1, "decay_steps": 7, "decay_factor": 0.5}
BURN_IN = {**EXPONENTIAL, "burnin_steps": 10, "burnin_learning_rate": 0.01}
MANUAL = {"initial_learning_rate": 0.1, "schedule": [(10, 0.05), (11, 0.3), (30, 0.0)]}
COSINE = {"learning_rate_base": 0.4, "total_steps": 60, "warmup_steps": 0}
POLY = {"learning_rate_base": 0.3, "total_steps": 50, "power": 2.0}

CASES = [
    ("constant_learning_rate", {}),
    ("constant_learning_rate", {"learning_rate": 0.3}),
    ("constant_learning_rate", {"learning_rate": 0.3, "warmup_steps": 10}),
    ("constant_learning_rate", {"learning_rate": 0.3, "warmup_steps": 1}),
    ("exponential_decay_learning_rate", {}),
    ("exponential_decay_learning_rate", EXPONENTIAL),
    ("exponential_decay_learning_rate", {**EXPONENTIAL, "staircase": False}),
    ("exponential_decay_learning_rate", {**EXPONENTIAL, "min_learning_rate": 0.03}),
    ("exponential_decay_learning_rate", {**EXPONENTIAL, "burnin_steps": 10}),
    ("exponential_decay_learning_rate", BURN_IN),
    ("exponential_decay_learning_rate", {**BURN_IN, "staircase": False}),
    ("exponential_decay_learning_rate", {**BURN_IN, "min_learning_rate": 0.03}),
    ("exponential_decay_learning_rate", {**BURN_IN, "burnin_learning_rate": 0.9}),
    ("manual_step_learning_rate", MANUAL),
    ("manual_step_learning_rate", {**MANUAL, "warmup": True}),
    ("manual_step_learning_rate", {"schedule": [(10, 0.02)], "warmup": True}),
    ("cosine_decay_learning_rate", {}),
    ("cosine_decay_learning_rate", COSINE),
    ("cosine_decay_learning_rate", {**COSINE, "warmup_steps": 10}),
    ("cosine_decay_learning_rate", {**COSINE, "warmup_steps": 10, "warmup_learning_rate": 0.0}),
    ("cosine_decay_learning_rate", {**COSINE, "warmup_steps": 10, "hold_base_rate_steps": 20}),
    ("cosine_decay_learning_rate", {**COSINE, "hold_base_rate_steps": 20}),
    ("poly_decay_learning_rate", POLY),
    ("poly_decay_learning_rate", {**POLY, "power": 0.5}),
    ("poly_decay_learning_rate", {"learning_rate_base": 0.3, "power": 2.0, "warmup_steps": 20}),
    ("poly_decay_learning_rate", {**POLY, "end_learning_rate": 0.1}),
    ("poly_decay_learning_rate", {**POLY, "end_learning_rate": 0.1, "warmup_steps": 20}),
]
# Every border above, the steps before and behind it, and some that are far behind.
STEPS = [
    *range(75),
    9_999,
    10_000,
    10_001,
    20_000,
    49_999,
    50_000,
    50_001,
    3_999_999,
    4_000_000,
    4_000_001,
    8_000_000,
    12_345_678,
]


def message_of(kind, settings):
    message = LearningRate()
    schedule = getattr(message, kind)
    schedule.SetInParent()
    for name, value in settings.items():
        if name == "schedule":
            for step, rate in value:
                schedule.schedule.add(step=step, learning_rate=rate)
        else:
            setattr(schedule, name, value)
    return message


def make(kind, settings):
    return Schedule(message_of(kind, settings), tf.Variable(END, dtype=tf.int64))


def test_every_schedule_has_cases_here():
    assert REFERENCES.keys() == SCHEDULES.keys() == {kind for kind, _ in CASES}
    oneof = LearningRate.DESCRIPTOR.oneofs_by_name["learning_rate"]
    assert {field.name for field in oneof.fields} == SCHEDULES.keys()


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_schedule(kind, settings):
    schedule = make(kind, settings)
    actual = [float(schedule(tf.constant(step, tf.int64))) for step in STEPS]
    expected = [REFERENCES[kind](step, **settings) for step in STEPS]
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedule_inside_a_function_follows_a_variable(kind):
    settings = next(settings for case, settings in reversed(CASES) if case == kind)
    schedule, step = make(kind, settings), tf.Variable(0, dtype=tf.int64)
    rate = tf.function(lambda: schedule(step), autograph=False)
    for number in (0, 5, 20, 45, 100):
        step.assign(number)
        np.testing.assert_allclose(rate(), REFERENCES[kind](number, **settings), rtol=2e-5, atol=1e-7)
    assert rate().dtype == tf.float32


def test_a_schedule_follows_the_end_of_the_training_when_it_is_known():
    message = LearningRate()
    message.cosine_decay_learning_rate.warmup_steps = 0
    end, step = tf.Variable(0, dtype=tf.int64), tf.Variable(0, dtype=tf.int64)
    rate = tf.function(Schedule(message, end), autograph=False)
    for last in (100, 300):
        end.assign(last)
        for number in (0, 50, 99, 100, 299):
            step.assign(number)
            assert float(rate(step)) == pytest.approx(
                cosine(number, total_steps=last, warmup_steps=0), rel=2e-5, abs=1e-9
            )
    with pytest.raises(ValueError, match="needs the end of the training"):
        Schedule(message)


def training(*schedules):
    """A training section with an optimizer for each schedule, (kind, settings)."""
    config = TrainConfig()
    for kind, settings in schedules:
        rate = config.optimizer_config.add().sgd_optimizer.learning_rate
        rate.CopyFrom(message_of(kind, settings))
    return config


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        ("cosine", {"total_steps": 471, "warmup_steps": 5}, "total_steps: the learning rate is 0 from step 471"),
        ("poly", {**POLY, "end_learning_rate": 0.1}, "total_steps: the learning rate is 0.1 from step 50 on"),
        ("manual", {"schedule": [(9, 0.1), (30, 0.0), (40, 0.0)]}, "schedule: the learning rate is 0 from step 30"),
        ("exponential", {**EXPONENTIAL, "burnin_steps": 6}, "decay_steps: the learning rate is less than 0.0001 of"),
        ("exponential", {**EXPONENTIAL, "min_learning_rate": 0.03}, None),
        ("exponential", {}, None),
        ("manual", {"schedule": [(10, 0.0), (30, 0.1)]}, None),
        ("cosine", {"total_steps": 2830, "warmup_steps": 5}, None),
        ("cosine", {"warmup_steps": 5}, None),
        ("poly", {"learning_rate_base": 0.3, "power": 1.0}, None),
    ],
)
def test_a_rate_that_vanishes_long_before_the_end_is_told(kind, settings, says):
    kind = next(name for name in SCHEDULES if name.startswith(kind))
    warnings = schedule_warnings(training(("constant_learning_rate", {}), (kind, settings)), 3140)
    if says is None:
        assert warnings == []
    else:
        (warning,) = warnings
        assert says in warning
        assert f"train_config.optimizer_config[1].sgd_optimizer.learning_rate.{kind}." in warning
        assert "the training has 3,140 steps" in warning


def test_what_is_told_of_an_exponential_decay_is_its_formula():
    """From step 100 on: 7 steps a half, after 6 of the warm-up."""
    settings = {**EXPONENTIAL, "burnin_steps": 6, "staircase": False}
    assert exponential(99, **settings) > 1e-4 * exponential(6, **settings) >= exponential(100, **settings)


def test_a_warm_up_that_is_longer_than_the_training_is_told():
    config = training(("cosine_decay_learning_rate", {}), ("exponential_decay_learning_rate", BURN_IN))
    assert schedule_warnings(config, 10_001) == schedule_warnings(config, 10_001)[:1]  # that of the decay
    first, second = schedule_warnings(config, 10)
    assert "warmup_steps: the learning rate rises for 10,000 steps, and the training has 10 steps; lower it" in first
    assert "optimizer_config[1].sgd_optimizer.learning_rate.exponential_decay_learning_rate.burnin_steps: " in second


def test_config_of_a_schedule_is_its_text():
    schedule = make("constant_learning_rate", {"learning_rate": 0.5})
    assert (
        text_format.Parse(schedule.get_config()["config"], LearningRate()).constant_learning_rate.learning_rate == 0.5
    )
