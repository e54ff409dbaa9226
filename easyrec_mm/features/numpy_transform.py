"""Converts values of fields to the ids and numbers that the ONNX models take, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.features.feature import Feature, vocabularies
from easyrec_mm.features.field import Field
from easyrec_mm.features.numpy_back_end import Lists, NumpyBackEnd, Values


class NumpyTransform:
    """Converts the values of fields to the inputs of the ONNX models: values of features, see Feature.values.

    Lists are padded to `[S, L, ...]`, each with weights `[S, L]`, which are 0 for padding. Features whose vectors are
    in a store are left out.

    Args:
      features: the features.
      fields: the fields of an exported model; those with a constant have its value, whatever is given for them.
    """

    def __init__(self, features: Sequence[Feature], fields: Sequence[Field] = ()) -> None:
        self._features = [feature for feature in features if feature.stored is None]
        self._back_end = NumpyBackEnd(vocabularies(self._features))
        self._constants = {field.name: _column(field) for field in fields if field.constant is not None}

    def __call__(self, fields: dict[str, Values], num_samples: int) -> dict[str, NDArray[Any]]:
        """Return the inputs by name, given fields by name with S values each, or one for all, and defaults filled in.

        Raises:
          ValueError: if a text does not match the patterns of its feature.
        """
        inputs: dict[str, NDArray[Any]] = {}
        fields = fields | self._constants
        for feature in self._features:
            values = feature.values(_aligned(feature, fields, num_samples), self._back_end)
            for name, value in (_padded(feature, values) if feature.is_list else values).items():
                inputs[name] = value if len(value) == num_samples else np.repeat(value, num_samples, axis=0)
        return inputs


def _column(field: Field) -> Values:
    """Return the constant of a field as one value for all samples."""
    value = field.value(field.constant or "")
    if isinstance(value, str):
        return [value]
    return np.array([value], np.float32 if field.dtype == "float32" else np.int64)


def _padded(feature: Feature, values: dict[str, Lists]) -> dict[str, NDArray[Any]]:
    lists = values[feature.name]
    is_there = lists.is_there()
    flat = np.asarray(lists.flat_values)
    padded = np.zeros((*is_there.shape, *flat.shape[1:]), flat.dtype)
    padded[is_there] = flat
    weights = is_there.astype(np.float32)
    if feature.weight_key in values:
        weights[is_there] = values[feature.weight_key].flat_values
    return {feature.name: padded, feature.weight_key: weights}


def _aligned(feature: Feature, fields: dict[str, Values], num_samples: int) -> dict[str, Values]:
    """Return the fields that a feature reads, all of one length: one value for all is repeated if others have S."""
    values = {name: fields[name] for name in feature.inputs}
    if len(values) == 1 or len({len(column) for column in values.values()}) == 1:
        return values
    return {
        name: column if len(column) == num_samples else np.repeat(column, num_samples)
        if isinstance(column, np.ndarray) else [column[0]] * num_samples
        for name, column in values.items()
    }  # fmt: skip
