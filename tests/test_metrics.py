"""Every metric against a plain reference, over any cut of the set into batches."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_helpers import METRICS, REFERENCES, clicks, evaluate, reference_ece, reference_gauc, view_of

from easyrec_mm.errors import ConfigError, DataError
from easyrec_mm.evaluation.calibration import CalibrationCurve
from easyrec_mm.evaluation.group_metrics import GAUC
from easyrec_mm.evaluation.metrics import (
    ECE,
    Accuracy,
    Calibration,
    LogLoss,
    MeanAbsoluteError,
    MeanSquaredError,
    NormalizedEntropy,
    RootMeanSquaredError,
    metric_value,
)
from easyrec_mm.evaluation.rank_metrics import AUC

# float32 as a model gives them, some often for ties and edges. Labels are coarse: their sums are exact in any order, so
# that the reference and the metric agree on whether a mean is 0 or 1.
common = [float(np.float32(value)) for value in (0, 0.1, 0.25, 0.5, 0.7, 0.9, 1)]
probabilities = st.one_of(st.sampled_from(common), st.floats(0, 1, width=32))
soft_labels = st.one_of(st.sampled_from([0.0, 1.0]), st.integers(0, 64).map(lambda numerator: numerator / 64))
user_ids = st.sampled_from([b"", b"u1", b"u2", b"u3", "中文".encode()])
samples = st.lists(st.tuples(soft_labels, probabilities, user_ids), min_size=1, max_size=40)
cut_points = st.lists(st.integers(0, 40), max_size=6)


# Formulas, over any cut into batches


@pytest.mark.parametrize("name", REFERENCES)
@given(samples=samples, cuts=cut_points)
@settings(max_examples=60, deadline=None)
def test_equals_reference_over_any_cut(name, samples, cuts):
    labels, predictions, _ = zip(*samples, strict=True)
    expected = REFERENCES[name](labels, predictions)
    assert evaluate(METRICS[name](), labels, predictions, cuts=cuts) == pytest.approx(
        expected, rel=1e-9, abs=1e-12, nan_ok=True
    )


@pytest.mark.parametrize("reduction", ["mean", "mean_by_sample_num", "mean_by_positive_num"])
@given(samples=samples, cuts=cut_points)
@settings(max_examples=60, deadline=None)
def test_gauc_equals_reference_over_any_cut(reduction, samples, cuts):
    labels, predictions, users = zip(*samples, strict=True)
    expected = reference_gauc(labels, predictions, users, reduction)
    actual = evaluate(GAUC(reduction), labels, predictions, users, cuts)
    assert actual == pytest.approx(expected, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", METRICS)
def test_order_of_samples_does_not_matter(name):
    labels, predictions = clicks(500, levels=50)
    users = np.array([b"user%d" % (i % 37) for i in range(500)], dtype=object)
    shuffled = np.random.default_rng(1).permutation(500)
    straight = evaluate(METRICS[name](), labels, predictions, users)
    mixed = evaluate(METRICS[name](), labels[shuffled], predictions[shuffled], users[shuffled], cuts=range(0, 500, 64))
    assert mixed == pytest.approx(straight, rel=1e-12)


# AUC


def test_auc_by_hand():
    assert evaluate(AUC(), [0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert evaluate(AUC(), [0, 1], [0.3, 0.3]) == 0.5
    assert evaluate(AUC(), [0, 1, 1], [0.3, 0.3, 0.4]) == 0.75
    assert evaluate(AUC(), [0, 1], [-0.0, 0.0]) == 0.5


def test_auc_takes_soft_labels_above_one_half_as_positive():
    assert evaluate(AUC(), [0.5, 0.51, 0.2], [0.1, 0.9, 0.95]) == 0.5


@given(samples=samples)
@settings(max_examples=60, deadline=None)
def test_auc_sees_only_the_order_of_scores(samples):
    labels, predictions, _ = zip(*samples, strict=True)
    scores = np.float32(np.round(predictions, 3))  # far enough apart that float32 keeps the order
    area = evaluate(AUC(), labels, scores)
    assert evaluate(AUC(), labels, np.exp(3 * scores) - 7) == pytest.approx(area, nan_ok=True)
    assert evaluate(AUC(), labels, -scores) == pytest.approx(1 - area, nan_ok=True)


@pytest.mark.parametrize("metric", [AUC, GAUC])
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_area(metric, label):
    assert math.isnan(evaluate(metric(), [label] * 3, [0.1, 0.2, 0.3], [b"a"] * 3))


def test_auc_ranks_infinities():
    assert evaluate(AUC(), [0, 1, 1, 0], [-np.inf, np.inf, 0.5, 0.7]) == 0.75


def test_auc_is_exact_over_a_million_samples():
    """With scores i / n in order and positives the upper half but for one swapped pair, the area is known exactly."""
    num_samples = 1_000_000
    labels = np.arange(num_samples) >= num_samples // 2
    labels[num_samples // 2 - 1], labels[num_samples // 2] = True, False
    scores = np.arange(num_samples, dtype=np.float32) / num_samples
    assert evaluate(AUC(), labels, scores, cuts=range(0, num_samples, 65536)) == 1 - 1 / (num_samples // 2) ** 2


# GAUC


def test_gauc_by_hand():
    labels = [1, 0, 1, 1, 0, 1, 1]
    scores = [0.9, 0.1, 0.2, 0.8, 0.5, 0.3, 0.4]
    users = [b"a", b"a", b"b", b"b", b"b", b"c", b"c"]  # areas 1 and 1/2; c has no negative
    assert evaluate(GAUC(), labels, scores, users) == pytest.approx((1 + 1 / 2) / 2)
    assert evaluate(GAUC("mean_by_sample_num"), labels, scores, users) == pytest.approx((2 * 1 + 3 / 2) / 5)
    assert evaluate(GAUC("mean_by_positive_num"), labels, scores, users) == pytest.approx((1 * 1 + 2 / 2) / 3)


def test_gauc_of_one_user_is_auc():
    labels, predictions = clicks(300, levels=20)
    assert evaluate(GAUC(), labels, predictions, [b"u"] * 300) == pytest.approx(evaluate(AUC(), labels, predictions))


def test_gauc_ignores_what_differs_between_users():
    labels, predictions = clicks(400, levels=20)
    users = np.array([b"u%d" % (i % 20) for i in range(400)], dtype=object)
    offsets = np.repeat(np.arange(20), 20).reshape(20, 20).T.ravel()  # one per user
    shifted = evaluate(GAUC(), labels, np.round(predictions * 20) + 100 * offsets, users)
    assert shifted == pytest.approx(evaluate(GAUC(), labels, predictions, users))


def test_gauc_tells_users_apart_by_all_their_bytes():
    labels, scores = [1, 0, 1, 0], [0.9, 0.1, 0.2, 0.3]  # areas 1 and 0 apart, 3/4 together
    assert evaluate(GAUC(), labels, scores, [b"a", b"a", b"a\x00", b"a\x00"]) == 0.5
    assert evaluate(GAUC(), labels, scores, [b"a", b"a", b"a", b"a"]) == 0.75


# Probabilities and values


def test_log_loss_clips_at_one_in_ten_million():
    assert evaluate(LogLoss(), [1, 0], [0, 1]) == pytest.approx(-math.log(1e-7))
    assert evaluate(LogLoss(), [1, 0], [1, 0]) == pytest.approx(1e-7, rel=1e-6)


def test_log_loss_of_class_indices():
    rng = np.random.default_rng(0)
    predictions = rng.dirichlet(np.ones(5), size=60).astype(np.float32)
    labels = rng.integers(0, 5, 60)
    expected = -sum(math.log(p[y]) for y, p in zip(labels, predictions, strict=True)) / 60
    assert evaluate(LogLoss(), labels, predictions, cuts=[7, 30]) == pytest.approx(expected)


def test_log_loss_of_two_classes_is_the_binary_one():
    labels, predictions = clicks(100)
    as_classes = np.stack([1 - predictions, predictions], axis=1)
    binary = evaluate(LogLoss(), labels, predictions)
    assert evaluate(LogLoss(), labels, as_classes) == pytest.approx(binary, rel=1e-5)


def test_normalized_entropy_of_the_base_rate_is_one():
    labels = [1, 0, 0, 1, 0]
    assert evaluate(NormalizedEntropy(), labels, [0.4] * 5) == pytest.approx(1, rel=1e-6)
    assert evaluate(NormalizedEntropy(), labels, [0.9, 0.1, 0.1, 0.9, 0.1]) < 1


@pytest.mark.parametrize("label", [0, 1])
def test_normalized_entropy_needs_both_classes(label):
    assert math.isnan(evaluate(NormalizedEntropy(), [label] * 4, [0.5] * 4))


def test_calibration_is_that_of_the_set_not_of_the_batches():
    assert evaluate(Calibration(), [1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5], cuts=[1]) == pytest.approx(2)
    assert math.isnan(evaluate(Calibration(), [0, 0], [0.5, 0.5]))


def test_ece_puts_edges_into_the_bin_above_and_one_into_the_last():
    """A label of 1 and one of 0 in the same bin cancel, in two bins they do not."""
    assert evaluate(ECE(2), [1, 0], [0.5, 1.0]) == pytest.approx(abs(0.75 - 0.5))
    assert evaluate(ECE(2), [1, 0], [0.0, 0.5]) == pytest.approx((1 + 0.5) / 2)


@pytest.mark.parametrize("num_bins", [1, 3, 10, 64])
def test_ece_bins(num_bins):
    labels, predictions = clicks(400, levels=64)
    predictions[:50] = labels[:50]
    expected = reference_ece(labels.tolist(), predictions.tolist(), num_bins)
    assert evaluate(ECE(num_bins), labels, predictions, cuts=[100, 101]) == pytest.approx(expected)


def test_errors_of_values():
    labels, values = [1, 2, 30], [2, 0, 33]
    assert evaluate(MeanSquaredError(), labels, values) == pytest.approx(14 / 3)
    assert evaluate(RootMeanSquaredError(), labels, values, cuts=[1]) == pytest.approx(math.sqrt(14 / 3))
    assert evaluate(MeanAbsoluteError(), labels, values) == pytest.approx(2)


def test_accuracy_thresholds():
    """A probability of one half is a yes, a label of one half is a no."""
    assert evaluate(Accuracy(), [1, 0, 1, 0.5], [0.5, 0.49, 0.49, 0.5]) == 0.5


def test_accuracy_of_classes():
    predictions = [[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.4, 0.3, 0.3]]
    assert evaluate(Accuracy(), [1, 0, 2, 1], predictions, cuts=[3]) == 0.75


# Nothing silent


@pytest.mark.parametrize("name", METRICS)
def test_no_samples_is_nan_and_says_so(name):
    estimate = METRICS[name]().estimate(view_of([], []))
    assert (math.isnan(estimate.value), estimate.reason) == (True, "there are no samples")


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("column", ["labels", "predictions"])
def test_one_nan_makes_the_result_nan(name, column):
    batch = dict(zip(("labels", "predictions"), clicks(50), strict=True))
    assert math.isfinite(evaluate(METRICS[name](), **batch))
    batch[column][7] = np.nan
    estimate = METRICS[name]().estimate(view_of(**batch))
    assert (math.isnan(estimate.value), estimate.reason) == (True, "a label or a prediction is NaN")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("auc", "all labels are of one class"),
        ("gauc", "no user has both a positive and a negative label"),
        ("normalized_entropy", "all labels are of one class"),
        ("recalibrated_normalized_entropy", "all labels are of one class"),
        ("calibration", "the mean label is 0"),
        ("pr_auc", "no label is positive"),
        ("ndcg", "no session has a positive label"),
        ("recall_at_topk", "no session has a positive label"),
        ("hit_rate", "no session has a positive label"),
        ("xauc", "all labels are equal"),
    ],
)
def test_labels_without_a_click_leave_a_reason(name, reason):
    estimate = METRICS[name]().estimate(view_of([0, 0, 0], [0.1, 0.2, 0.3]))
    assert (math.isnan(estimate.value), estimate.reason) == (True, reason)


@pytest.mark.parametrize("metric", [LogLoss, Accuracy])
def test_one_nan_among_classes_makes_the_result_nan(metric):
    assert math.isnan(evaluate(metric(), [0, 1], [[0.5, 0.5], [np.nan, 1.0]]))


@pytest.mark.parametrize("metric", [LogLoss, Accuracy])
@pytest.mark.parametrize("label", [-1, 3, 1.5])
def test_label_that_is_no_class_index(metric, label):
    with pytest.raises(DataError, match=rf"label {label} is not a valid class index; give whole numbers from 0 to 2"):
        evaluate(metric(), [0, label], [[0.2, 0.5, 0.3], [0.2, 0.5, 0.3]])


@pytest.mark.parametrize("name", METRICS)
def test_shapes_that_would_broadcast_are_refused(name):
    with pytest.raises(ValueError, match=r"labels \(4, 1\) and predictions \(4,\)"):
        metric_value(METRICS[name](), np.zeros((4, 1)), np.zeros(4))
    with pytest.raises(ValueError, match=r"labels \(4,\) and predictions \(1,\)"):
        metric_value(METRICS[name](), np.zeros(4), np.zeros(1))


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"log_loss", "accuracy"}))
def test_class_probabilities_where_they_mean_nothing(name):
    with pytest.raises(ValueError, match=r"predictions \(4, 2\); give labels \[N\] and predictions \[N\]$"):
        metric_value(METRICS[name](), np.zeros(4), np.zeros((4, 2)))


def test_settings_that_mean_nothing():
    with pytest.raises(
        ConfigError, match=r"gauc.reduction: 'mean_by_samples_num' .* did you mean 'mean_by_sample_num'"
    ):
        GAUC(reduction="mean_by_samples_num")
    with pytest.raises(ConfigError, match=r"gauc.reduction: 'max' .* mean, mean_by_positive_num, mean_by_sample_num"):
        GAUC(reduction="max")
    with pytest.raises(ConfigError, match=r"ece.num_bins: 0"):
        ECE(num_bins=0)
    with pytest.raises(ConfigError, match=r"calibration_curve.num_bins: 0"):
        CalibrationCurve(num_bins=0)
    with pytest.raises(ConfigError, match=r"calibration_curve.strategy: 'mass' .* quantile, uniform"):
        CalibrationCurve(strategy="mass")


# Precision


def test_a_million_float32_keep_float64_precision():
    """float32 sums of these lose the fourth digit: 1e6 squares of about 1e6 over many batches."""
    rng = np.random.default_rng(0)
    labels = rng.normal(1e3, 300, 1_000_000).astype(np.float32)
    predictions = rng.normal(0, 300, 1_000_000).astype(np.float32)
    cuts = range(0, 1_000_000, 1000)
    exact = math.fsum(np.square(predictions.astype(np.float64) - labels.astype(np.float64))) / 1_000_000
    assert evaluate(MeanSquaredError(), labels, predictions, cuts=cuts) == pytest.approx(exact, rel=1e-13)
    exact = math.fsum(predictions) / math.fsum(labels)
    assert evaluate(Calibration(), labels, predictions, cuts=cuts) == pytest.approx(exact, rel=1e-10)


def test_a_million_probabilities_keep_float64_precision():
    labels, predictions = clicks(1_000_000)
    wide = np.where(labels == 1, predictions.astype(np.float64), 1 - predictions.astype(np.float64))
    exact = -math.fsum(np.log(np.clip(wide, 1e-7, 1 - 1e-7))) / 1_000_000
    assert evaluate(LogLoss(), labels, predictions, cuts=range(0, 1_000_000, 1000)) == pytest.approx(exact, rel=1e-12)
