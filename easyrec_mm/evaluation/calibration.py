"""Calibration of predicted probabilities: normalised entropy after recalibration, and the calibration curve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from easyrec_mm.errors import ConfigError, did_you_mean
from easyrec_mm.evaluation.metrics import ONE_CLASS, SMALLEST_PROBABILITY, Metric, entropy, weighted_sums
from easyrec_mm.evaluation.rank_metrics import runs_of_scores
from easyrec_mm.evaluation.views import Chunk, Floats, Undefined, View
from easyrec_mm.evaluation.weights import ClusterWeights

_MAX_PASSES = 60
# The fit ends when a further step gains less than this, in nats per sample.
_TOLERANCE = 1e-12


class RecalibratedEntropy(Metric):
    """Normalised entropy after the best recalibration 1 / (1 + exp(-(a + b logit p))) (Platt, 1999).

    It is the part of normalised entropy that remains after correcting probabilities that are too high, too low or too
    confident: the part due to the order of the scores and the shape of the curve. a and b are fitted to the evaluated
    rows themselves: with two parameters this gains only about 1 / N nats per sample, far less than the interval's
    width. Replicates are accurate to second order: each takes its loss at the common fit, minus the gain of one step
    of Newton's method. NaN when all labels are of one class.
    """

    undefined = ONE_CLASS

    def values(self, view: View) -> Floats:
        """See Metric.values."""
        fit = self._fit(view)
        sums = np.zeros((8, view.weights.num_columns))
        for chunk in view.in_order():
            terms = [*_loss_terms(chunk, fit), chunk.label, np.ones(len(chunk.label))]
            sums += weighted_sums(np.stack(terms), view.weights.of(chunk.cluster))
        means = sums[:-1] / sums[-1]  # [7, W]
        gains = np.array([_newton(column)[1] for column in means[:6].T])  # [W]
        return np.asarray((means[0] - gains) / entropy(means[6]))

    def _fit(self, view: View) -> Floats:
        """Fit a and b by Newton's method with step halving; each step is one pass over the rows."""
        fit, step = np.array([0.0, 1.0]), np.zeros(2)
        best = np.inf
        for _ in range(_MAX_PASSES):
            sums, total, num_positive = np.zeros(6), 0, 0.0
            for chunk in view.in_order():
                sums += _loss_terms(chunk, fit + step).sum(axis=1)
                total += len(chunk.label)
                num_positive += chunk.label.sum()
            if not 0 < num_positive < total:
                raise Undefined(self.undefined)
            means = sums / total
            if means[0] > best + _TOLERANCE:
                step = step / 2
                if np.abs(step).max() < _TOLERANCE:
                    break
                continue
            fit, best = fit + step, means[0]
            step, gain = _newton(means)
            if gain < _TOLERANCE:
                break
        return fit


def _loss_terms(chunk: Chunk, fit: Floats) -> Floats:
    """Return each row's cross entropy, its gradient by a and b, and its second derivatives aa, ab, bb: `[6, N]`."""
    p = np.clip(chunk.score, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    logit = np.log(p) - np.log1p(-p)
    z = fit[0] + fit[1] * logit
    loss = np.logaddexp(0, z) - chunk.label * z
    fitted = np.exp(-np.logaddexp(0, -z))
    error, curvature = fitted - chunk.label, fitted * (1 - fitted)
    return np.stack([loss, error, error * logit, curvature, curvature * logit, curvature * logit**2])


def _newton(means: Floats) -> tuple[Floats, float]:
    """Return the step of Newton's method for the means `[6]` of `_loss_terms`, and its gain to second order."""
    if not np.isfinite(means).all():
        return np.zeros(2), 0.0
    gradient, hessian = means[1:3], means[[3, 4, 4, 5]].reshape(2, 2)
    step = -np.linalg.pinv(hessian, hermitian=True) @ gradient  # singular if all rows have one logit
    return step, float(-gradient @ step / 2)


class CalibrationCurve:
    """Mean prediction and mean label in bins of the prediction.

    `strategy` is "quantile" (bins with about equal numbers of samples) or "uniform" (bins of equal width over [0, 1]).
    Equal scores share a bin: with "quantile", the bin that contains the middle of their run.
    """

    STRATEGIES = ("quantile", "uniform")

    def __init__(self, num_bins: int = 10, strategy: str = "quantile") -> None:
        if num_bins < 1:
            raise ConfigError(f"calibration_curve.num_bins: {num_bins} bins are too few; give 1 or more")
        if strategy not in self.STRATEGIES:
            choices = did_you_mean(strategy, self.STRATEGIES)
            raise ConfigError(f"calibration_curve.strategy: '{strategy}' is unknown; {choices}")
        self.num_bins = num_bins
        self.strategy = strategy

    def curve(self, view: View) -> list[dict[str, Any]]:
        """Return the non-empty bins by ascending prediction: mean_prediction, mean_label and count.

        Raises:
          Undefined: if a label or prediction is NaN.
        """
        counts, predictions, labels = np.zeros((3, self.num_bins))
        unweighted = replace(view, weights=ClusterWeights())
        total = sum(len(chunk.label) for chunk in unweighted.in_order())
        for score, samples, label_sums in runs_of_scores(unweighted, lambda labels: labels):
            count, label = samples[:, 0], label_sums[:, 0]
            if self.strategy == "uniform":
                number = score * self.num_bins
            else:
                before = np.cumsum(count) - count + counts.sum()  # samples with higher scores
                number = (total - before - count / 2) * self.num_bins / total
            bins = np.clip(number, 0, self.num_bins - 1).astype(np.int64)
            for sums, values in ((counts, count), (predictions, score * count), (labels, label)):
                sums += np.bincount(bins, values, self.num_bins)
        return [
            {
                "mean_prediction": float(predictions[i] / counts[i]),
                "mean_label": float(labels[i] / counts[i]),
                "count": int(counts[i]),
            }
            for i in np.flatnonzero(counts)
        ]
