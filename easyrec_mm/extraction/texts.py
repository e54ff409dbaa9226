"""Texts -> the tokens that a network takes, by a tokenizer of keras-hub or of Hugging Face's `tokenizers`."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.errors import UserError
from easyrec_mm.extraction.networks import Input, Prepared
from easyrec_mm.extraction.preprocessing import Settings
from easyrec_mm.network.layers.presets import PresetError
from easyrec_mm.network.layers.text_presets import load_tokenizer
from easyrec_mm.weights.catalog import preset_location

# Tokens of a text that count, if the settings do not say it: titles and short descriptions.
MAX_TOKENS = 128
# A text of more bytes is not one of an item, and would keep a tokenizer busy for long.
MOST_BYTES = 1 << 20
# Batches are padded to a multiple, so that runtimes that plan memory by shape meet few of them.
_MULTIPLE = 8
_EXAMPLE_SIZE = (64, 64)


class Tokens(NamedTuple):
    """The tokens of texts: ids and segments, a list for each text."""

    ids: list[list[int]]
    segments: list[list[int]]


class Tokenizer(NamedTuple):
    """A tokenizer.

    tokens    texts -> their tokens, with special ones
    padding   stands in unused places
    special   tokens that stand for no part of a text
    unknown   the token of what the tokenizer does not know; None if it knows everything
    source    text that determines the tokenizer, for fingerprints
    """

    tokens: Callable[[list[str]], Tokens]
    padding: int
    special: frozenset[int]
    unknown: int | None
    source: str


class TextPreparation:
    """Prepares texts; see Preparation in encoders.py.

    Args:
      inputs: the inputs of the network, by role.
      settings: how they are made.
      preset: the preset of the network itself, whose tokenizer is the default; "" for none.
      what: the network, for messages.

    Attributes:
      settings: the settings, complete.
      source: text that determines the tokenizer.

    Raises:
      UserError: if the settings do not make what the network takes, or the tokenizer cannot be loaded.
    """

    def __init__(self, inputs: dict[str, Input], settings: Settings, preset: str, what: str) -> None:
        self._inputs = inputs
        shape = inputs["token_ids"].shape
        self._length = shape[0] if shape else None
        self.settings = settings.over(Settings(max_tokens=self._length or MAX_TOKENS))
        self._max_tokens = self.settings.max_tokens or MAX_TOKENS
        if shape is not None and len(shape) != 1:
            raise UserError(f"{what}: '{inputs['token_ids'].name}' takes {list(shape)} for a text, not its tokens")
        if self._length and self._max_tokens > self._length:
            raise UserError(
                f"{what}: '{inputs['token_ids'].name}' takes {self._length} tokens, but would get {self._max_tokens} "
                "(max_tokens); lower it in --preprocessing"
            )
        if not (settings.tokenizer or preset):
            raise UserError(f"{what}: takes tokens; name its tokenizer (tokenizer: tokenizer.json in --preprocessing)")
        name = settings.tokenizer or preset
        self._tokenizer = (
            _from_json(name, self._max_tokens) if Path(name).is_file() else _from_preset(name, self._max_tokens)
        )
        self.source = hashlib.sha256(self._tokenizer.source.encode()).hexdigest()

    def example(self) -> Prepared:
        """See Preparation."""
        return self._arrays(Tokens([[self._tokenizer.padding] * 2], [[0, 0]]))

    def __call__(self, contents: Sequence[bytes]) -> tuple[Prepared, dict[int, str]]:
        """See Preparation."""
        texts, problems = decoded(contents)
        rows = [row for row in range(len(texts)) if row not in problems]
        tokens = self._tokenizer.tokens([texts[row] for row in rows]) if rows else Tokens([], [])
        good = []
        for at, row in enumerate(rows):
            own = set(tokens.ids[at]) - self._tokenizer.special
            if not own or own == {self._tokenizer.unknown}:
                problems[row] = "has no part that the tokenizer knows; choose an encoder for its script"
            else:
                good.append(at)
        return self._arrays(Tokens([tokens.ids[at] for at in good], [tokens.segments[at] for at in good])), problems

    def _arrays(self, tokens: Tokens) -> Prepared:
        longest = max(map(len, tokens.ids), default=1)
        length = self._length or min(-(-longest // _MULTIPLE) * _MULTIPLE, max(self._max_tokens, longest))
        ids = np.full((len(tokens.ids), length), self._tokenizer.padding, np.int64)
        segments, mask = np.zeros_like(ids), np.zeros_like(ids)
        for row, (own, parts) in enumerate(zip(tokens.ids, tokens.segments, strict=True)):
            ids[row, : len(own)], segments[row, : len(own)], mask[row, : len(own)] = own, parts, 1
        all_arrays = {"token_ids": ids, "padding_mask": mask, "segment_ids": segments}
        arrays: dict[str, NDArray[Any]] = {
            role: all_arrays[role].astype(one.dtype) for role, one in self._inputs.items()
        }
        return Prepared(arrays, mask.astype(bool))


class RawPreparation:
    """Passes contents of pictures or texts to a network that decodes or tokenizes them itself; see Preparation."""

    source = ""

    def __init__(self, role: str, settings: Settings) -> None:
        self._role, self.settings = role, settings

    def example(self) -> Prepared:
        """See Preparation."""
        content = b"text"
        if self._role == "contents":
            png = io.BytesIO()
            PIL.Image.new("RGB", _EXAMPLE_SIZE).save(png, "PNG")
            content = png.getvalue()
        return Prepared({self._role: np.array([content], object)})

    def __call__(self, contents: Sequence[bytes]) -> tuple[Prepared, dict[int, str]]:
        """See Preparation."""
        problems = {} if self._role == "contents" else decoded(contents)[1]
        good = np.array([content for row, content in enumerate(contents) if row not in problems], object)
        return Prepared({self._role: good}), problems


def decoded(contents: Sequence[bytes]) -> tuple[list[str], dict[int, str]]:
    """Return texts, and row -> what is wrong with a text."""
    texts: list[str] = []
    problems: dict[int, str] = {}
    for row, content in enumerate(contents):
        text = ""
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            problems[row] = f"is not UTF-8 at byte {error.start}"
        if row not in problems and not text.strip():
            problems[row] = "is empty"
        elif len(content) > MOST_BYTES:
            problems[row] = f"has {len(content)} bytes, more than {MOST_BYTES}"
        texts.append(text)
    return texts, problems


def _from_preset(preset: str, max_tokens: int) -> Tokenizer:
    try:
        loaded = load_tokenizer(preset_location(preset), max_tokens)
    except PresetError as error:
        raise UserError(f"tokenizer: {error}") from error
    tokenize = tf.function(loaded.tokenize, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)

    def tokens(texts: list[str]) -> Tokens:
        ids = [row[row >= 0].tolist() for row in tokenize(tf.constant(texts)).numpy()]
        return Tokens(ids, [[0] * len(own) for own in ids])

    return Tokenizer(tokens, loaded.padding, loaded.special | {loaded.padding}, loaded.unknown, loaded.source)


def _from_json(path: str, max_tokens: int) -> Tokenizer:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(f"tokenizer: {path} needs the package tokenizers: pip install tokenizers") from error
    try:
        text = Path(path).read_text(encoding="utf-8")
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # `tokenizers` raises Exception itself
        raise UserError(f"tokenizer: {path} cannot be read: {error}; give a tokenizer.json") from error
    settings = json.loads(text)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    special = frozenset(token["id"] for token in settings.get("added_tokens", ()) if token["special"])
    unknown = settings["model"].get("unk_token")
    number = tokenizer.token_to_id(unknown) if isinstance(unknown, str) else None
    padding = (settings.get("padding") or {}).get("pad_id", 0)

    def tokens(texts: list[str]) -> Tokens:
        encodings = tokenizer.encode_batch(texts)
        return Tokens([e.ids for e in encodings], [e.type_ids for e in encodings])

    source = f"{hashlib.sha256(text.encode()).hexdigest()} {max_tokens}"
    return Tokenizer(tokens, padding, special - {number}, number, source)
