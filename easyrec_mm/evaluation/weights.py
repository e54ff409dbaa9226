"""Weights of bootstrap replicates: how often each cluster of rows is drawn.

A weight depends only on the cluster, the replicate and the seed. Therefore nothing has to be stored, the order of rows
does not matter, and two models (or arms, or seeds of a training) that are evaluated separately see the same replicates:
their difference is paired.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from easyrec_mm.stable_hash import Hashes, mix, seeded

# A hash of 64 bits gives four draws of 16 bits.
_DRAWS_PER_HASH = 4
# Maximum bytes of weights that are kept.
_MAX_TABLE = 1 << 27


def _poisson_table() -> npt.NDArray[np.uint8]:
    """Return a table from 16 random bits to a Poisson draw with mean 1, cut off where it is rarer than 2^-16."""
    cumulated = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(16)])
    return np.searchsorted(cumulated, (np.arange(1 << 16) + 0.5) / (1 << 16), side="right").astype(np.uint8)


_DRAWS = _poisson_table()


class ClusterWeights:
    """Weights of rows: column 0 has weight 1 for all rows, the other columns are bootstrap replicates.

    The Poisson bootstrap (Chamandy et al., "Estimating uncertainty for massive data streams", Google, 2012): an
    independent Poisson draw with mean 1 says how often a replicate contains a cluster, in place of drawing clusters
    with replacement. Both methods agree as the number of clusters grows.

    Args:
      num_replicates: B; 0 for the data alone.
      seed: seed of the draws.
    """

    def __init__(self, num_replicates: int = 0, seed: int = 0) -> None:
        self.num_replicates = num_replicates
        self._seed = seed
        self._clusters: Hashes = np.zeros(0, np.uint64)
        self._table = np.zeros((0, 0), np.uint8)

    @property
    def num_columns(self) -> int:
        """Number of columns, 1 + B."""
        return 1 + self.num_replicates

    def of(self, clusters: Hashes, first: int = 0, last: int | None = None) -> npt.NDArray[np.uint8]:
        """Return the weights of rows, uint8 `[N, last - first]`: the columns from `first` up to `last`.

        Args:
          clusters: uint64 `[N]`, the cluster of each row.
          first: the first column.
          last: the column after the last one; by default all columns are returned.
        """
        last = self.num_columns if last is None else last
        if last == 1:
            return np.ones((len(clusters), 1 - first), np.uint8)
        if len(self._clusters):
            return self._table[np.searchsorted(self._clusters, clusters), first:last]
        distinct, row = np.unique(clusters, return_inverse=True)
        return self._draw(distinct, first, last)[row]

    def prepare(self, clusters: Hashes) -> None:
        """Precompute the weights of all clusters, uint64 `[C]` ascending, if they fit in the memory limit."""
        self._clusters, self._table = clusters[:0], np.zeros((0, 0), np.uint8)
        if self.num_replicates and len(clusters) * self.num_columns <= _MAX_TABLE:
            self._clusters, self._table = clusters, self._draw(clusters, 0, self.num_columns)

    def _draw(self, clusters: Hashes, first: int, last: int) -> npt.NDArray[np.uint8]:
        begin = (max(first, 1) - 1) // _DRAWS_PER_HASH
        numbers = np.arange(begin, -(-(last - 1) // _DRAWS_PER_HASH), dtype=np.uint64)
        bits = mix(seeded(clusters, self._seed)[:, None] ^ mix(numbers))  # [clusters, hashes]
        draws = _DRAWS[bits.view(np.uint16)]
        skipped = max(first, 1) - 1 - begin * _DRAWS_PER_HASH
        draws = draws[:, skipped : skipped + last - max(first, 1)]
        if first > 0:
            return draws
        return np.concatenate([np.ones((len(clusters), 1), np.uint8), draws], axis=1)
