"""Examines all values of a log's columns, to find the kinds that their files do not tell."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from easyrec_mm.features.field import Kind
from easyrec_mm.files.opening import opened_at
from easyrec_mm.formats.columns import MAX_INT64, MAX_WHOLE, Typed, starts_with_zero, to_kind
from easyrec_mm.grouping.flat_files import READ_ROWS, Split, csv_rows, unreadable

# Number of texts that are tried as numbers or bools, to decide whether it is worth trying all texts of a block.
_NUM_PROBED = 500


# Bits of a float -> the largest whole number up to which all whole numbers are different floats.
_LARGEST_EXACT = {16: 2.0**11, 32: 2.0**24, 64: 2.0**53}


@dataclass(frozen=True)
class TextCounts:
    """Counts of the values of a text column that are not missing: how many are numbers or bools, and of which form."""

    num_values: int = 0
    num_numbers: int = 0
    num_bools: int = 0  # counted only if some values are not numbers
    has_fractions: bool = False
    is_id: bool = False  # converting to numbers would change some values: 007, or more than 18 digits

    def __add__(self, other: TextCounts) -> TextCounts:
        return TextCounts(
            self.num_values + other.num_values,
            self.num_numbers + other.num_numbers,
            self.num_bools + other.num_bools,
            self.has_fractions or other.has_fractions,
            self.is_id or other.is_id,
        )

    def kind(self, max_bad_share: float) -> Kind | None:
        """Return the kind of nearly all values; None without values."""
        if not self.num_values:
            return None
        if self.num_bools == self.num_values:
            return "bool"
        if self.is_id or self.num_values - self.num_numbers > max_bad_share * self.num_values:
            return "string"
        return "float64" if self.has_fractions else "int64"


@dataclass(frozen=True)
class NumberCounts:
    """What the numbers in a Parquet column of floats, decimals or uint64 are.

    has_values     some are not missing
    has_fractions  some are not whole
    is_long        some are whole, and too large for int64
    is_exact       they are decimals or uint64, which hold whole numbers of any size exactly
    is_rounded     some are floats so large that several whole numbers are the same float
    """

    has_values: bool = False
    has_fractions: bool = False
    is_long: bool = False
    is_exact: bool = True
    is_rounded: bool = False

    def __add__(self, other: NumberCounts) -> NumberCounts:
        return NumberCounts(
            self.has_values or other.has_values,
            self.has_fractions or other.has_fractions,
            self.is_long or other.is_long,
            self.is_exact and other.is_exact,
            self.is_rounded or other.is_rounded,
        )

    def kind(self, of_type: Kind | None) -> Kind | None:
        """Return the kind of the values of a column, given the kind of its type; None without values.

        Whole numbers are int64 whatever their type: pandas makes floats of whole numbers with a missing one among them,
        and databases write ids as decimals.
        """
        if not self.has_values:
            return None
        if self.are_long_ids:
            return "string"
        return of_type if self.has_fractions or self.is_long else "int64"

    @property
    def are_long_ids(self) -> bool:
        """Return whether they are whole numbers that only text can hold."""
        return self.is_long and self.is_exact and not self.has_fractions


def scan_numbers(split: Split, names: Collection[str]) -> dict[str, NumberCounts]:
    """Examine columns of floats, decimals and uint64 in a Parquet split, each up to its first fraction.

    Raises:
      DataError: if the file is truncated, damaged or has vanished.
    """
    counts: dict[str, NumberCounts] = {}
    try:
        with pq.ParquetFile(opened_at(split.path)) as opened:
            for group in range(split.start, split.end):
                left = [name for name in names if name not in counts or not counts[name].has_fractions]
                if not left:
                    break
                for batch in opened.iter_batches(READ_ROWS, row_groups=[group], columns=left):
                    for name in left:
                        counts[name] = counts.get(name, NumberCounts()) + _counts_of(batch[name])
    except (OSError, EOFError, pa.ArrowException) as error:
        raise unreadable(split.path, error) from error
    return counts


def _counts_of(numbers: pa.Array) -> NumberCounts:
    is_exact = not pa.types.is_floating(numbers.type)
    largest_exact = float("inf") if is_exact else _LARGEST_EXACT[numbers.type.bit_width]
    numbers = numbers.drop_null()
    if not is_exact:
        numbers = numbers.cast(pa.float64())
        numbers = numbers.filter(pc.is_finite(numbers))
    if not len(numbers):
        return NumberCounts(is_exact=is_exact)
    is_whole = pa.types.is_integer(numbers.type) or pc.all(pc.equal(pc.floor(numbers), numbers)).as_py()
    largest = pc.max(pc.abs(numbers.cast(pa.float64(), safe=False))).as_py()
    return NumberCounts(True, not is_whole, largest >= MAX_INT64, is_exact, largest > largest_exact)


class Scanned(NamedTuple):
    """The number of rows of a CSV split, and the counts of its columns."""

    num_rows: int
    counts: dict[str, TextCounts]


def scan_split(split: Split, separator: str) -> Scanned:
    """Count the rows of a CSV split, and examine all values.

    Raises:
      DataError: if the file is truncated, damaged or has vanished.
    """
    num_rows = 0
    counts = dict.fromkeys(split.names, TextCounts())
    try:
        for rows in csv_rows(split, separator):
            num_rows += rows.num_rows
            for name in split.names:
                for chunk in rows.table[name].chunks:
                    counts[name] += _look_at(chunk)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise unreadable(split.path, error) from error
    return Scanned(num_rows, counts)


def _look_at(values: pa.Array) -> TextCounts:
    readable = to_kind(values.drop_null(), "string")
    values, num_unreadable = readable.values.drop_null(), _num_bad(readable)
    # Evenly distributed, because a log may be sorted by this column.
    spread = np.linspace(0, len(values) - 1, min(len(values), _NUM_PROBED)).astype(np.int64)
    probe = values.take(pa.array(spread))
    if 2 * min(_num_bad(to_kind(probe, kind)) for kind in ("float64", "bool")) > len(probe):
        return TextCounts(len(values) + num_unreadable)
    numbers = to_kind(values, "float64")
    num_bad = _num_bad(numbers)
    texts = values if not numbers.values.null_count else values.filter(numbers.values.is_valid())
    num_numbers = len(texts)
    is_bool = to_kind(values, "bool") if num_bad else None
    return TextCounts(
        num_values=num_numbers + num_bad + num_unreadable,
        num_numbers=num_numbers,
        num_bools=num_numbers + num_bad - _num_bad(is_bool) if is_bool else 0,
        has_fractions=_has_fractions(texts, numbers.values.drop_null()),
        is_id=_has_ids(texts),
    )


def _num_bad(typed: Typed) -> int:
    return 0 if typed.is_bad is None else int(typed.is_bad.sum())


def _has_fractions(texts: pa.Array, numbers: pa.Array) -> bool:
    """Return whether some numbers are not whole, or not written so that they can be read as int64: 0.5, 1e18."""
    is_whole = pc.all(pc.equal(pc.floor(numbers), numbers)).as_py() is not False
    if not is_whole:
        return True
    has_exponent = pc.match_substring_regex(texts, "[eE]")
    if not pc.any(has_exponent).as_py():
        return False
    return bool(pc.max(pc.abs(numbers.filter(has_exponent))).as_py() >= MAX_WHOLE)


def _has_ids(texts: pa.Array) -> bool:
    if starts_with_zero(texts) and pc.any(pc.match_substring_regex(texts, "^-?0[0-9]")).as_py():
        return True
    is_long = pc.greater(pc.binary_length(texts), 18)
    return bool(pc.any(pc.match_substring_regex(texts.filter(is_long), r"^[+-]?[0-9]{19,}$")).as_py())
