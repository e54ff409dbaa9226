"""Hashes of columns, equal on every machine and in every process, so that decisions based on them are equal, too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

# The base of the polynomial of a text's bytes: any odd number without a pattern.
BASE = 0x9E6D1F3B5A7C2D4B
_NULL = np.uint64(0x5DEECE66D1CE4E5B)
# Number of cached powers of the base and of its inverse: enough for the texts of a chunk.
MAX_POWERS = 1 << 21


def hash_column(values: pa.Array) -> Hashes:
    """Return the hash of each value: uint64 `[N]`. Equal values of a type have equal hashes; all nulls have one hash.

    Args:
      values: `[N]`, of whole numbers, other numbers, bool or text.
    """
    if pa.types.is_dictionary(values.type):
        hashes = hash_column(values.dictionary)
        codes = pc.fill_null(values.indices, 0).to_numpy(zero_copy_only=False)
        result = hashes[codes] if len(hashes) else np.zeros(len(values), np.uint64)
    elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        result = _hash_texts(values)
    else:
        plain = values.cast(pa.float64()) if pa.types.is_floating(values.type) else values.cast(pa.int64())
        numbers = pc.fill_null(plain, 0).to_numpy(zero_copy_only=False)
        if numbers.dtype == np.float64:
            numbers = numbers + 0.0  # -0.0 and 0.0 are equal
        result = mix(np.ascontiguousarray(numbers).view(np.uint64))
    if values.null_count:
        result = np.where(values.is_null().to_numpy(zero_copy_only=False), _NULL, result)
    return result


def hash_array(values: NDArray[Any]) -> Hashes:
    """Return the hashes of bytes (objects) or numbers `[N]` as `hash_column` does; bytes need not be text."""
    if values.dtype == object:
        return hash_column(pa.array(values.tolist(), pa.binary()).view(pa.string()))
    return hash_column(pa.array(values))


def mix(values: Hashes) -> Hashes:
    """Map numbers `[N]` one to one to numbers without a pattern (the finalizer of splitmix64, Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def combine(first: Hashes, second: Hashes | np.uint64) -> Hashes:
    """Return the hash of each pair, uint64 `[N]`; the order of the two matters."""
    with np.errstate(over="ignore"):
        return mix(first * np.uint64(0xD6E8FEB86659FD93) ^ second)


def seeded(hashes: Hashes, seed: int) -> Hashes:
    """Return another hash of the same values for each seed."""
    return combine(hashes, np.uint64(seed))


def _hash_texts(values: pa.Array) -> Hashes:
    """Return sum(byte_i * base^i) modulo 2^64, mixed with the length."""
    values = values.cast(pa.large_string())
    _, offset_buffer, data_buffer = values.buffers()
    if not len(values):
        return np.zeros(0, np.uint64)
    offsets = np.frombuffer(offset_buffer, np.int64)[values.offset : values.offset + len(values) + 1]
    lengths = np.diff(offsets)
    hashes = np.empty(len(values), np.uint64)
    start = 0
    while start < len(values):
        # A chunk has as many texts as there are powers for; a text longer than that forms its own chunk.
        end = int(np.searchsorted(offsets, offsets[start] + MAX_POWERS, side="right")) - 1
        end = min(max(end, start + 1), len(values))
        first, last = int(offsets[start]), int(offsets[end])
        data = np.frombuffer(data_buffer, np.uint8, last - first, first) if last > first else np.zeros(0, np.uint8)
        hashes[start:end] = _polynomials(data, offsets[start : end + 1] - first)
        start = end
    with np.errstate(over="ignore"):
        return mix(hashes ^ (lengths.astype(np.uint64) * np.uint64(0xA0761D6478BD642F)))


def _polynomials(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Hashes:
    powers, inverses = _powers(max(len(data), 1))
    sums = np.zeros(len(data) + 1, np.uint64)
    with np.errstate(over="ignore"):
        np.cumsum(data * powers[: len(data)], out=sums[1:])
        return (sums[offsets[1:]] - sums[offsets[:-1]]) * inverses[np.minimum(offsets[:-1], len(inverses) - 1)]


_kept_powers: tuple[Hashes, Hashes] = (np.ones(1, np.uint64), np.ones(1, np.uint64))


def _powers(count: int) -> tuple[Hashes, Hashes]:
    """Return base^i and base^-i modulo 2^64 for at least all i below `count`."""
    global _kept_powers
    if len(_kept_powers[0]) < count:
        size = 1 << (count - 1).bit_length()
        made = (_geometric(BASE, size), _geometric(pow(BASE, -1, 1 << 64), size))
        if size > 2 * MAX_POWERS:
            return made
        _kept_powers = made
    return _kept_powers


def _geometric(base: int, size: int) -> Hashes:
    factors = np.full(size, np.uint64(base))
    factors[0] = 1
    with np.errstate(over="ignore"):
        return np.cumprod(factors, dtype=np.uint64)
