"""Colours and edges of a picture as numbers, without anything to train. P pictures, H x W pixels."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

# Pictures are made smaller to this side before colours are counted and edges looked for: what is finer is noise.
_LARGEST_SIDE = 64
# Directions of edges, from 0 to 180 degrees, and how sharply one is told from the next.
_NUM_DIRECTIONS, _SHARPNESS = 8, 3
# Square roots have no gradient at 0.
_TINY = 1e-12


class Descriptors:
    """Pixels -> mean colours of the cells of a grid, how much of the picture each colour takes, and where edges lie.

    The grid of colours is a colour layout as MPEG-7 has it (Kasutani and Yamada, ICIP 2001), without its cosine
    transform. The histograms (Swain and Ballard, IJCV 1991) are of the whole picture and of its middle half: a pixel
    counts for the nearest colours of a cube of `colour_bins` ^ channels, each channel linearly between its two. Edges
    are told by the histogram of the directions of the gradient of brightness in each cell of a grid (HOG, Dalal and
    Triggs, CVPR 2005), as shares of the whole picture; those of the left half and of the mirrored right half are
    averaged, as a thing is the same from either side. Square roots of shares make Euclid's distance that of Hellinger.

    Args:
      colour_grid: cells along each side; 0 for no grid of colours.
      colour_bins: colours along each side of the cube; 0 for no histograms.
      edge_grid: cells along each side; 0 for no edges.
    """

    def __init__(self, colour_grid: int, colour_bins: int, edge_grid: int) -> None:
        self._grid, self._bins, self._edge_grid = colour_grid, colour_bins, edge_grid

    def __call__(self, pixels: tf.Tensor) -> tf.Tensor:
        """`[P, H, W, C]`, 0-255 -> float32 `[P, grid^2 C + 2 bins^C + 8 edge_grid ceil(edge_grid / 2)]`.

        Mean colours are from -1 to 1, roots of shares from 0 to 1.
        """
        x = tf.cast(pixels, tf.float32) / 255.0
        height, width, channels = x.shape[1:]
        found = []
        if self._grid:
            cells = _smaller(x, self._grid, self._grid)
            found.append(2.0 * tf.reshape(cells, [-1, self._grid**2 * channels]) - 1.0)
        small = _smaller(x, min(height, _LARGEST_SIDE), min(width, _LARGEST_SIDE))
        height, width = small.shape[1:3]
        if self._bins:
            middle = small[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
            found += [self._histogram(small), self._histogram(middle)]
        if self._edge_grid:
            found.append(self._edges(tf.reduce_mean(small, axis=3)))
        return tf.concat(found, axis=1)

    def _edges(self, brightness: tf.Tensor) -> tf.Tensor:
        """`[P, h, w]` -> `[P, edge_grid * ceil(edge_grid / 2) * directions]`.

        With the angle a of the gradient, direction d has max(cos(2 (a - d)), 0) ^ sharpness of its length: a soft bin
        that needs no angle.
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
        # In a mirror an edge of angle a has -a.
        mirrored = tf.gather(cells[:, :, ::-1], -np.arange(_NUM_DIRECTIONS) % _NUM_DIRECTIONS, axis=3)
        num_columns = (self._edge_grid + 1) // 2
        shares = (cells + mirrored)[:, :, :num_columns] / 2
        return tf.sqrt(tf.reshape(shares, [-1, self._edge_grid * num_columns * _NUM_DIRECTIONS]) + _TINY)

    def _histogram(self, x: tf.Tensor) -> tf.Tensor:
        """`[P, h, w, C]`, 0-1 -> `[P, bins^C]`."""
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
    """`[P, H, W, C]` -> `[P, height, width, C]`, each the mean of what it covers."""
    rows, columns = _means(height, x.shape[1]), _means(width, x.shape[2])
    if height < x.shape[1]:
        x = tf.einsum("ih,phwc->piwc", rows, x)
    if width < x.shape[2]:
        x = tf.einsum("jw,piwc->pijc", columns, x)
    return x


def _means(cells: int, pixels: int) -> NDArray[np.float32]:
    """`[cells, pixels]`: the share that each of the pixels has in the mean of a cell."""
    edges = np.linspace(0, pixels, cells + 1)
    first, end = np.arange(pixels), np.arange(1, pixels + 1)
    overlap = np.minimum(edges[1:, None], end) - np.maximum(edges[:-1, None], first)
    shares: NDArray[np.float32] = (np.maximum(overlap, 0) * cells / pixels).astype(np.float32)
    return shares
