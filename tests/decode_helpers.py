"""Small files of pictures in every format, good and odd ones, and what decoding makes of them."""

import io
import struct
import zlib
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image as Pillow

from easyrec_mm.data.decode import decode_pictures
from easyrec_mm.data.pictures import decode_one
from easyrec_mm.schema import Image

HEIGHT, WIDTH = 17, 21
NUM_PIXELS = HEIGHT * WIDTH
# Every picture below has NUM_PIXELS pixels or fewer: decoding it also shows that the limit itself is allowed.
BACKGROUND = (250, 128, 3)
WIDE = Image("img", HEIGHT, WIDTH, 3, "BILINEAR", True, NUM_PIXELS, background=BACKGROUND)
TALL = replace(WIDE, height=WIDTH, width=HEIGHT)
GREY = replace(WIDE, channels=1)
STRICT = replace(WIDE, max_pixels=NUM_PIXELS - 1)
# Lossy formats leave the decoder some freedom; the fast inverse DCT, for one, is off by up to 14.
LOSSY = 4


@lru_cache
def decoder(image):
    return tf.function(
        lambda data: decode_pictures(data, image), input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
    )


def decode(data, image=WIDE):
    return decode_one(decoder(image), data)


def refuses(data, reason=None, image=WIDE):
    with pytest.raises(tf.errors.InvalidArgumentError, match=reason):
        decode(data, image)


def picture(seed=0, mode="RGB"):
    """Smooth colours, different in every corner, with random transparency where the mode has it."""
    rng = np.random.default_rng(seed)
    coarse = Pillow.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
    image = coarse.resize((WIDTH, HEIGHT), Pillow.Resampling.BICUBIC)
    if mode in ("RGBA", "LA"):
        image.putalpha(Pillow.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8)))
    if mode == "P":
        return image.convert("P", palette=Pillow.Palette.ADAPTIVE, colors=200)
    return image.convert(mode)


def encode(image, file_format, **options):
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def pillow_pixels(data, background=BACKGROUND):
    """What Pillow decodes, its transparent parts on the background."""
    rgba = np.array(Pillow.open(io.BytesIO(data)).convert("RGBA"), float)
    alpha = rgba[..., 3:] / 255
    return np.rint(rgba[..., :3] * alpha + np.array(background) * (1 - alpha)).astype(np.uint8)


def difference(a, b):
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour_type, rows):
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\x00" + row for row in rows))
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", lines) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_16_bit(channels, colour_type):
    values = np.random.default_rng(5).integers(0, 2**16, (HEIGHT, WIDTH, channels)).astype(">u2")
    return png(WIDTH, HEIGHT, 16, colour_type, [row.tobytes() for row in values])


def bmp(width, height, bits, pixels, palette=b"", header_size=40, compression=0):
    start = 14 + header_size + len(palette)
    header = struct.pack("<IiiHHIIiiII", header_size, width, height, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    head = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header
    return head + b"\x00" * (header_size - 40) + palette + pixels


def palette_bmp(**options):
    rng = np.random.default_rng(6)
    palette = rng.integers(0, 256, (256, 4), np.uint8).tobytes()
    return bmp(WIDTH, HEIGHT, 8, rng.integers(0, 256, (HEIGHT, 24), np.uint8).tobytes(), palette, **options)


PALETTE, RGB, RGBA = picture(1, "P"), picture(2), picture(3, "RGBA")
LOSSLESS = {
    "png rgb": encode(RGB, "PNG"),
    "png rgba": encode(RGBA, "PNG"),
    "png palette": encode(PALETTE, "PNG"),
    "png palette of 16": encode(RGB.quantize(9), "PNG", bits=4),
    "png palette with a transparent colour": encode(PALETTE, "PNG", transparency=3),
    "png grey": encode(picture(4, "L"), "PNG"),
    "png grey and alpha": encode(picture(5, "LA"), "PNG"),
    "png 1 bit": encode(picture(6, "1"), "PNG"),
    "png 4 bit grey": png(WIDTH, HEIGHT, 4, 0, [bytes(range(row, row + 11)) for row in range(HEIGHT)]),
    "png 16 bit rgb": png_16_bit(3, 2),
    "png 16 bit rgba": png_16_bit(4, 6),
    "gif": encode(PALETTE, "GIF"),
    "gif interlaced": encode(PALETTE, "GIF", interlace=1),
    "gif animated": encode(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(180), PALETTE.rotate(90)]),
    "bmp 24 bit": encode(RGB, "BMP"),
    "bmp 32 bit": encode(RGBA, "BMP"),
    "bmp palette": encode(PALETTE, "BMP"),
    "bmp palette, long header": palette_bmp(header_size=124),
    "bmp grey": encode(picture(7, "L"), "BMP"),
    "bmp top down": bmp(WIDTH, -HEIGHT, 24, np.random.default_rng(8).bytes(64 * HEIGHT)),
    "webp lossless": encode(RGB, "WEBP", lossless=True),
    "webp lossless with alpha": encode(RGBA, "WEBP", lossless=True, exact=True),
}
LOSSY_FILES = {
    "jpeg": encode(RGB, "JPEG", quality=95),
    "jpeg of low quality": encode(RGB, "JPEG", quality=40),
    "jpeg 4:4:4": encode(RGB, "JPEG", subsampling=0, quality=90),
    "jpeg 4:2:0": encode(RGB, "JPEG", subsampling=2, quality=90),
    "jpeg grey": encode(picture(9, "L"), "JPEG", quality=95),
    "jpeg cmyk": encode(picture(10, "CMYK"), "JPEG", quality=95),
    "jpeg progressive": encode(RGB, "JPEG", progressive=True, quality=90),
    "webp": encode(RGB, "WEBP", quality=80),
    "webp with alpha": encode(RGBA, "WEBP", quality=80, exact=True),
}
FILES = {**LOSSLESS, **LOSSY_FILES}


def gif_with_screen(width, height):
    data = encode(PALETTE, "GIF")
    return data[:6] + struct.pack("<HH", width, height) + data[10:]
