"""The steps of a training: forward pass, backward pass and update for a batch, and the state that they change.

Keras's `fit` breaks under multi-worker strategies and hides the gradients of embedding tables from the optimizer; here
a step is a plain function of a batch.
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from easyrec_mm.data.batch import Batch, InputBatch
from easyrec_mm.data.vector_bank import Banks
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.distribution.shards import whole_shape
from easyrec_mm.evaluation.evaluator import STEP_NAME, moving_average
from easyrec_mm.network.model import RANDOM_STATE, MultimodalModel
from easyrec_mm.network.precision import MIXED_FLOAT16
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.runs.checkpoint_parts import Table
from easyrec_mm.runs.snapshot import Changed
from easyrec_mm.training.changed_rows import ChangedRows, streamed_tables
from easyrec_mm.training.exchange import StepExchange
from easyrec_mm.training.finite import ForwardState, forget_useless, squares_are_finite
from easyrec_mm.training.loss_scale import SMALLEST, LossScale
from easyrec_mm.training.plan import Phase, build_optimizers, build_phases
from easyrec_mm.training.row_gradients import Gradient, sum_duplicate_rows
from easyrec_mm.training.updates import Updates

# Keeps the random states of replicas apart.
_PRIME = 2_654_435_761
# Name among the values of a step.
_IS_FINITE = "is_finite"
# The values that `run` returns, the changed rows, and the gradients for an update that is a function of its own.
_Results: TypeAlias = tuple[dict[str, tf.Tensor], Changed, dict[str, Gradient]]


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
      was_finite: whether the numbers of the last step were finite; otherwise it has changed nothing but `number`.
      changed_rows: the rows of tables that steps change.
      changed: the rows that the last step has changed, if they are recorded.
    """

    def __init__(
        self, config: EasyRecConfig, model: MultimodalModel, dtype: str, spec: Batch, replicas: Replicas | None = None
    ) -> None:
        self._model = model
        self._replicas = replicas or Replicas()
        self._clipping = config.train_config.gradient_clipping_by_norm
        self._named = model.named_variables()
        self._exchange = StepExchange(self._replicas, self._named)
        self.phases = build_phases(model, config)
        self.trained = {name: v for name, v in self._named.items() if any(name in p.trained for p in self.phases)}
        # Step at which the training ends, for schedules that end with it.
        self._end = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.optimizers = build_optimizers(model, self.trained, self.phases, config.train_config, self._end)
        self.average = moving_average(config, model)
        self.loss_scale = LossScale() if dtype == MIXED_FLOAT16 else None
        self.number = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.was_finite = True
        tables = self._tables()
        counts_changes = config.train_config.increments_per_full_checkpoint > 0
        streamed = streamed_tables(tables, self._replicas.num)
        self.changed_rows = ChangedRows(tables, counts_changes, streamed, self._replicas.number == 0)
        self.changed: Changed = {}
        self._updates = Updates(self.optimizers, self.trained, self.average)
        self._of_phases = [
            tf.function(partial(self._train_batch, phase), input_signature=[spec], autograph=False)
            for phase in self.phases
        ]
        self._own_updates = {
            i: cache(partial(self._updates.function, phase, self._of_phases[i], self.number))
            for i, phase in enumerate(self.phases)
            if self._has_own_update(phase)
        }

    def draw_apart(self) -> None:
        """Let each replica draw its own random numbers, as for dropout; called once after their state is the same."""
        apart = np.array([self._replicas.number * _PRIME % 2**32, 0], np.uint32)
        for name, variable in self._named.items():
            if RANDOM_STATE in name:
                variable.assign(variable.numpy() + apart)

    def describe(self) -> str:
        """Return how many weights are trained now, and how many variables are frozen."""
        trained = self.phases[self.phase(int(self.number))].trained
        num_weights = sum(math.prod(whole_shape(v.value)) for v in trained.values())
        num_frozen = len(self._model.all_trainable()) - len(trained)
        frozen = f", {num_frozen} frozen" if num_frozen else ""
        return f"{num_weights:,} trained weights in {len(trained)} variables{frozen}"

    def end_at(self, step: int) -> None:
        """Set the step at which the training ends, for the schedules."""
        self._end.assign(step)

    def phase(self, step: int) -> int:
        """Return the number of the phase of the step that follows `step` steps."""
        return max(i for i, phase in enumerate(self.phases) if phase.first_step <= step)

    def banks(self, step: int) -> Banks:
        """Return the banks of the step that follows `step` steps."""
        return self.phases[self.phase(step)].banks

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
          The losses and the learning rate by name; the norm of the gradient if it is clipped; of several replicas, the
          bytes that this one has sent, see Replicas.sent_bytes.
        """
        number = self.phase(item.step)
        phase = self.phases[number]
        contents = item.batch.of_banks()
        for name, bank in phase.banks.items():
            bank.before_step(contents[name].bank_row, contents[name].encoded, item.step)
        losses: dict[str, tf.Tensor]
        losses, self.changed, gradients = self._of_phases[number](item.batch)
        self.was_finite = bool(losses.pop(_IS_FINITE))
        if self.was_finite and number in self._own_updates:
            self._own_updates[number]()(gradients)
        for name, bank in phase.banks.items() if not self.was_finite else ():
            bank.encode_again(contents[name].bank_row, contents[name].encoded)
        return losses

    def graphs(self, step: int) -> list[tf.Graph]:
        """Return the graphs of the step that follows `step` steps: of all of it, or without its update and of that."""
        number = self.phase(step)
        own_update = [self._own_updates[number]()] if number in self._own_updates else []
        return [function.get_concrete_function().graph for function in (self._of_phases[number], *own_update)]

    def variables(self) -> dict[str, tf.Variable]:
        """Return all variables that steps change, except banks, by their names in a checkpoint."""
        state = {name: v.value for name, v in self._named.items()}
        for i, (optimizer, names) in enumerate(self.optimizers):
            state |= {f"optimizer_{i}/{name}": v.value for name, v in optimizer.named_slots(names).items()}
            state[f"optimizer_{i}/iterations"] = optimizer.iterations.value
        if self.average is not None:
            state |= self.average.named_variables()
        if self.loss_scale is not None:
            state |= self.loss_scale.named_variables()
        return state | {STEP_NAME: self.number}

    def _tables(self) -> list[Table]:
        """Return the tables, each with all variables of `variables` whose rows change together with its rows."""
        tables = {name: Table(name, {name: v.value}) for name, v in self._model.tables().items()}
        for i, (optimizer, names) in enumerate(self.optimizers):
            for slot_name, slot in optimizer.named_slots(names).items():
                if (name := slot_name.rpartition("/")[0]) in tables:
                    tables[name].variables[f"optimizer_{i}/{slot_name}"] = slot.value
        averages = self.average.named_variables() if self.average is not None else {}
        for average_name, average in averages.items():
            if (name := average_name.rpartition("/")[0]) in tables:
                tables[name].variables[average_name] = average
        return list(tables.values())

    def bank_state(self) -> dict[str, tf.Tensor]:
        """Return the state of the banks that a checkpoint contains, by name."""
        states = [bank.state() for phase in self.phases for bank in phase.kept_banks.values()]
        return {name: value for state in states for name, value in state.items()}

    def restore_banks(self, path: str) -> None:
        """Restore the state of the banks from a checkpoint."""
        for phase in self.phases:
            for bank in phase.kept_banks.values():
                bank.restore(path)

    def _has_own_update(self, phase: Phase) -> bool:
        """Return whether the update is a function of its own, see Updates.function."""
        return phase.gradients.are_many and self.loss_scale is None

    def _train_batch(self, phase: Phase, batch: Batch) -> _Results:
        """Run forward pass, backward pass and, unless it is a function of its own, the update."""
        with self._replicas.scope(f"step of the phase from {phase.first_step}"):
            values, changed, gradients = self._train_on(phase, batch)
            return values | self._replicas.sent_bytes(), changed, gradients

    def _train_on(self, phase: Phase, batch: Batch) -> _Results:
        variables = [v.value for v in phase.trained.values()]
        state = ForwardState(self._named, self._model.all_trainable())
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            losses = self._model.losses(batch, training=True, banks=phase.banks)
            loss = tf.add_n(list(losses.values()))
            scaled = loss if self.loss_scale is None else self.loss_scale.scaled(loss)
        gradients = phase.gradients.stacked(sum_duplicate_rows(tape.gradient(scaled, variables)))
        gradients, sums = self._exchange.merged(gradients, phase.gradients.variables, [loss, *losses.values()])
        loss, losses = sums[0], dict(zip(losses, sums[1:], strict=True))
        self._exchange.average_statistics(tf.size(batch.sample_image), phase.num_pictures(batch))
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
            values["gradient_norm"] = self._exchange.norm(gradients, phase.gradients.variables)
            gradients, _ = tf.clip_by_global_norm(gradients, limit, use_norm=values["gradient_norm"])
        step = tf.cast(self.number.assign_add(1), tf.int32)
        by_name = {name: g for name, g in zip(phase.gradients.names, gradients, strict=True) if g is not None}
        changed = self.changed_rows.before_update(by_name)
        self._update(phase, by_name, step, state, batch, values)
        if self.loss_scale is not None:
            values["loss_scale"] = tf.convert_to_tensor(self.loss_scale.value)
        return values, changed, by_name if self._has_own_update(phase) else {}

    def _update(
        self,
        phase: Phase,
        gradients: dict[str, Gradient],
        step: tf.Tensor,
        state: ForwardState,
        batch: Batch,
        values: dict[str, tf.Tensor],
    ) -> None:
        """Apply the gradients if all numbers of the step are finite; otherwise take back what it has changed.

        Args:
          phase: the phase of the step.
          gradients: gradients by the names of `phase.gradients`, the same on all replicas.
          step: number of the step, from 1.
          state: what the forward pass changes.
          batch: the batch.
          values: the values of the step; whether they are finite is added.
        """
        scale = self.loss_scale

        def apply() -> None:
            def update() -> None:
                self._updates.apply(phase, gradients, step)

            if self._has_own_update(phase):
                return
            if scale is None:
                update()
            else:
                scale.apply_if_finite(list(gradients.values()), update, self._exchange.on_all)

        def take_back() -> None:
            state.restore()
            if self.average is not None:
                self.average.skip_step()
            forget_useless(phase.banks, batch)

        if "gradient_norm" in values:
            # Clipping by a norm that is not finite would make all gradients NaN.
            are_usable = tf.math.is_finite(values["gradient_norm"])
        else:
            are_usable = squares_are_finite(list(gradients.values()))
        if scale is not None:
            # Gradients that overflow at a larger scale only lower the scale.
            are_usable |= scale.value > SMALLEST
        are_finite = tf.math.is_finite(values["loss"]) & state.is_finite() & are_usable
        values[_IS_FINITE] = self._exchange.on_all(are_finite)
        tf.cond(values[_IS_FINITE], apply, take_back)
