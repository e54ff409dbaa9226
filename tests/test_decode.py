"""Decoding against Pillow, pixel by pixel, and everything that must be refused rather than decoded."""

import io
import struct
import zlib
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps

from easyrec_mm.data.decode import ANIMATED_WEBP, PARTIAL_GIF, TOO_MANY_PIXELS, UNKNOWN_FORMAT, decode_pictures, resize
from easyrec_mm.schema import Image

HEIGHT, WIDTH = 17, 21
NUM_PIXELS = HEIGHT * WIDTH
# Every picture below has NUM_PIXELS pixels or fewer: decoding it also shows that the limit itself is allowed.
WIDE = Image("img", HEIGHT, WIDTH, 3, "BILINEAR", True, NUM_PIXELS)
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
    return decoder(image)(tf.constant([data])).numpy()[0]


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


def pillow_pixels(data, mode="RGB"):
    return np.array(Pillow.open(io.BytesIO(data)).convert(mode))


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


def test_transparent_pixels_of_a_gif_are_black_and_the_others_as_pillow_has_them():
    data = encode(PALETTE, "GIF", transparency=3)
    is_transparent = np.array(PALETTE) == 3
    assert 0 < is_transparent.sum() < NUM_PIXELS
    expected = np.where(is_transparent[..., None], 0, pillow_pixels(data))
    np.testing.assert_array_equal(decode(data), expected)


def test_a_gif_frame_larger_than_the_screen_is_shown_whole():
    data = gif_with_screen(5, 6)
    np.testing.assert_array_equal(decode(data), pillow_pixels(data))


def gif_with_screen(width, height):
    data = encode(PALETTE, "GIF")
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


@pytest.mark.parametrize("name", ["png rgb", "jpeg", "jpeg grey", "png grey", "bmp palette", "webp with alpha"])
def test_one_channel_is_the_luma(name):
    # ITU-R BT.601, as Pillow's "L"; each of the two rounds in its own way.
    assert difference(decode(FILES[name], GREY)[..., 0], np.array(picture_of(name).convert("L"))) <= 1 + LOSSY * (
        name in LOSSY_FILES
    )


def picture_of(name):
    return Pillow.open(io.BytesIO(FILES[name])).convert("RGB")


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


# Resizing.


def noise(height, width, channels=3):
    return np.random.default_rng(11).integers(0, 256, (height, width, channels), np.uint8)


def resized(pixels, height, width, method="BILINEAR", antialias=True):
    image = Image("img", height, width, pixels.shape[2], method, antialias, 10**6)
    result = resize(tf.constant(pixels), image).numpy()
    assert result.dtype == np.uint8
    return result


@pytest.mark.parametrize(
    ("method", "filter_"),
    [
        ("BILINEAR", Pillow.Resampling.BILINEAR),
        ("BICUBIC", Pillow.Resampling.BICUBIC),
        ("LANCZOS3", Pillow.Resampling.LANCZOS),
    ],
)
@pytest.mark.parametrize("size", [(20, 31), (16, 16), (7, 50), (101, 99)])
def test_resize_with_antialias_equals_pillow(method, filter_, size):
    # Pillow cuts overshoots to 0-255 between its two passes, so keep away from there.
    pixels = noise(64, 48) // 4 + 96
    expected = Pillow.fromarray(pixels).resize((size[1], size[0]), filter_)
    assert difference(resized(pixels, *size, method), np.array(expected)) <= 2


def test_bilinear_without_antialias_takes_the_four_nearest_pixels():
    pixels = noise(40, 30)

    def weights(size, source):
        """[size, source]: position (i + 1/2) * source / size - 1/2, shared between its two neighbours."""
        matrix = np.zeros((size, source))
        for i in range(size):
            position = (i + 0.5) * source / size - 0.5
            low = int(np.floor(position))
            for neighbour, weight in ((low, 1 - (position - low)), (low + 1, position - low)):
                matrix[i, np.clip(neighbour, 0, source - 1)] += weight
        return matrix

    expected = np.einsum("ih,hwc,jw->ijc", weights(9, 40), pixels.astype(float), weights(13, 30))
    assert np.abs(resized(pixels, 9, 13, antialias=False) - expected).max() <= 0.51


def test_area_is_the_mean_of_the_pixels_it_covers():
    pixels = noise(40, 30)
    expected = pixels.reshape(10, 4, 15, 2, 3).astype(float).mean((1, 3))
    assert np.abs(resized(pixels, 10, 15, "AREA") - expected).max() <= 0.51


def test_nearest_takes_pixels_as_they_are():
    pixels = noise(40, 30)
    rows = ((np.arange(13) + 0.5) * 40 / 13).astype(int)
    columns = ((np.arange(70) + 0.5) * 30 / 70).astype(int)
    np.testing.assert_array_equal(resized(pixels, 13, 70, "NEAREST"), pixels[rows][:, columns])


@pytest.mark.parametrize("method", ["BILINEAR", "BICUBIC", "AREA", "NEAREST", "LANCZOS3"])
@pytest.mark.parametrize("antialias", [True, False])
def test_a_picture_of_the_right_size_passes_unchanged(method, antialias):
    pixels = noise(12, 9)
    np.testing.assert_array_equal(resized(pixels, 12, 9, method, antialias), pixels)


@pytest.mark.parametrize("method", ["BICUBIC", "LANCZOS3"])
def test_overshoot_is_cut_and_does_not_wrap(method):
    pixels = np.zeros((8, 8, 1), np.uint8)
    pixels[:, 4:] = 255
    result = resized(pixels, 16, 16, method)[0, :, 0].astype(int)
    # Left of the edge dark, right of it bright: a value that wrapped around would break that.
    assert (result[:7] < 60).all()
    assert (result[9:] > 195).all()


# Aspect ratios. With CENTER_CROP the target's size is fitted into the picture, with PAD the picture's into the target.

METHODS = ["BILINEAR", "BICUBIC", "AREA", "NEAREST", "LANCZOS3"]
POLICIES = ["STRETCH", "CENTER_CROP", "PAD"]
# Height and width of a picture and of the target; the part of the picture that CENTER_CROP leaves and the part of the
# target that PAD fills, both as (top, left, bottom, right).
SHAPES = {
    "wide": ((30, 80), (24, 16), (0, 30, 30, 50), (9, 0, 15, 16)),
    "tall": ((80, 30), (24, 16), (17, 0, 62, 30), (0, 3, 24, 12)),
    "a little wide": ((40, 45), (16, 16), (0, 2, 40, 42), (1, 0, 15, 16)),
    "enlarged": ((5, 9), (32, 32), (0, 2, 5, 7), (7, 0, 25, 32)),
    "a row": ((1, 1000), (24, 16), (0, 499, 1, 500), (11, 0, 12, 16)),
    "a column": ((1000, 1), (24, 16), (499, 0, 501, 1), (0, 7, 24, 8)),
    "same ratio": ((60, 90), (20, 30), (0, 0, 60, 90), (0, 0, 20, 30)),
    "not resized, cut or filled": ((24, 31), (24, 16), (0, 7, 24, 23), (6, 0, 18, 16)),
    "shorter only": ((17, 16), (24, 16), (0, 2, 17, 13), (3, 0, 20, 16)),
}
BY_SHAPE = pytest.mark.parametrize(("source", "target", "part", "place"), SHAPES.values(), ids=SHAPES)


def framed(pixels, height, width, policy, method="BILINEAR", antialias=True):
    image = Image("img", height, width, pixels.shape[2], method, antialias, 10**6, policy)
    result = resize(tf.constant(pixels), image).numpy()
    assert result.dtype == np.uint8
    return result


def fitted(size, frame):
    """The size, scaled to fit into the frame, in whole pixels."""
    factor = min(Fraction(f, s) for f, s in zip(frame, size, strict=True))
    return [max(1, round(factor * s)) for s in size]


def test_a_schema_that_says_nothing_stretches():
    assert Image("img", HEIGHT, WIDTH, 3, "BILINEAR", True, NUM_PIXELS).resize == "STRETCH"


@BY_SHAPE
def test_center_crop_equals_pillow(source, target, part, place):
    pixels = noise(*source)
    top, left, bottom, right = part
    cut = Pillow.fromarray(pixels).crop((left, top, right, bottom))
    expected = np.array(cut.resize(target[::-1], Pillow.Resampling.BILINEAR))
    assert difference(framed(pixels, *target, "CENTER_CROP"), expected) <= 2


@BY_SHAPE
def test_pad_equals_pillow(source, target, part, place):
    pixels = noise(*source)
    top, left, bottom, right = place
    expected = Pillow.new("RGB", target[::-1], (128, 128, 128))
    small = Pillow.fromarray(pixels).resize((right - left, bottom - top), Pillow.Resampling.BILINEAR)
    expected.paste(small, (left, top))
    assert difference(framed(pixels, *target, "PAD"), np.array(expected)) <= 2


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("shape", ["wide", "tall", "enlarged", "a row"])
def test_cutting_and_filling_leave_the_scaling_as_it_is(shape, method, antialias, channels):
    source, target, (top, left, bottom, right), place = SHAPES[shape]
    pixels = noise(*source, channels)
    expected = resized(pixels[top:bottom, left:right], *target, method, antialias)
    np.testing.assert_array_equal(framed(pixels, *target, "CENTER_CROP", method, antialias), expected)
    top, left, bottom, right = place
    expected = np.full((*target, channels), 128, np.uint8)
    expected[top:bottom, left:right] = resized(pixels, bottom - top, right - left, method, antialias)
    np.testing.assert_array_equal(framed(pixels, *target, "PAD", method, antialias), expected)


def test_center_crop_is_the_middle_of_the_picture_scaled_to_cover_the_target():
    pixels = noise(60, 100)
    scaled = resized(pixels, 30, 50, "AREA")
    np.testing.assert_array_equal(framed(pixels, 30, 30, "CENTER_CROP", "AREA"), scaled[:, 10:40])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("antialias", [True, False])
def test_no_policy_changes_a_picture_of_the_right_size(method, antialias, policy):
    pixels = noise(12, 9)
    np.testing.assert_array_equal(framed(pixels, 12, 9, policy, method, antialias), pixels)


SIDE = st.one_of(st.integers(1, 40), st.integers(1, 300))
SIZE = st.tuples(SIDE, SIDE)


@given(SIZE, SIZE, st.sampled_from(POLICIES), st.sampled_from(METHODS), st.booleans(), st.sampled_from([1, 3]))
@settings(max_examples=150, deadline=None)
def test_any_size_becomes_the_target_and_one_colour_stays_one_colour(
    source, target, policy, method, antialias, channels
):
    result = framed(np.full((*source, channels), 201, np.uint8), *target, policy, method, antialias)
    assert result.shape == (*target, channels)
    rows, columns, _ = np.nonzero(result != 128)
    filled = (np.ptp(rows) + 1, np.ptp(columns) + 1)
    inside = result[rows.min() :, columns.min() :][: filled[0], : filled[1]]
    np.testing.assert_array_equal(inside, np.full((*filled, channels), 201))
    if policy != "PAD":
        assert filled == target
        return
    assert list(filled) == fitted(source, target)
    assert max(np.abs(np.array(filled) / target)) == 1
    # The other side is where the picture's ratio puts it, within half a pixel.
    for side in (0, 1):
        exact = filled[1 - side] * source[side] / source[1 - side]
        assert filled[side] == target[side] or max(exact, 1) == pytest.approx(filled[side], abs=0.5 + 1e-9)
    # As much on the one hand as on the other, or one pixel less.
    assert (rows.min(), columns.min()) == tuple((t - f) // 2 for t, f in zip(target, filled, strict=True))


@given(SIZE, SIZE)
@settings(max_examples=100, deadline=None)
def test_center_crop_takes_the_largest_middle_part(source, target):
    """By the pixels themselves: each says where it stood."""
    rows, columns = np.meshgrid(np.arange(source[0]), np.arange(source[1]), indexing="ij")
    pixels = np.stack([rows % 256, columns % 256, rows // 256 * 16 + columns // 256], axis=2).astype(np.uint8)
    height, width = fitted(target, source)
    top, left = (source[0] - height) // 2, (source[1] - width) // 2
    part = pixels[top : top + height, left : left + width]
    expected = resized(part, *target, "NEAREST")
    np.testing.assert_array_equal(framed(pixels, *target, "CENTER_CROP", "NEAREST"), expected)


@pytest.mark.parametrize("policy", ["CENTER_CROP", "PAD"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_of_many_shapes_is_decoded_by_each_policy(policy, channels, tmp_path):
    """As it is used: in the graph of an exported model, each picture by itself."""
    image = Image("img", HEIGHT, WIDTH, channels, "BILINEAR", True, 10**6, policy)
    sizes = [(40, 30), (30, 40), (WIDTH, HEIGHT), (7, 60), (1, 90)]
    pictures = [RGB.resize(size) for size in sizes]
    module = tf.Module()
    module.decode = decoder(image)
    tf.saved_model.save(module, str(tmp_path))
    data = tf.constant([encode(one, "PNG") for one in pictures])
    decoded = tf.saved_model.load(str(tmp_path)).decode(data).numpy()
    for pixels, one in zip(decoded, pictures, strict=True):
        source = np.array(one)
        if channels == 1:
            source = tf.image.rgb_to_grayscale(source).numpy()
        np.testing.assert_array_equal(pixels, framed(source, HEIGHT, WIDTH, policy))


def test_a_larger_picture_is_decoded_and_then_resized():
    large = RGB.resize((60, 50))
    image = replace(WIDE, max_pixels=3000)
    expected = large.resize((WIDTH, HEIGHT), Pillow.Resampling.BILINEAR)
    assert difference(decode(encode(large, "PNG"), image), np.array(expected)) <= 2


# What must be refused.

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
    refuses(encode(picture(1, "1"), "BMP"), "channels")  # eight pixels a byte


def test_animated_webp_is_refused_before_tensorflow_sees_it():
    # TensorFlow 2.21 corrupts the heap on it and ends the process sooner or later.
    data = encode(RGB, "WEBP", lossless=True, save_all=True, append_images=[picture(i) for i in range(20, 24)])
    assert Pillow.open(io.BytesIO(data)).n_frames == 5
    for _ in range(20):
        refuses(data, ANIMATED_WEBP)


@pytest.mark.parametrize("screen", [(WIDTH + 1, HEIGHT), (WIDTH, HEIGHT + 1)])
def test_a_gif_frame_smaller_than_the_screen_is_refused(screen):
    image = replace(WIDE, max_pixels=10**6)
    refuses(gif_with_screen(*screen), PARTIAL_GIF, image)


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
