"""Verdicts about the difference of two arms, against formulas and against simulated trainings of known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from easyrec_mm.config.evaluation import NamedMetric
from easyrec_mm.evaluation.estimates import Estimate
from easyrec_mm.worth.report import Plan, Verdict, conclusion_of
from easyrec_mm.worth.verdict import DOES_NOT, HARMS, PAYS, Gain, gain, gains

NUM_REPLICATES, NUM_CLUSTERS = 200, 50


def arm(rng, mean, rows, seeds_error, num_seeds):
    """Estimates of an arm: what rows do to it is the same for all its seeds."""
    return [
        Estimate(float(mean + rows[0] + noise), mean + rows[1:] + noise, "", NUM_CLUSTERS)
        for noise in rng.normal(0, seeds_error, num_seeds)
    ]


def two_arms(rng, difference, rows_error, seeds_error, num_seeds):
    """Two arms whose true difference is known; rows change their difference, and each of them much more."""
    both = rng.normal(0, 10 * rows_error, NUM_REPLICATES + 1)
    of_difference = rng.normal(0, rows_error, NUM_REPLICATES + 1)
    # The replicates vary around what the rows at hand give.
    both[1:] += both[0]
    of_difference[1:] += of_difference[0]
    first = arm(rng, 0.6 + difference, both + of_difference, seeds_error, num_seeds)
    return first, arm(rng, 0.6, both, seeds_error, num_seeds)


def test_of_one_seed_it_is_the_interval_of_the_rows():
    rng = np.random.default_rng(0)
    first, second = two_arms(rng, 0.02, 0.004, 0.0, 1)
    difference = gain(first, second, True, 0.95)
    deviation = np.std(first[0].replicates - second[0].replicates, ddof=1)
    half = stats.t.ppf(0.975, NUM_CLUSTERS - 1) * deviation
    assert difference.value == pytest.approx(first[0].value - second[0].value)
    assert (difference.low, difference.high) == pytest.approx((difference.value - half, difference.value + half))
    assert difference.rows_error == pytest.approx(deviation)
    assert math.isnan(difference.seeds_error)


def test_of_seeds_alone_it_is_welch_s_interval():
    rng = np.random.default_rng(0)
    first, second = two_arms(rng, 0.02, 0.0, 0.01, 4)
    difference = gain(first, second, True, 0.9)
    values = [[estimate.value for estimate in each] for each in (first, second)]
    expected = stats.ttest_ind(*values, equal_var=False).confidence_interval(0.9)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
    assert difference.seeds_error == pytest.approx(np.sqrt(sum(np.var(v, ddof=1) / 4 for v in values)))


@pytest.mark.parametrize("num_seeds", [2, 3])
@pytest.mark.parametrize(("rows_error", "seeds_error"), [(0.004, 0.001), (0.002, 0.004)])
def test_the_interval_holds_the_truth_as_often_as_it_says(rows_error, seeds_error, num_seeds):
    rng = np.random.default_rng(0)
    differences = [gain(*two_arms(rng, 0.01, rows_error, seeds_error, num_seeds), True, 0.9) for _ in range(1000)]
    held = np.mean([difference.low <= 0.01 <= difference.high for difference in differences])
    assert 0.87 < held < 0.96  # of few seeds it is a little too wide


def test_verdicts_follow_the_direction_of_the_metric():
    rng = np.random.default_rng(0)

    def estimates(value):
        return [Estimate(value, rng.normal(value, 0.001, NUM_REPLICATES), "", NUM_CLUSTERS)]

    for is_bigger, better, worse in ((True, PAYS, HARMS), (False, HARMS, PAYS)):
        assert gain(estimates(0.7), estimates(0.6), is_bigger, 0.95).verdict == better
        assert gain(estimates(0.6), estimates(0.7), is_bigger, 0.95).verdict == worse
        assert gain(estimates(0.6), estimates(0.6001), is_bigger, 0.95).verdict == DOES_NOT
    same = estimates(0.6)
    assert gain(same, same, True, 0.95).verdict == DOES_NOT


def test_what_is_undefined_has_a_reason_and_no_verdict():
    known = [Estimate(0.6, np.full(NUM_REPLICATES, 0.6), "", NUM_CLUSTERS)]
    undefined = [Estimate(math.nan, np.full(NUM_REPLICATES, math.nan), "all labels are 0", NUM_CLUSTERS)]
    difference = gain(known, undefined, True, 0.95)
    assert (difference.verdict, difference.reason) == ("", "all labels are 0")
    assert math.isnan(difference.low)


def test_the_main_metric_stands_for_itself_and_the_others_hold_together():
    rng = np.random.default_rng(0)
    names = ["auc_a", "auc_b", "auc_c", "auc_a/s=1", "auc_b/s=1", "auc_c/s=1", "auc_a/s=2", "calibration_a"]
    arms = two_arms(rng, 0.02, 0.004, 0.0, 1)
    first, second = ({name: list(each) for name in names} for each in arms)
    nothing = [Estimate(math.nan, np.full(NUM_REPLICATES, math.nan), "there are no samples", 0)]
    first["auc_c/s=1"] = second["auc_c/s=1"] = nothing
    bigger = dict.fromkeys(["auc_a", "auc_b", "auc_c"], True)
    differences = gains(first, second, bigger, "auc_a", 0.95)
    assert list(differences) == names[:-1]
    for name, family in {"auc_a": 1, "auc_b": 2, "auc_c": 2, "auc_a/s=1": 3, "auc_b/s=1": 3, "auc_a/s=2": 3}.items():
        assert differences[name] == gain(first[name], second[name], True, 1 - 0.05 / family), name


def test_many_looks_at_nothing_seldom_show_something():
    rng = np.random.default_rng(0)
    shown = 0
    for _ in range(300):
        pairs = {f"m{i}": two_arms(rng, 0.0, 0.004, 0.002, 3) for i in range(8)}
        first, second = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
        differences = gains(first, second, dict.fromkeys(pairs, True), "", 0.95)
        shown += any(difference.verdict != DOES_NOT for difference in differences.values())
    assert shown / 300 < 0.08


@pytest.mark.parametrize(
    ("gain", "num_steps", "conclusion"),
    [
        (
            Gain(0.7, 0.6, 0.1, 0.05, 0.15, verdict=PAYS),
            9,
            "the pictures pay: auc_a +0.1000 [+0.0500, +0.1500] against x",
        ),
        (
            Gain(0.6, 0.6, 0.0, -0.01, 0.02, verdict=DOES_NOT),
            1000,
            "the pictures do not pay: auc_a +0.0000 [-0.0100, +0.0200] against x; a gain above 0.0200 is ruled out",
        ),
        (
            Gain(0.6, 0.6, 0.0, -0.01, 0.02, verdict=DOES_NOT),
            9,
            "the pictures do not pay: auc_a +0.0000 [-0.0100, +0.0200] against x; a gain above 0.0200 is ruled out; "
            "9 of 1,000 steps were trained, and more may show a gain: raise --budget_minutes",
        ),
    ],
)
def test_a_conclusion_says_what_a_short_training_cannot_know(gain, num_steps, conclusion):
    verdict = Verdict(NamedMetric("auc_a", "auc", "a"), "", 100, gain.verdict, "", gain)
    assert conclusion_of(verdict, "x", Plan(3, num_steps, 1000, 5.0, {})) == conclusion
