"""Files that must be refused rather than decoded: bombs, damaged files, and those that would be misread."""

import io
import struct
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from decode_helpers import (
    FILES,
    HEIGHT,
    LOSSLESS,
    PALETTE,
    RGB,
    STRICT,
    WIDE,
    WIDTH,
    bmp,
    decode,
    decoder,
    encode,
    gif_with_screen,
    palette_bmp,
    picture,
    png,
    refuses,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from easyrec_mm.data.decode import UNKNOWN_FORMAT
from easyrec_mm.data.picture_formats import ANIMATED_WEBP, ODD_GIF, TOO_MANY_PIXELS

HUGE = 60000


def webp(kind, chunk):
    return b"RIFF" + struct.pack("<I", 4 + 8 + len(chunk)) + b"WEBP" + kind + struct.pack("<I", len(chunk)) + chunk


def three_bytes(number):
    return struct.pack("<I", number)[:3]


WEBP_MOST = 2**14 - 1
SIZE_IN_JPEG = struct.pack(">HH", HEIGHT, WIDTH)
BOMBS = {
    "png": png(HUGE, HUGE, 8, 2, [b"\x00"]),
    "jpeg": FILES["jpeg"].replace(SIZE_IN_JPEG, struct.pack(">HH", HUGE, HUGE)),
    "jpeg progressive": FILES["jpeg progressive"].replace(SIZE_IN_JPEG, struct.pack(">HH", HUGE, HUGE)),
    "gif": b"GIF89a" + struct.pack("<HHBBB", HUGE, HUGE, 0x80, 0, 0) + b"\x00" * 6 + b";",
    "bmp": bmp(HUGE, HUGE, 24, b"\x00" * 4),
    "bmp top down": bmp(HUGE, -HUGE, 24, b"\x00" * 4),
    "bmp palette": bmp(HUGE, HUGE, 8, b"\x00" * 4, b"\x00" * 1024),
    "webp lossy": webp(b"VP8 ", b"\x10\x00\x00\x9d\x01\x2a" + struct.pack("<HH", WEBP_MOST, WEBP_MOST) + bytes(8)),
    "webp lossless": webp(b"VP8L", b"\x2f" + struct.pack("<I", WEBP_MOST | WEBP_MOST << 14) + bytes(8)),
    "webp extended": webp(b"VP8X", bytes(4) + three_bytes(HUGE - 1) + three_bytes(HUGE - 1)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_header_that_promises_too_many_pixels_is_refused(name):
    # The data behind the header are missing: had decoding begun, the complaint would be about them.
    refuses(BOMBS[name], TOO_MANY_PIXELS)


@pytest.mark.parametrize("name", FILES)
def test_one_pixel_more_than_allowed_is_too_many(name):
    refuses(FILES[name], TOO_MANY_PIXELS, STRICT)


def gif(screen, frames, global_palette=True):
    """A GIF of one-coloured frames (width, height, extensions before it, own palette)."""
    palette = bytes(range(6))
    flags = 0x80 if global_palette else 0
    parts = [b"GIF89a", struct.pack("<HHBBB", *screen, flags, 0, 0), palette if global_palette else b""]
    for width, height, num_extensions, own_palette in frames:
        parts.append((b"!\xfe" + b"\x05a,!;b" + b"\x02,," + b"\x00") * num_extensions)
        parts.append(b"," + struct.pack("<HHHHB", 0, 0, width, height, 0x80 if own_palette else 0))
        parts += [palette if own_palette else b"", one_colour_lzw(width * height)]
    return b"".join(parts) + b";"


def one_colour_lzw(num_pixels):
    """GIF's LZW of zeros, one code a pixel: codes of 3 bits, cleared before they would become longer."""
    codes = []
    for start in range(0, num_pixels, 2):
        codes += [4, *[0] * min(2, num_pixels - start)]
    bits = sum(code << 3 * i for i, code in enumerate([*codes, 5]))
    data = bits.to_bytes((3 * len(codes) + 3 + 7) // 8, "little")
    blocks = [data[i : i + 255] for i in range(0, len(data), 255)]
    return b"\x02" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\x00"


@pytest.mark.parametrize("global_palette", [True, False])
@pytest.mark.parametrize("own_palette", [True, False])
@pytest.mark.parametrize("num_extensions", [0, 1, 3])
def test_the_frames_of_a_gif_count_together(num_extensions, own_palette, global_palette):
    if not (own_palette or global_palette):
        pytest.skip("no colours")
    first = (WIDTH, HEIGHT, num_extensions, own_palette)

    def with_second_frame(height):
        return gif((WIDTH, HEIGHT), [first, (2 * WIDTH, height, num_extensions, own_palette)], global_palette)

    # Three bytes a pixel are allowed, and the first frame takes one.
    assert Pillow.open(io.BytesIO(with_second_frame(HEIGHT))).n_frames == 2
    allowed = replace(WIDE, width=2 * WIDTH)
    decode(with_second_frame(HEIGHT), allowed)
    refuses(with_second_frame(HEIGHT + 1), TOO_MANY_PIXELS, allowed)


def test_a_large_gif_with_a_small_screen_is_refused():
    large = bytearray(encode(Pillow.new("P", (4000, 3000)), "GIF"))
    large[6:10] = struct.pack("<HH", 1, 1)
    assert len(large) < 20_000
    refuses(bytes(large), TOO_MANY_PIXELS)


def test_one_bomb_refuses_its_batch():
    with pytest.raises(tf.errors.InvalidArgumentError, match=TOO_MANY_PIXELS):
        decoder(WIDE)(tf.constant([FILES["jpeg"], BOMBS["png"], FILES["gif"]]))


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_are_refused(name):
    data = FILES[name]
    # An animation that breaks off behind its first picture still holds that picture.
    length = len(data) // 3 if "animated" in name else len(data)
    for cut in {4, 16, 30, length // 4, length // 2, length - 2 - length // 20}:
        refuses(data[:cut])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\xff",
        b"B",
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        encode(RGB, "TIFF"),
        encode(RGB, "PPM"),
        encode(RGB, "ICO"),
        b"\xff\x0a" + bytes(100),
        b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(100),
        b"\x00\x00\x00\x1cftypavif" + bytes(100),
        b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(100),
        b"GIF89a" + bytes(100),
    ],
    ids=["empty", "zero", "ff", "b", "html", "lfs", "tiff", "ppm", "ico", "jxl", "jxl box", "avif", "wave", "gif 0x0"],
)
def test_other_files_are_no_pictures(data):
    refuses(data, UNKNOWN_FORMAT)


def test_bmp_that_tensorflow_would_misread_is_refused():
    refuses(palette_bmp(compression=1), UNKNOWN_FORMAT)  # run-length encoded; it would be read as plain
    refuses(encode(picture(1, "1"), "BMP"), UNKNOWN_FORMAT)  # eight pixels a byte


def test_animated_webp_is_refused_before_tensorflow_sees_it():
    # TensorFlow 2.21 corrupts the heap on it and ends the process sooner or later.
    data = encode(RGB, "WEBP", lossless=True, save_all=True, append_images=[picture(i) for i in range(20, 24)])
    assert Pillow.open(io.BytesIO(data)).n_frames == 5
    for _ in range(20):
        refuses(data, ANIMATED_WEBP)


@pytest.mark.parametrize("screen", [(WIDTH + 1, HEIGHT), (WIDTH, HEIGHT + 1)])
def test_a_gif_frame_smaller_than_the_screen_is_refused(screen):
    image = replace(WIDE, max_pixels=10**6)
    refuses(gif_with_screen(*screen), ODD_GIF, image)


def test_a_gif_with_transparent_parts_is_refused():
    refuses(encode(PALETTE, "GIF", transparency=3), ODD_GIF)


MAGIC = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\x40\x00\x00\x00WEBPVP8"]


@pytest.mark.parametrize("name", ["bmp palette", "webp", "webp lossless", "webp with alpha", "gif"])
def test_no_message_holds_the_bytes_of_the_file(name):
    # Python raises UnicodeDecodeError for such a message, in place of the error.
    start = FILES[name][: 9 if name == "gif" else 12 if name == "bmp palette" else 17]
    for rest in (b"", b"\xff\xfe", b"\xfe" * 10, b"\xfe" * 40, FILES[name][len(start) : 60]):
        refuses(start + rest, image=replace(WIDE, max_pixels=10**9))
    refuses(LONG_HEADER, "the palette is missing", replace(WIDE, max_pixels=10**9))


LONG_HEADER = LOSSLESS["bmp palette"][:14] + b"\xff\xff" + LOSSLESS["bmp palette"][16:]


@given(st.sampled_from(MAGIC), st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused(magic, data):
    refuses(magic + data)


@given(st.sampled_from(sorted(FILES)), st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_files_are_refused_or_give_a_picture_of_the_right_shape(name, data):
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    try:
        pixels = decode(bytes(content))
    except tf.errors.InvalidArgumentError:
        return
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert pixels.dtype == np.uint8
