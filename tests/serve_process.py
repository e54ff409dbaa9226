"""The command `serve` as a process of its own, and requests to it."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import grpc
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from servers import free_port

ROOT = Path(__file__).parents[1]
JSON = {"content-type": "application/json"}


class Running:
    """A server process on free ports.

    Args:
      rec, store, flags: arguments of `serve`.
      host: where clients connect to.
      context: TLS settings of clients; None for no TLS.
      token: sent with each request over REST.
      open_files: limit of the process.
    """

    def __init__(self, rec, store, *flags, host="127.0.0.1", context=None, token="", open_files=0):
        self.port, self.grpc_port = free_port(), free_port()
        self.rec, self.host, self.context = rec, host, context
        self.headers = {"authorization": f"Bearer {token}"} if token else {}
        command = [sys.executable, "-m", "easyrec_mm", "serve", "--rec_model_dir", rec, "--store", store]
        command += ["--http_port", self.port, "--grpc_port", self.grpc_port, "--reload_every_s", "0.2", *flags]
        if open_files:
            command = ["sh", "-c", 'ulimit -n "$0" && exec "$@"', open_files, *command]
        self.process = subprocess.Popen(
            [str(part) for part in command], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.lines = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self._reader.start()

    def wait_until_ready(self):
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                if self.request("GET", "/v2/models/rec/ready")[0] == 200:
                    return self
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"the server did not start: {self.lines}")

    def end(self, number=signal.SIGTERM):
        """The exit status after a signal."""
        self.process.send_signal(number)
        self.process.wait(60)
        self._reader.join(10)
        return self.process.returncode

    def request(self, method, path, body=None, headers=JSON, timeout=30):
        """Status and content of an answer."""
        return self.exchange(method, path, body, headers, timeout)[:2]

    def exchange(self, method, path, body=None, headers=JSON, timeout=30):
        """Status, content and headers of an answer."""
        connection = self.connect(timeout)
        try:
            content = json.dumps(body) if isinstance(body, dict | list) else body
            connection.request(method, path, content, {**self.headers, **headers})
            return answer_of(connection)
        finally:
            connection.close()

    def exchange_bytes(self, method, path, body=None, headers=JSON, timeout=30):
        """Status, content as it is, and headers of an answer."""
        connection = self.connect(timeout)
        try:
            connection.request(method, path, body, {**self.headers, **headers})
            response = connection.getresponse()
            return response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}
        finally:
            connection.close()

    def connect(self, timeout=30):
        """A connection of http.client."""
        if self.context:
            return http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=self.context)
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def socket(self, timeout=30):
        """A bare connection."""
        return socket.create_connection((self.host, self.port), timeout=timeout)

    def predict(self, instances, timeout=30, **more):
        return self.request("POST", "/v1/models/rec:predict", {"instances": instances, **more}, timeout=timeout)

    def metric(self, name):
        """Value of a metric by its name with labels, 0 where it is not there."""
        lines = self.request("GET", "/metrics")[1].splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name), 0.0)

    def logs(self):
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def channel(self, credentials=None):
        """A channel of gRPC."""
        address = f"[{self.host}]:{self.grpc_port}" if ":" in self.host else f"{self.host}:{self.grpc_port}"
        return grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)

    def stub(self, credentials=None):
        return GRPCInferenceServiceStub(self.channel(credentials))


def answer_of(connection):
    """Status, content and headers of the answer to the request that was sent."""
    response = connection.getresponse()
    content = response.read()
    is_json = response.getheader("content-type", "").startswith("application/json")
    headers = {name.lower(): value for name, value in response.getheaders()}
    return response.status, json.loads(content) if is_json else content.decode(), headers


@contextmanager
def running(*arguments, **options):
    server = Running(*arguments, **options)
    try:
        yield server.wait_until_ready()
    finally:
        if server.process.poll() is None:
            server.end()


@contextmanager
def asked(server, body):
    """Send a request again and again from two threads meanwhile; yields the list of replies."""
    replies, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            replies.append(server.request("POST", "/v1/models/rec:predict", body))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield replies
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def wait_for(condition, seconds=30):
    """Return when a condition is true."""
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")
