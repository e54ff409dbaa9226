"""What metrics lose when a part of the input is replaced, as plots and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from easyrec_mm.config.evaluation import named_metrics
from easyrec_mm.evaluation.estimates import Difference
from easyrec_mm.explain.ablation import Ablation, Change, Pictures, ablate
from easyrec_mm.explain.pictures import other_contents
from easyrec_mm.explain.samples import explained_plan
from easyrec_mm.report.context import Context
from easyrec_mm.report.figures import QUIET, colour, new_figure
from easyrec_mm.report.section import Cell, Choice, Part, Plot, Table, Text, Unavailable, by_task

# Parts of the input in a plot; the table has all.
_MOST_SHOWN = 30
# Differences that are differences of rounding.
_ROUNDING = 1e-12


def influence(context: Context) -> Sequence[Part]:
    """Return how each metric changes without the picture and without each feature."""
    explained = context.explained
    read = explained.read
    if len(read.samples) < 2:
        raise Unavailable("The evaluation data have fewer than two samples.")
    config = context.run.pipeline.config
    plan = explained_plan(config, context.schema)
    pictures = None
    if context.schema.has_item_vector:
        made = explained.pictures
        pictures = Pictures(made.vectors[0], made.has_picture)
        if context.schema.contents:
            others = other_contents(read.items, context.schema)
            pictures = Pictures(made.vectors[0], made.has_picture, made.images, others, made.has_other)
    context.say(f"replacing each part of the input of {len(read.samples):,} samples")
    result = ablate(explained.rec, read.samples, pictures, plan)
    metrics = [metric for metric in named_metrics(config, context.schema) if metric.name in result.values]
    if not metrics:
        raise Unavailable("The config has no metrics: set metrics_set of the towers or of eval_config.")
    tasks = {metric.task: [other.name for other in metrics if other.task == metric.task] for metric in metrics}
    options = {task: _of_task(result, task, names) for task, names in tasks.items()}
    return [*_about(result, read.num_samples, context), *by_task(options)]


def _about(result: Ablation, num_all: int, context: Context) -> list[Part]:
    limit = "" if result.num_samples == num_all else f", a choice of whole clusters out of {num_all:,} samples"
    text = (
        "Each metric with a part of the input replaced, minus the metric as it is: the more it changes, the more this "
        "model uses the part. A feature gets the values of other samples, by a permutation of all; the picture's "
        "vector becomes the mean of all, or that of another item. A model that is trained without the part may do "
        "better, because it can use others in its place."
    )
    if context.schema.contents:
        text += " Another content of an item becomes empty, or that of another item; its vector is computed again."
    repeats = f", mean of {result.num_repeats} permutations" if result.num_repeats > 1 else ""
    how = (
        f"{result.num_samples:,} samples{limit}{repeats}. Intervals ({result.level:.0%}) are paired, by "
        f"{result.num_replicates} bootstrap replicates of {result.num_clusters:,} clusters ({result.clusters})."
    )
    parts: list[Part] = [Text(text, "note"), Text(how, "note")]
    if not context.schema.uses_image:
        parts.append(Text("The model takes no pictures, so features alone are replaced.", "note"))
    elif not any(change.kind == "picture" for change in result.changes):
        parts.append(Text("Fewer than two items have a picture that can be loaded, so none is replaced.", "note"))
    return parts


def _of_task(result: Ablation, task: str, names: list[str]) -> list[Part]:
    plots = {_short(name, task): [_plot(result, name, _short(name, task))] for name in names}
    parts: list[Part] = [Choice(f"metric of {task}", plots)] if len(plots) > 1 else [*next(iter(plots.values()))]
    return [*parts, _table(result, task, names)]


def _plot(result: Ablation, name: str, title: str) -> Plot:
    changes = sorted(result.changes, key=lambda change: _size(change.differences[name]))[-_MOST_SHOWN:]
    figure = new_figure(f"change of {title} (now {result.values[name]:.4g})", "", 90 + 24 * len(changes))
    for number, kind in enumerate(("picture", "feature", "content")):
        of_kind = [change for change in changes if change.kind == kind]
        if of_kind:
            _add_changes(figure, of_kind, name, kind, number)
    figure.add_vline(0, line={"color": QUIET, "width": 1})
    figure.update_yaxes(categoryorder="array", categoryarray=[change.name for change in changes], type="category")
    left_out = len(result.changes) - len(changes)
    about = f"The {len(changes)} largest; the table below has all." if left_out else ""
    return Plot(figure, title, about, wide=True)


def _add_changes(figure: go.Figure, changes: list[Change], name: str, kind: str, number: int) -> None:
    of_metric = [change.differences[name] for change in changes]
    figure.add_scatter(
        x=[difference.value for difference in of_metric],
        y=[change.name for change in changes],
        mode="markers",
        name=kind,
        marker={"color": colour(number), "size": 9},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [_length(d.high - d.value) for d in of_metric],
            "arrayminus": [_length(d.value - d.low) for d in of_metric],
            "color": colour(number),
            "thickness": 1.5,
            "width": 4,
        },
    )


def _table(result: Ablation, task: str, names: list[str]) -> Table:
    rows = [
        [Cell(change.name, change.name, "number"), *[_cell(change.differences[name]) for name in names]]
        for change in sorted(result.changes, key=lambda change: -_size(change.differences[names[0]]))
    ]
    return Table(["replaced", *[_short(name, task) for name in names]], rows, f"Changes of the metrics of {task}")


def _cell(difference: Difference) -> Cell:
    if math.isnan(difference.value):
        return Cell("undefined", None, "quiet")
    if math.isnan(difference.low):
        return Cell(f"{difference.value:+.4g}", difference.value, "number quiet")
    value, low, high = (0.0 if abs(v) < _ROUNDING else v for v in (difference.value, difference.low, difference.high))
    is_sure = low > 0 or high < 0
    return Cell(f"{value:+.4g} [{low:+.2g}, {high:+.2g}]", value, "number" if is_sure else "number quiet")


def _size(difference: Difference) -> float:
    return 0.0 if math.isnan(difference.value) else abs(difference.value)


def _length(value: float) -> float:
    return 0.0 if math.isnan(value) else max(0.0, value)


def _short(name: str, task: str) -> str:
    return name.removesuffix(f"_{task}")
