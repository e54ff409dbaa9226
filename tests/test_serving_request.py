"""Requests: what is read from them, and which instance and field an error names."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from data_helpers import schema
from feature_helpers import id_feature, raw_feature, raw_sequence, tag_feature
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.features.field import Field
from easyrec_mm.serving import list_sizes
from easyrec_mm.serving.field_values import RequestError
from easyrec_mm.serving.request import Columns, Limits, RequestReader

FIELDS = {"user": "string", "age": "int64", "price": "float32", "new": "bool", "tags": "string", "place": "string"}
FEATURES = [
    id_feature("user", ("user",), 4, "t", "hash", 10),
    id_feature("age", ("age",), 4, "t", "hash", 10),
    raw_feature("price", ("price",), 1),
    id_feature("new", ("new",), 4, "t", "hash", 10),
    tag_feature("tags", ("tags",), 4, "t", "hash", 10, separator="|", kv_separator=":"),
    raw_feature("place", ("place",), 2, dim=2, separator=","),
]
ONE = {"user": "u1", "age": 3, "price": 1.5, "new": True, "tags": "a:1|b:2", "place": "1,2", "img_path": "a.jpg"}


class BothForms(RequestReader):
    """Reads a body as objects and as JSON, and finds the same."""

    def read(self, body):
        problem = None
        try:
            request = super().read(body)
        except RequestError as error:
            problem = error
        try:
            text = json.dumps(body, allow_nan=False).encode()
        except ValueError:  # what JSON does not have, such as NaN
            text = b"{"
        if problem is not None:
            with pytest.raises(RequestError) as raised:
                super().read(text)
            assert text == b"{" or str(raised.value) == str(problem)
            raise problem
        parsed = super().read(text)
        assert (parsed.number, parsed.keys) == (request.number, request.keys)
        for name, values in request.fields.items():
            np.testing.assert_array_equal(parsed.fields[name], values)
        assert parsed.vectors.keys() == request.vectors.keys()
        for i, vector in request.vectors.items():
            np.testing.assert_array_equal(parsed.vectors[i], vector)
        return request


@pytest.fixture(scope="module")
def reader():
    return make_reader()


def make_reader(**options):
    base_schema = schema({"click": "float32"}, FIELDS, FEATURES, defaults={"age": "7", "tags": "z:1"})
    optional = {"age", "tags"}
    fields = tuple(Field(f.name, f.dtype, f.default, f.name in optional) for f in base_schema.fields)
    limits = Limits(max_instances=5, max_list_values=options.pop("max_list_values", 1000))
    return BothForms(type(base_schema)(**{**base_schema.__dict__, "fields": fields}), 3, limits=limits, **options)


def test_keys_of_another_field():
    reader = make_reader(key_field="age")
    assert reader.read({"instances": [ONE, {**ONE, "age": 12}]}).keys == ["3", "12"]
    with pytest.raises(RequestError, match="instance 0: age: is missing; give the picture's key"):
        reader.read({"instances": [{**ONE, "age": None}]})
    reader = make_reader(key_field="item id")
    instance = {name: value for name, value in ONE.items() if name != "img_path"}
    assert reader.read({"instances": [{**instance, "item id": "a"}, {**instance, "item id": 7}]}).keys == ["a", "7"]
    with pytest.raises(RequestError, match=r"instance 0: item id: is 1.5, not a key"):
        reader.read({"instances": [{**instance, "item id": 1.5}]})


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"x": Infinity}', b'{"instances": [{"price": NaN}]}', b'{"instances": "\\ud800"}', b"\xff"]
)
def test_what_is_not_json(reader, body):
    with pytest.raises(RequestError, match=r"the body (is not JSON|must be)"):
        RequestReader.read(reader, body)


def test_values_by_column(reader):
    other = {**ONE, "user": "ü", "age": -(2**63), "price": 2, "new": 0, "tags": "", "place": "", "img_path": "b"}
    request = reader.read({"instances": [ONE, other]})
    assert request.number == 2
    assert request.fields["user"] == ["u1", "ü"]
    assert request.fields["age"].tolist() == [3, -(2**63)]
    assert request.fields["price"].dtype == np.float32
    assert request.fields["price"].tolist() == [1.5, 2.0]
    assert request.fields["new"].tolist() == [1, 0]
    assert request.fields["tags"] == ["a:1|b:2", "z:1"]  # empty takes the default
    assert request.fields["place"] == ["1,2", ""]
    assert request.keys == ["a.jpg", "b"]
    assert request.vectors == {}


def test_shared_values_stand_once(reader):
    shared = {name: ONE[name] for name in ("user", "age", "new")}
    rest = {name: value for name, value in ONE.items() if name not in shared}
    request = reader.read({"instances": [rest, rest], "shared": shared})
    assert request.fields["user"] == ["u1"]
    assert request.fields["age"].tolist() == [3]
    assert len(request.fields["tags"]) == 2


def test_optional_fields_take_their_default(reader):
    without = {name: value for name, value in ONE.items() if name not in ("age", "tags")}
    request = reader.read({"instances": [without, {**ONE, "age": None}]})
    assert request.fields["age"].tolist() == [7, 7]
    assert request.fields["tags"] == ["z:1", "a:1|b:2"]


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("tags", ["a:1", "b:2"], "a:1|b:2"),
        ("tags", ["a:1", None, ""], "a:1||"),
        ("tags", [], "z:1"),  # as empty text takes the default
        ("place", [1, 2.5], "1,2.5"),
        ("place", ["1", 2], "1,2"),
        ("user", ["u1", 7, True], "u1|7|true"),  # as tables have it for a feature that reads no lists
    ],
)
def test_a_list_stands_for_the_text_of_its_feature(reader, name, values, text):
    request = reader.read({"instances": [{**ONE, name: values}, ONE]})
    assert list(request.fields[name]) == [text, ONE[name]]
    shared = {key: value for key, value in ONE.items() if key != name}
    assert list(reader.read({"instances": [shared], "shared": {name: values}}).fields[name]) == [text]


def test_lists_of_lists_are_sequences_of_vectors():
    feature = raw_sequence("seen", ("place",), 2, separator=";", dim=2, number_separator=",")
    reader = BothForms(schema({"click": "float32"}, {"place": "string"}, [feature]), 3)
    request = reader.read({"instances": [{"place": [[1, 2], [3, 4.5]], "img_path": "a"}]})
    assert request.fields["place"] == ["1,2;3,4.5"]


def test_ids_that_are_floats_are_told_apart():
    feature = id_feature("shop", ("shop",), 4, "t", "hash", 10, precision=0)
    reader = BothForms(schema({"click": "float32"}, {"shop": "float32"}, [feature]), 3)
    largest = 2**24 - 1
    request = reader.read({"instances": [{"shop": shop, "img_path": "a"} for shop in (largest, -largest)]})
    assert request.fields["shop"].tolist() == [largest, -largest]
    with pytest.raises(RequestError, match=r"instance 0: shop: 16777216\.0 is not a number from -16777215 to"):
        reader.read({"instances": [{"shop": largest + 1.0, "img_path": "a"}]})


def test_columns(reader):
    own = {name: [value, value] for name, value in ONE.items() if name != "user"}
    request = RequestReader.read(reader, Columns(2, own, {"user": "u2"}))
    assert (request.number, request.keys, request.fields["user"]) == (2, ["a.jpg", "a.jpg"], ["u2"])
    with pytest.raises(RequestError, match="instance 0: no field 'usr'; did you mean 'user'"):
        RequestReader.read(reader, Columns(2, {**own, "usr": ["a", "b"]}, {}))
    with pytest.raises(RequestError, match="6 instances; at most 5"):
        RequestReader.read(reader, Columns(6, own, {"user": "u2"}))


@pytest.mark.parametrize(
    ("instances", "shared", "message"),
    [
        (
            [{}, {"tags": "a:1|" * 1000}],
            {},
            "instance 1: tags: counts as 10.. values, and the lists of all 2 candidates",
        ),
        ([{}] * 5, {"tags": "a:1|" * 250}, "shared: tags: counts as 2.. values, and the lists of all 5 candidates"),
        ([{}] * 5, {"user": "u" * 100_000}, "shared: user: counts as 1562 values, and the lists of all 5 candidates"),
        ([{}, {"tags": ["a:1"] * 1000}], {}, r"more than 1000 \(--max_list_values\); give shorter lists"),
        ([{"user": "u" * ((1 << 20) + 1)}], {}, "instance 0: user: has 1048577 characters; at most 1048576 are read"),
        ([{"user": "u" * 600_000, "img_path": "a" * 600_000}], {}, ""),
        ([{}] * 4, {"tags": "a:1|" * 200}, ""),
    ],
)
def test_the_cost_of_a_request_is_bounded(monkeypatch, instances, shared, message):
    monkeypatch.setattr(list_sizes, "VALUES_OF_A_PART", 100)
    reader = make_reader(max_list_values=1000)
    rest = {name: value for name, value in ONE.items() if name not in shared}
    body = {"instances": [{**rest, **instance} for instance in instances], "shared": shared}
    if not message:
        assert reader.read(body).number == len(instances)
        return
    with pytest.raises(RequestError, match=message):
        reader.read(body)


def test_empty_candidates_do_not_take_the_memory_of_full_ones():
    names = [f"field_{i}" for i in range(300)]
    features = [id_feature(name, (name,), 4, name, "hash", 10) for name in names]
    reader = RequestReader(schema({"click": "float32"}, dict.fromkeys(names, "string"), features), 3)
    body = b'{"instances": [' + b",".join([b"{}"] * 500_000) + b"]}"
    tracemalloc.start()
    try:
        with pytest.raises(
            RequestError, match="more than 21000 objects; at most 10000 instances are answered at a time"
        ):
            reader.read(body)
        assert tracemalloc.get_traced_memory()[1] < len(body)
    finally:
        tracemalloc.stop()
    text = json.dumps({"instances": [dict.fromkeys(names, '{"[\\') | {"img_path": "a"}] * 100}).encode()
    assert reader.read(text).number == 100  # signs in texts do not count


@given(st.lists(st.lists(st.integers(0, 60), min_size=2, max_size=2), min_size=1, max_size=80), st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_parts_hold_each_candidate_once_and_little_padding(sizes, repeated):
    own = {"a": np.array([a for a, _ in sizes]), "b": np.array([b for _, b in sizes])}
    lists = list_sizes.ListSizes(len(sizes), own, {"c": repeated} if repeated else {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_sizes, "VALUES_OF_A_PART", 100)
        parts = lists.parts() or [np.arange(len(sizes))]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(sizes)))
    padded = [len(part) * (sum(int(values[part].max()) for values in own.values()) + repeated) for part in parts]
    assert all(values <= 100 or len(part) == 1 for values, part in zip(padded, parts, strict=True))
    assert sum(padded) <= 4 * lists.total + 100 * 10


@pytest.mark.parametrize("vector", ["1,2.5,-3e1", [1, 2.5, -30], "1, 2.5 ,-30"])
def test_vectors_instead_of_keys(reader, vector):
    without = {name: value for name, value in ONE.items() if name != "img_path"}
    request = reader.read({"instances": [{**without, "img_emb": vector}, ONE]})
    assert request.keys == ["", "a.jpg"]
    assert request.vectors[0].tolist() == [1.0, 2.5, -30.0]
    shared = reader.read({"instances": [without, ONE], "shared": {"img_emb": vector}})
    assert shared.keys == ["", "a.jpg"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": None}, "instance 1: user: is missing; give a string"),
        ({"user": 5}, "instance 1: user: is 5, not a string"),
        ({"user": {"a": 1}}, r"instance 1: user: is {'a': 1}, not a string"),
        ({"tags": ["a:1|b:1"]}, r"instance 1: tags: \['a:1\|b:1'\]: a value contains '\|', which separates the values"),
        ({"tags": [{}]}, r"instance 1: tags: \[{}\]: holds {}, not text or a number"),
        ({"tags": [["a", 1]]}, "instance 1: tags: .*: holds .*, not text or a number"),
        ({"place": [1, "x"]}, "instance 1: place: '1,x' does not have the form"),
        ({"place": [1, 2**70]}, "instance 1: place: .*: holds 1180591620717411303424, not text or a number"),
        ({"age": [1]}, r"instance 1: age: is \[1\], not a int64"),
        ({"age": True}, "instance 1: age: is True, not a int64"),
        ({"age": 1.0}, "instance 1: age: is 1.0, not a int64"),
        ({"age": 2**63}, "instance 1: age: 9223372036854775808 is not a int64"),
        ({"price": "1"}, "instance 1: price: is '1', not a float32"),
        ({"price": float("nan")}, "instance 1: price: nan is not a number from -1e19 to 1e19"),
        ({"price": 1e39}, r"instance 1: price: 1e\+39 is not a number from -1e19 to 1e19"),
        ({"price": 10**400}, r"instance 1: price: 10{56}... is not a number from"),
        ({"age": 10**400}, r"instance 1: age: 10{56}... is not a int64"),
        ({"new": 2}, "instance 1: new: 2 is not a bool"),
        ({"tags": "a:x"}, "instance 1: tags: 'a:x' does not have the form that its feature needs"),
        ({"place": "1"}, "instance 1: place: '1' does not have the form"),
        ({"img_path": None}, "instance 1: img_path: is missing; give the picture's key, or img_emb"),
        ({"img_path": 3}, "instance 1: img_path: is 3, not a key"),
        ({"img_emb": "1,2"}, "instance 1: img_emb: '1,2' is not 3 finite numbers"),
        ({"img_emb": [1, 2, "nan"]}, "instance 1: img_emb"),
        ({"img_emb": [1, 2, True]}, "instance 1: img_emb"),
        ({"img_emb": {"a": 1}}, "instance 1: img_emb"),
        ({"usr": "u"}, "instance 1: no field 'usr'; did you mean 'user'?"),
    ],
)
def test_an_error_names_instance_and_field(reader, change, message):
    with pytest.raises(RequestError, match=message):
        reader.read({"instances": [ONE, {**ONE, **change}]})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "the body must be"),
        ([], "the body must be"),
        ({"instances": {}}, "the body must be"),
        ({"instances": []}, "'instances' is empty"),
        ({"instances": [ONE] * 6}, "6 instances; at most 5"),
        ({"instances": [ONE, 3]}, "instance 1 is 3, not an object"),
        ({"instances": [ONE], "shared": [1]}, r"shared is \[1\], not an object"),
        ({"instances": [ONE], "sharde": {}}, "unknown part 'sharde'"),
        ({"instances": [ONE], "shared": {"x": 1}}, "shared: no field 'x'"),
        ({"instances": [ONE], "shared": {"user": "u"}}, "instance 0: 'user' is in 'shared', too"),
    ],
)
def test_a_body_of_another_shape(reader, body, message):
    with pytest.raises(RequestError, match=message):
        reader.read(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from([*ONE, "img_emb", "click", "x"]), json_values, max_size=4),
    st.dictionaries(st.sampled_from([*ONE, "img_emb"]), json_values, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_any_json_is_read_or_refused(reader, change, shared):
    body = {"instances": [{**ONE, **change}], "shared": shared}
    try:
        request = reader.read(json.loads(json.dumps(body)))
    except RequestError:
        return
    assert request.number == len(request.keys) == 1
    assert request.fields.keys() == FIELDS.keys()
