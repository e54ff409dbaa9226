"""Loads the config that a command is given."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from easyrec_mm.api.loading import Chosen
from easyrec_mm.cli.flags import Flags
from easyrec_mm.errors import UserError
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from easyrec_mm.config.overrides import Override
    from easyrec_mm.config.pipeline import Pipeline


def load_config(flags: Flags, overrides: Sequence[Override] = ()) -> Pipeline:
    """Load and check the config, changed by `overrides` and then by --set; print notes; import TensorFlow."""
    pipeline = load_quietly(flags, overrides)
    go_on_with(pipeline)
    return pipeline


def load_quietly(flags: Flags, overrides: Sequence[Override] = (), commands: Sequence[str] = ()) -> Pipeline:
    """Load and check the config, changed by `overrides` and then by --set, without notes and without TensorFlow.

    Raises:
      UserError: if it is a config of pre-training, and the command is not one of `commands`.
    """
    from easyrec_mm.config.pipeline import load_pipeline

    pipeline = load_pipeline(flags.pipeline_config, [*overrides, *flags.set], flags.ignore_unsupported)
    if pipeline.config.HasField("pretrain_config") and flags.command not in commands:
        todo = "train it by easyrec-mm pretrain, and name its model_dir as fine_tune_checkpoint of a ranking"
        raise UserError(f"{pipeline.path}: pretrain_config: {flags.command} takes the config of a ranking; {todo}")
    return pipeline


def go_on_with(pipeline: Pipeline) -> None:
    """Print the notes of a config that was loaded quietly, and import TensorFlow."""
    for note in pipeline.notes:
        print(f"note: {note}", file=sys.stderr)
    import_tensorflow()


def chosen_by(flags: Flags) -> Chosen:
    """Return which checkpoint --checkpoint_path chooses, and the number format of --precision."""
    return Chosen(flags.checkpoint_path or "", flags.precision)
