"""Divides the pictures of a global batch among the replicas, so that each distinct one is encoded once.

Shapes: E pictures that this replica's batch shows, O those of them that it encodes, T the pictures of all replicas'
batches one behind the other, K distinct ones among them, W width of what is made of a picture.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from easyrec_mm.distribution.replicas import Replicas


class SharedPictures:
    """Chooses the replica that encodes each picture. All replicas create and call it at the same time.

    The key of a picture chooses one of the replicas whose batches show it, so that popular pictures spread evenly.

    Args:
      keys: int64 `[E]`, not negative: keys of distinct pictures, equal only for the same picture on all replicas.
      replicas: all replicas.

    Attributes:
      own: int64 `[O]`, ascending: which of its pictures this replica encodes.
    """

    def __init__(self, keys: tf.Tensor, replicas: Replicas) -> None:
        self._replicas = replicas
        num_of_each = replicas.gather_equal(tf.shape(keys)[:1])  # [N]
        distinct, picture, num_holders = tf.unique_with_counts(replicas.gather(keys))  # [K], [T], [K]
        # The holders of a picture are numbered in the order of the replicas.
        order = tf.argsort(picture, stable=True)
        number = tf.range(tf.size(order)) - tf.gather(tf.cumsum(num_holders, exclusive=True), tf.gather(picture, order))
        number = tf.gather(number, tf.math.invert_permutation(order))  # [T]
        chosen = tf.cast(tf.math.floormod(distinct, tf.cast(num_holders, tf.int64)), tf.int32)  # [K]
        encodes = tf.equal(number, tf.gather(chosen, picture))  # [T]
        start = tf.reduce_sum(num_of_each[: replicas.number])
        own = slice(start, start + num_of_each[replicas.number])
        self.own = tf.where(encodes[own])[:, 0]
        # Vectors come together in the order of the replicas, in which pictures stand in `encodes`.
        places = tf.scatter_nd(
            tf.boolean_mask(picture, encodes)[:, None], tf.range(tf.size(distinct)), tf.shape(distinct)
        )
        self._place = tf.gather(places, picture[own])  # [E]

    def of_all(self, own: tf.Tensor) -> tf.Tensor:
        """Return the vectors of the E pictures, `[E, W]`, given those of `own`, `[O, W]`.

        The gradient of a vector is the sum of those of all replicas that show its picture.
        """
        # gather_nd, because its gradient is a tensor, which is summed over the replicas.
        return tf.gather_nd(self._replicas.gather(own), self._place[:, None])


def encoded(
    encode: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    inputs: tf.Tensor,
    category: tf.Tensor,
    keys: tf.Tensor,
    replicas: Replicas,
    once: bool,
) -> tf.Tensor:
    """Return what `encode` makes of the E pictures of this replica, `[E, W]`.

    Args:
      encode: inputs and categories `[O]` of pictures -> `[O, W]`.
      inputs: of each picture its pixels, `[E, H, W, C]`, or what was made of them, `[E, F]`.
      category: `[E]`.
      keys: as for SharedPictures.
      replicas: all replicas.
      once: whether a picture that several replicas show is encoded by one of them.
    """
    if not once:
        with replicas.present(tf.shape(inputs)[0] > 0):
            return encode(inputs, category)
    shared = SharedPictures(keys, replicas)
    with replicas.present(tf.size(shared.own) > 0):
        own = encode(tf.gather(inputs, shared.own), tf.gather(category, shared.own))
    return shared.of_all(own)
