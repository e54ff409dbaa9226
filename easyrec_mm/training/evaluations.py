"""Evaluations during a training: their times, the evaluated weights, their results, and decisions based on them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress

import keras
import tensorflow as tf

from easyrec_mm.config.best import BEST, criterion_of
from easyrec_mm.config.evaluation import evaluation_metrics
from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.first_pictures import first_pictures, require_groups, require_pictures
from easyrec_mm.data.input import Input
from easyrec_mm.data.same_data import require_same_data
from easyrec_mm.data.shared_bad_records import SharedBadRecords
from easyrec_mm.evaluation.evaluator import EvaluationStoppedError, Evaluator
from easyrec_mm.evaluation.plan import evaluation_fields
from easyrec_mm.evaluation.report import as_json, table, write_result
from easyrec_mm.evaluation.shown_items import ShownItems
from easyrec_mm.evaluation.summary import EvalResults
from easyrec_mm.evaluation.tensorboard import show_evaluation
from easyrec_mm.files import StorageError
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.runs.checkpoint_reader import bases_of, restore
from easyrec_mm.runs.evaluations import (
    EVAL,
    METRICS,
    Evaluation,
    read_evaluations,
    read_lines,
    standing_of,
    stop_reason,
)
from easyrec_mm.runs.model_dir import BAD_RECORDS, EVAL_RESULT, ModelDir
from easyrec_mm.runs.moving_average import MovingAverage
from easyrec_mm.runs.progress import MetricsLog, Progress
from easyrec_mm.store.feature_vectors import VectorStores
from easyrec_mm.training.time_left import duration


class TrainingEvaluations:
    """Evaluates checkpoints during the training, and decides which one is the best and whether to stop.

    Args:
      pipeline: the config.
      model: the trained model.
      average: moving average of its weights, if the average is evaluated.
      trained: the variables that the training changes, by name.
      vectors: stored vectors that features name by key.
      folder: where this worker writes its logs.
      shared: the model_dir of all workers.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        model: MultimodalModel,
        average: MovingAverage | None,
        trained: dict[str, keras.Variable],
        vectors: VectorStores,
        folder: ModelDir,
        shared: ModelDir,
    ) -> None:
        self._config, self._schema, self._path = pipeline.config, pipeline.schema, pipeline.path
        self._vectors = vectors
        self._average, self._trained = average, trained
        self._folder, self._shared = folder, shared
        self._replicas, self._is_first = model.replicas, model.replicas.number == 0
        share = self._config.data_config.max_bad_record_share
        self._shown = ShownItems(self._config, self._schema)
        self._evaluator = Evaluator(
            model,
            self._config,
            self._config.eval_input_path,
            "eval_input_path",
            SharedBadRecords(str(folder.local / BAD_RECORDS), share, model.replicas),
            vectors,
            shown=self._shown,
        )
        self._criterion = criterion_of(pipeline.config, evaluation_metrics(pipeline.config, pipeline.schema))
        self._evaluations: list[Evaluation] = []
        self._evaluated_step = -1
        self._evaluated_s = time.monotonic()

    def require_data(self) -> None:
        """Check the files of the evaluation data, if there are any, and their first groups and pictures.

        Otherwise a training would end with an error that could have been told at its start.

        Raises:
          DataError: if they cannot be read, or are others on another worker.
        """
        if self.interval_s is None:
            return
        config, schema, path = self._config, self._schema, self._config.eval_input_path
        fields, records = evaluation_fields(config, schema) + self._shown.fields, BadRecords(None, 1.0)
        inputs = Input(
            config.data_config, schema, path, "eval_input_path", records, kept_fields=fields, vectors=self._vectors
        )
        require_same_data(inputs, self._replicas)
        require_groups(inputs.source, "eval_input_path", config.data_config)
        if schema.uses_image:
            require_pictures(self._path, config.data_config, first_pictures(inputs.source, schema))

    @property
    def interval_s(self) -> float | None:
        """Return the least number of seconds between two evaluations; None if the training has no evaluations."""
        return self._config.eval_config.eval_interval_secs if self._config.eval_input_path else None

    @property
    def is_due(self) -> bool:
        """Return whether a new checkpoint should be evaluated."""
        return self.interval_s is not None and time.monotonic() - self._evaluated_s >= self.interval_s

    def go_on(self) -> None:
        """Load earlier evaluations of the same training from its log."""
        if self._criterion is not None:
            self._evaluations = read_evaluations(self._folder.local / METRICS, self._criterion.metric)

    def has_run(self, step: int) -> bool:
        """Return whether the log has an evaluation of a step."""
        lines = read_lines(self._folder.local / METRICS)
        return any(line["kind"] == EVAL and line["step"] == step for line in lines)

    def run(
        self, checkpoint: str, step: int, log: MetricsLog, progress: Progress, is_stopped: Callable[[], bool]
    ) -> float:
        """Evaluate the weights of the checkpoint just saved (or their average); return the seconds that it took.

        Nothing is done if there are no evaluation data or the step has already been evaluated. An evaluation that is
        stopped leaves no trace: the next start of the training makes it up.
        """
        if self.interval_s is None or step == self._evaluated_step:
            return 0.0
        started_s = time.monotonic()
        if self._average is not None:
            self._average.assign_to_variables(tf.constant(step, tf.int64))
        results: EvalResults | None = None
        with suppress(EvaluationStoppedError):
            results = self._evaluator.run(is_stopped)
        if self._average is not None:
            self._read_back(checkpoint)
        self._evaluated_s, self._evaluated_step = time.monotonic(), step
        took_s = self._evaluated_s - started_s
        if results is None:
            return took_s
        text = f"evaluation at step {step}, {duration(took_s)}:\n{table(results)}"
        progress.say(text, step=step, results=as_json(results))
        self._count(step, results, progress)
        log.write_line(EVAL, step, results)
        log.write_summaries(EVAL, step, results)
        show_evaluation(self._shown, self._config.train_config, log, self._folder.local, step)
        write_result(str(self._folder.local / EVAL_RESULT), results)
        with suppress(StorageError):  # after an error the logs are uploaded with the next checkpoint
            self._folder.put_logs()
        return took_s

    def _read_back(self, checkpoint: str) -> None:
        """Give the trained variables the values again that they have in a checkpoint."""
        if not self._is_first:  # the first one has just written it
            self._shared.refresh([])
        # In a bucket, the first has only the parts of tables that it has written itself, which it needs. Of increments,
        # it needs those of all, because only their contents tell which rows they have.
        if not self._is_first or bases_of(checkpoint, has_all_values=False):
            self._shared.fetch_checkpoint(checkpoint)
        trained = {name: variable.value for name, variable in self._trained.items()}
        restore(checkpoint, trained, has_all_values=not self._is_first)
        if not self._is_first:
            self._shared.forget_checkpoint(checkpoint)

    def _count(self, step: int, results: EvalResults, progress: Progress) -> None:
        if self._criterion is None:
            return
        value = results.get(self._criterion.metric)
        if value is None or not math.isfinite(value):
            progress.say(
                f"warning: {self._criterion.metric} is undefined in the evaluation at step {step}, as the AUC of one "
                "class is; it is not counted (export_config.best_exporter_metric)"
            )
            value = None
        self._evaluations = [e for e in self._evaluations if e.step != step] + [Evaluation(step, value)]

    def stop_reason(self) -> str | None:
        """Return why the training should stop; None if it should go on."""
        if self._criterion is None:
            return None
        return stop_reason(standing_of(self._evaluations, self._criterion), self._criterion)

    def best_step(self) -> int | None:
        """Return the step of the best evaluation; None if there is none."""
        if self._criterion is None:
            return None
        best = standing_of(self._evaluations, self._criterion).best
        return None if best is None else best.step

    def describe_best(self) -> str:
        """Return a text about which checkpoint is the best, or that none is good enough; "" without a criterion."""
        if self._criterion is None:
            return ""
        metric = self._criterion.metric
        standing = standing_of(self._evaluations, self._criterion)
        if standing.best is not None:
            return f"best checkpoint: that of step {standing.best.step}, {metric} {standing.best.value:.6g}"
        refused = (
            "; export, eval and predict will refuse to take the best"
            if self._config.export_config.exporter_type == BEST
            else ""
        )
        if standing.nearest is None:
            return f"warning: no evaluation had a value of {metric}, so no checkpoint is the best{refused}"
        return (
            f"warning: no checkpoint reached {self._criterion.condition()} (export_config.best_exporter_threshold): "
            f"the nearest was {standing.nearest.value:.6g} at step {standing.nearest.step}{refused}"
        )
