"""Pictures that only Pillow decodes: loaded as it shows them, refused with a reason where they are damaged."""

import io
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from decode_helpers import (
    BACKGROUND,
    FILES,
    HEIGHT,
    NUM_PIXELS,
    PALETTE,
    RGB,
    RGBA,
    TALL,
    WIDE,
    WIDTH,
    bmp,
    decode,
    encode,
    picture,
    pillow_pixels,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from test_decode import exif_block, with_exif

from easyrec_mm.data import whole_pictures
from easyrec_mm.data.decode import UNKNOWN_FORMAT
from easyrec_mm.data.picture_formats import ANIMATED_WEBP, ODD_GIF
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.data.plain_pictures import MAX_SCANS, plain_picture
from easyrec_mm.data.whole_pictures import ANY_PICTURE, decode_whole

ORIENTATION_TAG = 0x0112


def load(content, image=WIDE):
    pictures = PictureLoader(image).decode([content], {})
    assert pictures.problems == {}
    return pictures.pixels[0].numpy()


def problem(content, image=WIDE):
    return PictureLoader(image).decode([content], {}).problems[0]


def turned(orientation):
    exif = Pillow.Exif()
    exif[ORIENTATION_TAG] = orientation
    return exif


def bmp_of_masks(values, masks):
    """A BMP of numbers `[h, w]`, the masks of whose channels (red, green, blue, alpha) stand in its header."""
    bits = values.dtype.itemsize * 8
    height, width = values.shape
    rows = np.pad(values[::-1], ((0, 0), (0, -width % (32 // bits)))).tobytes()  # of whole groups of four bytes
    fields = (108, width, height, 1, bits, 3, len(rows), 0, 0, 0, 0, *masks)
    header = struct.pack("<IiiHHIIiiIIIIII", *fields) + bytes(108 - 56)
    return b"BM" + struct.pack("<IHHI", 122 + len(rows), 0, 0, 122) + header + rows


def os2_bmp():
    """24 bits, the header of OS/2 with sides of 16 bits, rows padded to four bytes."""
    pixels = np.array(RGB)[::-1, :, ::-1]
    rows = np.pad(pixels.reshape(HEIGHT, -1), ((0, 0), (0, -3 * WIDTH % 4))).tobytes()
    return b"BM" + struct.pack("<IHHIIHHHH", 26 + len(rows), 0, 0, 26, 12, WIDTH, HEIGHT, 1, 24) + rows


def rle_bmp(indices, palette):
    """Each row as runs of one pixel, then the end of the line."""
    rows = b"".join(b"".join(bytes([1, index]) for index in row) + b"\x00\x00" for row in indices[::-1].tolist())
    return bmp(WIDTH, HEIGHT, 8, rows + b"\x00\x01", palette.tobytes(), compression=1)


RANDOM = np.random.default_rng(11)
COLOURS = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
ABGR = (COLOURS.astype(np.uint32) * [1 << 24, 1 << 16, 1 << 8, 1]).sum(2, dtype=np.uint32)  # not the usual order
RGB565 = (COLOURS[..., 0] >> 3).astype(np.uint16) << 11 | (COLOURS[..., 1] >> 2).astype(np.uint16) << 5
RGB565 |= COLOURS[..., 2] >> 3
INDICES, BGR0 = RANDOM.integers(0, 256, (HEIGHT, WIDTH), np.uint8), RANDOM.integers(0, 256, (256, 4), np.uint8)
ODD = {
    "bmp of 1 bit": encode(picture(1, "1"), "BMP"),
    "bmp of OS/2": os2_bmp(),
    "bmp of run lengths": rle_bmp(INDICES, BGR0),
    "gif with a transparent colour": encode(PALETTE, "GIF", transparency=3),
    "gif animated, with a transparent colour": encode(
        PALETTE, "GIF", transparency=3, save_all=True, append_images=[PALETTE.rotate(180)], disposal=2
    ),
    "webp animated": encode(RGB, "WEBP", lossless=True, save_all=True, append_images=[RGB.rotate(180)]),
    "webp animated, with alpha": encode(
        RGBA, "WEBP", lossless=True, exact=True, save_all=True, append_images=[RGBA.rotate(180)]
    ),
    "avif": encode(RGB, "AVIF"),
    "avif with alpha": encode(RGBA, "AVIF", quality=100),
}
ALL = {**FILES, **ODD}


@pytest.mark.parametrize("name", ODD)
def test_they_are_what_pillow_shows(name):
    np.testing.assert_array_equal(load(ODD[name]), pillow_pixels(ODD[name]))


def test_channels_lie_where_the_masks_of_a_bmp_say():
    opaque = bmp_of_masks(ABGR, (0xFF << 24, 0xFF << 16, 0xFF << 8, 0))
    np.testing.assert_array_equal(load(opaque), COLOURS[..., :3])
    np.testing.assert_array_equal(load(bmp_of_masks(RGB565, (0xF800, 0x07E0, 0x001F, 0))) >> 3, COLOURS[..., :3] >> 3)


def test_run_lengths_and_os2_are_the_colours_that_were_written():
    np.testing.assert_array_equal(load(ODD["bmp of run lengths"]), BGR0[INDICES][..., 2::-1])
    np.testing.assert_array_equal(load(ODD["bmp of OS/2"]), np.array(RGB))


def test_a_gif_frame_that_does_not_fill_its_screen_lies_on_the_background():
    small = encode(PALETTE, "GIF")
    screen = small[:6] + struct.pack("<HH", WIDTH + 4, HEIGHT + 3) + small[10:]
    image = replace(WIDE, width=WIDTH + 4, height=HEIGHT + 3, max_pixels=1000)
    expected = pillow_pixels(screen)
    np.testing.assert_array_equal(load(screen, image), expected)
    np.testing.assert_array_equal(expected[:HEIGHT, :WIDTH], pillow_pixels(small))


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), BACKGROUND])
@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF", "AVIF"])
def test_black_lines_on_nothing_are_seen(file_format, background):
    """All of them would be the same black picture without a background."""
    lines = Pillow.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0))
    lines.paste((0, 0, 0, 255), (2, 3, 6, 9))
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(file_format, {})
    pixels = load(encode(lines, file_format, **options), replace(WIDE, background=background))
    expected = np.full((HEIGHT, WIDTH, 3), background)
    expected[3:9, 2:6] = 0
    assert np.abs(pixels.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "AVIF"])
def test_exif_is_undone_in_every_format(file_format, orientation):
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(file_format, {})
    content = encode(RGB, file_format, exif=turned(orientation), **options)
    plain = encode(RGB, file_format, **options)
    transpose = [None, 0, 3, 1, 5, 4, 6, 2][orientation - 1]  # Pillow's numbers of what undoes it
    upright = Pillow.open(io.BytesIO(plain)).convert("RGB")
    upright = upright if transpose is None else upright.transpose(Pillow.Transpose(transpose))
    np.testing.assert_array_equal(load(content, WIDE if orientation < 5 else TALL), np.array(upright))


def test_an_exif_chunk_behind_the_picture_counts():
    content = encode(RGB, "PNG", exif=turned(3))
    start = content.index(b"eXIf") - 4
    length = 12 + struct.unpack(">I", content[start : start + 4])[0]
    moved = content[:start] + content[start + length : -12] + content[start : start + length] + content[-12:]
    np.testing.assert_array_equal(load(moved), np.array(RGB.rotate(180)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(sorted(ALL)), min_size=1, max_size=6), st.integers(0, 8), st.integers(0, 6))
def test_a_picture_does_not_depend_on_the_others(names, orientation, place):
    contents = [ALL[name] for name in names]
    if orientation:
        contents.insert(place, with_exif(FILES["jpeg"], exif_block(orientation, "<")))
    together = PictureLoader(WIDE).decode(contents, {})
    assert together.problems == {}
    for pixels, content in zip(together.pixels.numpy(), contents, strict=True):
        np.testing.assert_array_equal(pixels, load(content))


@pytest.mark.parametrize("name", ODD)
def test_what_is_damaged_or_too_large_is_told(name):
    assert problem(ODD[name], replace(WIDE, max_pixels=NUM_PIXELS - 1)) == (
        f"has more than {NUM_PIXELS - 1} pixels (data_config.max_image_pixels)"
    )
    assert problem(ODD[name][: len(ODD[name]) // 3]).startswith(("is damaged: ", "is not a "))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(ODD)), st.data())
def test_damaged_ones_give_a_picture_or_a_reason(name, data):
    content = bytearray(ODD[name])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=5)):
        content[place] = data.draw(st.integers(0, 255))
    pictures = PictureLoader(replace(WIDE, max_pixels=10**6)).decode([bytes(content)], {})
    assert pictures.pixels.shape == (1, HEIGHT, WIDTH, 3)
    assert all(text and "\n" not in text for text in pictures.problems.values())


def test_a_jpeg_of_very_many_scans_is_refused():
    progressive = encode(RGB, "JPEG", progressive=True)
    at = progressive.rindex(b"\xff\xda")
    scan = progressive[at:-2]
    assert load(progressive).shape == (HEIGHT, WIDTH, 3)
    content = progressive[:-2] + scan * MAX_SCANS + b"\xff\xd9"
    assert problem(content).endswith(f"scans, more than {MAX_SCANS}")


@pytest.mark.parametrize("name", FILES)
def test_a_graph_decodes_all_others_by_itself(name):
    """What `encoded` of an exported model takes is what training takes; of the odd ones it refuses all."""
    if not name.startswith("gif"):
        assert plain_picture(FILES[name], WIDE) is FILES[name]
    np.testing.assert_array_equal(decode(FILES[name]), load(FILES[name]))


@pytest.mark.parametrize("name", ODD)
def test_a_graph_refuses_them(name):
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{UNKNOWN_FORMAT}|{ODD_GIF}|{ANIMATED_WEBP}"):
        decode(ODD[name])


def test_threads_that_decode_their_first_pictures_share_a_decoder(monkeypatch):
    """TensorFlow warns of functions that are compiled again and again, and compiling takes longer than decoding."""
    compile_function = tf.function

    def compile_slowly(*arguments, **settings):
        time.sleep(0.05)
        compiled.append(settings)
        return compile_function(*arguments, **settings)

    compiled = []
    monkeypatch.setattr(tf, "function", compile_slowly)
    monkeypatch.setattr(whole_pictures, "decode_picture", lambda data, image: tf.zeros([1, image.width, 3], tf.uint8))
    content, image = encode(RGB, "PNG"), replace(ANY_PICTURE, width=7)
    with ThreadPoolExecutor(8) as pool:
        decoded = list(pool.map(lambda _: decode_whole(content, image), range(8)))
    assert [pixels.shape for pixels in decoded] == [(1, 7, 3)] * 8
    assert len(compiled) == 1
