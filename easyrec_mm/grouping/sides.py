"""Decides which rows train and which evaluate: by the hash of their item or user, or by their time.

By hash, all rows of an item (or user) are on one side, so that memorizing it does not help in the evaluation. By time,
each row that trains is earlier than each row that evaluates; items and users are on both sides, as in production.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easyrec_mm.grouping.times import DateOrder, times_of
from easyrec_mm.stable_hash import hash_column, seeded

SIDES = ("train", "eval")
TRAIN, EVAL = range(2)
# Makes the sides independent of the order of groups, which hashes of the same items decide as well.
_SEED_OF_SIDES = 0x51DE


@dataclass(frozen=True)
class SideRule:
    """How rows are divided.

    column  column of the item, the user or the time
    share   share of the items or users that evaluate; by time, share of the rows if no cut is given
    cut     by time: the first time that evaluates; None if it is not known yet
    order   by time: the order of day and month in a column of text; None for a column of numbers
    """

    by: Literal["item", "user", "time"]
    column: str
    share: float
    cut: Any = None
    order: DateOrder | None = None

    def sides(self, table: pa.Table, seed: int) -> NDArray[np.int8]:
        """Return TRAIN or EVAL, int8 `[N]`, for rows that have a value in `column`."""
        values = self.comparable(table[self.column].combine_chunks())
        if self.by == "time":
            is_late: NDArray[np.int8] = (
                pc.greater_equal(values, pa.scalar(self.cut, values.type)).cast(pa.int8()).to_numpy()
            )
            return is_late
        hashes = seeded(hash_column(values), seed ^ _SEED_OF_SIDES)
        return (hashes.astype(np.float64) < self.share * 2.0**64).astype(np.int8)

    def comparable(self, values: pa.Array) -> pa.Array:
        """Return the values by which rows are divided; null for a text that is not a time.

        Times of text are numbers. Items and users are text, so that 7 and "7" of another day are on the same side.
        """
        if self.by != "time":
            encoded = values.dictionary_encode()
            return pa.DictionaryArray.from_arrays(encoded.indices, encoded.dictionary.cast(pa.string()))
        return values if self.order is None else times_of(values, self.order)
