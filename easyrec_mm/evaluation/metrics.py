"""Evaluation metrics, each exact over the whole evaluation set, fed batch by batch.

Owns: the formulas and the table `METRICS`. A result is never an average of batch values: how the set was cut into
batches changes no more than the last digits of float64 sums.

Memory: every metric but two keeps a few float64 sums, whatever the size of the set (ECE: one per bin). A rank needs all
scores: AUC keeps 5 bytes a sample (float32 score, bool label), GAUC 13 (a uint64 hash of the user as well).

Refuses: to know towers, configs or TensorFlow; to guess. No samples, or a NaN among labels or predictions, gives NaN.

Legend: S samples, C classes, K sums, R runs of equal scores, V users.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from easyrec_mm.errors import ConfigError, DataError, did_you_mean

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

# A float32 sigmoid is exactly 1 from a logit of about 17 on: where it is wrong, it costs 16.1 nats and not infinity.
_SMALLEST_PROBABILITY = 1e-7


class Metric(ABC):
    """A number about labels and predictions: `update` once per batch, `result` at the end (or at any time between)."""

    takes_classes = False  # whether predictions may be [S, C]

    def __init__(self) -> None:
        self._num_samples = 0
        self._has_nan = False

    def update(self, labels: Array, predictions: Array, users: Array | None = None) -> None:
        """Adds a batch.

        labels [S]: 0/1, soft labels in [0, 1], values (regression) or class indices (predictions [S, C]).
        predictions [S]: probabilities, or values (regression); [S, C]: class probabilities (LogLoss, Accuracy).
        users [S]: bytes or str, for GAUC only. Raises ValueError where shapes disagree, which NumPy would broadcast,
        and DataError for a label that is no class index.
        """
        labels, predictions = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
        allowed, ranks = ("[S] or [S, C]", (1, 2)) if self.takes_classes else ("[S]", (1,))
        if labels.ndim != 1 or predictions.ndim not in ranks or len(labels) != len(predictions):
            given = f"labels {labels.shape} and predictions {predictions.shape}"
            raise ValueError(f"{type(self).__name__}: {given}; give labels [S] and predictions {allowed}")
        self._has_nan = self._has_nan or bool(np.isnan(labels).any() or np.isnan(predictions).any())
        if self._has_nan or not labels.size:
            return
        self._add(labels, predictions, users)
        self._num_samples += len(labels)

    def result(self) -> float:
        """The metric over all samples so far; NaN where it is not defined."""
        return math.nan if self._has_nan or not self._num_samples else self._value()

    @abstractmethod
    def _add(self, labels: Floats, predictions: Floats, users: Array | None) -> None:
        """Adds a batch that has samples and no NaN."""

    @abstractmethod
    def _value(self) -> float:
        """The result over at least one sample."""


class AUC(Metric):
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties count half.

    The Mann-Whitney statistic (Hanley & McNeil, Radiology 1982), counted in integers. A label above 0.5 is positive.
    NaN when only one class is present.
    """

    def __init__(self) -> None:
        super().__init__()
        # Buffers that grow in place: small batches cost no array header each, and no concatenation doubles the memory.
        self._scores = bytearray()
        self._positives = bytearray()

    def _add(self, labels: Floats, predictions: Floats, users: Array | None) -> None:
        self._scores += predictions.astype(np.float32).tobytes()
        self._positives += (labels > 0.5).tobytes()

    def _columns(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        return np.frombuffer(self._scores, np.float32), np.frombuffer(self._positives, np.bool_)

    def _value(self) -> float:
        scores, positives = self._columns()
        # Two sorts of float32 and a search need a fraction of the memory of an argsort with int64 ranks.
        negative_scores, positive_scores = np.sort(scores[~positives]), np.sort(scores[positives])
        num_pairs = len(negative_scores) * len(positive_scores)
        if not num_pairs:
            return math.nan
        num_below = int(np.searchsorted(negative_scores, positive_scores, side="left").sum())
        num_not_above = int(np.searchsorted(negative_scores, positive_scores, side="right").sum())
        return (num_below + num_not_above) / (2 * num_pairs)


class GAUC(AUC):
    """AUC within each user, averaged over the users that have both classes (Zhou et al., KDD 2018, weight the users).

    `reduction`: "mean" (users count alike), "mean_by_sample_num" (by their samples) or "mean_by_positive_num" (by their
    positives). NaN when no user has both classes. Users are told apart by a 64-bit hash: among ten million users, the
    odds that any two share one are 3 in a million.
    """

    # reduction -> weights of the users, from their positives and negatives
    REDUCTIONS: ClassVar[dict[str, Callable[[Counts, Counts], Counts]]] = {
        "mean": lambda num_positives, num_negatives: np.ones_like(num_positives),
        "mean_by_sample_num": lambda num_positives, num_negatives: num_positives + num_negatives,
        "mean_by_positive_num": lambda num_positives, num_negatives: num_positives,
    }

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in self.REDUCTIONS:
            raise ConfigError(f"gauc.reduction: '{reduction}' is unknown; {did_you_mean(reduction, self.REDUCTIONS)}")
        self.reduction = reduction
        self._users = bytearray()

    def _add(self, labels: Floats, predictions: Floats, users: Array | None) -> None:
        if users is None or users.shape != labels.shape:
            given = "none" if users is None else str(users.shape)
            raise ValueError(f"GAUC: labels {labels.shape} and users {given}; give one user per sample")
        self._users += _user_keys(users).tobytes()
        super()._add(labels, predictions, users)

    def _value(self) -> float:
        counts = _count_by_user(*self._columns(), np.frombuffer(self._users, np.uint64))  # [3, V]
        num_positives, num_negatives, doubled_pairs = counts[:, (counts[:2] > 0).all(axis=0)]
        if not num_positives.size:
            return math.nan
        areas = doubled_pairs / (2 * num_positives * num_negatives)
        return float(np.average(areas, weights=self.REDUCTIONS[self.reduction](num_positives, num_negatives)))


def _user_keys(users: Array) -> npt.NDArray[np.uint64]:
    """users [S], bytes or str -> a 64-bit hash each, the same in every process (Python's own `hash` is not)."""
    names = users.tolist()
    keys = {}  # each distinct user is hashed once
    for name in set(names):
        encoded = name if isinstance(name, bytes) else str(name).encode()
        keys[name] = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")
    return np.fromiter((keys[name] for name in names), np.uint64, len(names))


def _count_by_user(scores: Array, positives: Array, users: Array) -> Counts:
    """Counts [3, V] per user: positives, negatives, and twice the pairs in the right order (a tie is half a pair)."""
    order = np.lexsort((scores, users))
    scores, positives, users = scores[order], positives[order], users[order]
    starts_user = np.concatenate([[True], users[1:] != users[:-1]])  # [S]
    starts_run = starts_user | np.concatenate([[True], scores[1:] != scores[:-1]])
    runs = np.flatnonzero(starts_run)  # [R] first sample of each run of equal scores of a user
    first_runs = np.flatnonzero(starts_user[runs])  # [V] first run of each user

    run_positives = np.add.reduceat(positives, runs, dtype=np.int64)  # [R]
    run_negatives = np.diff(runs, append=len(users)) - run_positives
    negatives_before = np.cumsum(run_negatives) - run_negatives  # of all users so far
    negatives_before -= np.repeat(negatives_before[first_runs], np.diff(first_runs, append=len(runs)))
    doubled_pairs = run_positives * (2 * negatives_before + run_negatives)
    counts: Counts = np.add.reduceat(np.stack([run_positives, run_negatives, doubled_pairs]), first_runs, axis=1)
    return counts


class _SumMetric(Metric):
    """A metric that is a function of K means over the samples: all it keeps is K float64 sums."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: Floats | float = 0.0

    def _add(self, labels: Floats, predictions: Floats, users: Array | None) -> None:
        self._sums = self._sums + self._batch_sums(labels, predictions)

    def _value(self) -> float:
        return self._of_means((np.asarray(self._sums) / self._num_samples).tolist())

    @abstractmethod
    def _batch_sums(self, labels: Floats, predictions: Floats) -> Floats:
        """The sums [K] over a batch."""

    def _of_means(self, means: list[float]) -> float:
        """The metric from the means [K] over all samples."""
        return means[0]


class LogLoss(_SumMetric):
    """Mean cross entropy in nats: -y ln p - (1 - y) ln(1 - p), soft labels allowed, or -ln p[y] for class indices.

    Probabilities are clipped to [1e-7, 1 - 1e-7].
    """

    takes_classes = True

    def _batch_sums(self, labels: Floats, predictions: Floats) -> Floats:
        if predictions.ndim == 2:
            predictions = predictions[np.arange(len(labels)), _class_indices(labels, predictions.shape[1])]  # [S]
            labels = np.ones_like(labels)
        predictions = np.clip(predictions, _SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
        return np.array([-np.sum(labels * np.log(predictions) + (1 - labels) * np.log1p(-predictions))])


class NormalizedEntropy(LogLoss):
    """Log loss over the entropy of the mean label (He et al., ADKDD 2014, section 2); 1 is predicting the mean.

    NaN when the mean label is 0 or 1: there is no entropy to explain.
    """

    takes_classes = False

    def _batch_sums(self, labels: Floats, predictions: Floats) -> Floats:
        return np.append(super()._batch_sums(labels, predictions), labels.sum())

    def _of_means(self, means: list[float]) -> float:
        log_loss, rate = means
        if not 0 < rate < 1:
            return math.nan
        return log_loss / -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))


class Calibration(_SumMetric):
    """Mean prediction over mean label (He et al., ADKDD 2014, section 2); NaN when the mean label is 0."""

    def _batch_sums(self, labels: Floats, predictions: Floats) -> Floats:
        return np.array([predictions.sum(), labels.sum()])

    def _of_means(self, means: list[float]) -> float:
        return means[0] / means[1] if means[1] else math.nan


class ECE(_SumMetric):
    """Expected calibration error (Guo et al., ICML 2017, eq. 3) of the positive class, over equal-width bins of [0, 1].

    sum_b n_b / N |mean prediction_b - mean label_b|. A bin owns its lower edge; the last owns 1 as well.
    """

    def __init__(self, num_bins: int = 10) -> None:
        super().__init__()
        if num_bins < 1:
            raise ConfigError(f"ece.num_bins: {num_bins} bins hold no sample; give at least 1")
        self.num_bins = num_bins

    def _batch_sums(self, labels: Floats, predictions: Floats) -> Floats:
        bins = np.clip(predictions * self.num_bins, 0, self.num_bins - 1).astype(np.int64)  # [S]
        return np.bincount(bins, predictions - labels, self.num_bins).astype(np.float64)

    def _of_means(self, means: list[float]) -> float:
        # n_b / N |mean prediction_b - mean label_b| = |sum over b of (prediction - label)| / N: no counts needed.
        return math.fsum(map(abs, means))


class MeanSquaredError(_SumMetric):
    """Mean of (prediction - label)^2."""

    def _batch_sums(self, labels: Floats, predictions: Floats) -> Floats:
        return np.array([np.square(predictions - labels).sum()])


class RootMeanSquaredError(MeanSquaredError):
    """Square root of the mean of (prediction - label)^2, in the unit of the label."""

    def _of_means(self, means: list[float]) -> float:
        return math.sqrt(means[0])


class MeanAbsoluteError(_SumMetric):
    """Mean of |prediction - label|, in the unit of the label."""

    def _batch_sums(self, labels: Floats, predictions: Floats) -> Floats:
        return np.array([np.abs(predictions - labels).sum()])


class Accuracy(_SumMetric):
    """Share of samples whose class is the label: p >= 0.5 against label > 0.5, or the most probable of C classes."""

    takes_classes = True

    def _batch_sums(self, labels: Floats, predictions: Floats) -> Floats:
        if predictions.ndim == 2:
            correct = np.equal(predictions.argmax(axis=1), _class_indices(labels, predictions.shape[1]))
        else:
            correct = np.equal(predictions >= 0.5, labels > 0.5)
        return np.array([np.count_nonzero(correct)], np.float64)


def _class_indices(labels: Floats, num_classes: int) -> Counts:
    """labels [S] -> int64 [S], each checked: NumPy would take -1 for the last class and cut 1.5 to 1."""
    indices = labels.astype(np.int64)
    wrong = (indices != labels) | (indices < 0) | (indices >= num_classes)
    if wrong.any():
        raise DataError(f"label {labels[wrong][0]:g} is no class index; give whole numbers from 0 to {num_classes - 1}")
    return indices


# Oneof field of EvalMetrics -> class.
METRICS: dict[str, type[Metric]] = {
    "auc": AUC,
    "gauc": GAUC,
    "log_loss": LogLoss,
    "normalized_entropy": NormalizedEntropy,
    "calibration": Calibration,
    "ece": ECE,
    "mean_squared_error": MeanSquaredError,
    "root_mean_squared_error": RootMeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
    "accuracy": Accuracy,
}
