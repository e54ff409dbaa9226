"""The model as its training began: with the initial weights of its seed, of its preset and of fine_tune_checkpoint."""

from __future__ import annotations

from easyrec_mm.errors import UserError
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Schema
from easyrec_mm.training.warm_start import start_from_checkpoint

# The tables exist a second time while the untrained model does.
MAX_TABLE_BYTES = 2 << 30


class NoUntrainedModelError(Exception):
    """The untrained model cannot be made; the message says why."""


def untrained_model(config: EasyRecConfig, schema: Schema) -> tuple[MultimodalModel, str]:
    """Return the model of a config before its training, and where its weights come from, in words.

    Raises:
      NoUntrainedModelError: if it needs too much memory, or what the training started from is missing.
    """
    num_bytes = sum(table.rows * table.dim * 4 for table in schema.tables)
    if num_bytes > MAX_TABLE_BYTES:
        raise NoUntrainedModelError(
            f"the untrained model would need another {num_bytes / 2**30:.1f} GiB of memory for its tables"
        )
    network = config.model_config.e2e_mm_dbmtl
    presets = [f"'{preset}'" for preset in (network.img_model.preset, network.text_model.preset) if preset]
    origin = f"the pretrained weights of {' and '.join(presets)}" if presets else "random weights, by the seed"
    try:
        model = MultimodalModel(config, schema)
        if config.train_config.fine_tune_checkpoint:
            start_from_checkpoint(model, config.train_config)
            origin = f"the weights of '{config.train_config.fine_tune_checkpoint}'"
    except UserError as error:
        raise NoUntrainedModelError(f"what the training started from cannot be loaded: {error}") from error
    return model, origin
