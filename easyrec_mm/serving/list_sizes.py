"""Counts the values of lists in a request before anything is computed, and divides large requests into parts.

The models take lists of S candidates as arrays `[S, L]`, L the longest of them. A request in which one candidate has
a long list would take a multiple of its size, and so would a list that all candidates share. Therefore the values are
counted in the texts: a request with too many is refused, and a large one is computed in parts, each of candidates with
lists of similar lengths, so that the memory for a request is proportional to the number of its values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.features.feature import Feature
from easyrec_mm.features.numpy_back_end import Values
from easyrec_mm.features.sequence_feature import SequenceFeature

# A vector of more numbers counts as several values, and a text of more characters, too.
_NUMBERS_OF_A_VALUE, _CHARACTERS_OF_A_VALUE = 16, 64
# Values that are computed at a time, the padding included.
VALUES_OF_A_PART = 1 << 17

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ListSizes:
    """The sizes of the lists of S candidates.

    number    S
    own       feature -> values of each candidate's list `[S]`
    repeated  feature -> values of a list that all candidates share, which is repeated for each of them
    """

    number: int
    own: Mapping[str, Ints]
    repeated: Mapping[str, int]

    @property
    def are_small(self) -> bool:
        """Return whether there are so few values that they were not even counted."""
        return not self.own and not self.repeated

    @property
    def total(self) -> int:
        """Return the number of values of all lists together."""
        return sum(int(sizes.sum()) for sizes in self.own.values()) + self.number * sum(self.repeated.values())

    def largest(self) -> tuple[str, int | None, int]:
        """Return the feature with the most values, the candidate with its longest list (None: all), and its values."""
        totals = {name: int(sizes.sum()) for name, sizes in self.own.items()}
        totals |= {name: self.number * size for name, size in self.repeated.items()}
        name = max(totals, key=lambda feature: totals[feature])
        if name in self.repeated:
            return name, None, self.repeated[name]
        candidate = int(self.own[name].argmax())
        return name, candidate, int(self.own[name][candidate])

    def parts(self) -> list[Ints]:
        """Return the indices of candidates that are computed together, [] for all at a time."""
        if self.are_small:
            return []
        base = sum(self.repeated.values())
        sizes = np.stack([*self.own.values()], axis=1) if self.own else np.zeros((self.number, 0), np.int64)
        if self.number * (base + int(sizes.max(axis=0, initial=0).sum())) <= VALUES_OF_A_PART:
            return []
        order = np.argsort(sizes.sum(axis=1), kind="stable")
        return list(_cut(order, sizes[order], base))


def _cut(order: Ints, sizes: Ints, base: int) -> Iterator[Ints]:
    """Yield parts of `order`, each as long as its padded lists `[S, F]`, and `base`, have few values; at least one."""
    start = 0
    while start < len(order):
        longest = np.maximum.accumulate(sizes[start:], axis=0).sum(axis=1) + base
        is_too_large = longest * np.arange(1, len(longest) + 1) > VALUES_OF_A_PART
        number = int(is_too_large.argmax()) if is_too_large.any() else len(longest)
        yield order[start : start + max(number, 1)]
        start += max(number, 1)


class ListCounter:
    """Counts the values in the texts of candidates: of lists, and of long texts that candidates share.

    Args:
      features: the features of the model.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self._features = features

    def sizes(self, fields: Mapping[str, Values], number: int) -> ListSizes:
        """Return the sizes of the lists of `number` candidates, given fields with a value for each, or one for all."""
        texts = {
            feature.name: (feature, columns)
            for feature in self._features
            if (columns := _counted(feature, fields, number))
        }
        if number * sum(_most_values(feature, columns) for feature, columns in texts.values()) <= VALUES_OF_A_PART:
            return ListSizes(number, {}, {})
        counts = {name: _sizes(feature, columns) for name, (feature, columns) in texts.items()}
        own = {name: sizes for name, sizes in counts.items() if len(sizes) == number}
        return ListSizes(number, own, {name: int(sizes[0]) for name, sizes in counts.items() if name not in own})


def _counted(feature: Feature, fields: Mapping[str, Values], number: int) -> list[Sequence[str]]:
    """Return the columns that can make a request large: lists, and texts that are repeated for each candidate."""
    # A field for which the model takes a constant is not in the request.
    columns = [fields[name] for name in feature.inputs if name in fields]
    texts = [column for column in columns if not isinstance(column, np.ndarray)]
    return [column for column in texts if feature.is_list or len(column) != number]


def _most_values(feature: Feature, columns: Sequence[Values]) -> int:
    """Return a number of values that none of the texts exceeds, which is found sooner than the true numbers."""
    longest = max(max(map(len, column)) for column in columns)
    return (longest + 1 if feature.is_list else longest // _CHARACTERS_OF_A_VALUE) * _unit(feature)


def _sizes(feature: Feature, columns: Sequence[Values]) -> Ints:
    """Return the number of values of each candidate, `[S]` or `[1]`; if there are several texts, of the longest."""
    separator = feature.separators[0] if feature.is_list else ""
    counts = [
        np.array(
            [len(text) // _CHARACTERS_OF_A_VALUE + (text.count(separator) + 1 if separator else 0) for text in column],
            np.int64,
        )
        for column in columns
    ]
    total: Ints = np.max(np.broadcast_arrays(*counts), axis=0)
    if isinstance(feature, SequenceFeature) and feature.max_length:
        total = np.minimum(total, feature.max_length)
    return total * _unit(feature)


def _unit(feature: Feature) -> int:
    """Return how many values a value of the feature counts as."""
    return -(-max(feature.width, 1) // _NUMBERS_OF_A_VALUE)
