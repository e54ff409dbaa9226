"""Reader of a zip with a model of Sentence Transformers, without PyTorch: config, safetensors and tokenizer.

The format of safetensors: the length of a header (8 bytes, little-endian), the header in JSON (name of a tensor ->
dtype, shape, and first and last byte in what follows), then the numbers of all tensors.
"""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}


class SentenceTransformer(NamedTuple):
    """The parts of such a model.

    config          the architecture, as config.json has it
    tensors         the weights by name
    vocabulary      the pieces of words, in the order of their numbers
    lowercase       whether the tokenizer makes letters small
    strips_accents  whether it removes accents
    """

    config: dict[str, Any]
    tensors: dict[str, NDArray[Any]]
    vocabulary: list[str]
    lowercase: bool
    strips_accents: bool


def read_sentence_transformer(content: bytes) -> SentenceTransformer:
    """Read the parts of a model from the content of its zip."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        config = json.loads(archive.read("config.json"))
        tokenizer = json.loads(archive.read("tokenizer.json"))
        tensors = read_safetensors(archive.read("model.safetensors"))
    numbers: dict[str, int] = tokenizer["model"]["vocab"]
    vocabulary = sorted(numbers, key=numbers.__getitem__)
    normalizer = tokenizer["normalizer"]
    lowercase, strips_accents = bool(normalizer["lowercase"]), normalizer["strip_accents"]
    strips_accents = lowercase if strips_accents is None else bool(strips_accents)
    return SentenceTransformer(config, tensors, vocabulary, lowercase, strips_accents)


def read_safetensors(content: bytes) -> dict[str, NDArray[Any]]:
    """Read the tensors of a safetensors file by name."""
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, last = (8 + length + offset for offset in entry["data_offsets"])
        numbers = np.frombuffer(content[first:last], np.dtype(_DTYPES[entry["dtype"]]))
        tensors[name] = numbers.reshape(entry["shape"])
    return tensors
