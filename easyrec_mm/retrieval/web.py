"""A web page on which a store is searched: its routes, and the server from its start to a signal.

Connections and their limits are those of the model server (serving/). The browser gets nothing but the page, small
JPEGs of pictures below image_root by the keys of items, and results; what it sends is a picture of limited size and
some texts, and no path or address in them is ever opened.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import logging
import math
import re
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from easyrec_mm.data.whole_pictures import decode_whole, thumbnail
from easyrec_mm.errors import UserError
from easyrec_mm.pages.render import render
from easyrec_mm.retrieval.query import Sought
from easyrec_mm.retrieval.searcher import Hit, Ranking, Searcher
from easyrec_mm.serving.connections import Connections, Limits, most_connections
from easyrec_mm.serving.listening import RestListener, bind
from easyrec_mm.serving.picture_source import MAX_PICTURE_BYTES, PictureSource
from easyrec_mm.serving.traffic import Traffic
from easyrec_mm.store.search import THUMBNAIL

_LOG = logging.getLogger("easyrec_mm.search")
_MOST_TEXT, _MOST_RESULTS = 10_000, 200
_REQUEST_S, _IDLE_S, _DRAIN_S, _FLUSH_S, _READING_S, _TICK_S = 30.0, 75.0, 25.0, 2.0, 10.0, 1.0
_MOST_REQUESTS = 256
_THREADS = 4

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class PageOptions:
    """Options of the page.

    host, port      where it listens; port 0 takes a free one
    image_root      folder of the pictures that are shown; "" shows none
    picture_column  column of the metadata with the paths of pictures; "" if keys are paths
    top_k           number of results unless the page asks for another
    ranking         how the rec model ranks if that is chosen on the page; None without a rec model
    fields          further fields of queries that the image model reads: field -> its text
    """

    host: str = "127.0.0.1"
    port: int = 8082
    image_root: str = ""
    picture_column: str = ""
    top_k: int = 12
    ranking: Ranking | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


def serve(searcher: Searcher, options: PageOptions, announce: Callable[[str], None]) -> int:
    """Serve the page until a signal; return the exit status: 0, or 128 + n after a second signal n.

    Args:
      searcher: what is searched.
      options: options of the page.
      announce: is told the page's address as soon as it can be opened.

    Raises:
      UserError: if the address or port cannot be used, or what is searched cannot be loaded.
    """
    if options.port > 65535:
        raise UserError(f"--port {options.port}: is not a port; give a number up to 65535")
    with bind("--port", options.host, options.port) as listener:
        searcher.load()
        if options.ranking is not None and searcher.ranker is not None:
            searcher.ranker.require_output(options.ranking.output)
        return asyncio.run(_serve(searcher, options, listener, announce))


async def _serve(searcher: Searcher, options: PageOptions, listener: Any, announce: Callable[[str], None]) -> int:
    loop = asyncio.get_running_loop()
    end, status = asyncio.Event(), 0
    traffic = Traffic(_MOST_REQUESTS)
    connections = Connections(most_connections()[0], Limits(_REQUEST_S, _IDLE_S), traffic)
    address, port = listener.getsockname()[:2]
    page = Page(searcher, options, ipaddress.ip_address(address).is_loopback)
    rest = RestListener(_Gate(page.routes(), traffic, connections), connections, None)

    def on_signal(number: int) -> None:
        nonlocal status
        if end.is_set():
            status = 128 + number
            traffic.hurry()
        end.set()

    async def tick() -> None:
        while True:
            rest.tick()
            await asyncio.sleep(_TICK_S)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    await rest.start(listener)
    ticking = asyncio.create_task(tick())
    if not page.is_local:
        _LOG.warning("other machines can open this page at %s: they can search the store and see its pictures", address)
    announce(f"http://{f'[{address}]' if ':' in address else address}:{port}")
    await end.wait()
    is_idle = await traffic.drain(_DRAIN_S, _nobody_to_tell)
    await rest.stop(_FLUSH_S if is_idle else 0.0, is_shared=False)
    ticking.cancel()
    await page.close()
    return status


async def _nobody_to_tell() -> None:
    """Stand for watchers of the server's state, of which this page has none."""


class Page:
    """The routes of the page.

    Args:
      searcher: what is searched, loaded.
      options: options of the page.
      is_local: whether it listens on this machine only; other names of it are refused then, because a website whose
        name leads here (DNS rebinding) could read the results otherwise.
    """

    def __init__(self, searcher: Searcher, options: PageOptions, is_local: bool) -> None:
        self._searcher, self._options, self.is_local = searcher, options, is_local
        self._pictures = PictureSource(options.image_root, (), _READING_S)
        self._threads = ThreadPoolExecutor(_THREADS, "search")

    def routes(self) -> Starlette:
        """Return the application."""
        routes = [
            Route("/", self._page, methods=["GET"]),
            Route("/picture", self._picture, methods=["GET"]),
            Route("/search", self._search, methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _tell, UserError: _tell_mistake})

    async def close(self) -> None:
        """Let go of threads and connections."""
        await self._pictures.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _page(self, request: Request) -> Response:
        self._require_name(request)
        searcher, options = self._searcher, self._options
        encoder, metadata = searcher.encoder, searcher.options.metadata
        number, nonce = len(searcher.index.keys), secrets.token_urlsafe(16)
        columns = [f"{f.name} ({f.type})" for f in metadata.schema if f.name in metadata.columns] if metadata else []
        content = render(
            "search_page.html", title="Search", nonce=nonce, number=number, columns=columns, top_k=options.top_k,
            most=_MOST_RESULTS, side=THUMBNAIL, most_bytes=MAX_PICTURE_BYTES,
            takes_pictures=bool(encoder and encoder.takes_pictures),
            takes_texts=bool(encoder and encoder.takes_texts), has_ranking=options.ranking is not None,
            first_key=searcher.index.keys[0],
        )  # fmt: skip
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; img-src 'self' data: blob:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(content, headers={"content-security-policy": policy, "cache-control": "no-store"})

    async def _picture(self, request: Request) -> Response:
        """Answer with a small JPEG of the picture of an item; the path is that of the store or of the metadata."""
        self._require_name(request)
        key = request.query_params.get("key", "")
        if not self._searcher.has(key):
            raise HTTPException(404, "the store has no item with this key")
        path = self._path_of(key)
        content = await self._pictures.read(path) if path and self._options.image_root else None
        small = await self._in_thread(_small, content) if content else None
        if small is None:
            return Response(status_code=204)  # browsers would write an error to their console for 404
        return Response(small, media_type="image/jpeg", headers={"cache-control": "private, max-age=300"})

    async def _search(self, request: Request) -> Response:
        self._require_name(request)
        started = time.perf_counter()
        parameters = request.query_params
        if any(len(value) > _MOST_TEXT for value in parameters.values()):
            raise HTTPException(400, f"a text has more than {_MOST_TEXT} characters; make it shorter")
        number = parameters.get("k", str(self._options.top_k))
        if not (number.isascii() and number.isdecimal() and 1 <= int(number) <= _MOST_RESULTS):
            raise HTTPException(400, f"number of results: give a whole number from 1 to {_MOST_RESULTS}")
        ranking = self._options.ranking if parameters.get("rank") == "1" else None
        content = await _body(request)
        key, text = parameters.get("key", ""), parameters.get("text", "").strip() or None
        fields = {} if key else self._options.fields
        if not (key or text or content):
            raise HTTPException(400, "give a picture, a text or a key")
        sought = Sought(key, content, text, fields)
        run = partial(self._searcher.search, sought, int(number), parameters.get("filter", ""), ranking)
        hits = await self._in_thread(run)
        seconds = round(time.perf_counter() - started, 4)
        return JSONResponse({"seconds": seconds, "hits": [_shown(hit) for hit in hits]})

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _path_of(self, key: str) -> str:
        metadata, column = self._searcher.options.metadata, self._options.picture_column
        if metadata is not None and column:
            return str(metadata.values([key], [column])[0][column] or "")
        return key

    def _require_name(self, request: Request) -> None:
        name = request.url.hostname or ""
        if not self.is_local or name == "localhost":
            return
        try:
            is_here = ipaddress.ip_address(name.strip("[]")).is_loopback
        except ValueError:
            is_here = False
        if not is_here:
            raise HTTPException(403, "open this page by the address that the command prints")


class _Gate:
    """Counts requests, refuses those beyond the limits, and answers for errors that nothing else answers."""

    def __init__(self, application: Starlette, traffic: Traffic, connections: Connections) -> None:
        self._application, self._traffic, self._connections = application, traffic, connections

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        is_started = False

        async def send_safely(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                headers = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
                if not self._traffic.is_ready:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            await send(message)

        if refusal := self._traffic.refusal(self._connections.being_answered):
            headers = {"connection": "close"}
            await JSONResponse({"error": refusal.message}, 503, headers)(scope, receive, send_safely)
            return
        self._traffic.begin("rest")
        try:
            await self._application(scope, receive, send_safely)
        except ClientDisconnect:
            pass
        except Exception as error:
            _LOG.error("a request has failed", exc_info=error)
            if not is_started:
                text = "the search has failed; the reason is in the output of the command"
                await JSONResponse({"error": text}, 500)(scope, receive, send_safely)
        finally:
            self._traffic.end("rest")


async def _tell(_: Request, error: Exception) -> Response:
    status, text = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
    headers = {"connection": "close"} if status == 413 else None
    return JSONResponse({"error": text}, status, headers)


async def _tell_mistake(_: Request, error: Exception) -> Response:
    # The page has fields in place of the flags of the command.
    return JSONResponse({"error": re.sub(r"(?<![\w-])--(\w+)", r"\1", str(error))}, 400)


async def _body(request: Request) -> bytes:
    """Return the picture that a request sends; no more than a limited number of bytes are kept."""
    text = f"the picture has more than {MAX_PICTURE_BYTES >> 20} MiB; make it smaller"
    length = request.headers.get("content-length", "0")
    is_large = length.isdecimal() and int(length) > MAX_PICTURE_BYTES
    content = bytearray()
    async for chunk in request.stream():
        # A client that still sends would not see an answer before all is read; what is too much is dropped.
        is_large = is_large or len(content) + len(chunk) > MAX_PICTURE_BYTES
        if not is_large:
            content += chunk
    if is_large:
        raise HTTPException(413, text)
    return bytes(content)


def _small(content: bytes) -> bytes | None:
    try:
        return thumbnail(decode_whole(content), THUMBNAIL)
    except ValueError:
        return None


def _shown(hit: Hit) -> dict[str, Any]:
    neighbour = hit.neighbour
    values = {name: _json_value(value) for name, value in hit.values.items() if value is not None}
    return {**neighbour._asdict(), "score": hit.score, "values": values}


def _json_value(value: object) -> object:
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else str(value)
    if isinstance(value, bool | int | str):
        return str(value) if isinstance(value, int) else value
    if isinstance(value, datetime.datetime | datetime.date):
        return value.isoformat()
    return str(value)
