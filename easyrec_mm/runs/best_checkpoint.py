"""Choice of a training's checkpoint if the user names none: the newest, or the best according to its evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from easyrec_mm.config.best import BEST, Criterion, criterion_of
from easyrec_mm.config.evaluation import evaluation_metrics
from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.errors import CheckpointError
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.evaluations import METRICS, Evaluation, read_evaluations, standing_of
from easyrec_mm.runs.model_dir import ModelDir, find_checkpoint

_SETTING = "--checkpoint_path"


class Choice(NamedTuple):
    """A chosen checkpoint: `path`, and `note` with what the user should know about the choice, or ""."""

    path: str
    note: str = ""


def choose_checkpoint(pipeline: Pipeline, path: str | None, model_dir: ModelDir | None = None) -> Choice:
    """Return the named checkpoint, else the newest in model_dir, or with `exporter_type: "best"` the best evaluated.

    Args:
      pipeline: the config of the training.
      path: the path that the user names, or None.
      model_dir: folder of the training, if it is already open.

    Raises:
      CheckpointError: if there is no checkpoint, or no evaluation that determines the best one.
    """
    config = pipeline.config
    if path:
        return Choice(find_checkpoint(path, _SETTING))
    model_dir = model_dir or ModelDir(config.model_dir).open()
    criterion = criterion_of(config, evaluation_metrics(config, pipeline.schema))
    if criterion is None or config.export_config.exporter_type != BEST:
        return Choice(model_dir.checkpoint(_SETTING))
    evaluations = read_evaluations(model_dir.local / METRICS, criterion.metric)
    paths = {step_of(checkpoint): checkpoint for checkpoint in Checkpoints(str(model_dir.local)).all()}
    if not paths:
        return Choice(model_dir.checkpoint(_SETTING))  # raises an error that says what to do
    best = standing_of(evaluations, criterion).best
    left = standing_of([e for e in evaluations if e.step in paths], criterion).best
    if left is None:
        raise CheckpointError(_why_none(config.model_dir, criterion, evaluations, best))
    note = ""
    if best is not None and best.step != left.step:
        note = (
            f"the best checkpoint, of step {best.step} ({criterion.metric} {best.value:.6g}), is gone; the best of "
            f"those that are left is that of step {left.step} ({left.value:.6g})"
        )
    model_dir.fetch_checkpoint(paths[left.step])
    return Choice(paths[left.step], note)


def step_of(checkpoint: str) -> int:
    """Return the step in a checkpoint's name; -1 if the name contains no step."""
    number = Path(checkpoint).name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _why_none(model_dir: str, criterion: Criterion, evaluations: list[Evaluation], best: Evaluation | None) -> str:
    place = 'export_config.exporter_type: "best"'
    name_one = f"name a checkpoint with {_SETTING}"
    if best is not None:
        return (
            f"{place}: the best checkpoint in {model_dir}, of step {best.step}, is gone, and none that is left "
            f"reached {criterion.condition()}; train again, or {name_one}"
        )
    nearest = standing_of(evaluations, criterion).nearest
    if nearest is not None:
        return (
            f"{place}: no checkpoint in {model_dir} reached {criterion.condition()} (best_exporter_threshold); the "
            f"nearest was {nearest.value:.6g} at step {nearest.step}; train on, change the threshold, or {name_one}"
        )
    return (
        f"{place}: no evaluation of a checkpoint in {model_dir} has a value of "
        f"'{criterion.metric}' (best_exporter_metric); "
        f"train with eval_input_path, or {name_one}"
    )
