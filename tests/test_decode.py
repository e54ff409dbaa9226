"""Decoding against Pillow, pixel by pixel, with the orientation of EXIF undone."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from decode_helpers import (
    FILES,
    GREY,
    HEIGHT,
    LOSSLESS,
    LOSSY,
    LOSSY_FILES,
    RGB,
    TALL,
    WIDE,
    WIDTH,
    decode,
    decoder,
    difference,
    encode,
    gif_with_screen,
    pillow_pixels,
)
from PIL import Image as Pillow
from PIL import ImageOps

from easyrec_mm.schema import Image


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_equal_pillow(name):
    np.testing.assert_array_equal(decode(LOSSLESS[name]), pillow_pixels(LOSSLESS[name]))


@pytest.mark.parametrize("name", LOSSY_FILES)
def test_lossy_formats_equal_pillow_within_rounding(name):
    assert difference(decode(LOSSY_FILES[name]), pillow_pixels(LOSSY_FILES[name])) <= LOSSY


def test_16_bit_grey_keeps_the_high_byte():
    values = np.random.default_rng(9).integers(0, 2**16, (HEIGHT, WIDTH)).astype(np.uint16)
    expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(encode(Pillow.fromarray(values), "PNG")), expected)


def test_a_gif_frame_larger_than_the_screen_is_shown_whole():
    data = gif_with_screen(5, 6)
    np.testing.assert_array_equal(decode(data), pillow_pixels(data))


@pytest.mark.parametrize("name", ["png rgb", "jpeg", "jpeg grey", "png grey", "bmp palette", "webp with alpha"])
def test_one_channel_is_the_luma(name):
    # ITU-R BT.601, as Pillow's "L"; each of the two rounds in its own way.
    assert difference(decode(FILES[name], GREY)[..., 0], np.array(picture_of(name).convert("L"))) <= 1 + LOSSY * (
        name in LOSSY_FILES
    )


def picture_of(name):
    return Pillow.fromarray(pillow_pixels(FILES[name]))


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "BMP", "JPEG", "WEBP"])
def test_one_pixel(file_format):
    image = Image("img", 1, 1, 3, "BILINEAR", True, 1)
    data = encode(Pillow.new("RGB", (1, 1), (200, 200, 200)), file_format)
    assert difference(decode(data, image), np.full((1, 1, 3), 200, np.uint8)) <= 1


def test_a_mixed_batch_decodes_each_picture_as_alone():
    turned = {f"exif {o}": with_exif(JPEG, exif_block(o, "<")) for o in range(1, 9)}
    files = list({**FILES, **turned}.values())
    together = decoder(WIDE)(tf.constant(files)).numpy()
    for pixels, data in zip(together, files, strict=True):
        np.testing.assert_array_equal(pixels, decode(data))


def test_no_picture_at_all():
    assert decoder(WIDE)(tf.constant([], tf.string)).shape == (0, HEIGHT, WIDTH, 3)


# EXIF. A block is a TIFF header and a directory of entries of 12 bytes.

JPEG = encode(RGB, "JPEG", quality=90)
TAG_MAKE, TAG_ORIENTATION, TAG_RESOLUTION, TAG_SOFTWARE = 0x010F, 0x0112, 0x011A, 0x0131


def exif_block(orientation, order, others=False):
    """APP1 segment of a JPEG; None leaves the orientation out, `others` puts entries around it."""
    entries = {TAG_ORIENTATION: (3, 1, struct.pack(f"{order}HH", orientation, 0))} if orientation else {}
    data = b""
    if others:
        start = 8 + 2 + 12 * (len(entries) + 3) + 4
        data = b"Maker of cameras\x00\x00" + struct.pack(f"{order}II", 72, 1) + b"Software 1.0\x00\x00"
        entries[TAG_MAKE] = (2, 17, struct.pack(f"{order}I", start))
        entries[TAG_RESOLUTION] = (5, 1, struct.pack(f"{order}I", start + 18))
        entries[TAG_SOFTWARE] = (2, 13, struct.pack(f"{order}I", start + 26))
    directory = b"".join(
        struct.pack(f"{order}HHI", tag, *entries[tag][:2]) + entries[tag][2] for tag in sorted(entries)
    )
    header = {"<": b"II*\x00\x08\x00\x00\x00", ">": b"MM\x00*\x00\x00\x00\x08"}[order]
    tiff = header + struct.pack(f"{order}H", len(entries)) + directory + bytes(4) + data
    payload = b"Exif\x00\x00" + tiff
    return b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload


def with_exif(data, block, after_jfif=False):
    at = 20 if after_jfif else 2  # behind the start of the picture, or behind the JFIF segment too
    assert data[2:4] == b"\xff\xe0"
    assert struct.unpack(">H", data[4:6])[0] == 16
    return data[:at] + block + data[at:]


def upright(data):
    return np.array(ImageOps.exif_transpose(Pillow.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("after_jfif", [False, True])
@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation, order, others, after_jfif):
    data = with_exif(JPEG, exif_block(orientation, order, others), after_jfif)
    expected = upright(data)
    assert expected.shape == ((HEIGHT, WIDTH, 3) if orientation < 5 else (WIDTH, HEIGHT, 3))
    assert (difference(pillow_pixels(data), expected) > 50) if 1 < orientation < 5 else True
    assert difference(decode(data, WIDE if orientation < 5 else TALL), expected) <= LOSSY


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_without_an_orientation_leaves_the_picture(order):
    data = with_exif(JPEG, exif_block(None, order, others=True))
    assert Pillow.open(io.BytesIO(data)).getexif()[TAG_MAKE] == "Maker of cameras"
    np.testing.assert_array_equal(decode(data), decode(JPEG))


def test_exif_as_pillow_writes_it():
    exif = Pillow.Exif()
    exif[TAG_MAKE], exif[TAG_ORIENTATION], exif[TAG_SOFTWARE] = "maker", 6, "software"
    data = encode(RGB, "JPEG", quality=90, exif=exif)
    assert difference(decode(data, TALL), upright(data)) <= LOSSY


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_that_does_not_exist_is_ignored(orientation):
    block = exif_block(1, "<").replace(struct.pack("<HHI", TAG_ORIENTATION, 3, 1) + b"\x01\x00", b"%b")
    block = block.replace(b"%b", struct.pack("<HHIH", TAG_ORIENTATION, 3, 1, orientation))
    np.testing.assert_array_equal(decode(with_exif(JPEG, block)), decode(JPEG))
