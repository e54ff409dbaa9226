"""Metrics that are a function of means over the rows, and what all metrics have in common.

A metric is computed for all columns of weights at once: column 0 is its value, the others are bootstrap replicates, so
that there is one formula for both. Every value is exact over the whole evaluation set: how it was cut into batches
changes no more than the last digits of float64 sums.

Refuses: to know towers, configs or TensorFlow; to guess. What is not defined is NaN, and `undefined` says why.

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
# A float32 sigmoid is exactly 1 from a logit of about 17 on: where it is wrong, it costs 16.1 nats and not infinity.
SMALLEST_PROBABILITY = 1e-7


class Metric(ABC):
    """A number about labels and predictions."""

    undefined: str = ""  # why the value is NaN, when it is

    @abstractmethod
    def values(self, view: View) -> Floats:
        """The metric of each column of weights, float64 `[W]`; NaN where it is not defined.

        Raises:
          Undefined: if it is not defined for the data themselves.
        """

    def estimate(self, view: View) -> Estimate:
        """The metric over a view, with its replicates; its number of clusters is left to the caller."""
        try:
            if not any(True for _ in view.in_order()):
                raise Undefined("there are no samples")
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                values = self.values(view)
        except Undefined as error:
            return Estimate(math.nan, np.full(view.weights.num_replicates, math.nan), str(error))
        reason = "" if math.isfinite(values[0]) else self.undefined or "it is not a finite number"
        return Estimate(float(values[0]), values[1:], reason)


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
        """What is averaged, float64 `[K, N]`, of labels `[N]` and predictions `[N]` or `[N, C]`."""

    def of_means(self, means: Floats) -> Floats:
        """The metric `[W]` from the means `[K, W]`."""
        result: Floats = means[0]
        return result


def weighted_sums(terms: Floats, weights: npt.NDArray[np.uint8]) -> Floats:
    """Sums `[K, W]` of terms `[K, N]` by weights `[N, W]`."""
    if weights.shape[1] == 1:
        alone: Floats = terms.sum(axis=1, keepdims=True)
        return alone
    sums: Floats = terms @ weights.astype(np.float64)
    # In the same way with replicates as without: sums of another order differ in the last digits.
    sums[:, 0] = terms.sum(axis=1)
    return sums


class MeanOfTerms(SumMetric):
    """The mean of a column that holds the terms of a metric already, as for tasks of several classes."""

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
    """Entropy in nats of labels with that mean; NaN for 0 and 1."""
    rate = np.where((rate > 0) & (rate < 1), rate, np.nan)
    result: Floats = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return result


class NormalizedEntropy(LogLoss):
    """Log loss over the entropy of the mean label (He et al., ADKDD 2014, section 2); 1 is predicting the mean.

    NaN when the mean label is 0 or 1: there is no entropy to explain.
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
    """Mean prediction over mean label (He et al., ADKDD 2014, section 2); NaN when the mean label is 0."""

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

    sum_b n_b / N |mean prediction_b - mean label_b|. A bin owns its lower edge; the last owns 1 as well.
    """

    def __init__(self, num_bins: int = 10) -> None:
        if num_bins < 1:
            raise ConfigError(f"ece.num_bins: {num_bins} bins hold no sample; give at least 1")
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
    """labels [N] -> int64 [N], each checked: NumPy would take -1 for the last class and cut 1.5 to 1."""
    indices = labels.astype(np.int64)
    wrong = (indices != labels) | (indices < 0) | (indices >= num_classes)
    if wrong.any():
        raise DataError(
            f"label {labels[wrong][0]:g} is not a valid class index; give whole numbers from 0 to {num_classes - 1}"
        )
    return indices


def metric_value(metric: Metric, labels: Array, predictions: Array, groups: Array | None = None) -> float:
    """A metric of arrays in memory: labels `[N]`, predictions `[N]`, or `[N, C]` for log loss and accuracy.

    Args:
      metric: which one.
      labels: 0/1, soft labels in [0, 1], values, or class indices.
      predictions: probabilities or values.
      groups: uint64 `[N]`, the user or session of each sample, for metrics within them.

    Returns:
      The value; NaN where it is not defined.

    Raises:
      ValueError: if shapes disagree, which NumPy would broadcast.
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
        given = f"labels {labels.shape} and predictions {predictions.shape}"
        raise ValueError(f"{type(metric).__name__}: {given}; give labels [N] and predictions {allowed}")
    if isinstance(metric, SumMetric) and predictions.ndim == 2:
        predictions, metric = metric.terms(labels, predictions)[0], MeanOfTerms()
    clusters = mix(np.arange(len(labels), dtype=np.uint64))
    groups = np.zeros(len(labels), np.uint64) if groups is None else groups
    rows = Rows()
    rows.append({"label": labels, "score": predictions, "group": groups, "cluster": clusters})
    return metric.estimate(View(rows, "label", "score", group="group")).value
