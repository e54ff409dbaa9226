"""Training: one custom loop over batches, with checkpoints from which it goes on as if it had never stopped.

Keras's `fit` breaks under multi-worker strategies and hides the gradients of embedding tables from the optimizer; here
the step is a plain function of a batch.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType

import tensorflow as tf

from easyrec_mm import files
from easyrec_mm.checkpoint import Checkpoints, read_into, restore, warm_start
from easyrec_mm.config import Pipeline, write_config
from easyrec_mm.config_image import PLACE
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.batch import Batch
from easyrec_mm.data.first_pictures import first_pictures, require_pictures
from easyrec_mm.data.input import Input, InputBatch
from easyrec_mm.errors import CheckpointError, ConfigError, UserError
from easyrec_mm.evaluation.report import table, write_result
from easyrec_mm.evaluator import STEP_NAME, VECTORS, evaluate, moving_average, vectors_of
from easyrec_mm.feature_vectors import origin_number
from easyrec_mm.files import StorageError
from easyrec_mm.files.folders import shown
from easyrec_mm.loss_scale import LossScale
from easyrec_mm.model import MultimodalModel
from easyrec_mm.model_dir import ModelDir, find_checkpoint
from easyrec_mm.optimizers import sum_duplicate_rows
from easyrec_mm.picture_bank import PictureBank
from easyrec_mm.precision import MIXED_FLOAT16, dtype_policy
from easyrec_mm.progress import MetricsLog, Progress
from easyrec_mm.protos.train_pb2 import WarmStart
from easyrec_mm.training_plan import Phase, build_optimizers, build_phases

EVAL_RESULT = "eval_result.json"
BAD_RECORDS = "bad_records.jsonl"
PIPELINE_CONFIG = "pipeline.config"


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
        self._require_unfreezing()
        self._trained = {name: v for name, v in self._named.items() if any(name in p.trained for p in self._phases)}
        self._optimizers = build_optimizers(self._model, self._trained, self._phases, self._train_config)
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
        self._evaluated_at = time.monotonic()

    def train(self) -> TrainResult:
        """Train to the end of num_steps or num_epochs, or until SIGINT or SIGTERM."""
        config = self._train_config
        self._folder.open()
        self._model_dir.mkdir(parents=True, exist_ok=True)
        self._start()
        write_config(self._config, str(self._model_dir / PIPELINE_CONFIG))
        num_epochs = config.num_epochs or self._config.data_config.num_epochs
        log = MetricsLog(str(self._model_dir))
        progress = Progress("train", config.num_steps or None, first=int(self._step))
        saved = self._checkpoints.latest() if int(self._step) else None
        with self._folder.logs_put():
            try:
                with _caught_signals() as caught:
                    saved = self._loop(num_epochs, log, progress, caught, saved)
            finally:
                progress.close()
                log.close()
                self._vectors.close()
        if self._bad_records.summary():
            print(shown(self._bad_records.summary()), flush=True)
        return TrainResult(int(self._step), saved and shown(saved), caught.number)

    def _loop(
        self, num_epochs: int, log: MetricsLog, progress: Progress, caught: _Caught, saved: str | None
    ) -> str | None:
        """Steps until the end; the path of the last checkpoint."""
        config = self._train_config
        batches = self._batches(num_epochs)
        pending: list[dict[str, tf.Tensor]] = []
        first_step = saved_step = int(self._step)
        saved_at = time.monotonic()
        epoch = 0
        try:
            while not caught.number and not (config.num_steps and int(self._step) >= config.num_steps):
                started = time.perf_counter()
                item = next(batches, None)
                waited = time.perf_counter() - started
                if item is None:
                    break
                losses = self._run_step(item)
                if losses is None:
                    continue
                step = int(self._step)
                if item.epoch > epoch and num_epochs and not config.num_steps:
                    progress.expect(round(step * num_epochs / item.epoch))
                epoch = item.epoch
                pending.append(losses)
                progress.add(item.batch.num_samples, item.batch.num_images, waited)
                if step % config.log_step_count_steps == 0:
                    self._log(pending, step, epoch, log, progress)
                if step % config.save_summary_steps == 0:
                    log.write_summaries("train", step, {name: float(value) for name, value in losses.items()})
                due = config.save_checkpoints_secs and time.monotonic() - saved_at >= config.save_checkpoints_secs
                if due or step % config.save_checkpoints_steps == 0:
                    saved = self._save(pending)
                    saved_at, saved_step = time.monotonic(), step
                    if time.monotonic() - self._evaluated_at >= self._config.eval_config.eval_interval_secs:
                        self._evaluate(saved, log, progress)
            if pending:
                self._log(pending, int(self._step), epoch, log, progress)
        finally:
            batches.close()
        if int(self._step) == first_step and saved is not None:
            print(
                f"nothing left to train: step {first_step}, num_steps {config.num_steps}, num_epochs {num_epochs}; "
                "raise them to train on, or choose another model_dir",
                flush=True,
            )
            return saved
        if int(self._step) != saved_step or saved is None:
            saved = self._save(pending)
        if not caught.number:
            self._bad_records.check_all()
            self._evaluate(saved, log, progress)
        return saved

    def _batches(self, num_epochs: int) -> Iterator[InputBatch]:
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
            path = find_checkpoint(self._train_config.fine_tune_checkpoint, "train_config.fine_tune_checkpoint")
            names = _read_name_map(self._train_config.fine_tune_ckpt_var_map)
            print(shown(warm_start(path, self._model.weights(), names, self._left_out())), flush=True)
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

    def _require_unfreezing(self) -> None:
        """Check that the training reaches unfreeze_at_step, where it ends with the data; reads all lines for it."""
        num_epochs = self._train_config.num_epochs or self._config.data_config.num_epochs
        if len(self._phases) == 1 or not num_epochs or self._train_config.num_steps:
            return
        step, num_steps = self._phases[1].first_step, self._input.count_batches(num_epochs)
        if step >= num_steps:
            raise ConfigError(
                f"{PLACE}.unfreeze_at_step: {step} is past the last step ({num_steps}: {num_epochs} epochs); lower it"
            )

    def _left_out(self) -> set[str]:
        """Variables that warm_start leaves as they are."""
        if self._train_config.warm_start != WarmStart.ALL_BUT_ID_EMBEDDINGS:
            return set()
        return {f"embedding/{f.table}" for f in self._schema.features if f.encoding}

    def _run_step(self, item: InputBatch) -> dict[str, tf.Tensor] | None:
        """One step; None if the batch has no samples left, which is no step."""
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
        return self._train_steps[number](item.batch)

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
        self, pending: list[dict[str, tf.Tensor]], step: int, epoch: int, log: MetricsLog, progress: Progress
    ) -> None:
        """Show and write the means since the last time."""
        means = {name: float(tf.reduce_mean([losses[name] for losses in pending])) for name in pending[0]}
        pending.clear()
        self._require_finite(means["loss"], step)
        rates = progress.rates()
        task_losses = [f"loss_{task.name}" for task in self._schema.tasks]
        shown = {name: means[name] for name in ["loss", *(task_losses if len(task_losses) > 1 else [])]}
        progress.show({"epoch": epoch, **shown}, rates)
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
        path = self._checkpoints.save(int(self._step), state)
        self._folder.put_checkpoint()
        return path

    def _evaluate(self, checkpoint: str, log: MetricsLog, progress: Progress) -> None:
        """Evaluate the weights of the checkpoint just saved (or their average)."""
        if not self._config.eval_input_path:
            return
        step = int(self._step)
        if self._average is not None:
            self._average.assign_to_variables(self._step)
        bad_records = BadRecords(str(self._model_dir / BAD_RECORDS), self._config.data_config.max_bad_record_share)
        path = self._config.eval_input_path
        results = evaluate(self._model, self._config, path, "eval_input_path", bad_records, self._vectors)
        if self._average is not None:
            for name, variable in self._trained.items():
                read_into(checkpoint, name, variable.value)
        progress.say(f"evaluation at step {step}:\n{table(results)}")
        log.write_line("eval", step, results)
        log.write_summaries("eval", step, results)
        write_result(str(self._model_dir / EVAL_RESULT), results)
        self._evaluated_at = time.monotonic()


class _Caught:
    """The first SIGINT or SIGTERM; a second one ends the process as usual."""

    number: int | None = None


@contextmanager
def _caught_signals() -> Iterator[_Caught]:
    caught = _Caught()

    def remember(number: int, frame: FrameType | None) -> None:
        caught.number = number
        signal.signal(number, previous[number])
        # Not by print, which refuses to be called while it is at work.
        with suppress(OSError):
            os.write(2, b"\nstopping after this step, then saving a checkpoint; once more to stop at once\n")

    previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _read_name_map(path: str) -> dict[str, str]:
    """Lines "variable<tab>name in the checkpoint" -> a dict."""
    if not path:
        return {}
    try:
        lines = files.read(path).decode("utf-8").splitlines()
    except (OSError, StorageError, UnicodeDecodeError) as error:
        raise ConfigError(f"train_config.fine_tune_ckpt_var_map: '{path}' cannot be read: {error}") from error
    names = {}
    for number, line in enumerate(lines, 1):
        parts = line.split("\t")
        if len(parts) == 2:
            names[parts[0].strip()] = parts[1].strip()
        elif line.strip():
            raise ConfigError(f"{path}:{number}: '{line}' is not: variable, tab, name in the checkpoint")
    return names
