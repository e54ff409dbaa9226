"""The loop of a training: step after step, with reports, checkpoints and evaluations between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import tensorflow as tf

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.batch import InputBatch
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.protos.train_pb2 import TrainConfig
from easyrec_mm.runs.progress import MetricsLog, Progress
from easyrec_mm.training.evaluations import TrainingEvaluations
from easyrec_mm.training.length import Length
from easyrec_mm.training.save_times import SaveTimes
from easyrec_mm.training.signals import STOPPING, Caught
from easyrec_mm.training.step_log import Losses, StepLog
from easyrec_mm.training.step_summaries import StepSummaries
from easyrec_mm.training.steps import TrainSteps
from easyrec_mm.training.time_left import Forecast


class NoBatchError(Exception):
    """A worker has no batch: the data have ended, or its input hangs after a signal."""


@dataclass
class Loop:
    """One start of a training, from its first step to its end or to a signal.

    config       settings of the training
    length       how long it is
    replicas     the workers, which do the same after the same step
    steps        what is trained; for the number of steps done
    run_step     trains on a batch; returns its losses, {} if the step was skipped, None if it is not a step; raises
                 NoBatchError on all workers if one of them has none
    save         writes the checkpoint of a step, with the losses not reported yet; whether it is evaluated; -> its path
    finish_saving
                 completes the checkpoint that is being written
    evaluations  evaluates checkpoints
    log, progress, forecast, step_log, summaries, save_times
                 the metrics, the display, the time left, the reports of steps, what TensorBoard shows of them, and when
                 to save
    bad_records  counts what could not be used
    put_logs     uploads the logs of a remote model_dir from time to time
    caught       the signal to stop this worker
    stopped_by   the signal to stop all workers, on which they have agreed: `caught` changes at any time, on one of them
    """

    config: TrainConfig
    length: Length
    replicas: Replicas
    steps: TrainSteps
    run_step: Callable[[InputBatch | None], dict[str, tf.Tensor] | None]
    save: Callable[[int, list[Losses], bool], str]
    finish_saving: Callable[[], None]
    evaluations: TrainingEvaluations
    log: MetricsLog
    progress: Progress
    forecast: Forecast
    step_log: StepLog
    summaries: StepSummaries
    save_times: SaveTimes
    bad_records: BadRecords
    put_logs: Callable[[], None]
    caught: Caught
    stopped_by: int | None = None

    def run(self, batches: Iterator[InputBatch], saved: str | None, to_evaluate: bool) -> tuple[str | None, str | None]:
        """Train to the end.

        Args:
          batches: the batches to train on; they end with the data, and after a signal if the next one does not arrive.
          saved: the checkpoint from which the training goes on.
          to_evaluate: whether that was to be evaluated by an earlier start.

        Returns:
          The path of the last checkpoint, and the reason for the end; None after a signal, which is `stopped_by` then.
        """
        first_step = saved_step = self._step
        reason = self._reason(first_step)  # from an earlier start
        is_missed = (to_evaluate or bool(reason)) and not self.evaluations.has_run(first_step)
        if saved and self.replicas.first_says(is_missed):
            self._evaluate(saved, first_step)
            reason = self._reason(first_step)
        self._agreed(False)
        while reason is None and self.stopped_by is None:
            started_s = time.perf_counter()
            item = next(batches, None)
            waited_s = time.perf_counter() - started_s
            try:
                losses = self.run_step(item)
            except NoBatchError:
                reason = f"num_epochs {self.length.num_epochs} are done"  # unless `_end` learns of a signal
                break
            if item is None or losses is None:
                continue
            self._report(item, losses, waited_s)
            is_due = self._agreed(self.save_times.is_due(self._step, item.epochs_before, item.epochs_done))
            if is_due:
                saved, saved_step = self._save_and_evaluate(), self._step
                self._agreed(False)
            reason = self._reason(self._step, is_due)
        self.step_log.write(self._step)
        saved = self._end(first_step, saved_step, saved)
        return saved, None if self.stopped_by else reason

    def _end(self, first_step: int, saved_step: int, saved: str | None) -> str:
        """Save the last step and evaluate it, unless that is done or a signal has arrived; return the checkpoint."""
        self._agreed(False)
        step = self._step
        if step == first_step and saved is not None:
            return saved
        if step != saved_step or saved is None:
            saved = self.save(step, [], self.stopped_by is None)
        if self.stopped_by is None:
            self.bad_records.check_all()
            self._evaluate(saved, step)
            self._agreed(False)  # the evaluation may have been broken off
        return saved

    @property
    def _step(self) -> int:
        return int(self.steps.number)

    def _report(self, item: InputBatch, losses: dict[str, tf.Tensor], waited_s: float) -> None:
        step = self._step
        self.step_log.add(losses, item, waited_s, self.steps.phase(item.step))
        if step % self.config.log_step_count_steps == 0:
            self.step_log.write(step)
            self.put_logs()
        self.summaries.add(step, losses)

    def _save_and_evaluate(self) -> str:
        step = self._step
        to_evaluate = self.replicas.first_says(self.evaluations.is_due)
        self.log.flush()
        saved = self.save(step, self.step_log.unreported(), to_evaluate)
        self.save_times.saved()
        if to_evaluate:
            self._evaluate(saved, step)
        return saved

    def _evaluate(self, checkpoint: str, step: int) -> None:
        self.finish_saving()
        took_s = self.evaluations.run(checkpoint, step, self.log, self.progress, self.caught.is_caught)
        self.forecast.time.evaluated(took_s)

    def _agreed(self, is_due: bool) -> bool:
        """Agree on the signal to stop, and return whether the first worker saves: all do so after the same step."""
        *counts, save = self.replicas.agree(
            *(self.caught.number == number for number in STOPPING), is_due and self.replicas.number == 0
        )
        self.stopped_by = next(
            (number for number, count in zip(STOPPING, counts, strict=True) if count), self.stopped_by
        )
        return bool(save)

    def _reason(self, step: int, was_evaluated: bool = True) -> str | None:
        """Return why the training ends after a step: by its evaluations, or because it has done its num_steps."""
        reason = None
        if was_evaluated:  # only the first worker knows the evaluations of earlier starts
            reason = self.replicas.texts(self.evaluations.stop_reason() or "")[0]
        num_steps = self.config.num_steps
        return reason or (f"num_steps {num_steps} are done" if num_steps and step >= num_steps else None)
