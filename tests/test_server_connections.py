"""Clients that hold connections: idle, slow, or not taking their answers; and what is not HTTP."""

from __future__ import annotations

import json
import select
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serve_process import running, wait_for

PREDICT = "/v1/models/rec:predict"
OPEN_FILES = 300


@pytest.fixture(scope="module")
def impatient(serving_place):
    """A server that gives clients little time."""
    flags = ["--request_s", "1", "--idle_s", "3"]
    with running(serving_place / "rec", f"lmdb://{serving_place}/store", *flags) as server:
        yield server


def received(connection):
    """All that a server sends until it closes the connection."""
    content = b""
    try:
        while part := connection.recv(1 << 16):
            content += part
    except ConnectionResetError:
        pass
    return content


def refusals(server, reason):
    return server.metric(f'easyrec_mm_refusals_total{{reason="{reason}"}}')


@pytest.mark.parametrize("sent", [b"", b"POST /v1/models/rec:predict HTTP/1.1\r\nx: "])
def test_more_connections_than_files(serving_place, samples, sent):
    """Health, metrics and predictions are answered, however many connections a client holds."""
    place = serving_place / "rec", f"lmdb://{serving_place}/store"
    with running(*place, open_files=OPEN_FILES) as server:
        held = []
        for _ in range(2 * OPEN_FILES):
            held.append(server.socket())
            held[-1].sendall(sent)
        for path in ("/v2/health/live", "/v2/health/ready", "/metrics"):
            assert server.request("GET", path)[0] == 200
        assert server.predict(samples[0][:2])[0] == 200
        assert refusals(server, "no_room") > 100
        health = health_pb2_grpc.HealthStub(server.channel())
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        for connection in held:
            connection.close()
        wait_for(lambda: server.metric("easyrec_mm_connections") == 1)


def test_more_idle_connections_than_requests_are_allowed(serving_place, samples):
    """They take part in no limit: only requests that are being answered count."""
    flags = ["--max_connections", 5]
    with running(serving_place / "rec", f"lmdb://{serving_place}/store", *flags) as server:
        held = [server.socket() for _ in range(1001)]
        assert server.request("GET", "/v2/health/live")[0] == 200
        assert "easyrec_mm_connections 1002.0" in server.request("GET", "/metrics")[1]
        assert server.predict(samples[0][:2])[0] == 200
        assert len(held) == 1001


@pytest.mark.slow
def test_idle_connections_over_grpc(serving_place, samples):
    place = serving_place / "rec", f"lmdb://{serving_place}/store"
    with running(*place, "--idle_s", "1", "--request_s", "1", open_files=OPEN_FILES) as server:
        held = [socket.create_connection(("127.0.0.1", server.grpc_port)) for _ in range(2 * OPEN_FILES)]
        assert server.request("GET", "/v2/health/live")[0] == 200
        assert server.predict(samples[0][:2])[0] == 200
        health = health_pb2_grpc.HealthStub(server.channel())
        request = health_pb2.HealthCheckRequest(service="rec")
        # They are closed after their time; then there is room again.
        answer = health.Check(request, wait_for_ready=True, timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert len(held) == 2 * OPEN_FILES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (b"", None, ""),
        (b"POST ", 408, "the head of the request took more than 1 s"),
        (b"GET / HTTP/1.1\r\nhost: x\r\n", 408, "the head of the request took more than 1 s"),
        (b"POST %b HTTP/1.1\r\ncontent-length: 100\r\n\r\n{", 408, "the body of the request took more than 1 s"),
        (b"POST %b HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n", 408, "the body of the request took"),
        (b"POST /v2/models/rec/infer HTTP/1.1\r\ncontent-length: 9\r\n\r\n", 408, "the body of the request took"),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000, 431, "the head of the request is larger than 65536 bytes"),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 431, "the head of the request is larger than"),
        (b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\n\r\n", 431, "the head of the request is larger than"),
        (b"no such method\r\n\r\n", 400, "Invalid HTTP request received."),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400, "Invalid HTTP request received."),
        (b"CONNECT x:1 HTTP/1.1\r\n\r\n", 400, "Invalid HTTP request received."),
    ],
)
def test_what_is_never_a_request(impatient, sent, status, message):
    connection = impatient.socket()
    connection.sendall(sent.replace(b"%b", PREDICT.encode()))
    answer = received(connection)
    if status is None:
        assert answer == b""
        return
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\nconnection: close" in head
    assert message in json.loads(body)["error"]


@pytest.mark.slow
def test_a_connection_is_kept_between_requests_for_its_time(impatient, samples):
    connection = impatient.connect()
    for _ in range(2):
        connection.request("POST", PREDICT, json.dumps({"instances": samples[0][:2]}))
        assert connection.getresponse().read()
    late = connection.sock
    assert received(late) == b""


@pytest.mark.slow
def test_an_answer_that_is_not_taken(impatient, samples):
    """The connection is closed after its time, and its memory is free."""
    before = impatient.metric("easyrec_mm_connections")
    body = json.dumps({"instances": samples[0][:40] * 100}).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.connect(("127.0.0.1", impatient.port))
    head = f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    connection.sendall(head + body)
    select.select([connection], [], [], 30)  # the answer has begun
    assert impatient.metric("easyrec_mm_connections") == before + 1
    wait_for(lambda: impatient.metric("easyrec_mm_connections") == before)


@pytest.mark.slow
def test_requests_that_are_sent_ahead_and_upgrades(impatient, samples):
    """Several requests at once are answered in their order; a wish for another protocol changes nothing."""
    body = json.dumps({"instances": samples[0][:2]}).encode()
    more = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: x\r\n"
    request = f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n".encode()
    connection = impatient.socket()
    connection.sendall((request + b"\r\n" + body) * 3)
    assert received(connection).count(b"HTTP/1.1 200 OK") == 3
    connection = impatient.socket()
    connection.sendall(request + more + b"\r\n" + body)
    assert received(connection).count(b"HTTP/1.1 200 OK") == 1


def test_a_body_that_is_refused_before_it_is_sent(impatient):
    """The client gets the answer, though it sends on."""
    connection = impatient.socket()
    connection.sendall(f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ncontent-length: {20 << 20}\r\n\r\n".encode())
    connection.sendall(b"x" * (20 << 20))
    assert received(connection).startswith(b"HTTP/1.1 413 ")


def test_bodies_that_together_are_too_large(serving_place, samples):
    """The memory that requests take before they are answered is bounded."""
    flags = ["--max_request_bytes", "10000"]
    with running(serving_place / "rec", f"lmdb://{serving_place}/store", *flags) as server:
        head = f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ncontent-length: 10000\r\n\r\n".encode()
        held = [server.socket() for _ in range(70)]
        for connection in held:
            connection.sendall(head + b"x" * 9_900)
        refused, _, _ = select.select(held, [], [], 30)
        assert received(refused[0]).startswith(b"HTTP/1.1 503 ")
        for connection in held:
            connection.close()
        wait_for(lambda: server.predict(samples[0][:2])[0] == 200)


def test_a_message_that_never_comes_over_grpc(impatient):
    def nothing():
        yield from ()

    call = impatient.channel().stream_unary("/inference.GRPCInferenceService/ModelInfer")

    def silent():
        select.select([], [], [], 10)
        yield b""

    with pytest.raises(grpc.RpcError) as raised:
        call(silent())
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(grpc.RpcError) as raised:
        call(nothing())
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_only_this_machine_is_listened_to_by_default(impatient):
    assert not any(line["level"] == "WARNING" for line in impatient.logs())
    for port in (impatient.port, impatient.grpc_port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port))


def test_paths_and_methods_that_are_none(impatient):
    for method, path, status in (
        ("GET", "/no/such", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", PREDICT, 405),
        ("DELETE", "/v2/models/rec", 405),
        ("POST", "/metrics", 405),
        ("POST", "/v1/models/rec:explain", 501),
        ("POST", "/v2/models/rec/versions/99/infer", 404),
        ("OPTIONS", "/v2/models/rec/infer", 405),
    ):
        answer = impatient.request(method, path, b"{}" if method == "POST" else None)
        assert (answer[0], bool(answer[1]["error"])) == (status, True), (method, path)
    channel = impatient.channel()
    for path in ("/inference.GRPCInferenceService/NoSuch", "/no.Such/Method"):
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(path)(b"")
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert not any("exception" in line or line["level"] == "ERROR" for line in impatient.logs())
