"""The interface of all stores of image vectors, and the format of a record as bytes."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import StoreError, hide_secrets

VectorDtype = Literal["float32", "float16"]
HASH_BYTES = 16
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


@dataclass(frozen=True)
class Generation:
    """The properties of a generation, and when it was begun and completed (seconds since 1970, 0: not yet)."""

    number: int
    fingerprint: str
    width: int
    dtype: VectorDtype
    begun_s: int
    completed_s: int = 0


@dataclass(frozen=True)
class Meta:
    """The generations of a store by number, and the current one's number (0: none yet)."""

    current: int
    generations: dict[int, Generation]

    @property
    def current_generation(self) -> Generation | None:
        """The current generation, None if there is none yet."""
        return self.generations.get(self.current)


class Store(ABC):
    """A store: key -> vector. Many readers may work beside one writer; one object is for one thread at a time.

    Every method raises StoreError if the store cannot be reached within the time limits, or contains invalid data.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    # Methods that a store implements.

    @abstractmethod
    def meta(self) -> Meta:
        """Return the generations of the store."""

    @abstractmethod
    def write_meta(self, meta: Meta) -> None:
        """Replace the metadata in one step."""

    @abstractmethod
    def _read(self, generation: Generation, keys: Sequence[str]) -> list[bytes | None]:
        """Return the encoded records of keys, None for a missing key."""

    @abstractmethod
    def _write(self, generation: Generation, items: Sequence[tuple[str, bytes]]) -> None:
        """Write encoded records in one step; they are durable when this returns."""

    @abstractmethod
    def _scan(self, generation: Generation) -> Iterator[tuple[str, bytes]]:
        """Yield every key with its encoded record."""

    @abstractmethod
    def _delete(self, generation: Generation) -> None:
        """Remove all records of a generation."""

    @abstractmethod
    def close(self) -> None:
        """Close files and connections."""

    @abstractmethod
    def get_many(self, keys: Sequence[str], generation: Generation | None = None) -> Vectors:
        """Return the vectors of keys, all of one generation: the given one, or the one that is current at that time.

        Raises:
          StoreError: if the given generation is gone, or no generation is complete.
        """

    # Methods that all stores have in common.

    def begin(self, fingerprint: str, width: int, dtype: VectorDtype) -> Generation:
        """Return the generation to write this tower's vectors into: the current one, another one of it, or a new one.

        Raises:
          StoreError: if that generation has another width or number format.
        """
        meta = self.meta()
        same = [g for g in meta.generations.values() if g.fingerprint == fingerprint]
        for generation in sorted(same, key=lambda g: (g.number == meta.current, g.number), reverse=True):
            if (generation.width, generation.dtype) != (width, dtype):
                raise StoreError(
                    f"{self.uri}: generation {generation.number} with this fingerprint holds vectors of "
                    f"{generation.width} {generation.dtype}, not {width} {dtype}; use its format, or another store"
                )
            return generation
        number = max(meta.generations, default=0) + 1
        generation = Generation(number, fingerprint, width, dtype, int(time.time()))
        self.write_meta(replace(meta, generations={**meta.generations, number: generation}))
        return generation

    def put_many(self, generation: Generation, records: Sequence[Record]) -> None:
        """Write records; they are durable when this returns.

        Raises:
          StoreError: if a vector has another width, or contains a number that is not finite.
        """
        self._write(generation, [(record.key, encode(record, generation)) for record in records])

    def complete(self, generation: Generation) -> None:
        """Mark a generation as complete and make it the current one, in one step for all readers."""
        meta = self.meta()
        done = replace(generation, completed_s=int(time.time()))
        self.write_meta(Meta(generation.number, {**meta.generations, generation.number: done}))

    def rollback(self) -> Generation:
        """Make the newest complete generation before the current one current again.

        Raises:
          StoreError: if no earlier generation is complete.
        """
        meta = self.meta()
        earlier = [g for g in meta.generations.values() if g.completed_s and g.number < meta.current]
        if not earlier:
            raise StoreError(f"{self.uri}: no complete generation before {meta.current}; nothing to roll back to")
        target = max(earlier, key=lambda g: g.number)
        self.write_meta(replace(meta, current=target.number))
        return target

    def prune(self) -> list[int]:
        """Remove every generation except the current one and those being written; return the removed numbers."""
        meta = self.meta()
        removed = [
            g
            for g in meta.generations.values()
            if g.number != meta.current and (g.completed_s or g.number < meta.current)
        ]
        # First remove them from the list, so that a reader never sees a generation that is partly deleted.
        remaining = {number: g for number, g in meta.generations.items() if g not in removed}
        self.write_meta(replace(meta, generations=remaining))
        for generation in removed:
            self._delete(generation)
        return [generation.number for generation in removed]

    def hashes(self, generation: Generation, keys: Sequence[str], with_absent: bool = True) -> list[bytes | None]:
        """Return the hash of each key's picture; None for a missing key.

        Args:
          generation: the generation that is read.
          keys: the keys.
          with_absent: whether to return hashes also of keys that are marked as absent, without a vector.
        """
        values = self._read(generation, keys)
        shortest = 0 if with_absent else _HEADER.size + 1
        return [_HEADER.unpack_from(value)[0] if value and len(value) >= shortest else None for value in values]

    def scan(self, generation: Generation) -> Iterator[Record]:
        """Yield every record of a generation, in no particular order."""
        for key, value in self._scan(generation):
            yield decode(key, value, generation, self.uri)


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


def meta_to_dict(meta: Meta) -> dict[str, Any]:
    """Convert metadata to values that JSON can represent."""
    return {"format": 1, "current": meta.current, "generations": [asdict(g) for g in meta.generations.values()]}


def parse_meta(text: bytes | str | None, uri: str) -> Meta:
    """Parse a store's metadata from JSON; None means a store without generations.

    Raises:
      StoreError: if the text is not the metadata of a store.
    """
    if text is None:
        return Meta(0, {})
    try:
        values = json.loads(text)
        if values["format"] != 1:
            raise ValueError(f"format {values['format']}")
        generations = [Generation(**generation) for generation in values["generations"]]
        return Meta(int(values["current"]), {generation.number: generation for generation in generations})
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{uri}: is not a store of easyrec_mm ({error}); choose another store") from error


def require_generation(meta: Meta, requested: Generation | None, uri: str) -> Generation:
    """Return the requested generation as the store has it now, by default the current one.

    Raises:
      StoreError: if the generation is gone, or no generation is complete.
    """
    if requested is not None:
        generation = meta.generations.get(requested.number)
        if generation is None or (generation.fingerprint, generation.begun_s) != (
            requested.fingerprint,
            requested.begun_s,
        ):
            raise StoreError(f"{uri}: generation {requested.number} no longer exists; load the current one")
        return generation
    current = meta.current_generation
    if current is None:
        raise StoreError(
            f"{uri}: holds no complete generation of vectors; let the command "
            "that writes it (embed or store load) finish"
        )
    return current


def without_password(uri: str) -> str:
    """Return a URI with its password hidden."""
    return hide_secrets(uri)
