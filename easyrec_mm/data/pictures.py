"""Reads and decodes pictures; a picture that cannot be loaded is reported with the reason and replaced by a blank."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.data.decode import MID_GREY, UNKNOWN_FORMAT, decode_pictures
from easyrec_mm.data.picture_formats import ANIMATED_WEBP, ODD_GIF, TOO_MANY_PIXELS
from easyrec_mm.data.picture_reader import PictureReader
from easyrec_mm.data.plain_pictures import plain_picture, too_many_pixels
from easyrec_mm.errors import tensorflow_reason
from easyrec_mm.schema import Image


class Pictures(NamedTuple):
    """pixels: uint8 [U, H, W, C]; problems: row -> why that picture is a blank (mid-grey) stand-in."""

    pixels: tf.Tensor
    problems: dict[int, str]


class PictureLoader:
    """Loads pictures by path.

    Args:
      image: size and limits.
      reader: reads the files; by default, relative paths start from the current folder.
      decode: decode_pictures of an exported model, to be used instead of this version's.
    """

    def __init__(
        self,
        image: Image,
        reader: PictureReader | None = None,
        decode: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ) -> None:
        self._image = image
        self._reader = reader or PictureReader()
        self._decode = decode or _decoder(image)
        shape = (image.height, image.width, image.channels)
        self._blank = np.full(shape, MID_GREY, np.uint8)

    def load(self, paths: list[bytes]) -> Pictures:
        """Load the pictures of these paths, in their order."""
        return self.decode(*self.read(paths))

    def begin(self, paths: list[bytes]) -> None:
        """Begin to read the remote pictures among these, which are loaded next."""
        self._reader.begin(paths, self._image.max_pixels)

    def forget(self) -> None:
        """Cancel what was begun and not loaded."""
        self._reader.forget()

    def read(self, paths: list[bytes]) -> tuple[list[bytes], dict[int, str]]:
        """Return the contents of the files, b"" for a file that cannot be read, and row -> the reason.

        Raises:
          DataError: see PictureReader.read.
        """
        return self._reader.read(paths, self._image.max_pixels)

    def decode(self, data: list[bytes], problems: dict[int, str]) -> Pictures:
        """Decode the pictures that `read` returned."""
        data, problems = self.plain(data, problems)
        if not problems:
            try:
                return Pictures(self._decode(tf.constant(data, tf.string)), {})
            except tf.errors.OpError:
                pass  # one of them is damaged; find out which
        return self._decode_one_by_one(data, problems)

    def plain(self, data: list[bytes], problems: dict[int, str]) -> tuple[list[bytes], dict[int, str]]:
        """Return what `read` returned, with files that TensorFlow can decode, and more problems."""
        plain, problems = list(data), dict(problems)
        for row, content in enumerate(data):
            try:
                plain[row] = plain_picture(content, self._image)
            except ValueError as error:
                problems[row] = str(error)
        return plain, problems

    def _decode_one_by_one(self, data: list[bytes], problems: dict[int, str]) -> Pictures:
        pixels = np.repeat(self._blank[None], len(data), axis=0)
        for row, content in enumerate(data):
            if row in problems:
                continue
            try:
                pixels[row] = decode_one(self._decode, content)
            except tf.errors.OpError as error:
                problems[row] = decoding_problem(error, self._image)
        return Pictures(tf.constant(pixels), problems)


def decode_one(decode: Callable[[tf.Tensor], tf.Tensor], content: bytes, num_retries: int = 4) -> NDArray[np.uint8]:
    """Decode one picture by a compiled `decode_pictures`, to uint8 `[H, W, C]`.

    Raises:
      tf.errors.OpError: if it cannot be decoded, with the reason.
    """
    try:
        pixels: NDArray[np.uint8] = decode(tf.constant([content], tf.string))[0].numpy()
    except tf.errors.CancelledError:
        # The op that fails cancels the loop around it, and sometimes the loop is the first to report its end.
        if not num_retries:
            raise
        return decode_one(decode, content, num_retries - 1)
    return pixels


@functools.lru_cache(maxsize=8)
def _decoder(image: Image) -> Callable[[tf.Tensor], tf.Tensor]:
    """Compile `decode_pictures` for one kind of image.

    All loaders of a process share it: compiling takes half a second, and each evaluation of a training opens a loader.
    """
    signature = [tf.TensorSpec([None], tf.string)]
    function: Callable[[tf.Tensor], tf.Tensor] = tf.function(
        lambda data: decode_pictures(data, image), input_signature=signature, autograph=False
    )
    return function


def decoding_problem(error: tf.errors.OpError, image: Image) -> str:
    """Return what an error of decoding says of the picture."""
    message = error.message or ""
    if UNKNOWN_FORMAT in message:
        return "is not a JPEG, PNG, GIF, BMP, WebP or AVIF picture"
    for reason in (ANIMATED_WEBP, ODD_GIF):
        if reason in message:
            return f"is {reason}"
    if TOO_MANY_PIXELS in message:
        return too_many_pixels(image)
    without_functions = re.sub(r"\{\{.*?\}\}", "", message)  # they may be nested
    return f"is damaged: {tensorflow_reason(without_functions)[:160]}"
