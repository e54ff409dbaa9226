"""Computes results from rows and metrics, for all data and per slice, with intervals; and compares two models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from easyrec_mm.evaluation.calibration import CalibrationCurve
from easyrec_mm.evaluation.estimates import Difference, Estimate, difference, interval, no_interval
from easyrec_mm.evaluation.metrics import Metric
from easyrec_mm.evaluation.rows import Rows
from easyrec_mm.evaluation.slices import Slicer
from easyrec_mm.evaluation.views import Undefined, View
from easyrec_mm.evaluation.weights import ClusterWeights
from easyrec_mm.stable_hash import combine, hash_array

Array = npt.NDArray[Any]
CLUSTER = "cluster"
_SCAN_ROWS = 1 << 16
# Clusters of a slice are counted up to about this number, since it only matters whether they are enough.
_MAX_CLUSTERS = 10_000


@dataclass(frozen=True)
class Entry:
    """A metric, and the columns of Rows from which it is computed.

    name    name of the result
    metric  the metric to compute
    label   column of the label
    score   column of the prediction
    group   column of users or sessions; "" for metrics without groups
    """

    name: str
    metric: Metric | CalibrationCurve
    label: str
    score: str
    group: str = ""

    def view(self, rows: Rows, weights: ClusterWeights) -> View:
        """Return the view of the rows that the metric reads."""
        return View(rows, self.label, self.score, CLUSTER, weights, self.group)


@dataclass(frozen=True)
class Part:
    """A part of the rows: all of them, or a slice.

    suffix        suffix of the names of its results: "" or "/<slicer>=<value>"
    num_samples   number of rows
    num_clusters  number of distinct clusters; for a slice, the count stops at about 10,000
    """

    suffix: str
    num_samples: int
    num_clusters: int
    slicer: Slicer | None = None
    code: int = 0

    def of(self, view: View) -> View:
        """Return the view restricted to this part."""
        slicer, code = self.slicer, self.code
        if slicer is None:
            return view

        def selected(columns: Mapping[str, Array]) -> Array:
            return np.equal(slicer.codes(columns[slicer.column]), code)

        return replace(view, selected=selected, inputs=(slicer.column,))


class EvalResults(dict[str, float]):
    """Name -> value for all results that are one number, including "num_samples"; attributes hold the rest.

    undefined     name -> why the value is NaN
    parts         all data, and the slices
    curves        name -> bins of a calibration curve
    intervals     name -> limits of the interval, if it has one
    no_intervals  name -> why it has no interval
    confidence    how the intervals were computed; {} without intervals
    comparison    differences to another model; {} without a comparison
    """

    def __init__(self, values: Mapping[str, float] | None = None) -> None:
        super().__init__(values or {})
        self.undefined: dict[str, str] = {}
        self.parts: list[Part] = []
        self.curves: dict[str, list[dict[str, Any]]] = {}
        self.intervals: dict[str, tuple[float, float]] = {}
        self.no_intervals: dict[str, str] = {}
        self.confidence: dict[str, Any] = {}
        self.comparison: dict[str, Any] = {}


@dataclass
class Summary:
    """Everything computed from one model's rows.

    parts        all rows, and the slices
    fingerprint  hash of labels and clusters, independent of the order of the rows
    estimates    result name -> estimate
    curves       result name -> bins
    undefined    result name -> why it has no value
    """

    parts: list[Part]
    fingerprint: int = 0
    estimates: dict[str, Estimate] = field(default_factory=dict)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)


def summarize(
    rows: Rows, entries: Sequence[Entry], slicers: Sequence[Slicer] = (), weights: ClusterWeights | None = None
) -> Summary:
    """Compute all metrics over all rows and over each slice.

    Args:
      rows: rows with the columns that entries and slicers name, and the column "cluster", uint64.
      entries: the metrics.
      slicers: how to divide the rows.
      weights: weights of bootstrap replicates; by default no replicates.
    """
    weights = weights or ClusterWeights()
    for slicer in slicers:
        slicer.finish(rows)
    parts, clusters = parts_of(rows, slicers)
    weights.prepare(clusters)
    summary = Summary(parts, _fingerprint(rows, sorted({entry.label for entry in entries})))
    # Entries that read rows in the same order are computed together, so that Rows sort as rarely as possible.
    for entry in sorted(entries, key=lambda entry: (entry.group, entry.score)):
        view = entry.view(rows, weights)
        if isinstance(entry.metric, CalibrationCurve):
            try:
                summary.curves[entry.name] = entry.metric.curve(view)
            except Undefined as error:
                summary.undefined[entry.name] = str(error)
            continue
        for part in summary.parts:
            estimate = entry.metric.estimate(part.of(view))
            name = entry.name + part.suffix
            summary.estimates[name] = replace(estimate, num_clusters=part.num_clusters)
            if estimate.reason:
                summary.undefined[name] = estimate.reason
    order = [f"{entry.name}{part.suffix}" for part in summary.parts for entry in entries]
    summary.estimates = {name: summary.estimates[name] for name in order if name in summary.estimates}
    return summary


def parts_of(rows: Rows, slicers: Sequence[Slicer]) -> tuple[list[Part], Array]:
    """Return the parts (all rows, then each slice of each slicer), and all clusters, uint64 `[C]` ascending."""
    counts = {slicer.column: np.zeros(len(slicer.values), np.int64) for slicer in slicers}
    clusters: dict[tuple[str, int], Array] = {}

    def add_clusters(key: tuple[str, int], chunk_clusters: Array) -> None:
        known_clusters = clusters.get(key, chunk_clusters[:0])
        if not key[0] or len(known_clusters) < _MAX_CLUSTERS:
            clusters[key] = np.union1d(known_clusters, chunk_clusters)

    for chunk in rows.chunks([CLUSTER, *counts], _SCAN_ROWS):
        add_clusters(("", 0), chunk[CLUSTER])
        for slicer in slicers:
            codes = slicer.codes(chunk[slicer.column])
            counts[slicer.column] += np.bincount(codes, minlength=len(slicer.values))
            for code in np.unique(codes).tolist():
                add_clusters((slicer.column, code), chunk[CLUSTER][codes == code])
    num_clusters = {key: len(members) for key, members in clusters.items()}
    parts = [Part("", len(rows), num_clusters.get(("", 0), 0))]
    for slicer in slicers:
        for code, value in enumerate(slicer.values):
            num_samples = int(counts[slicer.column][code])
            of_slice = num_clusters.get((slicer.column, code), 0)
            parts.append(Part(f"/{slicer.name}={value}", num_samples, of_slice, slicer, code))
    return parts, clusters.get(("", 0), np.zeros(0, np.uint64))


def _fingerprint(rows: Rows, labels: list[str]) -> int:
    total = 0
    for chunk in rows.chunks([CLUSTER, *labels], _SCAN_ROWS):
        hashes = chunk[CLUSTER]
        for label in labels:
            hashes = combine(hashes, hash_array(chunk[label]))
        total += int(hashes.sum(dtype=np.uint64))
    return total % (1 << 64)


def results_of(summary: Summary, num_replicates: int = 0, level: float = 0.95, clusters: str = "") -> EvalResults:
    """Convert a summary to results.

    Args:
      summary: result of `summarize`.
      num_replicates: number of replicates of its estimates; 0 for no intervals.
      level: confidence level of the intervals.
      clusters: name of the unit that was drawn, for reports.
    """
    results = EvalResults({name: estimate.value for name, estimate in summary.estimates.items()})
    for part in summary.parts:
        results[f"num_samples{part.suffix}"] = part.num_samples
    results.parts, results.curves, results.undefined = summary.parts, summary.curves, summary.undefined
    if num_replicates:
        results.confidence = {
            "method": "percentiles of the Poisson bootstrap of clusters",
            "clusters": clusters,
            "num_clusters": summary.parts[0].num_clusters,
            "num_replicates": num_replicates,
            "level": level,
        }
        for name, estimate in summary.estimates.items():
            limits = interval(estimate, level)
            if limits is not None:
                results.intervals[name] = limits
            else:
                results.no_intervals[name] = no_interval(estimate)
    return results


def compare(first: Summary, second: Summary, level: float = 0.95) -> dict[str, Difference]:
    """Return paired differences, first minus second, of all metrics that both have, over all rows and each slice.

    Both summaries must have the same rows, clusters, labels, replicates and seed.

    Raises:
      ValueError: if labels, clusters or numbers of replicates differ.
    """
    if first.fingerprint != second.fingerprint:
        raise ValueError("labels or clusters differ: the two are not of the same rows")
    return {
        name: difference(estimate, second.estimates[name], level)
        for name, estimate in first.estimates.items()
        if name in second.estimates
    }


def finite(value: float) -> float | None:
    """Return the value, or None if it is not finite, because JSON has no such numbers."""
    return value if math.isfinite(value) else None
