"""Looks up the vectors that the samples of a batch name by key: each distinct key once, ahead of the training step."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import tensorflow as tf

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.features.feature import Feature
from easyrec_mm.files.daemon_pool import DaemonPool
from easyrec_mm.store.feature_vectors import Found, VectorStores

# Feature name -> the distinct keys of a batch ("distinct"), and the index of each key among them ("index").
Keys = dict[str, dict[str, tf.Tensor | tf.RaggedTensor]]


def distinct_keys(keys: tf.Tensor | tf.RaggedTensor) -> dict[str, tf.Tensor | tf.RaggedTensor]:
    """Find the distinct keys, and the index of each key among them; runs within a graph."""
    if isinstance(keys, tf.RaggedTensor):
        distinct, index = tf.unique(keys.flat_values)
        return {"distinct": distinct, "index": keys.with_flat_values(index)}
    distinct, index = tf.unique(keys)
    return {"distinct": distinct, "index": index}


class StoredVectors:
    """Looks up the vectors of features that name them by key.

    Args:
      features: these features.
      stores: stores of the vectors.
      bad_records: counts keys without a vector.
    """

    def __init__(self, features: Sequence[Feature], stores: VectorStores, bad_records: BadRecords) -> None:
        self._features = {feature.name: feature for feature in features}
        self._stores, self._bad_records = stores, bad_records
        self._max_missing = {f.name: f.stored.max_missing_share for f in features if f.stored is not None}

    def specs(self) -> dict[str, tf.TensorSpec | tf.RaggedTensorSpec]:
        """Return the shapes and dtypes of what `of_samples` returns."""
        return {
            name: tf.RaggedTensorSpec([None, None, feature.num_numbers], tf.float32, ragged_rank=1)
            if feature.is_list
            else tf.TensorSpec([None, feature.num_numbers], tf.float32)
            for name, feature in self._features.items()
        }

    def begin(self, keys: Keys, pool: DaemonPool) -> Future[dict[str, Found]] | None:
        """Begin to look up the distinct keys of a batch."""
        if not self._features:
            return None
        texts = {
            name: [key.decode("utf-8", "replace") for key in keys[name]["distinct"].numpy()] for name in self._features
        }

        def look_up() -> dict[str, Found]:
            return {name: self._stores.look_up(feature, texts[name]) for name, feature in self._features.items()}

        return pool.submit(look_up)

    def of_samples(
        self, keys: Keys, looking_up: Future[dict[str, Found]] | None
    ) -> dict[str, tf.Tensor | tf.RaggedTensor]:
        """Return the vectors of samples by feature, float32 `[S, D]` or ragged `[S, (elements), D]`; zeros if missing.

        Raises:
          StoreError: if a store cannot be reached.
          DataError: if more keys have no vector than the feature allows.
        """
        vectors: dict[str, tf.Tensor | tf.RaggedTensor] = {}
        for name, found_vectors in (looking_up.result() if looking_up else {}).items():
            index = keys[name]["index"]
            rows = index.flat_values if isinstance(index, tf.RaggedTensor) else index
            self._count(name, keys[name]["distinct"], rows, found_vectors)
            of_rows = tf.gather(found_vectors.vectors, rows)
            vectors[name] = index.with_flat_values(of_rows) if isinstance(index, tf.RaggedTensor) else of_rows
        return vectors

    def _count(self, name: str, distinct: tf.Tensor, rows: tf.Tensor, found_vectors: Found) -> None:
        keys, share = distinct.numpy(), self._max_missing[name]
        uses = np.bincount(rows.numpy(), minlength=len(keys))
        missing, num_missing = keys[found_vectors.is_missing].tolist(), int(uses[found_vectors.is_missing].sum())
        self._bad_records.add_keys(name, int(uses[keys != b""].sum()), missing, num_missing, share)
