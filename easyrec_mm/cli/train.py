"""`easyrec-mm train`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from easyrec_mm.api.loading import go_on_with, load_quietly, require_path
from easyrec_mm.api.workers import cluster_of, join_workers, workers_to_start
from easyrec_mm.cli import flags as f
from easyrec_mm.console import say, tell_result
from easyrec_mm.errors import UserError
from easyrec_mm.exit_status import after_signal
from easyrec_mm.files.lock import locked

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
    pipeline = load_quietly(flags, overrides(flags))
    require_path(pipeline.config.train_input_path, pipeline, "train_input_path", "the training data")
    cluster = cluster_of(pipeline, flags.workers, flags.worker_index)
    if (local := workers_to_start(pipeline, cluster, flags.arguments)) is not None:
        from easyrec_mm.distribution.local_workers import run_workers

        return run_workers(local, sys.stdout, sys.stderr)
    go_on_with(pipeline)
    replicas = join_workers(cluster, pipeline, flags.wait_for_workers_s)
    from easyrec_mm.distribution.joining import lost_workers_named
    from easyrec_mm.training.trainer import Trainer

    is_first = cluster is None or cluster.number == 0
    lock = locked(pipeline.config.model_dir, "model_dir", tell=say) if is_first else nullcontext()
    with lock as model_dir_lock, lost_workers_named(cluster):
        result = Trainer(pipeline, model_dir_lock, replicas).train()
    tell_result(f"step {result.step}; checkpoint {result.checkpoint}", step=result.step, checkpoint=result.checkpoint)
    if result.signal is None:
        return 0
    say(f"stopped; continue with: easyrec-mm {shlex.join(flags.arguments)}")
    return after_signal(result.signal)


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
