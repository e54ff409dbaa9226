"""Metrics of the evaluation data with intervals, those of other models beside them, and slices."""

from __future__ import annotations

import math
from collections.abc import Sequence

from easyrec_mm.config.best import BIGGER_IS_BETTER
from easyrec_mm.config.evaluation import NamedMetric, named_metrics
from easyrec_mm.evaluation.estimates import Difference
from easyrec_mm.evaluation.summary import EvalResults
from easyrec_mm.report.compared import Comparison, comparisons
from easyrec_mm.report.context import Context
from easyrec_mm.report.evaluated import Evaluated
from easyrec_mm.report.figures import QUIET, colour, new_figure
from easyrec_mm.report.section import Cell, Choice, Part, Plot, Table, Text, Unavailable, by_task

# Slices with fewer clusters than this have intervals that are too narrow, as in evaluation/report.py.
_FEW_CLUSTERS = 30


def metrics(context: Context) -> Sequence[Part]:
    """Return the metrics of all samples, and the differences to other models."""
    evaluated, others = context.evaluated, comparisons(context)
    options = {task.name: [_table(context, evaluated, others, task.name)] for task in evaluated.plan.tasks}
    notes: list[Part] = [Text(other.reason, "warning") for other in others if other.reason]
    return [*notes, *by_task({name: parts for name, parts in options.items() if parts}), *_how(evaluated, others)]


def _how(evaluated: Evaluated, others: Sequence[Comparison]) -> list[Part]:
    """Return how intervals were computed."""
    how, parts = evaluated.results.confidence, []
    if how:
        text = (
            f"{how['level']:.0%} intervals from {how['num_replicates']} Poisson bootstrap replicates of "
            f"{how['num_clusters']:,} clusters by {how['clusters']}; samples count equally, as in easyrec-mm eval."
        )
        parts.append(Text(text, "note"))
        if how["num_clusters"] < _FEW_CLUSTERS:
            parts.append(Text(f"{how['num_clusters']} clusters are few; the intervals are too narrow.", "warning"))
    if any(other.differences for other in others):
        text = (
            "A difference is the first model minus the other one. Both see the same replicates, so that its interval "
            "is much narrower than those of the two metrics. Coloured: the interval excludes 0."
        )
        parts.append(Text(text, "note"))
    return [*parts]


def _table(context: Context, evaluated: Evaluated, others: Sequence[Comparison], task: str) -> Part:
    kinds = {metric.name: metric.kind for metric in named_metrics(context.run.pipeline.config, context.schema)}
    names = [m.name for m in named_metrics(context.run.pipeline.config, context.schema) if m.task == task]
    columns = ["metric", context.run.name, "interval"]
    for other in others:
        columns += [other.run.name, f"{context.run.name} - {other.run.name}", "interval", "p"]
    rows = []
    for name in names:
        row = [Cell(name, name), *_value_cells(evaluated.results, name)]
        for other in others:
            results = other.evaluated.results if other.evaluated and name in other.shared else EvalResults()
            row.append(_value_cells(results, name)[0])
            row += difference_cells(other.differences.get(name), kinds[name])
        rows.append(row)
    return Table(columns, rows)


def _value_cells(results: EvalResults, name: str) -> list[Cell]:
    """Return cells with the value of a result, and with its interval."""
    value = results.get(name)
    if value is None:
        return [Cell("", None), Cell("", None)]
    if not math.isfinite(value):
        return [Cell("undefined", None, "quiet"), Cell(results.undefined.get(name, ""), None, "quiet")]
    limits = results.intervals.get(name)
    if limits is None:
        return [Cell(f"{value:.6g}", value, "number"), Cell(results.no_intervals.get(name, ""), None, "quiet")]
    low, high = limits
    return [Cell(f"{value:.6g}", value, "number"), Cell(f"[{low:.4g}, {high:.4g}]", high - low, "number")]


def difference_cells(result: Difference | None, kind: str) -> list[Cell]:
    """Return cells with a difference, its interval, and its p-value, coloured if the interval excludes 0."""
    if result is None or not math.isfinite(result.value):
        return [Cell("", None), Cell(result.reason if result else "", None, "quiet"), Cell("", None)]
    colours = "number"
    bigger = BIGGER_IS_BETTER.get(kind)
    if not result.reason and bigger is not None and (result.low > 0 or result.high < 0):
        colours = "good" if (result.value > 0) == bigger else "bad"
    value = Cell(f"{result.value:+.4g}", result.value, colours)
    if result.reason:
        return [value, Cell(result.reason, None, "quiet"), Cell("", None)]
    interval = Cell(f"[{result.low:+.4g}, {result.high:+.4g}]", result.high - result.low, "number")
    return [value, interval, Cell(f"{result.p_value:.3g}", result.p_value, "number")]


def slices(context: Context) -> Sequence[Part]:
    """Return each metric by slice, as a plot and as a table."""
    evaluated, others = context.evaluated, comparisons(context)
    parts = [part for part in evaluated.summary.parts if part.suffix and part.num_samples]
    if not parts:
        raise Unavailable("The config has no eval_config.slices; see docs/metrics.md for what they may be.")
    suffixes = {part.suffix: (part.num_samples, part.num_clusters) for part in parts}
    options = {}
    for metric in named_metrics(context.run.pipeline.config, context.schema):
        if metric.name in evaluated.results:
            options[metric.name] = [
                _slice_plot(evaluated.results, metric.name, list(suffixes)),
                _slice_table(context, metric, suffixes, others),
            ]
    about = "The line marks the value over all samples. Intervals of slices of few clusters are too narrow."
    return [Text(about, "note"), Choice("metric", options)]


def _slice_plot(results: EvalResults, name: str, suffixes: list[str]) -> Part:
    figure = new_figure(name, "", height=90 + 24 * len(suffixes), margin={"l": 130})
    shown = [suffix for suffix in suffixes if math.isfinite(results.get(name + suffix, math.nan))][::-1]
    values = [results[name + suffix] for suffix in shown]
    limits = [results.intervals.get(name + suffix, (value, value)) for suffix, value in zip(shown, values, strict=True)]
    above = [high - value for (_, high), value in zip(limits, values, strict=True)]
    below = [value - low for (low, _), value in zip(limits, values, strict=True)]
    figure.add_scatter(
        x=values, y=[suffix[1:] for suffix in shown], mode="markers", marker={"color": colour(0), "size": 9}, name=name,
        error_x={"type": "data", "array": above, "arrayminus": below, "color": colour(0), "thickness": 1.5},
    )  # fmt: skip
    if math.isfinite(results[name]):
        figure.add_vline(x=results[name], line={"color": QUIET, "dash": "dash", "width": 1})
    figure.update_layout(showlegend=False)
    figure.update_yaxes(type="category")
    return Plot(figure, f"{name} by slice", wide=True)


def _slice_table(
    context: Context, metric: NamedMetric, suffixes: dict[str, tuple[int, int]], others: Sequence[Comparison]
) -> Part:
    results, name = context.evaluated.results, metric.name
    others = [other for other in others if other.differences]
    columns = ["slice by", "value", "samples", "clusters", name, "interval"]
    for other in others:
        columns += [f"{context.run.name} - {other.run.name}", "interval", "p"]
    rows = []
    for suffix, (num_samples, num_clusters) in suffixes.items():
        slicer, _, value = suffix[1:].partition("=")
        counts = [Cell(f"{num_samples:,}", num_samples, "number"), Cell(f"{num_clusters:,}", num_clusters, "number")]
        row = [Cell(slicer, slicer), Cell(value, value), *counts, *_value_cells(results, name + suffix)]
        for other in others:
            row += difference_cells(other.differences.get(name + suffix), metric.kind)
        rows.append(row)
    return Table(columns, rows)
