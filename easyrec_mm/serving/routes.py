"""The routes that take requests to the model over REST.

KServe's own routes parse a body by two frameworks in the event loop, which would double the time of a small request and
hold up all others during a large one. Bodies may be compressed with gzip; large answers are, if the client takes that.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from fastapi import Request, Response
from starlette.exceptions import HTTPException

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON_LENGTH = "inference-header-content-length"
# Answers from this size on are compressed; the network takes smaller ones faster than they can be compressed.
_COMPRESSED_BYTES, _COMPRESSION_LEVEL = 64 << 10, 1
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class Model(Protocol):
    """The model behind the routes."""

    async def predict_v1(self, body: bytes) -> bytes:
        """Return the answer to the body of a V1 request."""

    async def predict_v2(self, body: bytes, json_length: str | None) -> tuple[bytes, int | None]:
        """Return the answer to the body of a V2 request, and the length of its JSON if binary data follow."""


class ModelRoute:
    """Answers POST of one protocol.

    Args:
      model: answers the requests.
      protocol: "v1" or "v2".
      max_bytes: most bytes of a body after it was decompressed.
    """

    def __init__(self, model: Model, protocol: str, max_bytes: int) -> None:
        self._model, self._protocol, self._max_bytes = model, protocol, max_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request.

        Raises:
          HTTPException: if it has another method, or its body is compressed otherwise, damaged or too large.
        """
        request = Request(scope, receive)
        if request.method != "POST":
            raise HTTPException(405, f"{request.method} has no meaning here; send POST", {"allow": "POST"})
        body = await request.body()
        if encoding := request.headers.get("content-encoding", ""):
            body = await decompressed(body, encoding, self._max_bytes)
        headers = {"content-type": "application/json", "vary": "accept-encoding"}
        if self._protocol == "v1":
            content = await self._model.predict_v1(body)
        else:
            content, json_length = await self._model.predict_v2(body, request.headers.get(JSON_LENGTH))
            if json_length is not None:
                headers |= {"content-type": "application/octet-stream", JSON_LENGTH: str(json_length)}
        if len(content) >= _COMPRESSED_BYTES and _takes_gzip(request.headers.get("accept-encoding", "")):
            content = await asyncio.to_thread(gzip.compress, content, _COMPRESSION_LEVEL)
            headers["content-encoding"] = "gzip"
        await Response(content, headers=headers)(scope, receive, send)


async def decompressed(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return a body as it was before it was compressed.

    Raises:
      HTTPException: if it is compressed otherwise than with gzip, damaged, or then larger than `max_bytes`.
    """
    encoding = encoding.strip().lower()
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "x-gzip"):
        text = f"content-encoding {encoding[:60]!r} is not supported; compress with gzip, or not at all"
        raise HTTPException(415, text, {"accept-encoding": "gzip"})
    try:
        plain = await asyncio.to_thread(_gunzipped, body, max_bytes)
    except (zlib.error, EOFError) as error:
        raise HTTPException(400, f"the body is not valid gzip: {error}") from error
    if len(plain) > max_bytes:
        text = f"the decompressed body is larger than {max_bytes} bytes; ask for fewer candidates at a time"
        raise HTTPException(413, text, {"connection": "close"})
    return plain


def _gunzipped(data: bytes, max_bytes: int) -> bytes:
    """Decompress members of gzip, but no more than one byte beyond `max_bytes`."""
    parts, num_left = [], max_bytes + 1
    while data and num_left:
        member = zlib.decompressobj(_GZIP_WINDOW)
        parts.append(member.decompress(data, num_left))
        num_left -= len(parts[-1])
        if num_left and not member.eof:
            raise EOFError("its end is missing")
        data = member.unused_data
    return b"".join(parts)


def _takes_gzip(accepted: str) -> bool:
    """Return whether a header accept-encoding allows gzip."""
    for coding in accepted.lower().split(","):
        name, _, weight = coding.partition(";")
        if name.strip() == "gzip":
            return weight.replace(" ", "").rstrip("0").rstrip(".") not in ("q=", "q=0")
    return False
