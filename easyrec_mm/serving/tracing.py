"""Ids by which a request is found again in the logs: W3C's `traceparent`, and `x-request-id`.

Both are taken from the headers or the gRPC metadata of a request, added to the log lines that are written while it is
answered, and sent back with the answer. What a client sends is shortened and freed of all that is not printable first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextvars import ContextVar

TRACEPARENT, REQUEST_ID = "traceparent", "x-request-id"
_KEYS = {name.encode(): name for name in (TRACEPARENT, REQUEST_ID)}
# https://www.w3.org/TR/trace-context: version, trace, parent and flags; a trace or parent of zeros is not valid.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_NOT_PRINTABLE = re.compile(r"[^\x21-\x7e]")
_MOST_CHARACTERS = 128

# The ids of the request that the current task or thread answers.
current: ContextVar[dict[str, str] | None] = ContextVar("trace_ids", default=None)


def ids_of_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the ids among the headers of an HTTP request, by header."""
    pairs = ((_KEYS[name], value.decode("latin-1")) for name, value in headers if name in _KEYS)
    return _clean(pairs)


def ids_of_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """Return the ids among the metadata of a gRPC request, by key."""
    pairs = ((key, str(value)) for key, value in metadata if key in (TRACEPARENT, REQUEST_ID))
    return _clean(pairs)


def log_fields() -> dict[str, str]:
    """Return the fields of a log line that name the current request."""
    ids = current.get()
    if not ids:
        return {}
    fields = {}
    if TRACEPARENT in ids:
        _, fields["trace_id"], fields["span_id"], _ = ids[TRACEPARENT].split("-")
    if REQUEST_ID in ids:
        fields["request_id"] = ids[REQUEST_ID]
    return fields


def _clean(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    ids = {}
    for name, value in pairs:
        if name == REQUEST_ID:
            value = _NOT_PRINTABLE.sub("?", value[:_MOST_CHARACTERS])
        elif not _TRACEPARENT.fullmatch(value):
            continue
        if value:
            ids[name] = value
    return ids
