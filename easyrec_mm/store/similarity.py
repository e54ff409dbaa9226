"""What is done to vectors before their cosine says how similar they are.

The vectors of a trained image tower have a part in common. Where it is large, the plain cosine of any two of them is
almost 1 and says nothing: what tells them apart is how they differ from their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SimilarityName = Literal["centred", "whitened", "cosine"]
# Name -> what it is, for people.
SIMILARITIES: dict[SimilarityName, str] = {
    "centred": "cosine of the vectors less their mean",
    "whitened": "cosine of the vectors less their mean, with the same variance in all directions",
    "cosine": "cosine of the vectors as they are stored",
}
ROWS_AT_A_TIME = 1 << 14
# Of float32, in which vectors are kept; what differs by less is a difference of rounding.
_RESOLUTION = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Similarity:
    """How vectors are compared, by the statistics of all that are searched.

    name          one of SIMILARITIES
    mean          float64 `[D]`, subtracted from each vector; None for "cosine"
    matrix        float64 `[D, D]`, by which the differences are multiplied; None except for "whitened"
    plain_cosine  mean of the cosines of all pairs of vectors as they are stored; NaN without a pair
    distance      root mean square of the distances of all pairs; NaN without a pair
    """

    name: SimilarityName
    mean: NDArray[Any] | None = None
    matrix: NDArray[Any] | None = None
    plain_cosine: float = math.nan
    distance: float = math.nan

    def unit(self, vectors: NDArray[Any]) -> NDArray[Any]:
        """Return vectors `[N, D]` of length 1 whose inner products are the similarities, float64.

        A vector that is zero, or equal to the mean but for rounding, becomes a vector of zeros.
        """
        units: NDArray[Any] = vectors.astype(np.float64)
        least = np.linalg.norm(units, axis=1) * _RESOLUTION
        if self.mean is not None:
            units -= self.mean
        units[np.linalg.norm(units, axis=1) <= least] = 0
        if self.matrix is not None:
            units = units @ self.matrix
        lengths = np.linalg.norm(units, axis=1, keepdims=True)
        np.divide(units, lengths, out=units, where=lengths > 0)
        return units

    def apply(self, vectors: NDArray[Any]) -> None:
        """Replace vectors `[N, D]` by those of `unit`, in place."""
        for part in _parts(vectors):
            part[:] = self.unit(part)


# As the vectors are, without their statistics.
PLAIN = Similarity("cosine")


def fit(name: SimilarityName, vectors: NDArray[Any]) -> Similarity:
    """Return the similarity of that name for vectors `[N, D]`.

    "whitened" is the whitening by principal components: each is divided by its standard deviation. Components whose
    deviation is not larger than the rounding of the numbers are left out.
    """
    number, width = vectors.shape
    sums = np.zeros(width)
    square_lengths = 0.0
    for part in _parts(vectors):
        numbers = part.astype(np.float64)
        sums += numbers.sum(axis=0)
        square_lengths += float(np.einsum("nd,nd->", numbers, numbers))
    mean = sums / number
    square_distances = 0.0
    covariance = np.zeros((width, width))
    for part in _parts(vectors):
        differences = part - mean
        square_distances += float(np.einsum("nd,nd->", differences, differences))
        if name == "whitened":
            covariance += differences.T @ differences / number
    distance = math.sqrt(2 * square_distances / (number - 1)) if number > 1 else math.nan
    least = _RESOLUTION**2 * square_lengths / number
    return Similarity(
        name,
        None if name == "cosine" else mean,
        _whitening(covariance, least) if name == "whitened" else None,
        mean_cosine(PLAIN.unit(part) for part in _parts(vectors)),
        distance,
    )


def mean_cosine(units: Iterator[NDArray[Any]]) -> float:
    """Return the mean inner product of all pairs of vectors of length 1 or 0, given in parts `[N, D]`; NaN without a
    pair.
    """
    number, square_lengths, sums = 0, 0.0, np.zeros(())
    for part in units:
        number += len(part)
        square_lengths += float(np.einsum("nd,nd->", part, part, dtype=np.float64))
        sums = sums + part.sum(axis=0, dtype=np.float64)
    return (float(sums @ sums) - square_lengths) / (number * (number - 1)) if number > 1 else math.nan


def _whitening(covariance: NDArray[Any], least: float) -> NDArray[Any]:
    """Return the matrix `[D, D]` that gives each principal component the variance 1, or 0 if it is `least` or less."""
    variances, directions = np.linalg.eigh(covariance)
    is_kept = variances > least
    scales = np.where(is_kept, 1 / np.sqrt(np.where(is_kept, variances, 1)), 0)
    return np.asarray(directions * scales)


def _parts(vectors: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield vectors, several rows at a time, so that their copies in float64 need little memory."""
    for start in range(0, len(vectors), ROWS_AT_A_TIME):
        yield vectors[start : start + ROWS_AT_A_TIME]
