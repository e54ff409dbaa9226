"""Layers that make the vector of an item from the vectors of its parts: picture, text.

Shape legend: U items, M parts, D width of the item vector, W width of one part's vector, which may differ by part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from easyrec_mm.network.layers.composite import Composite
from easyrec_mm.network.layers.dnn import dense


class ItemFusion(Composite):
    """Concatenates the vectors of an item's parts. Subclasses combine them in other ways.

    Args:
      parts: names of the parts, in their order.
      widths: W of each.

    Attributes:
      width: D.
    """

    def __init__(self, parts: Sequence[str], widths: Sequence[int]) -> None:
        super().__init__(name="fusion", dtype="float32")
        self.parts = tuple(parts)
        self.width = sum(widths)

    def call(self, vectors: Sequence[tf.Tensor], training: bool = False) -> tf.Tensor:
        """Return item vectors float32 `[U, D]` of the vectors `[U, W]` of each part."""
        return tf.concat(list(vectors), axis=1)

    def weights_of(self, vectors: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        """Return the mean weight of each part in the item vectors, if the layer weighs parts; shapes as for `call`."""
        return {}


class _Weighted(ItemFusion):
    """The weighted sum of the projected vectors; a subclass says how the projections of all parts give the weights."""

    def __init__(self, parts: Sequence[str], widths: Sequence[int], dim: int) -> None:
        super().__init__(parts, widths)
        self.width = dim
        self._projections = [dense(dim, f"{part}_projection", 0.0, "tanh", "float32") for part in parts]

    def call(self, vectors: Sequence[tf.Tensor], training: bool = False) -> tf.Tensor:
        values, weights = self._weighed(vectors)
        return tf.reduce_sum(values * weights, axis=1)

    def weights_of(self, vectors: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        _, weights = self._weighed(vectors)
        return dict(zip(self.parts, tf.unstack(tf.reduce_mean(weights, axis=[0, 2])), strict=True))

    def _weighed(self, vectors: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the projected vectors and their weights, float32 `[U, M, D]` and `[U, M, D or 1]`."""
        values = [project(vector) for project, vector in zip(self._projections, vectors, strict=True)]
        return tf.stack(values, axis=1), self._weights(tf.concat(list(vectors), axis=1))

    def _weights(self, together: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError


class GatedFusion(_Weighted):
    """Projected vectors weighted by gates, one a dimension, whose sum over the parts is 1.

    The gated multimodal unit of Arevalo et al., 2017, which has a sigmoid for two parts, with a softmax for any number.
    """

    def __init__(self, parts: Sequence[str], widths: Sequence[int], dim: int) -> None:
        super().__init__(parts, widths, dim)
        self._gate = dense(len(parts) * dim, "gate", 0.0, dtype="float32")

    def _weights(self, together: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(tf.reshape(self._gate(together), [-1, len(self.parts), self.width]), axis=1)


class AttentionFusion(_Weighted):
    """Projected vectors weighted by one number a part, the softmax of scores that see all parts."""

    def __init__(self, parts: Sequence[str], widths: Sequence[int], dim: int) -> None:
        super().__init__(parts, widths, dim)
        self._hidden = dense(dim, "attention_hidden", 0.0, "tanh", "float32")
        self._score = dense(len(parts), "attention_score", 0.0, dtype="float32")

    def _weights(self, together: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(self._score(self._hidden(together)))[:, :, None]


class QueryFusion(ItemFusion):
    """Trained queries that attend to the projected vectors of the parts, then a dense layer, each with a residual.

    A block of a Q-Former (Li et al., ICML 2023) whose inputs are the parts of an item; its queries are one behind the
    other in the item vector.
    """

    def __init__(self, parts: Sequence[str], widths: Sequence[int], num_queries: int, dim: int, num_heads: int) -> None:
        super().__init__(parts, widths)
        self.width = num_queries * dim
        self._shape = (len(parts), num_heads, dim // num_heads)
        self._keys = [dense(dim, f"{part}_key", 0.0, dtype="float32") for part in parts]
        self._values = [dense(dim, f"{part}_value", 0.0, dtype="float32") for part in parts]
        self._queries = self.add_weight(
            shape=(num_queries, dim), initializer=keras.initializers.TruncatedNormal(stddev=1 / math.sqrt(dim)),
            dtype="float32", name="queries",
        )  # fmt: skip
        self._output = dense(dim, "output", 0.0, dtype="float32")
        self._hidden = dense(2 * dim, "hidden", 0.0, "gelu", "float32")
        self._dense = dense(dim, "dense", 0.0, dtype="float32")

    def call(self, vectors: Sequence[tf.Tensor], training: bool = False) -> tf.Tensor:
        values = self._of_parts(self._values, vectors)
        attended = tf.einsum("uhqm,umhd->uqhd", self._attention(vectors), values)
        num_queries, dim = self._queries.shape
        x = self._queries[None] + self._output(tf.reshape(attended, [-1, num_queries, dim]))
        x += self._dense(self._hidden(x))
        return tf.reshape(x, [-1, self.width])

    def weights_of(self, vectors: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        means = tf.reduce_mean(self._attention(vectors), axis=[0, 1, 2])
        return dict(zip(self.parts, tf.unstack(means), strict=True))

    def _attention(self, vectors: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return the weight of each part for each query, float32 `[U, heads, queries, M]`."""
        _, num_heads, head_dim = self._shape
        queries = tf.reshape(tf.convert_to_tensor(self._queries), [-1, num_heads, head_dim])
        scores = tf.einsum("qhd,umhd->uhqm", queries, self._of_parts(self._keys, vectors))
        return tf.nn.softmax(scores / math.sqrt(head_dim))

    def _of_parts(self, layers: Sequence[keras.layers.Layer], vectors: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return what a layer of each part makes of its vectors, `[U, M, heads, D / heads]`."""
        made = [layer(vector) for layer, vector in zip(layers, vectors, strict=True)]
        return tf.reshape(tf.stack(made, axis=1), [-1, *self._shape])


class BilinearFusion(ItemFusion):
    """The sum of the projected vectors, and a projection of the product of all of them in a space of low rank.

    The product is that of MLB (Kim et al., ICLR 2017): tanh of each part's projection, multiplied.
    """

    def __init__(self, parts: Sequence[str], widths: Sequence[int], dim: int, rank: int) -> None:
        super().__init__(parts, widths)
        self.width = dim
        self._projections = [dense(dim, f"{part}_projection", 0.0, dtype="float32") for part in parts]
        self._factors = [dense(rank, f"{part}_factor", 0.0, "tanh", "float32") for part in parts]
        self._product = dense(dim, "product", 0.0, dtype="float32")

    def call(self, vectors: Sequence[tf.Tensor], training: bool = False) -> tf.Tensor:
        projected = [project(vector) for project, vector in zip(self._projections, vectors, strict=True)]
        factors = [factor(vector) for factor, vector in zip(self._factors, vectors, strict=True)]
        product = math.prod(factors[1:], start=factors[0])
        return tf.add_n([*projected, self._product(product)])
