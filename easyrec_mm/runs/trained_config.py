"""The config within a checkpoint: with which settings its weights were trained."""

from __future__ import annotations

import tensorflow as tf

from easyrec_mm.config.changes import Change, changes_since, record_of
from easyrec_mm.errors import CheckpointError
from easyrec_mm.protos.feature_pb2 import FeatureConfig
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.runs.checkpoint_reader import OTHER_CONFIG_ADVICE, read_text_value

_NAME = "progress/config"


def config_state(config: EasyRecConfig) -> dict[str, tf.Tensor]:
    """Return the part of a checkpoint that contains its config."""
    return {_NAME: tf.constant(record_of(config))}


def read_record(path: str) -> str | None:
    """Return the record of a checkpoint's config (config/changes.py); None if it has none, as earlier checkpoints."""
    return read_text_value(path, _NAME)


def require_same_weights(path: str, config: EasyRecConfig) -> list[Change]:
    """Return how a config differs from the one that a checkpoint was trained with; [] if the checkpoint has none.

    Raises:
      CheckpointError: if they differ in a setting on which the meaning of the weights depends.
    """
    record = read_record(path)
    if record is None:
        _require_no_cross(path, config)
        return []
    changes = changes_since(record, config)
    weighty = [f"  {change}" for change in changes if change.changes_weights]
    if weighty:
        raise CheckpointError(
            f"{path}: was trained with other settings, with which its weights mean something else:\n"
            + "\n".join(weighty)
            + f"\n{OTHER_CONFIG_ADVICE}"
        )
    return changes


def _require_no_cross(path: str, config: EasyRecConfig) -> None:
    """Check that no feature is a ComboFeature: checkpoints without a config have other rows for its values."""
    for feature in (*config.feature_config.features, *config.feature_configs):
        if feature.feature_type == FeatureConfig.ComboFeature:
            name = feature.feature_name or feature.input_names[0]
            raise CheckpointError(
                f"{path}: is of an earlier version, in which the ComboFeature '{name}' had other rows of its table "
                "than now (those of EasyRec); train anew in another model_dir"
            )
