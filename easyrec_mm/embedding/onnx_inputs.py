"""Inputs of an image model for ONNX Runtime in addition to pixels: ids of categories, prepared contents, items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.features.numpy_back_end import Values
from easyrec_mm.features.numpy_transform import NumpyTransform
from easyrec_mm.manifest import PICTURE_ITEM, PREPARED
from easyrec_mm.schema import Schema


class OnnxInputs:
    """Computes these inputs from the values of fields.

    Args:
      schema: the schema of the image model.
      signatures: the signatures of its SavedModel, which prepare contents: ONNX has no operations for strings.
    """

    def __init__(self, schema: Schema, signatures: Mapping[str, Any]) -> None:
        self._schema, self._signatures = schema, signatures
        self._category = NumpyTransform([schema.category] if schema.category else [])

    def __call__(self, fields: Mapping[str, Values], item: NDArray[Any], num_items: int) -> dict[str, NDArray[Any]]:
        """Return the inputs by name.

        Args:
          fields: values `[K]` of schema.image_fields().
          item: `[N]`, the item of each picture.
          num_items: K.
        """
        inputs: dict[str, NDArray[Any]] = dict(self._category(dict(fields), num_items))
        for kind, feature in self._schema.contents.items():
            signature, name = PREPARED[kind]
            of_kind = {field: tf.constant(fields[field]) for field in feature.inputs}
            inputs[name] = self._signatures[signature](**of_kind)[name].numpy()
        if self._schema.has_picture_item:
            inputs[PICTURE_ITEM] = item.astype(np.int64)
        return inputs
