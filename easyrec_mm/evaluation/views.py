"""Views of rows for metrics: one task's rows, of all data or of a slice, in the order a metric needs, with weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from easyrec_mm.evaluation.rows import Columns, Rows
from easyrec_mm.evaluation.weights import ClusterWeights

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

# Numbers [rows, 1 + B] that are processed at once: they fit in a processor's cache, and need only few calls.
CHUNK_NUMBERS = 1 << 20
_MAX_CHUNK_ROWS = 1 << 18


class Undefined(Exception):  # noqa: N818 - a result, not a mistake
    """Raised if a metric has no value; the message says why."""


class Chunk(NamedTuple):
    """A chunk of the rows of a view.

    label    float64 [N]
    score    float64 [N]
    cluster  uint64 [N]
    group    uint64 [N], or empty where the view has none
    """

    label: Floats
    score: Floats
    cluster: npt.NDArray[np.uint64]
    group: npt.NDArray[np.uint64]

    def take(self, places: npt.NDArray[np.int64]) -> Chunk:
        """Return the rows at the given indices."""
        return Chunk(self.label[places], self.score[places], self.cluster[places], self.group[places])


@dataclass(frozen=True)
class View:
    """The rows of a task.

    rows      all rows
    label     column of the label
    score     column of the prediction
    cluster   column of the clusters, which are drawn as a whole
    weights   weights of the rows: those of the data, and of bootstrap replicates
    group     column of users or sessions, for metrics within them
    selected  chunk -> bool [N], the rows of a slice; None for all rows
    inputs    columns that `selected` reads
    """

    rows: Rows
    label: str
    score: str
    cluster: str = "cluster"
    weights: ClusterWeights = field(default_factory=ClusterWeights)
    group: str = ""
    selected: Callable[[Mapping[str, Array]], Array] | None = None
    inputs: tuple[str, ...] = ()

    def in_order(self) -> Iterator[Chunk]:
        """Yield the rows in the order in which they were appended."""
        return self._chunks(())

    def by_score(self) -> Iterator[Chunk]:
        """Yield the rows by descending score."""
        return self._chunks((f"-{self.score}",))

    def by_group(self) -> Iterator[Chunk]:
        """Yield the rows by group, then by descending score; each group is within one chunk."""
        return self._chunks((self.group, f"-{self.score}"), run_column=self.group)

    def blocks(self, num_rows: int) -> Iterator[tuple[int, int]]:
        """Yield (first, last) of the columns of weights to compute at once for `num_rows` rows."""
        step = max(1, CHUNK_NUMBERS // max(num_rows, 1))
        for first in range(0, self.weights.num_columns, step):
            yield first, min(first + step, self.weights.num_columns)

    def _chunks(self, order: tuple[str, ...], run_column: str | None = None) -> Iterator[Chunk]:
        names = dict.fromkeys(
            [self.label, self.score, self.cluster, *([self.group] if self.group else []), *self.inputs]
        )
        num_rows = min(_MAX_CHUNK_ROWS, max(1, CHUNK_NUMBERS // self.weights.num_columns))
        for columns in self.rows.chunks(list(names), num_rows, order, run_column):
            chunk = self._chunk(columns)
            if len(chunk.label):
                yield chunk

    def _chunk(self, columns: Columns) -> Chunk:
        if self.selected is not None:
            is_selected = self.selected(columns)
            columns = {name: values[is_selected] for name, values in columns.items()}
        label, score = columns[self.label].astype(np.float64), columns[self.score].astype(np.float64)
        if np.isnan(label).any() or np.isnan(score).any():
            raise Undefined("a label or a prediction is NaN")
        group = columns[self.group] if self.group else np.zeros(0, np.uint64)
        return Chunk(label, score, columns[self.cluster], group)
