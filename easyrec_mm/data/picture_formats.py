"""Decodes a picture of each format to pixels within TensorFlow graphs: upright, transparent parts on a background.

What TensorFlow would decode wrongly is refused with one of the reasons below; `plain_pictures` decodes such files
before they reach a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from easyrec_mm.data.picture_bytes import FileBytes
from easyrec_mm.data.plain_pictures import on_background

# Parts of error messages.
TOO_MANY_PIXELS = "more than max_image_pixels"
ANIMATED_WEBP = "an animated WebP, which this model cannot decode; give its first frame"
ODD_GIF = "a GIF whose first frame has transparent parts or does not fill its screen, which this model cannot decode"

# First byte of each part of a GIF, and second byte of the extension that states a frame's transparency.
_GIF_FRAME, _GIF_EXTENSION, _GIF_CONTROL = 0x2C, 0x21, 0xF9
# Zero bytes behind the end of a GIF, more than a part's header has.
_PADDING = 32


def _function_of_graph(function: Callable[..., Any]) -> Callable[..., tf.Tensor]:
    """Keep a function as one in the graph: inlined, its operations would cost time for pictures of other formats."""
    compiled: Callable[..., tf.Tensor] = tf.function(
        function, autograph=False, experimental_attributes={"_noinline": True}
    )
    return compiled


def decode_jpeg(data: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Decode a JPEG without EXIF to uint8 `[h, w, 3]`."""
    size = tf.cast(tf.io.extract_jpeg_shape(data), tf.int64)[:2]
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_prod(size) <= max_pixels, [TOO_MANY_PIXELS])]):
        # The default, a fast inverse DCT, has errors of up to 14 and is not faster on today's processors.
        return tf.io.decode_jpeg(tf.identity(data), channels=3, dct_method="INTEGER_ACCURATE")


@_function_of_graph
def decode_turned_jpeg(data: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Decode a JPEG that may have EXIF to uint8 `[h, w, 3]`."""
    file = FileBytes(data)
    return _upright(decode_jpeg(data, max_pixels), file.orientation(file.exif_of_jpeg()))


@_function_of_graph
def decode_png(data: tf.Tensor, background: tf.Tensor) -> tf.Tensor:
    """Decode a PNG to uint8 `[h, w, 3]`; of an animation, the picture that stands for it."""
    file = FileBytes(data)
    exif, has_trns = file.exif_of_png()
    has_alpha = has_trns | tf.reduce_any(tf.equal(file.at(tf.constant(25)), [4, 6]))  # the type of colour
    pixels = tf.cond(
        has_alpha,
        lambda: _on_background(tf.io.decode_png(data, channels=4), background),
        lambda: tf.io.decode_png(data, channels=3),
    )
    return _upright(pixels, file.orientation(exif))


@_function_of_graph
def decode_webp(data: tf.Tensor, background: tf.Tensor) -> tf.Tensor:
    """Decode a WebP that is not animated to uint8 `[h, w, 3]`."""
    file = FileBytes(data)
    flags = tf.where(file.has(tf.constant(12), b"VP8X"), file.at(tf.constant(20)), 0)
    # Animations must not reach TensorFlow 2.21: it writes beyond the memory that it allocates for them.
    with tf.control_dependencies([tf.debugging.Assert(tf.equal(flags // 2 % 2, 0), [ANIMATED_WEBP])]):
        pixels = tf.io.decode_image(tf.identity(data), channels=0, expand_animations=False)
    pixels.set_shape([None, None, None])
    has_alpha = tf.equal(tf.shape(pixels)[2], 4)
    pixels = tf.cond(has_alpha, lambda: _on_background(pixels, background), lambda: pixels)
    has_exif = tf.equal(flags // 8 % 2, 1)
    orientation = tf.cond(has_exif, lambda: file.orientation(file.exif_of_webp()), lambda: 1)
    return _upright(pixels, orientation)


@_function_of_graph
def decode_gif(data: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Decode a GIF's first frame to uint8 `[h, w, 3]`; TensorFlow moves and cuts one that does not fill the screen."""
    # For the first frame, TensorFlow decompresses all, one byte per pixel: the limit is the bytes of any other picture.
    num_pixels, is_transparent = _look_through_gif(data)
    with tf.control_dependencies(
        [
            tf.debugging.Assert(num_pixels <= 3 * max_pixels, [TOO_MANY_PIXELS]),
            tf.debugging.Assert(~is_transparent, [ODD_GIF]),
        ]
    ):
        pixels = tf.io.decode_image(tf.identity(data), channels=3, expand_animations=False)
    byte = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 6, 4), tf.uint8), tf.int32)
    screen = tf.stack([byte[2] + byte[3] * 256, byte[0] + byte[1] * 256])
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(tf.shape(pixels)[:2] >= screen), [ODD_GIF])]):
        return tf.identity(pixels)


def _look_through_gif(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the pixels of all frames, one byte each, int64, and whether the first frame has a transparent colour.

    The size of a frame may differ from that of the screen.
    """
    byte = tf.cast(tf.io.decode_raw(tf.strings.join([data, b"\x00" * _PADDING]), tf.uint8), tf.int32)
    last = tf.size(byte) - 1
    # Data consist of blocks, each after its length; length 0 ends them. `jump` is, for any byte, 32 blocks further on.
    jump = tf.minimum(tf.range(last + 1) + tf.where(byte > 0, byte + 1, 0), last)
    for _ in range(5):
        jump = tf.gather(jump, jump)

    def end_of_data(position: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(lambda p: byte[p] > 0, lambda p: (jump[p],), (tf.minimum(position, last),))[0]

    def number(position: tf.Tensor) -> tf.Tensor:
        return tf.cast(byte[position] + byte[position + 1] * 256, tf.int64)

    def palette_bytes(flags: tf.Tensor) -> tf.Tensor:
        return tf.where(flags >= 128, 6 * 2 ** (flags % 8), 0)

    def next_block(
        position: tf.Tensor, num_pixels: tf.Tensor, is_transparent: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        is_frame = tf.equal(byte[position], _GIF_FRAME)
        is_control = ~is_frame & tf.equal(byte[position + 1], _GIF_CONTROL) & tf.equal(num_pixels, 0)
        is_transparent |= is_control & tf.equal(byte[position + 3] % 2, 1)
        data_start = position + tf.where(is_frame, 11 + palette_bytes(byte[position + 9]), 2)
        frame_pixels = tf.where(is_frame, number(position + 5) * number(position + 7), tf.constant(0, tf.int64))
        return tf.minimum(end_of_data(data_start) + 1, last), num_pixels + frame_pixels, is_transparent

    start = tf.minimum(13 + palette_bytes(byte[10]), last)
    _, num_pixels, is_transparent = tf.while_loop(
        lambda position, *_: tf.equal(byte[position], _GIF_FRAME) | tf.equal(byte[position], _GIF_EXTENSION),
        next_block,
        (start, tf.constant(0, tf.int64), tf.constant(False)),
    )
    return num_pixels, is_transparent


def decode_palette_bmp(data: tf.Tensor) -> tf.Tensor:
    """Decode a BMP with 8 bits per pixel, whose palette indices TensorFlow returns as if they were grey values."""
    byte = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, 16), tf.uint8), tf.int32)
    palette_start = 14 + byte[14] + byte[15] * 256
    # An error message of substr would contain the data, which Python cannot decode as text.
    within = tf.debugging.Assert(palette_start <= tf.strings.length(data), ["the palette is missing"])
    with tf.control_dependencies([within]):  # before all else, so that a picture has the same reason each time
        indices = tf.cast(tf.io.decode_bmp(tf.identity(data))[..., 0], tf.int32)  # [h, w]
        padded = tf.strings.join([data, b"\x00" * 1024])
    palette = tf.reshape(tf.io.decode_raw(tf.strings.substr(padded, palette_start, 1024), tf.uint8), [256, 4])
    return tf.gather(palette[:, 2::-1], indices)  # blue, green, red -> red, green, blue


def _on_background(pixels: tf.Tensor, background: tf.Tensor) -> tf.Tensor:
    """Lay pixels uint8 `[h, w, 4]`, with alpha, over a colour int32 `[3]`; uint8 `[h, w, 3]`."""
    return tf.cast(on_background(tf.cast(pixels, tf.int32), background), tf.uint8)


def _upright(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undo the rotation and mirroring that EXIF's orientation states (EXIF 2.32, section 4.6.4)."""
    transposed = tf.transpose(pixels, [1, 0, 2])
    return tf.switch_case(
        orientation - 1,
        [
            lambda: pixels,
            lambda: pixels[:, ::-1],
            lambda: pixels[::-1, ::-1],
            lambda: pixels[::-1],
            lambda: transposed,
            lambda: transposed[:, ::-1],
            lambda: transposed[::-1, ::-1],
            lambda: transposed[::-1],
        ],
    )
