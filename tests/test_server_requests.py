"""What one request may hold and cost, as clients meet it: forms, compression, documented answers, bounded work."""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from pathlib import Path

import grpc
import pytest
from fuzz_helpers import fuzz
from hypothesis import given
from hypothesis import strategies as st
from kserve import InferInput, InferRequest, InferResponse
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.infer_type import RequestedOutput
from serve_process import JSON, running

from easyrec_mm.manifest import read_header

V1, V2 = "/v1/models/rec:predict", "/v2/models/rec/infer"
USER = ("user_age_level", "user_gender", "user_city", "user_taste", "hour")


@pytest.fixture(scope="module")
def server(serving_place):
    with running(serving_place / "rec", f"lmdb://{serving_place}/store") as server:
        yield server


def tensors_of(instances):
    """A V2 request in JSON."""
    kinds = {str: "BYTES", float: "FP32", int: "INT64"}
    inputs = []
    for name, value in instances[0].items():
        data = [instance[name] for instance in instances]
        inputs.append({"name": name, "shape": [len(data)], "datatype": kinds[type(value)], "data": data})
    return {"inputs": inputs}


def values_of(answer):
    return {output["name"]: output["data"] for output in answer["outputs"]}


def memory_mib(server, name):
    """A line of the process's status."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name))


# --- Forms


def test_lists_stand_for_texts(server, samples):
    instances = [{**instance, "item_tags": "new,outdoor"} for instance in samples[0][:2]]
    expected = server.predict(instances)[1]["predictions"]
    assert server.predict([{**i, "item_tags": ["new", "outdoor"]} for i in instances])[1]["predictions"] == expected
    body = tensors_of([{**i, "item_tags": "x"} for i in instances])
    tags = next(tensor for tensor in body["inputs"] if tensor["name"] == "item_tags")
    tags |= {"shape": [2, 2], "data": ["new", "outdoor", "new", "outdoor"]}
    answer = server.request("POST", V2, body)[1]
    assert values_of(answer)["probs_click"] == [pytest.approx(p["probs_click"]) for p in expected]


@pytest.mark.parametrize("price", [2**63, -(2**63), 10**19])
def test_large_whole_numbers_are_numbers(server, samples, price):
    answers = [server.predict([{**samples[0][0], "price": value}]) for value in (price, float(price))]
    assert answers[0] == answers[1]
    assert answers[0][0] == 200


@pytest.mark.parametrize("price", [2**64, 10**39, 10**400, -(10**4000)])
def test_larger_ones_are_refused(server, samples, price):
    status, answer = server.predict([{**samples[0][0], "price": price}])
    assert status == 400
    assert answer["error"].startswith("instance 0: price: ")
    assert answer["error"].endswith(" is not a number from -1e19 to 1e19")


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "text/plain", "application/json"])
def test_tensors_of_any_content_type(server, samples, content_type):
    headers = {"content-type": content_type} if content_type else {}
    expected = values_of(server.request("POST", V2, tensors_of(samples[0][:3]))[1])
    status, answer = server.request("POST", V2, json.dumps(tensors_of(samples[0][:3])), headers)
    assert (status, values_of(answer)) == (200, expected)


def test_binary_data_after_the_json(server, samples):
    expected = values_of(server.request("POST", V2, tensors_of(samples[0][:3]))[1])
    inputs = []
    for tensor in tensors_of(samples[0][:3])["inputs"]:
        data = [v.encode() if isinstance(v, str) else v for v in tensor["data"]]
        inputs.append(InferInput(tensor["name"], tensor["shape"], tensor["datatype"], data))
        inputs[-1].set_data_from_numpy(inputs[-1].as_numpy(), binary_data=True)
    wanted = [RequestedOutput("probs_click", {"binary_data": True}), RequestedOutput("img_emb_source")]
    body, length = InferRequest("rec", inputs, request_outputs=wanted).to_rest()
    headers = {"inference-header-content-length": str(length)}
    status, content, answered = server.exchange_bytes("POST", V2, body, headers)
    assert (status, answered["content-type"]) == (200, "application/octet-stream")
    answer = InferResponse.from_bytes(content, int(answered["inference-header-content-length"]))
    assert [output.name for output in answer.outputs] == ["probs_click", "img_emb_source"]
    assert answer.outputs[0].data == pytest.approx(expected["probs_click"])
    for length in ("-1", "x", str(len(body) + 1)):
        status, answer = server.request("POST", V2, body, {"inference-header-content-length": length})
        assert (status, "give the length of the JSON in bytes" in answer["error"]) == (400, True)
    status, answer = server.request("POST", V2, body[:-1], headers)
    assert (status, "give 'data', or bytes" in answer["error"]) == (400, True)


def test_outputs_that_a_client_asks_for(server, samples):
    inputs = tensors_of(samples[0][:3])
    everything = values_of(server.request("POST", V2, inputs)[1])
    wanted = ["y_play_time", "img_emb_source"]
    status, answer = server.request("POST", V2, {**inputs, "outputs": [{"name": name} for name in wanted]})
    assert (status, list(values_of(answer).items())) == (200, [(name, everything[name]) for name in wanted])
    status, answer = server.request("POST", V2, {**inputs, "outputs": [{"name": "probs_clik"}]})
    assert (status, answer["error"]) == (400, "outputs: no output 'probs_clik'; did you mean 'probs_click'?")

    tensors = [
        InferInput(t["name"], t["shape"], t["datatype"], [v.encode() if isinstance(v, str) else v for v in t["data"]])
        for t in inputs["inputs"]
    ]
    request = InferRequest("rec", tensors, request_outputs=[RequestedOutput(name) for name in wanted]).to_grpc()
    assert [output.name for output in server.stub().ModelInfer(request).outputs] == wanted
    request.outputs.add(name="nothing")
    with pytest.raises(grpc.RpcError, match="outputs: no output 'nothing'") as raised:
        server.stub().ModelInfer(request)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_messages_do_not_repeat_long_parts_of_a_request(server, samples):
    name = "😀" * 100_000
    for path, body in (
        (V1, {"instances": [{**samples[0][0], name: 1}]}),
        (V1, {"instances": [samples[0][0]], name: 1}),
        (V2, {"inputs": [{"name": name, "shape": [1], "datatype": "INT64", "data": ["x"]}]}),
        (V2, {**tensors_of(samples[0][:1]), "outputs": [{"name": name}]}),
    ):
        status, answer = server.request("POST", path, body)
        assert (status, len(answer["error"]) < 600) == (400, True)
    request = InferRequest("rec", [InferInput(name, [1], "BYTES", [b"\xff"])]).to_grpc()
    with pytest.raises(grpc.RpcError) as raised:
        server.stub().ModelInfer(request)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"data": [True, False]}, "hour: not all values are integers"),
        ({"datatype": "FP32", "data": ["1", "2"]}, "hour: not all values are numbers"),
        ({"datatype": "BOOL", "data": ["false", "true"]}, "hour: not all values are true or false"),
        ({"datatype": "INT", "data": [1, 2]}, "hour: datatype 'INT' is unknown; choose one of BOOL, INT8"),
        ({"shape": [-1], "data": [1, 2]}, "the body is not a V2 request in JSON"),
        ({"shape": [2, 2], "data": [1, 2, 3, 4]}, "hour: is [1, 2], not a int64"),
        ({"shape": [], "data": [1]}, "hour: is INT64 of shape [], not [S]"),
        ({"shape": [2], "data": [1]}, "hour: has 1 values, but its shape [2] needs 2"),
        ({"shape": [10**12], "data": [1, 2]}, "hour: 1000000000000 instances; at most 10000"),
    ],
)
def test_tensors_that_do_not_fit(server, samples, tensor, message):
    body = tensors_of(samples[0][:2])
    hour = next(tensor for tensor in body["inputs"] if tensor["name"] == "hour")
    hour |= tensor
    status, answer = server.request("POST", V2, body)
    assert status == 400
    assert message in answer["error"]


def test_compressed_requests_and_answers(server, samples):
    body = json.dumps({"instances": samples[0][:3]}).encode()
    expected = server.request("POST", V1, body)
    halves = gzip.compress(body[:100]) + gzip.compress(body[100:])
    for content in (gzip.compress(body), halves):
        assert server.request("POST", V1, content, {"content-encoding": "gzip"}) == expected
    tensors = json.dumps(tensors_of(samples[0][:3])).encode()
    assert server.request("POST", V2, gzip.compress(tensors), {"content-encoding": "gzip"})[0] == 200
    large = json.dumps({"instances": samples[0] * 20}).encode()
    plain = server.exchange_bytes("POST", V1, large, {"accept-encoding": "gzip;q=0, identity"})
    status, content, headers = server.exchange_bytes("POST", V1, large, {"accept-encoding": "deflate, gzip"})
    assert (plain[0], status, headers["content-encoding"]) == (200, 200, "gzip")
    assert "content-encoding" not in plain[2]
    assert gzip.decompress(content) == plain[1]


def test_bodies_that_cannot_be_decompressed(server, samples):
    body = gzip.compress(json.dumps({"instances": samples[0][:3]}).encode())
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(250)) + compressor.flush()
    before = memory_mib(server, "VmHWM")
    for content, encoding, status, message in (
        (body[:-9], "gzip", 400, "the body is not valid gzip: its end is missing"),
        (b"{}", "gzip", 400, "the body is not valid gzip"),
        (bomb, "gzip", 413, "the decompressed body is larger than 8388608 bytes"),
        (body, "br", 415, "content-encoding 'br' is not supported; compress with gzip, or not at all"),
    ):
        code, answer = server.request("POST", V1, content, {"content-encoding": encoding})
        assert (code, answer["error"][: len(message)]) == (status, message)
    assert memory_mib(server, "VmHWM") < before + 100


# --- Documented answers


@pytest.mark.parametrize("path", [V1, V2])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_other_methods_are_not_allowed(server, path, method):
    status, _, headers = server.exchange_bytes(method, path)
    assert (status, headers["allow"]) == (405, "POST")


def test_what_is_not_implemented(server, samples):
    status, answer = server.predict([])
    assert status == 400
    status, answer = server.request("POST", "/v1/models/rec:explain", {"instances": samples[0][:1]})
    assert (status, answer["error"]) == (501, "explanations are not supported; send the request to :predict")
    with pytest.raises(grpc.RpcError) as raised:
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}").unary_unary("/inference.GRPCInferenceService/No")(b"")
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as raised:
        server.stub().RepositoryModelLoad(messages.RepositoryModelLoadRequest(model_name="rec"))
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def document(server):
    return server.request("GET", "/openapi.json")[1]


def test_the_document_describes_fields_outputs_and_routes(server, document, samples):
    schemas = document["components"]["schemas"]
    candidate = schemas["Candidate"]
    assert set(samples[0][0]) <= set(candidate["properties"])
    schema = read_header(str(server.rec / "1"), "rec").schema
    optional = {field.name for field in schema.fields if field.optional}
    assert set(candidate["required"]) == set(samples[0][0]) - optional - {"img_path"}
    answer = document["paths"][V1]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    prediction = server.predict(samples[0][:1])[1]["predictions"][0]
    assert set(answer["properties"]["predictions"]["items"]["required"]) == set(prediction)
    for path, operations in document["paths"].items():
        for method in operations:
            assert method == "post" or server.request("GET", path)[0] == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@st.composite
def nearly_valid(draw, instance):
    """A request of either protocol with some parts replaced."""
    changes = st.dictionaries(st.sampled_from([*instance, "img_emb", "click", "x"]), json_values, max_size=2)
    if draw(st.booleans()):
        body = {"instances": [{**instance, **draw(changes)}], "shared": draw(st.none() | changes)}
        more = st.dictionaries(st.sampled_from(["instances", "shared", "x"]), json_values, max_size=1)
        return V1, {**body, **draw(more)}
    body = tensors_of([instance])
    for tensor in body["inputs"]:
        parts = st.sampled_from(["name", "shape", "datatype", "data", "parameters"])
        if draw(st.integers(0, 9)) == 0:
            tensor |= draw(st.dictionaries(parts, json_values | st.lists(st.integers(-1, 9)), max_size=2))
    more = st.dictionaries(st.sampled_from(["id", "outputs", "parameters", "inputs"]), json_values, max_size=1)
    return V2, {**body, **draw(more)}


@pytest.mark.fuzz
def test_any_body_has_a_documented_answer(server, document, samples):
    statuses = []

    @given(nearly_valid(samples[0][0]))
    @fuzz(300)
    def run(request):
        path, body = request
        status, answer = server.request("POST", path, json.dumps(body).encode(), JSON)
        assert status < 500, (path, body, answer)
        assert str(status) in document["paths"][path]["post"]["responses"]
        assert status == 200 or set(answer) == {"error"}
        statuses.append(status)

    run()
    assert set(statuses) == {200, 400}
    assert not any("exception" in line for line in server.logs())


# --- Cost


def test_a_long_list_does_not_lengthen_those_of_others(server, samples):
    """1000 candidates of which one has 50,000 tags; as an array it would be 500 times as large as the request."""
    shared = {name: value for name, value in samples[0][0].items() if name != "item_tags"}
    tags = [",".join(["a"] * 50_000), *[""] * 999]
    before = memory_mib(server, "VmHWM")
    status, answer = server.predict([{"item_tags": text} for text in tags], shared=shared)
    assert (status, len(answer["predictions"])) == (200, 1000)
    assert memory_mib(server, "VmHWM") < before + 200
    alone = server.predict([{"item_tags": tags[0]}, {"item_tags": ""}], shared=shared)[1]["predictions"]
    for expected, predicted in zip(alone, answer["predictions"], strict=False):
        assert predicted["probs_click"] == pytest.approx(expected["probs_click"], rel=1e-5)


def test_a_list_that_many_share_is_refused(server, samples):
    shared = {**samples[0][0], "item_tags": ",".join(["a"] * 5000)}
    status, answer = server.predict([{}] * 10_000, shared=shared)
    assert status == 400
    assert answer["error"].startswith("shared: item_tags: counts as 5156 values")
    assert "fewer candidates at a time" in answer["error"]


def test_health_is_answered_while_a_large_request_is_computed(server, samples):
    shared = {name: value for name, value in samples[0][0].items() if name != "item_tags"}
    body = {"instances": [{"item_tags": ["a"] * (i % 800)} for i in range(4000)], "shared": shared}
    content = json.dumps(body).encode()
    health, end = [], threading.Event()

    def ask():
        while not end.is_set():
            health.append(server.request("GET", "/v2/health/live")[0])

    asking = threading.Thread(target=ask)
    assert server.request("POST", V1, content)[0] == 200
    asking.start()
    try:
        while not health:
            pass
        number = len(health)
        assert server.request("POST", V1, content)[0] == 200
        assert len(health) > number + 3
    finally:
        end.set()
        asking.join()
    assert set(health) == {200}


def test_odd_keys_affect_themselves_alone(server, samples):
    instances = [{**samples[0][0], "img_path": key} for key in ("a\0b", "k" * 1_000_000, "ü" * 600, "")]
    status, answer = server.predict([*instances, *samples[0][:2]])
    assert status == 200
    assert [p["img_emb_source"] for p in answer["predictions"]] == ["mean"] * 4 + ["store"] * 2
