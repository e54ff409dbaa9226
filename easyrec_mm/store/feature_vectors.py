"""Looks up the vectors that features name by key in stores, many at a time.

A training takes the current vectors of a store, and its checkpoints record their origin, that is, what computed them;
every later use of a checkpoint takes vectors of the same origin, or fails.
Legend: K distinct keys, D numbers per vector.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import StoreError
from easyrec_mm.features.code_feature import CodeFeature
from easyrec_mm.features.feature import Feature
from easyrec_mm.files.waiting import reading
from easyrec_mm.safe_text import hide_secrets
from easyrec_mm.store import Generation, State, Store, open_store
from easyrec_mm.store.codes import codes_uri, parse_origin


class Found(NamedTuple):
    """Result of a look-up: vectors float32 `[K, D]`, zeros for missing keys, and bool `[K]`, which keys are missing."""

    vectors: NDArray[np.float32]
    is_missing: NDArray[np.bool_]


class VectorStores:
    """The stores of features; may be used from several threads.

    Args:
      features: the features; those that name no store are ignored.
      trained: feature -> `origin_number` of the vectors that a model was trained with; by default the current vectors.

    Raises:
      StoreError: if a store cannot be reached, or has no such vectors, or only vectors of another width.
    """

    def __init__(
        self,
        features: Iterable[Feature],
        trained: Mapping[str, int] | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._stores: dict[str, Store] = {}
        self._trained = trained
        self.features = {feature.name: feature for feature in features if feature.stored is not None}
        self.generations: dict[str, Generation] = {}
        try:
            self.generations = self._newest()
        except StoreError:
            self.close()
            raise
        self.keep()

    def look_up(self, feature: Feature, keys: Sequence[str]) -> Found:
        """Return the vectors of distinct keys; an empty key has no vector, but does not count as missing.

        Raises:
          StoreError: if the store cannot be reached, or its vectors are gone.
        """
        is_empty = np.array([not key for key in keys], bool)
        if is_empty.all():
            return Found(np.zeros((len(keys), feature.num_numbers), np.float32), ~is_empty)
        store, generation = self._stores[feature.store_uri], self.generations[feature.name]
        with reading(f"vectors of feature '{feature.name}' from {feature.store_uri}"), self._lock:
            store.keep(generation)
            records = store.get_many(keys, generation)
        is_there = records.states == State.PRESENT
        return Found(np.where(is_there[:, None], records.vectors, np.float32(0)), ~(is_there | is_empty))

    def is_newest(self) -> bool:
        """Return whether the stores have no newer vectors of the same origin, and none has been replaced by another.

        Raises:
          StoreError: if a store cannot be reached, or no longer has such vectors.
        """
        with self._lock:
            if any(store.reopened() for store in self._stores.values()):
                return False
        return {name: (g.number, g.begun_s) for name, g in self._newest().items()} == {
            name: (g.number, g.begun_s) for name, g in self.generations.items()
        }

    def keep(self) -> None:
        """Keep the generations from being pruned, where this process may write to their store; see Store.keep."""
        with self._lock:
            for name, generation in self.generations.items():
                self._stores[self.features[name].store_uri].keep(generation)

    def close(self) -> None:
        """Close the stores."""
        for store in self._stores.values():
            store.close()
        self._stores.clear()

    def _newest(self) -> dict[str, Generation]:
        """Return the generation that each feature takes."""
        generations = {}
        with self._lock:
            for feature in self.features.values():
                if feature.store_uri not in self._stores:
                    self._stores[feature.store_uri] = _opened(feature)
                origin = None if self._trained is None else self._trained[feature.name]
                generations[feature.name] = _generation(feature, self._stores[feature.store_uri], origin)
        return generations


def in_other_stores(features: Iterable[Feature], uris: Mapping[str, str]) -> list[Feature]:
    """Return features with the store that `uris` has for them, by name, in place of that in the config."""
    return [
        replace(feature, stored=replace(feature.stored, uri=uris.get(feature.name, feature.store_uri)))
        for feature in features
        if feature.stored is not None
    ]


def origin_number(fingerprint: str) -> int:
    """Return a number from 0 to 2**63 - 1 that identifies the origin of a generation's vectors."""
    return int.from_bytes(hashlib.sha256(fingerprint.encode()).digest()[:8], "big") >> 1


def _opened(feature: Feature) -> Store:
    try:
        return open_store(feature.store_uri)
    except StoreError as error:
        raise StoreError(f"feature '{feature.name}': {str(error).removeprefix('--store ')}") from error


def _generation(feature: Feature, store: Store, origin: int | None) -> Generation:
    """Return the generation of a store whose vectors a feature takes."""
    meta = store.meta()
    place = f"feature '{feature.name}': {store.uri}"
    if origin is None:
        generation = meta.current_generation
        if generation is None:
            raise StoreError(f"{place}: holds no complete generation of vectors; write one with easyrec-mm store load")
    else:
        complete = [g for g in meta.generations.values() if g.completed_s]
        same = [g for g in complete if origin_number(g.fingerprint) == origin]
        generation = max(same, key=lambda g: (g.number == meta.current, g.number), default=None)
        if generation is None:
            held = ", ".join(f"generation {g.number} of '{g.fingerprint[:40]}'" for g in complete) or "nothing"
            raise StoreError(
                f"{place}: holds {held}, but not the vectors that the model was trained with; restore them"
            )
    if isinstance(feature, CodeFeature) and parse_origin(generation.fingerprint) is None:
        beside = hide_secrets(codes_uri(feature.store_uri))
        raise StoreError(
            f"{place}: generation {generation.number} holds vectors, not codes; make codes with easyrec-mm quantize, "
            f"and give their store, {beside}"
        )
    if generation.width != feature.num_numbers:
        raise StoreError(
            f"{place}: generation {generation.number} has vectors of {generation.width} numbers, but vector_dim is "
            f"{feature.num_numbers}; make them equal"
        )
    return generation
