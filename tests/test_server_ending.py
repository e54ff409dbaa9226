"""How the server ends: requests under way are answered, new ones refused, within a bounded time."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import redis
from flow_helpers import embed
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kserve import InferInput, InferRequest, InferResponse
from serve_process import answer_of, running, wait_for

PREDICT = "/v1/models/rec:predict"


def request_of(instances):
    """The same request over gRPC."""
    inputs = []
    for name in instances[0]:
        values = [instance[name] for instance in instances]
        if isinstance(values[0], str):
            inputs.append(InferInput(name, [len(values)], "BYTES", [value.encode() for value in values]))
        else:
            inputs.append(InferInput(name, [len(values)], "FP32" if isinstance(values[0], float) else "INT64", values))
    return InferRequest("rec", inputs).to_grpc()


def refused_by_grpc(call):
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), raised.value.details()


@pytest.mark.slow
def test_requests_under_way_are_answered(exported, serving_place, samples, servers):
    """Over REST and gRPC, while a store is slow: readiness goes first, then new requests are refused."""
    uri = f"{servers('redis').uri}?prefix=ending"
    embed(exported, uri)
    instances = samples[0][:3]
    with running(serving_place / "rec", uri) as server, ThreadPoolExecutor(12) as pool:
        expected = server.predict(instances)[1]["predictions"]
        health = health_pb2_grpc.HealthStub(server.channel())
        watched = health.Watch(health_pb2.HealthCheckRequest(service="rec"))
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        idle = server.connect()  # kept open by its client
        idle.request("GET", "/v2/health/live", headers={})
        assert "connection" not in answer_of(idle)[2]
        stub = server.stub()
        redis.Redis.from_url(uri.partition("?")[0]).execute_command("CLIENT", "PAUSE", 1500)
        by_rest = [pool.submit(server.exchange, "POST", PREDICT, {"instances": instances}) for _ in range(8)]
        by_grpc = [pool.submit(stub.ModelInfer, request_of(instances)) for _ in range(4)]
        gauge = "easyrec_mm_requests_under_way"
        wait_for(lambda: server.metric(f'{gauge}{{protocol="rest"}}') == 8)
        wait_for(lambda: server.metric(f'{gauge}{{protocol="grpc"}}') == 4)
        server.process.send_signal(signal.SIGTERM)
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for path in ("/v2/health/ready", "/v2/models/rec/ready", "/v1/models/rec"):
            assert server.request("GET", path)[0] == 503
        time.sleep(0.2)
        assert server.request("GET", "/v2/health/live")[0] == 200
        idle.request("POST", PREDICT, json.dumps({"instances": instances}))
        status, answer, headers = answer_of(idle)
        assert (status, headers["connection"]) == (503, "close")
        assert "about to end" in answer["error"]
        code, details = refused_by_grpc(lambda: stub.ModelInfer(request_of(instances)))
        assert (code, "about to end" in details) == (grpc.StatusCode.UNAVAILABLE, True)
        assert server.metric('easyrec_mm_refusals_total{reason="ending"}') == 2
        for future in by_rest:
            status, answer, headers = future.result()
            assert (status, answer["predictions"], headers["connection"]) == (200, expected, "close")
        for future in by_grpc:
            outputs = {output.name: output.as_numpy() for output in InferResponse.from_grpc(future.result()).outputs}
            assert outputs["logits_click"].tolist() == pytest.approx([p["logits_click"] for p in expected])
        assert server.process.wait(30) == 0
        assert not any("exception" in line for line in server.logs())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_clients_that_send_on_are_answered_until_the_end(serving_place, samples, workers):
    """No connection is reset: each request gets its prediction, a refusal, or no connection. The signal goes to all
    processes, as that of a terminal does."""
    body = json.dumps({"instances": samples[0][:2]})
    outcomes, has_ended = [], threading.Event()
    flags = ["--workers", workers]

    def ask(server):
        connection = server.connect()
        while not has_ended.is_set():
            try:
                connection.connect()
            except ConnectionError:  # no request is lost
                return
            try:
                is_last = False
                while not is_last:
                    connection.request("POST", PREDICT, body)
                    status, _, headers = answer_of(connection)
                    outcomes.append(status)
                    is_last = headers.get("connection") == "close"
            except (OSError, http.client.HTTPException) as error:
                outcomes.append(repr(error))
            connection.close()

    with running(serving_place / "rec", f"lmdb://{serving_place}/store", *flags) as server:
        wait_for(lambda: sum(line["message"] == "serving" for line in server.logs()) == (3 if workers == 2 else 1))
        asking = [threading.Thread(target=ask, args=(server,)) for _ in range(8)]
        for thread in asking:
            thread.start()
        wait_for(lambda: len(outcomes) > 50)
        os.killpg(server.process.pid, signal.SIGTERM)
        try:
            assert server.process.wait(30) == 0
        finally:
            has_ended.set()
            for thread in asking:
                thread.join()
    assert set(outcomes) == {200, 503}


def half_sent(server, instances):
    """A connection that has sent a request but for the end of its body, and that end."""
    body = json.dumps({"instances": instances}).encode()
    connection = server.socket()
    connection.sendall(f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode())
    connection.sendall(body[:-10])
    wait_for(lambda: server.metric('easyrec_mm_requests_under_way{protocol="rest"}') >= 1)
    return connection, body[-10:]


def test_a_request_that_is_still_being_sent_is_answered(serving_place, samples):
    with running(serving_place / "rec", f"lmdb://{serving_place}/store") as server:
        connection, rest = half_sent(server, samples[0][:2])
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert server.process.poll() is None
        connection.sendall(rest)
        answer = b""
        while received := connection.recv(1 << 16):
            answer += received
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nconnection: close\r\n" in answer
        assert server.process.wait(30) == 0


def test_the_wait_is_bounded(serving_place, samples):
    flags = ["--drain_s", "1"]
    with running(serving_place / "rec", f"lmdb://{serving_place}/store", *flags) as server:
        connection, _ = half_sent(server, samples[0][:2])
        assert server.end() == 0
        assert connection.recv(100) == b""
        assert any("ends with 1 requests that are not answered" in line["message"] for line in server.logs())


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_second_signal_ends_at_once(serving_place, samples, workers, number):
    flags = ["--drain_s", "600", "--request_s", "600", "--workers", workers]
    with running(serving_place / "rec", f"lmdb://{serving_place}/store", *flags) as server:
        half_sent(server, samples[0][:2])
        server.process.send_signal(number)
        time.sleep(0.5)
        assert server.process.poll() is None
        assert server.end(number) == 128 + number
        wait_for(lambda: not processes_of(server.process.pid))


def processes_of(group):
    """The processes of a group that are there."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.getpgid(int(name)) == group:
                with open(f"/proc/{name}/stat") as file:
                    if file.read().rpartition(")")[2].split()[0] != "Z":
                        found.append(int(name))
        except OSError:
            continue
    return found
