"""Finds the image vectors of a request's candidates: from the store, from the request, or replacements."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import StoreError
from easyrec_mm.serving.release import Embedder, MissingVector, MissingVectorError, Release, Source
from easyrec_mm.serving.request import Candidates
from easyrec_mm.store import State

_NUM_COMPUTED_KEPT = 10_000
# A store that failed is not used for this long, so that requests do not wait for it one after the other.
_STORE_PAUSE_S = 1.0


class ImageVectors:
    """Finds image vectors; may be used from several threads.

    Args:
      store_lock: lock that is held while a store is used.
      missing_vector: see ServiceOptions.
    """

    def __init__(self, store_lock: threading.Lock, missing_vector: MissingVector | None) -> None:
        self._store_lock, self._missing_vector = store_lock, missing_vector
        self._computed_lock = threading.Lock()
        self._store_pause_until = 0.0

    def of(self, release: Release, candidates: Candidates) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the image vectors `[S, D]` of candidates, and the Source of each vector `[S]`.

        Raises:
          MissingVectorError: if a vector is missing or the store is down, and `missing_vector` is "error".
        """
        sources = np.full(candidates.number, Source.STORE, np.int8)
        if len(candidates.vectors) == candidates.number:
            sources[:] = Source.REQUEST
            return np.stack([candidates.vectors[i] for i in range(candidates.number)]), sources
        vectors, states = self._look_up(release, candidates.keys)
        for i, vector in candidates.vectors.items():
            vectors[i] = vector
            states[i] = State.PRESENT
            sources[i] = Source.REQUEST
        missing = np.flatnonzero(states != State.PRESENT)
        if len(missing):
            self._fill(release, candidates, missing, vectors, sources)
        return vectors, sources

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

    def _fill(
        self,
        release: Release,
        candidates: Candidates,
        missing: NDArray[Any],
        vectors: NDArray[Any],
        sources: NDArray[Any],
    ) -> None:
        """Replace missing vectors as the options say."""
        keys = candidates.keys
        if release.no_image is not None:
            # An empty key means no picture, and the network was trained for that: no vector is missing.
            without = [i for i in missing if not keys[i]]
            vectors[without], sources[without] = release.no_image, Source.NO_IMAGE
            missing = np.array([i for i in missing if keys[i]], np.int64)
        if not len(missing):
            return
        if self._missing_vector == "error":
            first = missing[0]
            raise MissingVectorError(f"instance {first}: the store has no vector of '{keys[first]}'", len(missing))
        computed: dict[tuple[Any, ...], NDArray[Any]] = {}
        requested: list[tuple[Any, ...]] = []
        if release.embedder is not None:
            columns = [candidates.fields[name] for name in release.embedder.fields]
            requested = [(keys[i], *(column[i if len(column) > 1 else 0] for column in columns)) for i in missing]
            computed = self._computed(release, release.embedder, sorted(set(requested)))
        stand_in, source = release.stand_in
        for at, i in enumerate(missing):
            vector = computed.get(requested[at]) if requested else None
            vectors[i] = stand_in if vector is None else vector
            sources[i] = source if vector is None else Source.COMPUTED

    def _computed(
        self, release: Release, embedder: Embedder, requested: list[tuple[Any, ...]]
    ) -> dict[tuple[Any, ...], NDArray[Any]]:
        """Return the vectors that can be computed, by key and fields; recently computed vectors are reused."""
        with self._computed_lock:
            computed = {key: release.computed[key] for key in requested if key in release.computed}
            unknown = [key for key in requested if key not in computed]
            if unknown:
                fields = {name: [key[i] for key in unknown] for i, name in enumerate(embedder.fields, 1)}
                vectors = zip(unknown, embedder([key[0] for key in unknown], fields), strict=True)
                computed |= {key: vector for key, vector in vectors if vector is not None}
            for key, vector in computed.items():
                release.computed[key] = vector
                release.computed.move_to_end(key)
            while len(release.computed) > _NUM_COMPUTED_KEPT:
                release.computed.popitem(last=False)
        return computed
