"""Pictures in their own size, for statistics and pages: decoded as for the network, and good where training says so."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import PIL.Image
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.data.decode import decode_picture
from easyrec_mm.data.pictures import decoding_problem
from easyrec_mm.data.plain_pictures import plain_picture
from easyrec_mm.schema import Image

# For data without a config: its size is of no account.
ANY_PICTURE = Image("", 1, 1, 3, "BILINEAR", True, 50_000_000, background=(255, 255, 255))

# Threads that decode their first picture at the same time would otherwise compile a decoder each.
_compiling = threading.Lock()


def decode_whole(content: bytes, image: Image = ANY_PICTURE) -> NDArray[np.uint8]:
    """Decode a picture file to uint8 `[h, w, 3]`, upright, in the size that it has.

    Raises:
      ValueError: if training would refuse it; the text completes "the picture ...", as in bad records.
    """
    if not content:
        raise ValueError("is empty (0 bytes)")
    plain = plain_picture(content, image)
    with _compiling:
        decoder = _decoder(image)
    try:
        pixels: NDArray[np.uint8] = decoder(tf.constant(plain)).numpy()
    except tf.errors.OpError as error:
        raise ValueError(decoding_problem(error, image)) from error
    return pixels


def thumbnail(pixels: NDArray[np.uint8], side: int) -> bytes:
    """Return pixels `[h, w, 3]` as a JPEG that fits into a square."""
    picture = PIL.Image.fromarray(pixels)
    picture.thumbnail((side, side))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=85)
    return content.getvalue()


@lru_cache(maxsize=8)
def _decoder(image: Image) -> Callable[[tf.Tensor], tf.Tensor]:
    function: Callable[[tf.Tensor], tf.Tensor] = tf.function(
        lambda data: decode_picture(data, image), input_signature=[tf.TensorSpec([], tf.string)], autograph=False
    )
    return function
