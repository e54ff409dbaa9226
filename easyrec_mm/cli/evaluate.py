"""`easyrec-mm eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from easyrec_mm.api.evaluating import Compared, evaluate
from easyrec_mm.api.loading import require_path
from easyrec_mm.api.workers import cluster_of, join_workers
from easyrec_mm.cli import flags as f
from easyrec_mm.cli.loading import chosen_by, go_on_with, load_quietly
from easyrec_mm.console import say, tell_result
from easyrec_mm.errors import UserError
from easyrec_mm.exit_status import after_signal
from easyrec_mm.files import join
from easyrec_mm.files.folders import shown

if TYPE_CHECKING:
    from easyrec_mm.config.pipeline import Pipeline
    from easyrec_mm.distribution.replicas import Replicas

HELP = "evaluate a checkpoint"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    f.add_config_flag(parser)
    f.add_setting_flags(parser)
    f.add_checkpoint_flag(parser)
    f.add_precision_flag(parser)
    f.add_workers_flags(parser)
    add = parser.add_argument
    add("--eval_input_path", metavar="P", help="files in place of the config's eval_input_path")
    add("--compare", metavar="D", default="", help="model_dir or checkpoint of another model to compare with")
    add(
        "--compare_config",
        metavar="F",
        default="",
        help="config of the other model (default: pipeline.config of its model_dir)",
    )
    add(
        "--watch",
        action="store_true",
        help="evaluate every checkpoint in model_dir, and new ones as a training writes them",
    )
    add(
        "--watch_timeout_s",
        metavar="S",
        type=f.seconds,
        default=0.0,
        help="stop watching after this many seconds without a new checkpoint; 0: never (default)",
    )


def run(flags: f.Flags) -> int:
    """Evaluate one checkpoint, two models, or all checkpoints of a training."""
    if flags.compare_config and not flags.compare:
        raise UserError("--compare_config: has no effect without --compare; give both or neither")
    pipeline = load_quietly(flags, commands=["eval"])
    cluster = cluster_of(pipeline, flags.workers, flags.worker_index)
    if cluster is not None and (flags.compare or flags.watch):
        flag = "--compare" if flags.compare else "--watch"
        raise UserError(f"{flag}: is done by one process, but {cluster.source} names several workers; leave it out")
    go_on_with(pipeline)
    path = flags.eval_input_path or pipeline.config.eval_input_path
    setting = "--eval_input_path" if flags.eval_input_path else "eval_input_path"
    require_path(path, pipeline, "eval_input_path", "the evaluation data")
    if flags.watch:
        return _watch(pipeline, path, flags)
    if flags.watch_timeout_s:
        raise UserError("--watch_timeout_s: has no effect without --watch; give both or neither")
    replicas = join_workers(cluster, pipeline, flags.wait_for_workers_s)
    from easyrec_mm.distribution.joining import lost_workers_named

    with lost_workers_named(cluster):
        return _evaluate(pipeline, path, setting, flags, replicas)


def _evaluate(pipeline: Pipeline, path: str, setting: str, flags: f.Flags, replicas: Replicas | None) -> int:
    """Evaluate one checkpoint, or two models."""
    from easyrec_mm.evaluation.report import as_json, comparison_table, table
    from easyrec_mm.runs.model_dir import EVAL_RESULT

    other = Compared(flags.compare, flags.compare_config, flags.ignore_unsupported)
    evaluation = evaluate(pipeline, path, setting, chosen_by(flags), other, replicas)
    if replicas is not None and replicas.number:
        return 0
    results = evaluation.results
    # One line of JSON has all figures, as eval_result.json.
    tell_result(table(results), checkpoint=evaluation.name, eval_input_path=path, results=as_json(results))
    if results.comparison:
        print(f"\nthis model minus {results.comparison['other']}:\n{comparison_table(results.comparison)}")
    print(f"{evaluation.name} on {path}; written to {join(pipeline.config.model_dir, EVAL_RESULT)}")
    if evaluation.bad_records:
        print(shown(evaluation.bad_records))
    return 0


def _watch(pipeline: Pipeline, path: str, flags: f.Flags) -> int:
    """Evaluate the checkpoints of a running training; return the exit status."""
    if flags.compare:
        raise UserError("--compare: has no effect with --watch; remove one of them")
    if flags.checkpoint_path:
        raise UserError("--checkpoint_path: has no effect with --watch, which evaluates all of model_dir; remove it")
    from easyrec_mm.training.signals import caught_signals
    from easyrec_mm.training.watch import WATCH_METRICS, Watch

    watch = Watch(pipeline, path, tell_result, chosen_by(flags).dtype)
    say(f"evaluating the checkpoints in {pipeline.config.model_dir} on {path}")
    with caught_signals("stopping after this evaluation; send the signal again to stop at once") as caught:
        reason = watch.run(flags.watch_timeout_s, caught)
    print(f"{reason}; results are in {join(pipeline.config.model_dir, WATCH_METRICS)}", flush=True)
    return 0 if caught.number is None else after_signal(caught.number)
