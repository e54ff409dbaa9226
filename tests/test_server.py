"""The server as clients meet it: both protocols, faults and limits, in a process of its own; when it does not start."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kserve import InferInput, InferRequest, InferResponse
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from serve_process import JSON, ROOT, Running, running
from servers import free_port

from easyrec_mm.manifest import read_header
from easyrec_mm.store import open_store

USER = ("user_age_level", "user_gender", "user_city", "user_taste", "hour")


@pytest.fixture(scope="module")
def server(serving_place):
    with running(serving_place / "rec", f"lmdb://{serving_place}/store", "--max_request_bytes", "200000") as server:
        yield server


def columns_of(instances):
    return {name: [instance[name] for instance in instances] for name in instances[0]}


def tensor(name, values):
    if isinstance(values[0], str):
        return InferInput(name, [len(values)], "BYTES", [value.encode() for value in values])
    return InferInput(name, [len(values)], "FP32" if isinstance(values[0], float) else "INT64", list(values))


# --- Answers


def test_answers_are_what_predict_says(server, samples):
    instances, rows = samples
    status, answer = server.predict(instances)
    assert status == 200
    for prediction, row in zip(answer["predictions"], rows, strict=True):
        assert prediction.keys() == {name for name in row if name not in instances[0]} | {"img_emb_source"}
        for name, value in prediction.items():
            if name != "img_emb_source":
                np.testing.assert_allclose(value, row[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert {prediction["img_emb_source"] for prediction in answer["predictions"]} == {"store"}
    manifest = read_header(str(server.rec / "1"), "rec")
    assert answer["model"] == {
        "checkpoint": Path(manifest.checkpoint).name,
        "step": manifest.step,
        "generation": 1,
        "image_tower": manifest.image_tower_fingerprint[:12],
    }


def test_shared_fields_and_missing_vectors(server, samples):
    shared = {name: samples[0][0][name] for name in USER}
    instances = [{**instance, **shared} for instance in samples[0][:6]]
    expected = server.predict(instances)[1]["predictions"]
    own = [{name: value for name, value in instance.items() if name not in USER} for instance in instances]
    assert server.predict(own, shared=shared)[1]["predictions"] == expected
    hits = server.metric("easyrec_mm_vector_hits_total")
    misses = server.metric('easyrec_mm_vector_misses_total{filled="mean"}')
    own[2]["img_path"] = "no.jpg"
    predictions = server.predict(own, shared=shared)[1]["predictions"]
    assert [p["img_emb_source"] for p in predictions] == ["store", "store", "mean", "store", "store", "store"]
    assert predictions[2]["logits_click"] != expected[2]["logits_click"]
    assert server.metric("easyrec_mm_vector_hits_total") == hits + 5
    assert server.metric('easyrec_mm_vector_misses_total{filled="mean"}') == misses + 1


def test_tensors_over_rest_and_grpc(server, samples):
    instances = [{**instance, "user_city": "Oslo"} for instance in samples[0][:7]]
    expected = server.predict(instances)[1]["predictions"]
    columns = {**columns_of(instances), "user_city": ["Oslo"]}  # one for all
    request = InferRequest("rec", [tensor(name, values) for name, values in columns.items()], request_id="r1")
    body = {
        "id": "r1",
        "inputs": [
            {**input_tensor.to_dict(), "data": [v.decode() if isinstance(v, bytes) else v for v in input_tensor.data]}
            for input_tensor in request.inputs
        ],
    }
    status, answer = server.request("POST", "/v2/models/rec/infer", body)
    assert (status, answer["id"], answer["parameters"]["generation"]) == (200, "r1", 1)
    by_rest = {output["name"]: output["data"] for output in answer["outputs"]}
    reply = server.stub().ModelInfer(request.to_grpc())
    assert reply.parameters["checkpoint"].string_param == answer["parameters"]["checkpoint"]
    by_grpc = {output.name: output.as_numpy() for output in InferResponse.from_grpc(reply).outputs}
    assert by_rest.keys() == by_grpc.keys() == expected[0].keys()
    for name in expected[0]:
        assert by_rest[name] == [pytest.approx(p[name]) if name != "img_emb_source" else p[name] for p in expected]
        if name != "img_emb_source":
            np.testing.assert_allclose(by_grpc[name], by_rest[name])


def test_vectors_as_a_tensor(serving_place, server, samples):
    instances = samples[0][:4]
    expected = server.predict(instances)[1]["predictions"]
    keys = [instance["img_path"] for instance in instances]
    store = open_store(f"lmdb://{serving_place}/store")
    vectors = store.get_many(keys).vectors
    store.close()
    inputs = [tensor(name, values) for name, values in columns_of(instances).items() if name != "img_path"]
    given_vectors = InferInput("img_emb_vector", list(vectors.shape), "FP32")
    given_vectors.set_data_from_numpy(vectors)
    for input_tensor in inputs:
        input_tensor.set_data_from_numpy(input_tensor.as_numpy())
    reply = server.stub().ModelInfer(InferRequest("rec", [*inputs, given_vectors]).to_grpc())
    outputs = {output.name: output.as_numpy() for output in InferResponse.from_grpc(reply).outputs}
    np.testing.assert_allclose(outputs["logits_click"], [p["logits_click"] for p in expected], rtol=1e-5)
    assert outputs["img_emb_source"].tolist() == [b"request"] * 4


def test_meta_data_health_and_metrics(server, samples):
    before = server.metric('easyrec_mm_requests_total{outcome="ok"}')
    server.predict(samples[0][:3])
    server.predict([{}])
    assert server.metric('easyrec_mm_requests_total{outcome="ok"}') == before + 1
    assert server.metric('easyrec_mm_requests_total{outcome="wrong"}') >= 1
    assert server.metric("easyrec_mm_candidates_total") >= 3
    assert server.metric("easyrec_mm_request_seconds_count") >= before + 2
    assert [server.request("GET", path)[0] for path in ("/", "/v2/health/live", "/v2/health/ready")] == [200] * 3
    meta = server.request("GET", "/v2/models/rec")[1]
    assert {"name": "price", "datatype": "FP32", "shape": [-1]} in meta["inputs"]
    assert {"name": "probs_click", "datatype": "FP32", "shape": [-1]} in meta["outputs"]
    assert server.stub().ModelReady(messages.ModelReadyRequest(name="rec")).ready


def test_tensorflow_is_not_in_the_process(server):
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert "tensorflow" not in maps


# --- What a client gets wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"price": "cheap"}, "instance 1: price: is 'cheap', not a float32"),
        ({"hour": None}, "instance 1: hour: is missing; give a int64"),
        ({"colour": 1}, "instance 1: no field 'colour'"),
        ({"img_emb": "1,2"}, "instance 1: img_emb: '1,2' is not 16 finite numbers"),
    ],
)
def test_a_wrong_instance_is_told_with_its_field(server, samples, change, message):
    instances = [samples[0][0], {**samples[0][1], **change}]
    status, answer = server.predict(instances)
    assert status == 400
    assert answer["error"].startswith(message)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"price": ["x", "y"]}, "instance 0: price: is 'x', not a float32"),
        ({"hour": [1.5, 2.0]}, "instance 0: hour: is 1.5, not a int64"),
        ({"hour": [1, 2, 3]}, "has 2 values, but other tensors have 3"),
        ({"no_such": [1, 2]}, "instance 0: no field 'no_such'"),
    ],
)
def test_wrong_tensors(server, samples, columns, message):
    all_columns = {**columns_of(samples[0][:2]), **columns}
    request = InferRequest("rec", [tensor(name, values) for name, values in all_columns.items()])
    body = {
        "inputs": [
            {**t.to_dict(), "data": [v.decode() if isinstance(v, bytes) else v for v in t.data]} for t in request.inputs
        ]
    }
    status, answer = server.request("POST", "/v2/models/rec/infer", body)
    assert status == 400
    assert message in answer["error"]
    with pytest.raises(grpc.RpcError) as raised:
        server.stub().ModelInfer(request.to_grpc())
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert message in raised.value.details()


def test_integers_are_not_cut(server):
    body = {"inputs": [{"name": "hour", "shape": [1], "datatype": "INT64", "data": [1.5]}]}
    assert server.request("POST", "/v2/models/rec/infer", body) == (400, {"error": "hour: not all values are integers"})


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/models/rec:predict", b"{", JSON, 400),
        ("/v1/models/rec:predict", b"\xff\xfe", {}, 400),
        ("/v1/models/rec:predict", b"", JSON, 400),
        ("/v1/models/no:predict", b"{}", JSON, 404),
        ("/no/such/path", b"{}", JSON, 404),
        ("/v2/models/rec/infer", b"{}", JSON, 400),
        ("/v2/models/rec/infer", b'{"inputs": 3}', JSON, 400),
        ("/v2/models/rec/infer", b"abc", {"inference-header-content-length": "x"}, 400),
        ("/v2/models/rec/infer", b'{"inputs": [{}]}', {"inference-header-content-length": "16"}, 400),
        ("/v2/repository/models/rec/unload", b"", JSON, 400),
        ("/v1/models/rec:predict", b"x" * 200_001, JSON, 413),
        ("/v2/models/rec/infer", b"x" * 200_001, JSON, 413),
    ],
)
def test_bodies_that_are_none(server, path, body, headers, status):
    status_code, answer = server.request("POST", path, body, headers)
    assert status_code == status
    assert answer["error"]


def test_a_body_without_a_length_is_limited_too(server):
    for path in ("/v1/models/rec:predict", "/v2/models/rec/infer"):
        assert server.request("POST", path, iter([b"x" * 50_000] * 5), JSON)[0] == 413
    request = InferRequest("rec", [tensor("user_city", ["x" * 200_001])])
    with pytest.raises(grpc.RpcError) as raised:
        server.stub().ModelInfer(request.to_grpc())
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.sampled_from(["/v1/models/rec:predict", "/v2/models/rec/infer"]),
    st.one_of(
        st.binary(max_size=200),
        json_values.map(lambda v: json.dumps(v).encode()),
        st.fixed_dictionaries({"instances": json_values}).map(lambda v: json.dumps(v).encode()),
        st.fixed_dictionaries(
            {"inputs": st.lists(st.fixed_dictionaries({
                "name": st.sampled_from(["hour", "price", "img_emb_vector", "x"]),
                "shape": st.lists(st.integers(-2, 5), max_size=3),
                "datatype": st.sampled_from(["BYTES", "INT64", "FP32", "FP16", "BOOL", "X"]),
                "data": st.lists(json_values, max_size=4),
            }), max_size=3)}
        ).map(lambda v: json.dumps(v).encode()),
    ),
    st.sampled_from([JSON, {}, {**JSON, "inference-header-content-length": "10"}]),
)  # fmt: skip
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_body_is_refused_politely(server, path, body, headers):
    status, answer = server.request("POST", path, body, headers)
    assert 400 <= status < 500
    assert answer["error"]


@given(st.binary(max_size=60), st.integers(-2, 5), st.sampled_from(["BYTES", "INT64", "FP32", "X"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_message_is_refused_politely(server, content, size, datatype):
    request = messages.ModelInferRequest(model_name="rec", raw_input_contents=[content])
    request.inputs.add(name="hour", datatype=datatype, shape=[size])
    with pytest.raises(grpc.RpcError) as raised:
        server.stub().ModelInfer(request)
    assert raised.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)


def test_ten_thousand_connections(server, samples):
    """Each is answered, with the prediction or with 503, and afterwards the server is as before."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    number = min(10_000, most - 500)
    body = json.dumps({"instances": samples[0][:1]}).encode()
    head = f"POST /v1/models/rec:predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    async def ask(barrier):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await barrier.wait()
        writer.write(head + body)
        status = int((await reader.readline()).split()[1])
        writer.close()
        return status

    async def ask_all():
        barrier = asyncio.Barrier(number) if sys.version_info >= (3, 11) else Gate(number)
        return await asyncio.wait_for(asyncio.gather(*(ask(barrier) for _ in range(number))), 120)

    statuses = asyncio.run(ask_all())
    assert set(statuses) <= {200, 503}
    assert 503 in statuses
    assert server.predict(samples[0][:1])[0] == 200


class Gate:
    """asyncio.Barrier, which Python 3.10 does not have."""

    def __init__(self, number):
        self._missing, self._event = number, asyncio.Event()

    async def wait(self):
        self._missing -= 1
        if not self._missing:
            self._event.set()
        await self._event.wait()


# --- Starting


def refusals(cases):
    """Requires that no server starts with the arguments of any case, and tells what it shall; all in one process."""
    code = "import json, sys, easyrec_mm.cli.main as cli\nfor case in json.loads(sys.argv[1]):\n"
    code += "    print('status', cli.main(['serve', *case]), file=sys.stderr)\n"
    ports = ["--http_port", free_port(), "--grpc_port", free_port()]
    commands = [["--rec_model_dir", rec, "--store", store, *ports, *more] for _, rec, store, *more in cases]
    arguments = json.dumps([[str(part) for part in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", code, arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=True
    )
    assert "Traceback" not in done.stderr
    *outputs, rest = done.stderr.split("status 1\n")
    assert not rest
    for (message, *_), text in zip(cases, outputs, strict=True):
        assert message in text


def test_what_it_does_not_start_with(exported, serving_place, server, tmp_path):
    rec, store, whole = serving_place / "rec", f"lmdb://{serving_place}/store", exported.folder / "rec"
    for name in ("cut", "half"):
        shutil.copytree(whole, tmp_path / name)
    content = (whole / "rec.onnx").read_bytes()
    (tmp_path / "cut" / "rec.onnx").write_bytes(content[: len(content) // 2])
    (tmp_path / "half" / "manifest.json").write_text((whole / "manifest.json").read_text()[:500])
    shutil.copytree(serving_place / "store", tmp_path / "foreign")
    foreign = open_store(f"lmdb://{tmp_path}/foreign", writable=True)
    foreign.complete(foreign.begin("e" * 64, 16, "float32"))
    foreign.prune()
    foreign.close()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "data.mdb").write_bytes(b"x" * 10_000)
    tower = read_header(str(rec / "1"), "rec").image_tower_fingerprint[:12]
    other = f"lmdb://{tmp_path}/foreign"
    nowhere = [f"{scheme}://127.0.0.1:{free_port()}/0" for scheme in ("redis", "postgresql")]
    taken = f"error: --http_port {server.port}: cannot be used: [Errno 98] Address already in use"
    refusals([
        ("error: --store lmdb:///no/such: no store there", rec, "lmdb:///no/such"),
        ("no manifest.json", tmp_path / "foreign", store),
        ("holds the image model, not the rec model", exported.folder / "image", store),
        ("give the image model with --img_model_dir", rec, store, "--missing_vector", "compute"),
        ("rec.onnx: has", tmp_path / "cut", store),
        ("manifest.json: cannot be read", tmp_path / "half", store),
        (f"belongs to image tower {tower}, but {other} holds generation 2 of eeeeeeeeeeee", rec, other),
        ("error: lmdb://", rec, f"lmdb://{tmp_path}/damaged"),
        *[(f"error: {uri.split('://')[0]}://127.0.0.1", rec, uri) for uri in nowhere],
        (taken, rec, store, "--http_port", server.port),
    ])  # fmt: skip


def test_a_process_that_does_not_start(serving_place):
    server = Running(serving_place / "rec", "lmdb:///no/such")
    assert server.process.wait(60) == 1
