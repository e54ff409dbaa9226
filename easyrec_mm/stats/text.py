"""The text of a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from easyrec_mm.stats.correlation import Correlation
from easyrec_mm.stats.report import NUM_BAD_SHOWN, NUM_BUCKETS, FieldReport, Report

# How many frequent values and groups of similar pictures are shown, and the greatest width of a value.
_NUM_SHOWN, _WIDEST_CELL = 3, 28


def text(report: Report) -> str:
    """Return the text of a report for a terminal."""
    rows = "rows" if report.is_flat else "groups"
    share = report.num_refused / max(report.num_groups + report.num_refused, 1)
    lines = [
        f"{report.name}: {report.num_files} file(s), "
        + ("" if report.is_flat else f"{report.num_groups:,} groups, ")
        + f"{report.num_samples:,} samples; {report.num_refused:,} {rows} refused ({share:.2%})",
        *([] if report.is_flat else [f"  group size: {_sizes(report.sizes)}"]),
        "\nlabels",
        *(_label_line(label) for label in report.labels),
        *([] if report.labels else ["  none"]),
        "\nfields",
        *_table(_field_rows(report.fields)),
        *_correlation_lines(report),
        *_boundary_lines(report),
        *_picture_lines(report),
        f"\nrefused {rows}" + ("" if report.bad else ": none"),
        *[f"  {record}" for record in report.bad],
        *([f"  and {report.num_refused - len(report.bad):,} more"] if report.num_refused > len(report.bad) else []),
    ]
    return "\n".join(lines)


def _correlation_lines(report: Report) -> list[str]:
    names = [label.name for label in report.labels]
    fields = [field for field in report.fields if field.correlation]
    if not names or not fields:
        return []
    fields.sort(key=lambda field: -max(abs(c.strength) for c in field.correlation.values()))
    rows = [("field", *names)]
    rows += [(field.name, *(_correlation(field.correlation.get(name)) for name in names)) for field in fields]
    title = f"\ncorrelation with labels, in {report.num_sampled:,} samples (r of numbers, share of others)"
    return [title, *_table(rows)]


def _boundary_lines(report: Report) -> list[str]:
    fields = [field for field in report.fields if field.boundaries]
    lines = [f"  {field.name}: boundaries: [{', '.join(f'{x:.9g}' for x in field.boundaries)}]" for field in fields]
    return [f"\nquantiles of numbers, {NUM_BUCKETS} buckets", *lines] if fields else []


def _picture_lines(report: Report) -> list[str]:
    if report.pictures is None:
        return []
    pictures = report.pictures
    opened = len(pictures.pictures) + len(pictures.problems)
    alike = sum(map(len, pictures.alike))
    lines = [
        "\npictures",
        f"  {report.num_pictures:,} distinct; {report.num_without_picture:,} "
        f"{'rows' if report.is_flat else 'groups'} without one; {opened:,} opened, {len(pictures.problems):,} bad",
    ]
    lines += [
        f"  {attribute}s: {_counts(pictures.counts(attribute).most_common())}"
        for attribute in ("format", "mode", "size")
    ]
    lines.append(
        f"  look alike: {alike:,} pictures in {len(pictures.alike):,} groups" if alike else "  look alike: none"
    )
    for group in pictures.alike[:_NUM_SHOWN]:
        omission = f" and {len(group) - 3} more" if len(group) > 3 else ""
        lines.append(f"    {', '.join(picture.path for picture in group[:3])}{omission}")
    lines += [f"  bad: {path}: {problem}" for path, problem in pictures.problems[:NUM_BAD_SHOWN]]
    return lines


def _sizes(sizes: dict[int, int]) -> str:
    if not sizes:
        return "no good group"
    ordered = sorted(sizes)
    number, total = sum(sizes.values()), sum(size * count for size, count in sizes.items())
    middle = np.searchsorted(np.cumsum([sizes[size] for size in ordered]), number / 2)
    return f"{ordered[0]} to {ordered[-1]}, mean {total / number:.1f}, median {ordered[int(middle)]}"


def _label_line(label: FieldReport) -> str:
    numbers = label.numbers
    return (
        f"  {label.name}: mean {numbers['mean']:.4g}, {number(numbers['least'])} to {number(numbers['greatest'])}, "
        f"missing {label.missing:.1%}"
    )


def _field_rows(fields: Iterable[FieldReport]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("name", "type", "missing", "distinct", "mean", "least", "greatest", "zeros", "most frequent")
    ]
    for field in fields:
        numbers = field.numbers
        cells = [number(numbers.get(key)) for key in ("mean", "least", "greatest")]
        cells.append(f"{numbers['zeros']:.1%}" if numbers else "-")
        rows.append(
            (
                field.name,
                field.kind,
                f"{field.missing:.1%}",
                distinct(field),
                *cells,
                _counts(field.top[:_NUM_SHOWN]),
            )
        )
        if field.parts:
            values = f"{field.per_sample:.1f} a sample"
            top = _counts(field.parts.top[:_NUM_SHOWN])
            rows.append(("  its values", values, "-", distinct(field.parts), *("-",) * 4, top))
    return rows


def distinct(field: FieldReport) -> str:
    """Return the number of different values as text, which says whether it is an estimate."""
    return f"{field.distinct:,}" if field.is_exact else f"about {field.distinct:,}"


def number(value: float | None) -> str:
    """Return a number as text with a few digits; "-" for None."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _correlation(correlation: Correlation | None) -> str:
    if correlation is None:
        return "-"
    return f"{correlation.strength:+.3f}" + (f" (AUC {correlation.auc:.3f})" if correlation.auc is not None else "")


def _counts(items: Sequence[tuple[str, int]], most: int = 5) -> str:
    shown = ", ".join(f"{_short(value)} ({count:,})" for value, count in items[:most])
    return (shown + (f" and {len(items) - most} more" if len(items) > most else "")) or "none"


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST_CELL else text[: _WIDEST_CELL - 3] + "..."


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
