"""The single definition of how the bytes of a picture become the pixels that the network sees.

It uses TensorFlow operations only, so that training, the exported image model and serving cannot differ. It handles
JPEG (also CMYK, grey and rotated by EXIF), PNG, GIF (first frame), BMP (also with a palette) and WebP (no animations);
transparency is dropped.
"""

from __future__ import annotations

import tensorflow as tf

from easyrec_mm.schema import Image

# Parts of error messages: for other bytes than pictures, decompression bombs, and pictures that TensorFlow decodes
# wrongly.
UNKNOWN_FORMAT = "not a JPEG, PNG, GIF, BMP or WebP picture"
TOO_MANY_PIXELS = "more than max_image_pixels"
ANIMATED_WEBP = "an animated WebP, which is not supported"
PARTIAL_GIF = "a GIF whose first frame does not fill its screen, which is not supported"

# Near the mean of natural pictures, so that it influences the network least; neither black nor white.
MID_GREY = 128

# The TIFF entry of EXIF's orientation (tag 0x0112, type short, count 1) in both byte orders; its value follows.
_ORIENTATION_LITTLE_ENDIAN = r"(?s)^\C*Exif\x00\x00II\C*?\x12\x01\x03\x00\x01\x00\x00\x00([\x01-\x08])\x00\C*$"
_ORIENTATION_BIG_ENDIAN = r"(?s)^\C*Exif\x00\x00MM\C*?\x01\x12\x00\x03\x00\x00\x00\x01\x00([\x01-\x08])\C*$"
_EXIF_SEARCH_BYTES = 4096

# First byte of each part of a GIF.
_GIF_FRAME, _GIF_EXTENSION = 0x2C, 0x21

# Number of first bytes that contain the picture's size in every format except JPEG, and the header of a BMP.
_HEAD_BYTES = 32


def decode_pictures(data: tf.Tensor, image: Image) -> tf.Tensor:
    """Decode the bytes of pictures to pixels.

    Args:
      data: string `[U]`, the contents of the files.
      image: size, resize method and limits.

    Returns:
      uint8 `[U, height, width, channels]`, upright, 0-255.

    Raises:
      tf.errors.InvalidArgumentError: if a content is not a picture, is damaged, or has too many pixels.
    """
    with tf.device("/CPU:0"):
        # Headers are checked for all pictures at once: decoding a picture of 224 x 224 takes as long as 40 small ops.
        padded = tf.strings.join([data, b"\x00" * _HEAD_BYTES])
        head = tf.strings.substr(padded, 0, _HEAD_BYTES)
        byte = tf.reshape(tf.cast(tf.io.decode_raw(head, tf.uint8), tf.int64), [-1, _HEAD_BYTES])  # [U, 32]
        is_jpeg = _has(head, b"\xff\xd8\xff")
        num_pixels = tf.where(is_jpeg, tf.constant(1, tf.int64), _num_pixels(head, byte))
        format_check = tf.debugging.Assert(tf.reduce_all(num_pixels > 0), [UNKNOWN_FORMAT])
        size_check = tf.debugging.Assert(tf.reduce_all(num_pixels <= image.max_pixels), [TOO_MANY_PIXELS])
        with tf.control_dependencies([format_check, size_check]):
            data = tf.identity(data)
        orientation = _orientation(data)
        is_palette_bmp = _has(head, b"BM") & tf.equal(byte[:, 28], 8)
        kind = tf.where(_has(head, b"RIFF"), 4, tf.where(_has(head, b"GIF8"), 5, 3))
        kind = tf.where(is_jpeg, tf.where(orientation > 1, 1, 0), tf.where(is_palette_bmp, 2, kind))

        def decode(args: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
            picture, picture_kind, picture_orientation = args
            pixels = tf.switch_case(
                picture_kind,
                [
                    lambda: _decode_jpeg(picture, image.max_pixels),
                    lambda: _upright(_decode_jpeg(picture, image.max_pixels), picture_orientation),
                    lambda: _decode_palette_bmp(picture),
                    lambda: tf.io.decode_image(picture, channels=3, expand_animations=False),
                    lambda: _decode_webp(picture),
                    lambda: _decode_gif(picture, image.max_pixels),
                ],
            )
            pixels.set_shape([None, None, 3])
            return resize(tf.image.rgb_to_grayscale(pixels) if image.channels == 1 else pixels, image)

        shape = [image.height, image.width, image.channels]
        return tf.map_fn(decode, (data, kind, orientation), fn_output_signature=tf.TensorSpec(shape, tf.uint8))


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


def _num_pixels(head: tf.Tensor, byte: tf.Tensor) -> tf.Tensor:
    """Return width x height from the headers, before anything is decoded, int64 `[U]`; 0 for an unknown format.

    Args:
      head: string `[U]`, the first bytes.
      byte: int64 `[U, 32]`, the same as numbers.
    """

    def number(*positions: int) -> tf.Tensor:
        """Return the numbers whose bytes, most significant first, stand at these positions."""
        return tf.add_n([byte[:, position] * 256**i for i, position in enumerate(reversed(positions))])

    is_webp = _has(head, b"RIFF") & _has(head, b"WEBP", 8)
    bmp_height = number(25, 24, 23, 22)  # negative if the rows are stored from top to bottom
    # TensorFlow reads run-length encoded rows as if they were uncompressed.
    is_plain_bmp = _has(head, b"BM") & (tf.equal(byte[:, 30], 0) | tf.equal(byte[:, 30], 3))
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


def _decode_jpeg(data: tf.Tensor, max_pixels: int) -> tf.Tensor:
    size = tf.cast(tf.io.extract_jpeg_shape(data), tf.int64)[:2]
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_prod(size) <= max_pixels, [TOO_MANY_PIXELS])]):
        # The default, a fast inverse DCT, has errors of up to 14 and is not faster on today's processors.
        return tf.io.decode_jpeg(tf.identity(data), channels=3, dct_method="INTEGER_ACCURATE")


def _decode_webp(data: tf.Tensor) -> tf.Tensor:
    """Decode a WebP, and drop alpha afterwards, because TensorFlow refuses to drop it while decoding."""
    # Animations must not reach TensorFlow 2.21: it writes beyond the memory that it allocates for them.
    head = tf.strings.join([data, b"\x00" * _HEAD_BYTES])
    flags = tf.io.decode_raw(tf.strings.substr(head, 20, 1), tf.uint8)[0]
    is_animated = _has(head, b"VP8X", 12) & (flags % 4 >= 2)
    with tf.control_dependencies([tf.debugging.Assert(~is_animated, [ANIMATED_WEBP])]):
        pixels = tf.io.decode_image(tf.identity(data), channels=0, expand_animations=False)
    pixels.set_shape([None, None, None])
    return pixels[:, :, :3]


# Kept as a function in the graph: inlined, its operations would cost time even when another format is decoded.
@tf.function(autograph=False, experimental_attributes={"_noinline": True})  # type: ignore[untyped-decorator]
def _decode_gif(data: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Decode the first frame; refuse one that does not fill the screen, because TensorFlow moves and cuts it."""
    # For the first frame, TensorFlow decompresses all, one byte per pixel: the limit is the bytes of any other picture.
    small = tf.debugging.Assert(_num_gif_pixels(data) <= 3 * max_pixels, [TOO_MANY_PIXELS])
    with tf.control_dependencies([small]):
        pixels = tf.io.decode_image(tf.identity(data), channels=3, expand_animations=False)
    byte = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 6, 4), tf.uint8), tf.int32)
    screen = tf.stack([byte[2] + byte[3] * 256, byte[0] + byte[1] * 256])
    full = tf.debugging.Assert(tf.reduce_all(tf.shape(pixels)[:2] >= screen), [PARTIAL_GIF])
    with tf.control_dependencies([full]):
        return tf.identity(pixels)


def _num_gif_pixels(data: tf.Tensor) -> tf.Tensor:
    """Return the pixels of all frames, one byte each, int64; the size of a frame may differ from that of the screen."""
    byte = tf.cast(tf.io.decode_raw(tf.strings.join([data, b"\x00" * _HEAD_BYTES]), tf.uint8), tf.int32)
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

    def next_block(position: tf.Tensor, num_pixels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        is_frame = tf.equal(byte[position], _GIF_FRAME)
        data_start = position + tf.where(is_frame, 11 + palette_bytes(byte[position + 9]), 2)
        frame_pixels = tf.where(is_frame, number(position + 5) * number(position + 7), tf.constant(0, tf.int64))
        return tf.minimum(end_of_data(data_start) + 1, last), num_pixels + frame_pixels

    return tf.while_loop(
        lambda position, _: tf.equal(byte[position], _GIF_FRAME) | tf.equal(byte[position], _GIF_EXTENSION),
        next_block,
        (tf.minimum(13 + palette_bytes(byte[10]), last), tf.constant(0, tf.int64)),
    )[1]


def _decode_palette_bmp(data: tf.Tensor) -> tf.Tensor:
    """Decode a BMP with 8 bits per pixel, whose palette indices TensorFlow returns as if they were grey values."""
    byte = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, _HEAD_BYTES), tf.uint8), tf.int32)
    indices = tf.cast(tf.io.decode_bmp(data)[..., 0], tf.int32)  # [h, w]
    palette_start = 14 + byte[14] + byte[15] * 256
    # An error message of substr would contain the data, which Python cannot decode as text.
    within = tf.debugging.Assert(palette_start <= tf.strings.length(data), ["the palette is missing"])
    with tf.control_dependencies([within]):
        padded = tf.strings.join([data, b"\x00" * 1024])
    palette = tf.reshape(tf.io.decode_raw(tf.strings.substr(padded, palette_start, 1024), tf.uint8), [256, 4])
    return tf.gather(palette[:, 2::-1], indices)  # blue, green, red -> red, green, blue


def _orientation(data: tf.Tensor) -> tf.Tensor:
    """Return the EXIF orientation of JPEGs, int32 `[U]` from 1 to 8; 1 (upright) without EXIF."""
    head = tf.strings.substr(data, 0, _EXIF_SEARCH_BYTES)

    def search() -> tf.Tensor:
        value = tf.strings.regex_replace(head, _ORIENTATION_LITTLE_ENDIAN, r"\1", replace_global=False)
        value = tf.strings.regex_replace(value, _ORIENTATION_BIG_ENDIAN, r"\1", replace_global=False)
        has_code = tf.equal(tf.strings.length(value), 1)
        code = tf.io.decode_raw(tf.where(has_code, value, b"\x01"), tf.uint8)[:, 0]
        return tf.cast(code, tf.int32)

    # Most pictures have no EXIF: a check of the first segments avoids the search.
    start = tf.strings.substr(head, 0, 64)
    has_exif = tf.reduce_any(tf.strings.regex_full_match(start, r"(?s)\C*Exif\x00\x00\C*"))
    return tf.cond(has_exif, search, lambda: tf.ones(tf.shape(data), tf.int32))


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
