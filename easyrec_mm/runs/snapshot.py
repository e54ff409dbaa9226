"""A checkpoint that is written while the training goes on, with the values of the step at which it began.

Everything but large tables is copied at once. Large tables are copied slice by slice between the steps, each of which
hands over the rows that it has changed as they were before; a thread puts these into the slices and writes them.
Both together take no more than a given share of the machine, so that the training is hardly slower meanwhile.
Of several workers that hold parts of tables, each does so with its own rows; see parts_of_workers.py.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.errors import CheckpointError, tensorflow_reason
from easyrec_mm.runs.checkpoint_parts import SLICE_BYTES, PartWriter, Piece, Table, UselessNumberError, write_pieces
from easyrec_mm.runs.meetings import AbandonedError, Meetings
from easyrec_mm.runs.old_rows import OldRows

# Share of the machine that may be used: all processors while slices are copied, and the one that writes.
SHARE = 0.02
# Of waiting for the disk or for data, not more than this is made up for.
_MOST_ALLOWANCE_S = 0.1
# Largest share of the size of the large tables that the old values of changed rows may take; then the rest is written
# at once.
KEPT_SHARE = 0.2
# Bytes of slices that wait to be written.
WAITING_BYTES = 4 * SLICE_BYTES
# What writing raises if it fails for a reason that a user can change.
WRITE_ERRORS = (OSError, tf.errors.OpError, UselessNumberError)

# Rows that a step has changed, by table: their numbers, and the values that they had before by variable.
Changed = Mapping[str, tuple[tf.Tensor, Mapping[str, tf.Tensor]]]


class UnwritablePartsError(Exception):
    """Another process cannot write its parts of a checkpoint."""


class OtherWriters(Protocol):
    """Other processes that write parts of the same checkpoint.

    meetings    of the thread that writes, with those of the others; None if the thread of the training writes
    has_failed  whether a process has reported a problem at the last meeting, after which all threads end
    """

    meetings: Meetings | None
    has_failed: bool

    def collect(self, write: Callable[[], list[str]]) -> list[str]:
        """Write the parts of this process; return the prefixes of all parts.

        Raises:
          UnwritablePartsError: if a process cannot write its parts.
        """

    def finish(self, path: str) -> None:
        """Do what remains when the parts are merged, before the checkpoint is listed."""

    def remove(self) -> None:
        """Remove what the others have left of their parts."""


@dataclass(frozen=True)
class Target:
    """Where a snapshot goes.

    path    the checkpoint
    folder  where its parts are written
    commit  makes a checkpoint of the parts
    around  the context in which it does so
    failed  -> the error to raise after one of WRITE_ERRORS
    others  other processes that write parts of it; None if this one writes all
    """

    path: str
    folder: Path
    commit: Callable[[list[str]], None]
    around: Callable[[], AbstractContextManager[None]]
    failed: Callable[[Exception], CheckpointError]
    others: OtherWriters | None = None


def reason_of(error: Exception) -> str:
    """Return the reason for one of WRITE_ERRORS, or for an UnwritablePartsError."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return tensorflow_reason(error.message) if isinstance(error, tf.errors.OpError) else str(error)


class Snapshot:
    """A checkpoint that is being written.

    Args:
      target: where it goes.
      pieces: what it contains.
      streamed: the tables that are copied between steps.
      clock: function that returns the time in seconds.

    Attributes:
      path: the checkpoint.
    """

    def __init__(
        self,
        target: Target,
        pieces: Sequence[Piece],
        streamed: Sequence[Table] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.path = target.path
        self._target, self._clock = target, clock
        self._meetings = None if target.others is None else target.others.meetings
        self._parts = PartWriter(target.folder)
        names = {table.name for table in streamed}
        self._now = [piece for piece in pieces if piece.table not in names]
        self._later = deque(piece for piece in pieces if piece.table in names)
        self._old = {
            table.name: OldRows(table, [piece for piece in self._later if piece.table == table.name])
            for table in streamed
        }
        self._most_kept = KEPT_SHARE * sum(table.num_rows * table.row_bytes for table in streamed)
        # Seconds of the whole machine that may be used; negative if more were used.
        self._allowance_s, self._last_s = 0.0, clock()
        # What the thread has to do, in this order; None at the end.
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)
        self._num_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._counted_s = 0.0  # of _written_s
        self._changes = threading.Condition()  # of the attributes below, by the thread
        self._written_s = 0.0  # processor time
        self._slice_bytes = self._row_bytes = 0  # of slices and old rows that wait for the thread
        self._error: Exception | None = None
        self._is_abandoned = False

    @property
    def is_done(self) -> bool:
        """Return whether nothing is left to do, or the thread has failed; `finish` tells."""
        return self._thread.ident is not None and not self._thread.is_alive()

    @property
    def needs_others(self) -> bool:
        """Return whether it is completed only together with the other workers."""
        return self._meetings is not None

    @property
    def is_waiting(self) -> bool:
        """Return whether it goes on only when all workers `meet`."""
        return self._meetings is not None and self._meetings.is_due

    def meet(self) -> None:
        """Exchange what the writing workers tell each other; all call this when all are waiting."""
        if self._meetings is None or self._target.others is None:
            return
        self._meetings.hold()
        if self._target.others.has_failed:
            self._thread.join()  # so that all workers end after the same step

    @property
    def num_left(self) -> int:
        """Return the number of slices that are not copied yet."""
        return len(self._later)

    def write(self) -> str:
        """Write all of it now, in this thread, and return the path.

        Raises:
          CheckpointError: if it cannot be written.
        """
        others = self._target.others
        write = partial(write_pieces, self._target.folder, (*self._now, *self._later))
        # Others report what they cannot write. An error of TensorFlow is then that of an exchange: a worker was lost.
        errors = WRITE_ERRORS if others is None else (OSError, UnwritablePartsError)
        try:
            parts = write() if others is None else others.collect(write)
        except errors as error:
            raise self._target.failed(error) from error
        try:
            with self._target.around():
                self._target.commit(parts)
        except (*WRITE_ERRORS, UnwritablePartsError) as error:
            raise self._target.failed(error) from error
        return self.path

    def start(self) -> None:
        """Copy what is not copied between steps, and begin to write."""
        for piece in self._now:
            # The buffer of a variable may be changed by the next step.
            is_variable = isinstance(piece.variable, tf.Variable) and piece.rows is None
            value = tf.constant(np.array(piece.variable)) if is_variable else piece.value()
            self._queue.put(partial(self._parts.add, piece, value))
        self._now = []
        self._thread.start()
        self._last_s = self._clock()

    def after_step(self, changed: Changed) -> None:
        """Go on after a step; after an error there is nothing to do until `finish`.

        Args:
          changed: the rows of streamed tables that the step has changed.
        """
        if self._error is not None:
            return
        for table, (rows, values) in changed.items():
            arrays = {name: value.numpy() for name, value in values.items()}
            self._keep(table, rows.numpy(), arrays)
        now_s = self._clock()
        written_s = self._written_s
        used_s = (written_s - self._counted_s) / self._num_processors
        self._counted_s = written_s
        self._allowance_s = min(self._allowance_s + SHARE * (now_s - self._last_s) - used_s, _MOST_ALLOWANCE_S)
        while self._later and self._allowance_s > 0 and self._slice_bytes < WAITING_BYTES:
            self._copy()
            self._allowance_s -= self._clock() - now_s
            now_s = self._clock()
        if sum(old.num_bytes for old in self._old.values()) + self._row_bytes > self._most_kept:
            self._copy_all()
        if not self._later:
            self._queue.put(None)
        self._last_s = self._clock()

    def finish(self) -> str:
        """Write what is left, and return the path.

        Raises:
          CheckpointError: if the checkpoint cannot be written.
        """
        self._copy_all()
        self._queue.put(None)
        while self._meetings is not None and self._meetings.hold():
            pass
        self._thread.join()
        if self._error is not None:
            self._raise()
        return self.path

    def abandon(self) -> None:
        """Stop to write; the checkpoint does not come about."""
        self._is_abandoned = True
        self._queue.put(None)
        if self._meetings is not None:
            self._meetings.end()
        self._thread.join()

    def _raise(self) -> NoReturn:
        error = self._error
        if isinstance(error, (*WRITE_ERRORS, UnwritablePartsError)):
            raise self._target.failed(error) from error
        raise error or RuntimeError

    def _copy_all(self) -> None:
        while self._later and self._error is None:
            self._copy()

    def _copy(self) -> None:
        """Hand the next slice to the thread, as soon as not too many are waiting."""
        with self._changes:
            self._changes.wait_for(lambda: self._slice_bytes < WAITING_BYTES or self._error is not None)
        piece = self._later.popleft()
        value = piece.value()
        num_bytes = value.dtype.size * math.prod(value.shape)

        def write() -> None:
            old = self._old[str(piece.table)]
            self._parts.add(piece, old.values_of(piece, value))
            with self._changes:
                self._slice_bytes -= num_bytes
                self._changes.notify()

        with self._changes:
            self._slice_bytes += num_bytes
        self._queue.put(write)

    def _keep(self, table: str, rows: NDArray[np.int64], values: Mapping[str, NDArray[np.generic]]) -> None:
        num_bytes = rows.nbytes + sum(value.nbytes for value in values.values())

        def keep() -> None:
            self._old[table].add(rows, values)
            with self._changes:
                self._row_bytes -= num_bytes

        with self._changes:
            self._row_bytes += num_bytes
        self._queue.put(keep)

    def _write(self) -> None:
        others = self._target.others
        try:
            parts = self._written() if others is None else others.collect(self._written)
            with self._target.around():
                self._target.commit(parts)
        except Exception as error:  # raised in the thread of the training
            self._fail(error)
        finally:
            if self._meetings is not None:
                self._meetings.end()

    def _written(self) -> list[str]:
        """Write the parts of this process; return their prefixes."""
        try:
            while (act := self._queue.get()) is not None:
                act()
                self._written_s = time.thread_time()
            if self._is_abandoned:
                raise AbandonedError
            self._parts.flush()
        except Exception as error:
            # The thread of the training hands over no more, while the other workers are told.
            self._fail(error)
            raise
        return self._parts.parts

    def _fail(self, error: Exception) -> None:
        with self._changes:
            self._error = error
            self._changes.notify()
