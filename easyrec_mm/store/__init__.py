"""Stores of image vectors: picture key -> vector, in generations of which one is current.

A generation holds the vectors of one image tower, told by its fingerprint, all of one width and number format. Readers
see the current one; another tower's vectors go into a new generation, which becomes current in one step when it is
complete. The one before stays for a rollback until it is pruned. A key may be marked absent: its picture was bad.

To add a store, subclass `Store` (base.py) in a file of its own and add its scheme to SCHEMES and STORE_SCHEMES
(features/vector_feature.py).
"""

from __future__ import annotations

from importlib import import_module
from urllib.parse import urlsplit

from easyrec_mm.errors import StoreError, did_you_mean
from easyrec_mm.store.base import Generation, Meta, Record, State, Store, Vectors

__all__ = ["Generation", "Meta", "Record", "State", "Store", "Vectors", "open_store"]

# Scheme -> module and class; loaded when used, so that nobody needs the driver of a store that he does not use.
SCHEMES = {
    "lmdb": ("easyrec_mm.store.lmdb_store", "LmdbStore"),
    "redis": ("easyrec_mm.store.redis_store", "RedisStore"),
    "rediss": ("easyrec_mm.store.redis_store", "RedisStore"),
    "postgresql": ("easyrec_mm.store.postgres_store", "PostgresStore"),
    "postgres": ("easyrec_mm.store.postgres_store", "PostgresStore"),
}


def open_store(uri: str, writable: bool = False) -> Store:
    """Open the store of a URI: lmdb://path, redis://host:port/db, postgresql://user@host/db.

    Args:
      uri: where it is.
      writable: also to write, and to make it where it does not exist.

    Raises:
      StoreError: if there is none, or it cannot be reached.
    """
    scheme = urlsplit(uri).scheme
    if scheme not in SCHEMES:
        raise StoreError(f"--store {uri}: no store has the scheme '{scheme}://'; {did_you_mean(scheme, SCHEMES)}")
    module, name = SCHEMES[scheme]
    store: Store = getattr(import_module(module), name)(uri, writable)
    return store
