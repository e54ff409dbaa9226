"""Vectors of tables into a store: every way to write them, and every way to get them wrong."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easyrec_mm.cli.main import main
from easyrec_mm.errors import DataError, StoreError
from easyrec_mm.store import State, open_store
from easyrec_mm.store.load import Columns, load

COLUMNS = Columns("key", "vector", ",")
VECTORS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
KEYS = ["NA", "007", "ü b"]


def as_text(vector):
    return ",".join(json.dumps(float(x)) for x in vector)


def list_of(kind):
    return pa.array(VECTORS.tolist(), kind)


@pytest.fixture
def store(tmp_path):
    opened = open_store(f"lmdb://{tmp_path}/store", writable=True)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "vectors",
    [
        list_of(pa.list_(pa.float32())),
        list_of(pa.large_list(pa.float64())),
        list_of(pa.list_(pa.float32(), 4)),
        pa.array([as_text(vector) for vector in VECTORS]),
    ],
    ids=lambda array: str(array.type),
)
def test_parquet(store, tmp_path, vectors):
    pq.write_table(pa.table({"other": [1, 2, 3], "vector": vectors, "key": KEYS}), tmp_path / "v.parquet")
    loaded = load(store, f"{tmp_path}/*.parquet", COLUMNS, "words", "float32")
    assert (loaded.number, loaded.generation.number, loaded.generation.width) == (3, 1, 4)
    assert store.meta().current_generation.fingerprint == "words"
    answer = store.get_many([*KEYS, "7"])
    np.testing.assert_array_equal(answer.vectors[:3], VECTORS)
    assert answer.states.tolist() == [State.PRESENT] * 3 + [State.MISSING]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1),
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        min_size=1,
    )
)
def test_what_a_table_holds_the_store_does(store, tmp_path, numbers):
    vectors = [[number, 0.0] for number in numbers.values()]
    pq.write_table(pa.table({"key": list(numbers), "vector": vectors}), tmp_path / "v.parquet")
    load(store, f"{tmp_path}/v.parquet", COLUMNS, "words", "float32")
    np.testing.assert_array_equal(store.get_many(list(numbers)).vectors, np.float32(vectors))


def test_csv_by_the_command(tmp_path, capsys):
    rows = [f'{key},x,"{as_text(vector)}"'.replace(",", ";", 2) for key, vector in zip(KEYS, VECTORS, strict=True)]
    lines = [row.replace(";", ",", 2) for row in rows]
    (tmp_path / "v.csv").write_text("\n".join(["id,other,numbers", *lines, ""]), encoding="utf-8")
    uri = f"lmdb://{tmp_path}/store"
    flags = ["--store", uri, "--input", f"{tmp_path}/v.csv", "--key_column", "id", "--vector_column", "numbers"]
    assert main(["store", "load", *flags, "--origin", "words", "--dtype", "float16"]) == 0
    assert capsys.readouterr().out == f"3 vectors of 4 numbers written; generation 1 of {uri} is current\n"
    store = open_store(uri)
    np.testing.assert_array_equal(store.get_many(KEYS).vectors, VECTORS.astype(np.float16))  # 007 keeps its zeros
    store.close()
    assert main(["store", "load", "--store", uri, "--input", f"{tmp_path}/v.csv"]) == 1
    assert "v.csv: does not tell what computed the vectors; name it with --origin" in capsys.readouterr().err


def test_vectors_are_added_and_replaced_until_their_origin_changes(store, tmp_path):
    def write(origin, **vectors):
        table = pa.table({"key": list(vectors), "vector": [[float(x)] * 2 for x in vectors.values()]})
        pq.write_table(table, tmp_path / "v.parquet")
        return load(store, f"{tmp_path}/v.parquet", COLUMNS, origin, "float32").generation.number

    assert write("words", a=1, b=2) == write("words", b=3, c=4) == 1
    assert store.get_many(["a", "b", "c"]).vectors[:, 0].tolist() == [1, 3, 4]
    assert write("better words", a=9) == 2
    assert store.get_many(["a", "b"]).states.tolist() == [State.PRESENT, State.MISSING]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("v.txt", "", "v.txt: is neither .parquet nor .csv; write one of these"),
        ("w.csv", "", "--input: '.*/v.*' matches no file; check the path"),
        ("v.csv", "key,vector\n", "--input .*: holds no rows; give files with keys and vectors"),
        (
            "v.csv",
            "keys,vector\na,1\n",
            r"v.csv: no column 'key'; did you mean 'keys'\? Or name the columns with --key",
        ),
        ("v.csv", 'key,vector\na,"1,2"\n,"1,2"\n', "v.csv: row 2: 'key' is empty; give every vector a key"),
        ("v.csv", 'key,vector\na,"1,x"\n', "v.csv: row 1: 'vector' is '1,x', not a vector of finite numbers"),
        ("v.csv", "key,vector\na,1e39\n", "v.csv: row 1: 'vector' is '1e39', not a vector of finite numbers"),
        ("v.csv", "key,vector\na,nan\n", "v.csv: row 1: 'vector' is 'nan', not a vector of finite numbers"),
        ("v.csv", "key,vector\na,\n", "v.csv: row 1: 'vector' is '', not a vector of finite numbers"),
        ("v.csv", 'key,vector\na,"1,2"\nb,1\n', "v.csv: row 2: the vector has 1 numbers, but earlier ones have 2"),
        ("v.csv", "key,vector\na\n", "v.csv: cannot be read: "),
        ("v.parquet", "no table", "v.parquet: cannot be read: "),
    ],
)
def test_files_that_hold_no_vectors(store, tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=says):
        load(store, f"{tmp_path}/v*", COLUMNS, "words", "float32")
    assert store.meta().current_generation is None


def test_keys_that_are_none(store, tmp_path):
    pq.write_table(pa.table({"key": [1.5], "vector": [[1.0]]}), tmp_path / "v.parquet")
    with pytest.raises(DataError, match="column 'key' is double; keys are text or whole numbers"):
        load(store, f"{tmp_path}/v.parquet", COLUMNS, "words", "float32")


def test_vectors_of_two_widths(store, tmp_path):
    (tmp_path / "1.csv").write_text('key,vector\na,"1,2"\n')
    (tmp_path / "2.csv").write_text('key,vector\na,"1,2,3"\n')
    with pytest.raises(DataError, match=re.escape("2.csv: row 1: the vector has 3 numbers, but earlier ones have 2")):
        load(store, f"{tmp_path}/*.csv", COLUMNS, "words", "float32")
    assert store.meta().current_generation is None  # not before all is written
    load(store, f"{tmp_path}/1.csv", COLUMNS, "words", "float32")
    with pytest.raises(StoreError, match="holds vectors of 2 float32, not 3 float32"):
        load(store, f"{tmp_path}/2.csv", COLUMNS, "words", "float32")
