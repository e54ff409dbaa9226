"""The report on an input: figures derived from what was counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from easyrec_mm.data.bad_records import BadRecord
from easyrec_mm.features.field import Kind
from easyrec_mm.features.quantiles import quantile_boundaries
from easyrec_mm.stats.correlation import Correlation, correlate
from easyrec_mm.stats.fields import FieldStats, SampleStats, Values
from easyrec_mm.stats.pictures import PathStats, PictureStats

# Number of frequent values in a report.
NUM_SHOWN = 15
NUM_BAD_SHOWN = 10
# Number of buckets for which boundaries of numbers are proposed.
NUM_BUCKETS = 16
_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
_NUM_BINS = 10


@dataclass(frozen=True)
class Rate:
    """A value or a range of values, in the sample of rows: how many rows have it, and label -> mean."""

    name: str
    count: int
    means: dict[str, float]


@dataclass(frozen=True)
class FieldReport:
    """The report on a field.

    missing      share of the samples without a value
    distinct     number of different values; an estimate (with an error of about 1 %) unless is_exact
    numbers      mean, deviation, least, greatest, zeros (share) and quantiles, for a field of numbers
    boundaries   of buckets with about equally many values each, for a field of numbers with many values
    top          (value, number of samples) of the most frequent values; counts may be too low by top_error
    rates        by the most frequent values, or by ranges of about equally many samples each
    correlation  label -> correlation with it
    parts        for a field whose texts hold several values: the report on these values
    per_sample   for such a field: mean number of these values per sample
    """

    name: str
    kind: Kind
    is_label: bool
    missing: float
    distinct: int
    is_exact: bool
    top: list[tuple[str, int]]
    top_error: int
    rates: list[Rate]
    correlation: dict[str, Correlation]
    numbers: dict[str, Any] = field(default_factory=dict)
    boundaries: tuple[float, ...] = ()
    parts: FieldReport | None = None
    per_sample: float | None = None


@dataclass(frozen=True)
class Report:
    """The report on an input."""

    name: str
    num_files: int
    is_flat: bool
    num_samples: int
    num_sampled: int
    sizes: dict[int, int]
    fields: list[FieldReport]
    num_refused: int
    bad: list[BadRecord]
    num_pictures: int = 0
    num_without_picture: int = 0
    pictures: PictureStats | None = None

    @property
    def num_groups(self) -> int:
        """Return the number of valid groups."""
        return sum(self.sizes.values())

    @property
    def labels(self) -> list[FieldReport]:
        """Return the fields that are labels."""
        return [field_report for field_report in self.fields if field_report.is_label]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as values for JSON, with figures in place of pictures."""
        values: dict[str, Any] = {
            "input": self.name,
            "files": self.num_files,
            "samples": self.num_samples,
            "sampled_rows": self.num_sampled,
            "groups": None if self.is_flat else self.num_groups,
            "group_sizes": None if self.is_flat else {str(size): self.sizes[size] for size in sorted(self.sizes)},
            "refused": self.num_refused,
            "refused_first": [vars(record) for record in self.bad],
            "fields": {field_report.name: _field_dict(field_report) for field_report in self.fields},
        }
        if self.pictures is not None:
            values["pictures"] = {
                "distinct": self.num_pictures,
                "groups_without": self.num_without_picture,
                "opened": len(self.pictures.pictures) + len(self.pictures.problems),
                "bad": dict(self.pictures.problems),
                **{
                    attribute: dict(self.pictures.counts(attribute).most_common())
                    for attribute in ("format", "mode", "size")
                },
                "look_alike": [[picture.path for picture in group] for group in self.pictures.alike],
            }
        return values


def make_report(
    name: str,
    num_files: int,
    stats: SampleStats,
    refused: Sequence[BadRecord],
    num_refused: int,
    paths: PathStats,
    pictures: PictureStats | None,
) -> Report:
    """Return the report on what was counted.

    Args:
      name: name of the input.
      num_files: number of files that were read.
      stats: statistics of the valid groups.
      refused: the first groups that were refused.
      num_refused: number of all groups that were refused.
      paths, pictures: statistics of the pictures, for an input with pictures.
    """
    sample = stats.sample.rows()
    rows = sample.to_pandas() if sample is not None else pd.DataFrame(columns=list(stats.fields.kinds))
    labels = {label: rows[label].astype(float) for label in stats.fields.labels}
    fields = [_field(name, stats, rows, labels) for name in stats.fields.kinds]
    return Report(
        name=name,
        num_files=num_files,
        is_flat=stats.fields.is_flat,
        num_samples=stats.num_samples,
        num_sampled=len(rows),
        sizes=stats.sizes,
        fields=fields,
        num_refused=num_refused,
        bad=list(refused[:NUM_BAD_SHOWN]),
        num_pictures=paths.num_distinct,
        num_without_picture=paths.num_without,
        pictures=pictures,
    )


def _field(name: str, stats: SampleStats, rows: pd.DataFrame, labels: dict[str, pd.Series]) -> FieldReport:
    field_stats = stats.of_field[name]
    is_label = name in labels
    other_labels = {label: values for label, values in labels.items() if label != name}
    correlations = {
        label: correlate(rows[name], values, field_stats.is_number) for label, values in other_labels.items()
    }
    separator = stats.fields.separators.get(name, "")
    numbers: dict[str, Any] = {}
    boundaries: tuple[float, ...] = ()
    if field_stats.is_number:
        numbers = _numbers(field_stats, rows[name])
        if field_stats.values.column.num_distinct > NUM_BUCKETS and not is_label and field_stats.kind != "bool":
            boundaries = quantile_boundaries(rows[name].dropna().to_numpy(float), NUM_BUCKETS)
    return FieldReport(
        name=name,
        kind=field_stats.kind,
        is_label=is_label,
        **_values(field_stats.values),
        rates=_rates(rows[name], labels, field_stats, separator),
        correlation={label: correlation for label, correlation in correlations.items() if correlation is not None},
        numbers=numbers,
        boundaries=boundaries,
        parts=_parts(name, field_stats.parts) if field_stats.parts else None,
        per_sample=field_stats.parts.column.num_rows / max(stats.num_samples, 1) if field_stats.parts else None,
    )


def _parts(name: str, parts: Values) -> FieldReport:
    return FieldReport(name=name, kind="string", is_label=False, **_values(parts), rates=[], correlation={})


def _values(values: Values) -> dict[str, Any]:
    column = values.column
    return {
        "missing": column.num_missing / max(column.num_rows, 1),
        "distinct": column.num_distinct,
        "is_exact": column.counts is not None,
        "top": [(_shown(value, column.kind), count) for value, count in values.top.most_common(NUM_SHOWN)],
        "top_error": values.top.error,
    }


def _shown(value: Any, kind: Kind) -> str:
    return str(np.float32(value)) if kind == "float32" else str(value)


def _numbers(field_stats: FieldStats, sampled: pd.Series) -> dict[str, Any]:
    column = field_stats.values.column
    values = sampled.dropna().to_numpy(float)
    quantiles = np.quantile(values, _QUANTILES).tolist() if len(values) else []
    return {
        "mean": field_stats.mean,
        "deviation": field_stats.deviation,
        "least": column.least,
        "greatest": column.greatest,
        "zeros": field_stats.num_zeros / max(column.num_values, 1),
        "quantiles": {f"{share:g}": value for share, value in zip(_QUANTILES, quantiles, strict=False)},
    }


def _rates(column: pd.Series, labels: dict[str, pd.Series], field_stats: FieldStats, separator: str) -> list[Rate]:
    """Return the rates by ranges of a number with many values, else by the most frequent values."""
    values = column.dropna()
    if not len(values) or (separator and field_stats.parts):
        return []
    if field_stats.is_number and values.nunique() > NUM_SHOWN:
        limits = quantile_boundaries(values.to_numpy(float), _NUM_BINS)
        keys = np.digitize(values.to_numpy(float), limits)
        edges = [float(values.min()), *limits, float(values.max())]
        names = {i: f"{low:.4g} to {high:.4g}" for i, (low, high) in enumerate(pairwise(edges))}
        order = list(names)
    else:
        order = values.value_counts().index[:NUM_SHOWN].tolist()
        order = sorted(order) if field_stats.is_number else order
        names = {
            value: f"{value:g}" if field_stats.is_number and not isinstance(value, bool) else str(value)
            for value in order
        }
        keys = values.to_numpy()
    rows = {name: label[values.index] for name, label in labels.items()}
    groups = pd.DataFrame(rows, index=values.index).groupby(keys)
    means, counts = groups.mean(), groups.size()
    return [
        Rate(names[key], int(counts[key]), {name: float(means[name][key]) for name in labels})
        for key in order
        if key in counts.index
    ]


def _field_dict(field_report: FieldReport) -> dict[str, Any]:
    values = {
        key: value for key, value in vars(field_report).items() if key not in ("name", "parts", "correlation", "rates")
    }
    values["top"] = [list(item) for item in field_report.top]
    values["correlation"] = {label: correlation._asdict() for label, correlation in field_report.correlation.items()}
    values["rates"] = [vars(rate) for rate in field_report.rates]
    values["parts"] = _field_dict(field_report.parts) if field_report.parts else None
    return values
