"""What is told of an input: figures made of what was counted, and these as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from easyrec_mm.data.bad_records import BadRecord
from easyrec_mm.grouping.columns import Kind
from easyrec_mm.quantiles import quantile_boundaries
from easyrec_mm.stats.correlation import Correlation, correlate
from easyrec_mm.stats.fields import FieldStats, SampleStats, Values
from easyrec_mm.stats.pictures import PathStats, PictureStats

# Frequent values that are told, in text and on the page.
NUM_SHOWN_TEXT, NUM_SHOWN = 3, 15
NUM_BAD_SHOWN = 10
# Buckets of boundaries that are proposed for numbers.
NUM_BUCKETS = 16
_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
_NUM_BINS = 10
_WIDEST_CELL = 28


@dataclass(frozen=True)
class Rate:
    """A value or a range of values, in the sample of rows: how many have it, and label -> mean."""

    name: str
    count: int
    means: dict[str, float]


@dataclass(frozen=True)
class FieldReport:
    """What is told of a field.

    missing      share of the samples without a value
    distinct     different values; an estimate (of about 1 %) unless is_exact
    numbers      mean, deviation, least, greatest, zeros (share) and quantiles; of a field of numbers
    boundaries   of buckets that hold about as many values each; of a field of numbers with many
    top          (value, samples) of the most frequent; counts may be too low by top_error
    rates        by the most frequent values, or by ranges of about as many samples each
    correlation  label -> correlation with it
    parts        of a field whose texts hold several values: what these are
    per_sample   of such a field: their mean number in a sample
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
    """Everything that is told of an input."""

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
        """Good groups."""
        return sum(self.sizes.values())

    @property
    def labels(self) -> list[FieldReport]:
        """The fields that are labels."""
        return [one for one in self.fields if one.is_label]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; pictures as figures."""
        values: dict[str, Any] = {
            "input": self.name,
            "files": self.num_files,
            "samples": self.num_samples,
            "sampled_rows": self.num_sampled,
            "groups": None if self.is_flat else self.num_groups,
            "group_sizes": None if self.is_flat else {str(size): self.sizes[size] for size in sorted(self.sizes)},
            "refused": self.num_refused,
            "refused_first": [vars(record) for record in self.bad],
            "fields": {one.name: _field_dict(one) for one in self.fields},
        }
        if self.pictures is not None:
            values["pictures"] = {
                "distinct": self.num_pictures,
                "groups_without": self.num_without_picture,
                "opened": len(self.pictures.pictures) + len(self.pictures.problems),
                "bad": dict(self.pictures.problems),
                **{what: dict(self.pictures.counts(what).most_common()) for what in ("format", "mode", "size")},
                "look_alike": [[one.path for one in group] for group in self.pictures.alike],
            }
        return values

    def text(self) -> str:
        """For a terminal."""
        rows = "rows" if self.is_flat else "groups"
        share = self.num_refused / max(self.num_groups + self.num_refused, 1)
        lines = [
            f"{self.name}: {self.num_files} file(s), "
            + ("" if self.is_flat else f"{self.num_groups:,} groups, ")
            + f"{self.num_samples:,} samples; {self.num_refused:,} {rows} refused ({share:.2%})",
            *([] if self.is_flat else [f"  group size: {_sizes(self.sizes)}"]),
            "\nlabels",
            *(_label_line(one) for one in self.labels),
            *([] if self.labels else ["  none"]),
            "\nfields",
            *_table(_field_rows(self.fields)),
            *self._correlation_lines(),
            *self._boundary_lines(),
            *self._picture_lines(),
            f"\nrefused {rows}" + ("" if self.bad else ": none"),
            *[f"  {record}" for record in self.bad],
            *([f"  and {self.num_refused - len(self.bad):,} more"] if self.num_refused > len(self.bad) else []),
        ]
        return "\n".join(lines)

    def _correlation_lines(self) -> list[str]:
        names = [label.name for label in self.labels]
        some = [one for one in self.fields if one.correlation]
        if not names or not some:
            return []
        some.sort(key=lambda one: -max(abs(c.strength) for c in one.correlation.values()))
        rows = [("field", *names)]
        rows += [(one.name, *(_correlation(one.correlation.get(name)) for name in names)) for one in some]
        title = f"\ncorrelation with labels, in {self.num_sampled:,} samples (r of numbers, share of others)"
        return [title, *_table(rows)]

    def _boundary_lines(self) -> list[str]:
        some = [one for one in self.fields if one.boundaries]
        lines = [f"  {one.name}: boundaries: [{', '.join(f'{x:g}' for x in one.boundaries)}]" for one in some]
        return [f"\nquantiles of numbers, {NUM_BUCKETS} buckets", *lines] if some else []

    def _picture_lines(self) -> list[str]:
        if self.pictures is None:
            return []
        found = self.pictures
        opened = len(found.pictures) + len(found.problems)
        alike = sum(map(len, found.alike))
        lines = [
            "\npictures",
            f"  {self.num_pictures:,} distinct; {self.num_without_picture:,} "
            f"{'rows' if self.is_flat else 'groups'} without one; {opened:,} opened, {len(found.problems):,} bad",
        ]
        lines += [f"  {what}s: {_counts(found.counts(what).most_common())}" for what in ("format", "mode", "size")]
        lines.append(
            f"  look alike: {alike:,} pictures in {len(found.alike):,} groups" if alike else "  look alike: none"
        )
        for group in found.alike[:NUM_SHOWN_TEXT]:
            more = f" and {len(group) - 3} more" if len(group) > 3 else ""
            lines.append(f"    {', '.join(one.path for one in group[:3])}{more}")
        lines += [f"  bad: {path}: {problem}" for path, problem in found.problems[:NUM_BAD_SHOWN]]
        return lines


def make_report(
    name: str,
    num_files: int,
    stats: SampleStats,
    refused: Sequence[BadRecord],
    num_refused: int,
    paths: PathStats,
    pictures: PictureStats | None,
) -> Report:
    """The report of what was counted.

    Args:
      name: of the input.
      num_files: that were read.
      stats: of the good groups.
      refused: the first of the others.
      num_refused: how many those are.
      paths, pictures: of an input with pictures.
    """
    sample = stats.sample.table
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
    found = stats.of_field[name]
    is_label = name in labels
    others = {label: values for label, values in labels.items() if label != name}
    correlations = {label: correlate(rows[name], values, found.is_number) for label, values in others.items()}
    separator = stats.fields.separators.get(name, "")
    numbers: dict[str, Any] = {}
    boundaries: tuple[float, ...] = ()
    if found.is_number:
        numbers = _numbers(found, rows[name])
        if found.values.column.num_distinct > NUM_BUCKETS and not is_label and found.kind != "bool":
            boundaries = quantile_boundaries(rows[name].dropna().to_numpy(float), NUM_BUCKETS)
    return FieldReport(
        name=name,
        kind=found.kind,
        is_label=is_label,
        **_values(found.values),
        rates=_rates(rows[name], labels, found, separator),
        correlation={label: one for label, one in correlations.items() if one is not None},
        numbers=numbers,
        boundaries=boundaries,
        parts=_parts(name, found.parts) if found.parts else None,
        per_sample=found.parts.column.num_rows / max(stats.num_samples, 1) if found.parts else None,
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


def _numbers(found: FieldStats, sampled: pd.Series) -> dict[str, Any]:
    column = found.values.column
    values = sampled.dropna().to_numpy(float)
    quantiles = np.quantile(values, _QUANTILES).tolist() if len(values) else []
    return {
        "mean": found.mean,
        "deviation": found.deviation,
        "least": column.least,
        "greatest": column.greatest,
        "zeros": found.num_zeros / max(column.num_values, 1),
        "quantiles": {f"{share:g}": value for share, value in zip(_QUANTILES, quantiles, strict=False)},
    }


def _rates(column: pd.Series, labels: dict[str, pd.Series], found: FieldStats, separator: str) -> list[Rate]:
    """By ranges of a number with many values, else by the most frequent values."""
    known = column.dropna()
    if not len(known) or (separator and found.parts):
        return []
    if found.is_number and known.nunique() > NUM_SHOWN:
        limits = quantile_boundaries(known.to_numpy(float), _NUM_BINS)
        keys = np.digitize(known.to_numpy(float), limits)
        edges = [float(known.min()), *limits, float(known.max())]
        names = {i: f"{low:.4g} to {high:.4g}" for i, (low, high) in enumerate(pairwise(edges))}
        order = list(names)
    else:
        order = known.value_counts().index[:NUM_SHOWN].tolist()
        order = sorted(order) if found.is_number else order
        names = {
            value: f"{value:g}" if found.is_number and not isinstance(value, bool) else str(value) for value in order
        }
        keys = known.to_numpy()
    groups = pd.DataFrame({name: label[known.index] for name, label in labels.items()}, index=known.index).groupby(keys)
    means, counts = groups.mean(), groups.size()
    return [
        Rate(names[key], int(counts[key]), {name: float(means[name][key]) for name in labels})
        for key in order
        if key in counts.index
    ]


def _field_dict(one: FieldReport) -> dict[str, Any]:
    values = {key: value for key, value in vars(one).items() if key not in ("name", "parts", "correlation", "rates")}
    values["top"] = [list(item) for item in one.top]
    values["correlation"] = {label: found._asdict() for label, found in one.correlation.items()}
    values["rates"] = [vars(rate) for rate in one.rates]
    values["parts"] = _field_dict(one.parts) if one.parts else None
    return values


def _sizes(sizes: dict[int, int]) -> str:
    if not sizes:
        return "no good group"
    ordered = sorted(sizes)
    number, total = sum(sizes.values()), sum(size * count for size, count in sizes.items())
    middle = np.searchsorted(np.cumsum([sizes[size] for size in ordered]), number / 2)
    return f"{ordered[0]} to {ordered[-1]}, mean {total / number:.1f}, median {ordered[int(middle)]}"


def _label_line(one: FieldReport) -> str:
    found = one.numbers
    return (
        f"  {one.name}: mean {found['mean']:.4g}, {number(found['least'])} to {number(found['greatest'])}, "
        f"missing {one.missing:.1%}"
    )


def _field_rows(fields: Iterable[FieldReport]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("name", "type", "missing", "distinct", "mean", "least", "greatest", "zeros", "most frequent")
    ]
    for one in fields:
        found = one.numbers
        told = [number(found.get(what)) for what in ("mean", "least", "greatest")]
        told.append(f"{found['zeros']:.1%}" if found else "-")
        rows.append(
            (
                one.name,
                one.kind,
                f"{one.missing:.1%}",
                distinct(one),
                *told,
                _counts(one.top[:NUM_SHOWN_TEXT]),
            )
        )
        if one.parts:
            values = f"{one.per_sample:.1f} a sample"
            top = _counts(one.parts.top[:NUM_SHOWN_TEXT])
            rows.append(("  its values", values, "-", distinct(one.parts), *("-",) * 4, top))
    return rows


def distinct(one: FieldReport) -> str:
    """How many different values, and whether that is an estimate."""
    return f"{one.distinct:,}" if one.is_exact else f"about {one.distinct:,}"


def number(value: float | None) -> str:
    """A number in a few digits."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _correlation(found: Correlation | None) -> str:
    if found is None:
        return "-"
    return f"{found.strength:+.3f}" + (f" (AUC {found.auc:.3f})" if found.auc is not None else "")


def _counts(items: Sequence[tuple[str, int]], most: int = 5) -> str:
    shown = ", ".join(f"{_short(value)} ({count:,})" for value, count in items[:most])
    return (shown + (f" and {len(items) - most} more" if len(items) > most else "")) or "none"


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST_CELL else text[: _WIDEST_CELL - 3] + "..."


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
