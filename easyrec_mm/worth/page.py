"""The report as one HTML page: intervals as bars, arms and comparisons as tables."""

from __future__ import annotations

import math
from typing import Any

from easyrec_mm.pages.render import render
from easyrec_mm.worth.names import ARMS
from easyrec_mm.worth.report import Comparison, Report, interval_text, mean_value, number, suffix_of
from easyrec_mm.worth.verdict import Gain

# Size of the drawing of an interval, in pixels.
_WIDTH, _HEIGHT = 240, 16


def page(report: Report) -> str:
    """Render a report as an HTML page."""
    conclusion = report.conclusion()
    names = [arm.name for arm in report.arms]
    metrics = [name for name in report.estimates[names[0]] if "/" not in name]
    left_out = [{"name": name, "text": ARMS[name], "reason": why} for name, why in report.plan.left_out.items()]
    return render(
        "worth.html",
        title=_title(report),
        report=report,
        conclusion=conclusion[:1].upper() + conclusion[1:],
        verdicts=[verdict for verdict in report.verdicts if verdict.num_samples],
        text_verdicts=[verdict for verdict in report.text_verdicts if verdict.num_samples],
        comparisons=[_comparison(comparison, report) for comparison in report.comparisons],
        drawing={"width": _WIDTH, "height": _HEIGHT},
        arms=[{"name": name, "text": ARMS[name]} for name in names],
        metrics=[(metric, [_cell(report, name, metric) for name in names]) for metric in metrics],
        left_out=left_out,
        notes=report.notes(),
    )


def _title(report: Report) -> str:
    schema = report.arms[0].pipeline.schema
    if schema.text is None:
        return "Do the pictures pay?"
    return "Do pictures and texts pay?" if schema.uses_image else "Do the texts pay?"


def _comparison(comparison: Comparison, report: Report) -> dict[str, Any]:
    gains = comparison.gains
    values = [v for gain in gains.values() for v in (gain.low, gain.high, gain.value) if math.isfinite(v)]
    most = max((abs(value) for value in values), default=1.0) or 1.0
    rows = [
        {
            "name": name.replace("/", ", "),
            "num_samples": report.num_samples[suffix_of(name)],
            "first": number(gain.first),
            "second": number(gain.second),
            "value": number(gain.value, "+.4f"),
            "interval": interval_text(gain),
            "places": _places(gain, most),
            "verdict": gain.verdict,
        }
        for name, gain in gains.items()
        if report.num_samples[suffix_of(name)]
    ]
    return {"first": comparison.first, "second": comparison.second, "tells": comparison.tells, "rows": rows}


def _places(gain: Gain, most: float) -> dict[str, float] | None:
    """Return an interval's places in its drawing, in pixels: 0 in the middle, `most` at the ends; None without one."""
    if gain.reason:
        return None
    values = {"low": gain.low, "high": gain.high, "value": gain.value}
    return {name: _WIDTH / 2 * (1 + value / most) for name, value in values.items()}


def _cell(report: Report, arm: str, metric: str) -> tuple[str, str]:
    """Return the mean over an arm's seeds, and the value of each seed."""
    estimates = report.estimates[arm].get(metric, ())
    return number(mean_value(estimates)), " ".join(number(estimate.value) for estimate in estimates)
