"""The evaluations of a training in metrics.jsonl: which was the best, and whether the training still improves.

The file survives trainings that were killed or restarted. A line of kind "start" contains the step at which a training
began or continued: lines of later steps, which the training did after its last checkpoint, are removed then, because it
does these steps again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from easyrec_mm.config.best import Criterion
from easyrec_mm.files import put_text

METRICS = "metrics.jsonl"
# Kinds of lines, in addition to "train".
START, EVAL, END = "start", "eval", "end"


class Evaluation(NamedTuple):
    """The value of a metric at a step; None if it is undefined, like the AUC of a single class."""

    step: int
    value: float | None


class Standing(NamedTuple):
    """The best evaluations of a training, and its progress since the last improvement.

    best           the best evaluation that reaches the threshold; None if no evaluation reaches it
    nearest        the best evaluation, whether it reaches the threshold or not; None if no value is defined
    improved_step  step of the last improvement
    num_since      number of evaluations since then
    steps_since    number of steps from then to the last evaluation
    """

    best: Evaluation | None
    nearest: Evaluation | None
    improved_step: int
    num_since: int
    steps_since: int


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete lines of a metrics file, oldest first; no lines if the file does not exist."""
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        # A training that is killed or finds the disk full leaves an incomplete line.
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "kind" in line and type(line.get("step")) is int:
            yield line


def forget_later_steps(path: Path, step: int) -> int:
    """Remove the lines of steps after `step` from a metrics file, except those that tell when trainings began.

    So is an end at `step`: the training goes on from there, or ends there once more.

    Lines that cannot be read are removed, too. Their number is returned, without that of an incomplete last line, as a
    kill leaves it.
    """
    if not path.exists():
        return 0
    lines = list(read_lines(path))
    kept = [line for line in lines if line["kind"] == START or int(line["step"]) + (line["kind"] == END) <= step]
    text, before = "".join(json.dumps(line) + "\n" for line in kept), path.read_text(encoding="utf-8", errors="replace")
    if text != before:
        put_text(path, text)
    return max(0, before.count("\n") - len(lines))


def read_evaluations(path: Path, metric: str) -> list[Evaluation]:
    """Read the evaluations that contain a metric, one per step, in the order of steps."""
    values: dict[int, float | None] = {}
    for line in read_lines(path):
        step = int(line["step"])
        if line["kind"] == START:
            values = {earlier: value for earlier, value in values.items() if earlier <= step}
        elif line["kind"] == EVAL and isinstance(value := line.get(metric, ""), int | float | None):
            values[step] = value
    return [Evaluation(step, values[step]) for step in sorted(values)]


def standing_of(evaluations: Sequence[Evaluation], criterion: Criterion) -> Standing:
    """Return the standing of a training, without counting undefined values; of equal values the first is the best."""
    best: Evaluation | None = None
    nearest: Evaluation | None = None
    reference: float | None = None
    improved_step = num_since = steps_since = 0
    for evaluation in evaluations:
        value = evaluation.value
        if value is None:
            continue
        if nearest is None or nearest.value is None or criterion.gain(value, nearest.value) > 0:
            nearest = evaluation
        gain = None if reference is None else criterion.gain(value, reference)
        if gain is None or (gain > 0 and gain >= criterion.min_delta):
            reference, improved_step, num_since = value, evaluation.step, 0
        else:
            num_since += 1
        steps_since = evaluation.step - improved_step
    if nearest is not None and nearest.value is not None and criterion.is_reached(nearest.value):
        best = nearest
    return Standing(best, nearest, improved_step, num_since, steps_since)


def stop_reason(standing: Standing, criterion: Criterion) -> str | None:
    """Return why a training should stop; None if it should go on."""
    least = f" by {criterion.min_delta:g}" if criterion.min_delta else ""
    without = f"{criterion.metric} did not improve{least} in"
    since = f"since step {standing.improved_step}"
    if criterion.patience and standing.num_since >= criterion.patience:
        return f"{without} {standing.num_since} evaluations {since} (export_config.early_stop_patience)"
    if criterion.max_steps and standing.steps_since >= criterion.max_steps:
        return f"{without} {standing.steps_since} steps {since} (export_config.max_check_steps)"
    return None
