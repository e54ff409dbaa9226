"""Makes what batches have of contents of items, of the texts that name them in the data.

A text is its own content; a vector stands in the row as text, or is looked up in a store by its key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future

import tensorflow as tf

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.batch import Contents, has_content
from easyrec_mm.data.stored_vectors import Keys, StoredVectors
from easyrec_mm.data.vector_bank import Plan
from easyrec_mm.features.feature import Feature
from easyrec_mm.features.tensorflow_transform import FeatureTransform
from easyrec_mm.files.daemon_pool import DaemonPool
from easyrec_mm.schema import TEXT, Schema
from easyrec_mm.store.feature_vectors import Found, VectorStores

# Kind -> rows of a batch's distinct contents: "values", "number" and "of_image", see images_of_groups.
Rows = Mapping[str, Mapping[str, tf.Tensor]]


class ItemContents:
    """The contents of a batch's items, other than pictures.

    Args:
      schema: which contents items have.
      stores: the stores of vectors.
      bad_records: counts keys without a vector.
    """

    def __init__(self, schema: Schema, stores: VectorStores, bad_records: BadRecords) -> None:
        self._features = schema.contents
        stored = schema.stored_contents()
        self._kind_of_stored = {feature.name: kind for kind, feature in stored.items()}
        self._stored = StoredVectors(list(stored.values()), stores, bad_records)
        # Of contents that are made of their text within this process.
        self._parsed = {
            kind: _parser(feature) for kind, feature in self._features.items() if kind != TEXT and kind not in stored
        }

    def specs(self) -> dict[str, tf.TensorSpec]:
        """Return the shape and dtype of Contents.values by kind."""
        return {
            kind: tf.TensorSpec([None], tf.string)
            if kind == TEXT
            else tf.TensorSpec([None, feature.num_numbers], tf.float32)
            for kind, feature in self._features.items()
        }

    def begin(self, rows: Rows, pool: DaemonPool) -> Future[dict[str, Found]] | None:
        """Begin to look up the vectors of a batch."""
        return self._stored.begin(self._keys(rows), pool)

    def of_batch(
        self, rows: Rows, plans: Mapping[str, Plan], looking_up: Future[dict[str, Found]] | None
    ) -> dict[str, Contents]:
        """Return the contents of a batch's images by kind.

        Args:
          rows: the distinct contents of the batch.
          plans: the plans of the banks, by kind.
          looking_up: the result of `begin`.

        Raises:
          StoreError: if a store cannot be reached.
          DataError: if more keys have no vector than the feature allows.
        """
        vectors = self._stored.of_samples(self._keys(rows), looking_up)
        by_kind = {self._kind_of_stored[name]: value for name, value in vectors.items()}
        contents: dict[str, Contents] = {}
        for kind, of_kind in rows.items():
            texts, plan = of_kind["values"], plans.get(kind)
            parse = self._parsed.get(kind)
            values = by_kind.get(kind, texts) if parse is None else parse(texts)
            num_contents = tf.size(texts)
            contents[kind] = Contents(
                values=values if plan is None else tf.gather(values, plan.encoded),
                encoded=tf.range(num_contents) if plan is None else tf.constant(plan.encoded),
                key=of_kind["number"],
                bank_row=tf.zeros([num_contents], tf.int32) if plan is None else tf.constant(plan.rows),
                of_image=of_kind["of_image"],
                is_there=has_content(values),
            )
        return contents

    def _keys(self, rows: Rows) -> Keys:
        return {
            name: {"distinct": rows[kind]["values"], "index": tf.range(tf.size(rows[kind]["values"]))}
            for name, kind in self._kind_of_stored.items()
            if kind in rows
        }


def _parser(feature: Feature) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function from the texts of a field, string `[C]`, to the values of the feature that reads it."""
    back_end = FeatureTransform([feature]).back_end
    (field,) = feature.inputs

    def values(texts: tf.Tensor) -> tf.Tensor:
        return feature.values({field: texts}, back_end)[feature.name]

    return values
