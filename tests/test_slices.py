"""Slices of the evaluation data: which rows are in which, and what is told of those that have no value."""

from __future__ import annotations

import json

import numpy as np
import pytest
from metric_helpers import clicks

from easyrec_mm.errors import DataError
from easyrec_mm.evaluation import slices
from easyrec_mm.evaluation.metrics import MeanSquaredError, metric_value
from easyrec_mm.evaluation.rank_metrics import AUC
from easyrec_mm.evaluation.report import as_json, comparison_table, table
from easyrec_mm.evaluation.rows import Rows
from easyrec_mm.evaluation.slices import ByFrequency, ByPicture, ByQuantile, ByValue
from easyrec_mm.evaluation.summary import CLUSTER, Entry, results_of, summarize
from easyrec_mm.evaluation.weights import ClusterWeights
from easyrec_mm.stable_hash import hash_array, mix


def sliced(slicer, values, labels=None, scores=None, num_replicates=0, clusters=None):
    """Results of AUC and squared error over the slices of some values, in two batches."""
    if labels is None:
        labels, scores = clicks(len(values))
    clusters = mix(np.arange(len(labels), dtype=np.uint64)) if clusters is None else clusters
    rows = Rows()
    for part in (slice(0, len(labels) // 2), slice(len(labels) // 2, None)):
        columns = {"label": labels[part], "score": scores[part], CLUSTER: clusters[part]}
        rows.append({**columns, slicer.column: slicer.raw(values[part])})
    entries = [Entry("auc_click", AUC(), "label", "score"), Entry("mse_click", MeanSquaredError(), "label", "score")]
    return results_of(summarize(rows, entries, [slicer], ClusterWeights(num_replicates)), num_replicates)


def counts_of(results):
    return {name: value for name, value in results.items() if name.startswith("num_samples/")}


def texts(*names):
    return np.array([name.encode() for name in names], dtype=object)


def test_a_slice_has_the_metrics_of_its_rows_alone():
    labels, scores = clicks(400)
    cities = texts(*(["Rom", "Paris"] * 200))
    results = sliced(ByValue("city", 10, "here"), cities, labels, scores)
    for i, city in enumerate(["Rom", "Paris"]):
        assert results[f"auc_click/city={city}"] == metric_value(AUC(), labels[i::2], scores[i::2])
        assert results[f"num_samples/city={city}"] == 200
    assert results["auc_click"] == metric_value(AUC(), labels, scores)


def test_values_beyond_the_most_frequent_ones_are_others():
    values = texts(*["a"] * 5, *["b"] * 4, *["c"] * 3, *["d"] * 3, "e", "")
    assert counts_of(sliced(ByValue("x", 2, "here"), values)) == {
        "num_samples/x=a": 5, "num_samples/x=b": 4, "num_samples/x=others": 8,
    }  # fmt: skip
    # One value more is shown in the place of the others.
    assert counts_of(sliced(ByValue("x", 5, "here"), values)) == {
        "num_samples/x=a": 5, "num_samples/x=b": 4, "num_samples/x=c": 3, "num_samples/x=d": 3,
        "num_samples/x=(empty)": 1, "num_samples/x=e": 1,
    }  # fmt: skip


def test_numbers_are_values_too():
    results = sliced(ByValue("hour", 9, "here"), np.array([3, 3, 3, 12, 12, -1]))
    assert counts_of(results) == {
        "num_samples/hour=3": 3, "num_samples/hour=12": 2, "num_samples/hour=-1": 1,
    }  # fmt: skip


def test_too_many_values_are_refused(monkeypatch):
    monkeypatch.setattr(slices, "MAX_DISTINCT", 3)
    with pytest.raises(DataError, match=r"slices\[0\].field: 'user' has more than 3 different values; .*num_quantiles"):
        ByValue("user", 2, "eval_config.slices[0].field").raw(texts("a", "b", "c", "d"))


def test_quantile_bins_hold_as_many_rows_each():
    values = np.random.default_rng(0).permutation(1000) / 10
    results = sliced(ByQuantile("price", 4), values)
    assert counts_of(results) == {
        "num_samples/price=below 25": 250, "num_samples/price=25..50": 250,
        "num_samples/price=50..75": 250, "num_samples/price=from 75": 250,
    }  # fmt: skip
    assert counts_of(sliced(ByQuantile("price", 4), np.full(6, 2.0))) == {"num_samples/price=all": 6}


def test_frequency_is_that_of_training():
    items = hash_array(texts("seen", "often", "never"))
    known = np.sort(items[:2])
    counts = np.where(known == items[1], 20, 19)
    results = sliced(ByFrequency((known, counts), 20), np.repeat(items, [1, 2, 3]))
    assert counts_of(results) == {
        "num_samples/item_frequency=unseen": 3,
        "num_samples/item_frequency=rare": 1,
        "num_samples/item_frequency=frequent": 2,
    }


def test_nothing_is_silent_about_what_has_no_value():
    labels, scores = np.array([0, 1, 1, 1], np.float32), np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    results = sliced(ByPicture(), np.array([True, True, True, True]), labels, scores, 40, np.array([1, 1, 2, 2], "u8"))
    assert results.undefined["auc_click/has_picture=false"] == "there are no samples"
    document = json.loads(json.dumps(as_json(results), allow_nan=False))
    assert document["auc_click/has_picture=false"] is None
    assert document["undefined"]["auc_click/has_picture=false"] == "there are no samples"
    assert document["num_samples/has_picture=false"] == 0
    assert "auc_click  undefined: there are no samples" in table(results)


def test_a_single_cluster_has_no_interval():
    labels, scores = clicks(20)
    results = sliced(ByPicture(), np.ones(20, bool), labels, scores, 40, np.zeros(20, np.uint64))
    assert results.intervals == {}
    assert results.no_intervals["auc_click"] == "all rows are of one cluster"
    assert "(no interval: all rows are of one cluster)" in table(results)


def test_the_table_has_intervals_and_a_section_for_each_slice():
    results = sliced(ByValue("city", 3, "here"), texts(*["Rom"] * 30, *["Paris"] * 50), num_replicates=50)
    lines = table(results).splitlines()
    low, high = results.intervals["auc_click"]
    assert lines[0] == f"auc_click    {results['auc_click']:.6f} [{low:.4f}, {high:.4f}]"
    assert "city=Paris: 50 samples" in lines
    assert lines[lines.index("city=Rom: 30 samples") + 1].startswith("  auc_click  0.")


def test_the_table_of_a_comparison_says_why_there_is_no_interval():
    row = {"this": 0.5, "other": None, "difference": None, "interval": None, "p_value": None, "reason": "why"}
    good = {"this": 0.6, "other": 0.5, "difference": 0.1, "interval": [0.05, 0.15], "p_value": 0.01}
    text = comparison_table({"differences": {"auc_a": row, "auc_b": {**good, "delong_p_value": 0.002}}})
    assert text.splitlines()[1].split() == ["auc_a", "0.500000", "why"]
    assert text.splitlines()[2].split() == [
        "auc_b", "0.600000", "0.500000", "+0.100000", "[+0.0500,", "+0.1500]", "0.01", "0.002",
    ]  # fmt: skip
