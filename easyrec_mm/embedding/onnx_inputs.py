"""Inputs of an image model for ONNX Runtime in addition to pixels: ids of categories, prepared contents, items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.features.numpy_back_end import Values
from easyrec_mm.features.numpy_transform import NumpyTransform
from easyrec_mm.manifest import PICTURE_ITEM, PREPARED, prepared_name
from easyrec_mm.schema import Schema


class OnnxInputs:
    """Computes these inputs from the values of fields.

    Args:
      schema: the schema of the image model.
      signatures: the signatures of its SavedModel, which prepare contents: ONNX has no operations for strings.
    """

    def __init__(self, schema: Schema, signatures: Mapping[str, Any]) -> None:
        self._schema, self._signatures = schema, signatures
        category = [schema.category] if schema.category else []
        vectors = [feature for kind, feature in schema.contents.items() if kind not in PREPARED]
        self._transform = NumpyTransform([*category, *vectors])

    def __call__(
        self,
        fields: Mapping[str, Values],
        vectors: Mapping[str, NDArray[Any]],
        item: NDArray[Any],
        num_items: int,
    ) -> dict[str, NDArray[Any]]:
        """Return the inputs by name.

        Args:
          fields: values `[K]` of schema.image_input_fields().
          vectors: kind -> float32 `[K, numbers]`, for schema.stored_contents().
          item: `[N]`, the item of each picture.
          num_items: K.
        """
        inputs: dict[str, NDArray[Any]] = dict(self._transform(dict(fields), num_items))
        inputs |= {prepared_name(self._schema, kind): values for kind, values in vectors.items()}
        for kind, feature in self._schema.contents.items():
            if kind not in PREPARED:
                continue
            signature, name = PREPARED[kind]
            of_kind = {field: tf.constant(fields[field]) for field in feature.inputs}
            inputs[name] = self._signatures[signature](**of_kind)[name].numpy()
        if self._schema.has_picture_item:
            inputs[PICTURE_ITEM] = item.astype(np.int64)
        return inputs
