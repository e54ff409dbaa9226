"""The report as one HTML page with plots and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from easyrec_mm.pages.render import render
from easyrec_mm.stats.pictures import PictureStats
from easyrec_mm.stats.report import NUM_SHOWN, FieldReport, Report
from easyrec_mm.stats.text import distinct, number

# How many pictures are shown as examples, how many groups of similar pictures, and how many pictures of such a group.
_NUM_EXAMPLES, _NUM_ALIKE, _NUM_OF_GROUP = 24, 20, 8
# Sizes in a plot, in pixels: widths of the names, of the longest bar and of the number after it; height of a line.
_NAMES, _BAR, _NUMBERS, _LINE = 190, 220, 70, 18
_LONGEST_NAME = 28


@dataclass(frozen=True)
class Bar:
    """A bar of a plot: its name, its value as text, and its position and width in pixels."""

    name: str
    text: str
    y: int
    width: float

    @property
    def short_name(self) -> str:
        """Return the name, shortened if it is too long."""
        return self.name if len(self.name) <= _LONGEST_NAME else f"{self.name[: _LONGEST_NAME - 1]}…"


@dataclass(frozen=True)
class Plot:
    """Horizontal bars; `kind` is their class: "bar" for counts, "rate" for means of labels."""

    title: str
    kind: str
    bars: list[Bar]
    start = _NAMES
    width = _NAMES + _BAR + _NUMBERS
    bar_height = _LINE - 6

    @property
    def height(self) -> int:
        """Return the height of all bars."""
        return len(self.bars) * _LINE


def page(report: Report) -> str:
    """Return the HTML page of a report."""
    return render(
        "stats.html",
        title=f"{report.name}: what it holds",
        report=report,
        summary=_summary(report),
        num_more=report.num_refused - len(report.bad),
        sizes=None if report.is_flat else _size_plot(report.sizes),
        labels=[_field(label, report) for label in report.labels],
        correlations=_correlations(report),
        fields=[_field(field, report) for field in report.fields if not field.is_label],
        pictures=None if report.pictures is None else _pictures(report, report.pictures),
    )


def _summary(report: Report) -> str:
    rows = "rows" if report.is_flat else "groups"
    share = report.num_refused / max(report.num_groups + report.num_refused, 1)
    groups = "" if report.is_flat else f"{report.num_groups:,} groups, "
    return (
        f"{report.num_files:,} file(s), {groups}{report.num_samples:,} samples; {report.num_refused:,} {rows} refused "
        f"({share:.2%})."
    )


def _field(field: FieldReport, report: Report) -> dict[str, Any]:
    """Return a field's figures, its frequent values, and how the labels depend on it."""
    facts = [field.kind, f"missing {field.missing:.1%}", f"{distinct(field)} different values"]
    numbers = field.numbers
    if numbers:
        facts.append(f"mean {number(numbers['mean'])} ± {number(numbers['deviation'])}")
        facts.append(f"{number(numbers['least'])} to {number(numbers['greatest'])}, zeros {numbers['zeros']:.1%}")
        quantiles = [f"{float(share):.0%}: {value:.4g}" for share, value in numbers["quantiles"].items()]
        facts.append("quantiles " + ", ".join(quantiles))
    if field.parts:
        facts.append(f"{field.per_sample:.1f} values a sample, {distinct(field.parts)} different")
    notes = ["; ".join(facts)]
    if field.boundaries:
        notes.append(f"boundaries: [{', '.join(f'{limit:.9g}' for limit in field.boundaries)}]")
    return {"name": field.name, "notes": notes, "plots": _plots_of_field(field, report)}


def _plots_of_field(field: FieldReport, report: Report) -> list[Plot]:
    plots = []
    values = field.parts or field
    if values.top and not (field.numbers and field.rates):
        note = f" (counts at most {values.top_error:,} too low)" if values.top_error else ""
        plots.append(_count_plot(f"most frequent{note}", values.top[:NUM_SHOWN]))
    if field.rates:
        if field.numbers:
            counts = [(rate.name, rate.count) for rate in field.rates]
            plots.append(_count_plot("samples, of those looked at", counts))
        for label in (label.name for label in report.labels if label.name != field.name):
            means = [(rate.name, rate.means[label], f"{rate.means[label]:.4g}") for rate in field.rates]
            plots.append(_plot(f"mean {label}", "rate", means))
    return plots


def _size_plot(sizes: dict[int, int]) -> Plot:
    """Return the plot of the number of groups by size; by ranges of sizes if there are many sizes."""
    ordered = sorted(sizes)
    if len(ordered) <= 2 * NUM_SHOWN:
        return _count_plot("groups", [(str(size), sizes[size]) for size in ordered])
    step = -(-(ordered[-1] - ordered[0] + 1) // NUM_SHOWN)
    starts = range(ordered[0], ordered[-1] + 1, step)
    counts = [(start, sum(sizes.get(size, 0) for size in range(start, start + step))) for start in starts]
    return _count_plot("groups", [(f"{start} to {start + step - 1}", count) for start, count in counts])


def _count_plot(title: str, counts: Sequence[tuple[str, int]]) -> Plot:
    return _plot(title, "bar", [(name, count, f"{count:,}") for name, count in counts])


def _plot(title: str, kind: str, values: Sequence[tuple[str, float, str]]) -> Plot:
    """Return a plot with bars of (name, value, value as text); bars of values below 0 and of NaN have no length."""
    most = max((value for _, value, _ in values if value == value), default=0.0)

    def width(value: float) -> float:
        return _BAR * max(value, 0.0) / most if most > 0 and value == value else 0.0

    bars = [Bar(name, text, i * _LINE, width(value)) for i, (name, value, text) in enumerate(values)]
    return Plot(title, kind, bars)


def _correlations(report: Report) -> list[tuple[str, list[str]]]:
    """Return (field, strength and AUC for each label), the field with the strongest correlation first."""
    labels = [label.name for label in report.labels]
    fields = [field for field in report.fields if field.correlation] if labels else []
    fields.sort(key=lambda field: -max(abs(correlation.strength) for correlation in field.correlation.values()))
    rows = []
    for field in fields:
        cells = []
        for label in labels:
            correlation = field.correlation.get(label)
            cells.append(f"{correlation.strength:+.3f}" if correlation else "")
            cells.append(f"{correlation.auc:.3f}" if correlation and correlation.auc is not None else "")
        rows.append((field.name, cells))
    return rows


def _pictures(report: Report, stats: PictureStats) -> dict[str, Any]:
    opened = len(stats.pictures) + len(stats.problems)
    rows = "rows" if report.is_flat else "groups"
    kinds = ("format", "mode", "size") if stats.pictures else ()
    return {
        "summary": (
            f"{report.num_pictures:,} different; {report.num_without_picture:,} {rows} without one; {opened:,} opened, "
            f"{len(stats.problems):,} of them bad."
        ),
        "plots": [_count_plot(kind, stats.counts(kind).most_common(NUM_SHOWN)) for kind in kinds],
        "examples": stats.pictures[:_NUM_EXAMPLES],
        "problems": stats.problems[:NUM_SHOWN],
        "alike_summary": f"{sum(map(len, stats.alike)):,} pictures in {len(stats.alike):,} groups look alike",
        "alike": [{"number": len(group), "pictures": group[:_NUM_OF_GROUP]} for group in stats.alike[:_NUM_ALIKE]],
    }
