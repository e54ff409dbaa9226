"""Which rows of a table stand for the same values as before, after its vocabulary or its number of buckets changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easyrec_mm.features.categories import Categories, Encoding
from easyrec_mm.features.feature import Feature

# The categories of the features that share a table, by name of the feature.
TableCategories = Mapping[str, Categories]
_SETTINGS: dict[Encoding, str] = {"hash": "hash_bucket_size", "identity": "num_buckets", "vocabulary": "a vocabulary"}


class UnlikeRowsError(Exception):
    """No row of a table stands for what it stood for before; the message is the reason."""


def tables_of(features: Iterable[Feature]) -> dict[str, dict[str, Categories]]:
    """Return table -> categories of the features that share it; tables of numbers are left out."""
    tables: dict[str, dict[str, Categories]] = {}
    for feature in features:
        if feature.table and feature.categories:
            tables.setdefault(feature.table, {})[feature.name] = feature.categories
    return tables


def rows_before(before: TableCategories, now: TableCategories) -> NDArray[np.int64]:
    """Return for each row of a table the row that stood for the same value before; -1 for a row with a new value.

    Where features with different vocabularies share a table, a row stands for a value of each of them.

    Raises:
      UnlikeRowsError: if the rows stand for other values, as those of another number of hash buckets.
    """
    rows: NDArray[np.int64] | None = None
    for feature, categories in now.items():
        # A feature that is new to the table has the rows of the others if these agree.
        candidates = {before[feature]} if feature in before else set(before.values())
        if len(candidates) != 1:
            continue
        of_feature = _rows_of(next(iter(candidates)), categories)
        if rows is None:
            rows = of_feature
            continue
        if bool(np.any((rows >= 0) & (of_feature >= 0) & (rows != of_feature))):
            names = ", ".join(now)
            raise UnlikeRowsError(f"the values of its features ({names}) have moved to different rows")
        rows = np.maximum(rows, of_feature)
    if rows is None:
        raise UnlikeRowsError("other features share it now")
    return rows


def _rows_of(before: Categories, now: Categories) -> NDArray[np.int64]:
    if before.encoding != now.encoding:
        old, new = _SETTINGS[before.encoding], _SETTINGS[now.encoding]
        raise UnlikeRowsError(f"its rows are chosen by {new}, were chosen by {old}")
    if now.encoding == "hash":
        if before.num_ids != now.num_ids:
            raise UnlikeRowsError(
                f"hash_bucket_size was {before.num_ids}, is {now.num_ids}: values have other rows with it"
            )
        return np.arange(now.num_ids)
    if now.encoding == "identity":
        rows = np.arange(now.num_ids)
        return np.where(rows < before.num_ids, rows, -1)
    if before.vocabulary == now.vocabulary:
        return np.arange(now.num_ids)
    places = pc.index_in(pa.array(now.vocabulary, pa.string()), value_set=pa.array(before.vocabulary, pa.string()))
    known = pc.fill_null(places, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.append(known, before.num_ids - 1)  # the last row is that of unknown values
