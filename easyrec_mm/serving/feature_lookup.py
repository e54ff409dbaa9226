"""Looks up the vectors of features, which features name by key, for the candidates of a request.

A key that is missing from the store gets a vector of zeros, as in training, and is counted.
Legend: S candidates, or 1 for all of them; L elements of the longest sequence, at least 1; D numbers per vector.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import StoreError, did_you_mean
from easyrec_mm.features.feature import Feature, text_keys
from easyrec_mm.features.numpy_back_end import Lists, NumpyBackEnd, Values
from easyrec_mm.manifest import Manifest
from easyrec_mm.store.feature_vectors import Found, VectorStores, in_other_stores, origin_number

_LOG = logging.getLogger("easyrec_mm.serving")
# A store that failed is not used for this long, so that requests do not wait for it one after the other.
_PAUSE_S = 1.0
# Keys need no vocabulary.
_BACK_END = NumpyBackEnd({})


class FeatureVectors(NamedTuple):
    """Vectors of a feature from a store: float32 `[S, D]`; for a sequence `[S, L, D]`, L at least 1, and the number of
    elements per sample, int64 `[S]`. S may be 1 for all samples.
    """

    vectors: NDArray[Any]
    lengths: NDArray[Any] | None


class FeatureLookup:
    """Looks up the vectors of a model's features.

    Args:
      manifest: manifest of the rec model.
      uris: feature -> URI of its store, if it differs from that in the config.
      needs_stores: whether a store that is down is an error; otherwise all its vectors count as missing.
      previous: look-up of the previous release, whose stores may be down.

    Raises:
      StoreError: if a store cannot be reached, or lacks the vectors that the model was trained with.
    """

    def __init__(
        self,
        manifest: Manifest,
        uris: Mapping[str, str],
        needs_stores: bool = False,
        previous: FeatureLookup | None = None,
    ) -> None:
        stored = {feature.name: feature for feature in manifest.schema.stored_features()}
        known = [feature.name for feature in manifest.schema.in_stores()]
        for name in uris:
            if name not in known:
                # The feature may be that of a model to come, or of the one before.
                hint = did_you_mean(name, known) if known else "the model has none"
                _LOG.warning(
                    "--vector_store %s: no feature of this model with that name has vectors in a store; %s", name, hint
                )
        features = in_other_stores(stored.values(), uris)
        trained = {name: origin_number(of["fingerprint"]) for name, of in manifest.vectors.items()}
        self._needs_stores = needs_stores
        self._stores: VectorStores = VectorStores(features, trained)
        self._pause_until: dict[str, float] = previous._pause_until if previous else {}
        # Whether a look-up may have to wait for the network.
        self.is_remote = any(not feature.store_uri.startswith("lmdb:") for feature in features)

    def __call__(self, fields: Mapping[str, Values]) -> tuple[dict[str, FeatureVectors], dict[str, int]]:
        """Return the vectors by feature, and the number of keys by feature that are missing from its store.

        Args:
          fields: values of candidates, as NumpyTransform takes them.

        Raises:
          StoreError: if a store is down and `needs_stores` is true.
        """
        vectors: dict[str, FeatureVectors] = {}
        num_missing: dict[str, int] = {}
        for feature in self._stores.features.values():
            keys = text_keys(feature, fields, _BACK_END)
            rows: dict[str, int] = {}
            flat = keys.flat_values if feature.is_list else keys
            index = np.array([rows.setdefault(key, len(rows)) for key in flat], np.int64)
            found_vectors = self._find(feature, list(rows))
            vectors[feature.name] = _of_samples(keys, found_vectors.vectors[index])
            num_missing[feature.name] = int(found_vectors.is_missing[index].sum())
        return vectors, num_missing

    def is_newest(self) -> bool:
        """Return whether the stores have no newer vectors of the same origin.

        Raises:
          StoreError: if a store cannot be reached, or no longer has such vectors.
        """
        return self._stores.is_newest()

    def keep(self) -> None:
        """Keep the generations from being pruned; call it at least every RENEW_S."""
        self._stores.keep()

    def close(self) -> None:
        """Close the stores."""
        self._stores.close()

    def _find(self, feature: Feature, keys: list[str]) -> Found:
        problem = f"feature '{feature.name}': the store is down"
        if time.monotonic() >= self._pause_until.get(feature.store_uri, 0.0):
            try:
                return self._stores.look_up(feature, keys)
            except StoreError as error:
                self._pause_until[feature.store_uri] = time.monotonic() + _PAUSE_S
                problem = f"feature '{feature.name}': {error}"
        if self._needs_stores:
            raise StoreError(problem)
        nothing = np.zeros((len(keys), feature.num_numbers), np.float32)
        return Found(nothing, np.array([bool(key) for key in keys], bool))


def _of_samples(keys: Lists | Sequence[str], vectors: NDArray[np.float32]) -> FeatureVectors:
    """Arrange the vectors of all keys, given one after another, by sample."""
    if not isinstance(keys, Lists):
        return FeatureVectors(vectors, None)
    is_there = keys.is_there()
    padded = np.zeros((*is_there.shape, vectors.shape[1]), np.float32)
    padded[is_there] = vectors
    return FeatureVectors(padded, keys.lengths)
