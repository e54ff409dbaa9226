"""TLS, tokens, addresses, ids of traces and versions of the model, with real servers and certificates."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import shutil
import ssl
import subprocess
import sys
from contextlib import suppress

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from serve_process import JSON, ROOT, Running, running, wait_for
from servers import free_port
from test_server_ending import request_of

PREDICT = "/v1/models/rec:predict"
TOKEN = "k3-_~+/=y"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def write_certificate(folder, number):
    """A self-signed certificate of 127.0.0.1 and its key in cert.pem and key.pem; the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    now = datetime.datetime.now(datetime.timezone.utc)
    addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), number, now, now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    content = certificate.public_bytes(pem)
    for file, text in (
        ("cert.pem", content),
        ("key.pem", key.private_bytes(pem, pkcs8, serialization.NoEncryption())),
        ("locked.pem", key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"x"))),
    ):
        (folder / f"{file}.new").write_bytes(text)
        os.replace(folder / f"{file}.new", folder / file)
    return content


def context_of(certificate):
    context = ssl.create_default_context(cadata=certificate.decode())
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    return context


@pytest.fixture(scope="module")
def secured(serving_place, tmp_path_factory):
    """A server with TLS and a token, its folder and certificate."""
    folder = tmp_path_factory.mktemp("tls")
    certificate = write_certificate(folder, 1)
    (folder / "token").write_text(f"older-token\n\n{TOKEN}\r\n")
    flags = ["--tls_cert", folder / "cert.pem", "--tls_key", folder / "key.pem", "--token_file", folder / "token"]
    place = serving_place / "rec", f"lmdb://{serving_place}/store"
    with running(*place, *flags, context=context_of(certificate), token=TOKEN) as server:
        yield server, folder, certificate


# --- TLS and tokens


def test_rest_with_tls_and_a_token(secured, samples):
    server, _, _ = secured
    body = {"instances": samples[0][:3]}
    assert server.request("POST", PREDICT, body)[0] == 200
    for name in (TOKEN, "older-token"):
        assert server.request("POST", PREDICT, body, {"Authorization": f"BEARER {name}"})[0] == 200
    for value in ("", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN):
        for method, path in (("POST", PREDICT), ("POST", "/v2/models/rec/infer"), ("GET", "/v2/models/rec"),
                             ("GET", "/metrics"), ("GET", "/no/such"), ("GET", "/openapi.json")):  # fmt: skip
            status, answer, headers = server.exchange(method, path, body, {"authorization": value})
            assert (status, headers["www-authenticate"]) == (401, "Bearer"), (value, path)
            assert TOKEN not in json.dumps(answer)
    for path in ("/", "/v2/health/live", "/v2/health/ready", "/v2/models/rec/ready", "/v1/models/rec",
                 "/v2/models/rec/versions/1/ready"):  # fmt: skip
        assert server.request("GET", path, None, {"authorization": ""})[0] == 200, path
    assert server.metric('easyrec_mm_refusals_total{reason="no_token"}') >= 42


def test_grpc_with_tls_and_a_token(secured, samples):
    server, _, certificate = secured
    channel = grpc.ssl_channel_credentials(certificate)
    stub = server.stub(channel)
    request = request_of(samples[0][:3])
    assert stub.ModelInfer(request, metadata=[("authorization", f"Bearer {TOKEN}")]).outputs
    for metadata in ([], [("authorization", f"Bearer {TOKEN}x")], [("authorization", TOKEN)]):
        for call, message in (
            (stub.ModelInfer, request), (stub.ModelMetadata, messages.ModelMetadataRequest(name="rec")),
        ):  # fmt: skip
            with pytest.raises(grpc.RpcError) as raised:
                call(message, metadata=metadata)
            assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert stub.ServerReady(messages.ServerReadyRequest()).ready
    assert stub.ModelReady(messages.ModelReadyRequest(name="rec")).ready
    health = health_pb2_grpc.HealthStub(server.channel(channel))
    for service in ("", "rec", "inference.GRPCInferenceService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as raised:
        health.Check(health_pb2.HealthCheckRequest(service="no such"))
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_clients_without_tls_or_of_another_certificate(secured, tmp_path):
    server, _, _ = secured
    plain = server.socket()
    plain.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    with suppress(ConnectionResetError):
        assert not plain.recv(1000).startswith(b"HTTP/1.1 200")
    other = context_of(write_certificate(tmp_path, 9))
    with pytest.raises(ssl.SSLCertVerificationError):
        other.wrap_socket(server.socket(), server_hostname="127.0.0.1")
    with pytest.raises(grpc.RpcError) as raised:
        server.stub().ServerLive(messages.ServerLiveRequest(), timeout=10)
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert not any("exception" in line for line in server.logs())


def test_files_that_are_renewed(secured, samples):
    """New certificates and tokens are used without a restart, damaged ones are not."""
    server, folder, first = secured
    (folder / "token").write_bytes(b"")
    (folder / "cert.pem").write_text("nonsense")
    wait_for(lambda: sum(line["level"] == "ERROR" for line in server.logs()) == 2)
    assert [line["message"][:23] for line in server.logs() if line["level"] == "ERROR"] == [
        "the old certificate sta", "the old tokens stay: --",
    ]  # fmt: skip
    assert server.predict(samples[0][:2])[0] == 200
    second = write_certificate(folder, 2)
    (folder / "token").write_text("another")
    wait_for(lambda: sum("new" in line["message"] for line in server.logs()) == 2)
    with pytest.raises(ssl.SSLCertVerificationError):
        server.request("GET", "/")
    server.context = context_of(second)
    assert server.predict(samples[0][:2])[0] == 401
    server.headers = {"authorization": "Bearer another"}
    assert server.predict(samples[0][:2])[0] == 200
    metadata = [("authorization", "Bearer another")]
    assert server.stub(grpc.ssl_channel_credentials(second)).ModelInfer(request_of(samples[0][:2]), metadata=metadata)
    with pytest.raises(grpc.RpcError):
        server.stub(grpc.ssl_channel_credentials(first)).ServerLive(messages.ServerLiveRequest(), timeout=10)
    assert not any(TOKEN in line or "another" in line for line in server.lines)


@pytest.mark.slow
def test_more_unfinished_handshakes_than_files(serving_place, samples, tmp_path):
    certificate = write_certificate(tmp_path, 1)
    flags = ["--tls_cert", tmp_path / "cert.pem", "--tls_key", tmp_path / "key.pem"]
    place = serving_place / "rec", f"lmdb://{serving_place}/store"
    with running(*place, *flags, context=context_of(certificate), open_files=300) as server:
        held = [server.socket() for _ in range(600)]
        for path in ("/v2/health/live", "/metrics"):
            assert server.request("GET", path)[0] == 200
        assert server.predict(samples[0][:2])[0] == 200
        assert len(held) == 600
        assert server.end() == 0


def test_flags_that_cannot_be(serving_place, tmp_path):
    """Plain messages, before anything is loaded."""
    write_certificate(tmp_path, 1)
    certificate, key = ["--tls_cert", tmp_path / "cert.pem"], ["--tls_key", tmp_path / "key.pem"]
    for name, content in {"empty": b" \n", "spaces": b"a b", "binary": b"\xff\n"}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "other").mkdir()
    write_certificate(tmp_path / "other", 2)
    port = free_port()
    cases = [
        ("--tls_cert: has no effect without --tls_key", *certificate),
        ("--tls_key: has no effect without --tls_cert", *key),
        ("--tls_cert /no/such: cannot be read: No such file", "--tls_cert", "/no/such", *key),
        ("(KEY_VALUES_MISMATCH)", *certificate, "--tls_key", tmp_path / "other" / "key.pem"),
        ("the key without a passphrase", *certificate, "--tls_key", tmp_path / "locked.pem"),
        ("both PEM", "--tls_cert", tmp_path / "empty", *key),
        ("--token_file /no/such: cannot be read: No such file", "--token_file", "/no/such"),
        (f"--token_file {tmp_path}: cannot be read: Is a directory", "--token_file", tmp_path),
        ("holds no token", "--token_file", tmp_path / "empty"),
        ("write one token a line", "--token_file", tmp_path / "spaces"),
        ("write one token a line", "--token_file", tmp_path / "binary"),
        (f"--grpc_port {port}: is the port of REST, too", "--http_port", port, "--grpc_port", port),
        ("--http_port 65536: is not a port", "--http_port", 65536),
        ("--host no.such.host.invalid: is not known", "--host", "no.such.host.invalid"),
        ("--host 192.0.2.1); choose another port", "--host", "192.0.2.1"),
    ]
    code = "import json, sys, easyrec_mm.cli.main as cli\nfor case in json.loads(sys.argv[1]):\n"
    code += "    ports = ['--http_port', sys.argv[2], '--grpc_port', sys.argv[3]]\n"
    code += "    command = ['serve', '--rec_model_dir', '/no', '--store', 'lmdb:///no', *ports, *case]\n"
    code += "    print('status', cli.main(command), file=sys.stderr)"
    arguments = json.dumps([[str(flag) for flag in flags] for _, *flags in cases])
    command = [sys.executable, "-c", code, arguments, str(free_port()), str(free_port())]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=True)
    assert "Traceback" not in done.stderr
    *outputs, rest = done.stderr.split("status 1\n")
    assert not rest
    for (message, *_), text in zip(cases, outputs, strict=True):
        assert message in text


# --- Addresses


@pytest.mark.parametrize(
    ("host", "from_where", "is_warned"),
    [("::1", ["::1"], False), ("0.0.0.0", ["127.0.0.1"], True), ("::", ["127.0.0.1", "::1"], True)],
)  # fmt: skip
def test_addresses(serving_place, samples, host, from_where, is_warned):
    place = serving_place / "rec", f"lmdb://{serving_place}/store"
    with running(*place, "--host", host, host=from_where[0]) as server:
        for server.host in from_where:
            assert server.predict(samples[0][:2])[0] == 200
            assert server.stub().ModelInfer(request_of(samples[0][:2])).outputs
        warnings = [line["message"] for line in server.logs() if line["level"] == "WARNING"]
        assert len(warnings) == is_warned
        assert not is_warned or f"can reach this server at {host}; keep it behind a gateway" in warnings[0]


# --- Ids of traces


def test_ids_go_through_to_the_answer_and_the_log(serving_place, samples):
    flags = ["--missing_vector", "error", "--access_log"]
    with running(serving_place / "rec", f"lmdb://{serving_place}/store", *flags) as server:
        headers = {**JSON, "traceparent": TRACE, "x-request-id": "r-1"}
        status, _, answer = server.exchange("POST", PREDICT, {"instances": samples[0][:1]}, headers)
        assert (status, answer["traceparent"], answer["x-request-id"]) == (200, TRACE, "r-1")
        missing = [{**samples[0][0], "img_path": "no\x1b[31m\x9b\u202e"}]
        headers["x-request-id"] = "a b\x9b" + "y" * 500
        status, _, answer = server.exchange("POST", PREDICT, {"instances": missing}, headers)
        cut = "a?b?" + "y" * 124
        assert (status, answer["traceparent"], answer["x-request-id"]) == (503, TRACE, cut)
        for invalid in ("00-0-0-01", TRACE.upper(), TRACE.replace("0af", "000") + "x", "ff" + TRACE[2:]):
            assert "traceparent" not in server.exchange("GET", "/", None, {"traceparent": invalid})[2]
        stub = server.stub()
        _, call = stub.ModelInfer.with_call(request_of(samples[0][:1]), metadata=[("x-request-id", "g-1")])
        for metadata in (call.initial_metadata(), call.trailing_metadata()):
            assert ("x-request-id", "g-1") in [tuple(pair) for pair in metadata]
        with pytest.raises(grpc.RpcError) as raised:
            stub.ModelInfer(request_of(missing), metadata=[("traceparent", TRACE)])
        assert ("traceparent", TRACE) in [tuple(pair) for pair in raised.value.trailing_metadata()]
        server.request("GET", "/no/such/" + "x" * 10_000)
        lines = server.logs()
        by_id = {(line.get("request_id"), line["message"].partition(":")[0]): line for line in lines}
        ok = by_id["r-1", "request"]
        assert (ok["status"], ok["path"], ok["trace_id"], ok["span_id"]) == (200, PREDICT, *TRACE.split("-")[1:3])
        failed = by_id[cut, "a request could not be answered"]
        assert failed["trace_id"] == TRACE.split("-")[1]
        assert by_id["g-1", "request"]["status"] == "OK"
        text = "".join(server.lines)
        assert not any(character in text for character in "\x1b\x9b\u202e")
        assert max(map(len, server.lines)) < 5000


# --- Versions


def test_versions_of_the_model(serving_place, samples, tmp_path):
    shutil.copytree(serving_place / "rec" / "1", tmp_path / "rec" / "7")
    for name in ("²", "٣", "8.part", "latest", "-1", " 9"):  # folders that are no versions
        shutil.copytree(serving_place / "rec" / "1", tmp_path / "rec" / name)
    with running(tmp_path / "rec", f"lmdb://{serving_place}/store") as server:
        state = {"version": "7", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        for path in ("/v1/models/rec", "/v1/models/rec/versions/7"):
            answer = {"name": "rec", "ready": True, "model_version_status": [state]}
            assert server.request("GET", path) == (200, answer)
        for path in ("/v2/models/rec", "/v2/models/rec/versions/7"):
            assert server.request("GET", path)[1]["versions"] == ["7"]
        assert server.request("GET", "/v2/models/rec/versions/7/ready")[0] == 200
        body = {"instances": samples[0][:2]}
        expected = server.request("POST", PREDICT, body)
        assert expected[0] == 200
        assert server.request("POST", "/v1/models/rec/versions/7:predict", body) == expected
        for version in ("6", "²", "07", "x"):
            for method, path in (
                ("GET", f"/v1/models/rec/versions/{version}"), ("GET", f"/v2/models/rec/versions/{version}"),
                ("GET", f"/v2/models/rec/versions/{version}/ready"),
                ("POST", f"/v1/models/rec/versions/{version}:predict"),
                ("POST", f"/v2/models/rec/versions/{version}/infer"),
            ):  # fmt: skip
                quoted = path.replace("²", "%C2%B2")
                assert server.request(method, quoted, body) == (
                    404, {"error": f"rec has no version {version}; version 7 is served"},
                )  # fmt: skip
        stub = server.stub()
        assert list(stub.ModelMetadata(messages.ModelMetadataRequest(name="rec")).versions) == ["7"]
        assert stub.ModelReady(messages.ModelReadyRequest(name="rec", version="7")).ready
        request = request_of(samples[0][:2])
        request.model_version = "7"
        assert stub.ModelInfer(request).outputs
        request.model_version = "6"
        with pytest.raises(grpc.RpcError) as raised:
            stub.ModelInfer(request)
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_folder_without_a_version(serving_place, tmp_path):
    """The message of an empty folder; nothing else is taken for a number."""
    shutil.copytree(serving_place / "rec" / "1", tmp_path / "²")
    server = Running(tmp_path, f"lmdb://{serving_place}/store")
    assert server.process.wait(60) == 1
    server.end()
    assert "no manifest.json; give a folder written by easyrec-mm export" in "".join(server.lines)
