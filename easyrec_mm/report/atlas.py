"""A map of the pictures of items, with small pictures on hover, coloured by category and by predicted rate."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import plotly.graph_objects as go

from easyrec_mm.evaluation.plan import score_column
from easyrec_mm.explain.picture_map import LEAST_ITEMS, place_items
from easyrec_mm.explain.pictures import TILE, Pixels
from easyrec_mm.pages.render import jpeg_url, render
from easyrec_mm.report.context import Context
from easyrec_mm.report.evaluated import PICTURE
from easyrec_mm.report.explained import Explained
from easyrec_mm.report.figures import QUIET, new_figure
from easyrec_mm.report.section import Choice, Markup, Part, Plot, Text, Unavailable
from easyrec_mm.schema import Task

Floats = npt.NDArray[np.float64]

_HEIGHT = 560
# Sheets of small pictures: so many in a row, and rows.
_SHEET_SIDE = 32
_QUALITY = 75
# Categories with a colour of their own; the others are grey.
_COLOURS = (
    "#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#d4a106", "#ff9da7", "#9c755f", "#2f9fd0",
)  # fmt: skip
_RATE_COLOURS = "Viridis"


def atlas(context: Context) -> Sequence[Part]:
    """Return the map of the items' pictures."""
    context.require_items()
    explained = context.explained
    pictures = explained.pictures
    among = np.flatnonzero(pictures.has_content)
    if len(among) < LEAST_ITEMS:
        of_text = " or a text" if context.schema.text is not None else ""
        raise Unavailable(f"Fewer than {LEAST_ITEMS} items have a picture that can be loaded{of_text}.")
    context.say(f"placing {len(among):,} {'pictures' if context.schema.uses_image else 'texts'} on a map")
    places = place_items(pictures.vectors[0][among])
    names = [explained.name_of(explained.read.items[i]) for i in among.tolist()]
    options: dict[str, Sequence[Part]] = {}
    if explained.category_field:
        kinds = [explained.read.items[i].field for i in among.tolist()]
        options[explained.category_field] = [_by_category(places, names, kinds, explained.category_field)]
    for task in explained.tasks:
        # Predictions are known by picture.
        if task.activation != "multiclass" and context.schema.uses_image:
            rates = _rates(context, explained, task)[among]
            options[_title(task)] = [by_rate(places, names, rates, task)]
    if not options:
        options["nothing"] = [_plain(places, names)]
    kind = "image" if context.schema.text is None else "item"
    about = (
        f"The trained {kind} vectors of {len(among):,} items on a plane, by t-SNE of what easyrec-mm search compares: "
        "items that lie side by side are alike to the model. Distances between groups, and the axes, mean nothing."
    )
    if not explained.category_field:
        about += " The data have no field whose name says that it is a category."
    sheets = [jpeg_url(sheet) for sheet in sheets_of(pictures.tiles[among])]
    markup = Markup(render("atlas.html", sheets=sheets, tile=TILE, side=_SHEET_SIDE))
    plots: Part = Choice("colour", options) if len(options) > 1 else next(iter(options.values()))[0]
    return [Text(about, "note"), *explained.notes(), plots, markup]


def sheets_of(tiles: Pixels) -> list[bytes]:
    """Return small pictures `[N, TILE, TILE, 3]` on sheets of _SHEET_SIDE x _SHEET_SIDE, as JPEGs."""
    most = _SHEET_SIDE * _SHEET_SIDE
    sheets = []
    for start in range(0, len(tiles), most):
        of_sheet = tiles[start : start + most]
        num_rows = -(-len(of_sheet) // _SHEET_SIDE)
        full = np.zeros((num_rows * _SHEET_SIDE, TILE, TILE, 3), np.uint8)
        full[: len(of_sheet)] = of_sheet
        rows = full.reshape(num_rows, _SHEET_SIDE, TILE, TILE, 3).transpose(0, 2, 1, 3, 4)
        content = io.BytesIO()
        PIL.Image.fromarray(rows.reshape(num_rows * TILE, _SHEET_SIDE * TILE, 3)).save(
            content, "JPEG", quality=_QUALITY, optimize=True
        )
        sheets.append(content.getvalue())
    return sheets


def _rates(context: Context, explained: Explained, task: Task) -> Floats:
    """Return the mean prediction of each item's samples in all evaluation data, float64 `[I]`; NaN without samples."""
    evaluated = context.evaluated
    index = evaluated.rows.column(PICTURE)
    scores = evaluated.rows.column(score_column(task)).astype(np.float64)
    is_there = index >= 0
    number = len(evaluated.pictures)
    counts = np.bincount(index[is_there], minlength=number)
    sums = np.bincount(index[is_there], scores[is_there], number)
    means = np.divide(sums, counts, out=np.full(number, np.nan), where=counts > 0)
    place = {path: i for i, path in enumerate(evaluated.pictures)}
    of_items = [place.get(item.paths[0], -1) if item.paths else -1 for item in explained.read.items]
    return np.array([means[i] if i >= 0 else np.nan for i in of_items])


def _title(task: Task) -> str:
    return f"predicted rate of {task.name}" if task.activation == "binary" else f"prediction of {task.name}"


def _figure() -> go.Figure:
    figure = new_figure("", "", _HEIGHT)
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(showticklabels=False, showgrid=False, zeroline=False, showline=False)
    figure.update_yaxes(scaleanchor="x")
    return figure


def _add(figure: go.Figure, places: Any, rows: Any, names: list[str], colour: dict[str, Any], **settings: Any) -> None:
    """Add items to a map; customdata is the number of the small picture of each."""
    # scattergl draws thousands of points at once, but not where the browser has no WebGL.
    figure.add_scatter(
        x=np.round(places[rows, 0].astype(np.float64), 3).astype(np.float32),
        y=np.round(places[rows, 1].astype(np.float64), 3).astype(np.float32),
        mode="markers",
        marker={"size": 5 if len(places) > 1000 else 8, "opacity": 0.85, **colour},
        customdata=np.asarray(rows, np.int32),
        text=[names[row] for row in rows],
        hovertemplate="%{text}<extra></extra>",
        **settings,
    )


def _by_category(places: Any, names: list[str], kinds: list[str], field: str) -> Plot:
    figure = _figure()
    counts = Counter(kinds)
    frequent = [kind for kind, _ in counts.most_common(len(_COLOURS))]
    texts = [f"{name}, {kind}" for name, kind in zip(names, kinds, strict=True)]
    others = np.flatnonzero([kind not in set(frequent) for kind in kinds])
    if len(others):
        _add(figure, places, others, texts, {"color": QUIET}, name=f"{len(counts) - len(frequent)} others")
    for number, kind in enumerate(frequent):
        rows = np.flatnonzero([other == kind for other in kinds])
        _add(figure, places, rows, texts, {"color": _COLOURS[number]}, name=kind or "(empty)")
    return Plot(figure, f"By {field}", "Point at an item to see its picture.", wide=True)


def by_rate(places: Any, names: list[str], rates: Floats, task: Task) -> Plot:
    """Return the map with the colours of predicted rates; NaN is that of an item without one."""
    figure = _figure()
    texts = [f"{name}, {rate:.4g}" for name, rate in zip(names, rates, strict=True)]
    shown = rates[~np.isnan(rates)]
    low, high = np.quantile(shown, [0.02, 0.98]).tolist() if len(shown) else (0.0, 1.0)
    colour = {
        # An array: plotly takes no None in a list, and an item without a picture has no rate.
        "color": np.array([float(f"{rate:.4g}") for rate in rates]),
        "colorscale": _RATE_COLOURS,
        "cmin": low,
        "cmax": high,
        "colorbar": {"thickness": 12, "outlinewidth": 0},
    }
    _add(figure, places, np.arange(len(places)), texts, colour, showlegend=False)
    about = "Mean prediction of the item's samples. The ends of the colours are the quantiles of 2 % and 98 %."
    return Plot(figure, f"By {_title(task)}", f"{about} Point at an item to see its picture.", wide=True)


def _plain(places: Any, names: list[str]) -> Plot:
    figure = _figure()
    _add(figure, places, np.arange(len(places)), names, {"color": _COLOURS[0]}, showlegend=False)
    return Plot(figure, "All items", "Point at an item to see its picture.", wide=True)
