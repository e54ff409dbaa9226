"""Looks up the vectors of items that are in stores, for an exported image model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.features.feature import text_keys
from easyrec_mm.features.numpy_back_end import NumpyBackEnd
from easyrec_mm.manifest import Manifest
from easyrec_mm.store.feature_vectors import VectorStores, in_other_stores, origin_number

# Keys need no vocabulary.
_BACK_END = NumpyBackEnd({})


class ItemVectors:
    """The vectors of items that are in stores.

    Args:
      manifest: manifest of the image model.
      uris: feature -> URI of its store, if it differs from that in the config.

    Raises:
      StoreError: if a store cannot be reached, or lacks the vectors that the model was trained with.
    """

    def __init__(self, manifest: Manifest, uris: Mapping[str, str]) -> None:
        self._features = manifest.schema.stored_contents()
        trained = {name: origin_number(of["fingerprint"]) for name, of in manifest.vectors.items()}
        self._stores = VectorStores(in_other_stores(self._features.values(), uris), trained)

    def of_items(self, fields: Mapping[str, Sequence[Any]] | None, num_items: int) -> dict[str, NDArray[np.float32]]:
        """Return the vectors of K items by kind of content, float32 `[K, numbers]`; zeros for missing ones.

        Args:
          fields: values `[K]` of schema.image_fields(); None for items without vectors.
          num_items: K.

        Raises:
          StoreError: if a store cannot be reached.
        """
        vectors: dict[str, NDArray[np.float32]] = {}
        for kind, feature in self._features.items():
            if fields is None:
                vectors[kind] = np.zeros((num_items, feature.num_numbers), np.float32)
                continue
            keys = text_keys(feature, {name: _column(fields[name]) for name in feature.inputs}, _BACK_END)
            rows = {key: row for row, key in enumerate(dict.fromkeys(keys))}
            result = self._stores.look_up(self._stores.features[feature.name], list(rows))
            vectors[kind] = result.vectors[[rows[key] for key in keys]]
        return vectors


def _column(values: Sequence[Any]) -> Any:
    """Return the values of a field as NumpyBackEnd takes them: texts as a list, numbers as an array."""
    return np.array(values) if len(values) and not isinstance(values[0], str) else list(values)
