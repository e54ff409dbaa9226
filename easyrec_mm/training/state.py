"""The state of a training: everything that a checkpoint contains, so that the training goes on as if never stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import NamedTuple

import tensorflow as tf

from easyrec_mm.config.changes import Change
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.evaluation.evaluator import VECTORS
from easyrec_mm.features.table_rows import TableCategories
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.runs.checkpoint_reader import read_text_value, restore
from easyrec_mm.runs.trained_config import config_state, require_same_weights
from easyrec_mm.store.feature_vectors import VectorStores, origin_number
from easyrec_mm.training.position import DataPosition
from easyrec_mm.training.skipped import Skipped
from easyrec_mm.training.step_log import Losses
from easyrec_mm.training.steps import TrainSteps
from easyrec_mm.training.trained_tables import tables_state

# What was counted but not yet reported, as JSON.
_UNREPORTED = "progress/unreported"


class Restored(NamedTuple):
    """What a checkpoint tells about the training that goes on from it.

    has_same_data  whether the data are those that it was trained on; else they are read from their start
    losses         the losses of its last steps, which are not reported yet
    to_evaluate    whether it was to be evaluated
    changes        the settings that differ
    """

    has_same_data: bool
    losses: list[Losses]
    to_evaluate: bool
    changes: list[Change]


class TrainingState:
    """The state of a training.

    Args:
      config: config of the training.
      steps: the weights and what else the steps change.
      inputs: the training data.
      vectors: the opened vectors of features.
      bad_records: counts of what could not be used.
      tables: the tables whose rows are chosen by categories, with these by feature.
      skipped: counts of the steps that were skipped.

    Attributes:
      position: where the training stands in its data.
    """

    def __init__(
        self,
        config: EasyRecConfig,
        steps: TrainSteps,
        inputs: Input,
        vectors: VectorStores,
        bad_records: BadRecords,
        tables: Mapping[str, TableCategories],
        skipped: Skipped,
    ) -> None:
        # Made now, because a vocabulary file may be overwritten while the training runs.
        self._settings = {**config_state(config), **tables_state(tables)}
        self._config, self._steps, self._bad_records, self._skipped = config, steps, bad_records, skipped
        self.position = DataPosition(inputs)
        self._vector_origins = {
            f"{VECTORS}{name}": tf.Variable(origin_number(generation.fingerprint), dtype=tf.int64, trainable=False)
            for name, generation in vectors.generations.items()
        }

    @property
    def step(self) -> int:
        """Return the number of steps done."""
        return int(self._steps.number)

    def variables(self) -> dict[str, tf.Variable]:
        """Return the variables of a checkpoint by name, except picture banks."""
        return {**self._steps.variables(), **self._vector_origins, **self.position.variables()}

    def values(self, losses: list[Losses], to_evaluate: bool = False) -> dict[str, tf.Variable | tf.Tensor]:
        """Return everything that a checkpoint contains, by name.

        Args:
          losses: losses of the steps not reported yet.
          to_evaluate: whether the checkpoint is evaluated next.
        """
        unreported = json.dumps(
            {
                "losses": losses,
                "bad_records": self._bad_records.state(),
                "to_evaluate": to_evaluate,
                "skipped": asdict(self._skipped),
            }
        )
        state: dict[str, tf.Variable | tf.Tensor] = {**self.variables(), **self._steps.bank_state()}
        return {**state, **self._settings, _UNREPORTED: tf.constant(unreported)}

    def restore(self, path: str) -> Restored:
        """Go on from a checkpoint; nothing is left of one that was restored before.

        Raises:
          DamagedCheckpointError: if it cannot be read, or its numbers are of no use.
          CheckpointError: if it is the checkpoint of another model.
        """
        restore(path, {**self._steps.variables(), **self._vector_origins})
        changes = require_same_weights(path, self._config)
        self._steps.restore_banks(path)
        has_same_data = self.position.restore(path)
        self._bad_records.start_over()
        unreported = json.loads(read_text_value(path, _UNREPORTED) or "{}")
        if has_same_data and unreported:
            self._bad_records.restore(unreported["bad_records"])
        self._skipped.restore(**unreported.get("skipped", {}))
        return Restored(has_same_data, unreported.get("losses", []), unreported.get("to_evaluate", False), changes)
