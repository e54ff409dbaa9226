"""Training: one loop over batches, with checkpoints from which it continues as if it had never stopped."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import tensorflow as tf

from easyrec_mm.config.image import PLACE
from easyrec_mm.config.learning_rates import schedule_warnings
from easyrec_mm.config.pipeline import Pipeline, config_text
from easyrec_mm.console import say
from easyrec_mm.data.batch import InputBatch
from easyrec_mm.data.first_pictures import first_pictures, require_pictures
from easyrec_mm.data.input import Input
from easyrec_mm.data.same_data import require_same_data
from easyrec_mm.data.shared_bad_records import SharedBadRecords
from easyrec_mm.data.until_stopped import UntilStopped
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.errors import ConfigError
from easyrec_mm.evaluation.evaluator import vectors_of
from easyrec_mm.files.folders import shown
from easyrec_mm.files.lock import FolderLock
from easyrec_mm.files.waiting import waiting
from easyrec_mm.network.item_tower import build_model
from easyrec_mm.network.model import table_categories
from easyrec_mm.network.precision import MIXED_FLOAT16, device_name, dtype_policy
from easyrec_mm.runs.checkpoint import newest_whole
from easyrec_mm.runs.evaluations import END, METRICS, forget_later_steps
from easyrec_mm.runs.model_dir import BAD_RECORDS, PIPELINE_CONFIG
from easyrec_mm.runs.progress import MetricsLog, Progress
from easyrec_mm.runs.same_values import require_same_values
from easyrec_mm.runs.shown import code
from easyrec_mm.store.feature_vectors import VectorStores
from easyrec_mm.training.batch_norms import BatchNormWatch
from easyrec_mm.training.evaluations import TrainingEvaluations
from easyrec_mm.training.facts import RunFacts
from easyrec_mm.training.flops import StepFlops
from easyrec_mm.training.length import Length, training_length
from easyrec_mm.training.loop import Loop, NoBatchError
from easyrec_mm.training.memory import require_memory
from easyrec_mm.training.not_finite import NotFinite
from easyrec_mm.training.peak import peak_flops
from easyrec_mm.training.resume import checkpoints_in, resume, warn_of_remains
from easyrec_mm.training.save_times import SaveTimes
from easyrec_mm.training.saving import Saver
from easyrec_mm.training.signals import Caught, caught_signals
from easyrec_mm.training.state import TrainingState
from easyrec_mm.training.step_log import Losses, StepLog
from easyrec_mm.training.step_summaries import StepSummaries
from easyrec_mm.training.steps import TrainSteps
from easyrec_mm.training.time_left import Forecast
from easyrec_mm.training.warm_start import start_from_checkpoint

_STOPPING = "stopping after this step, then saving a checkpoint; send the signal again to stop at once"


@dataclass(frozen=True)
class TrainResult:
    """Result of a training: steps done in total, the last checkpoint, and the number of the signal that ended it."""

    step: int
    checkpoint: str | None
    signal: int | None


class Trainer:
    """Trains the model of a pipeline in its model_dir; continues from the last checkpoint there, if there is one.

    Of several workers, the first writes to model_dir; the others write to a folder of their own, which they remove.

    Args:
      pipeline: config and schema.
      lock: the lock of model_dir, which is kept up even if somebody removes the folder.
      replicas: the workers that train together; by default this process alone.

    Attributes:
      model: the network.
      steps: runs the training steps.
      input: the training data.
      state: what a checkpoint contains.

    Raises:
      UserError: if data, checkpoints or settings do not fit; see the modules that raise it.
    """

    def __init__(self, pipeline: Pipeline, lock: FolderLock | None = None, replicas: Replicas | None = None) -> None:
        self._config, self._schema = pipeline.config, pipeline.schema
        self._replicas = replicas or Replicas()
        require_memory(self._config, self._schema, pipeline.path, self._replicas.num)
        self._train_config = self._config.train_config
        self._saver = Saver(self._config, self._replicas, lock)
        self._folder, self._checkpoints = self._saver.folder, self._saver.checkpoints
        self._model_dir = self._folder.local
        self._bad_records = SharedBadRecords(
            str(self._model_dir / BAD_RECORDS), self._config.data_config.max_bad_record_share, self._replicas
        )
        self._vectors = self._open_vectors()
        self.input = Input(
            self._config.data_config, self._schema, self._config.train_input_path, "train_input_path",
            self._bad_records, training=True, vectors=self._vectors,
            worker=(self._replicas.number, self._replicas.num), exchange=self._replicas.texts,
        )  # fmt: skip
        require_same_data(self.input, self._replicas)
        if self._schema.uses_image:
            with waiting(lambda: "the first pictures of train_input_path"):
                pictures = first_pictures(self.input.source, self._schema)
                require_pictures(pipeline.path, self._config.data_config, pictures)
        self._batch_norms = BatchNormWatch()
        self._dtype = dtype_policy(self._train_config.precision)
        self.model = build_model(self._config, self._schema, self._dtype, self._replicas)
        self.steps = TrainSteps(self._config, self.model, self._dtype, self.input.spec(), self._replicas)
        tables = table_categories(self._schema, self.model.tables())
        self._not_finite = NotFinite(
            self._config, self.model, self._dtype, self.input.source.files, self._folder, self._checkpoints,
            self._replicas,
        )  # fmt: skip
        self.state = TrainingState(
            self._config, self.steps, self.input, self._vectors, self._bad_records, tables, self._not_finite.skipped
        )
        self._unreported: list[Losses] = []  # losses of earlier steps that are not reported yet
        self._to_evaluate = False  # whether the last checkpoint of an earlier start is to be evaluated
        self._has_new_config = True  # whether it differs from that of the last checkpoint
        self._evaluations = TrainingEvaluations(
            pipeline, self.model, self.steps.average, self.steps.trained, self._vectors, self._folder,
            self._saver.shared,
        )  # fmt: skip
        self._evaluations.require_data()

    @property
    def _is_first(self) -> bool:
        return self._replicas.number == 0

    def train(self) -> TrainResult:
        """Train until num_steps or num_epochs are done, the metric stops improving, or SIGINT or SIGTERM arrives."""
        saved = self._start()
        first_step = int(self.steps.number)
        length = self._length(first_step)
        self._saver.write_config()
        if damaged := forget_later_steps(self._model_dir / METRICS, first_step):
            where = self._model_dir / METRICS
            say(f"warning: {shown(str(where))}: {damaged} lines are damaged and are removed")
        log = MetricsLog(self._model_dir / METRICS, self._model_dir)
        log.write_start(first_step)
        if self._has_new_config:
            log.write_shown(first_step + 1, [code(PIPELINE_CONFIG, config_text(self._config))])
        self._evaluations.go_on()
        self._saver.begin(self.steps.changed_rows, saved)
        progress = Progress("train", length.num_steps, first=first_step, is_exact=length.is_exact)
        with self._folder.logs_put(), caught_signals(_STOPPING) as caught:
            try:
                with self._saver.finished():
                    loop = self._loop(length, log, progress, caught)
                    with UntilStopped(self.batches(length.num_epochs), caught.is_caught) as batches:
                        saved, reason = loop.run(batches, saved, self._to_evaluate)
                        if batches.hangs:
                            say("note: a batch did not arrive; the next start waits for it again")
                if reason is not None:
                    log.write_line(END, int(self.steps.number), {"reason": reason})
            finally:
                progress.close()
                log.close()
                if not caught.is_caught():  # otherwise an input that hangs may still be reading from them
                    self._vectors.close()
        # The others wait for what only the first does at the end. If it fails there, all fail and are started again
        # together; workers that had ended well would be missed.
        self._replicas.agree(0)
        self._tell_end(first_step, reason)
        return TrainResult(int(self.steps.number), saved and shown(saved), loop.stopped_by)

    def _tell_end(self, first_step: int, reason: str | None) -> None:
        step = int(self.steps.number)
        if reason is not None and step == first_step and step:
            advice = "raise that to train on, or choose another model_dir"
            say(f"nothing left to train at step {step}: {reason}; {advice}")
        elif reason is not None:
            say(f"the training ends at step {step}: {reason}")
        # A training that was stopped by a signal is not finished, so it has no best checkpoint yet.
        best = "" if reason is None else self._evaluations.describe_best()
        for line in filter(None, [best, self._bad_records.summary(), self._not_finite.summary()]):
            say(shown(line))

    def _length(self, step: int) -> Length:
        """Return the length of the training, print it, and pass it to the schedules.

        Raises:
          ConfigError: if the training ends before unfreeze_at_step.
        """
        length = training_length(self._config, self.input, step, self.state.position.groups_read)
        for phase in self.steps.phases[1:]:
            if length.is_exact and length.num_steps is not None and phase.first_step >= length.num_steps:
                step_is_late = f"{phase.first_step} is past the last step ({length.describe()}); lower it"
                raise ConfigError(f"{PLACE}.unfreeze_at_step: {step_is_late}")
        if self.input.own_files is not None:
            say(f"file_shard: {self.input.own_files.describe()}")
        say(f"training: {length.describe()}" + (f"; {step:,} steps are done" if step else ""))
        if length.num_steps is not None:
            self.steps.end_at(length.num_steps)
            for warning in schedule_warnings(self._train_config, length.num_steps):
                say(f"warning: {warning}")
        return length

    def _loop(self, length: Length, log: MetricsLog, progress: Progress, caught: Caught) -> Loop:
        save_times = SaveTimes(self._train_config)
        forecast = Forecast(length, save_times, self._evaluations.interval_s)
        facts = RunFacts(self._replicas, self._count_flops, peak_flops(self._dtype.removeprefix("mixed_")))
        skipped = self._not_finite.skipped
        step_log = StepLog(log, progress, forecast, self._schema, facts, self._bad_records, skipped)
        step_log.go_on(self._unreported)
        return Loop(
            config=self._train_config, length=length, replicas=self._replicas, steps=self.steps,
            run_step=self.run_step, save=self._save, finish_saving=self._saver.finish,
            evaluations=self._evaluations, log=log, progress=progress, forecast=forecast, step_log=step_log,
            summaries=StepSummaries(self._train_config, self.model, self.steps, skipped, log), save_times=save_times,
            caught=caught, bad_records=self._bad_records,
            put_logs=lambda: self._folder.put_logs(at_once=False),
        )  # fmt: skip

    def _count_flops(self, item: InputBatch) -> StepFlops:
        """Count the operations of the phase of a batch, which was entered."""
        phase = self.steps.phases[self.steps.phase(item.step)]
        return StepFlops(self.model, [v.value for v in phase.trained.values()], phase.banks, item.batch)

    def batches(self, num_epochs: int) -> Generator[InputBatch, None, None]:
        """Return the batches from the current position of the training; `num_epochs` as for Input.batches."""
        epoch, num_skipped = self.state.position.place
        return self.input.batches(num_epochs, num_skipped, int(self.steps.number), epoch, self.steps.banks)

    def _start(self) -> str | None:
        """Continue from the last checkpoint, or start from fine_tune_checkpoint or from the initial weights.

        Returns:
          The path of the checkpoint from which it continues, if it has done steps.

        Raises:
          UserError: if there is no checkpoint from which all workers can continue, or they start with other weights.
        """
        saved = None
        paths = checkpoints_in(self._saver.shared, self._checkpoints)
        if not paths:
            warn_of_remains(self._saver.shared)
        if self._replicas.first_says(bool(paths)):
            restored, saved = resume(paths, self._saver.shared, self._checkpoints, self.state, self._replicas)
            self._unreported, self._to_evaluate = restored.losses, restored.to_evaluate
            self._has_new_config = bool(restored.changes)
        elif self._train_config.fine_tune_checkpoint:
            say(shown(start_from_checkpoint(self.model, self._train_config, self.steps.average)))
        require_same_values(self.state.variables(), self._replicas)
        self.steps.draw_apart()
        say(f"model: {self.steps.describe()}; computing in {self._dtype.removeprefix('mixed_')} on {device_name()}")
        if self._dtype == MIXED_FLOAT16 and not tf.config.list_physical_devices("GPU"):
            say("note: float16 is slow without a GPU; train_config.precision: AUTO chooses what is fast")
        return saved if int(self.steps.number) else None

    def _open_vectors(self) -> VectorStores:
        """Open the features' vectors: those of the last checkpoint that can be read, or the current ones."""

        def read(path: str) -> VectorStores:
            self._saver.shared.fetch_checkpoint(path)
            return vectors_of(self._schema, path)

        paths = checkpoints_in(self._saver.shared, self._checkpoints)
        return newest_whole(paths, read)[0] if paths else vectors_of(self._schema, None)

    def run_step(self, item: InputBatch | None) -> dict[str, tf.Tensor] | None:
        """Train on a batch; return its losses, {} if its numbers were not finite, so that the step was skipped.

        Without samples of any worker this is not a step, and None is returned.

        Raises:
          NoBatchError: if a worker has no batch; then none trains on its own.
          UserError: if its numbers were not finite, and the training ends.
        """
        num_own = item.batch.num_samples if item else 0
        num_samples, num_waiting, num_without = self._replicas.agree(num_own, self._saver.is_waiting, item is None)
        if num_waiting == self._replicas.num:
            self._saver.meet()
        if item is None or num_without:
            raise NoBatchError
        self.state.position.add(item)
        if not num_samples:
            return None
        if self.steps.enter_phase(item.step):
            say(f"step {item.step}: all of the image tower is trained from now on")
        self._batch_norms.batch = item.batch
        with self._saver.step():
            losses = self.steps.run(item)
            self._saver.after_step(self.steps.changed)
        if self.steps.was_finite:
            self._not_finite.skipped.in_a_row = 0
            return losses
        if warning := self._not_finite.after_step(self.steps, losses, item):
            say(f"warning: {warning}")
        return {}

    def _save(self, step: int, unreported: list[Losses], to_evaluate: bool) -> str:
        """Write the checkpoint of a step; return its path; see TrainingState.values for the other arguments."""
        values, best_step = self.state.values(unreported, to_evaluate), self._evaluations.best_step()
        path = self._saver.save(step, values, best_step, at_once=to_evaluate)
        if warning := self._batch_norms.warning(self.model.weights()):
            say(f"warning: {warning}")
        return path
