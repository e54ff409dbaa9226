"""`easyrec-mm tune`."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from easyrec_mm.api.loading import require_path
from easyrec_mm.cli import flags as f
from easyrec_mm.cli.loading import load_quietly
from easyrec_mm.console import say
from easyrec_mm.errors import UserError, install_extra
from easyrec_mm.exit_status import after_signal
from easyrec_mm.files import is_remote

if TYPE_CHECKING:
    from easyrec_mm.config.pipeline import Pipeline
    from easyrec_mm.tuning.space import Entry

HELP = "search for settings: train with many of them, and write the best config"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    f.add_config_flag(parser)
    f.add_setting_flags(parser)
    add = parser.add_argument
    space = "YAML file of the settings and their values, or a built-in space: pictures, of the image tower, or texts"
    add("--space", metavar="S", required=True, help=space)
    trials = "trainings in all, those of earlier starts and those that failed included (default 20)"
    add("--trials", metavar="N", type=f.positive, default=20, help=trials)
    add("--jobs", metavar="N", type=f.positive, default=1, help="trainings at a time, each a process (default 1)")
    add(
        "--output_dir",
        metavar="D",
        default="",
        help="folder of trials and results; a search that was stopped goes on from it (default: <model_dir>_tune)",
    )
    add(
        "--storage",
        metavar="URL",
        default="",
        help="where the trials are kept: sqlite:///file or postgresql://user@host/database (default: SQLite in "
        "--output_dir)",
    )
    metric = "metric to improve, such as auc_click (default: best_exporter_metric of the config, or its first metric)"
    add("--metric", metavar="M", default="", help=metric)
    pruner = "which trials end early, by their evaluations (default median: those worse than half of the others)"
    add("--pruner", choices=["median", "hyperband", "none"], default="median", help=pruner)
    add("--seed", metavar="N", type=f.not_negative, default=0, help="of the draws (default 0)")


def run(flags: f.Flags) -> int:
    """Search, or go on with a search."""
    require_optuna()
    pipeline = load_quietly(flags)
    require_path(pipeline.config.train_input_path, pipeline, "train_input_path", "the training data")
    for note in pipeline.notes:
        print(f"note: {note}", file=sys.stderr)
    entries = _entries(flags.space, pipeline)
    from easyrec_mm.distribution.gpus import visible_gpus
    from easyrec_mm.training.signals import caught_signals
    from easyrec_mm.tuning.tune import Tune, TuneOptions

    settings = [f"--set={setting}" for setting in flags.set]
    settings += ["--ignore_unsupported"] if flags.ignore_unsupported else []
    output_dir = _output_dir(flags.output_dir, pipeline)
    options = f.options_of(TuneOptions, flags, settings=tuple(settings), output_dir=output_dir)
    tune = Tune(pipeline, entries, options, visible_gpus())
    with caught_signals(
        "stopping; trainings under way save a checkpoint; send the signal again to stop at once"
    ) as caught:
        tune.run(caught.is_caught)
    if caught.number is None:
        return 0
    say(f"stopped; continue with: easyrec-mm {shlex.join(flags.arguments)}")
    return after_signal(caught.number)


def require_optuna() -> None:
    """Check that Optuna is installed.

    Raises:
      UserError: if it is not.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(f"tune: {error}; {install_extra('tune')}") from error


def _entries(space: str, pipeline: Pipeline) -> list[Entry]:
    """Return the entries of the space that --space names, and print those of the built-in one."""
    from easyrec_mm.tuning.pictures import PICTURES, picture_space
    from easyrec_mm.tuning.space import read_space
    from easyrec_mm.tuning.texts import TEXTS, text_space

    built_in = {PICTURES: picture_space, TEXTS: text_space}
    if space not in built_in:
        return read_space(space, pipeline)
    entries, left_out = built_in[space](pipeline)
    for entry in entries:
        say(f"searched: {entry.describe()}")
    for name, reason in left_out.items():
        say(f"not searched: {name}: {reason}")
    return entries


def _output_dir(given: str, pipeline: Pipeline) -> str:
    output_dir = given or f"{pipeline.config.model_dir.rstrip('/')}_tune"
    if is_remote(output_dir):
        raise UserError(f"--output_dir {output_dir}: give a folder of this machine")
    return output_dir
