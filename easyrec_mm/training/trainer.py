"""Training: one loop over batches, with checkpoints from which it continues as if it had never stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import dataclass

import tensorflow as tf

from easyrec_mm.config.image import PLACE
from easyrec_mm.config.learning_rates import schedule_warnings
from easyrec_mm.config.pipeline import Pipeline, write_config
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.batch import InputBatch
from easyrec_mm.data.first_pictures import first_pictures, require_pictures
from easyrec_mm.data.input import Input
from easyrec_mm.errors import CheckpointError, ConfigError
from easyrec_mm.evaluation.evaluator import VECTORS, vectors_of
from easyrec_mm.files.folders import shown
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.network.precision import MIXED_FLOAT16, dtype_policy
from easyrec_mm.runs.checkpoint import Checkpoints, checkpoint_shapes, restore
from easyrec_mm.runs.evaluations import END, METRICS, START
from easyrec_mm.runs.model_dir import BAD_RECORDS, PIPELINE_CONFIG, ModelDir
from easyrec_mm.runs.progress import MetricsLog, Progress
from easyrec_mm.store.feature_vectors import origin_number
from easyrec_mm.training.evaluations import TrainingEvaluations
from easyrec_mm.training.length import Length, training_length
from easyrec_mm.training.save_times import SaveTimes
from easyrec_mm.training.signals import Caught, caught_signals
from easyrec_mm.training.step_log import StepLog
from easyrec_mm.training.steps import TrainSteps
from easyrec_mm.training.time_left import Forecast
from easyrec_mm.training.warm_start import start_from_checkpoint

# Names of the position in the data within a checkpoint; older checkpoints count batches.
_GROUPS_READ, _BATCHES_READ = "progress/groups_read", "progress/batches_read"
_STOPPING = "stopping after this step, then saving a checkpoint; send the signal again to stop at once"


@dataclass(frozen=True)
class TrainResult:
    """Result of a training: steps done in total, the last checkpoint, and the number of the signal that ended it."""

    step: int
    checkpoint: str | None
    signal: int | None


class Trainer:
    """Trains the model of a pipeline in its model_dir; continues from the last checkpoint there, if there is one.

    Attributes:
      model: the network.
      steps: runs the training steps.
      input: the training data.

    Raises:
      UserError: if data, checkpoints or settings do not fit; see the modules that raise it.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._config, self._schema = pipeline.config, pipeline.schema
        self._train_config = self._config.train_config
        self._folder = ModelDir(self._config.model_dir).open()
        self._model_dir = self._folder.local
        self._bad_records = BadRecords(
            str(self._model_dir / BAD_RECORDS), self._config.data_config.max_bad_record_share
        )
        self._checkpoints = Checkpoints(str(self._model_dir), self._train_config.keep_checkpoint_max)
        latest = self._checkpoints.latest()
        self._folder.fetch_checkpoint(latest)
        self._vectors = vectors_of(self._schema, latest)
        self.input = Input(
            self._config.data_config,
            self._schema,
            self._config.train_input_path,
            "train_input_path",
            self._bad_records,
            training=True,
            vectors=self._vectors,
        )
        if self._schema.uses_image:
            require_pictures(pipeline.path, self._config.data_config, first_pictures(self.input.source, self._schema))
        self._dtype = dtype_policy(self._train_config.precision)
        self.model = MultimodalModel(self._config, self._schema, self._dtype)
        self.steps = TrainSteps(self._config, self.model, self._dtype, self.input.spec())
        # Position from which to read on: the number of groups read, and the fingerprint of the data.
        self._groups_read = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._input_fingerprint = tf.Variable(self.input.fingerprint(), dtype=tf.int64, trainable=False)
        self._vector_origins = {
            f"{VECTORS}{name}": tf.Variable(origin_number(generation.fingerprint), dtype=tf.int64, trainable=False)
            for name, generation in self._vectors.generations.items()
        }
        self._evaluations = TrainingEvaluations(
            pipeline, self.model, self.steps.average, self.steps.trained, self._vectors, self._folder
        )

    def train(self) -> TrainResult:
        """Train until num_steps or num_epochs are done, the metric stops improving, or SIGINT or SIGTERM arrives."""
        self._model_dir.mkdir(parents=True, exist_ok=True)
        self._start()
        first_step = int(self.steps.number)
        length = self._length(first_step, int(self._groups_read))
        write_config(self._config, str(self._model_dir / PIPELINE_CONFIG))
        log = MetricsLog(self._model_dir / METRICS, self._model_dir)
        log.write_line(START, first_step, {})
        self._evaluations.go_on()
        saved = self._checkpoints.latest() if first_step else None
        progress = Progress("train", length.num_steps, first=first_step, is_exact=length.is_exact)
        with self._folder.logs_put():
            try:
                with caught_signals(_STOPPING) as caught:
                    saved, reason = self._loop(length, log, progress, caught, saved)
                if caught.number is None:
                    log.write_line(END, int(self.steps.number), {"reason": reason})
            finally:
                progress.close()
                log.close()
                self._vectors.close()
        self._tell_end(first_step, reason)
        return TrainResult(int(self.steps.number), saved and shown(saved), caught.number)

    def _tell_end(self, first_step: int, reason: str | None) -> None:
        step = int(self.steps.number)
        if reason is not None and step == first_step and step:
            advice = "raise that to train on, or choose another model_dir"
            print(f"nothing left to train at step {step}: {reason}; {advice}", flush=True)
        elif reason is not None:
            print(f"the training ends at step {step}: {reason}", flush=True)
        # A training that was stopped by a signal is not finished, so it has no best checkpoint yet.
        best = "" if reason is None else self._evaluations.describe_best()
        for line in filter(None, [best, self._bad_records.summary()]):
            print(shown(line), flush=True)

    def _length(self, step: int, groups_read: int) -> Length:
        """Return the length of the training, print it, and pass it to the schedules.

        Raises:
          ConfigError: if the training ends before unfreeze_at_step.
        """
        length = training_length(self._config, self.input, step, groups_read)
        for phase in self.steps.phases[1:]:
            if length.is_exact and length.num_steps is not None and phase.first_step >= length.num_steps:
                step_is_late = f"{phase.first_step} is past the last step ({length.describe()}); lower it"
                raise ConfigError(f"{PLACE}.unfreeze_at_step: {step_is_late}")
        print(f"training: {length.describe()}" + (f"; {step:,} steps are done" if step else ""), flush=True)
        if length.num_steps is not None:
            self.steps.end_at(length.num_steps)
            for warning in schedule_warnings(self._train_config, length.num_steps):
                print(f"warning: {warning}", flush=True)
        return length

    def _loop(
        self, length: Length, log: MetricsLog, progress: Progress, caught: Caught, saved: str | None
    ) -> tuple[str | None, str | None]:
        """Run steps to the end; return the last checkpoint's path and the reason for the end (None after a signal)."""
        config, evaluations = self._train_config, self._evaluations
        save_times = SaveTimes(config)
        forecast = Forecast(length, save_times, evaluations.interval_s)
        steps_log = StepLog(log, progress, forecast, self._schema, self._bad_records, self._checkpoints)
        batches = self.batches(length.num_epochs)
        step = first_step = saved_step = int(self.steps.number)
        reason = evaluations.stop_reason() or self._all_steps(step)  # from an earlier part of this training
        try:
            while not caught.number and reason is None:
                started_s = time.perf_counter()
                item = next(batches, None)
                if item is None:
                    reason = f"num_epochs {length.num_epochs} are done"
                    break
                waited_s = time.perf_counter() - started_s
                losses = self.run_step(item)
                if losses is None:
                    continue
                step = int(self.steps.number)
                steps_log.add(losses, item, waited_s, self.steps.phase(item.step))
                if step % config.log_step_count_steps == 0:
                    steps_log.write(step)
                    self._folder.put_logs(at_once=False)
                if step % config.save_summary_steps == 0:
                    log.write_summaries("train", step, {name: float(value) for name, value in losses.items()})
                if save_times.is_due(step, item.epochs_before, item.epochs_done):
                    steps_log.require_finite(step)
                    saved, saved_step = self._save(step), step
                    save_times.saved()
                    if evaluations.is_due:
                        forecast.time.evaluated(evaluations.run(saved, step, log, progress))
                        reason = evaluations.stop_reason()
                reason = reason or self._all_steps(step)
            steps_log.write(step)
        finally:
            batches.close()
        if step == first_step and saved is not None:
            return saved, reason
        if step != saved_step or saved is None:
            saved = self._save(step)
        if caught.number:
            return saved, None
        self._bad_records.check_all()
        evaluations.run(saved, step, log, progress)
        return saved, reason

    def _all_steps(self, step: int) -> str | None:
        """Return why the training ends if it has done its num_steps; None otherwise."""
        num_steps = self._train_config.num_steps
        return f"num_steps {num_steps} are done" if num_steps and step >= num_steps else None

    def batches(self, num_epochs: int) -> Generator[InputBatch, None, None]:
        """Return the batches from the current position of the training; `num_epochs` as for Input.batches."""
        first = int(self.steps.number)
        return self.input.batches(num_epochs, int(self._groups_read), first, self.steps.bank)

    def _start(self) -> None:
        """Continue from the last checkpoint, or start from fine_tune_checkpoint or from the initial weights."""
        latest = self._checkpoints.latest()
        if latest:
            self._resume(latest)
        elif self._train_config.fine_tune_checkpoint:
            print(shown(start_from_checkpoint(self.model, self._train_config)), flush=True)
            if self.steps.average is not None:
                self.steps.average.start_from_variables()
        trained = self.steps.phases[self.steps.phase(int(self.steps.number))].trained
        num_weights = sum(math.prod(v.shape) for v in trained.values())
        num_frozen = len(self.model.all_trainable()) - len(trained)
        print(
            f"model: {num_weights:,} trained weights in {len(trained)} variables"
            + (f", {num_frozen} frozen" if num_frozen else "")
            + f"; computing in {self._dtype.removeprefix('mixed_')}",
            flush=True,
        )
        if self._dtype == MIXED_FLOAT16 and not tf.config.list_physical_devices("GPU"):
            print("note: float16 is slow without a GPU; train_config.precision: AUTO chooses what is fast", flush=True)

    def _resume(self, path: str) -> None:
        fingerprint, state = int(self._input_fingerprint), self.state()
        batches_read = tf.Variable(0, dtype=tf.int64, trainable=False)
        try:
            counts_batches = _BATCHES_READ in checkpoint_shapes(path)
            if counts_batches:
                del state[_GROUPS_READ]
                state[_BATCHES_READ] = batches_read
            restore(path, state)
        except CheckpointError as error:
            raise CheckpointError(
                f"model_dir '{self._model_dir}' holds the training of another model. {error}"
            ) from error
        self.steps.restore_banks(path)
        saved_fingerprint = int(self._input_fingerprint)
        same_data = saved_fingerprint == fingerprint
        if counts_batches:
            same_data = saved_fingerprint == self.input.fingerprint(with_contents=False)
            self._groups_read.assign(batches_read * self.input.batch_size)
            self._input_fingerprint.assign(fingerprint)
        print(f"continuing from {shown(path)} (step {int(self.steps.number)})", flush=True)
        if not same_data:
            print(
                "the training data or their order have changed since the checkpoint: reading from the start", flush=True
            )
            self._groups_read.assign(0)
            self._input_fingerprint.assign(fingerprint)

    def state(self) -> dict[str, tf.Variable]:
        """Return everything that a checkpoint contains, except picture banks, by name."""
        return {
            **self.steps.variables(),
            **self._vector_origins,
            _GROUPS_READ: self._groups_read,
            "progress/input_fingerprint": self._input_fingerprint,
        }

    def run_step(self, item: InputBatch) -> dict[str, tf.Tensor] | None:
        """Train on a batch; return its losses, or None for a batch without samples, which is not a step."""
        self._groups_read.assign_add(item.num_groups)
        if not item.batch.num_samples:
            return None
        if self.steps.enter_phase(item.step):
            print(f"step {item.step}: all of the image tower is trained from now on", flush=True)
        return self.steps.run(item)

    def _save(self, step: int) -> str:
        """Write the checkpoint of a step; return its path."""
        state: dict[str, tf.Variable | tf.Tensor] = {**self.state(), **self.steps.bank_state()}
        path = self._checkpoints.save(step, state, self._evaluations.best_step())
        self._folder.put_checkpoint()
        return path
