"""moto's S3 on loopback, behind a layer that makes it fail and slow on demand."""

from __future__ import annotations

import math
import random
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Faults:
    """Answers requests by moto, or as it is told.

    unavailable_share   of the requests are answered with 503
    cut_share           of the contents break off in the middle
    bytes_per_s         of a content; 0: as fast as it goes
    answers             whether there is any answer at all
    answers_left        how many requests more are answered before there is none
    requests            number by method and path
    agents              what programs called themselves, by path
    most_at_once        requests that were being answered at one time
    """

    def __init__(self) -> None:
        self._application = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._at_once = 0
        self.reset()

    def reset(self) -> None:
        self.unavailable_share = self.cut_share = self.bytes_per_s = self.latency_s = 0.0
        self.answers, self.answers_left = True, math.inf
        self.requests: Counter[tuple[str, str]] = Counter()
        self.agents: defaultdict[str, set[str]] = defaultdict(set)
        self.num_unavailable = self.most_at_once = 0
        self._random = random.Random(1)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with self._lock:
            self.requests[environ["REQUEST_METHOD"], environ["PATH_INFO"]] += 1
            self.agents[environ["PATH_INFO"]].add(environ.get("HTTP_USER_AGENT", ""))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            number = self._random.random()
            if not self.answers_left:
                self.answers = False
            self.answers_left -= 1
        try:
            if self.latency_s:
                time.sleep(self.latency_s)
            while not self.answers:
                time.sleep(0.1)
            if number < self.unavailable_share:
                self.num_unavailable += 1
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("503 Slow Down", [("Content-Length", "0")])
                return []
            content = b"".join(self._application(environ, start_response))
            if environ["REQUEST_METHOD"] == "GET" and (self.bytes_per_s or number < self.cut_share):
                return self._slowly(content, number < self.cut_share)
            return [content]
        finally:
            with self._lock:
                self._at_once -= 1

    def _slowly(self, content: bytes, is_cut: bool) -> Iterator[bytes]:
        size = max(1, len(content) // 4)
        for start in range(0, len(content) // 2 if is_cut else len(content), size):
            if self.bytes_per_s:
                time.sleep(size / self.bytes_per_s)
            yield content[start : start + size]
        if is_cut:
            raise ConnectionError("cut")


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any) -> None:
        """Nothing."""


class S3Server:
    """`faults` decide how requests are answered."""

    def __init__(self) -> None:
        self.faults = Faults()
        self._server = make_server("127.0.0.1", 0, self.faults, threaded=True, request_handler=_Quiet)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.client: Any = boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        self._numbers = count()

    def new_bucket(self) -> str:
        """s3://name"""
        name = f"bucket{next(self._numbers)}"  # moto does not decode "%2D", as which obstore's client of GCS sends "-"
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def put_folder(self, folder: Path, path: str) -> None:
        """All files of a folder of this machine."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.put(f"{path}/{file.relative_to(folder)}", file.read_bytes())

    def put(self, path: str, data: bytes) -> None:
        bucket, _, key = path.removeprefix("s3://").partition("/")
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def get(self, path: str) -> bytes:
        bucket, _, key = path.removeprefix("s3://").partition("/")
        return bytes(self.client.get_object(Bucket=bucket, Key=key)["Body"].read())

    def delete(self, path: str) -> None:
        bucket, _, key = path.removeprefix("s3://").partition("/")
        self.client.delete_object(Bucket=bucket, Key=key)

    def keys(self, path: str) -> list[str]:
        bucket, _, prefix = path.removeprefix("s3://").partition("/")
        return [entry["Key"] for entry in self.client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])]

    def check_credentials(self, does: bool) -> None:
        """Whether requests need credentials that moto knows, of which there are none."""
        data = b"0" if does else b"inf"
        address = f"{self.endpoint}/moto-api/reset-auth"
        urllib.request.urlopen(urllib.request.Request(address, data, {"Content-Type": "text/plain"})).close()

    def stop(self) -> None:
        self._server.shutdown()


def s3_server(monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A server that the environment points at."""
    server = S3Server()
    # tensorflow-io has names of its own.
    endpoints = {"AWS_ENDPOINT_URL": server.endpoint, "S3_ENDPOINT": server.endpoint, "S3_USE_HTTPS": "0"}
    for name, value in {**ENVIRONMENT, **endpoints}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    return server
