"""The report on codes: how much they tell of the vectors, and how many items they do not tell apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.codes.codebooks import Codes
from easyrec_mm.store.codes import Shape


@dataclass(frozen=True)
class Collisions:
    """Items that share their full code with others.

    num_codes    number of distinct full codes
    num_items    items that share theirs
    largest      size of the largest set of items with one code; 1 if no items share a code
    largest_id   semantic ID of that set
    """

    num_codes: int
    num_items: int
    largest: int
    largest_id: str


@dataclass(frozen=True)
class Changes:
    """Items that had codes before: their number, how many have another full code now, and another code of level 1.

    They are compared only if the codes before had the same shape; otherwise their number is 0.
    """

    num_compared: int = 0
    num_changed: int = 0
    num_changed_first: int = 0


@dataclass(frozen=True)
class Report:
    """The result of `quantize`.

    shape            levels and codes
    uri, generation  where the codes are
    is_new           whether codebooks were made; `num_fitted` is the number of vectors they were made of, else 0
    num_items        items with codes; num_absent: items without, because they have no vector
    num_written      items whose codes were written; the others had theirs
    collisions       items that share a code
    num_used         number of codes that items have, by level
    explained        share of the variance of the vectors that the codes up to a level explain; NaN without variance
    error            mean squared distance of vectors from their reconstruction
    changes          items whose codes have changed
    left_out         keys that --output cannot hold
    waits_for        what the generation waits for until it becomes current, or ""
    """

    shape: Shape
    uri: str
    generation: int
    is_new: bool
    num_fitted: int
    num_items: int
    num_absent: int
    num_written: int
    collisions: Collisions
    num_used: tuple[int, ...]
    explained: tuple[float, ...]
    error: float
    changes: Changes
    left_out: tuple[str, ...] = ()
    waits_for: str = ""


def semantic_id(codes: Iterable[int]) -> str:
    """Return the codes of an item as text, as in 12_200_3_77."""
    return "_".join(map(str, codes))


def collisions(codes: Codes) -> Collisions:
    """Return the collisions of codes `[N, L]`, N from 1."""
    distinct, counts = np.unique(codes, axis=0, return_counts=True)
    largest = int(np.argmax(counts))
    return Collisions(
        len(distinct), int(counts[counts > 1].sum()), int(counts[largest]), semantic_id(distinct[largest].tolist())
    )


class Variance:
    """The variance of vectors `[N, D]` that are added in portions, and what codes leave of it."""

    def __init__(self, width: int, num_levels: int) -> None:
        self._number = 0
        self._sums = np.zeros(width)
        self._squares = 0.0
        self._errors = np.zeros(num_levels)

    def add(self, vectors: NDArray[np.float32], square_errors: NDArray[np.float64]) -> None:
        """Add vectors, and the squared errors of each level `[N, L]`."""
        numbers = vectors.astype(np.float64)
        self._number += len(numbers)
        self._sums += numbers.sum(axis=0)
        self._squares += float(np.einsum("nd,nd->", numbers, numbers))
        self._errors += square_errors.sum(axis=0)

    def explained(self) -> tuple[float, ...]:
        """Return the share that the codes up to each level explain; NaN if all vectors are equal."""
        total = self._squares - float(self._sums @ self._sums) / self._number
        # Sums of squares are exact to about this part of them.
        if total <= 1e-12 * self._squares:
            return (float("nan"),) * len(self._errors)
        return tuple((1 - self._errors / total).tolist())

    def error(self) -> float:
        """Return the mean squared distance of vectors from the sum of their centroids."""
        return float(self._errors[-1]) / self._number


def lines(report: Report) -> list[str]:
    """Describe a report in lines of text."""
    shared = report.collisions
    absent = f", {report.num_absent} without a vector" if report.num_absent else ""
    made = f"made of {report.num_fitted} vectors" if report.is_new else "kept"
    text = [
        f"codebooks {report.shape}: {made}",
        f"{report.num_items} items with codes{absent}; {report.num_written} written",
        f"{'level':>5}  {'codes used':>10}  {'variance explained':>18}",
    ]
    for level, (used, share) in enumerate(zip(report.num_used, report.explained, strict=True), 1):
        text.append(f"{level:>5}  {used:>10}  {'-' if np.isnan(share) else f'{share:.2%}':>18}")
    text.append(f"reconstruction error: {report.error:.6g} (mean squared distance)")
    share = shared.num_items / report.num_items
    collision = f"collisions: {shared.num_items} items ({share:.2%}) share their full code with others"
    largest = f"; the largest set has {shared.largest} ({shared.largest_id})" if shared.num_items else ""
    text.append(f"{collision}; {shared.num_codes} distinct codes{largest}")
    changes = report.changes
    if changes.num_compared:
        text.append(
            f"changed: {changes.num_changed} of {changes.num_compared} items that had codes have another one, "
            f"{changes.num_changed_first} of them another code of level 1"
        )
    is_current = f"is not current yet: {report.waits_for}" if report.waits_for else "is current"
    text.append(f"generation {report.generation} of {report.uri} {is_current}")
    return text
