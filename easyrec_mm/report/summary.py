"""The first section: the most important figures, and what deserves attention."""

from __future__ import annotations

from collections.abc import Sequence

from easyrec_mm.errors import UserError
from easyrec_mm.evaluation.summary import EvalResults
from easyrec_mm.report.context import Context
from easyrec_mm.report.section import Part, Text, Tile, Tiles, Unavailable
from easyrec_mm.runs.evaluations import END

_MOST_METRICS = 6


def summary(context: Context) -> Sequence[Part]:
    """Return the main figures of the training."""
    tiles = [*_metric_tiles(context), *_training_tiles(context)]
    run = context.run
    notes: list[Part] = [Text(run.note, "warning")] if run.note else []
    try:
        evaluated = context.evaluated
    except Unavailable as error:
        notes.append(Text(str(error), "note"))
    except UserError as error:
        notes.append(Text(f"The evaluation data cannot be read: {error}", "warning"))
    else:
        notes += _too_many_bad(context)
        num_metrics = len(_metric_names(evaluated.results))
        if num_metrics > _MOST_METRICS:
            text = f"The first {_MOST_METRICS} of {num_metrics} metrics; the section Metrics has those of all tasks."
            notes.append(Text(text, "note"))
        how = evaluated.results.confidence
        if how:
            notes.append(
                Text(
                    f"Brackets are {how['level']:.0%} intervals: {how['num_replicates']} bootstrap replicates of "
                    f"{how['num_clusters']:,} clusters by {how['clusters']}.",
                    "note",
                )
            )
    return [Tiles(tiles), *notes]


def _too_many_bad(context: Context) -> list[Part]:
    """Return warnings if more of the evaluation data are bad than an evaluation by `eval` would accept."""
    counts, share = context.evaluated.bad_records.counts, context.run.pipeline.config.data_config.max_bad_record_share
    warnings: list[Part] = []
    for name in ("groups", "pictures"):
        bad, read = counts[f"bad_{name}"], counts[name]
        if bad > share * read:
            text = (
                f"{bad:,} of {read:,} {name} of the evaluation data cannot be used, more than max_bad_record_share "
                f"({share:g}): do not trust the metrics. What went wrong lists the first."
            )
            warnings.append(Text(text, "warning"))
    return warnings


def _metric_names(results: EvalResults) -> list[str]:
    """Return the names of the metrics of all samples."""
    return [name for name in results if "/" not in name and name != "num_samples"]


def _metric_tiles(context: Context) -> list[Tile]:
    try:
        results = context.evaluated.results
    except (Unavailable, UserError):
        return []
    tiles = []
    for name in _metric_names(results)[:_MOST_METRICS]:
        interval = results.intervals.get(name)
        note = f"[{interval[0]:.4f}, {interval[1]:.4f}]" if interval else results.undefined.get(name, "")
        tiles.append(Tile(name, f"{results[name]:.4f}" if results[name] == results[name] else "undefined", note))
    return [*tiles, Tile("samples evaluated", f"{int(results['num_samples']):,}", f"{context.eval_path}")]


def _training_tiles(context: Context) -> list[Tile]:
    lines = context.run.lines
    tiles = [Tile("step", f"{context.run.step:,}", _ended(context))] if context.run.step >= 0 else []
    trained = [line for line in lines if line["kind"] == "train"]
    if trained:
        last = trained[-1]
        if type(last.get("loss")) in (int, float):
            tiles.append(Tile("last training loss", f"{last['loss']:.4f}", f"step {last['step']:,}"))
    return tiles


def _ended(context: Context) -> str:
    ends = [line for line in context.run.lines if line["kind"] == END]
    return str(ends[-1].get("reason", "")) if ends else ""
