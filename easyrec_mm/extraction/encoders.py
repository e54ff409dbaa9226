"""Encoders: contents of items -> inputs of a network -> outputs of its layers -> vectors.

A network (networks.py) is one of NETWORKS; how contents become its inputs depends on what it takes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import ConfigError, UserError
from easyrec_mm.extraction.keras_network import KerasNetwork
from easyrec_mm.extraction.networks import Arrays, Kind, Network, Prepared, kind_of
from easyrec_mm.extraction.onnx_network import OnnxNetwork
from easyrec_mm.extraction.pictures import PicturePreparation
from easyrec_mm.extraction.plan import Extraction
from easyrec_mm.extraction.preprocessing import Settings
from easyrec_mm.extraction.saved_model_network import SavedModelNetwork
from easyrec_mm.extraction.sounds import SoundPreparation
from easyrec_mm.extraction.texts import RawPreparation, TextPreparation
from easyrec_mm.protos.data_pb2 import DatasetConfig

MAX_PIXELS = DatasetConfig().max_image_pixels
_BATCH, _PIXELS_AT_A_TIME = 64, 64 * 224 * 224
# Sounds are longer than texts and larger than pictures.
_SOUNDS_AT_A_TIME = 16


class Preparation(Protocol):
    """Makes inputs of contents; it is called in several threads.

    Attributes:
      settings: the settings, complete.
      source: text that determines what they do not say, for fingerprints.
    """

    settings: Settings
    source: str

    def example(self) -> Prepared:
        """Return the inputs of one content."""

    def __call__(self, contents: Sequence[bytes]) -> tuple[Prepared, dict[int, str]]:
        """Return the inputs of the valid contents, in their order, and row -> what is wrong with any other."""


class Encoder:
    """A network with what prepares its inputs and makes vectors of its outputs.

    Args:
      what: the network, for messages.
      network: the network.
      prepare: makes its inputs.

    Attributes:
      kind: what it encodes.
      layers: the layers whose vectors it computes.
      widths: the width of the vectors of each layer.
      batch_size: contents to encode at a time.

    Raises:
      UserError: if the network cannot be run, or the settings do not make a vector of its output.
    """

    def __init__(self, what: str, network: Network, prepare: Preparation) -> None:
        self._what, self._network, self.prepare = what, network, prepare
        self.kind: Kind = kind_of(network.inputs)
        self.layers = network.layers
        size = prepare.settings.size
        self.batch_size = max(_BATCH, min(256, _PIXELS_AT_A_TIME // (size[0] * size[1]))) if size else _BATCH
        if self.kind == "audio":
            self.batch_size = _SOUNDS_AT_A_TIME
        try:
            outputs = self._outputs(prepare.example().arrays)
            # A layer that has several vectors has their mean if the settings do not say it.
            self._poolings = [prepare.settings.pooling or ("mean" if np.ndim(x) > 2 else None) for x in outputs]
            vectors = self(prepare.example())
        except (ConfigError, UserError):
            raise
        except Exception as error:  # each runtime has its own exception types
            reason = str(error).strip().partition("\n")[0]
            given = ", ".join(f"{role} {list(array.shape)}" for role, array in prepare.example().arrays.items())
            raise UserError(f"{what}: cannot take {given}: {reason}; change --preprocessing") from error
        self.widths = tuple(vector.shape[1] for vector in vectors)

    def __call__(self, prepared: Prepared) -> list[NDArray[np.float32]]:
        """Return the vectors float32 `[N, D]` of each layer."""
        outputs = self._outputs(prepared.arrays)
        settings = self.prepare.settings
        return [
            vectors_of(
                output,
                self._mask_of(output, prepared.mask),
                replace(settings, pooling=pooling),
                f"{self._what}: layer '{layer}'",
            )
            for layer, output, pooling in zip(self.layers, outputs, self._poolings, strict=True)
        ]

    def _mask_of(self, output: NDArray[Any], mask: NDArray[Any] | None) -> NDArray[Any] | None:
        """Return the mask at the positions of an output; the layers of a network of sounds may have fewer than it."""
        if self.kind != "audio" or mask is None or np.ndim(output) != 3:
            return None if self.kind == "audio" else mask
        number = np.shape(output)[1]
        return mask[:, np.arange(number) * mask.shape[1] // number]

    def _outputs(self, arrays: Arrays) -> list[NDArray[Any]]:
        size = self._network.fixed_batch
        number = len(next(iter(arrays.values())))
        if not size or size == number:
            return self._network.run(arrays)
        parts = []
        for start in range(0, number, size):
            part = {role: array[start : start + size] for role, array in arrays.items()}
            missing = size - len(next(iter(part.values())))
            full = {role: np.concatenate([array, np.repeat(array[:1], missing, 0)]) for role, array in part.items()}
            parts.append(self._network.run(full))
        return [np.concatenate(columns)[:number] for columns in zip(*parts, strict=True)]

    def origin(self, layer: str) -> dict[str, Any]:
        """Return everything that decides the vectors of a layer, and their width, as YAML can represent it."""
        place = self.layers.index(layer)
        # Not where the tokenizer is, but what it does.
        settings = replace(self.prepare.settings, layers=(), tokenizer=None, pooling=self._poolings[place])
        tokenizer = {"tokenizer": self.prepare.source} if self.prepare.source else {}
        return {
            "kind": self.kind,
            "network": self._network.source,
            **tokenizer,
            "layer": layer,
            "width": self.widths[place],
            "preprocessing": settings.to_dict(),
        }


def fingerprint_of(origin: dict[str, Any]) -> str:
    """Return the fingerprint of the vectors of an origin."""
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()


def vectors_of(output: NDArray[Any], mask: NDArray[Any] | None, settings: Settings, place: str) -> NDArray[np.float32]:
    """Return the vectors float32 `[N, D]` of an output.

    Args:
      output: vectors `[N, D]`, tokens `[N, T, D]`, or maps `[N, H, W, D]`, or `[N, D, H, W]` with layout: NCHW.
      mask: bool `[N, T]` for tokens of texts and positions of sounds: those that are used.
      settings: their pooling and normalize are applied.
      place: the layer, for messages.

    Raises:
      UserError: if the settings do not make a vector of it.
    """
    x: NDArray[Any] = np.asarray(output, np.float32)
    pooling = settings.pooling
    if x.ndim not in (2, 3, 4) and pooling != "flatten":
        raise UserError(
            f"{place}: its output {list(x.shape)} is neither vectors, tokens nor maps; give pooling: flatten"
        )
    if pooling is None:
        pass
    elif x.ndim == 2 or (pooling == "cls" and x.ndim != 3):
        raise UserError(f"{place}: its output {list(x.shape)} has nothing for pooling: {pooling}; remove the setting")
    elif pooling == "cls":
        x = x[:, 0]
    elif pooling == "flatten":
        if mask is not None:
            raise UserError(f"{place}: texts have different numbers of tokens; choose pooling: mean, max or cls")
        x = x.reshape(len(x), -1)
    else:
        places: tuple[int, ...] = (1,) if x.ndim == 3 else (2, 3) if settings.layout == "NCHW" else (1, 2)
        is_used = np.ones(x.shape[:2], bool) if mask is None or x.ndim == 4 else mask
        if x.ndim == 4:
            x = x.mean(places) if pooling == "mean" else x.max(places)
        elif is_used.shape != x.shape[:2]:
            raise UserError(f"{place}: its output {list(x.shape)} has not the tokens of the text {list(is_used.shape)}")
        elif pooling == "mean":
            x = np.where(is_used[..., None], x, 0).sum(1) / np.maximum(is_used.sum(1), 1)[:, None].astype(np.float32)
        else:
            x = np.where(is_used[..., None], x, -np.inf).max(1)
    if settings.normalize == "l2":
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        x = x / np.where(norms > 0, norms, 1)
    return np.ascontiguousarray(x, np.float32)


def open_encoder(extraction: Extraction, num_threads: int = 0) -> Encoder:
    """Load the encoder of an extraction.

    Args:
      extraction: what is to be extracted.
      num_threads: number of threads of ONNX Runtime; 0: one per core.

    Raises:
      UserError: if it cannot be loaded, or does not take what the settings make.
    """
    kind = next(name for name in NETWORKS if getattr(extraction, name))
    what = f"--{kind} {extraction.encoder}"
    settings = extraction.preprocessing
    network = NETWORKS[kind](extraction, num_threads)
    settings.require_only(kind_of(network.inputs), what)
    if extraction.text_column and kind_of(network.inputs) != "text":
        contents = {"image": "pictures", "audio": "sounds"}[kind_of(network.inputs)]
        raise UserError(f"--text_column: has no effect, because {what} takes {contents}; remove it")
    return Encoder(what, network, _preparation(network, settings, extraction, what))


def _preparation(network: Network, settings: Settings, extraction: Extraction, what: str) -> Preparation:
    inputs = dict(network.inputs)
    raw = [role for role in ("contents", "texts") if role in inputs]
    if raw:
        return RawPreparation(raw[0], settings)
    if isinstance(network, KerasNetwork):
        settings = settings.over(network.settings())
    if kind_of(inputs) == "audio":
        return SoundPreparation(inputs, settings, what)
    if kind_of(inputs) == "text":
        if "token_ids" not in inputs:
            raise UserError(f"{what}: none of its inputs stands for token_ids; say which (inputs in --preprocessing)")
        return TextPreparation(inputs, settings, extraction.preset, what)
    return PicturePreparation(inputs, settings, MAX_PIXELS, what)


def _keras(extraction: Extraction, num_threads: int) -> Network:
    return KerasNetwork(extraction.preset, extraction.preprocessing.layers)


def _saved_model(extraction: Extraction, num_threads: int) -> Network:
    settings = extraction.preprocessing
    return SavedModelNetwork(extraction.saved_model, settings.layers, settings.inputs, settings.signature or "")


def _onnx(extraction: Extraction, num_threads: int) -> Network:
    settings = extraction.preprocessing
    return OnnxNetwork(extraction.onnx, settings.layers, settings.inputs, num_threads)


NETWORKS: dict[str, Callable[[Extraction, int], Network]] = {
    "preset": _keras,
    "saved_model": _saved_model,
    "onnx": _onnx,
}
