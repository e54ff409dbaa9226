"""Estimates how long the runs take, from a few steps of each arm, and how many steps fit into a time budget."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.errors import UserError
from easyrec_mm.runs.evaluations import METRICS
from easyrec_mm.training.length import training_length
from easyrec_mm.training.save_times import SaveTimes
from easyrec_mm.training.time_left import duration
from easyrec_mm.training.trainer import Trainer
from easyrec_mm.worth.arms import Arm
from easyrec_mm.worth.runs import copy_of, forget_models

# Steps in the trial of an arm: the first ones include compilation, those of the second half are timed.
NUM_TRIED = 16
# Fewer steps show nothing, whatever the budget.
_LEAST_STEPS = 10
# Time of an evaluation's batch as a share of a training step: it has only a forward pass.
_FORWARD_SHARE = 0.4


@dataclass(frozen=True)
class Cost:
    """The times of an arm, in seconds.

    setup_s       time to build and compile the network
    step_s        time of a step while pictures are encoded
    later_step_s  time of a step after all pictures are encoded: with a frozen backbone, after the first epoch
    """

    setup_s: float
    step_s: float
    later_step_s: float

    def steps_s(self, num_steps: int, steps_per_epoch: float | None) -> float:
        """Return the seconds that `num_steps` steps take."""
        first = num_steps if steps_per_epoch is None else min(num_steps, steps_per_epoch)
        return first * self.step_s + (num_steps - first) * self.later_step_s


@dataclass(frozen=True)
class Sizes:
    """The sizes of the data.

    num_steps        steps of a training with the config as it is
    steps_per_epoch  None if the data were not counted
    num_eval_steps   batches of an evaluation
    fingerprints     fingerprints of the training and the evaluation data
    """

    num_steps: int
    steps_per_epoch: float | None
    num_eval_steps: int
    fingerprints: tuple[int, int]


def sizes_of(pipeline: Pipeline) -> Sizes:
    """Return the sizes of the data that a config reads.

    Raises:
      UserError: if the config sets no end of the training, or a file cannot be read.
    """
    config = pipeline.config
    records = BadRecords(None, config.data_config.max_bad_record_share)
    train = Input(config.data_config, pipeline.schema, config.train_input_path, "train_input_path", records, True)
    length = training_length(config, train, 0, 0)
    if length.num_steps is None:
        raise UserError(f"{pipeline.path}: train_config.num_steps: the training has no end; set it, or num_epochs")
    evaluation = Input(config.data_config, pipeline.schema, config.eval_input_path, "eval_input_path", records)
    num_groups, _ = evaluation.estimate_groups()
    fingerprints = train.fingerprint(), evaluation.fingerprint()
    return Sizes(length.num_steps, length.steps_per_epoch, evaluation.num_batches(num_groups), fingerprints)


def try_arms(arms: Sequence[Arm], folder: Path, say: Callable[[str], None]) -> dict[str, Cost]:
    """Train a few steps of each arm, and return the costs by name of the arm.

    Args:
      arms: the arms to try.
      folder: folder for the trials, with one subfolder per arm.
      say: shows a message to the user.
    """
    trials: dict[str, tuple[float, float]] = {}
    for arm in arms:
        say(f"trying {NUM_TRIED} steps of '{arm.name}'")
        trials[arm.name] = _try(arm, folder / arm.name)
    without = min((trials[arm.name][1] for arm in arms if not arm.pipeline.schema.uses_image), default=None)
    costs = {}
    for arm in arms:
        setup_s, step_s = trials[arm.name]
        later_s = min(step_s, without) if arm.is_frozen and without is not None else step_s
        costs[arm.name] = Cost(setup_s, step_s, later_s)
    return costs


def _try(arm: Arm, folder: Path) -> tuple[float, float]:
    """Return the seconds before the steps, and the seconds per step."""
    pipeline = copy_of(arm.pipeline)
    config = pipeline.config
    config.model_dir = str(folder)
    config.ClearField("eval_input_path")
    config.ClearField("export_config")
    config.train_config.num_steps = NUM_TRIED
    config.train_config.log_step_count_steps = NUM_TRIED // 2
    started_s = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    # The output of such a short training would only confuse the user.
    with open(folder / "log.txt", "w", encoding="utf-8") as log, redirect_stdout(log):
        step = Trainer(pipeline).train().step
    took_s = time.monotonic() - started_s
    forget_models()
    lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    times = {line["step"]: line["time"] for line in lines if line["kind"] == "train"}
    if NUM_TRIED // 2 in times and step > NUM_TRIED // 2:
        step_s = (times[step] - times[NUM_TRIED // 2]) / (step - NUM_TRIED // 2)
    else:  # the data end earlier: the total time is hardly more
        step_s = took_s / max(step, 1)
    return max(0.0, took_s - step * step_s), step_s


def seconds_of(
    num_steps: int, runs: Mapping[str, int], costs: Mapping[str, Cost], sizes: Sizes, arms: Sequence[Arm]
) -> dict[str, float]:
    """Estimate the seconds that the runs of each arm take.

    Args:
      num_steps: steps of each training.
      runs: arm -> number of runs to do.
      costs: costs of the arms.
      sizes: sizes of the data.
      arms: all arms.
    """
    seconds = {}
    for arm in arms:
        cost, train = costs[arm.name], arm.pipeline.config.train_config
        steps_s = cost.steps_s(num_steps, sizes.steps_per_epoch)
        saves = SaveTimes(train).num_left(0, num_steps, sizes.steps_per_epoch, steps_s)
        interval_s = arm.pipeline.config.eval_config.eval_interval_secs
        num_evaluations = min(saves, 1 + int(steps_s / interval_s)) if interval_s else saves
        forward_s = sizes.num_eval_steps * _FORWARD_SHARE
        # A frozen backbone encodes the pictures once for all evaluations, and once more for the last evaluation.
        evaluations_s = forward_s * (2 * cost.step_s + (num_evaluations - 1) * cost.later_step_s)
        seconds[arm.name] = runs[arm.name] * (2 * cost.setup_s + steps_s + evaluations_s)
    return seconds


def steps_within(
    budget_s: float, runs: Mapping[str, int], costs: Mapping[str, Cost], sizes: Sizes, arms: Sequence[Arm]
) -> int:
    """Return the largest number of steps, the same for all trainings, with which the runs take at most `budget_s`.

    Raises:
      UserError: if not even the minimum number of steps fits.
    """
    all_steps = sizes.num_steps

    def total_s(num_steps: int) -> float:
        return sum(seconds_of(num_steps, runs, costs, sizes, arms).values())

    if total_s(all_steps) <= budget_s:
        return all_steps
    least = min(_LEAST_STEPS, all_steps)
    if total_s(least) > budget_s:
        raise UserError(
            f"--budget_minutes: {duration(max(0.0, budget_s))} remain for {sum(runs.values())} runs, but even with "
            f"{least} steps each they take about {duration(total_s(least))}; raise it, "
            "or use fewer --arms or --seeds"
        )
    low, high = least, all_steps  # fits, does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total_s(middle) <= budget_s else (low, middle)
    return low
