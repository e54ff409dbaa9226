"""Vectors that features name by key: looked up in stores, a batch at a time.

A training takes what is current in a store, and its checkpoints keep what that was computed by; everything that uses
them later takes vectors of the same origin, or fails. K distinct keys, D numbers of a vector.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import StoreError
from easyrec_mm.schema import Feature
from easyrec_mm.store import Generation, State, Store, open_store


class Found(NamedTuple):
    """What a store has: vectors float32 `[K, D]`, zeros for a key that it lacks, and bool `[K]`, which it lacks."""

    vectors: NDArray[np.float32]
    is_missing: NDArray[np.bool_]


class VectorStores:
    """The stores of features.

    Args:
      features: of which those that name no store are left out.
      trained: feature -> `origin_number` of the vectors that a model was trained with; by default what is current.

    Raises:
      StoreError: if a store cannot be reached, or holds no such vectors, or of another width.
    """

    def __init__(self, features: Sequence[Feature], trained: Mapping[str, int] | None = None) -> None:
        self._lock = threading.Lock()
        self._stores: dict[str, Store] = {}
        self.generations: dict[str, Generation] = {}
        self.features = {feature.name: feature for feature in features if feature.store}
        try:
            for feature in self.features.values():
                if feature.store not in self._stores:
                    self._stores[feature.store] = open_store(feature.store)
                origin = None if trained is None else trained[feature.name]
                self.generations[feature.name] = _generation(feature, self._stores[feature.store], origin)
        except StoreError:
            self.close()
            raise

    def look_up(self, keys: Mapping[str, Sequence[bytes]]) -> dict[str, Found]:
        """Vectors of each feature's distinct keys; an empty key has none, and is not missing.

        Raises:
          StoreError: if a store cannot be reached, or its vectors are gone.
        """
        return {name: self._look_up(self.features[name], some) for name, some in keys.items()}

    def close(self) -> None:
        """Let go of the stores."""
        for store in self._stores.values():
            store.close()
        self._stores.clear()

    def _look_up(self, feature: Feature, keys: Sequence[bytes]) -> Found:
        texts = [key.decode("utf-8", "replace") for key in keys]
        is_empty = np.array([not text for text in texts], bool)
        if is_empty.all():
            return Found(np.zeros((len(texts), feature.raw_dim), np.float32), ~is_empty)
        with self._lock:
            found = self._stores[feature.store].get_many(texts, self.generations[feature.name])
        is_there = found.states == State.PRESENT
        return Found(np.where(is_there[:, None], found.vectors, np.float32(0)), ~(is_there | is_empty))


def origin_number(generation: Generation) -> int:
    """A number from 0 to 2**63 - 1 for what the vectors of a generation were computed by."""
    return int.from_bytes(hashlib.sha256(generation.fingerprint.encode()).digest()[:8], "big") >> 1


def _generation(feature: Feature, store: Store, origin: int | None) -> Generation:
    """The generation of a store whose vectors a feature takes."""
    meta = store.meta()
    place = f"feature '{feature.name}': {store.uri}"
    complete = [generation for generation in meta.generations.values() if generation.completed_s]
    if origin is None:
        found = meta.current_generation
        if found is None:
            raise StoreError(f"{place}: holds no complete generation of vectors; write one with easyrec-mm store load")
    else:
        same = [generation for generation in complete if origin_number(generation) == origin]
        found = max(same, key=lambda generation: (generation.number == meta.current, generation.number), default=None)
        if found is None:
            held = ", ".join(f"generation {g.number} of '{g.fingerprint[:40]}'" for g in complete) or "nothing"
            raise StoreError(
                f"{place}: holds {held}, and not the vectors that the model was trained with; restore them"
            )
    if found.width != feature.raw_dim:
        raise StoreError(
            f"{place}: generation {found.number} has vectors of {found.width} numbers, vector_dim says "
            f"{feature.raw_dim}; make them equal"
        )
    return found
