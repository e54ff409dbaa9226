"""The server as clients and operators meet it: both protocols, faults, limits, reloading, in processes of its own."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kserve import InferInput, InferRequest, InferResponse
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from servers import free_port

from easyrec_mm.cli.main import main
from easyrec_mm.manifest import read_header
from easyrec_mm.store import open_store

ROOT = Path(__file__).parents[1]
USER = ("user_age_level", "user_gender", "user_city", "user_taste", "hour")
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


def embed(exported, store, models=None):
    """With the image model of that export, by default the last."""
    data, image = exported.data, (models or exported.folder) / "image"
    arguments = ["embed", "--img_model_dir", str(image), "--store", store, "--input"]
    arguments += [f"{data}/images/test/*", "--image_root", str(data), "--bad_pictures", os.devnull]
    assert main(arguments) == 0


@pytest.fixture(scope="module")
def place(exported, tmp_path_factory):
    """Rec models by number, and a store."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(exported.folder / "rec", folder / "rec" / "1")
    embed(exported, f"lmdb://{folder}/store")
    return folder


@pytest.fixture(scope="module")
def server(place):
    with running(place / "rec", f"lmdb://{place}/store", "--max_request_bytes", "200000") as server:
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
    found = server.predict(own, shared=shared)[1]["predictions"]
    assert [p["img_emb_source"] for p in found] == ["store", "store", "mean", "store", "store", "store"]
    assert found[2]["logits_click"] != expected[2]["logits_click"]
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
            {**found.to_dict(), "data": [v.decode() if isinstance(v, bytes) else v for v in found.data]}
            for found in request.inputs
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


def test_vectors_as_a_tensor(place, server, samples):
    instances = samples[0][:4]
    expected = server.predict(instances)[1]["predictions"]
    keys = [instance["img_path"] for instance in instances]
    store = open_store(f"lmdb://{place}/store")
    vectors = store.get_many(keys).vectors
    store.close()
    inputs = [tensor(name, values) for name, values in columns_of(instances).items() if name != "img_path"]
    given_vectors = InferInput("img_emb_vector", list(vectors.shape), "FP32")
    given_vectors.set_data_from_numpy(vectors)
    for found in inputs:
        found.set_data_from_numpy(found.as_numpy())
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
    found, answer = server.request("POST", path, body, headers)
    assert found == status
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


# --- Reloading


def test_reloading_under_load(exported, earlier_export, place, samples, tmp_path_factory):
    """New vectors, a new model and bad ones while requests run: none fails, and each answer is of one release."""
    folder = tmp_path_factory.mktemp("reload")
    shutil.copytree(place / "rec", folder / "rec")
    shutil.copytree(place / "store", folder / "store")
    body = {"instances": samples[0]}
    with running(folder / "rec", f"lmdb://{folder}/store") as server:
        found, stop = [], threading.Event()

        def ask():
            while not stop.is_set():
                found.append(server.request("POST", "/v1/models/rec:predict", body))

        asking = [threading.Thread(target=ask) for _ in range(2)]
        for thread in asking:
            thread.start()
        try:
            (folder / "rec" / "2").mkdir()
            shutil.copy(exported.folder / "rec" / "manifest.json", folder / "rec" / "2")  # a half-written export
            wait_for(lambda: server.metric('easyrec_mm_reloads_total{outcome="refused"}') == 1)
            shutil.rmtree(folder / "rec" / "2")
            embed(exported, f"lmdb://{folder}/store", earlier_export)
            shutil.copytree(earlier_export / "rec", folder / "rec" / "3.part")
            (folder / "rec" / "3.part").rename(folder / "rec" / "3")
            wait_for(lambda: server.metric('easyrec_mm_reloads_total{outcome="taken"}') == 1)
            time.sleep(0.3)
            shutil.rmtree(folder / "rec" / "3")  # back
            wait_for(lambda: server.metric('easyrec_mm_reloads_total{outcome="taken"}') == 2)
        finally:
            stop.set()
            for thread in asking:
                thread.join()
        answers = {}
        for status, answer in found:
            assert status == 200
            answers.setdefault(answer["model"]["generation"], []).append(answer["predictions"])
        assert answers.keys() == {1, 2}
        for of_one in answers.values():
            assert all(predictions == of_one[0] for predictions in of_one)
        assert answers[1][0] != answers[2][0]
        messages_logged = [(line["message"], line["level"]) for line in server.logs()]
        assert [m for m, level in messages_logged if level == "INFO"] == ["serving", "reloaded", "reloaded"]
        assert any(m.startswith("a new release is refused, the old one serves on") for m, _ in messages_logged)
        assert server.end() == 0


def wait_for(condition, seconds=30):
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


# --- Processes


def test_several_processes(place, samples):
    """They count together; one that is killed is replaced; all end with the first."""
    with running(place / "rec", f"lmdb://{place}/store", "--workers", 2) as server:
        wait_for(lambda: sum(line["message"] == "serving" for line in server.logs()) == 3)
        for _ in range(40):
            assert server.predict(samples[0][:2])[0] == 200
        assert server.metric("easyrec_mm_candidates_total") == 80
        labels = next(line for line in server.logs() if line["message"] == "serving")
        release = "easyrec_mm_release{" + ",".join(
            f'{name}="{labels[name]}"' for name in ("checkpoint", "generation", "image_tower", "step")
        )
        assert server.metric(release + "}") == 3
        workers = {line["process"] for line in server.logs()} - {server.process.pid}
        os.kill(min(workers), signal.SIGKILL)
        wait_for(lambda: sum(line["message"] == "serving" for line in server.logs()) == 4)
        assert server.predict(samples[0][:2])[0] == 200
        assert server.metric(release + "}") == 3
        workers = {line["process"] for line in server.logs()} - {server.process.pid}
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
    wait_for(lambda: not any(is_running(worker) for worker in workers))
    server.process.poll()


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_killed_at_any_moment(place, samples):
    """While it starts or answers; what it reads is whole afterwards, and the next one takes its place."""
    for wait_s in (0.3, 1.0):
        server = Running(place / "rec", f"lmdb://{place}/store")
        time.sleep(wait_s)
        server.end(signal.SIGKILL)
    with running(place / "rec", f"lmdb://{place}/store") as server:
        asking = threading.Thread(target=lambda: [server.predict(samples[0]) for _ in range(1000)], daemon=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading, "excepthook", lambda arguments: None)  # the last one is not answered
            asking.start()
            wait_for(lambda: server.metric('easyrec_mm_requests_total{outcome="ok"}') > 2)
            server.end(signal.SIGKILL)
            asking.join()
    with running(place / "rec", f"lmdb://{place}/store") as server:
        assert server.predict(samples[0])[0] == 200


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
    *told, rest = done.stderr.split("status 1\n")
    assert not rest
    for (message, *_), text in zip(cases, told, strict=True):
        assert message in text


def test_what_it_does_not_start_with(exported, place, server, tmp_path):
    rec, store, whole = place / "rec", f"lmdb://{place}/store", exported.folder / "rec"
    for name in ("cut", "half"):
        shutil.copytree(whole, tmp_path / name)
    content = (whole / "rec.onnx").read_bytes()
    (tmp_path / "cut" / "rec.onnx").write_bytes(content[: len(content) // 2])
    (tmp_path / "half" / "manifest.json").write_text((whole / "manifest.json").read_text()[:500])
    shutil.copytree(place / "store", tmp_path / "foreign")
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


def test_a_process_that_does_not_start(place):
    server = Running(place / "rec", "lmdb:///no/such")
    assert server.process.wait(60) == 1


# --- Remote stores


@pytest.mark.parametrize("name", ["redis", "postgres"])
def test_a_store_that_goes_and_comes_back(exported, place, samples, servers, name):
    """Its loss is answered in bounded time, flagged or refused as asked for; its return needs no restart."""
    remote = servers(name)
    option = {"redis": "prefix", "postgres": "table"}[name]
    uri = f"{remote.uri}?{option}=served"
    embed(exported, uri)
    instances = samples[0][:3]
    with running(place / "rec", uri) as mean, running(place / "rec", uri, "--missing_vector", "error") as strict:

        def sources(server):
            status, answer = server.predict(instances, timeout=8)
            return [p["img_emb_source"] for p in answer["predictions"]] if status == 200 else (status, answer["error"])

        assert sources(mean) == sources(strict) == ["store"] * 3
        remote.stop()
        try:
            for _ in range(5):
                assert sources(mean) == ["mean"] * 3
                status, problem = sources(strict)
                assert status == 503
                assert name in problem or "the store" in problem
            assert mean.request("GET", "/v2/health/live")[0] == 200
        finally:
            remote.start()
        wait_for(lambda: sources(mean) == sources(strict) == ["store"] * 3)
        assert strict.metric('easyrec_mm_vector_misses_total{filled="error"}') >= 15
