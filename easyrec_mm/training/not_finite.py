"""What happens after a step whose numbers are not finite: the training ends or goes on; the step can be run again."""

from __future__ import annotations

import math
from io import BytesIO

import tensorflow as tf

from easyrec_mm.data.batch import InputBatch
from easyrec_mm.data.vector_bank import Banks
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.errors import UserError
from easyrec_mm.files.folders import shown
from easyrec_mm.files.storage import StorageError
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.protos.train_pb2 import NanPolicy
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.model_dir import REPLAY, ModelDir
from easyrec_mm.training.replay_folder import Step, WorkerPart, replay_steps, weights_of, write_step
from easyrec_mm.training.skipped import Skipped
from easyrec_mm.training.steps import TrainSteps

# Steps in a row that may be skipped.
MOST_IN_A_ROW = 10
# Steps that a start of the training writes to be run again, and those that are kept; and the warnings of a start.
MOST_WRITTEN = KEPT = 5
MOST_WARNINGS = 10


class NotFinite:
    """Ends the training after a step whose numbers are not finite, or counts it, as train_config.nan_policy says.

    Args:
      config: config of the training.
      model: the model.
      dtype: its dtype policy.
      files: the files of the input, whose indices are those of InputBatch.origin.
      folder: model_dir of this worker.
      checkpoints: checkpoints, for the message that names the last one.
      replicas: the workers, which all come to the same decision.

    Attributes:
      skipped: the counts.
    """

    def __init__(
        self,
        config: EasyRecConfig,
        model: MultimodalModel,
        dtype: str,
        files: list[str],
        folder: ModelDir,
        checkpoints: Checkpoints,
        replicas: Replicas,
    ) -> None:
        self._config, self._model, self._dtype, self._files = config, model, dtype, files
        self._folder, self._checkpoints, self._replicas = folder, checkpoints, replicas
        self._num_written = self._num_warnings = 0
        self.skipped = Skipped()

    def after_step(self, steps: TrainSteps, values: dict[str, tf.Tensor], item: InputBatch) -> str | None:
        """Count a step that was not finite and has therefore changed nothing.

        Args:
          steps: has run the step.
          values: what the step returned.
          item: its batch.

        Returns:
          A warning to show; None if there were many before.

        Raises:
          UserError: if the training ends here.
        """
        self.skipped.num += 1
        self.skipped.in_a_row += 1
        numbers = {name: float(value) for name, value in values.items()}
        number, banks = int(steps.number), steps.banks(item.step)
        loss_scale = 1.0 if steps.loss_scale is None else float(steps.loss_scale.value)
        again = self._written(number, numbers, item, banks, loss_scale)
        problem = f"{_problem(numbers)} at step {number}"
        if self._config.train_config.nan_policy == NanPolicy.STOP:
            advice = "lower the learning rate, set gradient_clipping_by_norm, or skip such batches with "
            raise UserError(f"{problem}; {again}; {advice}train_config.nan_policy: SKIP. {self._good()}")
        if self.skipped.in_a_row >= MOST_IN_A_ROW:
            raise UserError(f"{problem}, and in the {MOST_IN_A_ROW - 1} steps before it; {again}. {self._good()}")
        self._num_warnings += 1
        if self._num_warnings > MOST_WARNINGS:
            return None
        last = "; further ones are only counted" if self._num_warnings == MOST_WARNINGS else ""
        return f"{problem}: it was skipped; {again}{last}"

    def summary(self) -> str:
        """Return a line about the skipped steps; empty if there were none."""
        num = self.skipped.num
        return f"{num} {'step was' if num == 1 else 'steps were'} skipped because of NaN or infinity" if num else ""

    def _good(self) -> str:
        good = self._checkpoints.latest()
        last = f"the last good checkpoint is {shown(good)}" if good else "there is no checkpoint before it"
        return f"The weights of this step are not saved; {last}."

    def _written(
        self,
        number: int,
        values: dict[str, float],
        item: InputBatch,
        banks: Banks,
        loss_scale: float,
    ) -> str:
        """Write the step, unless many were written; return how to run it again, or why that is not possible."""
        if self._num_written >= MOST_WRITTEN:
            return "run an earlier one again with 'easyrec-mm replay'"
        self._num_written += 1
        problem = ""
        own = WorkerPart.of(item, self._files, self._model, banks)
        contents = self._replicas.contents(own.content()) if self._replicas.num > 1 else [b""]
        parts = [WorkerPart.read(BytesIO(content)) for content in contents] if self._replicas.num > 1 else [own]
        weights, rows = weights_of(self._model, parts)
        if self._replicas.number == 0:
            step = Step(number, self._dtype, loss_scale, values, parts, weights, rows, "")
            try:
                write_step(self._folder.local / REPLAY / f"step-{number}", step, self._config)
                for old in replay_steps(self._folder.local)[:-KEPT]:
                    self._folder.remove_replay(f"step-{old}")
            except (OSError, StorageError) as error:
                problem = f"it cannot be written to {REPLAY}: {error}"
        # A worker that ended before the first one has written might have that one ended, too.
        self._replicas.agree(0)
        return problem or f"'easyrec-mm replay --model_dir {self._config.model_dir} --step {number}' names the cause"


def _problem(values: dict[str, float]) -> str:
    """Return which number of a step is not finite, as the beginning of a message."""
    if not math.isfinite(values["loss"]):
        losses = [name.removeprefix("loss_") for name, value in values.items() if name.startswith("loss_")]
        bad = [name for name in losses if not math.isfinite(values[f"loss_{name}"])]
        of_losses = f" ({', '.join(bad)})" if bad and len(losses) > 1 else ""
        return f"the loss is {values['loss']}{of_losses}"
    return "the loss is finite, but the gradients or the statistics of batch norm overflow or are NaN"
