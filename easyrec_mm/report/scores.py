"""Histograms of predictions, by label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import plotly.graph_objects as go
from scipy.special import expit, logit

from easyrec_mm.evaluation.metrics import SMALLEST_PROBABILITY
from easyrec_mm.evaluation.views import View
from easyrec_mm.report.context import Context
from easyrec_mm.report.figures import Floats, colour, new_figure, soft
from easyrec_mm.report.section import Part, Plot, by_task, tried
from easyrec_mm.schema import Task

_NUM_BINS = 60
_FEW_MARKS = 5
# Probabilities at which the axis of logits has marks.
_MARKS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 0.99, 0.999, 0.9999)


def histograms(context: Context) -> Sequence[Part]:
    """Return the histogram of each task's predictions."""
    return by_task({task.name: tried(_of_task, context, task) for task in context.evaluated.plan.tasks})


def _of_task(context: Context, task: Task) -> Sequence[Part]:
    view = context.evaluated.view(task)
    if task.activation == "binary":
        return [_of_classes(view)]
    return [_of_values(view), _errors(view)]


def _of_classes(view: View) -> Part:
    low, high = _limits(_to_logits(chunk.score) for chunk in view.in_order())
    edges = np.linspace(low, high, _NUM_BINS + 1)
    counts = np.zeros((2, _NUM_BINS))
    for chunk in view.in_order():
        scores = _to_logits(chunk.score)
        for label in (0, 1):
            counts[label] += np.histogram(scores[(chunk.label > 0.5) == label], edges)[0]
    figure = new_figure("prediction (axis of logits)", "share of the samples with this label", 400, barmode="overlay")
    centres = (edges[:-1] + edges[1:]) / 2
    for label, name in ((0, "label 0"), (1, "label 1")):
        share = counts[label] / max(counts[label].sum(), 1)
        text = [f"{a:.4g} to {b:.4g}: {n:,.0f} samples" for a, b, n in zip(*_bins(edges), counts[label], strict=True)]
        figure.add_bar(
            x=centres, y=share, width=edges[1] - edges[0], name=f"{name}: {counts[label].sum():,.0f} samples",
            marker={"color": soft(label), "line": {"color": colour(label), "width": 1}}, hovertext=text,
            hoverinfo="text",
        )  # fmt: skip
    marks = _marks(low, high)
    figure.update_xaxes(tickvals=[float(logit(mark)) for mark in marks], ticktext=[f"{mark:g}" for mark in marks])
    about = (
        "The less the two overlap, the better the model tells them apart. A high peak: many samples look alike to it."
    )
    return Plot(figure, "Predictions by label", about, wide=True)


def _marks(low: float, high: float) -> list[float]:
    """Return probabilities for the marks of an axis of logits with these ends."""
    marks = [mark for mark in _MARKS if low <= logit(mark) <= high]
    if len(marks) >= _FEW_MARKS:
        return marks
    return sorted({float(f"{expit(place):.2g}") for place in np.linspace(low, high, _FEW_MARKS + 2)[1:-1]})


def _bins(edges: Floats) -> tuple[Floats, Floats]:
    return expit(edges[:-1]), expit(edges[1:])


def _of_values(view: View) -> Part:
    columns = [(chunk.label, chunk.score) for chunk in view.in_order()]
    low, high = _limits(np.concatenate(pair) for pair in columns)
    edges = np.linspace(low, high, _NUM_BINS + 1)
    figure = new_figure("value", "samples", 400, barmode="overlay")
    for place, name in enumerate(("label", "prediction")):
        counts = np.sum([np.histogram(pair[place], edges)[0] for pair in columns], axis=0)
        _add_bars(figure, edges, counts, name, place)
    return Plot(figure, "Labels and predictions", "Predictions of a mean scatter less than the labels do.")


def _errors(view: View) -> Part:
    low, high = _limits(chunk.score - chunk.label for chunk in view.in_order())
    edges = np.linspace(low, high, _NUM_BINS + 1)
    counts = np.sum([np.histogram(chunk.score - chunk.label, edges)[0] for chunk in view.in_order()], axis=0)
    figure = new_figure("prediction - label", "samples", 400)
    _add_bars(figure, edges, counts, "errors", 0)
    return Plot(figure, "Errors", "A peak beside 0 is a bias.")


def _add_bars(figure: go.Figure, edges: Floats, counts: Floats, name: str, number: int) -> None:
    figure.add_bar(
        x=(edges[:-1] + edges[1:]) / 2, y=counts, width=edges[1] - edges[0], name=name,
        marker={"color": soft(number), "line": {"color": colour(number), "width": 1}},
    )  # fmt: skip


def _to_logits(scores: Floats) -> Floats:
    return np.asarray(logit(np.clip(scores, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)))


def _limits(values: Iterable[Floats]) -> tuple[float, float]:
    """Return the least and the greatest of all values; of equal ones, limits around them."""
    pairs = [(part.min(), part.max()) for part in values]
    low, high = float(min(pair[0] for pair in pairs)), float(max(pair[1] for pair in pairs))
    return (low, high) if high > low else (low - 0.5, high + 0.5)
