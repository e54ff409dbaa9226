"""What all networks have in common, whatever runs them: Keras, a SavedModel or ONNX Runtime.

To add a kind of network, write a class with the members of `Network` in a new file, and add it to encoders.py.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from numpy.typing import NDArray

from easyrec_mm.errors import UserError

Kind = Literal["image", "text", "audio"]
# The usual names of inputs, by their roles.
_USUAL = {
    "token_ids": ("token_ids", "input_ids"),
    "padding_mask": ("padding_mask", "attention_mask"),
    "segment_ids": ("segment_ids", "token_type_ids"),
    "log_mel": ("encoder_features", "input_features"),
    "samples": ("input_values", "waveform"),
}
Arrays = Mapping[str, NDArray[Any]]


class Input(NamedTuple):
    """An input of a network: its name, its shape without the batch, None for any size, and its dtype as NumPy names it;
    "str" for texts and contents of files.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str


class Prepared(NamedTuple):
    """N contents, ready for a network: its inputs by role.

    mask  bool `[N, L]`: which tokens are those of the text, or which of L equal parts of the time have the sound; None
          for pictures
    """

    arrays: Arrays
    mask: NDArray[Any] | None = None


class Network(Protocol):
    """A network with its weights.

    Attributes:
      inputs: the inputs by role.
      layers: names of the outputs that `run` returns.
      source: text that determines weights and architecture, for fingerprints.
      fixed_batch: the only size of a batch that it takes; 0 for any.
    """

    inputs: Mapping[str, Input]
    layers: tuple[str, ...]
    source: str
    fixed_batch: int

    def run(self, arrays: Arrays) -> list[NDArray[Any]]:
        """Return the output of each layer, `[N, ...]`, for inputs by role, `[N, ...]`."""


def by_role(inputs: Iterable[Input], names: Mapping[str, str] | None, what: str) -> dict[str, Input]:
    """Return the inputs of a network by role.

    Args:
      inputs: the inputs.
      names: role -> name, as the settings have them; None for the usual names.
      what: the network, for messages.

    Raises:
      UserError: if they do not fit.
    """
    by_name = {one.name: one for one in inputs}
    if names:
        missing = [name for name in names.values() if name not in by_name]
        if missing:
            raise UserError(f"{what}: inputs: has no input '{missing[0]}'; its inputs are {', '.join(by_name)}")
        chosen = {role: by_name[name] for role, name in names.items()}
    else:
        chosen = {role: by_name[name] for role, usual in _USUAL.items() for name in usual if name in by_name}
        if not chosen and len(by_name) == 1:
            (only,) = by_name.values()
            of_shape = {1: "samples", 2: "log_mel"}.get(len(only.shape or ()), "pixels")
            chosen = {("contents" if only.dtype == "str" else of_shape): only}
    left = sorted(set(by_name) - {one.name for one in chosen.values()})
    if left:
        raise UserError(
            f"{what}: takes {', '.join(left)}, too; say what each input stands for (inputs: {{pixels: {left[0]}}}), "
            "and export the encoder alone if it takes something else"
        )
    return chosen


def kind_of(inputs: Mapping[str, Input]) -> Kind:
    """Return what a network with these inputs encodes."""
    if {"samples", "log_mel"} & set(inputs):
        return "audio"
    return "image" if {"pixels", "contents"} & set(inputs) else "text"


def missing_layer(what: str, layer: str, names: Iterable[str]) -> UserError:
    """Return the error for a layer that does not exist."""
    names = list(names)
    near = difflib.get_close_matches(layer, names, n=5, cutoff=0.3) or names[-5:]
    return UserError(f"{what}: no layer named '{layer}'; nearest names: {', '.join(near)}")


def file_digest(path: Path) -> bytes:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()
