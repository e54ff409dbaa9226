"""Records of a store: what is stored for a key, and its format as bytes."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import StoreError
from easyrec_mm.store.generations import Generation

HASH_BYTES = 16
# Hash of an item none of whose pictures can be read.
NO_CONTENT = bytes(HASH_BYTES)
# Content hash and seconds since 1970; the vector follows, unless the key is marked absent.
_HEADER = struct.Struct(f"<{HASH_BYTES}sq")


class State(IntEnum):
    """The state of a key in a store."""

    MISSING = 0
    PRESENT = 1
    ABSENT = 2


class Record(NamedTuple):
    """A key's entry: vector float32 `[D]`, or None for a bad picture; hash of the picture's bytes; time written (s)."""

    key: str
    vector: NDArray[Any] | None
    content_hash: bytes
    written_s: int


class Vectors(NamedTuple):
    """Result of a look-up of K keys: the generation, vectors float32 `[K, D]` (0 for no vector), and states `[K]`."""

    generation: int
    vectors: NDArray[Any]
    states: NDArray[Any]


def encode(record: Record, generation: Generation) -> bytes:
    """Encode a record as bytes."""
    header = _HEADER.pack(record.content_hash, record.written_s)
    if record.vector is None:
        return header
    if record.vector.shape != (generation.width,):
        raise StoreError(
            f"{record.key}: the vector has the shape {record.vector.shape}, but the generation has "
            f"{generation.width} numbers"
        )
    with np.errstate(over="ignore"):
        numbers = record.vector.astype(generation.dtype)
    if not np.isfinite(numbers).all():
        raise StoreError(f"{record.key}: the vector holds numbers that are not finite as {generation.dtype}")
    return header + numbers.tobytes()


def decode(key: str, value: bytes, generation: Generation, uri: str) -> Record:
    """Decode the bytes of a record.

    Raises:
      StoreError: if the bytes are not a record of that generation.
    """
    if len(value) not in (_HEADER.size, _HEADER.size + vector_bytes(generation)):
        raise StoreError(f"{uri}: the record of '{key}' has {len(value)} bytes; the store is damaged; write a new one")
    content_hash, written_s = _HEADER.unpack_from(value)
    vector = np.frombuffer(value, np.dtype(generation.dtype), offset=_HEADER.size).astype(np.float32)
    return Record(key, vector if len(vector) else None, content_hash, written_s)


def vector_bytes(generation: Generation) -> int:
    """Return the number of bytes of an encoded vector."""
    return generation.width * np.dtype(generation.dtype).itemsize


def join_vectors(generation: Generation, values: Sequence[bytes | None], keys: Sequence[str], uri: str) -> Vectors:
    """Decode the records of keys into one array."""
    size = _HEADER.size + vector_bytes(generation)
    states = np.full(len(values), State.PRESENT, np.int8)
    lengths = {0 if value is None else len(value) for value in values}
    if lengths != {size}:
        records, nothing = list(values), bytes(size)
        for i, value in enumerate(values):
            if value is None or len(value) != size:
                records[i] = nothing
                states[i] = State.MISSING if value is None else State.ABSENT
                if value is not None:
                    decode(keys[i], value, generation, uri)  # raises if it is not a record
        values = records
    table = np.frombuffer(b"".join(values), np.uint8).reshape(-1, size)  # type: ignore[arg-type]
    vectors = np.ascontiguousarray(table[:, _HEADER.size :]).view(generation.dtype).astype(np.float32, copy=False)
    return Vectors(generation.number, vectors, states)


def content_hash(content: bytes) -> bytes:
    """Return the hash of a picture's bytes."""
    return hashlib.blake2b(content, digest_size=HASH_BYTES).digest()


def hash_of(value: bytes | None, with_absent: bool) -> bytes | None:
    """Return the hash in the bytes of a record; None without a record, or if it has no vector and that is asked for."""
    shortest = 0 if with_absent else _HEADER.size + 1
    return _HEADER.unpack_from(value)[0] if value and len(value) >= shortest else None
