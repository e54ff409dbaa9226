"""Colours and edges of pictures as numbers, against NumPy, pixel by pixel; numbers normalised by averages."""

from itertools import product

import numpy as np
import pytest
import tensorflow as tf

from easyrec_mm.network.layers.descriptors import Descriptors
from easyrec_mm.network.layers.dnn import RunningNorm


def pictures(height, width, channels, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels)).astype(np.uint8)


def mean_of(picture, top, bottom, left, right):
    """Mean colour of a rectangle whose edges may cut pixels."""
    total, area = np.zeros(picture.shape[-1]), 0.0
    for y, x in product(range(picture.shape[0]), range(picture.shape[1])):
        share = max(0.0, min(bottom, y + 1) - max(top, y)) * max(0.0, min(right, x + 1) - max(left, x))
        total, area = total + share * picture[y, x], area + share
    return total / area


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 3), (10, 7, 3), (9, 6, 1)])
def test_grid_of_mean_colours(height, width, channels):
    given = pictures(height, width, channels)
    expected = [
        [
            mean_of(picture / 127.5 - 1, i * height / 4, (i + 1) * height / 4, j * width / 4, (j + 1) * width / 4)
            for i, j in product(range(4), range(4))
        ]
        for picture in given
    ]
    descriptors = Descriptors(4, 0, 0)(tf.constant(given))
    np.testing.assert_allclose(descriptors, np.reshape(expected, (3, -1)), atol=1e-5)


def histogram(pixels, bins):
    """Counts of the colours of a cube: each pixel, below full brightness, counts for the corners around it."""
    counts = np.zeros((bins,) * pixels.shape[-1])
    for pixel in pixels.reshape(-1, pixels.shape[-1]) / 255 * (bins - 1):
        for corner in product(*((int(value), int(value) + 1) for value in pixel)):
            counts[corner] += np.prod(1 - np.abs(pixel - corner))
    return counts


@pytest.mark.parametrize(("channels", "bins"), [(3, 4), (1, 6)])
def test_histograms_of_the_whole_and_of_its_middle(channels, bins):
    given = np.minimum(pictures(12, 8, channels), 254)
    descriptors = Descriptors(0, bins, 0)(tf.constant(given)).numpy()
    assert descriptors.shape == (3, 2 * bins**channels)
    for picture, row in zip(given, descriptors, strict=True):
        for part, roots in ((picture, row[: bins**channels]), (picture[3:9, 2:6], row[bins**channels :])):
            shares = histogram(part, bins).ravel() / (part.shape[0] * part.shape[1])
            np.testing.assert_allclose(roots**2, shares, atol=1e-5)
            assert shares.sum() == pytest.approx(1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("settings", [(4, 3, 5), (0, 3, 4), (4, 0, 5), (2, 3, 0)])
def test_width_is_the_number_of_descriptors(settings, channels):
    descriptors = Descriptors(*settings)
    assert descriptors(tf.constant(pictures(12, 8, channels))).shape[1] == descriptors.width(channels)


def test_large_pictures_are_counted_at_a_smaller_size():
    plain = np.full((1, 200, 130, 3), 255, np.uint8)
    descriptors = Descriptors(2, 3, 0)(tf.constant(plain)).numpy()[0]
    np.testing.assert_allclose(descriptors[:12], 1.0, rtol=1e-5)
    np.testing.assert_allclose(descriptors[[12 + 26, 12 + 53]], 1.0, rtol=1e-5)
    assert np.abs(np.delete(descriptors, [*range(12), 38, 65])).max() < 1e-3


def strengths_of_edges(picture, grid):
    """Shares `[grid, grid, directions]` of a picture whose sides the grid divides."""
    height, width = picture.shape[:2]
    brightness = np.pad(picture.mean(axis=2) / 255, 1, mode="edge")
    strengths = np.zeros((grid, grid, 8))
    for y, x in product(range(height), range(width)):
        across = (brightness[y + 1, x + 2] - brightness[y + 1, x]) / 2
        down = (brightness[y + 2, x + 1] - brightness[y, x + 1]) / 2
        for direction in range(8):
            near = max(np.cos(2 * (np.arctan2(down, across) - np.pi * direction / 8)), 0.0)
            strengths[y * grid // height, x * grid // width, direction] += near**3 * np.hypot(across, down)
    return strengths / strengths.sum()


@pytest.mark.parametrize(("grid", "columns"), [(4, 2), (3, 2), (1, 1)])
def test_directions_of_edges(grid, columns):
    given = pictures(12, 24, 3)
    descriptors = Descriptors(0, 0, grid)(tf.constant(given)).numpy().reshape(3, grid, columns, 8)
    for picture, roots in zip(given, descriptors, strict=True):
        both = strengths_of_edges(picture, grid) + strengths_of_edges(picture[:, ::-1], grid)
        np.testing.assert_allclose(roots**2, both[:, :columns] / 2, atol=1e-5)


def test_running_norm_is_the_same_in_training_and_later():
    norm = RunningNorm(momentum=0.9)
    batches = np.random.default_rng(1).normal(3.0, 2.0, (5, 16, 4)).astype(np.float32)
    mean, square, weight = np.zeros(4), np.zeros(4), 0.0
    for batch in batches:
        normalised = norm(tf.constant(batch), training=True)
        weight = 0.9 * weight + 0.1
        mean += 0.1 / weight * (batch.mean(axis=0) - mean)
        square += 0.1 / weight * ((batch**2).mean(axis=0) - square)
        expected = (batch - mean) / np.sqrt(square - mean**2 + 1e-3)
        np.testing.assert_allclose(normalised, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(norm(tf.constant(batch)), normalised, rtol=1e-6)
    # After the first batch the averages are its moments.
    first = RunningNorm()
    np.testing.assert_allclose(first(tf.constant(batches[0]), training=True).numpy().mean(axis=0), 0, atol=1e-5)
