"""Contents of picture files -> the pixels that a network takes, as its settings declare.

Pillow decodes, as it does in the pipelines of PyTorch and Keras, and resizes as there, if the settings do not choose
the layers of Keras. Pictures are upright, as their EXIF says, and transparent parts are black.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps

from easyrec_mm.data.plain_pictures import format_of, on_background, require_few_scans
from easyrec_mm.errors import UserError
from easyrec_mm.extraction.networks import Input, Prepared
from easyrec_mm.extraction.preprocessing import Settings

_METHODS = {
    "nearest": PIL.Image.Resampling.NEAREST,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "lanczos": PIL.Image.Resampling.LANCZOS,
    "area": PIL.Image.Resampling.BOX,
}
# Names of the layers of Keras.
_KERAS_METHODS = {"lanczos": "lanczos3"}
_BLACK = np.zeros(3, np.int32)
# What Settings leave open.
_DEFAULTS = Settings(fit="stretch", resize="bilinear", resampler="pillow", channels="RGB", layout="NHWC")


class PicturePreparation:
    """Prepares pictures; see Preparation in encoders.py.

    Args:
      inputs: the only input of the network, pixels.
      settings: how they are made.
      max_pixels: greatest number of pixels of a picture.
      what: the network, for messages.

    Attributes:
      settings: the settings, complete.

    Raises:
      UserError: if the settings do not make what the network takes.
    """

    source = ""

    def __init__(self, inputs: dict[str, Input], settings: Settings, max_pixels: int, what: str) -> None:
        self._input = inputs["pixels"]
        shape = self._input.shape
        if settings.layout is None and shape is not None and len(shape) == 3 and shape[0] in (1, 3):
            settings = Settings(layout="NCHW").over(settings)
        settings = settings.over(_DEFAULTS)
        sides = (shape[1:] if settings.layout == "NCHW" else shape[:2]) if shape and len(shape) == 3 else (None, None)
        if settings.size is None and all(sides):
            settings = Settings(size=sides).over(settings)  # type: ignore[arg-type]
        if settings.size is None:
            raise UserError(f"{what}: takes pictures of any size; give one (size: [224, 224] in --preprocessing)")
        self.settings = settings
        self.size: tuple[int, int] = settings.size
        self._max_pixels = max_pixels
        self._require_fit(what)
        grey = settings.channels == "GREY"
        scale, offset = _scale_and_offset(settings)
        if len(scale) == 3 and grey:
            raise UserError(f"{what}: has three numbers for the one channel of channels: GREY; give one number")
        self._scale, self._offset = np.array(scale, np.float32), np.array(offset, np.float32)
        is_neutral = np.all(self._scale == 1) and not self._offset.any()
        self._keeps_bytes = is_neutral and self._input.dtype == "uint8"
        self._resized = (
            _keras_resizing(settings) if settings.resampler == "keras" else partial(_pillow_resized, settings)
        )

    def _require_fit(self, what: str) -> None:
        number = 1 if self.settings.channels == "GREY" else 3
        given = (number, *self.size) if self.settings.layout == "NCHW" else (*self.size, number)
        shape = self._input.shape
        if shape is not None and (
            len(shape) != 3 or any(want not in (None, have) for want, have in zip(shape, given, strict=True))
        ):
            takes = " x ".join("any" if side is None else str(side) for side in shape)
            order = "channels x height x width" if self.settings.layout == "NCHW" else "height x width x channels"
            raise UserError(
                f"{what}: '{self._input.name}' takes {takes}, but would get {' x '.join(map(str, given))} ({order}); "
                "change size, channels or layout in --preprocessing"
            )
        smallest = self.settings.resize_to
        if smallest is not None and smallest < max(self.size):
            raise UserError(f"{what}: resize_to: {smallest} is less than size {list(self.size)}; raise it")
        if self._input.dtype not in ("float32", "float16", "float64", "uint8"):
            raise UserError(f"{what}: '{self._input.name}' takes {self._input.dtype}, which pixels are not; say in "
                            "--preprocessing what each input stands for (inputs)")  # fmt: skip

    def example(self) -> Prepared:
        """See Preparation."""
        return self._batch([np.zeros((*self.size, 3), np.float32)])

    def __call__(self, contents: Sequence[bytes]) -> tuple[Prepared, dict[int, str]]:
        """See Preparation."""
        pixels: list[NDArray[Any]] = []
        problems: dict[int, str] = {}
        for row, content in enumerate(contents):
            try:
                pixels.append(self._resized(decoded(content, self._max_pixels)))
            except ValueError as error:
                problems[row] = str(error)
        return self._batch(pixels), problems

    def _batch(self, pixels: list[NDArray[Any]]) -> Prepared:
        batch = np.stack(pixels) if pixels else np.zeros((0, *self.size, 3), np.float32)
        if self.settings.channels == "BGR":
            batch = batch[..., ::-1]
        elif self.settings.channels == "GREY":
            batch = batch[..., :1]
        if self._keeps_bytes:
            batch = np.clip(np.rint(batch), 0, 255).astype(np.uint8)
        else:
            batch = (batch.astype(np.float32) * self._scale + self._offset).astype(self._input.dtype)
        batch = batch.transpose(0, 3, 1, 2) if self.settings.layout == "NCHW" else batch
        return Prepared({"pixels": np.ascontiguousarray(batch)})


def decoded(content: bytes, max_pixels: int) -> PIL.Image.Image:
    """Decode a picture: RGB, upright.

    Raises:
      ValueError: if it is not a picture, is damaged or too large; the text completes "the picture ...".
    """
    kind = format_of(content)
    if not kind:
        raise ValueError("is not a JPEG, PNG, GIF, BMP, WebP or AVIF picture")
    if kind == "JPEG":
        require_few_scans(content)
    try:
        picture = PIL.Image.open(io.BytesIO(content), formats=[kind])
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        raise ValueError("is damaged: cannot be decoded") from error
    with picture:
        if picture.width * picture.height > max_pixels:
            raise ValueError(f"has more than {max_pixels} pixels")
        try:
            upright = ImageOps.exif_transpose(picture)
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            pixels = on_background(np.asarray(upright.convert("RGBA"), np.int32), _BLACK)
        except Exception as error:
            raise ValueError(f"is damaged: {error}") from error
    return PIL.Image.fromarray(pixels.astype(np.uint8))


def _pillow_resized(settings: Settings, picture: PIL.Image.Image) -> NDArray[Any]:
    """Return uint8 pixels `[height, width, 3]`; all three are grey if the settings say so."""
    height, width = settings.size or (0, 0)
    method = _METHODS[settings.resize or "bilinear"]
    if settings.channels == "GREY":
        picture = picture.convert("L").convert("RGB")
    if settings.fit == "crop":
        # As torchvision's Resize and CenterCrop.
        if settings.resize_to:
            short = min(picture.size)
            sides = [
                settings.resize_to if side == short else settings.resize_to * side // short for side in picture.size
            ]
        else:
            factor = max(width / picture.width, height / picture.height)
            sides = [max(round(picture.width * factor), width), max(round(picture.height * factor), height)]
        picture = picture.resize((sides[0], sides[1]), method)
        left, top = round((sides[0] - width) / 2), round((sides[1] - height) / 2)
        picture = picture.crop((left, top, left + width, top + height))
    elif settings.fit == "pad":
        picture = ImageOps.pad(picture, (width, height), method)
    elif picture.size != (width, height):
        picture = picture.resize((width, height), method)
    return np.asarray(picture)


def _keras_resizing(settings: Settings) -> Any:
    """Return a function like `_pillow_resized` with a layer of Keras, whose pixels are float32."""
    import keras

    if settings.resize_to:
        raise UserError("resize_to: is a setting of Pillow; give resampler: pillow, or remove it")
    height, width = settings.size or (0, 0)
    resizing = keras.layers.Resizing(
        height,
        width,
        interpolation=_KERAS_METHODS.get(settings.resize or "", settings.resize),
        crop_to_aspect_ratio=settings.fit == "crop",
        pad_to_aspect_ratio=settings.fit == "pad",
        antialias=bool(settings.antialias),
        dtype="float32",
    )

    def resized(picture: PIL.Image.Image) -> NDArray[Any]:
        if settings.channels == "GREY":
            picture = picture.convert("L").convert("RGB")
        return np.asarray(resizing(np.asarray(picture)), np.float32)

    return resized


def _scale_and_offset(settings: Settings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if settings.mean is None and settings.std is None:
        return settings.scale or (1.0,), settings.offset or (0.0,)
    mean, std = np.array(settings.mean or 0.0), np.array(settings.std or 1.0)
    scale, offset = np.broadcast_arrays(1 / 255 / std, -mean / std)
    return tuple(np.ravel(scale)), tuple(np.ravel(offset))
