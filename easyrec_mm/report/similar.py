"""Sheets of nearest neighbours: by the trained image vectors, beside those by the vectors before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from easyrec_mm.explain.neighbours import Neighbours, neighbours_of, shared_share
from easyrec_mm.explain.samples import Item
from easyrec_mm.report.context import Context
from easyrec_mm.report.explained import Explained, short_text
from easyrec_mm.report.section import Heading, Part, Picture, Pictures, Text, Tile, Tiles, Unavailable
from easyrec_mm.store.search import Neighbour
from easyrec_mm.store.similarity import SIMILARITIES

_NUM_QUERIES, _NUM_NEIGHBOURS = 8, 6
# Items whose neighbours are compared for the figures.
_NUM_COMPARED = 500
_SIDE = 112
_SEED = 0


def similar(context: Context) -> Sequence[Part]:
    """Return the neighbours of some items before and after training."""
    context.require_items()
    explained = context.explained
    pictures = explained.pictures
    among = np.flatnonzero(pictures.has_content)
    if len(among) < 2:
        of_text = " or a text" if context.schema.text is not None else ""
        raise Unavailable(f"Fewer than two items have a picture that can be loaded{of_text}.")
    rng = np.random.default_rng(_SEED)
    compared = rng.permutation(among)[:_NUM_COMPARED].tolist()
    names = ["after training"]
    if not isinstance(explained.untrained, str):
        names.append(f"before training: {explained.untrained[1]}")
    sheets = [
        neighbours_of(vectors, pictures.content, pictures.has_content, compared, _NUM_NEIGHBOURS)
        for vectors in pictures.vectors
    ]
    how = (
        f"The items nearest to some items of the evaluation data, among {len(among):,}, by the "
        f"{SIMILARITIES['centred']}, as easyrec-mm search compares them. If training has made of the pictures what the "
        "click depends on, items that are clicked alike come together, and the neighbours differ from those before."
    )
    parts: list[Part] = [Text(how, "note"), *explained.notes()]
    if isinstance(explained.untrained, str):
        parts.append(Text(f"The neighbours before training cannot be shown: {explained.untrained}.", "warning"))
    parts.append(Tiles(_tiles(explained, sheets)))
    for number, query in enumerate(compared[:_NUM_QUERIES]):
        parts.append(Heading(explained.name_of(explained.read.items[query])))
        for name, sheet in zip(names, sheets, strict=True):
            parts.append(Pictures(_sheet(context, explained, query, sheet.nearest[number]), name, _SIDE))
    return parts


def _tiles(explained: Explained, sheets: list[Neighbours]) -> list[Tile]:
    tiles = []
    if len(sheets) == 2:
        share = shared_share(sheets[0], sheets[1])
        tiles.append(Tile("neighbours in common", f"{share:.0%}", f"of {_NUM_NEIGHBOURS}, before and after training"))
    if explained.category_field:
        kinds = [item.field for item in explained.read.items]
        for sheet, when in zip(sheets, ("after", "before"), strict=False):
            note = f"{when} training, of {_NUM_NEIGHBOURS} neighbours"
            tiles.append(Tile(f"of the same {explained.category_field}", f"{_same_share(sheet, kinds):.0%}", note))
    cosines = sheets[0].similarity.plain_cosine
    tiles.append(Tile("mean plain cosine", f"{cosines:.3f}", "of all pairs of trained vectors, not centred"))
    return tiles


def _same_share(sheet: Neighbours, kinds: list[str]) -> float:
    """Return the share of neighbours that are of the kind of the item."""
    same = [
        kinds[int(neighbour.key)] == kinds[query]
        for query, nearest in zip(sheet.queries, sheet.nearest, strict=True)
        for neighbour in nearest
    ]
    return float(np.mean(same)) if same else float("nan")


def _sheet(context: Context, explained: Explained, query: int, nearest: Sequence[Neighbour]) -> list[Picture]:
    items = [explained.read.items[query], *[explained.read.items[int(neighbour.key)] for neighbour in nearest]]
    texts = [("the item",), *[_lines(neighbour) for neighbour in nearest]]
    paths = [_first_good(explained, item) for item in items]
    shown = iter(context.thumbnails([path for path in paths if path is not None]))
    pictures = [
        _without_picture(item) if path is None else next(shown) for item, path in zip(items, paths, strict=True)
    ]
    return [
        replace(picture, lines=tuple(filter(None, (*lines, _kind(explained, item), _text(item)))))
        for picture, item, lines in zip(pictures, items, texts, strict=True)
    ]


def _lines(neighbour: Neighbour) -> tuple[str, ...]:
    return f"{neighbour.cosine:.3f}", neighbour.duplicate


def _kind(explained: Explained, item: Item) -> str:
    return f"{explained.category_field} {item.field}" if explained.category_field else ""


def _text(item: Item) -> str:
    return short_text(item.text) if item.text else ""


def _first_good(explained: Explained, item: Item) -> bytes | None:
    """Return the path of the first picture of an item that could be loaded; None without one."""
    return next((path for path in item.paths if path not in explained.pictures.problems), None)


def _without_picture(item: Item) -> Picture:
    return Picture(None, problem=_text(item) or "no picture")
