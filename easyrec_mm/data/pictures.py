"""Reads pictures and decodes them; a picture that cannot be had is named with its reason and stands in blank."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from easyrec_mm.data.decode import (
    ANIMATED_WEBP,
    MID_GREY,
    PARTIAL_GIF,
    TOO_MANY_PIXELS,
    UNKNOWN_FORMAT,
    decode_pictures,
)
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
      root: folder that relative paths start from; "" for the current one.
      decode: an exported model's decode_pictures, instead of this version's.
    """

    def __init__(self, image: Image, root: str = "", decode: Callable[[tf.Tensor], tf.Tensor] | None = None) -> None:
        self._image = image
        self._root = root
        self._decode = decode or tf.function(
            lambda data: decode_pictures(data, image),
            input_signature=[tf.TensorSpec([None], tf.string)],
            autograph=False,
        )
        shape = (image.height, image.width, image.channels)
        self._blank = np.full(shape, MID_GREY, np.uint8)

    def load(self, paths: list[bytes]) -> Pictures:
        """Pictures of these paths, in their order."""
        return self.decode(*self.read(paths))

    def read(self, paths: list[bytes]) -> tuple[list[bytes], dict[int, str]]:
        """The files' contents, b"" where there is none, and row -> why."""
        data: list[bytes] = []
        problems: dict[int, str] = {}
        for row, path in enumerate(paths):
            try:
                data.append(self._read(path))
            except (OSError, ValueError, tf.errors.OpError) as error:  # ValueError: no file can have that path
                data.append(b"")
                problems[row] = _reading_problem(error)
            else:
                if not data[-1]:
                    problems[row] = "is empty (0 bytes)"
        return data, problems

    def decode(self, data: list[bytes], problems: dict[int, str]) -> Pictures:
        """Pictures of what `read` returned."""
        if not problems:
            try:
                return Pictures(self._decode(tf.constant(data, tf.string)), {})
            except tf.errors.OpError:
                pass  # one of them is damaged; find out which
        return self._decode_one_by_one(data, dict(problems))

    def _decode_one_by_one(self, data: list[bytes], problems: dict[int, str]) -> Pictures:
        pixels = np.repeat(self._blank[None], len(data), axis=0)
        for row, one in enumerate(data):
            if row in problems:
                continue
            try:
                pixels[row] = self._decode(tf.constant([one], tf.string))[0].numpy()
            except tf.errors.OpError as error:
                problems[row] = _decoding_problem(error, self._image)
        return Pictures(tf.constant(pixels), problems)

    def _read(self, path_bytes: bytes) -> bytes:
        path = os.fsdecode(path_bytes)
        if not path:
            raise FileNotFoundError(0, "the path is empty")
        if self._root and not os.path.isabs(path) and "://" not in path:
            path = os.path.join(self._root, path)
        if "://" in path:
            path.encode()  # TensorFlow takes UTF-8 alone
            with tf.io.gfile.GFile(path, "rb") as file:
                content: bytes = file.read()
                return content
        with open(path, "rb", opener=_open_regular_file) as file:
            return file.read()


def _open_regular_file(path: str, flags: int) -> int:
    """Opens without waiting, and only what has an end: a pipe or a device would stall or flood the training."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "is no regular file")
    return descriptor


def _reading_problem(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
    return f"cannot be read: {reason or type(error).__name__}"


def _decoding_problem(error: tf.errors.OpError, image: Image) -> str:
    message = error.message or ""
    for reason in (UNKNOWN_FORMAT, ANIMATED_WEBP, PARTIAL_GIF):
        if reason in message:
            return f"is {reason}"
    if TOO_MANY_PIXELS in message:
        return f"has more than {image.max_pixels} pixels (data_config.max_image_pixels)"
    without_functions = re.sub(r"\{\{.*?\}\}", "", message)  # one may stand within another
    return f"is damaged: {tensorflow_reason(without_functions)[:160]}"
