"""The part of a config's network that makes item vectors of image vectors and texts: the text tower and the fusion.

Shapes: U items of a batch, C distinct texts, E of them to encode, D width of an image or text vector, I of an item's.
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
import tensorflow as tf

from easyrec_mm.config.item import TEXT
from easyrec_mm.data.batch import IMAGE, Contents, Images, has_text
from easyrec_mm.data.batch import TEXT as TEXT_KIND
from easyrec_mm.data.vector_bank import Banks, VectorBank
from easyrec_mm.errors import ConfigError
from easyrec_mm.network.image import TextsOfImages
from easyrec_mm.network.layers.backbones import BackboneError
from easyrec_mm.network.layers.item_fusion import (
    AttentionFusion,
    BilinearFusion,
    GatedFusion,
    ItemFusion,
    QueryFusion,
)
from easyrec_mm.network.layers.item_image import OrNothing
from easyrec_mm.network.layers.presets import PresetError
from easyrec_mm.network.layers.text_encoders import PresetEncoder, TextEncoder, WordEncoder
from easyrec_mm.network.layers.text_tower import TextTower
from easyrec_mm.network.layers.words import Words
from easyrec_mm.protos.item_pb2 import TextModel
from easyrec_mm.protos.model_pb2 import E2E_MM_DBMTL
from easyrec_mm.weights.catalog import preset_location

# The parts of an item, in the order in which they are fused.
_PARTS = (IMAGE, TEXT_KIND)
# Prefixes of the names of variables: of the text tower, and of the fusion.
TEXT_PREFIX, FUSION_PREFIX = "image/text/", "image/fusion/"
# Name of the table of words.
WORDS_TABLE = f"{TEXT_PREFIX}tower/words/table"


def text_tower(settings: TextModel, dtype: str) -> TextTower:
    """Build the text tower of a config.

    Raises:
      ConfigError: if the preset cannot be loaded or lacks something that the config requires.
    """
    try:
        encoder = _encoder(settings, dtype)
        alpha = settings.lora_alpha or settings.lora_rank
        tower = TextTower(encoder, settings.dim, dtype, settings.lora_rank, alpha)
    except PresetError as error:
        raise ConfigError(f"{TEXT}.preset: {error}") from error
    except BackboneError as error:
        raise ConfigError(f"{TEXT}.{error.setting}: {error}") from error
    if settings.last_n_stages > len(encoder.stages):
        names = ", ".join(stage.name for stage in encoder.stages)
        raise ConfigError(
            f"{TEXT}.last_n_stages: {settings.last_n_stages}, but the preset has {len(encoder.stages)} stages: {names}"
        )
    return tower


def _encoder(settings: TextModel, dtype: str) -> TextEncoder:
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


class ItemParts:
    """The vectors of items, made of image vectors and texts; of image vectors alone it changes nothing.

    Args:
      network: the config's network.
      image_width: D, the width of an image vector; 0 without pictures.
      has_text: whether items have a text.
      dtype: Keras dtype policy of the text tower.
      seed: seed of the random choice of texts that modality_dropout replaces.

    Attributes:
      text: the text tower; None if items have no text.
      no_text: the layer that replaces the vector of an empty text.
      fusion: the layer that makes item vectors of image and text vectors; None if there is only one of them.
      width: width of an item vector; 0 if there is none.

    Raises:
      ConfigError: see `text_tower`.
    """

    def __init__(self, network: E2E_MM_DBMTL, image_width: int, has_text: bool, dtype: str, seed: int) -> None:
        self.text: TextTower | None = None
        self.no_text: OrNothing | None = None
        self.fusion: ItemFusion | None = None
        self.width = image_width
        self._settings = network.text_model
        if not has_text:
            return
        self.text = text_tower(network.text_model, dtype)
        self.no_text = OrNothing("no_text", self.text.width, "vector", network.text_model.modality_dropout, seed)
        self.width = self.text.width
        if image_width:
            self.fusion = _fusion(network, (image_width, self.text.width))
            self.width = self.fusion.width

    def texts(self, contents: Mapping[str, Contents], training: bool, banks: Banks) -> TextsOfImages | None:
        """Return the texts of a batch's items, with any vector for an empty one; None if items have no text.

        Args:
          contents: contents of the batch's items other than pictures.
          training: whether trained parts run in training mode.
          banks: provides what was computed for other texts and stores the new results.
        """
        if self.text is None:
            return None
        texts = contents[TEXT_KIND]
        vectors = self._text_vectors(self.text, texts, training, banks.get(TEXT_KIND))  # [C, D]
        return TextsOfImages(*(tf.gather(x, texts.of_image) for x in (vectors, texts.key, texts.is_there)))

    def of_batch(self, images: tf.Tensor | None, texts: TextsOfImages | None, training: bool) -> tf.Tensor | None:
        """Return the item vectors of a batch, float32 `[U, I]`.

        Args:
          images: image vectors float32 `[U, D]`, with a trained vector for items without a picture, if there is one;
            None without pictures.
          texts: the result of `texts`.
          training: whether trained parts run in training mode.
        """
        if texts is None or self.no_text is None:
            return images
        return self._fused(images, self.no_text(texts.vectors, texts.is_there, training=training))

    def of_items(self, images: tf.Tensor | None, texts: tf.Tensor | None) -> tf.Tensor:
        """Return the vectors `[K, I]` of items, given their image vectors `[K, D]` and texts, string `[K]`.

        Raises:
          ValueError: if the one that the network needs is None.
        """
        if self.text is not None and self.no_text is not None and texts is not None:
            vectors = self._fused(images, self.no_text(self.text(texts), has_text(texts)))
        else:
            vectors = images
        if vectors is None:
            raise ValueError("items have neither pictures nor texts")
        return vectors

    def of_tokens(self, images: tf.Tensor | None, tokens: tf.Tensor) -> tf.Tensor:
        """Return what `of_items` returns, given the tokens of the texts, see TextTower; an empty text has none."""
        if self.text is None or self.no_text is None:
            raise ValueError("items have no text")
        is_there = self.text.has_words(tokens)
        if self.text.encoder.table() is not None:
            # With another text of one word and more: not all kernels of ONNX Runtime take texts without any word.
            tokens = tf.pad(tokens, [[0, 1], *[[0, 0]] * (len(tokens.shape) - 1)])
        vectors = self.text.vectors(self.text.features(tokens))[: tf.size(is_there)]
        return self._fused(images, self.no_text(vectors, is_there))

    def part_weights(self, images: tf.Tensor | None, texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the mean weight of picture and text in the vectors of items; {} for a fusion without weights.

        Args:
          images: image vectors `[K, D]`; None without pictures.
          texts: texts, string `[K]`.
        """
        if self.fusion is None or self.text is None or self.no_text is None:
            return {}
        return self.fusion.weights_of([images, self.no_text(self.text(texts), has_text(texts))])

    def bank(self) -> VectorBank | None:
        """Return a new bank of what the frozen part of the text tower computes; None if its encoder is trained."""
        widths = {"HEAD": self.text.num_features, "NONE": self.text.width} if self.text is not None else {}
        return VectorBank(widths[self.trainable]) if self.trainable in widths else None

    def layers(self) -> list[keras.layers.Layer]:
        """Return the layers in the order in which their variables are listed."""
        return [layer for layer in (self.text, self.no_text, self.fusion) if layer is not None]

    def variable_names(self) -> dict[int, str]:
        """Return id of each variable -> its name."""
        names: dict[int, str] = {}
        if self.text is not None and self.no_text is not None:
            names |= {key: f"{TEXT_PREFIX}tower/{name}" for key, name in self.text.variable_names().items()}
            names |= {id(v): f"{TEXT_PREFIX}{v.path}" for v in self.no_text.variables}
        if self.fusion is not None:
            names |= {id(v): f"image/{v.path}" for v in self.fusion.variables}
        return names

    def tables(self) -> dict[str, keras.Variable]:
        """Return the embedding tables by name."""
        table = self.text.encoder.table() if self.text is not None else None
        return {} if table is None else {self.variable_names()[id(table)]: table}

    def kernels_with_updates(self) -> list[tuple[keras.Variable, tf.Tensor]]:
        """Return each kernel that has a low-rank update, and its value with the update."""
        return [] if self.text is None else self.text.kernels_with_updates()

    def freeze(self) -> None:
        """Freeze the part of the text tower that text_model.trainable excludes."""
        if self.text is not None:
            self.text.train_last_stages(self._num_trained_stages)

    def is_frozen(self, name: str, variable: keras.Variable) -> bool:
        """Return whether a variable, of this name, is excluded by text_model.trainable or by low-rank updates."""
        if self.text is None or not name.startswith(f"{TEXT_PREFIX}tower/"):
            return False
        if self.trainable == "NONE":
            return True
        in_encoder = name.startswith(f"{TEXT_PREFIX}tower/{self.text.encoder.name}/")
        return in_encoder and id(variable) not in self.text.trained_in_encoder(self._num_trained_stages)

    @property
    def text_width(self) -> int:
        """Return the width of a text vector; 0 without texts."""
        return self.text.width if self.text is not None else 0

    @property
    def trainable(self) -> str:
        """Return a value of text_model.trainable."""
        name: str = TextModel.Trainable.Name(self._settings.trainable)
        return name

    @property
    def learning_rate_multiplier(self) -> float:
        """Return the factor of the learning rate of the text tower."""
        return float(self._settings.learning_rate_multiplier)

    @property
    def _num_trained_stages(self) -> int | None:
        return {"ALL": None, "LAST_N_STAGES": self._settings.last_n_stages}.get(self.trainable, 0)

    def _text_vectors(self, tower: TextTower, texts: Contents, training: bool, bank: VectorBank | None) -> tf.Tensor:
        """Return the vectors of the distinct texts, float32 `[C, D]`."""
        tokens = tower.tokens(texts.values)
        is_training = training and self.trainable != "NONE"
        if bank is not None and self.trainable == "HEAD":
            return tower.vectors(from_bank(tower.features(tokens), texts, bank))
        vectors = tower.vectors(tower.features(tokens, is_training))  # [E, D]
        return vectors if bank is None else from_bank(vectors, texts, bank)

    def _fused(self, images: tf.Tensor | None, texts: tf.Tensor) -> tf.Tensor:
        return texts if self.fusion is None else self.fusion([images, texts])


def from_bank(made: tf.Tensor, contents: Images | Contents, bank: VectorBank) -> tf.Tensor:
    """Return the vectors `[E, W]` of what was encoded with the bank's for the other contents: float32 `[C, W]`."""
    made = tf.cast(made, tf.float32)
    rows = tf.gather(contents.bank_row, contents.encoded)
    bank.vectors.scatter_update(tf.IndexedSlices(tf.stop_gradient(made), rows))
    bank_vectors = tf.stop_gradient(tf.gather(bank.vectors, contents.bank_row))
    return tf.tensor_scatter_nd_update(bank_vectors, contents.encoded[:, None], made)


def _fusion(network: E2E_MM_DBMTL, widths: tuple[int, int]) -> ItemFusion:
    kind = network.item_fusion.WhichOneof("fusion") or "concat"
    settings = getattr(network.item_fusion, kind)
    if kind == "gated":
        return GatedFusion(_PARTS, widths, settings.dim)
    if kind == "attention":
        return AttentionFusion(_PARTS, widths, settings.dim)
    if kind == "queries":
        return QueryFusion(_PARTS, widths, settings.num_queries, settings.dim, settings.num_heads)
    if kind == "bilinear":
        return BilinearFusion(_PARTS, widths, settings.dim, settings.rank)
    return ItemFusion(_PARTS, widths)
