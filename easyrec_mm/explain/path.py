"""The path of a joint attribution: all inputs of the rec network together, from a baseline to those of samples.

The ends of the path are the numbers that features have in the network before they are pooled: the row of a table for
an id, a number, a one-hot vector, for each element of a list. Legend: N samples, D width of the image vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from easyrec_mm.explain.samples import Features, take
from easyrec_mm.features.code_feature import CodeFeature
from easyrec_mm.features.feature import Feature
from easyrec_mm.network.layers.embedding import table_ids
from easyrec_mm.network.model import MultimodalModel

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_SAMPLES_AT_A_TIME = 4096


@dataclass(frozen=True)
class Baseline:
    """Where the path of features begins: the mean of what samples have.

    features  feature -> float32 [width of its numbers]: the mean over the samples, or over all elements of a list
    """

    features: Mapping[str, Floats]


@dataclass(frozen=True)
class Ends:
    """The numbers that the path moves, for a batch of N samples.

    numbers  feature -> float32 [N, width], or [elements of all samples, width] for a list
    values   the features, for the lengths of lists and for weights, which do not move
    """

    numbers: dict[str, tf.Tensor]
    values: Features

    def sample_of(self, feature: str) -> tf.Tensor | None:
        """Return the sample of each element of a list, int64; None for a feature that is not a list."""
        value = self.values[feature]
        return value.value_rowids() if isinstance(value, tf.RaggedTensor) else None


def moves_rows(feature: Feature) -> bool:
    """Return whether the path moves looked-up or one-hot vectors of a feature, instead of its own numbers."""
    return not feature.num_numbers or isinstance(feature, CodeFeature)


def ends_of(model: MultimodalModel, features: Features) -> Ends:
    """Return the numbers of samples before any pooling."""
    embedding = model.rec.feature_embedding
    requests = {}
    numbers: dict[str, tf.Tensor] = {}
    for feature in model.schema.features:
        value = features[feature.name]
        flat = value.flat_values if isinstance(value, tf.RaggedTensor) else value
        if not moves_rows(feature):
            numbers[feature.name] = flat
        elif feature.table is not None:
            requests[feature.name] = (feature.table, table_ids(feature, value))
        else:
            numbers[feature.name] = tf.one_hot(flat, feature.width)
    rows = embedding.look_up(requests)
    # Of codes one vector per sample, as of the other features.
    of_codes = [feature for feature in model.schema.features if isinstance(feature, CodeFeature)]
    rows |= {feature.name: tf.reshape(rows[feature.name], [-1, feature.width]) for feature in of_codes}
    return Ends(numbers | rows, features)


def mean_baseline(model: MultimodalModel, features: Features, num_samples: int) -> Baseline:
    """Return the mean of the numbers of samples."""
    sums: dict[str, npt.NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for start in range(0, num_samples, _SAMPLES_AT_A_TIME):
        rows = np.arange(start, min(start + _SAMPLES_AT_A_TIME, num_samples))
        for name, numbers in ends_of(model, take(features, rows)).numbers.items():
            sums[name] = sums.get(name, 0.0) + numbers.numpy().sum(axis=0, dtype=np.float64)
            counts[name] = counts.get(name, 0) + len(numbers)
    means = {name: (total / max(1, counts[name])).astype(np.float32) for name, total in sums.items()}
    return Baseline(means)


def logits_at(
    model: MultimodalModel, ends: Ends, numbers: Mapping[str, tf.Tensor], vector: tf.Tensor | None
) -> dict[str, tf.Tensor]:
    """Return task -> logits `[N, classes]` with other numbers in place of those of `ends`."""
    embedding = model.rec.feature_embedding
    values = dict(ends.values)
    rows: dict[str, tf.Tensor | None] = {}
    for feature in model.schema.features:
        moved = numbers[feature.name]
        if moves_rows(feature):
            rows[feature.name] = moved
            continue
        value = values[feature.name]
        values[feature.name] = value.with_flat_values(moved) if isinstance(value, tf.RaggedTensor) else moved
        # All rows of the table, which the numbers multiply.
        rows[feature.name] = None
        if feature.multiplies_rows:
            ids = table_ids(feature, value)
            rows[feature.name] = embedding.look_up({feature.name: (str(feature.table), ids)})[feature.name]
    x, _ = embedding.join(values, rows, vector)
    return model.rec.logits(x, vector)


@dataclass(frozen=True)
class VectorPath:
    """The straight line from the mean image vector to the vectors of samples.

    vectors   float32 [N, D], as the rec network takes them
    baseline  float32 [D]
    """

    vectors: Floats
    baseline: Floats

    def moves(self, rows: Ints) -> Floats:
        """Return what is added to the baseline from the start to the end, float32 `[n, D]`, for some samples."""
        return self.vectors[rows] - self.baseline
