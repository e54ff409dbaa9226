"""Formats results as text for users, and as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from easyrec_mm import __version__
from easyrec_mm.evaluation.summary import EvalResults, Part, finite
from easyrec_mm.files import put_text

# With fewer clusters than this, intervals are too narrow.
_FEW_CLUSTERS = 30


def write_result(path: str, results: EvalResults) -> None:
    """Write results as JSON: name -> value, null if undefined, and additional objects.

    `easyrec_mm` is the version that computed them, `undefined` says why a value is null, `confidence` contains
    intervals, `comparison` differences to another model; calibration curves are lists under their names.
    """
    values = {"easyrec_mm": __version__, **as_json(results)}
    put_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def as_json(results: EvalResults) -> dict[str, Any]:
    """Convert results to values that JSON can represent."""
    values: dict[str, Any] = {name: finite(value) for name, value in results.items()}
    values |= results.curves
    if results.undefined:
        values["undefined"] = results.undefined
    if results.confidence:
        values["confidence"] = {
            **results.confidence,
            "intervals": {name: list(limits) for name, limits in results.intervals.items()},
            "without_interval": results.no_intervals,
        }
    if results.comparison:
        values["comparison"] = results.comparison
    return values


def table(results: EvalResults) -> str:
    """Format results as lines of name, value and interval, with one section per slice."""
    lines = []
    for part in results.parts:
        names = _names_of(results, part)
        if part.suffix:
            lines += ["", f"{part.suffix[1:]}: {part.num_samples} samples"]
            names = [name for name in names if not name.startswith("num_samples")]
        shown = {name.removesuffix(part.suffix): name for name in names}
        width = max(map(len, shown), default=0)
        indent = "  " if part.suffix else ""
        lines += [f"{indent}{short:<{width}}  {_shown(results, name)}" for short, name in shown.items()]
    lines += _notes(results)
    return "\n".join(lines)


def _names_of(results: EvalResults, part: Part) -> list[str]:
    if not part.suffix:
        return [name for name in results if "/" not in name]
    return [name for name in results if name.endswith(part.suffix)]


def _shown(results: EvalResults, name: str) -> str:
    value = results[name]
    if isinstance(value, int):
        return f"{value:d}"
    if not math.isfinite(value):
        return f"undefined: {results.undefined.get(name, value)}"
    if name in results.intervals:
        low, high = results.intervals[name]
        return f"{value:.6f} [{low:.4f}, {high:.4f}]"
    if name in results.no_intervals:
        return f"{value:.6f} (no interval: {results.no_intervals[name]})"
    return f"{value:.6f}"


def _notes(results: EvalResults) -> list[str]:
    if not results.confidence:
        return []
    how, number = results.confidence, results.confidence["num_clusters"]
    notes = [
        "",
        f"[{how['level']:.0%} intervals: {how['num_replicates']} bootstrap replicates of {number} clusters by "
        f"{how['clusters']}]",
    ]
    if 1 < number < _FEW_CLUSTERS:
        notes.append(f"note: {number} clusters are few; intervals are too narrow")
    return notes


def comparison_table(comparison: dict[str, Any]) -> str:
    """Format the differences of a comparison as lines."""
    rows: list[tuple[str, ...]] = [("metric", "this", "other", "difference", "interval", "p", "DeLong p")]
    for name, row in comparison["differences"].items():
        interval = row["interval"]
        rows.append(
            (
                name,
                _number(row["this"]),
                _number(row["other"]),
                _number(row["difference"], "+.6f"),
                f"[{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else row["reason"],
                _number(row["p_value"], ".3g"),
                _number(row.get("delong_p_value"), ".3g"),
            )
        )
    return "\n".join(_aligned(rows))


def _number(value: float | None, form: str = ".6f") -> str:
    return "" if value is None else format(value, form)


def _aligned(rows: list[tuple[str, ...]]) -> Iterable[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
