"""Augmentation: each change against plain NumPy, and the random numbers behind them."""

import colorsys

import keras
import numpy as np
import pytest
import tensorflow as tf

from easyrec_mm.network.layers.augmentation import Augmentation

NUM, HEIGHT, WIDTH = 300, 12, 20
ALL = {
    "random_resized_crop_min_area": 0.3,
    "horizontal_flip": True,
    "brightness": 0.2,
    "contrast": 0.3,
    "saturation": 0.4,
    "hue": 0.1,
    "random_erasing": 0.5,
}
EACH = pytest.mark.parametrize("settings", [{name: value} for name, value in ALL.items()], ids=ALL)


def noise(num=NUM, height=HEIGHT, width=WIDTH, channels=3, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (num, height, width, channels), np.uint8)


def augmented(pixels, seed=0, **settings):
    """By a new layer, in training."""
    result = Augmentation(**settings, seed=seed)(tf.constant(pixels), training=True)
    assert result.dtype == tf.uint8
    assert result.shape == pixels.shape
    return result.numpy()


def assert_uniform(values, low, high, slack=0.0):
    """None lies more than `slack` outside, and the distribution is not told from the uniform one (Kolmogorov)."""
    values = np.sort(values)
    assert low - slack <= values[0]
    assert values[-1] <= high + slack
    share = (np.arange(len(values)) + 0.5) / len(values)
    assert np.abs((values - low) / (high - low) - share).max() < 1.8 / np.sqrt(len(values))


def assert_close(result, expected, tolerance):
    assert np.abs(result.astype(float) - np.clip(expected, 0, 255)).max() <= tolerance


# Off


def test_all_off_is_the_identity_and_has_no_state():
    layer = Augmentation()
    np.testing.assert_array_equal(layer(noise(), training=True), noise())
    assert layer.variables == []


@EACH
def test_evaluation_is_the_identity_and_draws_nothing(settings):
    layer = Augmentation(**settings)
    np.testing.assert_array_equal(layer(noise()), noise())
    np.testing.assert_array_equal(layer(noise(), training=False), noise())
    np.testing.assert_array_equal(layer.variables[0], [0, 0])


# Crop

MIN_AREA = 0.3


def crop_reference(pixels, draws, min_area):
    """The windows by the text of the docstring, each enlarged by linear interpolation between the centres of pixels."""
    result = np.empty(pixels.shape)
    for picture, (area, stretch, *place), out in zip(pixels.astype(float), draws, result, strict=True):
        area = min_area + (1 - min_area) * area
        limit = min(4 / 3, 1 / area)
        ratio = limit ** (2 * stretch - 1)
        shares = np.sqrt([area / ratio, area * ratio])
        weights = []
        for side, share, where in zip(picture.shape[:2], shares, place, strict=True):
            at = where * (1 - share) * side + share * (np.arange(side) + 0.5) - 0.5
            distance = np.abs(np.clip(at, 0, side - 1)[:, None] - np.arange(side))
            weights.append(np.maximum(0, 1 - distance))
        out[:] = np.einsum("ih,hwc,jw->ijc", weights[0], picture, weights[1])
    return result


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("min_area", [0.05, 0.9])
def test_crop_is_a_window_enlarged(min_area, channels):
    pixels = noise(50, channels=channels)
    draws = keras.random.uniform([50, 4], seed=keras.random.SeedGenerator(7)).numpy().astype(float)
    result = augmented(pixels, 7, random_resized_crop_min_area=min_area)
    assert_close(result, crop_reference(pixels, draws, min_area), 0.51)


def windows(min_area):
    """Start and share `[P, 2]` of each window, in y and x, read from pictures that show where their pixels stand."""
    side, scale = 64, 4
    y, x = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5, indexing="ij")
    pixels = np.tile((scale * np.stack([y, x, 0 * x], axis=2)).astype(np.uint8), (NUM, 1, 1, 1))
    result = augmented(pixels, random_resized_crop_min_area=min_area).astype(float)
    assert (result[..., 0] == result[:, :, :1, 0]).all()
    assert (result[..., 1] == result[:, :1, :, 1]).all()
    inner = slice(side // 4, -side // 4)  # at the border it goes no further than the centre of the last pixel
    starts, shares = [], []
    for lines in (result[:, inner, 0, 0].T, result[:, 0, inner, 1].T):
        at = x[0, inner]
        slope, offset = np.polyfit(at, lines, 1)
        assert np.abs(lines - np.outer(at, slope) - offset).max() <= 1
        shares.append(slope / scale)
        starts.append(offset / scale / side)
    return np.stack(starts, axis=1), np.stack(shares, axis=1)


def test_windows_have_the_area_ratio_and_place_they_should():
    start, share = windows(MIN_AREA)
    area, ratio = share.prod(axis=1), share[:, 1] / share[:, 0]
    assert_uniform(area, MIN_AREA, 1, 0.005)
    log_limit = np.minimum(np.log(4 / 3), -np.log(np.minimum(area, 0.999)))
    large = log_limit > 0.05
    assert_uniform(np.log(ratio[large]) / log_limit[large], -1, 1, 0.1)
    assert (start > -0.005).all()
    assert (start + share < 1.005).all()
    for axis in (0, 1):
        small = share[:, axis] < 0.9
        assert small.sum() > NUM / 2
        assert_uniform(start[small, axis] / (1 - share[small, axis]), 0, 1, 0.05)


def test_windows_of_almost_the_whole_keep_their_area():
    _, share = windows(0.9)
    assert_uniform(share.prod(axis=1), 0.9, 1, 0.005)


# Flip


def test_half_of_the_pictures_are_mirrored_exactly():
    pixels = noise(channels=1)
    result = augmented(pixels, horizontal_flip=True)
    same = (result == pixels).all(axis=(1, 2, 3))
    mirrored = (result == pixels[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 2 / np.sqrt(NUM)


# Colours


def test_brightness_adds_one_number():
    pixels = noise()
    result = augmented(pixels, brightness=0.2)
    inside = (pixels > 51) & (pixels < 204)
    change = np.mean(result.astype(float) - pixels, axis=(1, 2, 3), where=inside)
    assert_close(result, pixels + change[:, None, None, None], 0.51 + 0.01)
    assert_uniform(change, -51, 51, 0.5)


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_contrast_multiplies_the_distance_from_the_mean(strength):
    pixels = noise()
    result = augmented(pixels, contrast=strength)
    mean = pixels.mean(axis=(1, 2), keepdims=True)
    distance = pixels - mean
    near = distance * (np.abs(distance) < 50)
    factor = ((result - mean) * near).sum(axis=(1, 2, 3)) / (near**2).sum(axis=(1, 2, 3))
    assert_close(result, mean + factor[:, None, None, None] * distance, 1.1)
    assert_uniform(factor, 1 - strength, 1 + strength, 0.005)


def in_hsv(pixels, change):
    """The pixels after `change(picture, hue, saturation, value)` of each, all in 0-1."""
    result = np.empty(pixels.shape)
    for place in np.ndindex(pixels.shape[:3]):
        hsv = colorsys.rgb_to_hsv(*(pixels[place] / 255))
        result[place] = 255 * np.array(colorsys.hsv_to_rgb(*change(place[0], *hsv)))
    return result


def small_pictures(first):
    """Any colours, but for the first pixel."""
    pixels = noise(NUM, 2, 3)
    pixels[:, 0, 0] = first
    return pixels


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_saturation_is_multiplied(strength):
    pixels = small_pictures((250, 125, 125))  # saturation 1/2
    result = augmented(pixels, saturation=strength)
    factor = 2 * (1 - result[:, 0, 0, 1:].astype(float).mean(axis=1) / 250)
    expected = in_hsv(pixels, lambda i, hue, saturation, value: (hue, min(1, factor[i] * saturation), value))
    assert_close(result, expected, 1.5)
    assert 1 - strength - 0.005 <= factor.min() < 1 - 0.9 * strength
    assert 1 + 0.9 * strength < factor.max() <= 1 + strength + 0.005
    assert_uniform(factor / (1 + factor), *((1 + s) / (2 + s) for s in (-strength, strength)), 0.005)


def test_hue_is_turned():
    pixels = small_pictures((255, 0, 0))  # hue 0
    result = augmented(pixels, hue=0.5)
    turn = np.array([colorsys.rgb_to_hsv(*(picture[0, 0] / 255))[0] for picture in result])
    turn = np.where(turn > 0.5, turn - 1, turn)
    expected = in_hsv(pixels, lambda i, hue, saturation, value: ((hue + turn[i]) % 1, saturation, value))
    assert_close(result, expected, 1.1)
    assert_uniform(turn, -0.25, 0.25, 0.002)


@pytest.mark.parametrize("settings", [{"saturation": 0.5}, {"hue": 0.5}])
def test_grey_has_no_colour_to_change(settings):
    pixels = np.repeat(noise(channels=1), 3, axis=3)
    np.testing.assert_array_equal(augmented(pixels, **settings), pixels)


@pytest.mark.parametrize("settings", [{"saturation": 0.1}, {"hue": 0.1}])
def test_one_channel_has_no_colours(settings):
    with pytest.raises(ValueError, match="saturation and hue need pictures of 3 channels; these have 1"):
        augmented(noise(channels=1), **settings)


# Erasing


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_erasing_fills_a_rectangle_with_grey(probability, channels):
    height, width = 40, 60
    pixels = noise(NUM, height, width, channels, high=128)
    result = augmented(pixels, random_erasing=probability)
    is_erased = (result != pixels).any(axis=3)
    sides, places = [], []
    for picture, original, erased in zip(result, pixels, is_erased, strict=True):
        if not erased.any():
            continue
        (top, left), (bottom, right) = np.argwhere(erased).min(axis=0), np.argwhere(erased).max(axis=0) + 1
        expected = original.copy()
        expected[top:bottom, left:right] = 128
        np.testing.assert_array_equal(picture, expected)
        sides.append([(bottom - top) / height, (right - left) / width])
        places.append([top / (height - bottom + top), left / (width - right + left)])
    assert abs(len(sides) / NUM - probability) < 2 / np.sqrt(NUM)
    for axis, side in enumerate((height, width)):
        share = np.array(sides)[:, axis]
        assert share.min() >= np.sqrt(0.02) - 1 / side
        assert share.max() <= np.sqrt(0.33) + 1 / side
        assert_uniform(share**2, 0.02, 0.33, 2 / side)
        assert_uniform(np.array(places)[:, axis], 0, 1, 0.05)


# All of them: whose random numbers they are, and where they come from.


@EACH
def test_each_picture_has_random_numbers_of_its_own(settings):
    picture = noise(1)
    result = augmented(np.repeat(picture, 40, axis=0), **settings)
    different = np.unique(result, axis=0)
    assert len(different) == 2 if "horizontal_flip" in settings else len(different) > 15
    # No picture depends on what the others show.
    mixed = noise(40, seed=1)
    mixed[::2] = picture
    np.testing.assert_array_equal(augmented(mixed, **settings)[::2], result[::2])


def test_the_order_is_crop_flip_colours_erasing():
    pixels = noise(8)
    layer = Augmentation(**ALL, seed=5)
    together = layer(pixels, training=True).numpy()
    draws = keras.random.SeedGenerator(5)
    one_by_one = pixels
    for name, value in ALL.items():
        step = Augmentation(**{name: value})
        step.build(pixels.shape)
        step.variables[0].assign(draws.state)
        one_by_one = step(one_by_one, training=True).numpy()
        draws.state.assign(step.variables[0])
    # Between the steps this one rounds.
    assert np.abs(together.astype(int) - one_by_one).max() <= 8
    np.testing.assert_array_equal((together == 128).all(axis=3), (one_by_one == 128).all(axis=3))
    assert (together == 128).all(axis=3).any()


def test_a_seed_says_the_whole_sequence():
    def sequence(seed):
        layer = Augmentation(**ALL, seed=seed)
        return np.stack([layer(noise(4), training=True) for _ in range(3)])

    first = sequence(3)
    keras.layers.RandomFlip()  # Keras names and seeds by what there was before
    np.testing.assert_array_equal(sequence(3), first)
    assert (sequence(4) != first).any(axis=(1, 2, 3, 4)).all()
    assert len(np.unique(first, axis=0)) == 3


def traced(layer):
    """The layer in training, as a graph for any number of pictures."""
    signature = [tf.TensorSpec([None, HEIGHT, WIDTH, 3], tf.uint8)]
    return tf.function(lambda pixels: layer(pixels, training=True), input_signature=signature, autograph=False)


def test_draws_go_on_where_a_restored_state_stopped():
    layer = Augmentation(**ALL, seed=3)
    run = traced(layer)
    for _ in range(3):
        run(noise(4))
    state = {variable.path: variable.numpy() for variable in layer.variables}
    assert list(state) == ["augmentation/draws/seed_generator_state"]
    expected = [run(noise(4)).numpy() for _ in range(2)]
    other = Augmentation(**ALL, seed=99)
    other(noise(1))
    for variable in other.variables:
        variable.assign(state[variable.path])
    run = traced(other)
    for pixels in expected:
        np.testing.assert_array_equal(run(noise(4)), pixels)


def test_a_graph_takes_any_number_of_pictures_and_equals_the_eager_layer():
    run, eager = traced(Augmentation(**ALL)), Augmentation(**ALL)
    for num in (5, 0, 1, 9):
        np.testing.assert_array_equal(run(noise(num)), eager(noise(num), training=True))


def test_initial_weights_are_the_same_with_and_without():
    def weights(settings):
        keras.utils.set_random_seed(1)
        Augmentation(**settings)
        layer = keras.layers.Dense(4)
        layer.build((None, 3))
        return layer.kernel.numpy()

    np.testing.assert_array_equal(weights(ALL), weights({}))


def test_the_global_dtype_policy_does_not_round_pixels():
    before = keras.config.dtype_policy()
    expected = augmented(noise(8), **ALL)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        np.testing.assert_array_equal(augmented(noise(8), **ALL), expected)
    finally:
        keras.config.set_dtype_policy(before)
