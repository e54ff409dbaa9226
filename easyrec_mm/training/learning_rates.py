"""Learning rates as functions of the step. To add one, add a function and its key in SCHEDULES and in the proto."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from easyrec_mm.protos.optimizer_pb2 import LearningRate


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of a config as a function of the step, from 0.

    Args:
      config: settings of the learning rate.
      end: step at which the training ends; used by schedules without total_steps, which end with the training.

    Raises:
      ValueError: if `end` is needed and missing.
    """

    def __init__(self, config: LearningRate, end: tf.Variable | int | None = None) -> None:
        super().__init__()
        self._config = config
        kind = config.WhichOneof("learning_rate")
        self._settings = getattr(config, kind)
        self._rate = SCHEDULES[kind]
        self._end = getattr(self._settings, "total_steps", 0) or end
        if self._end is None and ends_with_training(config):
            raise ValueError(f"{kind} without total_steps needs the end of the training")

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        end = None if self._end is None else tf.cast(self._end, tf.float32)
        return self._rate(self._settings, tf.cast(tf.convert_to_tensor(step), tf.float32), end)

    def get_config(self) -> dict[str, str]:
        return {"config": str(self._config)}


def ends_with_training(config: LearningRate) -> bool:
    """Return whether the schedule ends with the training, because the config does not set its end."""
    return getattr(getattr(config, config.WhichOneof("learning_rate")), "total_steps", None) == 0


def _constant(c: Any, step: tf.Tensor, end: tf.Tensor | None) -> tf.Tensor:
    return _warm_up(step, c.warmup_steps, 0.0, c.learning_rate, tf.constant(c.learning_rate))


def _exponential_decay(c: Any, step: tf.Tensor, end: tf.Tensor | None) -> tf.Tensor:
    periods = (step - c.burnin_steps) / c.decay_steps
    periods = tf.floor(periods) if c.staircase else periods
    rate = c.initial_learning_rate * tf.pow(c.decay_factor, periods)
    start = c.burnin_learning_rate or c.initial_learning_rate
    return tf.maximum(_warm_up(step, c.burnin_steps, start, c.initial_learning_rate, rate), c.min_learning_rate)


def _manual_steps(c: Any, step: tf.Tensor, end: tf.Tensor | None) -> tf.Tensor:
    rate = tf.constant(c.initial_learning_rate)
    for item in c.schedule:
        rate = tf.where(step >= item.step, item.learning_rate, rate)
    first = c.schedule[0]
    if not c.warmup:
        return rate
    return _warm_up(step, first.step, c.initial_learning_rate, first.learning_rate, rate)


def _cosine_decay(c: Any, step: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    held = c.warmup_steps + c.hold_base_rate_steps
    share = tf.clip_by_value((step - held) / (end - held), 0.0, 1.0)
    rate = 0.5 * c.learning_rate_base * (1.0 + tf.cos(math.pi * share))
    return _warm_up(step, c.warmup_steps, c.warmup_learning_rate, c.learning_rate_base, rate)


def _poly_decay(c: Any, step: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    left = 1.0 - tf.clip_by_value((step - c.warmup_steps) / (end - c.warmup_steps), 0.0, 1.0)
    rate = (c.learning_rate_base - c.end_learning_rate) * tf.pow(left, c.power) + c.end_learning_rate
    return _warm_up(step, c.warmup_steps, 0.0, c.learning_rate_base, rate)


# (settings, step, step at which the schedule ends if it has an end) -> rate.
SCHEDULES: dict[str, Callable[[Any, tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "constant_learning_rate": _constant,
    "exponential_decay_learning_rate": _exponential_decay,
    "manual_step_learning_rate": _manual_steps,
    "cosine_decay_learning_rate": _cosine_decay,
    "poly_decay_learning_rate": _poly_decay,
}


def _warm_up(step: tf.Tensor, num_steps: int, start: float, end: float, rate: tf.Tensor) -> tf.Tensor:
    """Return a rate that goes linearly from `start` to `end` over the first steps, and `rate` after them."""
    if not num_steps:
        return rate
    return tf.where(step < num_steps, start + (end - start) * step / num_steps, rate)
