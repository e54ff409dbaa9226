"""Stores of image vectors: picture key -> vector, organised in generations; one generation is current.

A generation contains the vectors of one image tower, identified by its fingerprint, all of the same width and number
format. Readers see the current generation; another tower's vectors go into a new generation, which becomes current in
one step when it is complete. The previous generation stays for a rollback until it is pruned. A key may be marked
absent, which means that its picture is bad.

To add a store, subclass `Store` (base.py) in a new file, and add its scheme to SCHEMES and STORE_SCHEMES
(features/vector_feature.py).
"""

from __future__ import annotations

from importlib import import_module

from easyrec_mm.errors import StoreError, did_you_mean
from easyrec_mm.safe_text import hide_secrets
from easyrec_mm.store.base import Store
from easyrec_mm.store.generations import Generation, Meta
from easyrec_mm.store.records import Record, State, Vectors

__all__ = ["Generation", "Meta", "Record", "State", "Store", "Vectors", "open_store"]

# Scheme -> module and class; imported when used, so that only the driver of the used store must be installed.
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
      uri: URI of the store.
      writable: whether to open it for writing as well, and to create it if it does not exist.

    Raises:
      StoreError: if the store does not exist or cannot be reached.
    """
    scheme = uri.partition("://")[0].lower() if "://" in uri else ""
    if scheme not in SCHEMES:
        raise StoreError(f"--store {uri}: no store has the scheme '{scheme}://'; {did_you_mean(scheme, SCHEMES)}")
    module, name = SCHEMES[scheme]
    try:
        store: Store = getattr(import_module(module), name)(uri, writable)
    except StoreError as error:
        raise StoreError(hide_secrets(str(error), uri)) from error  # drivers quote parts of an address
    except ValueError as error:
        text = "is not an address; write / ? # @ [ ] in a password as %2F %3F %23 %40 %5B %5D"
        raise StoreError(f"{hide_secrets(uri)}: {text}") from error
    return store
