"""The report as one HTML page with nothing loaded from elsewhere: intervals as bars, arms and comparisons as tables."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from easyrec_mm.evaluation.estimates import Estimate
from easyrec_mm.worth.names import ARMS
from easyrec_mm.worth.report import Comparison, Report, interval_text, mean_value, number, suffix_of
from easyrec_mm.worth.verdict import HARMS, PAYS, Gain

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
h1 { font-size: 1.4em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse } td, th { padding: .15em .8em .15em 0; text-align: right; white-space: nowrap }
td:first-child, th:first-child { text-align: left } th { color: #666; font-weight: normal }
.note { color: #666 } .verdict { font-size: 1.2em } td.reason { text-align: left; white-space: normal; color: #666 }
.pays { color: #1a7f37 } .harms { color: #b42318 }
svg .line { stroke: #999 } svg .zero { stroke: #ccc } svg .pays { stroke: #1a7f37; fill: #1a7f37 }
svg .harms { stroke: #b42318; fill: #b42318 } svg .none { stroke: #888; fill: #888 }
"""
# Of an interval's drawing, in pixels.
_WIDTH, _HEIGHT = 240, 16


def page(report: Report) -> str:
    """The page of a report."""
    plan = report.plan
    body = [
        f"<h1>Do the pictures pay? {_text(report.path)}</h1>",
        f'<p class="verdict">{_text(report.conclusion()[:1].upper() + report.conclusion()[1:])}.</p>',
        f"<p>{plan.num_seeds} seed(s) of {len(report.arms)} arms, {plan.num_steps:,} steps each; "
        f"{report.num_samples['']:,} samples to evaluate.</p>",
        *_verdicts(report),
        *(_comparison(one, report.num_samples) for one in report.comparisons),
        "<h2>The arms</h2>",
        *_arms(report),
        "<h2>Notes</h2>",
        "<ul>" + "".join(f"<li>{_text(note)}</li>" for note in report.notes()) + "</ul>",
    ]
    head = f'<meta charset="utf-8"><title>Do the pictures pay?</title><style>{_STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head><body>\n" + "\n".join(body) + "\n</body></html>\n"


def _verdicts(report: Report) -> list[str]:
    if not report.verdicts:
        return []
    rows = [
        f"<tr><td>{_text(one.metric.name)}</td><td>{_text(one.metric.task)}</td>"
        f"<td>{_text(one.slice or 'all samples')}</td><td>{one.num_samples:,}</td>"
        f'<td class="{_kind(one.verdict)}">{one.verdict or "nothing can be said"}</td>'
        f'<td class="reason">{_text(one.reason)}</td></tr>'
        for one in report.verdicts
        if one.num_samples
    ]
    head = "<tr><th>metric</th><th>task</th><th>of</th><th>samples</th><th>verdict</th><th></th></tr>"
    return ["<h2>Verdicts</h2>", f"<table>{head}{''.join(rows)}</table>"]


def _comparison(one: Comparison, num_samples: Mapping[str, int]) -> str:
    values = [v for gain in one.gains.values() for v in (gain.low, gain.high, gain.value) if math.isfinite(v)]
    most = max((abs(value) for value in values), default=1.0) or 1.0
    rows = [
        f"<tr><td>{_text(name.replace('/', ', '))}</td><td>{num_samples[suffix_of(name)]:,}</td>"
        f"<td>{number(gain.first)}</td><td>{number(gain.second)}</td><td>{number(gain.value, '+.4f')}</td>"
        f"<td>{_text(interval_text(gain))}</td><td>{_drawing(gain, most)}</td>"
        f'<td class="{_kind(gain.verdict)}">{gain.verdict}</td></tr>'
        for name, gain in one.gains.items()
        if num_samples[suffix_of(name)]
    ]
    head = (
        f"<tr><th>metric</th><th>samples</th><th>{one.first}</th><th>{one.second}</th><th>better by</th>"
        "<th>interval</th><th>worse &larr; 0 &rarr; better</th><th></th></tr>"
    )
    title = f"<h2>{one.first} against {one.second}: {_text(one.tells)}</h2>"
    return f"{title}\n<table>{head}{''.join(rows)}</table>"


def _drawing(gain: Gain, most: float) -> str:
    """The interval as a line around a dot; the middle is 0, both ends are `most`."""

    def x(value: float) -> float:
        return _WIDTH / 2 * (1 + value / most)

    middle, kind = _HEIGHT / 2, _kind(gain.verdict) or "none"
    parts = [f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{_HEIGHT}"/>']
    if not gain.reason:
        parts.append(
            f'<line class="{kind}" x1="{x(gain.low):.1f}" x2="{x(gain.high):.1f}" y1="{middle}" y2="{middle}"/>'
            f'<circle class="{kind}" cx="{x(gain.value):.1f}" cy="{middle}" r="3"/>'
        )
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}">{"".join(parts)}</svg>'


def _arms(report: Report) -> list[str]:
    names = [arm.name for arm in report.arms]
    metrics = [name for name in report.estimates[names[0]] if "/" not in name]
    head = "<tr><th>metric</th>" + "".join(f"<th>{name}<br>{_text(ARMS[name])}</th>" for name in names) + "</tr>"
    rows = [
        f"<tr><td>{_text(m)}</td>{''.join(_seeds(report.estimates[n].get(m, ())) for n in names)}</tr>" for m in metrics
    ]
    left = [f"<li>{name}, {_text(ARMS[name])}: {_text(why)}</li>" for name, why in report.plan.left_out.items()]
    return [
        '<p class="note">Means over the seeds; the value of each seed below.</p>',
        f"<table>{head}{''.join(rows)}</table>",
        f"<p>Not tested:</p><ul>{''.join(left)}</ul>" if left else "",
    ]


def _seeds(estimates: Sequence[Estimate]) -> str:
    told = " ".join(number(one.value) for one in estimates)
    return f'<td>{number(mean_value(estimates))}<br><span class="note">{told}</span></td>'


def _kind(verdict: str) -> str:
    return verdict if verdict in (PAYS, HARMS) else ""


def _text(value: str) -> str:
    return html.escape(value)
