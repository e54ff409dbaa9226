"""Presets of keras-hub: loading of the image model of a folder or a name, and the normalisation of its pixels.

A folder is read without network access. The module backbones.py makes a backbone of the model.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np

# Factors of pixels 0-255, and numbers that are added to the products, one of each per channel.
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]

_MOST_NAMES = 8


class PresetError(Exception):
    """A preset that does not exist, cannot be loaded, or does not contain an image model."""


def load_image_model(preset: str) -> keras.Model:
    """Load the functional model of a preset with its weights; for a model of pictures and text, its image part.

    Args:
      preset: a folder that save_to_preset wrote, or a name that keras-hub knows.

    Raises:
      PresetError: if it cannot be loaded, or takes anything but pictures `[height, width, channels]`.
    """
    return only_image(load_backbone(preset), preset)


def only_image(model: keras.Model, preset: str) -> keras.Model:
    """Return the model of pictures in the backbone of a preset; arguments and errors as for `load_image_model`."""
    image_part = getattr(model, "vision_encoder", None)
    model = image_part if isinstance(image_part, keras.Model) else model
    if [len(tensor.shape) for tensor in model.inputs] != [4]:
        inputs = ", ".join(f"{tensor.name} {list(tensor.shape[1:])}" for tensor in model.inputs)
        raise PresetError(f"'{preset}' is not an image backbone: it takes {inputs}")
    return model


def normalisation(preset: str) -> Normalisation | None:
    """Return the normalisation of the preset's image converter; None for a backbone that was saved without one.

    Raises:
      PresetError: if the image converter cannot be read.
    """
    converter = image_converter(preset)
    if converter is None:
        return None
    return _per_channel(converter.scale, 1.0), _per_channel(converter.offset, 0.0)


def image_converter(preset: str) -> Any:
    """Return the preset's keras-hub ImageConverter; None for a backbone that was saved without one.

    Raises:
      PresetError: if it cannot be read.
    """
    return converter_of(preset, "image_converter.json", "ImageConverter")


def converter_of(preset: str, file: str, kind: str) -> Any:
    """Return a converter of a preset by its file and the name of its class in keras_hub.layers; see image_converter."""
    import keras_hub  # takes half a second, and only some backbones need it

    folder = Path(preset)
    try:
        with quiet():
            if folder.is_dir():
                text = (folder / file).read_text(encoding="utf-8")
                return keras.saving.deserialize_keras_object(json.loads(text))
            return getattr(keras_hub.layers, kind).from_preset(preset)
    except FileNotFoundError:
        return None
    except Exception as error:  # keras-hub and Keras raise many types of errors for an unknown file
        raise PresetError(f"'{preset}': {file} cannot be read: {first_line(error)}") from error


def _per_channel(value: float | list[float] | None, neutral: float) -> tuple[float, ...]:
    values = np.ravel(neutral if value is None else value).astype(float)
    return tuple((np.broadcast_to(values, 3) if len(values) == 1 else values).tolist())


def load_backbone(preset: str) -> keras.Model:
    """Load the backbone of a preset with its weights; arguments and errors as for `load_image_model`."""
    import keras_hub

    is_folder = Path(preset).is_dir()
    preset_names = sorted(keras_hub.models.Backbone.presets)
    if not is_folder and "://" not in preset and preset not in preset_names:
        near = difflib.get_close_matches(preset, preset_names, n=3)
        hint = (
            f"nearest names: {', '.join(near)}"
            if near
            else f"keras-hub has {len(preset_names)} presets, such as {preset_names[0]}"
        )
        raise PresetError(f"'{preset}' is neither a folder nor a preset of keras-hub; {hint}")
    try:
        with quiet():
            return keras_hub.models.Backbone.from_preset(preset)
    except Exception as error:  # many types of errors, for files that do not fit or without network access
        if is_folder:
            raise PresetError(f"'{preset}' cannot be loaded: {_misfit(Path(preset), error)}") from error
        raise PresetError(
            f"'{preset}' cannot be fetched: {first_line(error)}; without network access, give a folder written by "
            "save_to_preset"
        ) from error


def _misfit(folder: Path, error: Exception) -> str:
    """Describe what is wrong with a preset's folder; show both sides where its weights do not fit its config."""
    import keras_hub

    weights = folder / "model.weights.h5"
    if not any(folder.glob("model.weights.*")):
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:_MOST_NAMES]) or "nothing"
        return f"{weights.name} is missing (the folder contains {there})"
    try:
        with quiet():
            model = keras_hub.models.Backbone.from_preset(str(folder), load_weights=False)
        config_shapes, file_shapes = _shapes_as_saved(model), _shapes_in_file(weights)
    except Exception:  # the config is inconsistent, or the weights are not a Keras file
        return first_line(error)
    differing = [
        name for name in sorted({*config_shapes, *file_shapes}) if config_shapes.get(name) != file_shapes.get(name)
    ]
    if not differing:
        return first_line(error)
    lines = [
        f"  {name}: config.json {config_shapes.get(name, 'has none')}, "
        f"{weights.name} {file_shapes.get(name, 'has none')}"
        for name in differing[:_MOST_NAMES]
    ]
    if len(differing) > _MOST_NAMES:
        lines.append(f"  and {len(differing) - _MOST_NAMES} more")
    return "\n".join(["its weights do not fit its config:", *lines])


def _shapes_as_saved(model: keras.Model) -> dict[str, list[int]]:
    """Return the shapes of weights by their path in a file that Keras writes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.weights.h5"
        model.save_weights(str(path))
        return _shapes_in_file(path)


def _shapes_in_file(path: Path) -> dict[str, list[int]]:
    import h5py

    shapes: dict[str, list[int]] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: shapes.update({name: list(item.shape)}) if hasattr(item, "shape") else None)
    return shapes


def first_line(error: Exception) -> str:
    """Return the beginning of an error's message."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the logger on which keras-hub reports what it cannot find."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
