"""The model of a pre-training: the item tower with heads, which have losses on item vectors and may have classifiers.

Shapes: U items of a batch, I width of an item vector, D of an image vector, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import keras
import tensorflow as tf

from easyrec_mm.config.pretraining import CLASSIFIERS, CONTRASTIVE, heads_of
from easyrec_mm.data.batch import Images
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.network.image import class_or_pair_loss
from easyrec_mm.network.layers.image_losses import ClassLoss, ContrastiveLoss
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.protos.pretrain_pb2 import PretrainLoss

# Prefix of the names of the heads' variables, which a ranking does not take over.
PREFIX = "pretrain/"


class ItemVectors(NamedTuple):
    """The vectors of a batch's items.

    items     float32 `[U, I]`
    pair      the two vectors of each item that `contrastive` compares: `[U, .]` each; None without it
    is_there  bool `[U]`, whether the item has contents
    has_pair  bool `[U]`, whether it has both vectors of the pair
    number    int64 `[U]`, equal only for the same contents of the second vector of the pair
    """

    items: tf.Tensor
    pair: tuple[tf.Tensor, tf.Tensor] | None
    is_there: tf.Tensor
    has_pair: tf.Tensor
    number: tf.Tensor


class PretrainHeads:
    """The losses and classifiers of pretrain_config.

    They compare the items of a global batch with each other: with several replicas, each computes the same losses of
    all items, of which its part is one of as many.

    Args:
      config: the config, with pretrain_config and the numbers of classes.
      width: I.
      pair_widths: widths of the two vectors that `contrastive` compares; None without it.
      replicas: the replicas that train together.
    """

    def __init__(
        self, config: EasyRecConfig, width: int, pair_widths: tuple[int, int] | None, replicas: Replicas
    ) -> None:
        self._heads = heads_of(config)
        self._replicas = replicas
        self._losses = {
            (head.name, i): (loss, _layer(loss, head.num_class, f"{head.name}_{i}"))
            for head in self._heads
            for i, loss in enumerate(head.losses)
        }
        for _, layer in self._losses.values():
            layer.build((None, width))
        self._contrastive = config.pretrain_config.contrastive
        self._pair_loss: ContrastiveLoss | None = None
        if pair_widths is not None:
            first, second = pair_widths
            self._pair_loss = ContrastiveLoss(second, self._contrastive.temperature, name=CONTRASTIVE)
            self._pair_loss.build((None, first))

    def variable_names(self) -> dict[int, str]:
        """Return id of each variable -> its name."""
        return {id(v): f"{PREFIX}{_own_name(layer, v)}" for layer in self.layers() for v in layer.variables}

    def layers(self) -> list[keras.layers.Layer]:
        """Return the layers in the order in which their variables are listed."""
        pair = [] if self._pair_loss is None else [self._pair_loss]
        return [*(layer for _, layer in self._losses.values()), *pair]

    def losses(self, vectors: ItemVectors, images: Images, training: bool) -> dict[str, tf.Tensor]:
        """Return the weighted losses by name: "<head>" for each head, "contrastive"."""
        labels: Mapping[str, tf.Tensor] = images.labels
        if self._replicas.num > 1:
            vectors, labels = self._of_all(vectors, images)
        losses: dict[str, tf.Tensor] = {}
        for head in self._heads:
            label = tf.cast(labels[head.field], tf.int64)
            counted = vectors.is_there & (label > 0)
            of_head = []
            for i in range(len(head.losses)):
                loss, layer = self._losses[head.name, i]
                # Only a ClassLoss counts the classes that it sees in training.
                extra = {"training": training} if isinstance(layer, ClassLoss) else {}
                of_head.append(loss.weight * layer(vectors.items, label - 1, counted, **extra))
            losses[head.name] = tf.add_n(of_head) / self._replicas.num
        if self._pair_loss is not None and vectors.pair is not None:
            value = self._pair_loss(*vectors.pair, vectors.number, vectors.has_pair)
            losses[CONTRASTIVE] = self._contrastive.weight * value / self._replicas.num
        return losses

    def classes(self, items: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return head -> class int64 `[U]` that its first classifier chooses, for the heads that have one."""
        chosen: dict[str, tf.Tensor] = {}
        for (name, _), (_, layer) in self._losses.items():
            if isinstance(layer, ClassLoss) and name not in chosen:
                chosen[name] = layer.classes(items)
        return chosen

    def _of_all(self, vectors: ItemVectors, images: Images) -> tuple[ItemVectors, Mapping[str, tf.Tensor]]:
        """Return the vectors and labels of the distinct items of all replicas."""
        gather = self._replicas.gather
        key = gather(images.key)
        distinct, place = tf.unique(key)
        first = tf.math.unsorted_segment_min(tf.range(tf.size(key)), place, tf.size(distinct))

        def of_all(values: tf.Tensor) -> tf.Tensor:
            return tf.gather(gather(values), first)

        def flag(values: tf.Tensor) -> tf.Tensor:
            return tf.cast(of_all(tf.cast(values, tf.int32)), tf.bool)

        pair = None if vectors.pair is None else (of_all(vectors.pair[0]), of_all(vectors.pair[1]))
        labels = {name: of_all(images.labels[name]) for name in sorted(images.labels)}
        everything = ItemVectors(
            of_all(vectors.items), pair, flag(vectors.is_there), flag(vectors.has_pair), of_all(vectors.number)
        )
        return everything, labels


def _layer(loss: PretrainLoss, num_class: int, name: str) -> keras.layers.Layer:
    kind = loss.WhichOneof("loss")
    if kind not in (*CLASSIFIERS, "multi_similarity"):
        raise ValueError(f"loss '{kind}' has no layer")
    return class_or_pair_loss(kind, getattr(loss, kind), num_class, name)


def _own_name(layer: keras.layers.Layer, variable: keras.Variable) -> str:
    """Return the name of a variable that begins with that of its layer, wherever the layer was built."""
    return f"{layer.name}/{variable.path.rpartition(f'{layer.name}/')[2]}"
