"""Slices of the evaluation data: which rows belong to each slice, and the names of the slices.

A slicer keeps one number per row while rows are read, and interprets the numbers when all rows are known: the most
frequent values, or the limits of bins, are those of the whole evaluation data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from easyrec_mm.errors import DataError
from easyrec_mm.evaluation.rows import Rows
from easyrec_mm.features.quantiles import quantile_boundaries

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int64]

# Maximum number of distinct values of a field that are counted to find the most frequent ones.
MAX_DISTINCT = 1_000_000
# About the number of values from which the limits of bins are computed.
_MAX_FITTED = 1_000_000


class Slicer(ABC):
    """One way to divide the rows into slices.

    name    prefix of the names of the slices, "<name>=<value>"
    column  column of Rows with the slicer's numbers
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.column = f"slice:{name}"
        self.values: list[str] = []

    def raw(self, values: Array) -> Array:
        """Return the number to keep per row `[N]`, given the values of the input."""
        return values

    @abstractmethod
    def finish(self, rows: Rows) -> None:
        """Fill `values`, after all rows are known."""

    @abstractmethod
    def codes(self, raw: Array) -> Codes:
        """Return the index into `values` per row, int64 `[N]`."""


class ByValue(Slicer):
    """Slices by the most frequent values of a field, and one slice for all other values."""

    OTHERS = "others"

    def __init__(self, name: str, max_values: int, place: str) -> None:
        super().__init__(name)
        self._max_values = max_values
        self._place = place
        self._codes: dict[bytes | float, int] = {}
        self._counts: Counter[int] = Counter()

    def raw(self, values: Array) -> Array:
        """See Slicer.raw."""
        distinct, row, counts = np.unique(values, return_inverse=True, return_counts=True)
        codes = [self._codes.setdefault(value, len(self._codes)) for value in distinct.tolist()]
        if len(self._codes) > MAX_DISTINCT:
            raise DataError(
                f"{self._place}: '{self.name}' has more than {MAX_DISTINCT:,} different values; slice by a field with "
                "fewer, or a number by num_quantiles"
            )
        self._counts.update(dict(zip(codes, counts.tolist(), strict=True)))
        result: Array = np.array(codes, np.int32)[row]
        return result

    def finish(self, rows: Rows) -> None:
        """See Slicer.finish."""
        texts = {code: _text(value) for value, code in self._codes.items()}
        frequent = sorted(self._counts, key=lambda code: (-self._counts[code], texts[code]))
        if len(frequent) > self._max_values + 1:
            frequent = frequent[: self._max_values]
        self.values = [texts[code] for code in frequent]
        if len(frequent) < len(texts):
            self.values.append(self.OTHERS)
        self._slice_of_code = np.full(len(texts), len(frequent))
        self._slice_of_code[frequent] = np.arange(len(frequent))

    def codes(self, raw: Array) -> Codes:
        """See Slicer.codes."""
        return np.asarray(self._slice_of_code[raw], np.int64)


class ByQuantile(Slicer):
    """Slices by bins of a number, with about equal numbers of rows per bin."""

    def __init__(self, name: str, num_quantiles: int) -> None:
        super().__init__(name)
        self._num_quantiles = num_quantiles
        self._limits: tuple[float, ...] = ()

    def raw(self, values: Array) -> Array:
        """See Slicer.raw."""
        return values.astype(np.float32)

    def finish(self, rows: Rows) -> None:
        """See Slicer.finish."""
        step = max(1, len(rows) // _MAX_FITTED)
        self._limits = quantile_boundaries(rows.column(self.column)[::step], self._num_quantiles)
        limits = [f"{limit:g}" for limit in self._limits]
        between = [f"{low}..{high}" for low, high in pairwise(limits)]
        self.values = [f"below {limits[0]}", *between, f"from {limits[-1]}"] if limits else ["all"]

    def codes(self, raw: Array) -> Codes:
        """See Slicer.codes."""
        return np.searchsorted(np.asarray(self._limits, np.float32), raw, side="right")


class ByFrequency(Slicer):
    """Slices by how often training data contain the item: never, less than `frequent_from` times, or at least that."""

    def __init__(self, counts: tuple[Array, Array], frequent_from: int) -> None:
        super().__init__("item_frequency")
        self._items, self._counts = counts  # uint64 [items] ascending, int64 [items]
        self._frequent_from = frequent_from

    def raw(self, values: Array) -> Array:
        """Return the code of the frequency per row, given the hashes of items, uint64 `[N]`."""
        place = np.searchsorted(self._items, values)
        is_known = np.zeros(len(values), bool)
        inside = place < len(self._items)
        is_known[inside] = self._items[place[inside]] == values[inside]
        counts = np.zeros(len(values), np.int64)
        counts[is_known] = self._counts[place[is_known]]
        return np.where(counts == 0, 0, np.where(counts < self._frequent_from, 1, 2)).astype(np.int8)

    def finish(self, rows: Rows) -> None:
        """See Slicer.finish."""
        self.values = ["unseen", "rare", "frequent"]

    def codes(self, raw: Array) -> Codes:
        """See Slicer.codes."""
        return raw.astype(np.int64)


class ByPicture(Slicer):
    """Slices of the samples with and without a picture."""

    def __init__(self) -> None:
        super().__init__("has_picture")

    def raw(self, values: Array) -> Array:
        """See Slicer.raw."""
        return values.astype(np.int8)

    def finish(self, rows: Rows) -> None:
        """See Slicer.finish."""
        self.values = ["false", "true"]

    def codes(self, raw: Array) -> Codes:
        """See Slicer.codes."""
        return raw.astype(np.int64)


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else f"{value:g}"
    return text.replace("\n", " ") or "(empty)"
