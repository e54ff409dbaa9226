"""Networks from presets of keras-hub: any layer of a backbone of pictures or texts, or of the encoder of Whisper."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.errors import UserError
from easyrec_mm.extraction.networks import Arrays, Input, kind_of, missing_layer
from easyrec_mm.extraction.preprocessing import Settings
from easyrec_mm.network.layers.backbones import IMAGENET, architecture, in_dtype
from easyrec_mm.network.layers.presets import (
    PresetError,
    converter_of,
    image_converter,
    load_backbone,
    normalisation,
    only_image,
)
from easyrec_mm.weights.catalog import CATALOG, preset_location

_ROLES = {"token_ids", "padding_mask", "segment_ids"}
# Input of a backbone whose encoder takes spectrograms, and the output of this encoder.
_SPECTROGRAM, _ENCODED = "encoder_features", "encoder_sequence_output"


class KerasNetwork:
    """The backbone of a preset, in float32; see Network.

    Args:
      preset: a folder that save_to_preset wrote, or a name of weights list or keras-hub.
      layers: names of layers; () for the output.

    Attributes:
      folder: what keras-hub calls the preset.

    Raises:
      UserError: if the preset cannot be loaded, or has no such layer.
    """

    fixed_batch = 0

    def __init__(self, preset: str, layers: Sequence[str]) -> None:
        self.folder = preset_location(preset)
        if preset in CATALOG and not Path(self.folder).is_dir():
            raise UserError(f"--preset {preset}: is not on this machine yet; run: easyrec-mm weights fetch {preset}")
        try:
            built = load_backbone(self.folder)
            takes = set(built.input) if isinstance(built.input, dict) else set()
            is_text, is_audio = "token_ids" in takes and len(takes) <= len(_ROLES), _SPECTROGRAM in takes
            built = in_dtype(built if is_text or is_audio else only_image(built, preset), "float32")
        except PresetError as error:
            raise UserError(f"--preset {error}") from error
        if is_text:
            named: Any = dict(built.input)
            self.inputs: Mapping[str, Input] = {role: Input(role, (None,), "int32") for role in named}
        elif is_audio:
            named = built.input[_SPECTROGRAM]
            self.inputs = {"log_mel": Input("log_mel", tuple(named.shape[1:]), "float32")}
        else:
            named = built.inputs[0]
            self.inputs = {"pixels": Input("pixels", tuple(named.shape[1:]), "float32")}
        self._height_and_width = tuple(built.inputs[0].shape[1:3])
        operations = {operation.name: operation for operation in built.operations}
        if not layers:
            output = _last(built.output)
            outputs = [output]
            self.layers: tuple[str, ...] = (output._keras_history.operation.name,)
        else:
            for layer in layers:
                if not isinstance(getattr(operations.get(layer), "output", None), keras.KerasTensor):
                    raise missing_layer(f"--preset {preset}", layer, operations)
            outputs, self.layers = [operations[layer].output for layer in layers], tuple(layers)
        model = keras.Model(named, outputs)

        def run(arrays: dict[str, tf.Tensor]) -> list[tf.Tensor]:
            outputs = model(arrays if is_text else next(iter(arrays.values())), training=False)
            return list(outputs) if isinstance(outputs, list | tuple) else [outputs]

        # Of any batch and any length, so that it is traced once, before the first batch.
        specs = {role: tf.TensorSpec([None, *(one.shape or ())], one.dtype) for role, one in self.inputs.items()}
        self._run = tf.function(run, input_signature=[specs], autograph=False)
        digest = hashlib.sha256(architecture(built).encode())
        for weight in built.weights:
            digest.update(np.asarray(weight).tobytes())
        self.source = digest.hexdigest()

    def run(self, arrays: Arrays) -> list[NDArray[Any]]:
        """See Network."""
        outputs = self._run({role: tf.constant(array) for role, array in arrays.items()})
        return [np.asarray(output) for output in outputs]

    def settings(self) -> Settings:
        """Return how the preset's own converter prepares pictures or sounds; its tokenizer is part of the network.

        Raises:
          UserError: if the converter cannot be read.
        """
        settings = {"image": self._of_pictures, "audio": self._of_sounds, "text": Settings}[kind_of(self.inputs)]
        try:
            return settings()
        except PresetError as error:
            raise UserError(f"--preset {error}") from error

    def _of_sounds(self) -> Settings:
        converter = converter_of(self.folder, "audio_converter.json", "AudioConverter")
        if converter is None:
            shape = self.inputs["log_mel"].shape
            return Settings(num_mels=shape[1] if shape else None)
        seconds = float(converter.max_audio_length)
        return Settings(sample_rate=converter.sampling_rate, max_seconds=seconds, num_mels=converter.num_mels)

    def _of_pictures(self) -> Settings:
        converter = image_converter(self.folder)
        scale, offset = (normalisation(self.folder) if converter else None) or IMAGENET
        height, width = self._height_and_width
        size = (height, width) if height and width else None
        if converter is None:
            return Settings(size=size, fit="crop", resize="bilinear", antialias=False, resampler="keras", scale=scale, offset=offset)  # fmt: skip  # noqa: E501
        fits = {(True, False): "crop", (False, True): "pad", (False, False): "stretch"}
        return Settings(
            size=tuple(converter.image_size) if converter.image_size else size,
            fit=fits[converter.crop_to_aspect_ratio, converter.pad_to_aspect_ratio],  # type: ignore[arg-type]
            resize=converter.interpolation,
            antialias=converter.antialias,
            resampler="keras",
            scale=scale,
            offset=offset,
        )


def _last(output: Any) -> keras.KerasTensor:
    """Return the output that is used of a model which may have several, as of the stages of a backbone."""
    if isinstance(output, dict):
        return output[_ENCODED] if _ENCODED in output else output.get("sequence_output", [*output.values()][-1])
    return output
