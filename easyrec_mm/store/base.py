"""What every store of image vectors offers, and how a record looks as bytes."""

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
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import StoreError

VectorDtype = Literal["float32", "float16"]
HASH_BYTES = 16
# Content hash and seconds since 1970; the vector follows, nothing for an absent one.
_HEADER = struct.Struct(f"<{HASH_BYTES}sq")


class State(IntEnum):
    """What a store says of a key."""

    MISSING = 0
    PRESENT = 1
    ABSENT = 2


class Record(NamedTuple):
    """A key's entry: the vector float32 `[D]`, or None for a bad picture; the hash of the picture's bytes; when (s)."""

    key: str
    vector: NDArray[Any] | None
    content_hash: bytes
    written_s: int


class Vectors(NamedTuple):
    """Answer to a look-up of K keys: the generation, vectors float32 `[K, D]` (0 where there is none), states `[K]`."""

    generation: int
    vectors: NDArray[Any]
    states: NDArray[Any]


@dataclass(frozen=True)
class Generation:
    """What a generation holds, and when it was begun and completed (seconds since 1970, 0: not yet)."""

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
        """The current one."""
        return self.generations.get(self.current)


class Store(ABC):
    """Key -> vector. Safe for many readers beside one writer; one object is for one thread at a time.

    Raises StoreError from every method if the store cannot be reached within the time limits, or holds nonsense.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    # What a store implements.

    @abstractmethod
    def meta(self) -> Meta:
        """The generations."""

    @abstractmethod
    def _write_meta(self, meta: Meta) -> None:
        """Replace the meta data in one step."""

    @abstractmethod
    def _read(self, generation: Generation, keys: Sequence[str]) -> list[bytes | None]:
        """Encoded records of keys, None where there is none."""

    @abstractmethod
    def _write(self, generation: Generation, items: Sequence[tuple[str, bytes]]) -> None:
        """Write encoded records in one step; they last when this returns."""

    @abstractmethod
    def _scan(self, generation: Generation) -> Iterator[tuple[str, bytes]]:
        """Every key and encoded record."""

    @abstractmethod
    def _delete(self, generation: Generation) -> None:
        """Remove all records of a generation."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections."""

    @abstractmethod
    def get_many(self, keys: Sequence[str], generation: Generation | None = None) -> Vectors:
        """Vectors of keys, all of one generation: the given one, or the one that is current when they are read.

        Raises:
          StoreError: if that generation is gone, or none is complete.
        """

    # What all stores do alike.

    def begin(self, fingerprint: str, width: int, dtype: VectorDtype) -> Generation:
        """The generation to write vectors of this tower into: the current one, one that was begun, or a new one.

        Raises:
          StoreError: if the current generation of this tower has another number format.
        """
        meta = self.meta()
        same = [g for g in meta.generations.values() if g.fingerprint == fingerprint]
        for generation in sorted(same, key=lambda g: (g.number == meta.current, g.number), reverse=True):
            if (generation.width, generation.dtype) != (width, dtype):
                raise StoreError(
                    f"{self.uri}: generation {generation.number} with this fingerprint holds vectors of "
                    f"{generation.width} {generation.dtype}, not {width} {dtype}; write those, or into another store"
                )
            return generation
        number = max(meta.generations, default=0) + 1
        generation = Generation(number, fingerprint, width, dtype, int(time.time()))
        self._write_meta(replace(meta, generations={**meta.generations, number: generation}))
        return generation

    def put_many(self, generation: Generation, records: Sequence[Record]) -> None:
        """Write records; they last when this returns.

        Raises:
          StoreError: if a vector has another width, or a number that is not finite.
        """
        self._write(generation, [(record.key, encode(record, generation)) for record in records])

    def complete(self, generation: Generation) -> None:
        """Make a generation the current one, in one step for all readers."""
        meta = self.meta()
        done = replace(generation, completed_s=int(time.time()))
        self._write_meta(Meta(generation.number, {**meta.generations, generation.number: done}))

    def rollback(self) -> Generation:
        """Make the newest complete generation before the current one current again.

        Raises:
          StoreError: if there is none.
        """
        meta = self.meta()
        earlier = [g for g in meta.generations.values() if g.completed_s and g.number < meta.current]
        if not earlier:
            raise StoreError(f"{self.uri}: no complete generation before {meta.current}; nothing to roll back to")
        target = max(earlier, key=lambda g: g.number)
        self._write_meta(replace(meta, current=target.number))
        return target

    def prune(self) -> list[int]:
        """Remove every generation but the current one and those that are being written; their numbers."""
        meta = self.meta()
        removed = [
            g
            for g in meta.generations.values()
            if g.number != meta.current and (g.completed_s or g.number < meta.current)
        ]
        # First from the list: a reader never sees a generation that is partly gone.
        kept = {number: g for number, g in meta.generations.items() if g not in removed}
        self._write_meta(replace(meta, generations=kept))
        for generation in removed:
            self._delete(generation)
        return [generation.number for generation in removed]

    def hashes(self, generation: Generation, keys: Sequence[str]) -> list[bytes | None]:
        """Hash of the picture of which a generation holds the vector (or the mark), None where it holds nothing."""
        return [value and _HEADER.unpack_from(value)[0] for value in self._read(generation, keys)]

    def scan(self, generation: Generation) -> Iterator[Record]:
        """Every record of a generation, in no particular order."""
        for key, value in self._scan(generation):
            yield decode(key, value, generation, self.uri)


def encode(record: Record, generation: Generation) -> bytes:
    """A record as bytes."""
    header = _HEADER.pack(record.content_hash, record.written_s)
    if record.vector is None:
        return header
    if record.vector.shape != (generation.width,):
        raise StoreError(
            f"{record.key}: a vector of {record.vector.shape}, the generation has {generation.width} numbers"
        )
    with np.errstate(over="ignore"):
        numbers = record.vector.astype(generation.dtype)
    if not np.isfinite(numbers).all():
        raise StoreError(f"{record.key}: the vector holds numbers that are not finite in {generation.dtype}")
    return header + numbers.tobytes()


def decode(key: str, value: bytes, generation: Generation, uri: str) -> Record:
    """The record of its bytes.

    Raises:
      StoreError: if they are none of that generation.
    """
    if len(value) not in (_HEADER.size, _HEADER.size + vector_bytes(generation)):
        raise StoreError(
            f"{uri}: the record of '{key}' has {len(value)} bytes; the store is damaged, embed into a new one"
        )
    content_hash, written_s = _HEADER.unpack_from(value)
    vector = np.frombuffer(value, np.dtype(generation.dtype), offset=_HEADER.size).astype(np.float32)
    return Record(key, vector if len(vector) else None, content_hash, written_s)


def vector_bytes(generation: Generation) -> int:
    """Bytes of a vector."""
    return generation.width * np.dtype(generation.dtype).itemsize


def join_vectors(generation: Generation, values: Sequence[bytes | None], keys: Sequence[str], uri: str) -> Vectors:
    """Encoded records of keys as one array."""
    size = _HEADER.size + vector_bytes(generation)
    states = np.full(len(values), State.PRESENT, np.int8)
    lengths = {0 if value is None else len(value) for value in values}
    if lengths != {size}:
        whole, nothing = list(values), bytes(size)
        for i, value in enumerate(values):
            if value is None or len(value) != size:
                whole[i] = nothing
                states[i] = State.MISSING if value is None else State.ABSENT
                if value is not None:
                    decode(keys[i], value, generation, uri)  # raises for what is not a record
        values = whole
    table = np.frombuffer(b"".join(values), np.uint8).reshape(-1, size)  # type: ignore[arg-type]
    vectors = np.ascontiguousarray(table[:, _HEADER.size :]).view(generation.dtype).astype(np.float32, copy=False)
    return Vectors(generation.number, vectors, states)


def content_hash(content: bytes) -> bytes:
    """Hash of a picture's bytes."""
    return hashlib.blake2b(content, digest_size=HASH_BYTES).digest()


def meta_to_dict(meta: Meta) -> dict[str, Any]:
    """Meta as values that JSON has."""
    return {"format": 1, "current": meta.current, "generations": [asdict(g) for g in meta.generations.values()]}


def parse_meta(text: bytes | str | None, uri: str) -> Meta:
    """The Meta that a store holds as JSON; nothing is a store without generations.

    Raises:
      StoreError: if the text is something else.
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
        raise StoreError(f"{uri}: is not a store of easyrec_mm ({error}); choose another place") from error


def require_generation(meta: Meta, wanted: Generation | None, uri: str) -> Generation:
    """The wanted generation as the store has it now, the current one by default.

    Raises:
      StoreError: if it is gone, or none is complete.
    """
    if wanted is not None:
        found = meta.generations.get(wanted.number)
        if found is None or (found.fingerprint, found.begun_s) != (wanted.fingerprint, wanted.begun_s):
            raise StoreError(f"{uri}: generation {wanted.number} is gone; load what is current")
        return found
    current = meta.current_generation
    if current is None:
        raise StoreError(
            f"{uri}: holds no complete generation of vectors; let the command "
            "that writes it (embed or store load) finish"
        )
    return current


def without_password(uri: str) -> str:
    """A URI as it may be shown."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@", 1)))
