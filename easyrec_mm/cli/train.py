"""`easyrec-mm train`."""

from __future__ import annotations

from easyrec_mm.cli import flags as f
from easyrec_mm.cli.exit_status import after_signal
from easyrec_mm.cli.loading import load_config, require_path
from easyrec_mm.files.lock import locked

HELP = "train a model; continues from the last checkpoint in model_dir"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    f.add_config_flag(parser)
    f.add_setting_flags(parser)


def run(flags: f.Flags) -> int:
    """Train until the end or a signal."""
    pipeline = load_config(flags)
    require_path(pipeline.config.train_input_path, pipeline, "train_input_path", "the training data")
    from easyrec_mm.training.trainer import Trainer

    with locked(pipeline.config.model_dir, "model_dir"):
        result = Trainer(pipeline).train()
    print(f"step {result.step}; checkpoint {result.checkpoint}", flush=True)
    if result.signal is None:
        return 0
    print(f"stopped; continue with: easyrec-mm train --pipeline_config {flags.pipeline_config}", flush=True)
    return after_signal(result.signal)
