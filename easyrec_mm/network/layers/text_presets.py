"""Text presets of keras-hub: the backbone of a folder or a name, and its tokenizer as a function within a graph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import tensorflow as tf

from easyrec_mm.network.layers.backbones import architecture, in_dtype
from easyrec_mm.network.layers.presets import PresetError, first_line, load_backbone, quiet

_INPUTS = ("token_ids", "padding_mask", "segment_ids")


class Tokenizer(NamedTuple):
    """The tokenizer of a preset.

    tokenize   texts string `[T]` -> int32 `[T, L]`, -1 in unused places
    padding    the token that stands in these places when the model is called
    special    tokens that stand for no part of a text
    unknown    the token of what the tokenizer does not know; None if it knows everything
    source     text that determines the tokenizer, for fingerprints
    """

    tokenize: Callable[[tf.Tensor], tf.Tensor]
    padding: int
    special: frozenset[int]
    unknown: int | None
    source: str


class TextPreset(NamedTuple):
    """The text backbone of a preset and its tokenizer.

    model      functional: a dictionary of `inputs`, `[T, L]` each -> `[T, L, F]`
    inputs     token_ids, padding_mask and perhaps segment_ids
    tokenize   texts string `[T]` -> int32 `[T, L]`, -1 in unused places
    padding    the token that stands in these places when the model is called
    source     text that determines model and tokenizer, for fingerprints
    """

    model: keras.Model
    inputs: tuple[str, ...]
    tokenize: Callable[[tf.Tensor], tf.Tensor]
    padding: int
    source: str


def load_text_preset(preset: str, max_tokens: int, dtype: str) -> TextPreset:
    """Load a text preset with its weights.

    Args:
      preset: a folder that save_to_preset wrote for backbone and tokenizer, or a name that keras-hub knows.
      max_tokens: L, with special tokens.
      dtype: Keras dtype policy of the backbone.

    Raises:
      PresetError: if it cannot be loaded, is not a text encoder, or takes fewer tokens.
    """
    built = in_dtype(load_backbone(preset), dtype)
    inputs = built.input if isinstance(built.input, dict) else {}
    if not {"token_ids", "padding_mask"} <= set(inputs) <= set(_INPUTS):
        names = ", ".join(inputs) or ", ".join(tensor.name for tensor in built.inputs)
        raise PresetError(f"'{preset}' is not an encoder of text: it takes {names}")
    longest = getattr(built, "max_sequence_length", None)
    if longest is not None and max_tokens > longest:
        raise PresetError(f"'{preset}' takes {longest} tokens at most, and max_tokens is {max_tokens}; lower it")
    output = built.output["sequence_output"] if isinstance(built.output, dict) else built.output
    if len(output.shape) != 3:
        raise PresetError(f"'{preset}' has no vector of each token: its output is {list(output.shape)}")
    tokenizer = load_tokenizer(preset, max_tokens)
    model = keras.Model(inputs, output)
    source = architecture(built) + tokenizer.source
    return TextPreset(model, tuple(inputs), tokenizer.tokenize, tokenizer.padding, source)


def load_tokenizer(preset: str, max_tokens: int) -> Tokenizer:
    """Load the tokenizer of a text preset.

    Args:
      preset: see load_text_preset.
      max_tokens: L, with special tokens.

    Raises:
      PresetError: if it cannot be loaded.
    """
    import keras_hub

    try:
        with quiet():
            preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(preset, sequence_length=max_tokens)
    except Exception as error:  # many types of errors, for files that are missing or do not fit
        there = f" (the folder contains {_names(preset)})" if Path(preset).is_dir() else ""
        raise PresetError(f"'{preset}' has no tokenizer that can be loaded{there}: {first_line(error)}") from error
    # The layers of a preprocessor create what they need when they are first called, which must be outside of a graph.
    preprocessor(tf.constant(["text"]))

    def tokenize(texts: tf.Tensor) -> tf.Tensor:
        tokens = preprocessor(texts)
        return tf.where(tokens["padding_mask"], tf.cast(tokens["token_ids"], tf.int32), -1)

    tokenizer = preprocessor.tokenizer
    # The config has no vocabulary, which is a file of its own.
    pieces = [tokenizer.get_vocabulary(), getattr(tokenizer, "merges", None)]
    digest = hashlib.sha256(json.dumps(pieces, default=str).encode()).hexdigest()
    settings = {"tokenizer": tokenizer.get_config(), "length": max_tokens, "vocabulary": digest}
    source = json.dumps(settings, sort_keys=True, default=str)
    unknown = getattr(tokenizer, "oov_token", None)
    number = tokenizer.token_to_id(unknown) if unknown else None
    special = frozenset(int(token) for token in tokenizer.special_token_ids)
    return Tokenizer(tokenize, int(tokenizer.pad_token_id), special - {number}, number, source)


def _names(folder: str) -> str:
    return ", ".join(sorted(path.name for path in Path(folder).iterdir())[:8]) or "nothing"
