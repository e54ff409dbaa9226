"""`easyrec-mm pretrain`."""

from __future__ import annotations

from easyrec_mm.cli import flags as f
from easyrec_mm.cli import train
from easyrec_mm.cli.loading import load_quietly
from easyrec_mm.errors import UserError

HELP = "train the item tower without clicks, from labelled or paired content; continues as train does"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    f.add_config_flag(parser)
    parser.add_argument("--model_dir", metavar="D", help="folder of the training, in place of the config's model_dir")
    f.add_workers_flags(parser)
    f.add_setting_flags(parser)


def run(flags: f.Flags) -> int:
    """Train until the end or a signal.

    Raises:
      UserError: if the config is not one of pre-training.
    """
    from easyrec_mm.config.overrides import Override

    changes = [Override("--model_dir", "model_dir", flags.model_dir)] if flags.model_dir else []
    pipeline = load_quietly(flags, changes, commands=["pretrain"])
    if not pipeline.config.HasField("pretrain_config"):
        todo = "add one (docs/pretraining.md), or run easyrec-mm train"
        raise UserError(f"{pipeline.path}: pretrain_config: is missing; {todo}")
    return train.run_pipeline(pipeline, flags)
