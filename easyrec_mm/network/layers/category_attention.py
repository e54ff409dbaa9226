"""Attention over a feature map that depends on the item's category (CSCNN; Liu et al., KDD 2020, section 4).

The caller decides where in a backbone it is applied and where the category comes from. Shapes: U distinct images, h x w
the feature map's height and width, C its channels, E width of a category embedding.
"""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from easyrec_mm.network.layers.dnn import dense

# Least number of units of the hidden layer, whatever `reduction` is.
_FEWEST_HIDDEN_UNITS = 4
# Initial logit of both maps, set by biases: sigmoid(3) is 0.95. With 0, four attention layers would leave 1/256 of the
# signal, and random kernels would hide parts of a picture.
_FIRST_LOGIT = 3.0


class CategoryAttention(keras.layers.Layer):
    """Attention that weights a feature map's channels, then its positions, by their content and the item's category.

    F' = M_c * F, M_c = sigmoid(MLP[AvgP(F), A_c] + MLP[MaxP(F), A_c]), pooled over the picture, one MLP for both terms;
    F'' = M_s * F', M_s = sigmoid(Conv[MaxP(F'), AvgP(F'), A_s]), pooled over the channels. A_c and A_s are the two
    embeddings of the category, A_s projected to a map `[h, w]` (CSCNN, section 4). Both maps start at 0.95
    everywhere, so that the features of a pretrained backbone pass.

    Args:
      channels: C.
      height: h.
      width: w.
      reduction: the MLP's hidden layer has C // reduction units, but at least 4.
      kernel_size: height and width of the convolution.
      dtype: Keras dtype policy; pooling and sigmoids are float32 in every policy.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        reduction: int = 16,
        kernel_size: int = 7,
        dtype: str | None = None,
        name: str = "category_attention",
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self._channels, self._height, self._width = channels, height, width
        self._hidden_units = max(channels // reduction, _FEWEST_HIDDEN_UNITS)
        self._channel_hidden = dense(self._hidden_units, "channel_hidden", 0.0, "relu", dtype)
        self._channel_output = dense(channels, "channel_output", 0.0, dtype=dtype)
        self._channel_output.kernel_initializer = keras.initializers.Zeros()
        # Half of it, because two outputs are added.
        self._channel_output.bias_initializer = keras.initializers.Constant(_FIRST_LOGIT / 2)
        self._spatial_projection = dense(height * width, "spatial_projection", 0.0, dtype=dtype)
        self._spatial_conv = keras.layers.Conv2D(
            1,
            kernel_size,
            padding="same",
            kernel_initializer="zeros",
            bias_initializer=keras.initializers.Constant(_FIRST_LOGIT),
            name="spatial_conv",
            dtype=dtype,
        )

    def build(
        self,
        features_shape: tuple[int | None, ...],
        channel_embedding_shape: tuple[int | None, int],
        spatial_embedding_shape: tuple[int | None, int],
    ) -> None:
        """Create the weights for embeddings of these widths."""
        self._channel_hidden.build((None, self._channels + channel_embedding_shape[-1]))
        self._channel_output.build((None, self._hidden_units))
        self._spatial_projection.build((None, spatial_embedding_shape[-1]))
        self._spatial_conv.build((None, self._height, self._width, 3))

    def call(self, features: tf.Tensor, channel_embedding: tf.Tensor, spatial_embedding: tf.Tensor) -> tf.Tensor:
        """Return the weighted feature map.

        Args:
          features: `[U, h, w, C]` in the policy's compute dtype.
          channel_embedding: float32 `[U, E]`, A_c of each image's category.
          spatial_embedding: float32 `[U, E]`, A_s of each image's category.

        Returns:
          `[U, h, w, C]` in the features' dtype.
        """
        features *= tf.cast(self._channel_weights(features, channel_embedding), features.dtype)
        return features * tf.cast(self._spatial_weights(features, spatial_embedding), features.dtype)

    def _channel_weights(self, features: tf.Tensor, embedding: tf.Tensor) -> tf.Tensor:
        # The gradient of a maximum is divided by the number of positions that share it; bfloat16 cannot count them.
        wide = tf.cast(features, tf.float32)
        logits = tf.constant(0.0)
        for pooled in (tf.reduce_mean(wide, axis=[1, 2]), tf.reduce_max(wide, axis=[1, 2])):
            x = tf.concat([tf.cast(pooled, embedding.dtype), embedding], axis=1)  # [U, C + E]
            logits += tf.cast(self._channel_output(self._channel_hidden(x)), tf.float32)
        return tf.sigmoid(logits)[:, None, None, :]  # [U, 1, 1, C]

    def _spatial_weights(self, features: tf.Tensor, embedding: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(features, tf.float32)
        pooled = [tf.reduce_max(wide, axis=3, keepdims=True), tf.reduce_mean(wide, axis=3, keepdims=True)]
        category = tf.reshape(self._spatial_projection(embedding), [-1, self._height, self._width, 1])
        maps = tf.concat([*(tf.cast(x, category.dtype) for x in pooled), category], axis=3)  # [U, h, w, 3]
        return tf.sigmoid(tf.cast(self._spatial_conv(maps), tf.float32))  # [U, h, w, 1]


class CategoryEmbeddings(keras.layers.Layer):
    """The two embeddings of a category, for CategoryAttention: tables `channel` and `spatial`, `[num_ids, dim]`.

    Both are float32 whatever the precision of other layers. The gradients are tf.IndexedSlices of the rows looked up.

    Args:
      num_ids: number of categories; ids are below it.
      dim: E.
    """

    def __init__(self, num_ids: int, dim: int, name: str = "category_embeddings") -> None:
        super().__init__(name=name, dtype="float32")
        self._num_ids, self._dim = num_ids, dim

    # Weights of this layer instead of two EmbeddingTables: the name of an EmbeddingTable's weight depends on how many
    # tables the process has built before.
    def build(self, ids_shape: tuple[int | None, ...]) -> None:
        """Create the tables."""
        self.channel, self.spatial = (
            self.add_weight(
                shape=(self._num_ids, self._dim),
                # One initializer per table, because an initializer returns the same numbers every time.
                initializer=keras.initializers.TruncatedNormal(0.0, 1.0 / math.sqrt(self._dim)),
                name=name,
                dtype="float32",
                autocast=False,
            )
            for name in ("channel", "spatial")
        )

    def call(self, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Look up category ids int64 `[U]` in the tables `channel` and `spatial`: float32 `[U, E]` each."""
        # In the tf.Variables themselves, as in EmbeddingTable.lookup.
        return tf.nn.embedding_lookup(self.channel.value, ids), tf.nn.embedding_lookup(self.spatial.value, ids)
