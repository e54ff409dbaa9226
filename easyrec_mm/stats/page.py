"""The report as one HTML page, with plots and pictures in it and nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

from easyrec_mm.stats.pictures import Picture, PictureStats
from easyrec_mm.stats.report import NUM_SHOWN, FieldReport, Rate, Report
from easyrec_mm.stats.text import distinct, number

# Pictures that are shown as examples, groups of pictures that look alike, and pictures of such a group.
_NUM_EXAMPLES, _NUM_ALIKE, _NUM_OF_GROUP = 24, 20, 8
# Width and height of a bar's place, and of the names before it, in pixels.
_BAR, _LINE, _NAMES = 220, 18, 190

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
h1 { font-size: 1.4em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse } td, th { padding: .15em .8em .15em 0; text-align: right; white-space: nowrap }
td:first-child, th:first-child { text-align: left } th { color: #666; font-weight: normal }
section { margin: 1.2em 0 } h3 { font-size: 1em; margin: 0 } .note { color: #666 }
.plots, .pictures { display: flex; flex-wrap: wrap; gap: 1.5em } .pictures { gap: .6em }
figure { margin: 0; width: 96px; font-size: 11px; overflow-wrap: anywhere } figure img { max-width: 96px }
svg text { font-size: 11px; fill: #222 } svg .bar { fill: #7aa6d8 } svg .rate { fill: #e08a3c }
"""


def page(report: Report) -> str:
    """The page of a report."""
    rows = "rows" if report.is_flat else "groups"
    share = report.num_refused / max(report.num_groups + report.num_refused, 1)
    groups = "" if report.is_flat else f"{report.num_groups:,} groups, "
    body = [
        f"<h1>{_text(report.name)}</h1>",
        f"<p>{report.num_files:,} file(s), {groups}{report.num_samples:,} samples; "
        f"{report.num_refused:,} {rows} refused ({share:.2%}).</p>",
        *_refused(report),
        *([] if report.is_flat else ["<h2>Group sizes</h2>", _size_plot(report.sizes)]),
        "<h2>Labels</h2>" if report.labels else "",
        *(_field(one, report) for one in report.labels),
        *_correlations(report),
        "<h2>Fields</h2>",
        *(_field(one, report) for one in report.fields if not one.is_label),
        *(_pictures(report, report.pictures) if report.pictures is not None else []),
    ]
    title = _text(report.name)
    head = f'<meta charset="utf-8"><title>{title}: what it holds</title><style>{_STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head><body>\n" + "\n".join(filter(None, body)) + "\n</body></html>\n"


def _text(value: str) -> str:
    return html.escape(value)


def _refused(report: Report) -> list[str]:
    if not report.bad:
        return []
    items = "".join(f"<li>{_text(str(record))}</li>" for record in report.bad)
    more = report.num_refused - len(report.bad)
    return [f"<ul>{items}{f'<li>and {more:,} more</li>' if more else ''}</ul>"]


def _field(one: FieldReport, report: Report) -> str:
    """A field: its figures, its frequent values, and how the labels depend on it."""
    told = [f"{one.kind}", f"missing {one.missing:.1%}", f"{distinct(one)} different values"]
    found = one.numbers
    if found:
        told.append(f"mean {number(found['mean'])} &plusmn; {number(found['deviation'])}")
        told.append(f"{number(found['least'])} to {number(found['greatest'])}, zeros {found['zeros']:.1%}")
        quantiles = [f"{float(share):.0%}: {value:.4g}" for share, value in found["quantiles"].items()]
        told.append("quantiles " + ", ".join(quantiles))
    if one.parts:
        told.append(f"{one.per_sample:.1f} values a sample, {distinct(one.parts)} different")
    lines = [f"<h3>{_text(one.name)}</h3>", f'<div class="note">{"; ".join(told)}</div>']
    if one.boundaries:
        lines.append(f'<div class="note">boundaries: [{", ".join(f"{x:.9g}" for x in one.boundaries)}]</div>')
    plots = []
    top = (one.parts or one).top
    if top and not (found and one.rates):
        error = (one.parts or one).top_error
        note = f"most frequent{f' (counts at most {error:,} too low)' if error else ''}"
        plots.append(_plot(note, [(value, count, f"{count:,}") for value, count in top[:NUM_SHOWN]], "bar"))
    if one.rates:
        bars = [(rate.name, rate.count, f"{rate.count:,}") for rate in one.rates]
        if found:
            plots.append(_plot("samples, of those looked at", bars, "bar"))
        plots += [_rate_plot(label.name, one.rates) for label in report.labels if label.name != one.name]
    return f'<section>{"".join(lines)}<div class="plots">{"".join(plots)}</div></section>'


def _rate_plot(label: str, rates: Sequence[Rate]) -> str:
    return _plot(f"mean {label}", [(one.name, one.means[label], f"{one.means[label]:.4g}") for one in rates], "rate")


def _size_plot(sizes: dict[int, int]) -> str:
    """Groups by size; the sizes of ranges if there are many."""
    ordered = sorted(sizes)
    if len(ordered) <= 2 * NUM_SHOWN:
        return _plot("groups", [(str(size), sizes[size], f"{sizes[size]:,}") for size in ordered], "bar")
    step = -(-(ordered[-1] - ordered[0] + 1) // NUM_SHOWN)
    starts = range(ordered[0], ordered[-1] + 1, step)
    counts = [(start, sum(sizes.get(size, 0) for size in range(start, start + step))) for start in starts]
    return _plot("groups", [(f"{start} to {start + step - 1}", count, f"{count:,}") for start, count in counts], "bar")


def _plot(title: str, bars: Sequence[tuple[str, float, str]], kind: str) -> str:
    """Bars of (name, value, value as text); those below 0 have no length."""
    most = max((value for _, value, _ in bars if value == value), default=0.0)
    parts = []
    for i, (name, value, shown) in enumerate(bars):
        y = i * _LINE
        width = _BAR * max(value, 0.0) / most if most > 0 and value == value else 0.0
        short = name if len(name) <= 28 else name[:27] + "…"
        parts.append(
            f'<g><title>{_text(name)}: {shown}</title><text x="{_NAMES - 6}" y="{y + 13}" text-anchor="end">'
            f'{_text(short)}</text><rect class="{kind}" x="{_NAMES}" y="{y + 3}" width="{width:.1f}" '
            f'height="{_LINE - 6}"/>'
            f'<text x="{_NAMES + width + 4:.1f}" y="{y + 13}">{shown}</text></g>'
        )
    size = f'width="{_NAMES + _BAR + 70}" height="{len(bars) * _LINE}"'
    return f'<div><div class="note">{_text(title)}</div><svg {size}>{"".join(parts)}</svg></div>'


def _correlations(report: Report) -> list[str]:
    names = [label.name for label in report.labels]
    some = [one for one in report.fields if one.correlation]
    if not names or not some:
        return []
    some.sort(key=lambda one: -max(abs(found.strength) for found in one.correlation.values()))
    head = "".join(f"<th>{_text(name)}</th><th>AUC</th>" for name in names)
    rows = []
    for one in some:
        cells = []
        for name in names:
            found = one.correlation.get(name)
            cells.append(f"{found.strength:+.3f}" if found else "")
            cells.append(f"{found.auc:.3f}" if found and found.auc is not None else "")
        rows.append(f"<tr><td>{_text(one.name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    note = (
        f"In {report.num_sampled:,} samples. Of numbers: Pearson's r. Of others: the share of the label's deviation "
        "that their values explain, corrected for having many values."
    )
    return [
        "<h2>Correlation with labels</h2>",
        f'<p class="note">{note}</p>',
        f"<table><tr><th>field</th>{head}</tr>{''.join(rows)}</table>",
    ]


def _pictures(report: Report, found: PictureStats) -> list[str]:
    opened = len(found.pictures) + len(found.problems)
    rows = "rows" if report.is_flat else "groups"
    plots = [
        _plot(what, [(name, count, f"{count:,}") for name, count in found.counts(what).most_common(NUM_SHOWN)], "bar")
        for what in ("format", "mode", "size")
    ]
    lines = [
        "<h2>Pictures</h2>",
        f"<p>{report.num_pictures:,} different; {report.num_without_picture:,} {rows} without one; {opened:,} opened, "
        f"{len(found.problems):,} of them bad.</p>",
        f'<div class="plots">{"".join(plots)}</div>' if found.pictures else "",
        _figures(found.pictures[:_NUM_EXAMPLES]),
    ]
    if found.problems:
        bad = "".join(f"<li>{_text(path)}: {_text(problem)}</li>" for path, problem in found.problems[:NUM_SHOWN])
        lines += ["<h3>Bad pictures</h3>", f"<ul>{bad}</ul>"]
    if found.alike:
        alike = sum(map(len, found.alike))
        lines.append(f"<h3>{alike:,} pictures in {len(found.alike):,} groups look alike</h3>")
        lines += [
            f'<div class="note">{len(group)}</div>{_figures(group[:_NUM_OF_GROUP])}'
            for group in found.alike[:_NUM_ALIKE]
        ]
    return lines


def _figures(pictures: Iterable[Picture]) -> str:
    figures = []
    for one in pictures:
        data = base64.b64encode(one.thumbnail).decode()
        caption = f"{_text(one.path)}<br>{one.width} x {one.height} {_text(one.format)}"
        figures.append(
            f'<figure><img src="data:image/jpeg;base64,{data}" alt=""><figcaption>{caption}</figcaption></figure>'
        )
    return f'<div class="pictures">{"".join(figures)}</div>'
