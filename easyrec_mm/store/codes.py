"""Where the codes of a store's vectors are, and what names their origin.

Codes (semantic IDs) and the codebooks that assign them are stores of their own beside that of the vectors, so that
they have generations, leases, dumps and look-ups as all vectors have.

    codes      key of an item -> its code at each level, whole numbers from 1 as float32; 0 stands for no code
    codebooks  "level/code", as in 2/17 -> the centroid of that code

Both have the same origin, which names all that codes depend on.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit, urlunsplit

from easyrec_mm.errors import StoreError

MAX_LEVELS, MAX_CODES = 16, 65536
# Scheme -> the option that names a store within a server, its default, and what comes before the name of another one.
_NAMED_BY = {
    "redis": ("prefix", "easyrec_mm", ":"),
    "rediss": ("prefix", "easyrec_mm", ":"),
    "postgresql": ("table", "image_vectors", "_"),
    "postgres": ("table", "image_vectors", "_"),
}
_ORIGIN = re.compile(r"codes (\d+)x(\d+) ([0-9a-f]{32}) of (.+)", re.DOTALL)


class Shape(NamedTuple):
    """The number of levels, and of codes per level."""

    levels: int
    codes: int

    def __str__(self) -> str:
        return f"{self.levels}x{self.codes}"


class CodesOrigin(NamedTuple):
    """The origin of codes: their shape, the checksum of the codebooks, and the fingerprint of the vectors."""

    shape: Shape
    checksum: str
    vectors: str

    def __str__(self) -> str:
        return f"codes {self.shape} {self.checksum} of {self.vectors}"


def parse_origin(fingerprint: str) -> CodesOrigin | None:
    """Return the origin of codes that the fingerprint of a generation names; None for one of other vectors."""
    match = _ORIGIN.fullmatch(fingerprint)
    return match and CodesOrigin(Shape(int(match[1]), int(match[2])), match[3], match[4])


def codes_uri(uri: str) -> str:
    """Return the URI of the codes of a store's vectors."""
    return _beside(uri, "codes")


def codebooks_uri(uri: str) -> str:
    """Return the URI of the codebooks of a store's vectors."""
    return _beside(uri, "codebooks")


def _beside(uri: str, name: str) -> str:
    scheme = uri.partition("://")[0].lower()
    if scheme not in _NAMED_BY:
        return f"{uri.rstrip('/')}/{name}"
    option, default, separator = _NAMED_BY[scheme]
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise StoreError("--store: is not an address; write special characters of a password as %XX") from error
    own = parse_qs(parts.query).get(option, [default])[0]
    # Other options stay as they are, because they may not be the same after parsing and writing.
    others = [text for text in parts.query.split("&") if text and text.partition("=")[0] != option]
    return urlunsplit(parts._replace(query="&".join([*others, f"{option}={own}{separator}{name}"])))
