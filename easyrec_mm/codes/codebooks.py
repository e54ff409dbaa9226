"""Codebooks: the centroids of each level, the codes that they give to vectors, and how a store keeps them.

Residual quantization (Juang and Gray, "Multiple stage vector quantization for speech coding", ICASSP 1982): the code of
a level is the centroid nearest to what the levels before have left of the vector. Legend: N vectors of D numbers, L
levels, k centroids of a level.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances_argmin

from easyrec_mm.errors import StoreError
from easyrec_mm.store import Record, Store
from easyrec_mm.store.codes import CodesOrigin, Shape, parse_origin
from easyrec_mm.store.records import content_hash

Codes = NDArray[np.int32]
Floats = NDArray[np.float32]
# What is left of a vector by rounding: a remainder that is shorter than this part of the vector is none.
_RESOLUTION = 1e-6


@dataclass(frozen=True)
class Level:
    """The codebook of a level: names int32 `[k]`, ascending, each from 1, and their centroids float32 `[k, D]`."""

    names: Codes
    centroids: Floats


class Assigned(NamedTuple):
    """Codes int32 `[N, L]`, and the squares of the lengths of what each level leaves of a vector, float64 `[N, L]`."""

    codes: Codes
    square_errors: NDArray[np.float64]


@dataclass(frozen=True)
class Codebooks:
    """The codebooks of all levels; a level has fewer centroids than `shape.codes` where there is less to tell apart.

    vectors  fingerprint of the vectors that they are for
    """

    shape: Shape
    vectors: str
    levels: tuple[Level, ...]

    @property
    def width(self) -> int:
        """Return the number of numbers of a vector."""
        return int(self.levels[0].centroids.shape[1])

    @property
    def origin(self) -> str:
        """Return the text that names all that the codes depend on."""
        digest = hashlib.blake2b(digest_size=16)
        for level in self.levels:
            digest.update(len(level.names).to_bytes(4, "little"))
            digest.update(level.names.astype("<i4").tobytes())
            digest.update(level.centroids.astype("<f4").tobytes())
        return str(CodesOrigin(self.shape, digest.hexdigest(), self.vectors))

    def assign(self, vectors: Floats) -> Assigned:
        """Return the codes of vectors `[N, D]`, N from 1."""
        codes = np.empty((len(vectors), len(self.levels)), np.int32)
        square_errors = np.empty(codes.shape, np.float64)
        rest = vectors
        for place, level in enumerate(self.levels):
            nearest = pairwise_distances_argmin(rest, level.centroids)
            codes[:, place] = level.names[nearest]
            rest = remainder(rest, level.centroids[nearest], vectors)
            square_errors[:, place] = np.einsum("nd,nd->n", rest, rest, dtype=np.float64)
        return Assigned(codes, square_errors)


def remainder(rest: Floats, centroids: Floats, vectors: Floats) -> Floats:
    """Return what centroids `[N, D]` leave of the rest of vectors; zeros where only rounding is left."""
    left = rest - centroids
    lengths = np.linalg.norm(left, axis=1)
    left[lengths <= _RESOLUTION * np.linalg.norm(vectors, axis=1)] = 0
    return left


def write_codebooks(store: Store, codebooks: Codebooks) -> None:
    """Write codebooks into a store of such, as its current generation.

    Raises:
      StoreError: if the store cannot be written.
    """
    generation = store.begin(codebooks.origin, codebooks.width, "float32")
    store.put_many(generation, list(_records(codebooks)))
    store.complete(generation)


def read_codebooks(store: Store) -> Codebooks | None:
    """Return the current codebooks of a store of such; None if there are none yet.

    Raises:
      StoreError: if the store cannot be read, or does not hold what was written.
    """
    generation = store.meta().current_generation
    if generation is None:
        return None
    origin = parse_origin(generation.fingerprint)
    damaged = f"{store.uri}: generation {generation.number} holds no valid codebooks; make new ones with --refit"
    if origin is None:
        raise StoreError(damaged)
    by_level: dict[int, dict[int, Floats]] = {}
    for record in store.scan(generation):
        level, _, name = record.key.partition("/")
        if record.vector is None or not (level.isdecimal() and name.isdecimal()):
            raise StoreError(damaged)
        by_level.setdefault(int(level), {})[int(name)] = record.vector
    if sorted(by_level) != list(range(1, origin.shape.levels + 1)):
        raise StoreError(damaged)
    levels = []
    for _, centroids in sorted(by_level.items()):
        names = sorted(centroids)
        levels.append(Level(np.array(names, np.int32), np.stack([centroids[name] for name in names])))
    codebooks = Codebooks(origin.shape, origin.vectors, tuple(levels))
    if codebooks.origin != generation.fingerprint:
        raise StoreError(damaged)
    return codebooks


def _records(codebooks: Codebooks) -> Iterator[Record]:
    now_s = int(time.time())
    for number, level in enumerate(codebooks.levels, 1):
        for name, centroid in zip(level.names.tolist(), level.centroids, strict=True):
            yield Record(f"{number}/{name}", centroid, content_hash(centroid.tobytes()), now_s)
