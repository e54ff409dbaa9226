"""The model of a pre-training: the towers of a config, with heads in place of a rec network.

Its towers are those of MultimodalModel, with the names of their variables, so that a ranking takes them over from a
checkpoint. The rec network has neither features nor tasks, and no variables.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from easyrec_mm.config.pretraining import is_pretraining
from easyrec_mm.data.batch import Batch
from easyrec_mm.data.vector_bank import NO_BANKS, Banks
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.network.model import L2_REGULARIZATION, MultimodalModel
from easyrec_mm.network.precision import FLOAT32
from easyrec_mm.network.pretraining import ItemVectors, PretrainHeads
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.protos.pretrain_pb2 import ContrastivePretraining
from easyrec_mm.schema import TEXT, Schema

# Name of the output with the vectors of items; "class_" and a head are before that of its classifier.
ITEM_VECTOR, CLASS = "item_vector", "class_"
IS_THERE = "is_there"


def build_model(
    config: EasyRecConfig, schema: Schema, dtype: str = FLOAT32, replicas: Replicas | None = None
) -> MultimodalModel:
    """Return the model of a config; arguments and errors as for MultimodalModel."""
    kind = ItemTowerModel if is_pretraining(config) else MultimodalModel
    return kind(config, schema, dtype, replicas)


class ItemTowerModel(MultimodalModel):
    """The item tower with the heads of pretrain_config; arguments and errors as for MultimodalModel."""

    _heads: PretrainHeads | None = None

    def __init__(
        self, config: EasyRecConfig, schema: Schema, dtype: str = FLOAT32, replicas: Replicas | None = None
    ) -> None:
        super().__init__(config, schema, dtype, replicas)
        settings = config.pretrain_config
        self._compared: str = ""
        widths = None
        if settings.HasField("contrastive"):
            self._compared = ContrastivePretraining.Pairs.Name(settings.contrastive.pairs)
            of_text = self._compared == "PICTURE_TEXT"
            widths = self.image_width, self.parts.contents[TEXT].tower.width if of_text else self.image_width
        self._heads = PretrainHeads(config, self.parts.width, widths, self.replicas)
        names = self._heads.variable_names()
        self._trainable |= {names[id(v)] for layer in self._heads.layers() for v in layer.trainable_variables}

    @property
    def heads(self) -> PretrainHeads:
        """Return the heads."""
        if self._heads is None:
            raise ValueError("the heads are not built yet")
        return self._heads

    def named_variables(self) -> dict[str, keras.Variable]:
        """Return every variable by name, as MultimodalModel does; those of heads begin with pretrain/."""
        named: dict[str, keras.Variable] = super().named_variables()
        if self._heads is None:
            return named
        names = self._heads.variable_names()
        return named | {names[id(v)]: v for layer in self._heads.layers() for v in layer.variables}

    def losses(self, batch: Batch, training: bool = True, banks: Banks = NO_BANKS) -> dict[str, tf.Tensor]:
        """Return scalars of the heads and of regularisation, whose sum over all replicas is the loss."""
        shown = self.image_vectors(batch, training, banks)
        contents = self.parts.encoded(batch.contents, training, banks)
        items = self.item_vectors(batch, shown, contents, training)
        is_there, pair, has_pair, number = self._is_there(batch), None, batch.images.has_picture, batch.images.key
        if self._compared == "VIEWS":
            pair = shown, self.image_vectors(batch, training, banks)
        elif self._compared:
            texts = contents[TEXT]
            # Items with the same text are not wrong answers for each other.
            pair, has_pair, number = (shown, texts.vectors), has_pair & texts.is_there, texts.key
        vectors = ItemVectors(items, pair, is_there, has_pair, number)
        losses = self.heads.losses(vectors, batch.images, training)
        if self.image is not None and self.image.losses:
            losses[L2_REGULARIZATION] = tf.add_n(self.image.losses) / self.replicas.num
        return losses

    def predict(self, batch: Batch, banks: Banks = NO_BANKS) -> dict[str, tf.Tensor]:
        """Return the item vector of each sample `[S, I]`, whether it has contents, and class_<head> int64 `[S]`."""
        contents = self.parts.encoded(batch.contents, False, banks)
        items = self.item_vectors(batch, self.image_vectors(batch, banks=banks), contents)
        outputs = {ITEM_VECTOR: items, IS_THERE: self._is_there(batch)}
        outputs |= {f"{CLASS}{head}": chosen for head, chosen in self.heads.classes(items).items()}
        return {name: tf.gather(value, batch.sample_image) for name, value in outputs.items()}

    def _is_there(self, batch: Batch) -> tf.Tensor:
        """Return whether each item has contents: bool `[U]`."""
        is_there = batch.images.has_picture
        for content in batch.contents.values():
            is_there |= tf.gather(content.is_there, content.of_image)
        return is_there
