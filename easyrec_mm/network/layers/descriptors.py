"""Descriptors of the colours and edges of pictures, without trained weights. P pictures, H x W pixels."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

# Pictures are reduced to this side before colours are counted and edges are detected: finer details are noise.
_LARGEST_SIDE = 64
# Number of edge directions, from 0 to 180 degrees, and how sharply neighbouring directions are separated.
_NUM_DIRECTIONS, _SHARPNESS = 8, 3
# Added under square roots, which have no gradient at 0.
_TINY = 1e-12


class Descriptors:
    """Descriptors of pictures: mean colours of the cells of a grid, colour histograms, and histograms of edges.

    The colour grid is MPEG-7's colour layout (Kasutani and Yamada, ICIP 2001) without its cosine transform. The colour
    histograms (Swain and Ballard, IJCV 1991) cover the whole picture and its middle half: a pixel counts for the
    nearest colours of a cube of `colour_bins` ^ channels, divided linearly between the two nearest bins of each
    channel. Edges are described by histograms of the direction of the brightness gradient in each cell of a grid (HOG,
    Dalal and Triggs, CVPR 2005), as shares of the whole picture; those of the left half and of the mirrored right half
    are averaged, because a mirrored thing is the same thing. With the square roots of shares, the Euclidean distance
    becomes the Hellinger distance.

    Args:
      colour_grid: cells along each side; 0 for no grid of colours.
      colour_bins: colours along each side of the cube; 0 for no histograms.
      edge_grid: cells along each side; 0 for no edges.
    """

    def __init__(self, colour_grid: int, colour_bins: int, edge_grid: int) -> None:
        self._grid, self._bins, self._edge_grid = colour_grid, colour_bins, edge_grid

    def width(self, channels: int) -> int:
        """Return the number of descriptors of a picture."""
        num_colours = 2 * math.prod([self._bins] * channels)
        num_edges = self._edge_grid * math.ceil(self._edge_grid / 2) * _NUM_DIRECTIONS
        return self._grid * self._grid * channels + num_colours + num_edges

    def __call__(self, pixels: tf.Tensor) -> tf.Tensor:
        """Map `[P, H, W, C]`, 0-255, to float32 `[P, width(C)]`.

        Mean colours are from -1 to 1, square roots of shares from 0 to 1.
        """
        x = tf.cast(pixels, tf.float32) / 255.0
        height, width, channels = x.shape[1:]
        parts = []
        if self._grid:
            cells = _smaller(x, self._grid, self._grid)
            parts.append(2.0 * tf.reshape(cells, [-1, self._grid**2 * channels]) - 1.0)
        small = _smaller(x, min(height, _LARGEST_SIDE), min(width, _LARGEST_SIDE))
        height, width = small.shape[1:3]
        if self._bins:
            middle = small[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
            parts += [self._histogram(small), self._histogram(middle)]
        if self._edge_grid:
            parts.append(self._edges(tf.reduce_mean(small, axis=3)))
        return tf.concat(parts, axis=1)

    def _edges(self, brightness: tf.Tensor) -> tf.Tensor:
        """Map brightness `[P, h, w]` to `[P, edge_grid * ceil(edge_grid / 2) * directions]`.

        A gradient of angle a adds its length times max(cos(2 (a - d)), 0) ^ sharpness to direction d: a soft bin for
        which the angle need not be computed.
        """
        x = tf.pad(brightness, [[0, 0], [1, 1], [1, 1]], "SYMMETRIC")
        across = (x[:, 1:-1, 2:] - x[:, 1:-1, :-2]) / 2
        down = (x[:, 2:, 1:-1] - x[:, :-2, 1:-1]) / 2
        squares = tf.square(across) + tf.square(down) + _TINY
        twice = 2 * np.pi * np.arange(_NUM_DIRECTIONS, dtype=np.float32) / _NUM_DIRECTIONS
        # cos(2a) and sin(2a) times the square of the length
        cosine, sine = (v[..., None] for v in (tf.square(across) - tf.square(down), 2 * across * down))
        nearness = tf.nn.relu(cosine * np.cos(twice) + sine * np.sin(twice)) / squares[..., None]
        edges = nearness**_SHARPNESS * tf.sqrt(squares)[..., None]  # [P, h, w, directions]
        cells = _smaller(edges, self._edge_grid, self._edge_grid)
        cells /= tf.reduce_sum(cells, axis=[1, 2, 3], keepdims=True) + 1e-6
        # In the mirrored picture, an edge of angle a has the angle -a.
        mirrored = tf.gather(cells[:, :, ::-1], -np.arange(_NUM_DIRECTIONS) % _NUM_DIRECTIONS, axis=3)
        num_columns = (self._edge_grid + 1) // 2
        shares = (cells + mirrored)[:, :, :num_columns] / 2
        return tf.sqrt(tf.reshape(shares, [-1, self._edge_grid * num_columns * _NUM_DIRECTIONS]) + _TINY)

    def _histogram(self, x: tf.Tensor) -> tf.Tensor:
        """Map `[P, h, w, C]`, 0-1, to colour histograms `[P, bins^C]`."""
        height, width, channels = x.shape[1:]
        centres = np.linspace(0.0, 1.0, self._bins, dtype=np.float32)
        pixels = tf.reshape(x, [-1, height * width, channels, 1])
        nearness = tf.nn.relu(1.0 - tf.abs(pixels - centres) * (self._bins - 1))  # [P, pixels, C, bins]
        counts, last = nearness[:, :, 0], nearness[:, :, -1]
        for channel in range(1, channels - 1):
            product = counts[..., :, None] * nearness[:, :, channel, None, :]
            counts = tf.reshape(product, [-1, height * width, self._bins ** (channel + 1)])
        if channels > 1:
            counts = tf.matmul(counts, last, transpose_a=True)  # [P, bins^(C - 1), bins]
        else:
            counts = tf.reduce_sum(counts, axis=1)
        shares = tf.reshape(counts, [-1, self._bins**channels]) / (height * width)
        return tf.sqrt(shares + _TINY)


def _smaller(x: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Reduce `[P, H, W, C]` to `[P, height, width, C]`, where each value is the mean of the area that it covers."""
    rows, columns = _means(height, x.shape[1]), _means(width, x.shape[2])
    if height < x.shape[1]:
        x = tf.einsum("ih,phwc->piwc", rows, x)
    if width < x.shape[2]:
        x = tf.einsum("jw,piwc->pijc", columns, x)
    return x


def _means(cells: int, pixels: int) -> NDArray[np.float32]:
    """Return `[cells, pixels]`: the weight of each pixel in the mean of each cell."""
    edges = np.linspace(0, pixels, cells + 1)
    first, end = np.arange(pixels), np.arange(1, pixels + 1)
    overlap = np.minimum(edges[1:, None], end) - np.maximum(edges[:-1, None], first)
    shares: NDArray[np.float32] = (np.maximum(overlap, 0) * cells / pixels).astype(np.float32)
    return shares
