"""Weights of bootstrap replicates: how often each cluster of rows is drawn.

A weight is a function of the cluster, the replicate and the seed alone, so that nothing is stored, the order of rows
does not matter, and two models (or arms, or seeds of a training) that are evaluated apart see the same replicates:
their difference is a paired one.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from easyrec_mm.stable_hash import Hashes, mix, seeded

# A hash of 64 bits gives four draws of 16.
_DRAWS_PER_HASH = 4
# Bytes of weights that are kept.
_MAX_TABLE = 1 << 27


def _poisson_table() -> npt.NDArray[np.uint8]:
    """16 random bits -> a draw from the Poisson distribution of mean 1, cut off where it is rarer than 2^-16."""
    cumulated = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(16)])
    return np.searchsorted(cumulated, (np.arange(1 << 16) + 0.5) / (1 << 16), side="right").astype(np.uint8)


_DRAWS = _poisson_table()


class ClusterWeights:
    """Weights of rows: column 0 is the data as they are, the others are bootstrap replicates.

    The Poisson bootstrap (Chamandy et al., "Estimating uncertainty for massive data streams", Google, 2012): each
    cluster is in a replicate as often as an independent Poisson draw of mean 1 says, instead of as often as it is drawn
    from an urn. The two agree as the number of clusters grows.

    Args:
      num_replicates: B; 0 for the data alone.
      seed: of the draws.
    """

    def __init__(self, num_replicates: int = 0, seed: int = 0) -> None:
        self.num_replicates = num_replicates
        self._seed = seed
        self._known: Hashes = np.zeros(0, np.uint64)
        self._table = np.zeros((0, 0), np.uint8)

    @property
    def num_columns(self) -> int:
        """1 + B."""
        return 1 + self.num_replicates

    def of(self, clusters: Hashes, first: int = 0, last: int | None = None) -> npt.NDArray[np.uint8]:
        """Weights of the rows of some clusters, uint8 `[N, last - first]`: columns from `first` up to `last`.

        Args:
          clusters: uint64 `[N]`, the cluster of each row.
          first: the first column.
          last: the column behind the last; all by default.
        """
        last = self.num_columns if last is None else last
        if last == 1:
            return np.ones((len(clusters), 1 - first), np.uint8)
        if len(self._known):
            return self._table[np.searchsorted(self._known, clusters), first:last]
        distinct, row = np.unique(clusters, return_inverse=True)
        return self._draw(distinct, first, last)[row]

    def prepare(self, clusters: Hashes) -> None:
        """Keep the weights of all clusters there are, uint64 `[C]` ascending, if they are few enough for memory."""
        self._known, self._table = clusters[:0], np.zeros((0, 0), np.uint8)
        if self.num_replicates and len(clusters) * self.num_columns <= _MAX_TABLE:
            self._known, self._table = clusters, self._draw(clusters, 0, self.num_columns)

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
