"""Small stores for tests."""

from __future__ import annotations

import numpy as np

from easyrec_mm.store import Record, open_store
from easyrec_mm.store.records import content_hash


def vector(seed, width=4):
    return np.random.default_rng(seed).normal(size=width).astype(np.float32)


def record(key, seed, width=4):
    value = None if seed is None else vector(seed, width)
    return Record(key, value, content_hash(str(seed).encode()), 1_700_000_000 + (seed or 0))


def fill(uri, seeds, fingerprint="tower", dtype="float32", width=4):
    store = open_store(uri, writable=True)
    generation = store.begin(fingerprint, width, dtype)
    store.put_many(generation, [record(key, seed, width) for key, seed in seeds.items()])
    store.complete(generation)
    return store, generation
