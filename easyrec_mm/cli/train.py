"""`easyrec-mm train`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from easyrec_mm.api.training import train
from easyrec_mm.cli import flags as f
from easyrec_mm.cli.loading import load_quietly
from easyrec_mm.console import say, tell_result
from easyrec_mm.errors import UserError

if TYPE_CHECKING:
    from easyrec_mm.config.overrides import Override
    from easyrec_mm.config.pipeline import Pipeline

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
    f.add_workers_flags(parser)
    add("--continue_train", action="store_true", help="accepted for EasyRec's commands: training always continues")
    f.add_setting_flags(parser)


def load(arguments: Sequence[str], path: str | None = None) -> Pipeline:
    """Load and check the config of a training that is started elsewhere, without TensorFlow.

    Args:
      arguments: flags of `train`.
      path: the config, if it is not one of them.

    Raises:
      UserError: if the config is given twice, or flags name the workers.
      ConfigError: if it is invalid.
    """
    from easyrec_mm.config.pipeline import load_pipeline

    parser = argparse.ArgumentParser(prog="easyrec-mm train", add_help=False)
    add_flags(parser)
    f.add_console_flags(parser)
    own = parser.parse_args([*(["--pipeline_config", path] if path else []), *arguments])
    if path and own.pipeline_config != path:
        raise UserError(f"--pipeline_config {own.pipeline_config}: stands behind --, too; give it once, before --")
    if own.workers or own.worker_index is not None:
        raise UserError(
            "--workers, --worker_index: stand behind --, but the workers are named without them; remove them"
        )
    return load_pipeline(own.pipeline_config, [*overrides(own), *own.set], own.ignore_unsupported)


def run(flags: f.Flags) -> int:
    """Train until the end or a signal."""
    return run_pipeline(load_quietly(flags, overrides(flags)), flags)


def run_pipeline(pipeline: Pipeline, flags: f.Flags) -> int:
    """Train a config until the end or a signal; `flags` are those of the command, which names the workers."""
    ended = train(pipeline, flags.arguments, f.workers_of(flags))
    if ended.step is not None:
        text = f"step {ended.step}; checkpoint {ended.checkpoint}"
        tell_result(text, step=ended.step, checkpoint=ended.checkpoint)
        if ended.status:
            # One worker alone would train another batch.
            again = "to continue, start all workers again as before, with" if ended.has_others else "continue with"
            say(f"stopped; {again}: easyrec-mm {shlex.join(flags.arguments)}")
    return ended.status


def overrides(flags: f.Flags) -> list[Override]:
    """Return the changes of the config by flags, in the order in which EasyRec applies them."""
    from easyrec_mm.config.overrides import Override, parse_edits

    changes = []
    if flags.model_dir:
        changes.append(Override("--model_dir", "model_dir", flags.model_dir))
    for name in ("train_input_path", "eval_input_path"):
        if getattr(flags, name):
            changes.append(Override(f"--{name}", name, ",".join(getattr(flags, name))))
    return changes + (parse_edits(flags.edit_config_json) if flags.edit_config_json else [])
