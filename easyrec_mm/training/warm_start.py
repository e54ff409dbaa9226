"""The start of a training from another model's checkpoint."""

from __future__ import annotations

from easyrec_mm import files
from easyrec_mm.errors import ConfigError
from easyrec_mm.files import StorageError
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.protos.train_pb2 import TrainConfig, WarmStart
from easyrec_mm.runs.checkpoint import warm_start
from easyrec_mm.runs.model_dir import find_checkpoint


def start_from_checkpoint(model: MultimodalModel, config: TrainConfig) -> str:
    """Restore matching variables from fine_tune_checkpoint; return a report of what was and what was not restored.

    Raises:
      CheckpointError: if no variable of the checkpoint matches.
      ConfigError: if the map of names cannot be read.
    """
    path = find_checkpoint(config.fine_tune_checkpoint, "train_config.fine_tune_checkpoint")
    left_out = set()
    if config.warm_start == WarmStart.ALL_BUT_ID_EMBEDDINGS:
        left_out = {f"embedding/{feature.table}" for feature in model.schema.features if feature.categories}
    report: str = warm_start(path, model.weights(), _read_name_map(config.fine_tune_ckpt_var_map), left_out)
    return report


def _read_name_map(path: str) -> dict[str, str]:
    """Read lines "variable<tab>name in the checkpoint" into a dict."""
    if not path:
        return {}
    try:
        lines = files.read(path).decode("utf-8-sig").splitlines()
    except (OSError, StorageError, UnicodeDecodeError) as error:
        raise ConfigError(f"train_config.fine_tune_ckpt_var_map: '{path}' cannot be read: {error}") from error
    names = {}
    for number, line in enumerate(lines, 1):
        parts = line.split("\t")
        if len(parts) == 2:
            names[parts[0].strip()] = parts[1].strip()
        elif line.strip():
            raise ConfigError(
                f"{path}:{number}: '{line}' is invalid; write a variable, a tab, and its name in the checkpoint"
            )
    return names
