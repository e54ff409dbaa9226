"""`easyrec-mm eval`."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from easyrec_mm.api.loading import dtype_of, go_on_with, load_quietly, load_trained, require_path
from easyrec_mm.api.workers import cluster_of, join_workers
from easyrec_mm.cli import flags as f
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
    pipeline = load_quietly(flags)
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
    from easyrec_mm.evaluation.evaluator import Evaluator
    from easyrec_mm.evaluation.report import comparison_table, table, write_result
    from easyrec_mm.runs.model_dir import EVAL_BAD_RECORDS, EVAL_RESULT

    config = pipeline.config
    trained = load_trained(pipeline, flags, EVAL_BAD_RECORDS, replicas)
    is_first = replicas is None or replicas.number == 0
    with trained.folder.logs_put(), closing(trained.vectors):
        if flags.compare:
            from easyrec_mm.evaluation.comparison import Contender, evaluate_and_compare, open_contender

            other = open_contender(flags.compare, flags.compare_config, dtype_of(flags), flags.ignore_unsupported)
            first = Contender(pipeline, trained.model, trained.vectors, trained.name)
            with closing(other.vectors):
                results = evaluate_and_compare(first, other, path, setting, trained.bad_records)
        else:
            results = Evaluator(
                trained.model, config, path, setting, trained.bad_records, trained.vectors, confidence=True
            ).run()
        if not results["num_samples"]:
            raise UserError(f"{setting} {path}: has no samples to evaluate; give other files")
        if is_first:
            write_result(str(trained.folder.local / EVAL_RESULT), results)
    if replicas is not None:
        replicas.agree(0)  # a worker that ends while the first one still writes would be missed
    if not is_first:
        return 0
    tell_result(table(results))
    if results.comparison:
        print(f"\nthis model minus {results.comparison['other']}:\n{comparison_table(results.comparison)}")
    print(f"{trained.name} on {path}; written to {join(config.model_dir, EVAL_RESULT)}")
    if trained.bad_records.summary():
        print(shown(trained.bad_records.summary()))
    return 0


def _watch(pipeline: Pipeline, path: str, flags: f.Flags) -> int:
    """Evaluate the checkpoints of a running training; return the exit status."""
    if flags.compare:
        raise UserError("--compare: has no effect with --watch; remove one of them")
    if flags.checkpoint_path:
        raise UserError("--checkpoint_path: has no effect with --watch, which evaluates all of model_dir; remove it")
    from easyrec_mm.training.signals import caught_signals
    from easyrec_mm.training.watch import WATCH_METRICS, Watch

    watch = Watch(pipeline, path, lambda message: print(message, flush=True), dtype_of(flags))
    say(f"evaluating the checkpoints in {pipeline.config.model_dir} on {path}")
    with caught_signals("stopping after this evaluation; send the signal again to stop at once") as caught:
        reason = watch.run(flags.watch_timeout_s, caught)
    print(f"{reason}; results are in {join(pipeline.config.model_dir, WATCH_METRICS)}", flush=True)
    return 0 if caught.number is None else after_signal(caught.number)
