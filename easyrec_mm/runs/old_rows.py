"""The rows of a table at a step in the past, while the training changes the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.runs.checkpoint_parts import Piece, Table

_NEEDED, _NOT_NEEDED = -1, -2
_FIRST_ROWS = 1024


class OldRows:
    """Keeps the values that rows of a table had at a step, from the first time that they change until they are read.

    Args:
      table: the table.
      pieces: the pieces of it that are still to be read, in their order.
    """

    def __init__(self, table: Table, pieces: Iterable[Piece]) -> None:
        self._names = {id(variable): name for name, variable in table.variables.items()}
        # Row -> where its values are kept; or whether they are still needed.
        self._places = np.full([table.num_rows], _NOT_NEEDED, np.int32)
        for piece in pieces:
            self._places[_index(piece)] = _NEEDED
        self._num = 0
        self._kept = {
            name: np.empty([_FIRST_ROWS, *variable.shape[1:]], variable.dtype.as_numpy_dtype)
            for name, variable in table.variables.items()
        }

    @property
    def num_bytes(self) -> int:
        """Return the memory that this takes."""
        return int(self._places.nbytes + sum(values.nbytes for values in self._kept.values()))

    def add(self, rows: NDArray[np.int64], values: Mapping[str, NDArray[np.generic]]) -> None:
        """Keep the values that distinct rows had before a step changed them, of those that did not change before."""
        first = np.flatnonzero(self._places[rows] == _NEEDED)
        stop = self._num + len(first)
        for name, kept in self._kept.items():
            if stop > len(kept):
                added = max(stop, len(kept) * 5 // 4) - len(kept)
                self._kept[name] = kept = np.concatenate([kept, np.empty([added, *kept.shape[1:]], kept.dtype)])
            kept[self._num : stop] = values[name][first]
        self._places[rows[first]] = np.arange(self._num, stop)
        self._num = stop

    def values_of(self, piece: Piece, current: tf.Tensor) -> tf.Tensor:
        """Return what a piece was at the step, given what it is now; forget its rows after the last piece of them."""
        index = _index(piece)
        places = self._places[index].copy()
        if piece.is_last:
            self._places[index] = _NOT_NEEDED
        changed = np.flatnonzero(places >= 0)
        if not len(changed):
            return current
        values = self._kept[self._names[id(piece.variable)]][places[changed]]
        return tf.tensor_scatter_nd_update(current, changed[:, None], values)


def _index(piece: Piece) -> slice | NDArray[np.int64]:
    rows = piece.rows
    if isinstance(rows, range):
        return slice(rows.start, rows.stop)
    if rows is None:
        raise ValueError(f"{piece.name} has no rows")
    return rows
