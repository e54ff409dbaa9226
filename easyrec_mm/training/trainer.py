"""Training: one custom loop over batches, with checkpoints from which it goes on as if it had never stopped.

Keras's `fit` breaks under multi-worker strategies and hides the gradients of embedding tables from the optimizer; here
the step is a plain function of a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

import tensorflow as tf

from easyrec_mm.config.image import PLACE
from easyrec_mm.config.learning_rates import schedule_warnings
from easyrec_mm.config.pipeline import Pipeline, write_config
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.batch import Batch, InputBatch
from easyrec_mm.data.first_pictures import first_pictures, require_pictures
from easyrec_mm.data.input import Input
from easyrec_mm.data.picture_bank import PictureBank
from easyrec_mm.errors import CheckpointError, ConfigError, UserError
from easyrec_mm.evaluation.evaluator import STEP_NAME, VECTORS, moving_average, vectors_of
from easyrec_mm.files.folders import shown
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.network.precision import MIXED_FLOAT16, dtype_policy
from easyrec_mm.runs.checkpoint import Checkpoints, restore
from easyrec_mm.runs.evaluations import END, METRICS, START
from easyrec_mm.runs.model_dir import BAD_RECORDS, PIPELINE_CONFIG, ModelDir
from easyrec_mm.runs.progress import MetricsLog, Progress
from easyrec_mm.store.feature_vectors import origin_number
from easyrec_mm.training.evaluations import TrainingEvaluations
from easyrec_mm.training.length import Length, training_length
from easyrec_mm.training.loss_scale import LossScale
from easyrec_mm.training.optimizers import sum_duplicate_rows
from easyrec_mm.training.plan import Phase, build_optimizers, build_phases
from easyrec_mm.training.save_times import SaveTimes
from easyrec_mm.training.signals import Caught, caught_signals
from easyrec_mm.training.time_left import Forecast
from easyrec_mm.training.warm_start import start_from_checkpoint

_STOPPING = "stopping after this step, then saving a checkpoint; once more to stop at once"


@dataclass(frozen=True)
class TrainResult:
    """step: steps done in all; checkpoint: the last one; signal: number of the signal that ended it, or None."""

    step: int
    checkpoint: str | None
    signal: int | None


class Trainer:
    """Trains the model of a pipeline in its model_dir; goes on from the last checkpoint there, if there is one.

    Raises:
      UserError: for data, checkpoints and settings that do not fit; see the modules that raise it.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._config, self._schema = pipeline.config, pipeline.schema
        self._train_config = self._config.train_config
        self._folder = ModelDir(self._config.model_dir)
        self._model_dir = self._folder.local
        self._bad_records = BadRecords(
            str(self._model_dir / BAD_RECORDS), self._config.data_config.max_bad_record_share
        )
        self._checkpoints = Checkpoints(str(self._model_dir), self._train_config.keep_checkpoint_max)
        self._vectors = vectors_of(self._schema, self._checkpoints.latest())
        self._input = Input(
            self._config.data_config,
            self._schema,
            self._config.train_input_path,
            "train_input_path",
            self._bad_records,
            training=True,
            vectors=self._vectors,
        )
        if self._schema.uses_image:
            require_pictures(pipeline.path, self._config.data_config, first_pictures(self._input.source, self._schema))
        self._dtype = dtype_policy(self._train_config.precision)
        self._model = MultimodalModel(self._config, self._schema, self._dtype)
        self._named = self._model.named_variables()
        self._phases = build_phases(self._model, self._config)
        self._trained = {name: v for name, v in self._named.items() if any(name in p.trained for p in self._phases)}
        # Step at which the training ends, for schedules that end with it.
        self._end = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._optimizers = build_optimizers(self._model, self._trained, self._phases, self._train_config, self._end)
        self._average = moving_average(self._config, self._model)
        self._loss_scale = LossScale() if self._dtype == MIXED_FLOAT16 else None
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False)
        # Batches of the training data read, and what that data was: where to read on.
        self._batches_read = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._input_fingerprint = tf.Variable(self._input.fingerprint(), dtype=tf.int64, trainable=False)
        self._vector_origins = {
            f"{VECTORS}{name}": tf.Variable(origin_number(generation.fingerprint), dtype=tf.int64, trainable=False)
            for name, generation in self._vectors.generations.items()
        }
        self._train_steps = [
            tf.function(partial(self._train_batch, phase), input_signature=[self._input.spec()], autograph=False)
            for phase in self._phases
        ]
        self._evaluations = TrainingEvaluations(
            pipeline, self._model, self._average, self._trained, self._vectors, self._folder
        )

    def train(self) -> TrainResult:
        """Train to the end of num_steps or num_epochs, until it stops improving, or until SIGINT or SIGTERM."""
        self._folder.open()
        self._model_dir.mkdir(parents=True, exist_ok=True)
        self._start()
        first_step, batches_read = int(self._step), int(self._batches_read)
        length = self._length(first_step, batches_read)
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
                    log.write_line(END, int(self._step), {"reason": reason})
            finally:
                progress.close()
                log.close()
                self._vectors.close()
        self._tell_end(first_step, reason)
        return TrainResult(int(self._step), saved and shown(saved), caught.number)

    def _tell_end(self, first_step: int, reason: str | None) -> None:
        step = int(self._step)
        if reason is not None and step == first_step and step:
            advice = "raise that to train on, or choose another model_dir"
            print(f"nothing left to train at step {step}: {reason}; {advice}", flush=True)
        elif reason is not None:
            print(f"the training ends at step {step}: {reason}", flush=True)
        # A training that was stopped goes on.
        best = "" if reason is None else self._evaluations.describe_best()
        for line in filter(None, [best, self._bad_records.summary()]):
            print(shown(line), flush=True)

    def _length(self, step: int, batches_read: int) -> Length:
        """How long the training is, which is told; schedules then know it.

        Raises:
          ConfigError: if it never comes to unfreeze_at_step.
        """
        length = training_length(self._config, self._input, step, batches_read)
        for phase in self._phases[1:]:
            if length.is_exact and length.num_steps is not None and phase.first_step >= length.num_steps:
                step_is_late = f"{phase.first_step} is past the last step ({length.describe()}); lower it"
                raise ConfigError(f"{PLACE}.unfreeze_at_step: {step_is_late}")
        print(f"training: {length.describe()}" + (f"; {step:,} steps are done" if step else ""), flush=True)
        if length.num_steps is not None:
            self._end.assign(length.num_steps)
            for warning in schedule_warnings(self._train_config, length.num_steps):
                print(f"warning: {warning}", flush=True)
        return length

    def _loop(
        self, length: Length, log: MetricsLog, progress: Progress, caught: Caught, saved: str | None
    ) -> tuple[str | None, str | None]:
        """Steps until the end; the path of the last checkpoint, and why the training ends, unless by a signal."""
        config, evaluations = self._train_config, self._evaluations
        save_times = SaveTimes(config)
        forecast = Forecast(length, save_times, evaluations.interval_s)
        batches = self._batches(length.num_epochs)
        pending: list[dict[str, tf.Tensor]] = []
        first_step = saved_step = int(self._step)
        phase = self._phase(first_step)
        epoch = length.epoch_of(int(self._batches_read))
        reason = evaluations.stop_reason()  # of an earlier part of this training
        try:
            while not caught.number and reason is None:
                if config.num_steps and int(self._step) >= config.num_steps:
                    reason = f"num_steps {config.num_steps} are done"
                    break
                started = time.perf_counter()
                item = next(batches, None)
                waited = time.perf_counter() - started
                if item is None:
                    reason = f"num_epochs {length.num_epochs} are done"
                    break
                losses = self._run_step(item)
                if losses is None:
                    continue
                step, epoch_before, epoch = int(self._step), epoch, item.epoch
                pending.append(losses)
                progress.add(item.batch.num_samples, item.batch.num_images, waited)
                if self._phase(item.step) != phase:
                    phase = self._phase(item.step)
                    forecast.time.restart()
                forecast.step(item.batch.num_samples, item.batch.num_images)
                if step % config.log_step_count_steps == 0:
                    self._log(pending, step, epoch, log, progress, forecast)
                if step % config.save_summary_steps == 0:
                    log.write_summaries("train", step, {name: float(value) for name, value in losses.items()})
                if save_times.is_due(step, epoch_before, epoch):
                    saved, saved_step = self._save(pending), step
                    save_times.saved()
                    if evaluations.is_due:
                        forecast.time.evaluated(evaluations.run(saved, step, log, progress))
                        reason = evaluations.stop_reason()
            if pending:
                self._log(pending, int(self._step), epoch, log, progress, forecast)
        finally:
            batches.close()
        if int(self._step) == first_step and saved is not None:
            return saved, reason
        if int(self._step) != saved_step or saved is None:
            saved = self._save(pending)
        if caught.number:
            return saved, None
        self._bad_records.check_all()
        evaluations.run(saved, int(self._step), log, progress)
        return saved, reason

    def _batches(self, num_epochs: int) -> Generator[InputBatch, None, None]:
        """The batches from where the training stands."""
        first = int(self._step)
        return self._input.batches(num_epochs, int(self._batches_read), first, self._bank)

    def _start(self) -> None:
        """Go on from the last checkpoint, or start from fine_tune_checkpoint, or from the initial weights."""
        latest = self._checkpoints.latest()
        if latest:
            self._folder.fetch_checkpoint(latest)
            self._resume(latest)
        elif self._train_config.fine_tune_checkpoint:
            print(shown(start_from_checkpoint(self._model, self._train_config)), flush=True)
            if self._average is not None:
                self._average.start_from_variables()
        trained = self._phases[self._phase(int(self._step))].trained
        num_weights = sum(math.prod(v.shape) for v in trained.values())
        num_frozen = len(self._model.all_trainable()) - len(trained)
        print(
            f"model: {num_weights:,} trained weights in {len(trained)} variables"
            + (f", {num_frozen} frozen" if num_frozen else "")
            + f"; computing in {self._dtype.removeprefix('mixed_')}",
            flush=True,
        )
        if self._loss_scale is not None and not tf.config.list_physical_devices("GPU"):
            print("note: float16 is slow without a GPU; train_config.precision: AUTO chooses what is fast", flush=True)

    def _resume(self, path: str) -> None:
        fingerprint = int(self._input_fingerprint)
        try:
            restore(path, self._state())
        except CheckpointError as error:
            raise CheckpointError(f"model_dir '{self._model_dir}' holds another training. {error}") from error
        for phase in self._phases:
            if phase.bank is not None and phase.keeps_bank:
                phase.bank.restore(path)
        same_data = int(self._input_fingerprint) == fingerprint
        print(f"going on from {shown(path)} (step {int(self._step)})", flush=True)
        if not same_data:
            print("the training data or its order is not that of the checkpoint: reading from its start", flush=True)
            self._batches_read.assign(0)
            self._input_fingerprint.assign(fingerprint)

    def _state(self) -> dict[str, tf.Variable]:
        """Everything that a checkpoint holds, by name."""
        state = {name: v.value for name, v in self._named.items()}
        for i, (optimizer, names) in enumerate(self._optimizers):
            state |= {f"optimizer_{i}/{name}": v.value for name, v in optimizer.named_slots(names).items()}
            state[f"optimizer_{i}/iterations"] = optimizer.iterations.value
        if self._average is not None:
            state |= self._average.named_variables()
        if self._loss_scale is not None:
            state |= self._loss_scale.named_variables()
        return (
            state
            | self._vector_origins
            | {
                STEP_NAME: self._step,
                "progress/batches_read": self._batches_read,
                "progress/input_fingerprint": self._input_fingerprint,
            }
        )

    def _phase(self, step: int) -> int:
        """Number of the phase of the step that follows `step` steps."""
        return max(i for i, phase in enumerate(self._phases) if phase.first_step <= step)

    def _bank(self, step: int) -> PictureBank | None:
        """The bank of that step."""
        return self._phases[self._phase(step)].bank

    def _run_step(self, item: InputBatch) -> dict[str, tf.Tensor] | None:
        """One step; None if the batch has no samples left, which is not a step."""
        self._batches_read.assign_add(1)
        if not item.batch.num_samples:
            return None
        number = self._phase(item.step)
        phase = self._phases[number]
        if not self._model.is_frozen(phase.trainable):
            self._model.freeze(phase.trainable)
            print(f"step {int(self._step)}: all of the image tower is trained from now on", flush=True)
        if phase.bank is not None:
            phase.bank.before_step(item.batch.images.bank_row, item.batch.images.encoded, item.step)
        losses: dict[str, tf.Tensor] = self._train_steps[number](item.batch)
        return losses

    def _train_batch(self, phase: Phase, batch: Batch) -> dict[str, tf.Tensor]:
        """Forward, backward and update; the losses and the learning rate, and the gradient's norm if it is clipped."""
        variables = [v.value for v in phase.trained.values()]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            losses = self._model.losses(batch, training=True, bank=phase.bank)
            loss = tf.add_n(list(losses.values()))
            scaled = loss if self._loss_scale is None else self._loss_scale.scaled(loss)
        gradients = [sum_duplicate_rows(gradient) for gradient in tape.gradient(scaled, variables)]
        if self._loss_scale is not None:
            gradients = self._loss_scale.unscaled(gradients)
        values = {
            "loss": loss,
            **{f"loss_{name}": value for name, value in losses.items()},
            "learning_rate": tf.convert_to_tensor(self._optimizers[0][0].learning_rate),
        }
        limit = self._train_config.gradient_clipping_by_norm
        if limit > 0:
            # Not for its own sake: reading every gradient once more is some percent of a step on a CPU.
            values["gradient_norm"] = tf.linalg.global_norm(gradients)
            gradients, _ = tf.clip_by_global_norm(gradients, limit, use_norm=values["gradient_norm"])
        step = tf.cast(self._step.assign_add(1), tf.int32)
        by_name = dict(zip(phase.trained, gradients, strict=True))
        if self._loss_scale is None:
            self._apply(by_name, step)
        else:
            self._loss_scale.apply_if_finite(gradients, lambda: self._apply(by_name, step))
            values["loss_scale"] = tf.convert_to_tensor(self._loss_scale.value)
        return values

    def _apply(self, gradients: dict[str, tf.Tensor | tf.IndexedSlices | None], step: tf.Tensor) -> None:
        def update() -> None:
            for optimizer, names in self._optimizers:
                used = [name for name in names if gradients.get(name) is not None]
                if used:
                    optimizer.apply([gradients[name] for name in used], [self._trained[name] for name in used])
                else:
                    # Its learning rate goes by the steps of the training, also before its variables are unfrozen.
                    optimizer.iterations.assign_add(1)

        if self._average is None:
            update()
            return
        rows = {name: g.indices for name, g in gradients.items() if isinstance(g, tf.IndexedSlices)}
        self._average.around(update, rows, step)

    def _log(
        self,
        pending: list[dict[str, tf.Tensor]],
        step: int,
        epoch: int,
        log: MetricsLog,
        progress: Progress,
        forecast: Forecast,
    ) -> None:
        """Show and write the means since the last time."""
        means = {name: float(tf.reduce_mean([losses[name] for losses in pending])) for name in pending[0]}
        pending.clear()
        self._require_finite(means["loss"], step)
        rates = progress.rates()
        task_losses = [f"loss_{task.name}" for task in self._schema.tasks]
        shown = {name: means[name] for name in ["loss", *(task_losses if len(task_losses) > 1 else [])]}
        if announcement := forecast.announcement(step):
            progress.say(announcement)
        progress.show({"epoch": epoch, **shown}, rates, forecast.left(step))
        log.write_line("train", step, {"epoch": epoch, **means, **rates, **self._bad_records.counts})
        self._folder.put_logs(at_once=False)

    def _require_finite(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            good = self._checkpoints.latest()
            raise UserError(
                f"the loss is {loss} at step {step}; lower the learning rate, set gradient_clipping_by_norm, or look "
                f"for extreme values with 'easyrec-mm check'. The last good checkpoint is {good or 'none'}."
            )

    def _save(self, pending: list[dict[str, tf.Tensor]]) -> str:
        """Write a checkpoint, unless the weights are spoilt."""
        if pending:
            self._require_finite(float(pending[-1]["loss"]), int(self._step))
        state: dict[str, tf.Variable | tf.Tensor] = {**self._state()}
        for phase in self._phases:
            if phase.bank is not None and phase.keeps_bank:
                state |= phase.bank.state()
        path = self._checkpoints.save(int(self._step), state, self._evaluations.best_step())
        self._folder.put_checkpoint()
        return path
