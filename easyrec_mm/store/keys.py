"""Keys as bytes, and what is stored for keys that a store cannot hold as they are.

A request or a table may hold any text as a key: very long ones, with NUL, or with half of a surrogate pair, as JSON
allows. Such a key must not fail the others that are asked for with it.
"""

from __future__ import annotations

import hashlib
import struct

_LENGTH = struct.Struct("<I")


def key_bytes(key: str) -> bytes:
    """Return a key as bytes: UTF-8, in which surrogates are allowed."""
    return key.encode("utf-8", "surrogatepass")


def key_of(encoded: bytes) -> str:
    """Return the key of its bytes."""
    return encoded.decode("utf-8", "surrogatepass")


def is_text(key: str) -> bool:
    """Return whether a key is Unicode, without halves of surrogate pairs, so that a table can hold it."""
    return key.isascii() or not any("\ud800" <= character <= "\udfff" for character in key)


def digest(key: str) -> bytes:
    """Return 32 bytes that stand for a key which a store cannot hold."""
    return hashlib.blake2b(key_bytes(key), digest_size=32).digest()


def with_key(record: bytes, key: str) -> bytes:
    """Return the value to store under the digest of a key: the record, the key and the key's length."""
    encoded = key_bytes(key)
    return record + encoded + _LENGTH.pack(len(encoded))


def split_key(value: bytes) -> tuple[str, bytes]:
    """Return the key and the record of such a value."""
    (length,) = _LENGTH.unpack(value[-_LENGTH.size :])
    end = len(value) - _LENGTH.size
    return key_of(value[end - length : end]), value[: end - length]
