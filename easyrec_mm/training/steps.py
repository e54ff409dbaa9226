"""The steps of a training: forward pass, backward pass and update for a batch, and the state that they change.

Keras's `fit` breaks under multi-worker strategies and hides the gradients of embedding tables from the optimizer; here
a step is a plain function of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import tensorflow as tf

from easyrec_mm.data.batch import Batch, InputBatch
from easyrec_mm.data.picture_bank import PictureBank
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.distribution.shards import shard_of
from easyrec_mm.evaluation.evaluator import STEP_NAME, moving_average
from easyrec_mm.network.model import RANDOM_STATE, MultimodalModel
from easyrec_mm.network.precision import MIXED_FLOAT16
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.training.loss_scale import Gradient, LossScale
from easyrec_mm.training.optimizers import sum_duplicate_rows
from easyrec_mm.training.plan import Phase, build_optimizers, build_phases

# Keeps the random states of replicas apart.
_PRIME = 2_654_435_761
# Statistics that batch normalisation keeps, by the ends of their names.
_MOVING = ("/moving_mean", "/moving_variance")


class TrainSteps:
    """Trains a model step by step.

    Args:
      config: config of the training.
      model: model whose variables are trained.
      dtype: dtype policy of the model.
      spec: shapes and dtypes of batches.
      replicas: the replicas that are trained together; all have the same weights after each step.

    Attributes:
      number: number of steps done, int64.
      phases: phases of the training, each with its trained variables.
      trained: variables of all phases by name.
      optimizers: each with the names of the variables that it updates.
      average: moving average of the weights; None if it is not used.
      loss_scale: loss scale of float16; None in other precisions.
    """

    def __init__(
        self, config: EasyRecConfig, model: MultimodalModel, dtype: str, spec: Batch, replicas: Replicas | None = None
    ) -> None:
        self._model = model
        self._replicas = replicas or Replicas()
        self._clipping = config.train_config.gradient_clipping_by_norm
        self._named = model.named_variables()
        self.phases = build_phases(model, config)
        self.trained = {name: v for name, v in self._named.items() if any(name in p.trained for p in self.phases)}
        # Step at which the training ends, for schedules that end with it.
        self._end = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.optimizers = build_optimizers(model, self.trained, self.phases, config.train_config, self._end)
        self.average = moving_average(config, model)
        self.loss_scale = LossScale() if dtype == MIXED_FLOAT16 else None
        self.number = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._of_phases = [
            tf.function(partial(self._train_batch, phase), input_signature=[spec], autograph=False)
            for phase in self.phases
        ]

    def draw_apart(self) -> None:
        """Let each replica draw its own random numbers, as for dropout; called once after their state is the same."""
        apart = np.array([self._replicas.number * _PRIME % 2**32, 0], np.uint32)
        for name, variable in self._named.items():
            if RANDOM_STATE in name:
                variable.assign(variable.numpy() + apart)

    def end_at(self, step: int) -> None:
        """Set the step at which the training ends, for the schedules."""
        self._end.assign(step)

    def phase(self, step: int) -> int:
        """Return the number of the phase of the step that follows `step` steps."""
        return max(i for i, phase in enumerate(self.phases) if phase.first_step <= step)

    def bank(self, step: int) -> PictureBank | None:
        """Return the picture bank of the step that follows `step` steps."""
        return self.phases[self.phase(step)].bank

    def enter_phase(self, step: int) -> bool:
        """Enter the phase of the step that follows `step` steps; return whether this changed the trained variables."""
        trainable = self.phases[self.phase(step)].trainable
        if self._model.trains_part(trainable):
            return False
        self._model.train_part(trainable)
        return True

    def run(self, item: InputBatch) -> dict[str, tf.Tensor]:
        """Run the next step, which belongs to the phase that was entered.

        Args:
          item: a batch with samples.

        Returns:
          The losses and the learning rate by name, and the norm of the gradient if it is clipped.
        """
        number = self.phase(item.step)
        phase = self.phases[number]
        if phase.bank is not None:
            phase.bank.before_step(item.batch.images.bank_row, item.batch.images.encoded, item.step)
        losses: dict[str, tf.Tensor] = self._of_phases[number](item.batch)
        return losses

    def variables(self) -> dict[str, tf.Variable]:
        """Return all variables that steps change, except picture banks, by their names in a checkpoint."""
        state = {name: v.value for name, v in self._named.items()}
        for i, (optimizer, names) in enumerate(self.optimizers):
            state |= {f"optimizer_{i}/{name}": v.value for name, v in optimizer.named_slots(names).items()}
            state[f"optimizer_{i}/iterations"] = optimizer.iterations.value
        if self.average is not None:
            state |= self.average.named_variables()
        if self.loss_scale is not None:
            state |= self.loss_scale.named_variables()
        return state | {STEP_NAME: self.number}

    def bank_state(self) -> dict[str, tf.Tensor]:
        """Return the state of the picture banks that a checkpoint contains, by name."""
        state: dict[str, tf.Tensor] = {}
        for phase in self.phases:
            if phase.bank is not None and phase.keeps_bank:
                state |= phase.bank.state()
        return state

    def restore_banks(self, path: str) -> None:
        """Restore the state of the picture banks from a checkpoint."""
        for phase in self.phases:
            if phase.bank is not None and phase.keeps_bank:
                phase.bank.restore(path)

    def _train_batch(self, phase: Phase, batch: Batch) -> dict[str, tf.Tensor]:
        """Run forward pass, backward pass and update; return the values that `run` returns."""
        with self._replicas.scope(f"step of the phase from {phase.first_step}"):
            return self._train_on(phase, batch)

    def _train_on(self, phase: Phase, batch: Batch) -> dict[str, tf.Tensor]:
        variables = [v.value for v in phase.trained.values()]
        are_divided = [shard_of(variable) is not None for variable in variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            losses = self._model.losses(batch, training=True, bank=phase.bank)
            loss = tf.add_n(list(losses.values()))
            scaled = loss if self.loss_scale is None else self.loss_scale.scaled(loss)
        gradients = [sum_duplicate_rows(gradient) for gradient in tape.gradient(scaled, variables)]
        gradients, sums = self._merged(gradients, are_divided, [loss, *losses.values()])
        loss, losses = sums[0], dict(zip(losses, sums[1:], strict=True))
        self._average_statistics(tf.size(batch.sample_image), tf.shape(batch.pixels)[0])
        if self.loss_scale is not None:
            gradients = self.loss_scale.unscaled(gradients)
        values = {
            "loss": loss,
            **{f"loss_{name}": value for name, value in losses.items()},
            "learning_rate": tf.convert_to_tensor(self.optimizers[0][0].learning_rate),
        }
        limit = self._clipping
        if limit > 0:
            # Only if needed for clipping, because reading all gradients again costs a few percent of a step on a CPU.
            values["gradient_norm"] = self._norm(gradients, are_divided)
            gradients, _ = tf.clip_by_global_norm(gradients, limit, use_norm=values["gradient_norm"])
        step = tf.cast(self.number.assign_add(1), tf.int32)
        by_name = dict(zip(phase.trained, gradients, strict=True))
        if self.loss_scale is None:
            self._apply(by_name, step)
        else:
            on_all = self._on_all if any(are_divided) else tf.identity
            self.loss_scale.apply_if_finite(gradients, lambda: self._apply(by_name, step), on_all)
            values["loss_scale"] = tf.convert_to_tensor(self.loss_scale.value)
        return values

    def _merged(
        self, gradients: Sequence[Gradient], are_divided: Sequence[bool], scalars: list[tf.Tensor]
    ) -> tuple[list[Gradient], list[tf.Tensor]]:
        """Return the sums of the replicas' gradients and scalars; of tables, only the rows that a replica has.

        The gradient of a part of a table is that of all replicas already (DividedTables).
        """
        merged = list(gradients)
        dense = [i for i, gradient in enumerate(gradients) if isinstance(gradient, tf.Tensor)]
        sums = self._replicas.sum_each([*scalars, *(gradients[i] for i in dense)])
        for i, gradient in zip(dense, sums[len(scalars) :], strict=True):
            merged[i] = gradient
        for i, gradient in enumerate(gradients):
            if isinstance(gradient, tf.IndexedSlices) and self._replicas.num > 1 and not are_divided[i]:
                rows, values = self._replicas.gather(gradient.indices), self._replicas.gather(gradient.values)
                merged[i] = sum_duplicate_rows(tf.IndexedSlices(values, rows, gradient.dense_shape))
        return merged, sums[: len(scalars)]

    def _norm(self, gradients: Sequence[Gradient], are_divided: Sequence[bool]) -> tf.Tensor:
        """Return the common norm of the gradients of all variables, with all parts of tables."""
        if not any(are_divided):
            return tf.linalg.global_norm(gradients)
        squares = {True: tf.constant(0.0), False: tf.constant(0.0)}
        for gradient, is_divided in zip(gradients, are_divided, strict=True):
            if gradient is not None:
                values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
                squares[is_divided] += tf.reduce_sum(tf.square(values))
        return tf.sqrt(self._replicas.sum(squares[True]) + squares[False])

    def _on_all(self, flag: tf.Tensor) -> tf.Tensor:
        """Return whether a flag is set on all replicas."""
        return self._replicas.sum(tf.cast(flag, tf.float32)) == self._replicas.num

    def _average_statistics(self, num_samples: tf.Tensor, num_pictures: tf.Tensor) -> None:
        """Give all replicas the same moving statistics: the mean of theirs, weighted by what they normalised."""
        if self._replicas.num == 1:
            return
        numbers = tf.cast(tf.stack([num_samples, num_pictures]), tf.float32)
        names = [name for name in self._named if name.endswith(_MOVING)]
        weights = [numbers[int(name.startswith("image/"))] for name in names]
        # A replica without samples or pictures has no statistics of them.
        weighted = [
            tf.math.multiply_no_nan(tf.convert_to_tensor(self._named[name].value), weight)
            for name, weight in zip(names, weights, strict=True)
        ]
        *sums, totals = self._replicas.sum_each([*weighted, numbers])
        for name, value in zip(names, sums, strict=True):
            variable, total = self._named[name].value, totals[int(name.startswith("image/"))]
            variable.assign(tf.where(total > 0, value / total, variable))

    def _apply(self, gradients: dict[str, tf.Tensor | tf.IndexedSlices | None], step: tf.Tensor) -> None:
        def update() -> None:
            for optimizer, names in self.optimizers:
                used = [name for name in names if gradients.get(name) is not None]
                if used:
                    optimizer.apply([gradients[name] for name in used], [self.trained[name] for name in used])
                else:
                    # The learning rate follows the steps of the training, even before the variables are unfrozen.
                    optimizer.iterations.assign_add(1)

        if self.average is None:
            update()
            return
        rows = {name: g.indices for name, g in gradients.items() if isinstance(g, tf.IndexedSlices)}
        self.average.around(update, rows, step)
