"""`easyrec-mm store stat`: describes the contents of a store as text."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np

from easyrec_mm.errors import StoreError
from easyrec_mm.store.base import Store
from easyrec_mm.store.generations import Generation, Meta
from easyrec_mm.store.records import State

_AT_A_TIME = 5_000
# Number of keys of the current generation that are compared with the previous generation.
_NUM_COMPARED = 10_000


def stat(store: Store, keys_file: str | None = None) -> str:
    """Describe generations, coverage of a list of keys, norms, age, and drift from the previous generation.

    Raises:
      StoreError: if the store or the list of keys cannot be read, or the current generation is removed meanwhile.
    """
    meta = store.meta()
    lines = [f"{store.uri}: {len(meta.generations)} generation(s)"]
    for generation in sorted(meta.generations.values(), key=lambda g: g.number):
        state = _state(meta, generation)
        version = f", by easyrec-mm {generation.version}" if generation.version else ""
        lines.append(
            f"  generation {generation.number} ({state}): by {_shown(generation.fingerprint)}, "
            f"{generation.width} numbers {generation.dtype}, begun {_date(generation.begun_s)}{version}"
        )
    current = meta.current_generation
    if current is None:
        return "\n".join([*lines, "no generation is complete"])
    lines += _contents(store, current)
    if keys_file is not None:
        lines.append(_coverage(store, current, keys_file))
    earlier = [g for g in meta.generations.values() if g.completed_s and g.number < current.number]
    if earlier:
        lines += _drift(store, current, max(earlier, key=lambda g: g.number))
    return "\n".join(lines)


def _state(meta: Meta, generation: Generation) -> str:
    number, now_s = generation.number, int(time.time())
    state = "current" if number == meta.current else "kept" if generation.completed_s else "incomplete"
    return ", ".join(filter(None, [state, meta.users_of(number, now_s), meta.waits_for(number, now_s)]))


def _contents(store: Store, generation: Generation) -> list[str]:
    norms: list[float] = []
    ages: list[int] = []
    absent = 0
    for record in store.scan(generation):
        ages.append(record.written_s)
        if record.vector is None:
            absent += 1
        else:
            norms.append(float(np.linalg.norm(record.vector)))
    lines = [f"vectors: {len(norms)}; absent (bad pictures): {absent}"]
    if norms:
        low, middle, high = np.percentile(norms, [0, 50, 100])
        lines.append(f"norm: {low:.4g} to {high:.4g}, median {middle:.4g}; zero: {norms.count(0.0)}")
    if ages:
        lines.append(f"written: {_date(min(ages))} to {_date(max(ages))}")
    return lines


def _coverage(store: Store, generation: Generation, keys_file: str) -> str:
    counts = np.zeros(len(State), np.int64)
    for keys in _keys(keys_file):
        counts += np.bincount(store.get_many(keys, generation).states, minlength=len(State))
    total = max(int(counts.sum()), 1)
    return (
        f"coverage of {keys_file}: {counts[State.PRESENT] / total:.2%} of {counts.sum()} keys; "
        f"{counts[State.MISSING]} missing, {counts[State.ABSENT]} absent"
    )


def _keys(path: str) -> Iterator[list[str]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            keys = (line.rstrip("\r\n") for line in file)
            while portion := list(islice((key for key in keys if key), _AT_A_TIME)):
                yield portion
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"--keys {path}: cannot be read: {error}") from error


def _drift(store: Store, current: Generation, before: Generation) -> list[str]:
    """Describe the cosines between each key's vectors in two generations; for other widths, only the common keys."""
    newer = {r.key: r.vector for r in islice(store.scan(current), _NUM_COMPARED) if r.vector is not None}
    cosines: list[float] = []
    num_shared = 0
    for record in store.scan(before):
        vector = newer.get(record.key)
        if vector is not None and record.vector is not None:
            num_shared += 1
            if current.width == before.width:
                norms = np.linalg.norm(vector) * np.linalg.norm(record.vector)
                cosines.append(float(vector @ record.vector / norms) if norms else 0.0)
    lines = [f"drift from generation {before.number}: {num_shared} of {len(newer)} compared keys are in both"]
    if cosines:
        low, middle = np.percentile(cosines, [5, 50])
        lines.append(f"  cosine of a key's two vectors: median {middle:.4f}, 5th percentile {low:.4f}")
    return lines


def _shown(fingerprint: str) -> str:
    """Format a fingerprint: a few of an image tower's many digits, or the name of another origin of vectors."""
    return f"image tower {fingerprint[:12]}" if re.fullmatch("[0-9a-f]{64}", fingerprint) else f"'{fingerprint}'"


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
