"""The single definition of how the bytes of a picture become the pixels that the network sees.

It uses TensorFlow operations only, so that training, the exported image model and serving cannot differ. It handles
JPEG (also CMYK and grey), PNG, WebP, GIF (first frame) and BMP, each picture by itself: what the orientation in its
EXIF says is undone, and transparent parts show the background. What TensorFlow cannot decode, `plain_pictures` turns
into one of these beforehand, and an exported model refuses.
"""

from __future__ import annotations

from enum import IntEnum

import tensorflow as tf

from easyrec_mm.data.picture_bytes import APP0, may_precede_exif
from easyrec_mm.data.picture_formats import (
    TOO_MANY_PIXELS,
    decode_gif,
    decode_jpeg,
    decode_palette_bmp,
    decode_png,
    decode_turned_jpeg,
    decode_webp,
)
from easyrec_mm.schema import Image

# Part of an error message.
UNKNOWN_FORMAT = "not a JPEG, PNG, GIF, BMP or WebP picture of a kind that this model can decode"

# Near the mean of natural pictures, so that it influences the network least; neither black nor white.
MID_GREY = 128

# Number of first bytes that contain the picture's size in every format except JPEG, and the header of a BMP.
_HEAD_BYTES = 34
# Length of the JFIF segment, APP0, without a thumbnail.
_JFIF_LENGTH = 16


class _Kind(IntEnum):
    """The decoder of a picture; TURNED_JPEG is for JPEGs that may have EXIF."""

    JPEG = 0
    TURNED_JPEG = 1
    PNG = 2
    WEBP = 3
    GIF = 4
    BMP = 5
    PALETTE_BMP = 6


def decode_pictures(data: tf.Tensor, image: Image) -> tf.Tensor:
    """Decode the bytes of pictures to pixels.

    Args:
      data: string `[U]`, the contents of the files.
      image: size, resize method, background and limits.

    Returns:
      uint8 `[U, height, width, channels]`, upright, 0-255.

    Raises:
      tf.errors.InvalidArgumentError: if a content is not a picture, is damaged, or has too many pixels.
    """

    def decode(args: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        pixels = _decode(*args, image)
        return resize(tf.image.rgb_to_grayscale(pixels) if image.channels == 1 else pixels, image)

    with tf.device("/CPU:0"):
        shape = [image.height, image.width, image.channels]
        return tf.map_fn(decode, _checked(data, image), fn_output_signature=tf.TensorSpec(shape, tf.uint8))


def decode_picture(data: tf.Tensor, image: Image) -> tf.Tensor:
    """Decode the bytes of one picture, a string scalar, to uint8 `[h, w, 3]` of its own size; see decode_pictures."""
    with tf.device("/CPU:0"):
        contents, kinds = _checked(data[None], image)
        return _decode(contents[0], kinds[0], image)


def _checked(data: tf.Tensor, image: Image) -> tuple[tf.Tensor, tf.Tensor]:
    """Check the headers of pictures, string `[U]`; return the contents, and the _Kind of each."""
    # Headers are checked for all pictures at once: decoding a picture of 224 x 224 takes as long as 40 small ops.
    padded = tf.strings.join([data, b"\x00" * _HEAD_BYTES])
    head = tf.strings.substr(padded, 0, _HEAD_BYTES)
    byte = tf.reshape(tf.cast(tf.io.decode_raw(head, tf.uint8), tf.int32), [-1, _HEAD_BYTES])  # [U, 34]
    is_jpeg = _has(head, b"\xff\xd8\xff")
    num_pixels = tf.where(is_jpeg, tf.constant(1, tf.int64), _num_pixels(head, tf.cast(byte, tf.int64)))
    format_check = tf.debugging.Assert(tf.reduce_all(num_pixels > 0), [UNKNOWN_FORMAT])
    size_check = tf.debugging.Assert(tf.reduce_all(num_pixels <= image.max_pixels), [TOO_MANY_PIXELS])
    kind = tf.where(_has(head, b"RIFF"), _Kind.WEBP, tf.where(_has(head, b"GIF8"), _Kind.GIF, _Kind.PNG))
    bmp = tf.where(tf.equal(byte[:, 28], 8), _Kind.PALETTE_BMP, _Kind.BMP)  # by its bits per pixel
    jpeg = tf.where(_may_have_exif(byte), _Kind.TURNED_JPEG, _Kind.JPEG)
    kind = tf.where(is_jpeg, jpeg, tf.where(_has(head, b"BM"), bmp, kind))
    with tf.control_dependencies([format_check, size_check]):
        return tf.identity(data), kind


def _decode(data: tf.Tensor, kind: tf.Tensor, image: Image) -> tf.Tensor:
    """Decode a picture of a _Kind, a string scalar, to uint8 `[h, w, 3]`."""
    background = tf.constant(image.background, tf.int32)
    decoders = {
        _Kind.JPEG: lambda: decode_jpeg(data, image.max_pixels),
        _Kind.TURNED_JPEG: lambda: decode_turned_jpeg(data, image.max_pixels),
        _Kind.PNG: lambda: decode_png(data, background),
        _Kind.WEBP: lambda: decode_webp(data, background),
        _Kind.GIF: lambda: decode_gif(data, image.max_pixels),
        _Kind.BMP: lambda: tf.io.decode_bmp(data)[..., :3],
        _Kind.PALETTE_BMP: lambda: decode_palette_bmp(data),
    }
    pixels = tf.switch_case(kind, {int(number): decoder for number, decoder in decoders.items()})
    pixels.set_shape([None, None, 3])
    return pixels


def resize(pixels: tf.Tensor, image: Image) -> tf.Tensor:
    """Resize pixels of any size to the size that the network takes.

    Args:
      pixels: uint8 `[h, w, c]`.
      image: size and method. Its `resize` determines what happens to a picture of another aspect ratio:
        STRETCH scales height and width, each by its own factor.
        CENTER_CROP cuts the largest part of the target's ratio out of the middle and scales that part.
        PAD scales the whole picture by the one factor with which it just fits, and fills the margins with MID_GREY.
        The sides of CENTER_CROP's part and of PAD's scaled picture are rounded to whole pixels, at least one. If a
        margin is odd, its larger half is at the right or at the bottom.

    Returns:
      uint8 `[height, width, c]`. A picture that needs no scaling keeps its pixels unchanged.
    """
    target = [image.height, image.width]
    if image.resize == "CENTER_CROP":
        cut = _fitted(target, tf.shape(pixels)[:2])
        start = (tf.shape(pixels)[:2] - cut) // 2
        pixels = tf.slice(pixels, tf.concat([start, [0]], axis=0), tf.concat([cut, [-1]], axis=0))
    size = _fitted(tf.shape(pixels)[:2], target) if image.resize == "PAD" else target

    def resized() -> tf.Tensor:
        smooth = tf.image.resize(pixels, size, image.resize_method.lower(), antialias=image.antialias)
        return tf.saturate_cast(tf.round(tf.cast(smooth, tf.float32)), tf.uint8)

    same_size = tf.reduce_all(tf.equal(tf.shape(pixels)[:2], size))
    result = tf.cond(same_size, lambda: pixels, resized)
    if image.resize == "PAD":
        free = tf.subtract(target, size)
        before = free // 2
        margins = tf.stack([before, free - before], axis=1)
        result = tf.pad(result, tf.concat([margins, [[0, 0]]], axis=0), constant_values=MID_GREY)
    return tf.ensure_shape(result, [*target, image.channels])


def _fitted(size: tf.Tensor | list[int], frame: tf.Tensor | list[int]) -> tf.Tensor:
    """Return height and width `size`, scaled by the one factor with which they just fit into `frame`: int32 `[2]`."""
    # float64 is exact for products of sides, which may exceed int32.
    size, frame = tf.cast(size, tf.float64), tf.cast(frame, tf.float64)
    side = size * frame[::-1] / size[::-1]  # each side, when the other side fills the frame
    return tf.cast(tf.minimum(tf.maximum(tf.round(side), 1.0), frame), tf.int32)


def _has(head: tf.Tensor, magic: bytes, position: int = 0) -> tf.Tensor:
    """Return whether the bytes `magic` stand at `position`, bool `[U]`."""
    return tf.equal(tf.strings.substr(head, position, len(magic)), magic)


def _may_have_exif(byte: tf.Tensor) -> tf.Tensor:
    """Return of JPEGs, whose first bytes are int32 `[U, 34]`, whether EXIF has to be looked for, bool `[U]`.

    Most files begin with JFIF and tables: these are not walked through segment by segment.
    """

    is_jfif = tf.equal(byte[:, 3], APP0) & tf.equal(byte[:, 4] * 256 + byte[:, 5], _JFIF_LENGTH)
    return may_precede_exif(byte[:, 3]) & ~(is_jfif & ~may_precede_exif(byte[:, 5 + _JFIF_LENGTH]))


def _num_pixels(head: tf.Tensor, byte: tf.Tensor) -> tf.Tensor:
    """Return width x height from the headers, before anything is decoded, int64 `[U]`; 0 for an unknown format.

    Args:
      head: string `[U]`, the first bytes.
      byte: int64 `[U, 34]`, the same as numbers.
    """

    def number(*positions: int) -> tf.Tensor:
        """Return the numbers whose bytes, most significant first, stand at these positions."""
        return tf.add_n([byte[:, position] * 256**i for i, position in enumerate(reversed(positions))])

    is_webp = _has(head, b"RIFF") & _has(head, b"WEBP", 8)
    bmp_height = number(25, 24, 23, 22)  # negative if the rows are stored from top to bottom
    # TensorFlow knows none but the usual header, and reads compressed rows and masks of channels as if there were none.
    bits = byte[:, 28]
    is_plain_bmp = _has(head, b"BM") & (number(17, 16, 15, 14) >= 40) & tf.equal(number(33, 32, 31, 30), 0)
    is_plain_bmp &= tf.equal(bits, 8) | tf.equal(bits, 24) | tf.equal(bits, 32)
    lossless_bits = number(24, 23, 22, 21)
    # WebP has three kinds of first chunk: lossy, lossless and extended.
    formats = [
        (_has(head, b"\x89PNG"), number(16, 17, 18, 19), number(20, 21, 22, 23)),
        (_has(head, b"GIF8"), number(7, 6), number(9, 8)),
        (is_plain_bmp, number(21, 20, 19, 18), tf.minimum(bmp_height, 2**32 - bmp_height)),
        (is_webp & _has(head, b"VP8 ", 12), number(27, 26) % 2**14, number(29, 28) % 2**14),
        (is_webp & _has(head, b"VP8L", 12), lossless_bits % 2**14 + 1, lossless_bits // 2**14 % 2**14 + 1),
        (is_webp & _has(head, b"VP8X", 12), number(26, 25, 24) + 1, number(29, 28, 27) + 1),
    ]
    return tf.add_n([tf.where(matches, width * height, tf.constant(0, tf.int64)) for matches, width, height in formats])
