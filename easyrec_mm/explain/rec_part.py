"""Runs the rec network alone, on vectors of items that were computed before.

Legend: S samples, I items, D width of an image vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from easyrec_mm.config.feature_groups import wide_name
from easyrec_mm.data.batch import Batch
from easyrec_mm.explain.samples import Features
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.network.rec import task_outputs
from easyrec_mm.schema import Schema

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

_SAMPLES_AT_A_TIME = 4096


class RecPart:
    """The compiled rec network of a model.

    Args:
      model: the model.
      spec: shapes and dtypes of its batches, see Input.spec.
    """

    def __init__(self, model: MultimodalModel, spec: Batch) -> None:
        self.model = model
        signature: list[Any] = [spec.features]
        if model.item_width:
            signature += [tf.TensorSpec([None, model.item_width]), tf.TensorSpec([None], tf.int64)]
        self._predict = tf.function(self._outputs, input_signature=signature, autograph=False)

    def outputs(self, features: Features, vectors: Array | None, item: Ints) -> dict[str, Array]:
        """Return the outputs of every task by name, as MultimodalModel.predict does.

        Args:
          features: values of S samples.
          vectors: float32 `[I, D]`; None for a model without pictures and texts.
          item: int64 `[S]`: sample -> row of `vectors`.
        """
        parts: list[dict[str, Array]] = []
        of_items = None if vectors is None else tf.constant(vectors)
        for start in range(0, len(item), _SAMPLES_AT_A_TIME):
            end = min(start + _SAMPLES_AT_A_TIME, len(item))
            of_part = {name: value[start:end] for name, value in features.items()}
            arguments = [] if of_items is None else [of_items, tf.constant(item[start:end])]
            parts.append({name: value.numpy() for name, value in self._predict(of_part, *arguments).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def _outputs(
        self, features: Features, vectors: tf.Tensor | None = None, item: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        vector = None if vectors is None else tf.gather(vectors, item)
        logits, _ = self.model.rec(features, vector, training=False)
        tasks = self.model.schema.tasks
        return {name: value for task in tasks for name, value in task_outputs(task, logits[task.name]).items()}


def feature_sets(schema: Schema) -> dict[str, tuple[str, ...]]:
    """Return the features that stand for one thing and change together: a name -> names in schema.features.

    The wide part of a feature belongs to the feature. The sequences of an attention belong together, because they have
    equally many elements.
    """
    names = {feature.name for feature in schema.features}
    name_of: dict[str, str] = {}
    for feature in schema.features:
        base = feature.name.removesuffix(wide_name(""))
        is_wide_part = feature.is_wide and wide_name(base) == feature.name
        name_of[feature.name] = base if is_wide_part else feature.name
    for attention in schema.attentions:
        joint = [name_of[sequence] for sequence in attention.sequences if sequence in names]
        together = " + ".join(dict.fromkeys(part for name in joint for part in name.split(" + ")))
        name_of = {name: together if of in joint else of for name, of in name_of.items()}
    sets: dict[str, list[str]] = {}
    for name, of in name_of.items():
        sets.setdefault(of, []).append(name)
    return {of: tuple(members) for of, members in sets.items()}
