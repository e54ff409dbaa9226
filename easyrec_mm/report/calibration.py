"""Calibration of probabilities: as they are, and after isotonic recalibration on other samples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from sklearn.isotonic import IsotonicRegression

from easyrec_mm.errors import UserError
from easyrec_mm.evaluation.calibration import CalibrationCurve
from easyrec_mm.evaluation.estimates import Estimate, difference, interval
from easyrec_mm.evaluation.metrics import ECE, Calibration, LogLoss, NormalizedEntropy, SumMetric
from easyrec_mm.evaluation.plan import label_column, score_column
from easyrec_mm.evaluation.rows import Rows
from easyrec_mm.evaluation.summary import CLUSTER
from easyrec_mm.evaluation.views import CHUNK_NUMBERS, Floats, View
from easyrec_mm.evaluation.weights import ClusterWeights
from easyrec_mm.report.context import Context
from easyrec_mm.report.evaluated import Evaluated
from easyrec_mm.report.figures import add_line, add_reference, new_figure
from easyrec_mm.report.metrics import difference_cells
from easyrec_mm.report.section import Cell, Part, Plot, Table, Text, Unavailable, by_task, tried
from easyrec_mm.schema import Task
from easyrec_mm.stable_hash import Hashes, mix

_NUM_BINS = 20
NUM_FOLDS = 5
# Axes are logarithmic if the greatest prediction is more than so many times the least.
_LOG_FROM = 50
# More samples would change no digit that is shown.
_MAX_FITTED = 2_000_000
METRICS: dict[str, SumMetric] = {
    "log_loss": LogLoss(), "normalized_entropy": NormalizedEntropy(), "calibration": Calibration(), "ece": ECE(),
}  # fmt: skip
_BEFORE, _AFTER = "score", "recalibrated"


@dataclass(frozen=True)
class Recalibrated:
    """Samples of a task: the columns of Rows "label", "score", "recalibrated" and "cluster"."""

    rows: Rows
    is_sample: bool

    def view(self, score: str) -> View:
        """Return the samples with one of the two scores."""
        return View(self.rows, "label", score, CLUSTER)


def calibration(context: Context) -> Sequence[Part]:
    """Return reliability before and after recalibration, of each task with probabilities of a click."""
    return by_task({task.name: tried(_of_task, context, task) for task in context.evaluated.plan.tasks})


def recalibrated(evaluated: Evaluated, task: Task) -> Recalibrated:
    """Return predictions that isotonic regression has corrected, each fitted to the samples of other clusters.

    The regression would fit the noise of the samples it is fitted to, and seem better than it is.
    """
    columns = (label_column(task), score_column(task), CLUSTER)
    label, score, cluster = (evaluated.rows.column(name) for name in columns)
    is_sample = len(label) > _MAX_FITTED
    if is_sample:
        chosen = evaluated.choose(_MAX_FITTED)
        label, score, cluster = label[chosen], score[chosen], cluster[chosen]
    if len(np.unique(label > 0.5)) < 2:
        raise Unavailable("All labels are of one class: there is nothing to calibrate.")
    fold = folds_of(cluster)
    corrected = np.array(score, np.float64)
    for number in np.unique(fold):
        is_other = fold != number
        fit = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(score[is_other], label[is_other])
        corrected[~is_other] = fit.predict(score[~is_other])
    rows = Rows()
    rows.append({"label": label, _BEFORE: score, _AFTER: corrected.astype(np.float32), CLUSTER: cluster})
    return Recalibrated(rows, is_sample)


def folds_of(cluster: Hashes) -> np.ndarray:
    """Return the fold of each sample: all samples of a cluster are in one, unless there are too few clusters."""
    has_clusters = len(np.unique(cluster)) >= 2 * NUM_FOLDS
    units = cluster if has_clusters else np.arange(len(cluster), dtype=np.uint64)
    return np.asarray(mix(units) % np.uint64(NUM_FOLDS), np.int64)


def _of_task(context: Context, task: Task) -> Sequence[Part]:
    if task.activation != "binary":
        raise Unavailable(f"'{task.name}' predicts no probability of a click: there is nothing to calibrate.")
    evaluated = context.evaluated
    result = recalibrated(evaluated, task)
    about = (
        f"{_NUM_BINS} bins of equally many samples; bars are 95% Wilson intervals. Above the line, the model predicts "
        "too low; below it, too high."
    )
    before = Plot(_plot([(context.run.name, result.view(_BEFORE), 0), *_others(context, task)]), "As predicted", about)
    name = f"{context.run.name}, recalibrated"
    after = Plot(_plot([(name, result.view(_AFTER), 3)]), "After isotonic recalibration", "The same, on its own axes.")
    sample = f" Of {_MAX_FITTED:,} random samples." if result.is_sample else ""
    note = (
        f"Isotonic regression, each sample corrected by a fit to the other {NUM_FOLDS - 1} of {NUM_FOLDS} parts of the "
        "evaluation data. If this gains much, recalibrate before predictions are used as probabilities, as in bids; "
        f"the order of samples hardly changes.{sample}"
    )
    return [before, after, _table(evaluated, result), Text(note, "note")]


def _plot(curves: Sequence[tuple[str, View, int]]) -> go.Figure:
    """Return the calibration curves of some views, each with a name and the number of its colour."""
    figure = new_figure("mean prediction", "mean label", 420)
    points = [_add_curve(figure, view, name, number) for name, view, number in curves]
    predictions, rates = (np.concatenate(values) for values in zip(*points, strict=True))
    low, high = float(predictions.min()), float(predictions.max())
    add_reference(figure, [low, high], [low, high], "perfect")
    # A rate of 0 has no place on a logarithmic axis.
    if high > _LOG_FROM * low > 0 and rates.min() > 0:
        figure.update_xaxes(type="log")
        figure.update_yaxes(type="log")
    return figure


def _add_curve(figure: go.Figure, view: View, name: str, number: int) -> tuple[Floats, Floats]:
    """Add a calibration curve; return the mean predictions and mean labels of its bins."""
    bins = CalibrationCurve(_NUM_BINS).curve(view)
    counts = np.array([each["count"] for each in bins], np.float64)
    rates = np.array([each["mean_label"] for each in bins])
    predictions = np.array([each["mean_prediction"] for each in bins])
    low, high = wilson_interval(rates, counts)
    errors: dict[str, Any] = {"type": "data", "array": high - rates, "arrayminus": rates - low, "thickness": 1}
    triples = zip(rates, counts, predictions, strict=True)
    text = [f"{rate:.4g} of {count:,.0f} samples, predicted {mean:.4g}" for rate, count, mean in triples]
    shown: dict[str, Any] = {"mode": "lines+markers", "error_y": errors, "hovertext": text, "hoverinfo": "text+name"}
    add_line(figure, predictions, rates, name, number, **shown)
    return predictions, rates


def wilson_interval(rates: Floats, counts: Floats, z: float = 1.959964) -> tuple[Floats, Floats]:
    """Return Wilson's 95% interval of binomial rates (Wilson, JASA 1927)."""
    centre = (rates + z**2 / (2 * counts)) / (1 + z**2 / counts)
    half = z / (1 + z**2 / counts) * np.sqrt(rates * (1 - rates) / counts + z**2 / (4 * counts**2))
    return np.minimum(centre - half, rates), np.maximum(centre + half, rates)


def _others(context: Context, task: Task) -> list[tuple[str, View, int]]:
    """Return the views of the other models that have the task; the section of metrics says why one is missing."""
    views = []
    for number, run in enumerate(context.runs[1:], 1):
        with suppress(UserError, Unavailable):
            evaluated = context.evaluated_of(run)
            if task in evaluated.plan.tasks:
                views.append((run.name, evaluated.view(task), number))
    return views


def _table(evaluated: Evaluated, result: Recalibrated) -> Part:
    bootstrap = evaluated.plan.bootstrap
    weights = ClusterWeights(evaluated.plan.weights.num_replicates, bootstrap.seed)
    estimates = estimates_of(result.rows, weights)
    before, after = estimates[_BEFORE], estimates[_AFTER]
    rows = []
    for name in METRICS:
        row = [Cell(name, name)]
        for estimate in (before[name], after[name]):
            limits = interval(estimate, bootstrap.level)
            text = f"[{limits[0]:.4g}, {limits[1]:.4g}]" if limits else ""
            row += [Cell(f"{estimate.value:.6g}", estimate.value, "number"), Cell(text, None, "number")]
        change = difference(after[name], before[name], bootstrap.level)
        rows.append([*row, *difference_cells(change, name)[:2]])
    return Table(["metric", "as predicted", "interval", "recalibrated", "interval", "change", "interval"], rows)


def estimates_of(rows: Rows, weights: ClusterWeights) -> dict[str, dict[str, Estimate]]:
    """Return score -> metric -> its estimate, before and after recalibration.

    All are means over the same weighted samples, whose weights take most of the time: they are drawn once.
    """
    clusters = np.unique(rows.column(CLUSTER))
    weights.prepare(clusters)
    sums: dict[str, Any] = {_BEFORE: 0.0, _AFTER: 0.0}
    for chunk in rows.chunks(["label", _BEFORE, _AFTER, CLUSTER], max(1, CHUNK_NUMBERS // weights.num_columns)):
        drawn = weights.of(chunk[CLUSTER]).astype(np.float64)  # [N, W]
        label = chunk["label"].astype(np.float64)
        for score in sums:
            terms = [metric.terms(label, chunk[score].astype(np.float64)) for metric in METRICS.values()]
            sums[score] = sums[score] + np.concatenate([*terms, np.ones((1, len(label)))]) @ drawn
    return {score: _estimates(of_score, len(clusters)) for score, of_score in sums.items()}


def _estimates(sums: Floats, num_clusters: int) -> dict[str, Estimate]:
    """Return the estimates of the metrics from the sums `[terms of all + 1, W]` of their terms and of the weights."""
    one = np.ones(1)
    counts = [len(metric.terms(one, one)) for metric in METRICS.values()]
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.split(sums[:-1] / sums[-1], np.cumsum(counts)[:-1])
        values = [metric.of_means(mean) for metric, mean in zip(METRICS.values(), means, strict=True)]
    return {
        name: Estimate(float(value[0]), np.where(np.isfinite(value[1:]), value[1:], np.nan), "", num_clusters)
        for name, value in zip(METRICS, values, strict=True)
    }
