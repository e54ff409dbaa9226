"""A plain reference of every metric, and metrics over rows and clicks as tests need them."""

import itertools
import math
from collections import defaultdict

import numpy as np

from easyrec_mm.evaluation.calibration import RecalibratedEntropy
from easyrec_mm.evaluation.group_metrics import GAUC, NDCG, HitRate, RecallAtTopK
from easyrec_mm.evaluation.metrics import (
    ECE,
    Accuracy,
    Calibration,
    LogLoss,
    MeanAbsoluteError,
    MeanOfTerms,
    MeanSquaredError,
    NormalizedEntropy,
    RootMeanSquaredError,
)
from easyrec_mm.evaluation.rank_metrics import AUC, XAUC, PrAUC
from easyrec_mm.evaluation.rows import Rows
from easyrec_mm.evaluation.views import View
from easyrec_mm.stable_hash import hash_array

METRICS = {
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
    "pr_auc": PrAUC,
    "ndcg": lambda: NDCG(3),
    "recall_at_topk": lambda: RecallAtTopK(2),
    "hit_rate": lambda: HitRate(2),
    "xauc": XAUC,
    "recalibrated_normalized_entropy": RecalibratedEntropy,
}


# References: plain Python over lists, one sample at a time.


def reference_auc(labels, scores):
    positives = [s for y, s in zip(labels, scores, strict=True) if y > 0.5]
    negatives = [s for y, s in zip(labels, scores, strict=True) if y <= 0.5]
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives]
    return sum(pairs) / len(pairs) if pairs else math.nan


def reference_gauc(labels, scores, users, reduction):
    rows = defaultdict(list)
    for i, user in enumerate(users):
        rows[user].append(i)
    total = weights = 0.0
    for members in rows.values():
        area = reference_auc([labels[i] for i in members], [scores[i] for i in members])
        if math.isnan(area):
            continue
        num_positives = sum(labels[i] > 0.5 for i in members)
        weight = {"mean": 1, "mean_by_sample_num": len(members), "mean_by_positive_num": num_positives}[reduction]
        total, weights = total + weight * area, weights + weight
    return total / weights if weights else math.nan


def reference_log_loss(labels, predictions):
    total = 0.0
    for y, p in zip(labels, predictions, strict=True):
        p = min(max(p, 1e-7), 1 - 1e-7)
        total += -y * math.log(p) - (1 - y) * math.log(1 - p)
    return total / len(labels)


def reference_normalized_entropy(labels, predictions):
    rate = sum(labels) / len(labels)
    if rate in (0, 1):
        return math.nan
    return reference_log_loss(labels, predictions) / -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))


def reference_calibration(labels, predictions):
    return sum(predictions) / sum(labels) if sum(labels) else math.nan


def reference_ece(labels, predictions, num_bins):
    bins = defaultdict(list)
    for y, p in zip(labels, predictions, strict=True):
        bins[min(math.floor(p * num_bins), num_bins - 1)].append((y, p))
    error = 0.0
    for members in bins.values():
        mean_label = sum(y for y, _ in members) / len(members)
        mean_prediction = sum(p for _, p in members) / len(members)
        error += len(members) / len(labels) * abs(mean_prediction - mean_label)
    return error


def reference_mse(labels, predictions):
    return sum((p - y) ** 2 for y, p in zip(labels, predictions, strict=True)) / len(labels)


def reference_rmse(labels, predictions):
    return math.sqrt(reference_mse(labels, predictions))


def reference_mae(labels, predictions):
    return sum(abs(p - y) for y, p in zip(labels, predictions, strict=True)) / len(labels)


def reference_accuracy(labels, predictions):
    return sum((p >= 0.5) == (y > 0.5) for y, p in zip(labels, predictions, strict=True)) / len(labels)


REFERENCES = {
    "auc": reference_auc,
    "log_loss": reference_log_loss,
    "normalized_entropy": reference_normalized_entropy,
    "calibration": reference_calibration,
    "ece": lambda labels, predictions: reference_ece(labels, predictions, 10),
    "mean_squared_error": reference_mse,
    "root_mean_squared_error": reference_rmse,
    "mean_absolute_error": reference_mae,
    "accuracy": reference_accuracy,
}


def view_of(labels, predictions, users=None, cuts=(), max_memory=1 << 30):
    """Rows appended in the batches between `cuts`."""
    labels, predictions = np.asarray(labels, np.float32), np.asarray(predictions, np.float32)
    groups = hash_array(np.asarray([b""] * len(labels) if users is None else users, dtype=object))
    rows = Rows(max_memory)
    edges = [0, *sorted(min(cut, len(labels)) for cut in cuts), len(labels)]
    clusters = np.arange(len(labels), dtype=np.uint64)
    columns = {"label": labels, "score": predictions, "group": groups, "cluster": clusters}
    for start, end in itertools.pairwise(edges):
        rows.append({name: values[start:end] for name, values in columns.items()})
    return View(rows, "label", "score", group="group")


def evaluate(metric, labels, predictions, users=None, cuts=()):
    """The metric of rows appended in the batches between `cuts`."""
    if np.ndim(predictions) == 2:
        terms = metric.terms(np.asarray(labels, np.float64), np.asarray(predictions, np.float64))[0]
        return evaluate(MeanOfTerms(), labels, terms, users, cuts)
    return metric.estimate(view_of(labels, predictions, users, cuts)).value


def clicks(num_samples, seed=0, levels=None):
    """Labels and probabilities that agree somewhat; `levels` makes ties."""
    rng = np.random.default_rng(seed)
    predictions = rng.random(num_samples)
    labels = rng.random(num_samples) < predictions
    if levels:
        predictions = np.round(predictions * levels) / levels
    return labels.astype(np.float32), predictions.astype(np.float32)
