"""Early fusion: the positions of all parts of an item, such as places of its picture and words of its text, attend to
each other.

Shape legend: U items, M parts, L positions of a part, N those of all parts and one more, D width of a position and of
the item vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from easyrec_mm.network.layers.dnn import dense
from easyrec_mm.network.layers.item_fusion import ItemFusion
from easyrec_mm.network.layers.sequences import unpacked
from easyrec_mm.network.layers.transformer_block import transformer_block


class JointTransformer(ItemFusion):
    """One transformer over a trained token, which becomes the item vector, and the projected positions of all parts.

    As in ViLT (Kim et al., ICML 2021), a position has a trained vector of its place in its part and of the part's type.
    Positions that are not used are not attended to.

    Args:
      parts: names of the parts, in their order.
      lengths: L of each; the vectors of a part are packed sequences of so many positions.
      dim: D.
      num_layers: number of blocks.
      num_heads: heads of each attention.
      dropout: share of the values that are zeroed in training.
    """

    def __init__(
        self, parts: Sequence[str], lengths: Sequence[int], dim: int, num_layers: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__(parts, [dim])
        self._lengths = tuple(lengths)
        self._projections = [dense(dim, f"{part}_projection", 0.0, dtype="float32") for part in parts]
        start = keras.initializers.TruncatedNormal(stddev=0.02)

        def weight(name: str, shape: tuple[int, ...]) -> keras.Variable:
            return self.add_weight(shape=shape, initializer=start, dtype="float32", name=name)

        self._token = weight("token", (dim,))
        self._types = weight("types", (len(parts), dim))
        self._places = [weight(f"{part}_places", (n, dim)) for part, n in zip(parts, lengths, strict=True)]
        self._blocks = [transformer_block(i, dim, num_heads, dropout, "float32") for i in range(num_layers)]
        self._norm = keras.layers.LayerNormalization(epsilon=1e-5, name="norm", dtype="float32")

    def call(self, vectors: Sequence[tf.Tensor], training: bool = False) -> tf.Tensor:
        x, is_used = self._positions(vectors)
        for block in self._blocks:
            x = block(x, padding_mask=is_used, training=training)
        return self._norm(x[:, 0])

    def weights_of(self, vectors: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        x, is_used = self._positions(vectors)
        for block in self._blocks:
            x, scores = block(x, padding_mask=is_used, return_attention_scores=True)
        # Of the item's token, without what it attends to itself: [U, heads, N - 1].
        of_positions = scores[:, :, 0, 1:]
        of_parts = [tf.reduce_sum(own, 2) for own in tf.split(of_positions, list(self._lengths), 2)]
        weights = tf.stack(of_parts, 2) / tf.reduce_sum(of_positions, 2, keepdims=True)
        return dict(zip(self.parts, tf.unstack(tf.reduce_mean(weights, [0, 1])), strict=True))

    def _positions(self, vectors: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the item's token and all positions `[U, N, D]`, and which of them are used, bool `[U, N]`."""
        x, is_used = [], []
        types = tf.unstack(tf.convert_to_tensor(self._types))
        own = zip(self._projections, vectors, self._lengths, self._places, types, strict=True)
        for project, packed, length, places, kind in own:
            values, used = unpacked(packed, length)
            x.append(project(values) + tf.convert_to_tensor(places) + kind)
            is_used.append(used)
        token = tf.convert_to_tensor(self._token)
        first = tf.zeros_like(x[0][:, :1]) + token
        x, is_used = [first, *x], [tf.ones_like(is_used[0][:, :1]), *is_used]
        return tf.concat(x, 1), tf.concat(is_used, 1)
