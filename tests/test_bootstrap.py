"""Replicates, intervals and tests of differences, against plain resampling and published formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from metric_helpers import METRICS, clicks
from sklearn.metrics import roc_auc_score

from easyrec_mm.evaluation.calibration import RecalibratedEntropy
from easyrec_mm.evaluation.delong import delong_test
from easyrec_mm.evaluation.estimates import Estimate, difference, interval, mean_estimate, no_interval
from easyrec_mm.evaluation.metrics import LogLoss, MeanSquaredError
from easyrec_mm.evaluation.rank_metrics import AUC, XAUC
from easyrec_mm.evaluation.rows import Rows
from easyrec_mm.evaluation.summary import CLUSTER, Entry, compare, results_of, summarize
from easyrec_mm.evaluation.views import View
from easyrec_mm.evaluation.weights import ClusterWeights
from easyrec_mm.stable_hash import mix

# Their replicates are expansions; the others are exact.
EXPANDED = {"xauc": 0.02, "recalibrated_normalized_entropy": 0.01}


def view_of(labels, scores, groups, clusters, num_replicates=0):
    rows = Rows()
    columns = {"label": labels, "score": scores, "group": mix(groups.astype(np.uint64))}
    rows.append({**columns, "cluster": mix(clusters.astype(np.uint64))})
    return View(rows, "label", "score", "cluster", ClusterWeights(num_replicates), "group")


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("clusters_hold_groups", [True, False])
def test_replicates_equal_metrics_of_repeated_rows(name, clusters_hold_groups):
    labels, scores = clicks(300, levels=40)
    groups = np.random.default_rng(1).integers(0, 40, 300)
    clusters = groups // 2 if clusters_hold_groups else np.arange(300) % 30
    weights = ClusterWeights(20).of(mix(clusters.astype(np.uint64)))
    estimate = METRICS[name]().estimate(view_of(labels, scores, groups, clusters, 20))
    for replicate in range(20):
        counts = weights[:, 1 + replicate]
        repeated = np.repeat(np.arange(300), counts)
        # A group of a cluster that is drawn twice is two groups; one of rows of several clusters stays one.
        copy = np.concatenate([np.arange(count) for count in counts])
        groups_drawn = groups[repeated] + (1000 * copy if clusters_hold_groups else 0)
        expected = METRICS[name]().estimate(
            view_of(labels[repeated], scores[repeated], groups_drawn, np.arange(len(repeated)))
        )
        assert estimate.replicates[replicate] == pytest.approx(expected.value, rel=EXPANDED.get(name, 1e-9))


@pytest.mark.parametrize("name", METRICS)
def test_the_value_is_the_same_with_replicates_and_in_any_blocks(name, monkeypatch):
    labels, scores = clicks(300, levels=40)
    groups, clusters = np.arange(300) % 17, np.arange(300) % 23
    alone = METRICS[name]().estimate(view_of(labels, scores, groups, clusters))
    with_replicates = METRICS[name]().estimate(view_of(labels, scores, groups, clusters, 30))
    monkeypatch.setattr("easyrec_mm.evaluation.views.CHUNK_NUMBERS", 200)
    in_blocks = METRICS[name]().estimate(view_of(labels, scores, groups, clusters, 30))
    assert with_replicates.value == pytest.approx(alone.value, rel=1e-12)
    assert in_blocks.replicates == pytest.approx(with_replicates.replicates, rel=1e-9)


def test_weights_are_poisson_of_mean_one_and_independent():
    weights = ClusterWeights(400).of(np.arange(5000, dtype=np.uint64)).astype(np.float64)
    assert (weights[:, 0] == 1).all()
    drawn = weights[:, 1:]
    assert drawn.mean() == pytest.approx(1, abs=0.005)
    assert drawn.var() == pytest.approx(1, abs=0.01)
    assert np.abs(np.corrcoef(drawn[:, :60].T) - np.eye(60)).max() < 0.08
    for count in range(4):
        assert (drawn == count).mean() == pytest.approx(math.exp(-1) / math.factorial(count), abs=0.003)


def test_weights_are_of_the_cluster_the_replicate_and_the_seed_alone():
    clusters = mix(np.arange(50, dtype=np.uint64))
    weights = ClusterWeights(30).of(clusters)
    assert np.array_equal(ClusterWeights(30).of(clusters[::-1])[::-1], weights)
    assert np.array_equal(ClusterWeights(100).of(clusters)[:, :31], weights)
    assert not np.array_equal(ClusterWeights(30, seed=1).of(clusters), weights)
    for first, last in ((0, 1), (0, 7), (1, 2), (5, 31), (6, 9)):
        assert np.array_equal(ClusterWeights(30).of(clusters, first, last), weights[:, first:last])
        prepared = ClusterWeights(30)
        prepared.prepare(np.sort(clusters))
        assert np.array_equal(prepared.of(clusters, first, last), weights[:, first:last])


def test_intervals_by_clusters_are_as_wide_as_clusters_differ():
    """Rows of a cluster are equal, so that 2000 rows are 100 observations: the standard error is that of 100."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=100)
    predictions = np.repeat(values, 20)
    clusters = np.repeat(np.arange(100), 20)
    estimate = MeanSquaredError().estimate(view_of(np.zeros(2000), predictions, clusters, clusters, 2000))
    assert estimate.replicates.std() == pytest.approx(np.square(values).std() / 10, rel=0.08)
    by_rows = MeanSquaredError().estimate(view_of(np.zeros(2000), predictions, clusters, np.arange(2000), 2000))
    assert by_rows.replicates.std() == pytest.approx(np.square(values).std() / math.sqrt(2000), rel=0.08)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(100):
        effect = np.repeat(rng.normal(size=80), 5)
        labels = (rng.random(400) < 0.5).astype(np.float32)
        scores = labels * 1.0 + effect
        groups = np.repeat(np.arange(80), 5)
        estimate = AUC().estimate(view_of(labels, scores.astype(np.float32), groups, groups + 1000 * trial, 200))
        low, high = interval(Estimate(estimate.value, estimate.replicates, "", 80), 0.9)
        held += low <= 0.7602 <= high  # P(N(1, 2) > 0)
    assert 0.83 <= held / 100 <= 0.97


def test_there_is_no_interval_where_nothing_varies_or_nothing_is_defined():
    replicates = np.linspace(0, 1, 101)
    assert interval(Estimate(0.5, replicates, "", 10), 0.9) == pytest.approx((0.05, 0.95))
    cases = {
        "all rows are of one cluster": Estimate(0.5, replicates, "", 1),
        "there are no bootstrap replicates": Estimate(0.5, replicates[:0], "", 10),
        "it is undefined in most bootstrap replicates": Estimate(0.5, np.array([np.nan, np.nan, 1.0]), "", 10),
        "why": Estimate(math.nan, replicates, "why", 10),
    }
    for reason, estimate in cases.items():
        assert (interval(estimate, 0.9), no_interval(estimate)) == (None, reason)


def test_p_value_of_a_paired_difference():
    first = Estimate(0.5, np.array([0.1, 0.2, 0.3, 0.4, -0.1]), "", 10)
    nothing = Estimate(0.0, np.zeros(5), "", 10)
    assert difference(first, nothing, 0.5).p_value == pytest.approx(2 * 2 / 6)
    assert difference(nothing, first, 0.5).p_value == pytest.approx(2 * 2 / 6)
    assert difference(nothing, nothing, 0.5).p_value == 1
    with pytest.raises(ValueError, match="5 and 0 replicates"):
        difference(first, Estimate(0.0, np.zeros(0)), 0.5)


def test_mean_over_seeds_is_the_mean_of_each_replicate():
    first, second = Estimate(0.2, np.array([0.1, 0.3]), "", 9), Estimate(0.4, np.array([0.5, 0.3]), "", 9)
    mean = mean_estimate([first, second])
    assert (mean.value, mean.replicates.tolist(), mean.num_clusters) == (pytest.approx(0.3), [0.3, 0.3], 9)


def reference_delong(labels, first, second):
    """The covariance by its definition (DeLong et al., 1988, eq. 4), pair by pair."""
    positives, negatives = labels > 0.5, labels <= 0.5
    of_positives, of_negatives = [], []
    for scores in (first, second):
        wins = (scores[positives][:, None] > scores[negatives]) + 0.5 * (
            scores[positives][:, None] == scores[negatives]
        )
        of_positives.append(wins.mean(axis=1))
        of_negatives.append(wins.mean(axis=0))
    covariance = np.cov(of_positives) / positives.sum() + np.cov(of_negatives) / negatives.sum()
    return math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])


@pytest.mark.parametrize("levels", [None, 6])
def test_delong_equals_its_definition(levels):
    labels, first = clicks(200, levels=levels)
    second = np.round(np.random.default_rng(3).random(200) + first, 1 if levels else 8)
    test = delong_test(labels, first, second)
    assert test.first == pytest.approx(roc_auc_score(labels, first))
    assert test.second == pytest.approx(roc_auc_score(labels, second))
    assert test.standard_error == pytest.approx(reference_delong(labels, first, second), rel=1e-9)
    assert test.p_value == pytest.approx(math.erfc(abs(test.z) / math.sqrt(2)), rel=1e-9)
    assert delong_test(labels, first, first).p_value == 1
    assert delong_test(np.ones(5), first[:5], second[:5]) is None


def test_bootstrap_of_single_rows_agrees_with_delong():
    labels, first = clicks(3000)
    second = first + np.random.default_rng(3).normal(scale=0.3, size=3000)
    rows = np.arange(3000)
    estimates = [
        AUC().estimate(view_of(labels, scores.astype(np.float32), rows, rows, 1000)) for scores in (first, second)
    ]
    differences = estimates[0].replicates - estimates[1].replicates
    assert differences.std() == pytest.approx(delong_test(labels, first, second).standard_error, rel=0.08)


@pytest.mark.parametrize("metric", [XAUC, RecalibratedEntropy])
def test_expansions_vary_as_plain_resampling_does(metric):
    labels, scores = clicks(400)
    rng = np.random.default_rng(0)
    rows = np.arange(400)
    drawn = []
    for _ in range(200):
        row = rng.integers(0, 400, 400)
        drawn.append(metric().estimate(view_of(labels[row], scores[row], rows, rows)).value)
    estimate = metric().estimate(view_of(labels, scores, rows, rows, 200))
    assert estimate.replicates.std() == pytest.approx(np.std(drawn), rel=0.15)


def test_replicates_of_few_rows_are_shares_or_undefined():
    """Some draw no pair at all, of which the expansion makes a division by 0."""
    rows = np.arange(3)
    estimate = XAUC().estimate(view_of(np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.3, 0.2]), rows, rows, 500))
    assert 0 < np.isnan(estimate.replicates).sum() < 250
    assert 0 <= np.nanmin(estimate.replicates) <= np.nanmax(estimate.replicates) <= 1
    assert np.isfinite(interval(Estimate(estimate.value, estimate.replicates, "", 3), 0.95)).all()


class OftenInfinite(LogLoss):
    """A metric of which every other replicate is infinite."""

    def values(self, view):
        values = super().values(view)
        values[2::4], values[4::4] = math.inf, -math.inf
        return values


def test_infinite_replicates_are_undefined():
    labels, scores = clicks(40)
    rows = np.arange(40)
    estimate = OftenInfinite().estimate(view_of(labels, scores, rows, rows, 100))
    assert np.isnan(estimate.replicates).sum() == 50
    assert np.isfinite(interval(Estimate(estimate.value, estimate.replicates, "", 40), 0.95)).all()


def summary_of(labels, scores, clusters, num_replicates=200):
    rows = Rows()
    rows.append({"label": labels, "score": scores, CLUSTER: mix(clusters.astype(np.uint64))})
    return summarize(rows, [Entry("auc_click", AUC(), "label", "score")], [], ClusterWeights(num_replicates))


def test_models_that_are_evaluated_apart_are_compared_in_pairs():
    labels, first = clicks(2000)
    noise = np.random.default_rng(1).normal(scale=0.5, size=2000).astype(np.float32)
    clusters = np.arange(2000) // 4
    order = np.random.default_rng(2).permutation(2000)
    summary = summary_of(labels, first, clusters)
    other = summary_of(labels[order], (first + noise)[order], clusters[order])
    comparison = compare(summary, other)["auc_click"]
    assert comparison.value == pytest.approx(roc_auc_score(labels, first) - roc_auc_score(labels, first + noise))
    assert comparison.low < comparison.value < comparison.high
    assert comparison.low > 0
    assert comparison.p_value < 0.05
    apart = results_of(summary, 200).intervals["auc_click"]
    assert comparison.high - comparison.low < 2 * (apart[1] - apart[0])
    with pytest.raises(ValueError, match="not of the same rows"):
        compare(summary, summary_of(1 - labels, first, clusters))


def test_equal_models_do_not_differ():
    labels, scores = clicks(500)
    summary = summary_of(labels, scores, np.arange(500) // 4)
    comparison = compare(summary, summary)["auc_click"]
    assert (comparison.value, comparison.low, comparison.high, comparison.p_value) == (0, 0, 0, 1)
