"""Evaluation of a training's checkpoints in a separate process: each checkpoint once, as soon as it exists.

Its results go to separate files, because the training writes its own files at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.errors import CheckpointError, DamagedCheckpointError
from easyrec_mm.evaluation.evaluator import Evaluator, load_weights, vectors_of
from easyrec_mm.evaluation.report import as_json, table, write_result
from easyrec_mm.evaluation.shown_items import ShownItems
from easyrec_mm.evaluation.tensorboard import show_evaluation
from easyrec_mm.files import StorageError, is_remote
from easyrec_mm.files.folders import shown
from easyrec_mm.network.item_tower import build_model
from easyrec_mm.network.precision import FLOAT32
from easyrec_mm.runs.best_checkpoint import step_of
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.checkpoint_index import read_index
from easyrec_mm.runs.evaluations import END, EVAL, METRICS, START, read_lines
from easyrec_mm.runs.model_dir import ModelDir
from easyrec_mm.runs.progress import MetricsLog
from easyrec_mm.store.feature_vectors import VectorStores
from easyrec_mm.training.signals import Caught

WATCH_METRICS = "eval_watch.jsonl"
WATCH_RESULT = "eval_watch_result.json"
WATCH_BAD_RECORDS = "eval_watch_bad_records.jsonl"
# Folder of event files, which TensorBoard shows as a separate run.
WATCH_SUMMARIES = "eval_watch"
# Key of a line: what tells a checkpoint from another one of the same step, which a training that was begun anew has
# written. Times would not: the training may have another clock.
DIGEST = "checkpoint_digest"
# Seconds between two looks for new checkpoints, in a local folder and in a bucket.
LOOK_EVERY_S, _LOOK_EVERY_REMOTE_S = 2.0, 20.0
_SLEPT_AT_A_TIME_S = 0.2


class Watch:
    """Evaluates every checkpoint of a model_dir, existing and new ones.

    Args:
      pipeline: the config of the training.
      path: the data to evaluate on.
      say: function that shows a message, with its figures as keyword arguments.
      dtype: Keras dtype policy in which the model computes.
    """

    def __init__(self, pipeline: Pipeline, path: str, say: Callable[..., None], dtype: str = FLOAT32) -> None:
        self._config, self._schema = pipeline.config, pipeline.schema
        self._path = path
        self._say = say
        self._folder = ModelDir(self._config.model_dir).open()
        self.local = self._folder.local
        self._checkpoints = Checkpoints(str(self.local))
        self._log = MetricsLog(self.local / WATCH_METRICS, self.local / WATCH_SUMMARIES)
        self._model = build_model(self._config, self._schema, dtype)
        self._look_every_s = _LOOK_EVERY_REMOTE_S if is_remote(self._config.model_dir) else LOOK_EVERY_S
        self._evaluator: Evaluator | None = None
        self._shown = ShownItems(self._config, self._schema)
        # Checkpoints that were removed before they could be read.
        self._gone: set[str] = set()

    def run(self, timeout_s: float, caught: Caught) -> str:
        """Evaluate until the training is over, no checkpoint came for `timeout_s` seconds, or a signal was caught.

        Returns:
          The reason for the end.

        Raises:
          CheckpointError: if a checkpoint does not fit the config.
          DataError: if the data cannot be read.
        """
        came_s = time.monotonic()
        was_over = False
        try:
            while not caught.number:
                self._refresh()
                is_over = self.is_training_over()
                waiting = self._waiting()
                if waiting:
                    self.evaluate(waiting[0])
                    came_s = time.monotonic()
                elif is_over and was_over:
                    # Seen twice, because the list of checkpoints may be older than the log that contains the end.
                    return "the training is over"
                elif timeout_s and time.monotonic() - came_s >= timeout_s:
                    return f"no new checkpoint in {timeout_s:g} seconds"
                elif not is_over:
                    self.sleep(caught)
                was_over = is_over
            return "stopped by a signal"
        finally:
            self._log.close()

    def _refresh(self) -> None:
        try:
            self._folder.refresh([METRICS])
        except StorageError as error:
            self._say(f"warning: {error}; looking again in {self._look_every_s:g} seconds")

    def sleep(self, caught: Caught) -> None:
        """Wait until it is time to look for new checkpoints, or a signal has come."""
        until = time.monotonic() + self._look_every_s
        while not caught.number and time.monotonic() < until:
            time.sleep(_SLEPT_AT_A_TIME_S)

    def is_training_over(self) -> bool:
        """Return whether the training has written that it ended."""
        over = False
        for line in read_lines(self.local / METRICS):
            if line["kind"] in (START, END):
                over = line["kind"] == END
        return over

    def _waiting(self) -> list[str]:
        """Return the checkpoints that are not evaluated yet, oldest first."""
        done = {
            (int(line["step"]), line.get(DIGEST))
            for line in read_lines(self.local / WATCH_METRICS)
            if line.get("eval_input_path") == self._path
        }

        def is_done(path: str) -> bool:
            # Lines of earlier versions have no digest.
            return bool(done & {(step_of(path), None), (step_of(path), _digest(path))})

        return [path for path in self._checkpoints.all() if path not in self._gone and not is_done(path)]

    def evaluate(self, checkpoint: str) -> None:
        """Evaluate a checkpoint and write its results, unless it has been deleted meanwhile."""
        name = Path(checkpoint).name
        try:
            self._folder.fetch_checkpoint(checkpoint)
            digest = _digest(checkpoint)
            vectors = vectors_of(self._schema, checkpoint)
            step = load_weights(self._model, self._config, checkpoint)
        except (CheckpointError, StorageError):
            self._refresh()
            if checkpoint in self._checkpoints.all():
                raise
            self._gone.add(checkpoint)
            self._say(f"{name} is gone before it could be evaluated")
            return
        try:
            results = self._evaluator_with(vectors).run()
        finally:
            vectors.close()
        text = f"{shown(checkpoint)} (step {step}):\n{table(results)}"
        self._say(text, step=step, checkpoint=shown(checkpoint), results=as_json(results))
        names = {"checkpoint": name, DIGEST: digest, "eval_input_path": self._path}
        self._log.write_line(EVAL, step, {**results, **names})
        self._log.write_summaries(EVAL, step, results)
        show_evaluation(self._shown, self._config.train_config, self._log, self.local / WATCH_SUMMARIES, step)
        write_result(str(self.local / WATCH_RESULT), results)
        self._folder.forget_checkpoint(checkpoint)
        self._folder.put_logs()

    def _evaluator_with(self, vectors: VectorStores) -> Evaluator:
        """Return the evaluator of all checkpoints (it takes seconds to build), or a new one if each has its vectors."""
        if self._evaluator is None or self._schema.in_stores():
            share = self._config.data_config.max_bad_record_share
            bad_records = BadRecords(str(self.local / WATCH_BAD_RECORDS), share)
            self._evaluator = Evaluator(
                self._model, self._config, self._path, "eval_input_path", bad_records, vectors, shown=self._shown
            )
        return self._evaluator


def _digest(checkpoint: str) -> str:
    """Return a hash of a checkpoint; "" if it is damaged, which its evaluation tells."""
    try:
        return str(read_index(checkpoint, with_values=False).digest)
    except DamagedCheckpointError:
        return ""
