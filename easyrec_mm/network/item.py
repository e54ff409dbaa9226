"""The part of a config's network that makes item vectors of image vectors and other contents: their parts, the fusion.

Shapes: U items of a batch, K items, D width of an image vector or of a content's, I of an item's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import keras
import tensorflow as tf

from easyrec_mm.data.batch import Contents
from easyrec_mm.data.vector_bank import Banks
from easyrec_mm.network.content import ContentOfItems, ContentPart, Encoded, content_parts
from easyrec_mm.network.layers.content_tower import ContentTower
from easyrec_mm.network.layers.image_tower import ImageTower
from easyrec_mm.network.layers.item_fusion import (
    AttentionFusion,
    BilinearFusion,
    GatedFusion,
    ItemFusion,
    QueryFusion,
)
from easyrec_mm.network.layers.joint_transformer import JointTransformer
from easyrec_mm.protos.model_pb2 import E2E_MM_DBMTL
from easyrec_mm.schema import IMAGE, TEXT, Schema

# Prefix of the names of the fusion's variables, and name of the table of words.
FUSION_PREFIX, WORDS_TABLE = "image/fusion/", f"image/{TEXT}/tower/words/table"


class ItemParts:
    """The vectors of items, made of image vectors and other contents; of image vectors alone it changes nothing.

    Args:
      network: the config's network.
      schema: says which contents items have.
      image: the image tower; None without pictures.
      dtype: Keras dtype policy of the towers.
      seed: seed of the random choice of contents that modality_dropout replaces.

    Attributes:
      contents: the parts other than the picture by kind, in the order in which they are fused.
      fusion: the layer that makes item vectors of those of the parts; None if there is only one part.
      width: width of an item vector; 0 if there is none.

    Raises:
      ConfigError: see `content_parts`.
    """

    def __init__(self, network: E2E_MM_DBMTL, schema: Schema, image: ImageTower | None, dtype: str, seed: int) -> None:
        self.contents = content_parts(network, schema, dtype, seed)
        self.fusion: ItemFusion | None = None
        towers = {} if image is None else {IMAGE: image}
        towers |= {kind: part.tower for kind, part in self.contents.items()}
        self.width = sum(tower.width for tower in towers.values())
        if len(towers) > 1:
            self.fusion = _fusion(network, towers)
            self.width = self.fusion.width

    def encoded(self, contents: Mapping[str, Contents], training: bool, banks: Banks) -> dict[str, ContentOfItems]:
        """Return the contents of a batch's items by kind, with any vector for those without the content.

        Args:
          contents: contents of the batch's items other than pictures.
          training: whether trained parts run in training mode.
          banks: provides what was computed for other contents and stores the new results.
        """
        return {kind: part.encoded(contents[kind], training, banks.get(kind)) for kind, part in self.contents.items()}

    def of_batch(self, images: tf.Tensor | None, encoded: Encoded, training: bool) -> tf.Tensor | None:
        """Return the item vectors of a batch, float32 `[U, I]`; None if items have neither pictures nor contents.

        Args:
          images: image vectors float32 `[U, D]`, with a trained vector for items without a picture, if there is one;
            None without pictures.
          encoded: the result of `encoded`.
          training: whether trained parts run in training mode.
        """

        def vectors(part: ContentPart) -> tf.Tensor:
            content = encoded[part.kind]
            return part.or_nothing(content.vectors, content.is_there, training=training)

        parts = self._of_parts(images, vectors)
        return self._fused(parts, training) if parts else None

    def of_items(self, images: tf.Tensor | None, contents: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return the vectors `[K, I]` of items, given image vectors `[K, D]` and contents as Contents.values has them.

        Raises:
          ValueError: if there is neither.
        """
        return self._fused(self._of_parts(images, lambda part: part.of_values(contents[part.kind])))

    def of_prepared(self, images: tf.Tensor | None, contents: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return what `of_items` returns, given prepared contents, see ContentEncoder."""
        return self._fused(self._of_parts(images, lambda part: part.of_prepared(contents[part.kind])))

    def empty(self) -> dict[str, tf.Tensor]:
        """Return the contents of an item that has none, see `of_items`."""
        return {kind: part.tower.encoder.empty() for kind, part in self.contents.items()}

    def part_weights(self, images: tf.Tensor | None, contents: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Return the mean weight of each part in the vectors of items, {} for a fusion without weights.

        Arguments as for `of_items`.
        """
        if self.fusion is None:
            return {}
        return self.fusion.weights_of(self._of_parts(images, lambda part: part.of_values(contents[part.kind])))

    def layers(self) -> list[keras.layers.Layer]:
        """Return the layers in the order in which their variables are listed."""
        of_parts = [layer for part in self.contents.values() for layer in (part.tower, part.or_nothing)]
        return of_parts if self.fusion is None else [*of_parts, self.fusion]

    def variable_names(self) -> dict[int, str]:
        """Return id of each variable -> its name."""
        names: dict[int, str] = {}
        for part in self.contents.values():
            names |= part.variable_names()
        if self.fusion is not None:
            names |= {id(v): f"image/{v.path}" for v in self.fusion.variables}
        return names

    def part_of(self, name: str) -> ContentPart | None:
        """Return the part to which the variable of this name belongs; None if it is not of a content."""
        return next((part for part in self.contents.values() if name.startswith(part.prefix)), None)

    def tables(self) -> dict[str, keras.Variable]:
        """Return the embedding tables by name."""
        names = self.variable_names()
        tables = [part.tower.encoder.table() for part in self.contents.values()]
        return {names[id(table)]: table for table in tables if table is not None}

    def banks(self) -> Banks:
        """Return new banks of what frozen parts of the towers compute, by kind."""
        banks = {kind: part.bank() for kind, part in self.contents.items()}
        return {kind: bank for kind, bank in banks.items() if bank is not None}

    def kernels_with_updates(self) -> list[tuple[keras.Variable, tf.Tensor]]:
        """Return each kernel that has a low-rank update, and its value with the update."""
        return [kernel for part in self.contents.values() for kernel in part.tower.kernels_with_updates()]

    def freeze(self) -> None:
        """Freeze what the settings of the towers exclude from training."""
        for part in self.contents.values():
            part.freeze()

    def _of_parts(self, images: tf.Tensor | None, vectors: Callable[[ContentPart], tf.Tensor]) -> list[tf.Tensor]:
        """Return the vectors of each part of items in their order, `[K, width of the part]`."""
        of_contents = [vectors(part) for part in self.contents.values()]
        return of_contents if images is None else [images, *of_contents]

    def _fused(self, parts: list[tf.Tensor], training: bool = False) -> tf.Tensor:
        if not parts:
            raise ValueError("items have neither pictures nor other contents")
        return parts[0] if self.fusion is None else self.fusion(parts, training=training)


def _fusion(network: E2E_MM_DBMTL, towers: Mapping[str, ImageTower | ContentTower]) -> ItemFusion:
    """Build the fusion of parts with these towers."""
    kind = network.item_fusion.WhichOneof("fusion") or "concat"
    settings = getattr(network.item_fusion, kind)
    if kind == "joint_transformer":
        lengths = [tower.length for tower in towers.values()]
        blocks = settings.num_layers, settings.num_heads, settings.dropout
        return JointTransformer(tuple(towers), lengths, settings.dim, *blocks)
    of_parts = tuple(towers), tuple(tower.width for tower in towers.values())
    if kind == "gated":
        return GatedFusion(*of_parts, settings.dim)
    if kind == "attention":
        return AttentionFusion(*of_parts, settings.dim)
    if kind == "queries":
        return QueryFusion(*of_parts, settings.num_queries, settings.dim, settings.num_heads)
    if kind == "bilinear":
        return BilinearFusion(*of_parts, settings.dim, settings.rank)
    return ItemFusion(*of_parts)
