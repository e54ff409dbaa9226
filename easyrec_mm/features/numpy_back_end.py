"""The operations of feature types in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from farmhash import Fingerprint64
from numpy.typing import NDArray

from easyrec_mm.features.back_end import BackEnd
from easyrec_mm.features.expression import Expression, Functions
from easyrec_mm.features.times import LARGEST_TIME, TIME_ZERO, read_parts, seconds_of

# N values of a field: str for text, or an array of int64, bool or float32.
Values = Sequence[str] | NDArray[Any]

_FUNCTIONS: Functions = {
    "abs": np.abs,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "floor": np.floor,
    "divide": np.divide,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "where": np.where,
    "constant": np.float64,
    "as_number": lambda value: value.astype(np.float64),
    "as_whole": lambda number: np.clip(np.floor(number), -LARGEST_TIME, LARGEST_TIME).astype(np.int64),
    "is_finite": np.isfinite,
}


@dataclass(frozen=True)
class Lists:
    """Any number of values in each of N entries: `lengths`, int `[N]`, and the values of all entries in sequence."""

    flat_values: Values
    lengths: NDArray[np.int64]

    def with_flat_values(self, values: Values) -> Lists:
        """Return lists of the same lengths with other values."""
        return Lists(values, self.lengths)

    def to_list(self) -> list[Any]:
        """Return one list per entry."""
        limits = [0, *np.cumsum(self.lengths).tolist()]
        return [self.flat_values[start:end] for start, end in pairwise(limits)]

    def is_there(self) -> NDArray[np.bool_]:
        """Return which positions of `[N, L]` hold a value; L is the greatest length, at least 1."""
        return np.arange(max([1, *self.lengths.tolist()])) < self.lengths[:, None]

    @staticmethod
    def of(lists: Sequence[Sequence[str]]) -> Lists:
        """Return Lists with one list of texts per entry."""
        lengths = np.array([len(texts) for texts in lists], np.int64)
        return Lists([text for texts in lists for text in texts], lengths)


# What TensorFlow's crossed_column begins with, and multiplies by.
_CROSS_KEY = np.uint64(0xDECAFCAFFE)
_CROSS_FACTOR = np.uint64(0xC6A4A7935BD1E995)


class NumpyBackEnd(BackEnd):
    """Operations in NumPy: texts are lists of str, all other values are arrays.

    Args:
      vocabularies: feature -> its vocabulary.
    """

    functions = _FUNCTIONS

    def __init__(self, vocabularies: Mapping[str, Sequence[str]]) -> None:
        self._rows = {name: {text: row for row, text in enumerate(texts)} for name, texts in vocabularies.items()}

    def texts(self, values: Values, precision: int = -1) -> Sequence[str]:
        if not isinstance(values, np.ndarray):
            return values
        if values.dtype.kind == "f":
            return [f"{value:.{precision if precision >= 0 else 6}f}" for value in values.tolist()]
        return [str(value) for value in values.astype(np.int64).tolist()]

    def filled(self, values: Values, text: str) -> Values:
        return values if isinstance(values, np.ndarray) else [value or text for value in values]

    def integers(self, values: Values) -> NDArray[Any]:
        if isinstance(values, np.ndarray):
            return values.astype(np.int64, copy=False)
        return np.array([int(text or 0) for text in values], np.int64)

    def floats(self, values: Values) -> NDArray[Any]:
        if isinstance(values, np.ndarray):
            return values.astype(np.float32, copy=False)
        return np.array(values, np.float32)

    def vectors(self, values: Values, separator: str, dim: int) -> NDArray[Any]:
        if separator:
            values = [part for text in values for part in text.split(separator)]
        return self.floats(values).reshape(-1, dim)

    def evaluate(self, expression: Expression, fields: dict[str, Values]) -> NDArray[Any]:
        times = expression.text_fields()
        numbers = {
            name: self._times(values) if name in times else self._numbers(values).astype(np.float64)
            for name, values in fields.items()
        }
        with np.errstate(all="ignore"):
            result = np.asarray(expression.evaluate(numbers, self.functions)).astype(np.float32)
        return np.where(np.isfinite(result), result, np.float32(0))

    def _numbers(self, values: Values) -> NDArray[Any]:
        # Text is read as float32, as everywhere else.
        return values if isinstance(values, np.ndarray) else self.floats(self.filled(values, "0"))

    def _times(self, values: Values) -> NDArray[np.float64]:
        parts = np.array([read_parts(text) for text in self.filled(values, TIME_ZERO)], np.int64).reshape(-1, 9)
        times: NDArray[np.int64] = seconds_of(list(parts.T))
        return times.astype(np.float64)

    def scale(self, numbers: NDArray[Any], least: float, greatest: float) -> NDArray[Any]:
        scaled: NDArray[Any] = (numbers - np.float32(least)) / np.float32(greatest - least)
        return scaled

    def log1p(self, numbers: NDArray[Any]) -> NDArray[Any]:
        wide = numbers.astype(np.float64)
        return (np.sign(wide) * np.log1p(np.abs(wide))).astype(np.float32)

    def buckets(self, numbers: NDArray[Any], boundaries: tuple[float, ...]) -> NDArray[Any]:
        return _as_array(boundaries).searchsorted(numbers[:, 0], side="right").astype(np.int64, copy=False)

    def within(self, ids: NDArray[Any], num_ids: int) -> NDArray[Any]:
        return np.where(ids.view(np.uint64) < num_ids, ids, 0)  # as unsigned numbers, negative ones are large

    def hashes(self, texts: Sequence[str], num_ids: int) -> NDArray[Any]:
        fingerprints = np.fromiter(map(Fingerprint64, texts), np.uint64, len(texts))
        return (fingerprints % np.uint64(num_ids)).astype(np.int64)

    def look_up(self, feature: str, texts: Sequence[str]) -> NDArray[Any]:
        rows = self._rows[feature]
        return np.array([rows.get(text, len(rows)) for text in texts], np.int64)

    def join(self, columns: Sequence[Sequence[str]], separator: str) -> Sequence[str]:
        return [separator.join(texts) for texts in zip(*columns, strict=True)]

    def cross(self, columns: Sequence[Sequence[str]], num_ids: int) -> NDArray[Any]:
        hashed = np.full(len(columns[0]), _CROSS_KEY, np.uint64)
        for texts in columns:
            hashed = _together(hashed, np.fromiter(map(Fingerprint64, texts), np.uint64, len(texts)))
        return (hashed % np.uint64(num_ids)).astype(np.int64)

    def split(self, texts: Sequence[str], separator: str) -> Lists:
        return Lists.of([[part for part in text.split(separator) if part] for text in texts])

    def pairs(self, texts: Sequence[str], separator: str) -> tuple[Sequence[str], Sequence[str]]:
        pairs = [text.split(separator) for text in texts]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    def with_values_of(self, lists: Lists, source: Lists) -> Lists:
        if not np.array_equal(lists.lengths, source.lengths):
            raise ValueError("the two lists of a sample have different numbers of values")
        return source

    def values_for(self, lists: Lists, keys: Sequence[str], values: Sequence[str]) -> Lists:
        parts = zip(keys, lists.to_list(), lists.with_flat_values(values).to_list(), strict=True)
        return Lists.of(
            [[value for text, value in zip(texts, own, strict=True) if text == key] for key, texts, own in parts]
        )

    def cut(self, lists: Lists, length: int, keeps_last: bool) -> Lists:
        span = slice(-length, None) if keeps_last else slice(length)
        return Lists.of([texts[span] for texts in lists.to_list()])


@lru_cache
def _as_array(numbers: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array(numbers, np.float32)


def _together(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return one fingerprint for two, as FingerprintCat64 of TensorFlow (core/platform/fingerprint.h) computes it."""

    def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return values ^ (values >> np.uint64(47))

    result = first ^ _CROSS_FACTOR
    result ^= mixed(second * _CROSS_FACTOR) * _CROSS_FACTOR
    result *= _CROSS_FACTOR
    result = mixed(result) * _CROSS_FACTOR
    return mixed(result)
