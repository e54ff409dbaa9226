"""`easyrec-mm train`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from easyrec_mm.cli import flags as f
from easyrec_mm.cli.exit_status import after_signal
from easyrec_mm.cli.loading import load_config, require_path
from easyrec_mm.files.lock import locked

if TYPE_CHECKING:
    from easyrec_mm.config.overrides import Override

HELP = "train a model; continues from the last checkpoint in model_dir"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command, which include those of EasyRec's train_eval that change the config."""
    f.add_config_flag(parser)
    add = parser.add_argument
    add("--model_dir", metavar="D", help="folder of the training, in place of the config's model_dir")
    add("--train_input_path", metavar="P", nargs="*", help="training data, in place of the config's train_input_path")
    add("--eval_input_path", metavar="P", nargs="*", help="evaluation data, in place of the config's eval_input_path")
    add(
        "--edit_config_json",
        metavar="JSON",
        help="further changes of the config, as in EasyRec: '{\"train_config.num_steps\": 100}'",
    )
    add("--continue_train", action="store_true", help="accepted for EasyRec's commands: training always continues")
    f.add_setting_flags(parser)


def run(flags: f.Flags) -> int:
    """Train until the end or a signal."""
    pipeline = load_config(flags, _overrides(flags))
    require_path(pipeline.config.train_input_path, pipeline, "train_input_path", "the training data")
    from easyrec_mm.training.trainer import Trainer

    with locked(pipeline.config.model_dir, "model_dir") as lock:
        result = Trainer(pipeline, lock).train()
    print(f"step {result.step}; checkpoint {result.checkpoint}", flush=True)
    if result.signal is None:
        return 0
    print(f"stopped; continue with: easyrec-mm {shlex.join(flags.arguments)}", flush=True)
    return after_signal(result.signal)


def _overrides(flags: f.Flags) -> list[Override]:
    """Return the changes of the config by flags, in the order in which EasyRec applies them."""
    from easyrec_mm.config.overrides import Override, parse_edits

    overrides = []
    if flags.model_dir:
        overrides.append(Override("--model_dir", "model_dir", flags.model_dir))
    for name in ("train_input_path", "eval_input_path"):
        if getattr(flags, name):
            overrides.append(Override(f"--{name}", name, ",".join(getattr(flags, name))))
    return overrides + (parse_edits(flags.edit_config_json) if flags.edit_config_json else [])
