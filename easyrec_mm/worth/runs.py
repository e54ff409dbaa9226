"""A run trains and evaluates one arm with one seed; its result is kept, so that it is done only once."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.item_counts import count_items
from easyrec_mm.errors import CheckpointError
from easyrec_mm.evaluation.estimates import Estimate
from easyrec_mm.evaluation.evaluator import evaluation_input, load_model, summary_of, vectors_of
from easyrec_mm.evaluation.plan import EvalPlan, ItemCounts
from easyrec_mm.evaluation.summary import finite
from easyrec_mm.files import put_text
from easyrec_mm.runs.best_checkpoint import choose_checkpoint, step_of
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.model_dir import BAD_RECORDS, ModelDir
from easyrec_mm.training.trainer import Trainer
from easyrec_mm.worth.arms import Arm

_RESULT, _REPLICATES, _SECONDS = "result.json", "replicates.npy", "seconds.txt"


class Stopped(Exception):  # noqa: N818 - nothing is wrong
    """Raised if a signal stopped a training; `signal` is its number."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    step         step of the evaluated checkpoint
    seconds      time of training and evaluation, over all starts
    num_samples  slice ("" for all rows, "/item_frequency=unseen") -> number of rows
    estimates    name -> estimate
    fingerprint  fingerprint of labels and clusters of the rows
    """

    step: int
    seconds: float
    num_samples: dict[str, int]
    estimates: dict[str, Estimate]
    fingerprint: int


class Run:
    """A run in a folder of its own.

    Args:
      arm: the arm to train.
      seed: number of the seed, from 0; it is added to data_config.seed.
      num_steps: step at which the training ends; 0: as the config says.
      folder: folder of the run.
    """

    def __init__(self, arm: Arm, seed: int, num_steps: int, folder: Path) -> None:
        self.arm, self.seed, self.folder = arm, seed, folder
        self.name = f"{arm.name}, seed {seed}"
        self.pipeline = copy_of(arm.pipeline)
        config = self.pipeline.config
        config.model_dir = str(folder / "model")
        config.data_config.seed += seed
        config.train_config.keep_checkpoint_max = 1
        # The quality that a model needs to be exported does not matter here.
        config.export_config.ClearField("best_exporter_threshold")
        if num_steps:
            config.train_config.num_steps = num_steps

    def result(self) -> RunResult | None:
        """Return the result of the run if it is done, else None."""
        path = self.folder / _RESULT
        if not path.exists():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        replicates = np.load(self.folder / _REPLICATES)
        estimates = {
            name: Estimate(np.nan if value is None else value, replicates[i], reason, num_clusters)
            for i, (name, value, reason, num_clusters) in enumerate(content["estimates"])
        }
        return RunResult(content["step"], content["seconds"], content["num_samples"], estimates, content["fingerprint"])

    def execute(self, counts: Callable[[str], ItemCounts]) -> RunResult:
        """Continue the training from its last checkpoint, evaluate, and keep the result.

        The checkpoints are removed afterwards, because those of many runs would fill the disk.

        Args:
          counts: input field -> how often the training data contain each item.

        Raises:
          Stopped: if a signal stopped the training; it can continue from a checkpoint.
          UserError: if training or evaluation fails.
        """
        started_s = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        before_s = self._seconds_before()
        trained = Trainer(self.pipeline).train()
        self._note_seconds(before_s + time.monotonic() - started_s)
        if trained.signal is not None:
            raise Stopped(trained.signal)
        config = self.pipeline.config
        checkpoint = _checkpoint(self.pipeline)
        model, _ = load_model(config, self.pipeline.schema, checkpoint)
        evaluated = with_slices(self.pipeline)
        plan = EvalPlan(evaluated.config, evaluated.schema, True, counts)
        records = BadRecords(str(self.folder / BAD_RECORDS), config.data_config.max_bad_record_share)
        inputs = evaluation_input(
            model, evaluated.config, plan, config.eval_input_path, "eval_input_path", records,
            vectors_of(self.pipeline.schema, checkpoint),
        )  # fmt: skip
        summary = summary_of(model, evaluated.config, plan, inputs)
        result = RunResult(
            step_of(checkpoint),
            round(before_s + time.monotonic() - started_s, 1),
            {part.suffix: part.num_samples for part in summary.parts},
            summary.estimates,
            summary.fingerprint,
        )
        self._keep(result)
        for path in Checkpoints(config.model_dir).all():
            for file in Path(path).parent.glob(f"{Path(path).name}.*"):
                file.unlink()
        del model
        forget_models()
        return result

    def _keep(self, result: RunResult) -> None:
        np.save(self.folder / _REPLICATES, np.array([e.replicates for e in result.estimates.values()]))
        content: dict[str, Any] = {
            "step": result.step,
            "seconds": result.seconds,
            "num_samples": result.num_samples,
            "fingerprint": result.fingerprint,
            "estimates": [
                [name, finite(estimate.value), estimate.reason, estimate.num_clusters]
                for name, estimate in result.estimates.items()
            ],
        }
        put_text(self.folder / _RESULT, json.dumps(content, indent=1) + "\n")

    def _seconds_before(self) -> float:
        path = self.folder / _SECONDS
        return float(path.read_text(encoding="utf-8")) if path.exists() else 0.0

    def _note_seconds(self, seconds: float) -> None:
        (self.folder / _SECONDS).write_text(f"{seconds:.1f}\n", encoding="utf-8")


def _checkpoint(pipeline: Pipeline) -> str:
    """Return the checkpoint that an export would take, or the newest if no evaluation determines the best."""
    try:
        return choose_checkpoint(pipeline, None).path
    except CheckpointError:
        return ModelDir(pipeline.config.model_dir).checkpoint("model_dir")


def copy_of(pipeline: Pipeline) -> Pipeline:
    """Return a copy of the pipeline whose config may be changed."""
    config = type(pipeline.config)()
    config.CopyFrom(pipeline.config)
    return Pipeline(pipeline.path, config, pipeline.schema, pipeline.notes)


def with_slices(pipeline: Pipeline) -> Pipeline:
    """Return a copy whose evaluation also has slices by item frequency, and intervals."""
    evaluated = copy_of(pipeline)
    evaluation = evaluated.config.eval_config
    if not any(part.WhichOneof("by") == "item_frequency" for part in evaluation.slices):
        evaluation.slices.add().item_frequency.SetInParent()
    if not evaluation.bootstrap.num_replicates:
        evaluation.bootstrap.ClearField("num_replicates")
    return evaluated


def forget_models() -> None:
    """Free the memory that Keras and TensorFlow keep for deleted models."""
    keras.backend.clear_session()
    gc.collect()


def item_counts(pipeline: Pipeline, folder: Path) -> Callable[[str], ItemCounts]:
    """Return a function that gives how often the training data contain each item, counted once for all runs."""
    config = pipeline.config

    def counts(field: str) -> ItemCounts:
        path = config.train_input_path
        return count_items(config.data_config, pipeline.schema, path, "train_input_path", field, folder)

    return counts


def common_estimates(results: Sequence[RunResult]) -> dict[str, list[Estimate]]:
    """Return name -> estimates of all runs, for the names that all runs have."""
    return {
        name: [result.estimates[name] for result in results]
        for name in results[0].estimates
        if all(name in result.estimates for result in results)
    }
