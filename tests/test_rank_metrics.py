"""Metrics of order within sessions, of values and of calibration, against scikit-learn and plain references."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_helpers import clicks, evaluate, view_of
from scipy.optimize import minimize
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from easyrec_mm.evaluation.calibration import CalibrationCurve, RecalibratedEntropy
from easyrec_mm.evaluation.group_metrics import GAUC, NDCG, HitRate, RecallAtTopK
from easyrec_mm.evaluation.rank_metrics import AUC, XAUC, PrAUC

# Small sessions with many ties.
rows_of_sessions = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.1, 0.2, 0.5]), st.sampled_from([b"a", b"b", b"c"])),
    min_size=1,
    max_size=14,
)


def sessions_of(labels, scores, sessions):
    by_session = defaultdict(list)
    for label, score, session in zip(labels, scores, sessions, strict=True):
        by_session[session].append((label, score))
    return by_session.values()


def mean_over_orders(rows, value):
    """The mean of a function of labels in rank order, over all orders of what is tied."""
    runs = defaultdict(list)
    for label, score in rows:
        runs[score].append(label)
    values = [
        value([label for run in order for label in run])
        for order in itertools.product(*(itertools.permutations(runs[score]) for score in sorted(runs, reverse=True)))
    ]
    return sum(values) / len(values)


def reference_over_sessions(labels, scores, sessions, value):
    """Mean over the sessions with a positive."""
    of_sessions = [
        mean_over_orders(rows, value) for rows in sessions_of(labels, scores, sessions) if any(y for y, _ in rows)
    ]
    return float(sum(of_sessions) / len(of_sessions)) if of_sessions else math.nan


def dcg(labels, topk):
    return sum(label / math.log2(rank + 2) for rank, label in enumerate(labels) if not topk or rank < topk)


@pytest.mark.parametrize("topk", [1, 2, 3])
@given(rows=rows_of_sessions)
@settings(max_examples=40, deadline=None)
def test_recall_and_hit_rate_are_means_over_all_orders_of_ties(topk, rows):
    labels, scores, sessions = zip(*rows, strict=True)

    def recall(ranked):
        return Fraction(int(sum(ranked[:topk])), int(sum(ranked)))

    def hit(ranked):
        return Fraction(int(any(ranked[:topk])))

    for metric, value in ((RecallAtTopK(topk), recall), (HitRate(topk), hit)):
        expected = reference_over_sessions(labels, scores, sessions, value)
        assert evaluate(metric, labels, scores, sessions) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("topk", [0, 1, 3])
@given(rows=rows_of_sessions)
@settings(max_examples=40, deadline=None)
def test_ndcg_is_the_mean_over_all_orders_of_ties(topk, rows):
    labels, scores, sessions = zip(*rows, strict=True)

    def ndcg(ranked):
        return dcg(ranked, topk) / dcg(sorted(ranked, reverse=True), topk)

    expected = reference_over_sessions(labels, scores, sessions, ndcg)
    assert evaluate(NDCG(topk), labels, scores, sessions) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("topk", [0, 5])
def test_ndcg_equals_scikit_learn(topk):
    rng = np.random.default_rng(0)
    labels, scores = rng.random((30, 12)).astype(np.float32), (rng.integers(0, 6, (30, 12)) / 8).astype(np.float32)
    expected = sklearn_metrics.ndcg_score(labels, scores, k=topk or None)
    sessions = np.repeat([b"%d" % i for i in range(30)], 12).tolist()
    assert evaluate(NDCG(topk), labels.ravel(), scores.ravel(), sessions) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("levels", [None, 7])
def test_areas_equal_scikit_learn(levels):
    labels, scores = clicks(3000, levels=levels)
    cuts = range(0, 3000, 700)
    expected = sklearn_metrics.average_precision_score(labels, scores)
    assert evaluate(PrAUC(), labels, scores, cuts=cuts) == pytest.approx(expected, rel=1e-12)
    expected = sklearn_metrics.roc_auc_score(labels, scores)
    assert evaluate(AUC(), labels, scores, cuts=cuts) == pytest.approx(expected, rel=1e-12)


def test_areas_do_not_depend_on_where_chunks_cut_runs_of_ties(monkeypatch):
    labels, scores = clicks(500, levels=5)
    expected = [evaluate(metric(), labels, scores) for metric in (AUC, PrAUC)]
    monkeypatch.setattr("easyrec_mm.evaluation.views._MAX_CHUNK_ROWS", 7)
    assert [evaluate(metric(), labels, scores) for metric in (AUC, PrAUC)] == pytest.approx(expected, rel=1e-12)


def test_session_auc_is_gauc_of_sessions():
    labels, scores = clicks(200, levels=9)
    sessions = [b"s%d" % (i % 11) for i in range(200)]
    areas = [sklearn_metrics.roc_auc_score(*zip(*rows, strict=True)) for rows in sessions_of(labels, scores, sessions)]
    assert evaluate(GAUC("mean", "session_auc", "session"), labels, scores, sessions) == pytest.approx(np.mean(areas))


@given(
    rows=st.lists(st.tuples(st.sampled_from([0.0, 1.5, 2.0, 7.0]), st.sampled_from([0.0, 1.0, 2.0, 3.0])), min_size=1)
)
@settings(max_examples=100, deadline=None)
def test_xauc_is_the_share_of_pairs_in_order(rows):
    total = good = 0.0
    for (y, p), (other_y, other_p) in itertools.combinations(rows, 2):
        if y != other_y:
            total += 1
            good += 0.5 if p == other_p else (p > other_p) == (y > other_y)
    expected = good / total if total else math.nan
    labels, predictions = zip(*rows, strict=True)
    assert evaluate(XAUC(), labels, predictions) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_xauc_of_two_classes_is_auc():
    labels, scores = clicks(4000, levels=50)
    assert evaluate(XAUC(), labels, scores) == pytest.approx(evaluate(AUC(), labels, scores), rel=1e-12)


def reference_recalibrated(labels, predictions):
    logits = np.log(predictions) - np.log1p(-predictions)

    def loss(fit):
        z = fit[0] + fit[1] * logits
        return np.mean(np.logaddexp(0, z) - labels * z)

    rate = np.mean(labels)
    return minimize(loss, [0.0, 1.0], tol=1e-12).fun / -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (2.0, 1.0), (-1.0, 3.0), (0.0, -0.5)])
def test_recalibrated_entropy_is_that_of_the_best_line(shift, scale):
    labels, predictions = clicks(2000)
    wide = np.clip(predictions.astype(np.float64), 0.01, 0.99)
    wrong = (1 / (1 + np.exp(-(shift + scale * (np.log(wide) - np.log1p(-wide)))))).astype(np.float32)
    entropy = evaluate(RecalibratedEntropy(), labels, wrong)
    assert entropy == pytest.approx(reference_recalibrated(labels, wrong.astype(np.float64)), rel=1e-7)
    assert entropy == pytest.approx(evaluate(RecalibratedEntropy(), labels, wide), rel=1e-5)


def test_recalibrated_entropy_at_the_ends():
    assert evaluate(RecalibratedEntropy(), [0, 1, 0, 1], [0.3] * 4) == pytest.approx(1)
    assert evaluate(RecalibratedEntropy(), [0, 0, 1, 1], [0.0, 0.1, 0.9, 1.0]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("strategy", ["quantile", "uniform"])
def test_calibration_curve_equals_scikit_learn(strategy):
    labels, predictions = clicks(3000)
    label_means, prediction_means = calibration_curve(labels, predictions, n_bins=10, strategy=strategy)
    curve = CalibrationCurve(10, strategy).curve(view_of(labels, predictions))
    assert [row["mean_label"] for row in curve] == pytest.approx(
        label_means, abs=5e-3 if strategy == "quantile" else 1e-6
    )
    assert [row["mean_prediction"] for row in curve] == pytest.approx(prediction_means, abs=1e-3)
    assert sum(row["count"] for row in curve) == 3000


def test_calibration_curve_keeps_equal_scores_in_one_bin():
    curve = CalibrationCurve(4).curve(view_of([1, 0, 0, 1, 0], [0.5, 0.5, 0.5, 0.5, 0.1]))
    assert curve == [
        {"mean_prediction": pytest.approx(0.1), "mean_label": 0.0, "count": 1},
        {"mean_prediction": 0.5, "mean_label": 0.5, "count": 4},
    ]
