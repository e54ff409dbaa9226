"""Checks the learning rates of a config, each alone and against the number of training steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from easyrec_mm.errors import Problems
from easyrec_mm.protos.optimizer_pb2 import LearningRate
from easyrec_mm.protos.train_pb2 import TrainConfig

# Below this fraction of its initial value a learning rate has no effect on training.
_NEGLIGIBLE = 1e-4
# If a schedule ends within this last fraction of a training, that is assumed to be intended.
_LAST_PART = 0.1


def check_learning_rate(rate: LearningRate, place: str, problems: Problems) -> None:
    """Add every problem of one schedule that does not depend on the length of the training."""
    kind = rate.WhichOneof("learning_rate")
    if kind is None:
        problems.add(place, "is empty; choose constant_learning_rate, exponential_decay_learning_rate, ...")
        return
    schedule = getattr(rate, kind)
    place = f"{place}.{kind}"
    if kind == "manual_step_learning_rate":
        steps = [item.step for item in schedule.schedule]
        if not steps or steps[0] == 0 or any(a >= b for a, b in pairwise(steps)):
            problems.add(f"{place}.schedule", f"steps {steps} must begin above 0 and ascend")
    total_steps = getattr(schedule, "total_steps", 0)
    before = {name: getattr(schedule, name, 0) for name in ("warmup_steps", "hold_base_rate_steps")}
    if 0 < total_steps <= sum(before.values()):
        named = " and ".join(f"{name} ({steps})" for name, steps in before.items() if steps)
        problems.add(f"{place}.total_steps", f"{total_steps} leaves no step after {named}; raise it or lower them")
    if kind == "exponential_decay_learning_rate" and schedule.burnin_learning_rate > 0 and schedule.burnin_steps == 0:
        problems.add(f"{place}.burnin_steps", "is 0, so burnin_learning_rate has no effect; set both or neither")


def check_ends(train: TrainConfig, problems: Problems) -> None:
    """Add a problem for each schedule that lasts as long as the training, for a training without end."""
    for place, schedule in _schedules(train):
        if getattr(schedule, "total_steps", None) == 0:
            problems.add(
                f"{place}.total_steps",
                "is not set, and the training has no end; set num_epochs, num_steps or total_steps",
            )


def schedule_warnings(train: TrainConfig, num_steps: int) -> list[str]:
    """Return a warning for each schedule that ends long before a training of `num_steps`, or does not fit into it."""
    has_steps = f"the training has {num_steps:,} steps"
    warnings = []
    for place, schedule in _schedules(train):
        for name in ("warmup_steps", "burnin_steps"):
            steps = getattr(schedule, name, 0)
            if steps >= num_steps:
                warnings.append(
                    f"{place}.{name}: the learning rate rises for {steps:,} steps, and {has_steps}; lower it"
                )
        for setting, step, rate in _end(schedule):
            if step < (1 - _LAST_PART) * num_steps:
                advice = "remove it to end with the training, or raise it"
                if setting != "total_steps":
                    advice = "change it, or choose cosine_decay_learning_rate, which ends with the training"
                warnings.append(
                    f"{place}.{setting}: the learning rate is {rate} from step {step:,} on, and {has_steps}; {advice}"
                )
    return warnings


def _schedules(train: TrainConfig) -> Iterator[tuple[str, Any]]:
    """Yield (config path, message) of the schedule of each optimizer."""
    for i, optimizer in enumerate(train.optimizer_config):
        kind = optimizer.WhichOneof("optimizer")
        rate = getattr(optimizer, kind).learning_rate if kind else LearningRate()
        name = rate.WhichOneof("learning_rate")
        if name:
            yield f"train_config.optimizer_config[{i}].{kind}.learning_rate.{name}", getattr(rate, name)


def _end(schedule: Any) -> Iterator[tuple[str, int, str]]:
    """Yield (setting that decides, step from which the rate stays, text of that rate), if the schedule has an end."""
    kind = schedule.DESCRIPTOR.name
    if getattr(schedule, "total_steps", 0):
        yield "total_steps", schedule.total_steps, f"{getattr(schedule, 'end_learning_rate', 0.0):g}"
    elif kind == "ManualStepLearningRate":
        zeros = None
        for item in reversed(schedule.schedule):
            if item.learning_rate > 0:
                break
            zeros = item.step
        if zeros is not None:
            yield "schedule", zeros, "0"
    elif kind == "ExponentialDecayLearningRate" and schedule.decay_factor < 1:
        floor = schedule.min_learning_rate / schedule.initial_learning_rate
        if floor < _NEGLIGIBLE:
            periods = math.log(_NEGLIGIBLE) / math.log(schedule.decay_factor) if schedule.decay_factor > 0 else 1.0
            step = schedule.burnin_steps + math.ceil(periods * schedule.decay_steps)
            yield "decay_steps", step, f"less than {_NEGLIGIBLE:g} of its start"
