"""The interface of all stores of image vectors."""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from easyrec_mm.errors import StoreError
from easyrec_mm.files.processes import this_process
from easyrec_mm.safe_text import hide_secrets
from easyrec_mm.store.generations import (
    LEASE_S,
    RENEW_S,
    Generation,
    Meta,
    Tasks,
    VectorDtype,
    meta_to_text,
    parse_meta,
    require_generation,
)
from easyrec_mm.store.records import Record, Vectors, decode, encode, hash_of


class Pruned(NamedTuple):
    """The numbers of the generations that were removed; number -> why an old generation was kept."""

    removed: list[int]
    kept: dict[int, str]


class Store(ABC):
    """A store: key -> vector. Many readers may work beside one writer; one object is for one thread at a time.

    Every method raises StoreError if the store cannot be reached within the time limits, or contains invalid data.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        # Of leases; several stores may be open in one process.
        self._name = f"{this_process()} {os.urandom(4).hex()}"
        # Number of each generation of which this object has a lease -> when it was renewed, seconds of the clock.
        self._renewed_s: dict[int, float] = {}
        self._last_meta: tuple[bytes | str | None, Meta] = (None, Meta(0, {}))

    # Methods that a store implements.

    @abstractmethod
    def _meta_text(self) -> bytes | str | None:
        """Return the metadata as `_swap_meta` has written them; None if there are none yet."""

    @abstractmethod
    def _swap_meta(self, before: bytes | str | None, after: str) -> bool:
        """Replace the metadata `before` in one step; return False, without a change, if they are others by now."""

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
    def _delete(self, number: int) -> None:
        """Remove all records of a generation."""

    @abstractmethod
    def _close(self) -> None:
        """Close files and connections."""

    @abstractmethod
    def get_many(self, keys: Sequence[str], generation: Generation | None = None) -> Vectors:
        """Return the vectors of keys, all of one generation: the given one, or the one that is current at that time.

        Raises:
          StoreError: if the given generation is gone, or no generation is complete.
        """

    # Methods that all stores have in common.

    @property
    def identity(self) -> tuple[int, ...]:
        """Values that change when another store is put in the place of this one."""
        return ()

    def reopened(self) -> Store | None:
        """Open the store that has been put in the place of this one; return None if it is still this one."""
        return None

    def meta(self) -> Meta:
        """Return the generations of the store."""
        return self._parsed(self._meta_text())

    def change(self, change: Callable[[Meta], Meta]) -> Meta:
        """Replace the metadata by `change` of them, in one step for all processes; return the new ones.

        Args:
          change: called again with the metadata as they are then, if another process has changed them meanwhile.
        """
        while True:
            before = self._meta_text()
            meta = change(self._parsed(before))
            if self._swap_meta(before, meta_to_text(meta, _now_s())):
                return meta

    def begin(self, fingerprint: str, width: int, dtype: VectorDtype, tasks: Tasks | None = None) -> Generation:
        """Return the generation to write this tower's vectors into: the current one, another one of it, or a new one.

        It is kept from `prune` until it is complete, or this store is closed. `tasks`: if several divide it.

        Raises:
          StoreError: if that generation has another width or number format, or is divided otherwise.
        """

        generation: Generation

        def change(meta: Meta) -> Meta:
            nonlocal generation
            same = meta.of_tower(fingerprint)
            meta, generation = (meta, same) if same else meta.with_new(fingerprint, width, dtype, _now_s())
            if (generation.width, generation.dtype) != (width, dtype):
                raise StoreError(
                    f"{self.uri}: generation {generation.number} with this fingerprint holds vectors of "
                    f"{generation.width} {generation.dtype}, not {width} {dtype}; use its format, or another store"
                )
            meta = meta.divided(generation.number, tasks, _now_s()) if tasks else meta
            return meta.with_writer(generation.number, self._name, _now_s() + LEASE_S)

        self.change(change)
        self._renewed_s[generation.number] = time.monotonic()
        return generation

    def put_many(self, generation: Generation, records: Sequence[Record]) -> None:
        """Write records; they are durable when this returns.

        Raises:
          StoreError: if a vector has another width, or contains a number that is not finite; or if the generation has
            been removed.
        """
        self._write(generation, [(record.key, encode(record, generation)) for record in records])
        if self._is_due(generation):
            meta = self.change(lambda meta: meta.with_writer(generation.number, self._name, _now_s() + LEASE_S))
            self._renewed_s[generation.number] = time.monotonic()
        else:
            meta = self.meta()
        if not meta.has(generation):
            # Its number is not given to another generation, so that these records are the only ones.
            self._delete(generation.number)
            raise StoreError(
                f"{self.uri}: generation {generation.number} was removed while it was being written; write it again"
            )

    def complete(self, generation: Generation, share: tuple[int, int] | None = None) -> str:
        """Record that this writer is through, and make the generation the current one, in one step for all readers.

        A generation that was complete before becomes current at once; a new one when all who write it are through.

        Args:
          generation: what `begin` returned.
          share: which of how many shares this writer has written, as (2, 3), if several runs write the generation.

        Returns:
          What the generation still waits for; "" if it is the current one.

        Raises:
          StoreError: if the generation has been removed, or another share was one of another number.
        """

        def change(meta: Meta) -> Meta:
            require_generation(meta, generation, self.uri)
            return meta.completed(generation, self._name, share, _now_s())

        meta = self.change(change)
        self._renewed_s.pop(generation.number, None)
        return meta.waits_for(generation.number, _now_s())

    def rollback(self) -> Generation:
        """Make the newest complete generation before the current one current again.

        Raises:
          StoreError: if no earlier generation is complete.
        """

        def change(meta: Meta) -> Meta:
            earlier = [g.number for g in meta.generations.values() if g.completed_s and g.number < meta.current]
            if not earlier:
                raise StoreError(f"{self.uri}: no complete generation before {meta.current}; nothing to roll back to")
            return replace(meta, current=max(earlier))

        meta = self.change(change)
        return meta.generations[meta.current]

    def prune(self) -> Pruned:
        """Remove every generation except the current one and those that are being written or read."""
        users: dict[int, str] = {}

        def change(meta: Meta) -> Meta:
            nonlocal users
            users = {number: self._users_of(meta, number) for number in meta.generations if number != meta.current}
            # First they leave the list, so that a reader never sees a generation that is partly deleted.
            return meta.without([number for number, user in users.items() if not user])

        deleted = self.change(change).removed  # also those of a run that was killed here
        for number in deleted:
            self._delete(number)
        self.change(lambda meta: replace(meta, removed=tuple(n for n in meta.removed if n not in deleted)))
        kept = {number: user for number, user in users.items() if user}
        return Pruned(sorted(set(users).difference(kept)), kept)

    def keep(self, generation: Generation) -> bool:
        """Keep a generation from `prune` until `let_go` or `close`; call it at least every RENEW_S.

        Returns:
          Whether it is kept; not if this process may not write to the store, or cannot reach it, or it is gone.
        """
        if not self._is_due(generation):
            return True

        def change(meta: Meta) -> Meta:
            require_generation(meta, generation, self.uri)
            return meta.with_reader(generation.number, self._name, _now_s() + LEASE_S)

        try:
            self.change(change)
        except StoreError:
            return False
        self._renewed_s[generation.number] = time.monotonic()
        return True

    def let_go(self, numbers: Collection[int]) -> None:
        """Give up the leases of generations."""
        numbers = set(numbers).intersection(self._renewed_s)
        for number in numbers:
            del self._renewed_s[number]
        if numbers:
            with suppress(StoreError):  # then they end by themselves
                self.change(lambda meta: meta.without_leases(self._name, numbers))

    def close(self) -> None:
        """Give up leases; close files and connections."""
        self.let_go(tuple(self._renewed_s))
        self._close()

    def __del__(self) -> None:
        with suppress(Exception):  # as at the end of the process
            self.close()

    def _is_due(self, generation: Generation) -> bool:
        """Return whether a lease has to be taken or renewed."""
        return time.monotonic() >= self._renewed_s.get(generation.number, -math.inf) + RENEW_S

    def _users_of(self, meta: Meta, number: int) -> str:
        """Return who uses a generation; "" if nobody does."""
        return meta.users_of(number, _now_s())

    def _parsed(self, text: bytes | str | None) -> Meta:
        if text != self._last_meta[0]:
            self._last_meta = (text, parse_meta(text, self.uri))
        return self._last_meta[1]

    def hashes(self, generation: Generation, keys: Sequence[str], with_absent: bool = True) -> list[bytes | None]:
        """Return the hash of each key's picture; None for a missing key, or without `with_absent` for an absent one."""
        return [hash_of(value, with_absent) for value in self._read(generation, keys)]

    def scan(self, generation: Generation) -> Iterator[Record]:
        """Yield every record of a generation, in no particular order.

        Raises:
          StoreError: at the end, if the generation was removed meanwhile, so that records may be lacking.
        """
        for key, value in self._scan(generation):
            yield decode(key, value, generation, self.uri)
        if not self.meta().has(generation):
            raise StoreError(f"{self.uri}: generation {generation.number} was removed while it was read; read again")


def records_of(store: Store, generation: Generation, keys: Sequence[str]) -> list[Record | None]:
    """Return the record of each key, with its hash and time; None for a missing key.

    Raises:
      StoreError: if the store cannot be read, or the generation is gone.
    """
    values = store._read(generation, keys)
    require_generation(store.meta(), generation, store.uri)
    return [
        None if value is None else decode(key, value, generation, store.uri)
        for key, value in zip(keys, values, strict=True)
    ]


def without_password(uri: str) -> str:
    """Return a URI with its password hidden."""
    return hide_secrets(uri)


def _now_s() -> int:
    return int(time.time())
