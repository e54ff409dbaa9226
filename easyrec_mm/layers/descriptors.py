"""Colours of a picture as numbers, without anything to train. P pictures, H x W pixels."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

# Pictures are made smaller to this side before their colours are counted: memory, and little of the result.
_COUNTED_SIDE = 64


class ColourFeatures:
    """Pixels -> mean colours of the cells of a grid, and how much of the picture each colour takes.

    The grid is a colour layout as MPEG-7 has it (Kasutani and Yamada, ICIP 2001), without its cosine transform. The
    histograms (Swain and Ballard, IJCV 1991) are of the whole picture and of its middle half: a pixel counts for the
    nearest colours of a cube of `histogram_bins` ^ channels, each channel linearly between its two. Square roots of the
    shares make Euclid's distance that of Hellinger.

    Args:
      grid: cells along each side; 0 for no grid.
      histogram_bins: colours along each side of the cube; 0 for no histograms.
    """

    def __init__(self, grid: int, histogram_bins: int) -> None:
        self._grid, self._bins = grid, histogram_bins

    def __call__(self, pixels: tf.Tensor) -> tf.Tensor:
        """`[P, H, W, C]`, 0-255 -> float32 `[P, grid^2 C + 2 bins^C]`, mean colours from -1 to 1."""
        x = tf.cast(pixels, tf.float32) / 255.0
        height, width, channels = x.shape[1:]
        found = []
        if self._grid:
            cells = _smaller(x, self._grid, self._grid)
            found.append(2.0 * tf.reshape(cells, [-1, self._grid**2 * channels]) - 1.0)
        if self._bins:
            small = _smaller(x, min(height, _COUNTED_SIDE), min(width, _COUNTED_SIDE))
            height, width = small.shape[1:3]
            middle = small[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
            found += [self._histogram(small), self._histogram(middle)]
        return tf.concat(found, axis=1)

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
        # The gradient of a root at 0 is no number.
        return tf.sqrt(shares + 1e-12)


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
    return (np.maximum(overlap, 0) * cells / pixels).astype(np.float32)
