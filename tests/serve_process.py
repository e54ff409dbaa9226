"""The command `serve` as a process of its own, and requests to it."""

from __future__ import annotations

import http.client
import json
import signal
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
    """A server process on free ports."""

    def __init__(self, rec, store, *flags):
        self.port, self.grpc_port = free_port(), free_port()
        self.rec = rec
        command = [sys.executable, "-m", "easyrec_mm", "serve", "--rec_model_dir", rec, "--store", store]
        command += ["--http_port", self.port, "--grpc_port", self.grpc_port, "--reload_every_s", "0.2", *flags]
        self.process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
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
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, json.dumps(body) if isinstance(body, dict | list) else body, headers)
            response = connection.getresponse()
            content = response.read()
            is_json = response.getheader("content-type", "").startswith("application/json")
            return response.status, json.loads(content) if is_json else content.decode()
        finally:
            connection.close()

    def predict(self, instances, timeout=30, **more):
        return self.request("POST", "/v1/models/rec:predict", {"instances": instances, **more}, timeout=timeout)

    def metric(self, name):
        """Value of a metric by its name with labels, 0 where it is not there."""
        lines = self.request("GET", "/metrics")[1].splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name), 0.0)

    def logs(self):
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def stub(self):
        return GRPCInferenceServiceStub(grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}"))


@contextmanager
def running(*arguments):
    server = Running(*arguments)
    try:
        yield server.wait_until_ready()
    finally:
        if server.process.poll() is None:
            server.end()


def wait_for(condition, seconds=30):
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")
