"""Figures in the style of the page, and honest thinning of long curves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Names of the colours in the page's style; the page puts in those of its light or dark form. SOFT fill areas.
COLOURS = tuple(f"var(--c{i})" for i in range(6))
SOFT = tuple(f"var(--c{i}-soft)" for i in range(6))
QUIET = "var(--quiet)"
# Most points of a line: more than a screen has pixels.
MAX_POINTS = 2000


def colour(number: int) -> str:
    """Return the colour of a series."""
    return COLOURS[number % len(COLOURS)]


def soft(number: int) -> str:
    """Return the colour of the area of a series."""
    return SOFT[number % len(SOFT)]


def new_figure(x: str, y: str, height: int = 340, **layout: Any) -> go.Figure:
    """Return an empty figure with titles of its axes; the page adds colours and margins."""
    figure = go.Figure(layout={"height": height, "xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}})
    # The page has a style of its own, and plotly's would be 6 KB in each figure.
    figure.update_layout(template=None, **layout)
    return figure


def add_line(figure: go.Figure, x: Any, y: Any, name: str, number: int = 0, **settings: Any) -> None:
    """Add a line in the colour of a series."""
    line = {"color": colour(number), "width": 2, **settings.pop("line", {})}
    figure.add_scatter(
        x=np.asarray(x), y=np.asarray(y), name=name, mode=settings.pop("mode", "lines"), line=line, **settings
    )


def add_reference(figure: go.Figure, x: Sequence[float], y: Sequence[float], name: str) -> None:
    """Add a dashed line to compare with."""
    line = {"color": QUIET, "width": 1, "dash": "dash"}
    figure.add_scatter(x=list(x), y=list(y), name=name, mode="lines", line=line, hoverinfo="skip")


def thinned(x: Floats, y: Floats, num: int = MAX_POINTS) -> tuple[Floats, Floats]:
    """Return at most `num` points of a line by Largest-Triangle-Three-Buckets (Steinarsson, 2013).

    The first and last point stay, and of each bucket of points between them the one that changes the line's form most.
    """
    if len(x) <= num:
        return x, y
    limits = np.linspace(1, len(x) - 1, num - 1).astype(int)
    kept = [0]
    for start, end in pairwise(limits.tolist()):
        if start >= end:
            continue
        after = slice(end, max(limits[min(np.searchsorted(limits, end) + 1, len(limits) - 1)], end + 1))
        next_x, next_y = np.nanmean(x[after]), np.nanmean(y[after])
        last_x, last_y = x[kept[-1]], y[kept[-1]]
        area = np.abs((last_x - next_x) * (y[start:end] - last_y) - (last_x - x[start:end]) * (next_y - last_y))
        kept.append(start + int(np.nanargmax(area)) if np.isfinite(area).any() else start)
    kept.append(len(x) - 1)
    return x[kept], y[kept]


def means_of_bins(x: Floats, y: Floats, num: int = MAX_POINTS) -> tuple[Floats, Floats]:
    """Return the means of at most `num` runs of points of equal number: for values that scatter, such as losses."""
    if len(x) <= num:
        return x, y
    starts = np.linspace(0, len(x), num + 1).astype(int)[:-1]
    counts = np.diff(starts, append=len(x))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts
