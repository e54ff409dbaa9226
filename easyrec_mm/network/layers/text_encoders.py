"""Encoders of texts: tokens -> features, from scratch or by a preset of keras-hub.

Shape legend: T texts, L tokens of a text, W words of a text, K numbers of a word, F features.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import keras
import numpy as np
import tensorflow as tf

from easyrec_mm.data.batch import has_content
from easyrec_mm.network.layers.backbone_stages import stages_of, variable_names
from easyrec_mm.network.layers.content_tower import ContentEncoder
from easyrec_mm.network.layers.sequences import packed
from easyrec_mm.network.layers.text_presets import load_text_preset
from easyrec_mm.network.layers.transformer_block import transformer_block
from easyrec_mm.network.layers.words import NOTHING, Words


class TextEncoder(ContentEncoder):
    """Prepares texts, string `[T]` of UTF-8, as tokens, int32 with -1 in unused places; an empty text has none."""

    prepared_dtype = tf.int32

    def empty(self) -> tf.Tensor:
        return tf.constant([""])

    def is_there(self, prepared: tf.Tensor) -> tf.Tensor:
        return tf.reduce_any(tf.reshape(prepared, [tf.shape(prepared)[0], -1]) >= 0, 1)


class WordEncoder(TextEncoder):
    """The mean of the rows of words and parts of words, or transformer blocks over the words.

    Args:
      words: how texts become numbers, the rows of a table.
      dim: width of the table, F.
      num_layers: number of transformer blocks; 0 for the mean.
      num_heads: heads of their attention.
      dropout: share of their values that are zeroed in training.
      dtype: Keras dtype policy of the blocks.
    """

    takes_nothing = False

    def __init__(self, words: Words, dim: int, num_layers: int, num_heads: int, dropout: float, dtype: str) -> None:
        super().__init__(name="words", dtype=dtype)
        self._words = words
        self.num_features = dim
        self.prepared_shape = (words.max_words, words.num_numbers)
        self.length = words.max_words
        self.source = json.dumps({"words": asdict(words), "layers": num_layers, "heads": num_heads}, sort_keys=True)
        start = keras.initializers.TruncatedNormal(stddev=1.0 / np.sqrt(dim))
        self._table = self.add_weight(
            shape=(words.num_rows, dim), initializer=start, dtype="float32", autocast=False, name="table"
        )
        self._blocks = [transformer_block(i, dim, num_heads, dropout, dtype) for i in range(num_layers)]
        self._positions = None
        if num_layers:
            self._positions = self.add_weight(
                shape=(words.max_words, dim), initializer=keras.initializers.TruncatedNormal(stddev=0.02),
                dtype="float32", autocast=False, name="positions",
            )  # fmt: skip

    def prepare(self, values: tf.Tensor) -> tf.Tensor:
        return self._words.numbers(values)

    def call(self, prepared: tf.Tensor, training: bool = False, as_sequence: bool = False) -> tf.Tensor:
        is_used = prepared >= 0  # [T, W, K]
        # Only rows that are used are looked up: most places of short texts are not.
        places = tf.where(is_used)
        rows = tf.gather(tf.convert_to_tensor(self._table), tf.gather_nd(prepared, places))
        num_texts, max_words = tf.shape(prepared, tf.int64)[0], self._words.max_words
        if not self._blocks and not as_sequence:
            return tf.math.unsorted_segment_mean(rows, places[:, 0], num_texts)
        words = tf.math.unsorted_segment_mean(rows, places[:, 0] * max_words + places[:, 1], num_texts * max_words)
        words = tf.reshape(words, [-1, max_words, self.num_features])
        is_word = tf.reduce_any(is_used, 2)
        if self._positions is not None:
            words += tf.convert_to_tensor(self._positions)
        x = tf.cast(words, self.compute_dtype)
        for block in self._blocks:
            x = block(x, padding_mask=is_word, training=training)
        return packed(x, is_word) if as_sequence else _masked_mean(x, is_word)

    def table(self) -> keras.Variable | None:
        return self._table


class PresetEncoder(TextEncoder):
    """The text backbone of a preset of keras-hub, with its tokenizer.

    Args:
      preset: a folder that save_to_preset wrote, or a name that keras-hub knows.
      max_tokens: L, with special tokens.
      pooling: AVG, MAX or CLS_TOKEN.
      dtype: Keras dtype policy of the backbone.

    Raises:
      PresetError: if it cannot be loaded or is not a text backbone with a tokenizer.
    """

    def __init__(self, preset: str, max_tokens: int, pooling: str, dtype: str) -> None:
        super().__init__(name="backbone", dtype=dtype)
        loaded = load_text_preset(preset, max_tokens, dtype)
        self._tokenize, self._padding, self._inputs = loaded.tokenize, loaded.padding, loaded.inputs
        self.backbone = loaded.model
        self.stages = stages_of(loaded.model)
        self.source = f"{loaded.source} {pooling}"
        self._pooling = pooling
        self.prepared_shape = (max_tokens,)
        self.length = max_tokens
        self.num_features = int(loaded.model.output.shape[-1])

    def prepare(self, values: tf.Tensor) -> tf.Tensor:
        # An empty text has no tokens, not even the special ones.
        return tf.where(has_content(values)[:, None], self._tokenize(values), NOTHING)

    def call(self, prepared: tf.Tensor, training: bool = False, as_sequence: bool = False) -> tf.Tensor:
        is_used = prepared >= 0  # [T, L]
        ids = tf.where(is_used, prepared, self._padding)
        inputs: dict[str, tf.Tensor] = {"token_ids": ids, "padding_mask": is_used, "segment_ids": tf.zeros_like(ids)}
        x = self.backbone({name: inputs[name] for name in self._inputs}, training=training)
        if as_sequence:
            return packed(x, is_used)
        if self._pooling == "CLS_TOKEN":
            return x[:, 0]
        if self._pooling == "MAX":
            return tf.reduce_max(tf.where(is_used[..., None], x, x.dtype.min), 1)
        return _masked_mean(x, is_used)

    def variable_names(self) -> dict[int, str]:
        return variable_names(self.backbone)


def _masked_mean(x: tf.Tensor, is_used: tf.Tensor) -> tf.Tensor:
    """Return the mean over the used tokens of `[T, L, F]`: `[T, F]`, summed in float32."""
    total = tf.reduce_sum(tf.where(is_used[..., None], tf.cast(x, tf.float32), 0.0), 1)
    number = tf.maximum(tf.reduce_sum(tf.cast(is_used, tf.float32), 1), 1.0)
    return tf.cast(total / number[:, None], x.dtype)
