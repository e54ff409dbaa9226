"""`easyrec-mm replay`."""

from __future__ import annotations

from easyrec_mm.cli import flags as f
from easyrec_mm.files.folders import shown
from easyrec_mm.tensorflow_import import import_tensorflow

HELP = "run a training step again whose loss was NaN or infinite, and name the cause"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    add = parser.add_argument
    add("--model_dir", metavar="D", required=True, help="folder of the training")
    add("--step", metavar="N", type=f.positive, help="the step, one of model_dir/replay (default: the last one there)")


def run(flags: f.Flags) -> int:
    """Print the first tensor that is not finite, and where it comes from."""
    import_tensorflow()
    from easyrec_mm.training.replay import replay

    for line in replay(flags.model_dir, flags.step):
        print(shown(line), flush=True)
    return 0
