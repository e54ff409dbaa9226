"""A part of an item beside its picture: the tower of a kind of content, and the vector of items without such content.

Shapes: U items of a batch, C distinct contents, E of them to encode, K items, D width of a content's vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import keras
import tensorflow as tf

from easyrec_mm.config.item import TEXT as TEXT_MODEL
from easyrec_mm.config.item import is_joint
from easyrec_mm.data.batch import Contents, Images, has_content
from easyrec_mm.data.vector_bank import VectorBank
from easyrec_mm.errors import ConfigError
from easyrec_mm.network.layers.backbones import BackboneError
from easyrec_mm.network.layers.content_tower import ContentTower
from easyrec_mm.network.layers.item_image import OrNothing
from easyrec_mm.network.layers.presets import PresetError
from easyrec_mm.network.layers.text_encoders import PresetEncoder, TextEncoder, WordEncoder
from easyrec_mm.network.layers.vector_encoder import VectorEncoder
from easyrec_mm.network.layers.words import Words
from easyrec_mm.protos.item_pb2 import TextModel, VectorModel
from easyrec_mm.protos.model_pb2 import E2E_MM_DBMTL
from easyrec_mm.schema import TEXT, Schema, vector_kind
from easyrec_mm.weights.catalog import preset_location


class ContentOfItems(NamedTuple):
    """A content of U items: vectors float32 `[U, D]`, keys int64 `[U]`, and whether it is there, bool `[U]`."""

    vectors: tf.Tensor
    key: tf.Tensor
    is_there: tf.Tensor


# Kind -> the content of a batch's items.
Encoded = Mapping[str, ContentOfItems]


class ContentPart:
    """A kind of content of items.

    Args:
      kind: the kind, see schema.py.
      tower: makes vectors of contents.
      settings: what the config says of the tower.
      seed: seed of the random choice of contents that modality_dropout replaces.
      trainable: which part of the tower is trained: ALL, HEAD, NONE or LAST_N_STAGES, see TextModel.

    Attributes:
      kind, tower: the arguments.
      or_nothing: the layer that replaces the vectors of items without the content by a trained one.
      prefix: prefix of the names of the variables.
      learning_rate_multiplier: factor of the learning rate.
    """

    def __init__(
        self, kind: str, tower: ContentTower, settings: TextModel | VectorModel, seed: int, trainable: str = "ALL"
    ) -> None:
        self.kind, self.tower = kind, tower
        dropout = settings.modality_dropout
        self.or_nothing = OrNothing(f"no_{kind}", tower.width, "vector", dropout, seed, tower.length)
        self.prefix = f"image/{kind}/"
        self.learning_rate_multiplier = float(settings.learning_rate_multiplier)
        self._trainable = trainable
        # Number of the last stages of the encoder that are trained; None for all.
        last = settings.last_n_stages if trainable == "LAST_N_STAGES" else 0
        self._num_stages = None if trainable == "ALL" else last

    def encoded(self, contents: Contents, training: bool, bank: VectorBank | None) -> ContentOfItems:
        """Return the content of a batch's items, with any vector for those without it.

        Args:
          contents: the distinct contents.
          training: whether trained parts run in training mode.
          bank: provides what was computed for other contents and stores the new results; None without a bank.
        """
        vectors = self._vectors(contents, training, bank)  # [C, D]
        return ContentOfItems(*(tf.gather(x, contents.of_image) for x in (vectors, contents.key, contents.is_there)))

    def of_values(self, values: tf.Tensor) -> tf.Tensor:
        """Return the vectors `[K, D]` of items with these contents `[K, ...]`, as Contents.values has them."""
        return self.or_nothing(self.tower(values), has_content(values))

    def of_prepared(self, prepared: tf.Tensor) -> tf.Tensor:
        """Return what `of_values` returns, given the prepared contents, see ContentEncoder."""
        encoder = self.tower.encoder
        is_there = encoder.is_there(prepared)
        if not encoder.takes_nothing:
            # With another content of zeros, which is not empty.
            prepared = tf.pad(prepared, [[0, 1], *[[0, 0]] * (len(prepared.shape) - 1)])
        vectors = self.tower.vectors(self.tower.features(prepared))[: tf.size(is_there)]
        return self.or_nothing(vectors, is_there)

    def bank(self) -> VectorBank | None:
        """Return a new bank of what the frozen part of the tower computes; None if its encoder is trained."""
        widths = {"HEAD": self.tower.num_features, "NONE": self.tower.width}
        return VectorBank(widths[self._trainable]) if self._trainable in widths else None

    def variable_names(self) -> dict[int, str]:
        """Return id of each variable -> its name."""
        names = {key: f"{self.prefix}tower/{name}" for key, name in self.tower.variable_names().items()}
        return names | {id(v): f"{self.prefix}{v.path}" for v in self.or_nothing.variables}

    def freeze(self) -> None:
        """Freeze the part of the tower that the setting `trainable` excludes."""
        self.tower.train_last_stages(self._num_stages)

    def is_frozen(self, name: str, variable: keras.Variable) -> bool:
        """Return whether a variable of this part is excluded by `trainable` or by low-rank updates."""
        if not name.startswith(f"{self.prefix}tower/"):
            return False
        if self._trainable == "NONE":
            return True
        in_encoder = name.startswith(f"{self.prefix}tower/{self.tower.encoder.name}/")
        return in_encoder and id(variable) not in self.tower.trained_in_encoder(self._num_stages)

    def _vectors(self, contents: Contents, training: bool, bank: VectorBank | None) -> tf.Tensor:
        """Return the vectors of the distinct contents, float32 `[C, D]`."""
        tower = self.tower
        prepared = tower.encoder.prepare(contents.values)
        is_training = training and self._trainable != "NONE"
        if bank is not None and self._trainable == "HEAD":
            return tower.vectors(from_bank(tower.features(prepared), contents, bank))
        vectors = tower.vectors(tower.features(prepared, is_training))  # [E, D]
        return vectors if bank is None else from_bank(vectors, contents, bank)


def from_bank(made: tf.Tensor, contents: Images | Contents, bank: VectorBank) -> tf.Tensor:
    """Return the vectors `[E, W]` of what was encoded with the bank's for the other contents: float32 `[C, W]`."""
    made = tf.cast(made, tf.float32)
    rows = tf.gather(contents.bank_row, contents.encoded)
    bank.vectors.scatter_update(tf.IndexedSlices(tf.stop_gradient(made), rows))
    bank_vectors = tf.stop_gradient(tf.gather(bank.vectors, contents.bank_row))
    return tf.tensor_scatter_nd_update(bank_vectors, contents.encoded[:, None], made)


def content_parts(network: E2E_MM_DBMTL, schema: Schema, dtype: str, seed: int) -> dict[str, ContentPart]:
    """Build the parts of items beside their picture: kind -> part, in the order in which they are fused.

    Raises:
      ConfigError: see `text_tower`.
    """
    parts: dict[str, ContentPart] = {}
    # Seeds of their own, other than that of pictures, so that not all contents of an item are replaced together.
    if TEXT in schema.contents:
        settings = network.text_model
        trainable = TextModel.Trainable.Name(settings.trainable)
        parts[TEXT] = ContentPart(TEXT, text_tower(settings, dtype, is_joint(network)), settings, seed + 1, trainable)
    for number, model in enumerate(network.vector_model, 2):
        kind = vector_kind(model.feature_name)
        encoder = VectorEncoder(schema.contents[kind].num_numbers, dtype)
        tower = ContentTower(kind, encoder, model.dim, dtype, is_sequence=is_joint(network))
        parts[kind] = ContentPart(kind, tower, model, seed + number)
    return parts


def text_tower(settings: TextModel, dtype: str, is_sequence: bool = False) -> ContentTower:
    """Build the text tower of a config; see ContentTower for `is_sequence`.

    Raises:
      ConfigError: if the preset cannot be loaded or lacks something that the config requires.
    """
    try:
        encoder = _text_encoder(settings, dtype)
        alpha = settings.lora_alpha or settings.lora_rank
        tower = ContentTower(TEXT, encoder, settings.dim, dtype, settings.lora_rank, alpha, is_sequence)
    except PresetError as error:
        raise ConfigError(f"{TEXT_MODEL}.preset: {error}") from error
    except BackboneError as error:
        raise ConfigError(f"{TEXT_MODEL}.{error.setting}: {error}") from error
    if settings.last_n_stages > len(encoder.stages):
        names = ", ".join(stage.name for stage in encoder.stages)
        raise ConfigError(
            f"{TEXT_MODEL}.last_n_stages: {settings.last_n_stages}, but the preset has {len(encoder.stages)} stages: "
            f"{names}"
        )
    return tower


def _text_encoder(settings: TextModel, dtype: str) -> TextEncoder:
    if settings.preset:
        pooling = TextModel.Pooling.Name(settings.pooling)
        return PresetEncoder(preset_location(settings.preset), settings.max_tokens, pooling, dtype)
    words = Words(
        settings.hash_bucket_size,
        settings.max_words,
        settings.word_ngrams,
        settings.min_letters,
        settings.max_letters,
    )
    blocks = settings.transformer
    num_layers = blocks.num_layers if settings.HasField("transformer") else 0
    return WordEncoder(words, settings.embedding_dim, num_layers, blocks.num_heads, blocks.dropout, dtype)
