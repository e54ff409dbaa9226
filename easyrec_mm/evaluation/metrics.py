"""The base class of all metrics, and the metrics that are functions of means over the rows.

A metric is computed for all columns of weights at once: column 0 gives its value, the other columns give bootstrap
replicates, so that one formula serves both. Every value is exact over the whole evaluation set: the division into
batches changes at most the last digits of float64 sums.

This module does not know towers, configs or TensorFlow. An undefined metric is NaN, and `undefined` says why.

Legend: N rows, C classes, K terms, B replicates, W = 1 + B columns of weights.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from easyrec_mm.errors import ConfigError, DataError
from easyrec_mm.evaluation.estimates import Estimate
from easyrec_mm.evaluation.rows import Rows
from easyrec_mm.evaluation.views import Floats, Undefined, View
from easyrec_mm.stable_hash import mix

Array = npt.NDArray[Any]

ONE_CLASS = "all labels are of one class"
# A float32 sigmoid is exactly 1 for logits above about 17. With this limit a wrong 1 costs 16.1 nats, not infinity.
SMALLEST_PROBABILITY = 1e-7


class Metric(ABC):
    """A number computed from labels and predictions."""

    undefined: str = ""  # why the value is NaN, if it is

    @abstractmethod
    def values(self, view: View) -> Floats:
        """Compute the metric for each column of weights, float64 `[W]`; NaN where undefined.

        Raises:
          Undefined: if the metric is undefined for the data themselves, not only for a replicate.
        """

    def estimate(self, view: View) -> Estimate:
        """Return the metric over a view with its replicates; the caller has to set the number of clusters."""
        try:
            if not any(True for _ in view.in_order()):
                raise Undefined("there are no samples")
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                values = self.values(view)
        except Undefined as error:
            return Estimate(math.nan, np.full(view.weights.num_replicates, math.nan), str(error))
        reason = "" if math.isfinite(values[0]) else self.undefined or "it is not a finite number"
        # An interval cannot be interpolated between infinite replicates.
        replicates = np.where(np.isfinite(values[1:]), values[1:], math.nan)
        return Estimate(float(values[0]), replicates, reason)


class SumMetric(Metric):
    """A metric that is a function of K means over the rows."""

    takes_classes = False  # whether predictions may be [N, C]

    def values(self, view: View) -> Floats:
        """See Metric.values."""
        totals: Floats | float = 0.0
        for chunk in view.in_order():
            terms = self.terms(chunk.label, chunk.score)  # [K, N]
            terms = np.concatenate([terms, np.ones((1, len(chunk.label)))])
            totals = totals + weighted_sums(terms, view.weights.of(chunk.cluster))
        sums = np.asarray(totals)  # [K + 1, W]
        result: Floats = self.of_means(sums[:-1] / sums[-1])
        return result

    @abstractmethod
    def terms(self, labels: Floats, predictions: Floats) -> Floats:
        """Return the terms to average, float64 `[K, N]`, for labels `[N]` and predictions `[N]` or `[N, C]`."""

    def of_means(self, means: Floats) -> Floats:
        """Return the metric `[W]` computed from the means `[K, W]`."""
        result: Floats = means[0]
        return result


def weighted_sums(terms: Floats, weights: npt.NDArray[np.uint8]) -> Floats:
    """Return the sums `[K, W]` of terms `[K, N]`, weighted by `[N, W]`."""
    if weights.shape[1] == 1:
        alone: Floats = terms.sum(axis=1, keepdims=True)
        return alone
    sums: Floats = terms @ weights.astype(np.float64)
    # Summed as without replicates, because another order of summation would change the last digits of the value.
    sums[:, 0] = terms.sum(axis=1)
    return sums


class MeanOfTerms(SumMetric):
    """The mean of a column that already contains the terms of a metric, as for multiclass tasks."""

    def terms(self, labels: Floats, predictions: Floats) -> Floats:
        """See SumMetric.terms."""
        return predictions[None]


class LogLoss(SumMetric):
    """Mean cross entropy in nats: -y ln p - (1 - y) ln(1 - p), soft labels allowed, or -ln p[y] for class indices.

    Probabilities are clipped to [1e-7, 1 - 1e-7].
    """

    takes_classes = True

    def terms(self, labels: Floats, predictions: Floats) -> Floats:
        """See SumMetric.terms."""
        if predictions.ndim == 2:
            has_nan = np.isnan(predictions).any(axis=1)
            predictions = predictions[np.arange(len(labels)), _class_indices(labels, predictions.shape[1])]  # [N]
            predictions, labels = np.where(has_nan, np.nan, predictions), np.ones_like(labels)
        predictions = np.clip(predictions, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
        losses: Floats = -labels * np.log(predictions) - (1 - labels) * np.log1p(-predictions)
        return losses[None]


def entropy(rate: Floats) -> Floats:
    """Return the entropy in nats of labels with mean `rate`; NaN for 0 and 1."""
    rate = np.where((rate > 0) & (rate < 1), rate, np.nan)
    result: Floats = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return result


class NormalizedEntropy(LogLoss):
    """Log loss divided by the entropy of the mean label (He et al., ADKDD 2014, section 2).

    Predicting the mean label gives 1. NaN when the mean label is 0 or 1, because its entropy is then 0.
    """

    undefined = ONE_CLASS
    takes_classes = False

    def terms(self, labels: Floats, predictions: Floats) -> Floats:
        """See SumMetric.terms."""
        return np.concatenate([super().terms(labels, predictions), labels[None]])

    def of_means(self, means: Floats) -> Floats:
        """See SumMetric.of_means."""
        result: Floats = means[0] / entropy(means[1])
        return result


class Calibration(SumMetric):
    """Mean prediction divided by mean label (He et al., ADKDD 2014, section 2); NaN when the mean label is 0."""

    undefined = "the mean label is 0"

    def terms(self, labels: Floats, predictions: Floats) -> Floats:
        """See SumMetric.terms."""
        return np.stack([predictions, labels])

    def of_means(self, means: Floats) -> Floats:
        """See SumMetric.of_means."""
        result: Floats = means[0] / np.where(means[1] == 0, np.nan, means[1])
        return result


class ECE(SumMetric):
    """Expected calibration error (Guo et al., ICML 2017, eq. 3) of the positive class, over equal-width bins of [0, 1].

    sum_b n_b / N |mean prediction_b - mean label_b|. A bin includes its lower edge; the last also includes 1.
    """

    def __init__(self, num_bins: int = 10) -> None:
        if num_bins < 1:
            raise ConfigError(f"ece.num_bins: {num_bins} bins are too few; give 1 or more")
        self.num_bins = num_bins

    def terms(self, labels: Floats, predictions: Floats) -> Floats:
        """See SumMetric.terms."""
        bins = np.clip(predictions * self.num_bins, 0, self.num_bins - 1).astype(np.int64)  # [N]
        result = np.zeros((self.num_bins, len(labels)))
        result[bins, np.arange(len(labels))] = predictions - labels
        return result

    def of_means(self, means: Floats) -> Floats:
        """See SumMetric.of_means."""
        # n_b / N |mean prediction_b - mean label_b| = |sum over b of (prediction - label)| / N: no counts needed.
        result: Floats = np.abs(means).sum(axis=0)
        return result


class MeanSquaredError(SumMetric):
    """Mean of (prediction - label)^2."""

    def terms(self, labels: Floats, predictions: Floats) -> Floats:
        """See SumMetric.terms."""
        result: Floats = np.square(predictions - labels)[None]
        return result


class RootMeanSquaredError(MeanSquaredError):
    """Square root of the mean of (prediction - label)^2, in the unit of the label."""

    def of_means(self, means: Floats) -> Floats:
        """See SumMetric.of_means."""
        result: Floats = np.sqrt(means[0])
        return result


class MeanAbsoluteError(SumMetric):
    """Mean of |prediction - label|, in the unit of the label."""

    def terms(self, labels: Floats, predictions: Floats) -> Floats:
        """See SumMetric.terms."""
        return np.abs(predictions - labels)[None]


class Accuracy(SumMetric):
    """Share of samples whose class is the label: p >= 0.5 against label > 0.5, or the most probable of C classes."""

    takes_classes = True

    def terms(self, labels: Floats, predictions: Floats) -> Floats:
        """See SumMetric.terms."""
        if predictions.ndim == 2:
            correct = np.equal(predictions.argmax(axis=1), _class_indices(labels, predictions.shape[1]))
            return np.where(np.isnan(predictions).any(axis=1), np.nan, correct)[None]
        return np.equal(predictions >= 0.5, labels > 0.5).astype(np.float64)[None]


def _class_indices(labels: Floats, num_classes: int) -> npt.NDArray[np.int64]:
    """Convert labels [N] to int64 [N] and check each: NumPy would take -1 for the last class and cut 1.5 to 1."""
    indices = labels.astype(np.int64)
    wrong = (indices != labels) | (indices < 0) | (indices >= num_classes)
    if wrong.any():
        raise DataError(
            f"label {labels[wrong][0]:g} is not a valid class index; give whole numbers from 0 to {num_classes - 1}"
        )
    return indices


def metric_value(metric: Metric, labels: Array, predictions: Array, groups: Array | None = None) -> float:
    """Compute a metric of arrays in memory: labels `[N]`, predictions `[N]`, or `[N, C]` for log loss and accuracy.

    Args:
      metric: the metric to compute.
      labels: 0/1, soft labels in [0, 1], values, or class indices.
      predictions: probabilities or values.
      groups: uint64 `[N]`, the user or session of each sample, for metrics within users or sessions.

    Returns:
      The value; NaN if undefined.

    Raises:
      ValueError: if shapes disagree, which NumPy would silently broadcast.
      DataError: for a label that is not a class index.
    """
    labels, predictions = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    takes_classes = isinstance(metric, SumMetric) and metric.takes_classes
    if (
        labels.ndim != 1
        or predictions.ndim not in ((1, 2) if takes_classes else (1,))
        or len(labels) != len(predictions)
    ):
        allowed = "[N] or [N, C]" if takes_classes else "[N]"
        shapes = f"labels {labels.shape} and predictions {predictions.shape}"
        raise ValueError(f"{type(metric).__name__}: {shapes}; give labels [N] and predictions {allowed}")
    if isinstance(metric, SumMetric) and predictions.ndim == 2:
        predictions, metric = metric.terms(labels, predictions)[0], MeanOfTerms()
    clusters = mix(np.arange(len(labels), dtype=np.uint64))
    groups = np.zeros(len(labels), np.uint64) if groups is None else groups
    rows = Rows()
    rows.append({"label": labels, "score": predictions, "group": groups, "cluster": clusters})
    return metric.estimate(View(rows, "label", "score", group="group")).value
