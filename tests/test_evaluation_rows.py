"""Rows in memory and on disk: the same in every order, and every metric of them."""

from __future__ import annotations

import numpy as np
import pytest
from metric_helpers import METRICS, clicks

from easyrec_mm.evaluation.rows import Rows
from easyrec_mm.evaluation.slices import ByQuantile, ByValue
from easyrec_mm.evaluation.summary import CLUSTER, Entry, results_of, summarize
from easyrec_mm.evaluation.weights import ClusterWeights
from easyrec_mm.stable_hash import mix

# Each batch goes to disk at once.
TINY = 1 << 10


def columns_of(num_rows, seed=0):
    rng = np.random.default_rng(seed)
    labels, scores = clicks(num_rows, levels=50)
    groups = mix(rng.integers(0, 37, num_rows).astype(np.uint64))
    clusters = mix(rng.integers(0, 50, num_rows).astype(np.uint64))
    price = rng.integers(0, 9, num_rows)
    return {"label": labels, "score": scores, "group": groups, CLUSTER: clusters, "price": price}


def rows_of(columns, max_memory, batch=100):
    rows = Rows(max_memory)
    for start in range(0, len(columns["label"]), batch):
        rows.append({name: values[start : start + batch] for name, values in columns.items()})
    return rows


def read(rows, names, num_rows, **more):
    chunks = list(rows.chunks(names, num_rows, **more))
    return chunks, {name: np.concatenate([chunk[name] for chunk in chunks]) for name in names}


@pytest.mark.parametrize("max_memory", [TINY, 1 << 30])
def test_rows_come_in_the_order_that_is_asked_for(max_memory):
    columns = columns_of(1000)
    with rows_of(columns, max_memory) as rows:
        assert rows.is_on_disk == (max_memory == TINY)
        assert len(rows) == 1000
        _, columns_read = read(rows, ["price", "label"], 64)
        assert np.array_equal(columns_read["price"], columns["price"])
        assert np.array_equal(rows.column("label"), columns["label"])
        chunks, columns_read = read(rows, ["group", "score"], 64, order=["group", "-score"])
        order = np.lexsort((-columns["score"], columns["group"]))
        for name in ("group", "score"):
            assert np.array_equal(columns_read[name], columns[name][order])
        assert max(len(chunk["group"]) for chunk in chunks) <= 64
        _, columns_read = read(rows, ["score"], 1000, order=["-score"])
        assert np.array_equal(columns_read["score"], np.sort(columns["score"])[::-1])
        chunks, columns_read = read(rows, ["score"], 64, order=["group", "-score"], run_column="group")
        assert np.array_equal(columns_read["score"], columns["score"][order])
        groups = [set(chunk["group"].tolist()) for chunk in chunks]
        assert sum(map(len, groups)) == len(set().union(*groups)) == 37
    assert not rows.is_on_disk


def test_groups_larger_than_chunks_stay_whole():
    columns = columns_of(50) | {"group": np.repeat(np.arange(3, dtype=np.uint64), [1, 48, 1])}
    chunks, _ = read(rows_of(columns, 1 << 30), ["group"], 10, order=["group"], run_column="group")
    assert [len(chunk["group"]) for chunk in chunks] == [1, 48, 1]


def test_rows_may_be_added_after_they_were_read():
    columns = columns_of(300)
    for max_memory in (TINY, 1 << 30):
        with rows_of({name: values[:200] for name, values in columns.items()}, max_memory) as rows:
            assert len(read(rows, ["score"], 64, order=["-score"])[1]["score"]) == 200
            rows.append({name: values[200:] for name, values in columns.items()})
            _, columns_read = read(rows, ["score"], 64, order=["-score"])
            assert np.array_equal(columns_read["score"], np.sort(columns["score"])[::-1])


def test_the_callers_batch_may_be_reused():
    columns = columns_of(10)
    rows = rows_of(columns, 1 << 30)
    expected = columns["score"].copy()
    columns["score"][:] = 0
    assert np.array_equal(rows.column("score"), expected)


def test_columns_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        Rows().append({"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        Rows().append({"a": np.zeros((2, 1))})


def test_results_on_disk_are_those_in_memory():
    """All metrics with replicates and slices, in a memory that holds not one batch."""
    columns = columns_of(3000)
    entries = [Entry(name, make(), "label", "score", "group") for name, make in METRICS.items()]
    outcomes = []
    for max_memory in (TINY, 1 << 30):
        quantiles, values = ByQuantile("price_bin", 3), ByValue("price", 4, "here")
        extra = {quantiles.column: quantiles.raw(columns["price"]), values.column: values.raw(columns["price"])}
        with rows_of({**columns, **extra}, max_memory, batch=500) as rows:
            summary = summarize(rows, entries, [quantiles, values], ClusterWeights(30))
        outcomes.append((summary, results_of(summary, 30)))
    (on_disk, results), (in_memory, expected) = outcomes
    assert results == pytest.approx(expected, rel=1e-12)
    assert results.intervals.keys() == expected.intervals.keys()
    assert len(expected.intervals) == len(METRICS) * (1 + 3 + 5)
    for name, estimate in in_memory.estimates.items():
        assert on_disk.estimates[name].replicates == pytest.approx(estimate.replicates, rel=1e-9, nan_ok=True)
    assert on_disk.fingerprint == in_memory.fingerprint
