"""Nearest neighbours of items by the trained vectors, beside those by the vectors before training.

Legend: I items, Q queries, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from easyrec_mm.store.search import Index, Neighbour, marked
from easyrec_mm.store.similarity import Similarity, SimilarityName, fit

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Neighbours:
    """The items nearest to some items.

    queries     indices of these items
    nearest     for each query its neighbours, nearest first; their keys are indices of items, as text
    similarity  how vectors are compared
    """

    queries: tuple[int, ...]
    nearest: tuple[tuple[Neighbour, ...], ...]
    similarity: Similarity


def neighbours_of(
    vectors: Floats,
    content: Sequence[bytes],
    has_picture: npt.NDArray[np.bool_],
    queries: Sequence[int],
    top_k: int,
    similarity: SimilarityName = "centred",
) -> Neighbours:
    """Return the nearest items with a picture of some items, exact duplicates marked.

    Args:
      vectors: float32 `[I, D]`.
      content: hash of the contents of each item's pictures.
      has_picture: bool `[I]`.
      queries: indices of items with a picture.
      top_k: number of neighbours of each.
      similarity: how vectors are compared, by the statistics of all items with a picture.
    """
    among = np.flatnonzero(has_picture)
    index = Index([str(i) for i in among.tolist()], vectors[among], "exact", fit(similarity, vectors[among]))
    sheets = []
    for query in queries:
        pairs = index.nearest(vectors[query], top_k, str(query))
        rows = [int(key) for key, _ in pairs]
        sheets.append(tuple(marked(vectors[query], content[query], pairs, vectors[rows], [content[i] for i in rows])))
    return Neighbours(tuple(queries), tuple(sheets), index.similarity)


def shared_share(first: Neighbours, second: Neighbours) -> float:
    """Return which share of the neighbours of the first are neighbours of the same query in the second; NaN without."""
    shares = [
        len({n.key for n in one} & {n.key for n in other}) / len(one)
        for one, other in zip(first.nearest, second.nearest, strict=True)
        if one
    ]
    return float(np.mean(shares)) if shares else float("nan")
