"""Converts values of fields to the ids and numbers that the network takes, in TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from easyrec_mm.features.feature import Feature, vocabularies
from easyrec_mm.features.tensorflow_back_end import TensorFlowBackEnd


class FeatureTransform:
    """Converts the values of fields to the values of features, see Feature.values.

    Lists are ragged. Features whose vectors are in a store are left out.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self._features = [feature for feature in features if feature.stored is None]
        self.fields = tuple(dict.fromkeys(name for feature in self._features for name in feature.inputs))
        self.back_end = TensorFlowBackEnd(vocabularies(self._features))

    def __call__(self, fields: dict[str, tf.Tensor]) -> dict[str, tf.Tensor | tf.RaggedTensor]:
        """Return feature values by name, given the fields in `fields` by name, each `[S]` of its dtype."""
        features: dict[str, tf.Tensor | tf.RaggedTensor] = {}
        for feature in self._features:
            features |= feature.values(fields, self.back_end)
        return features
