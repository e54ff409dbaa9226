"""Every schedule against its formula in plain Python, at its borders and between them."""

import math

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from easyrec_mm.learning_rates import SCHEDULES, Schedule
from easyrec_mm.protos.optimizer_pb2 import LearningRate


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
    total_steps=4000000,
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


def poly(step, learning_rate_base, total_steps, power, end_learning_rate=0.0, warmup_steps=0):
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
    ("poly_decay_learning_rate", {**POLY, "end_learning_rate": 0.1}),
    ("poly_decay_learning_rate", {**POLY, "end_learning_rate": 0.1, "warmup_steps": 20}),
]
# Every border above, the steps before and behind it, and some that are far behind.
STEPS = [*range(75), 9_999, 10_000, 10_001, 3_999_999, 4_000_000, 4_000_001, 8_000_000, 12_345_678]


def make(kind, settings):
    message = LearningRate()
    schedule = getattr(message, kind)
    schedule.SetInParent()
    for name, value in settings.items():
        if name == "schedule":
            for step, rate in value:
                schedule.schedule.add(step=step, learning_rate=rate)
        else:
            setattr(schedule, name, value)
    return Schedule(message)


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


def test_config_of_a_schedule_is_its_text():
    schedule = make("constant_learning_rate", {"learning_rate": 0.5})
    assert (
        text_format.Parse(schedule.get_config()["config"], LearningRate()).constant_learning_rate.learning_rate == 0.5
    )
