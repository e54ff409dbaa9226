"""Finds the image vectors of a request's candidates: from the store, from the request, or replacements."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import StoreError
from easyrec_mm.serving.computed_vectors import ComputedVectors, Wanted
from easyrec_mm.serving.release import Embedder, MissingVector, MissingVectorError, Release, Source
from easyrec_mm.serving.request import Candidates
from easyrec_mm.store import State

# A store that failed is not used for this long, so that requests do not wait for it one after the other.
_STORE_PAUSE_S = 1.0


@dataclass(frozen=True)
class FoundVectors:
    """The image vectors of S candidates.

    vectors    float32 `[S, D]`, a replacement for those that are still being computed
    sources    the Source of each vector `[S]`
    computing  the computed vectors, if some are computed, which `complete` puts in
    wanted     index of a candidate -> which of them it takes
    """

    vectors: NDArray[Any]
    sources: NDArray[Any]
    computing: Future[dict[Wanted, NDArray[Any]]] | None = None
    wanted: dict[int, Wanted] | None = None

    def complete(self) -> None:
        """Put in the computed vectors, for which this waits if need be."""
        if self.computing is None or self.wanted is None:
            return
        computed = self.computing.result()
        for i, wanted in self.wanted.items():
            if wanted in computed:
                self.vectors[i], self.sources[i] = computed[wanted], Source.COMPUTED


class ImageVectors:
    """Finds image vectors; may be used from several threads.

    Args:
      store_lock: lock that is held while a store is used.
      missing_vector: see ServiceOptions.
      computed: computes missing vectors, if `missing_vector` is "compute".
    """

    def __init__(
        self,
        store_lock: threading.Lock,
        missing_vector: MissingVector | None,
        computed: ComputedVectors | None = None,
    ) -> None:
        self._store_lock, self._missing_vector, self._computed = store_lock, missing_vector, computed
        self._store_pause_until = 0.0

    def find(self, release: Release, candidates: Candidates) -> FoundVectors:
        """Return the image vectors of candidates; those that are computed come later.

        Raises:
          MissingVectorError: if a vector is missing or the store is down, and `missing_vector` is "error".
        """
        sources = np.full(candidates.number, Source.STORE, np.int8)
        if len(candidates.vectors) == candidates.number:
            sources[:] = Source.REQUEST
            return FoundVectors(np.stack([candidates.vectors[i] for i in range(candidates.number)]), sources)
        vectors, states = self._look_up(release, candidates.keys)
        for i, vector in candidates.vectors.items():
            vectors[i] = vector
            states[i] = State.PRESENT
            sources[i] = Source.REQUEST
        missing = np.flatnonzero(states != State.PRESENT)
        embedder = release.embedder if self._computed is not None else None
        wanted = _wanted(embedder, candidates, missing.tolist()) if embedder is not None else {}
        if len(missing) and release.no_image is not None:
            # An empty key means no picture, and the network was trained for that: no vector is missing.
            without = [i for i in missing if not candidates.keys[i] and i not in wanted]
            vectors[without], sources[without] = release.no_image, Source.NO_IMAGE
            missing = np.array([i for i in missing if candidates.keys[i] or i in wanted], np.int64)
        if not len(missing):
            return FoundVectors(vectors, sources)
        if self._missing_vector == "error":
            first = missing[0]
            key = candidates.keys[first][:100]
            raise MissingVectorError(f"instance {first}: the store has no vector of '{key}'", len(missing))
        vectors[missing], sources[missing] = release.stand_in
        if self._computed is None or not wanted:
            return FoundVectors(vectors, sources)
        computing = self._computed.start(release, list(dict.fromkeys(wanted.values())))
        return FoundVectors(vectors, sources, computing, wanted)

    def _look_up(self, release: Release, keys: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the store's vectors `[S, D]` and states `[S]`; all are missing if it is down and that is no error."""
        problem = f"the store {release.store.uri} is down"
        if time.monotonic() >= self._store_pause_until:  # also before waiting for the lock
            with self._store_lock:
                if time.monotonic() >= self._store_pause_until:
                    try:
                        records = release.store.get_many(keys, release.generation)
                        return np.array(records.vectors), records.states
                    except StoreError as error:
                        self._store_pause_until = time.monotonic() + _STORE_PAUSE_S
                        problem = str(error)
        if self._missing_vector == "error":
            raise MissingVectorError(problem, len(keys))
        return np.zeros((len(keys), release.generation.width), np.float32), np.full(len(keys), State.MISSING, np.int8)


def _wanted(embedder: Embedder, candidates: Candidates, missing: list[int]) -> dict[int, Wanted]:
    """Return the key and the values of the embedder's fields for each candidate whose vector can be computed."""
    columns = [candidates.fields[name] for name in embedder.fields]
    wanted = {i: (candidates.keys[i], *(column[i if len(column) > 1 else 0] for column in columns)) for i in missing}
    return {i: item for i, item in wanted.items() if embedder.paths(item[0]) or embedder.is_without_picture(item[1:])}
