"""Target attention of a candidate to a history. S samples, L elements of the longest history, K numbers per element.

DIN (Zhou et al., KDD 2018), as EasyRec computes it: the weight of an element k for the key q is the softmax, over the
elements of the sample, of dnn([q, k, q - k, q * k]); the result is the weighted sum of the elements.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from easyrec_mm.network.layers.dnn import DNN


class TargetAttention(keras.layers.Layer):
    """Attention of each sample's key to the elements of its history.

    Args:
      dnn: `[N, 4 K]` -> `[N, 1]`, the score of an element; its last layer has no activation.
      name: name of the layer.
    """

    def __init__(self, dnn: DNN, name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self._dnn = dnn

    def call(self, key: tf.Tensor, history: tf.RaggedTensor, training: bool = False) -> tf.Tensor:
        """Map keys float32 `[S, K]`, histories ragged `[S, (elements), K]` to `[S, K]`, zeros for empty histories."""
        elements, sample, num_samples = history.flat_values, history.value_rowids(), history.nrows()

        def score() -> tf.Tensor:
            return self._scores(tf.gather(key, sample), elements, training)  # [N]

        if training:
            # The moments of an empty batch are NaN and would stay in batch norm's averages forever.
            scores = tf.cond(tf.shape(elements)[0] > 0, score, lambda: tf.zeros([0]))
        else:
            scores = score()
        largest = tf.math.unsorted_segment_max(tf.stop_gradient(scores), sample, num_samples)
        weights = tf.exp(scores - tf.gather(largest, sample))
        totals = tf.math.unsorted_segment_sum(weights, sample, num_samples)
        weights /= tf.gather(totals, sample)
        return tf.math.unsorted_segment_sum(elements * weights[:, None], sample, num_samples)

    def padded(self, key: tf.Tensor, history: tf.Tensor, is_there: tf.Tensor) -> tf.Tensor:
        """Compute `call` on padded histories `[S, L, K]` with operations that ONNX has.

        `is_there`, float32 `[S, L]`, is 1 for elements and 0 for padding.
        """
        shape = tf.shape(history)
        keys = tf.broadcast_to(key[:, None], shape)
        width = history.shape[-1]
        scores = self._scores(tf.reshape(keys, [-1, width]), tf.reshape(history, [-1, width]), False)
        scores = tf.where(is_there > 0, tf.reshape(scores, shape[:2]), tf.float32.min)
        weights = tf.nn.softmax(scores) * is_there
        return tf.reduce_sum(history * weights[:, :, None], axis=1)

    def _scores(self, keys: tf.Tensor, elements: tf.Tensor, training: bool) -> tf.Tensor:
        """Return the scores `[N]` of keys and elements, `[N, K]` each."""
        x = tf.concat([keys, elements, keys - elements, keys * elements], axis=1)
        return tf.cast(self._dnn(x, training=training), tf.float32)[:, 0]
