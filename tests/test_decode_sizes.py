"""Pictures that are resized, cut to a middle part or padded, against Pillow and plain references."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
from decode_helpers import HEIGHT, NUM_PIXELS, RGB, WIDE, WIDTH, decode, decoder, difference, encode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from easyrec_mm.data.decode import resize
from easyrec_mm.schema import Image

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
    data = tf.constant([encode(picture, "PNG") for picture in pictures])
    decoded = tf.saved_model.load(str(tmp_path)).decode(data).numpy()
    for pixels, picture in zip(decoded, pictures, strict=True):
        source = np.array(picture)
        if channels == 1:
            source = tf.image.rgb_to_grayscale(source).numpy()
        np.testing.assert_array_equal(pixels, framed(source, HEIGHT, WIDTH, policy))


def test_a_larger_picture_is_decoded_and_then_resized():
    large = RGB.resize((60, 50))
    image = replace(WIDE, max_pixels=3000)
    expected = large.resize((WIDTH, HEIGHT), Pillow.Resampling.BILINEAR)
    assert difference(decode(encode(large, "PNG"), image), np.array(expected)) <= 2
