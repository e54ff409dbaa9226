"""Vectors out of a store: the tables and lines that are written, and that `store load` makes an equal store of them."""

from __future__ import annotations

import csv
import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_helpers import fill, record, vector

from easyrec_mm.cli.main import main
from easyrec_mm.errors import DataError, StoreError
from easyrec_mm.files.opening import exists
from easyrec_mm.store import Record, dump, open_store
from easyrec_mm.store.load import Columns, load

SEEDS = {"a.jpg": 1, "b/ü ,;|.png": 2, "bad": None, 'quo"te\nline': 3, "k" * 600: 4, "NA": 5, "007": 6, "": 7}
COLUMNS = Columns("key", "vector", ",")


def contents(store, generation=None):
    """Everything that a generation holds, by key."""
    generation = generation or store.meta().current_generation
    return {
        r.key: (None if r.vector is None else r.vector.tobytes(), r.content_hash, r.written_s)
        for r in store.scan(generation)
    }


def close_all(*stores):
    for store in stores:
        store.close()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_a_dump_makes_an_equal_store(uri, tmp_path, dtype, ending, monkeypatch):
    monkeypatch.setattr(dump, "RECORDS_AT_A_TIME", 3)  # several row groups, one of them may have absent keys alone
    fill(uri, SEEDS, dtype=dtype)[0].close()
    output = f"{tmp_path}/v{ending}"
    assert main(["store", "dump", "--store", uri, "--output", output]) == 0
    again = f"lmdb://{tmp_path}/again" if uri.startswith("lmdb") else f"{uri}2"
    told = [] if ending == ".parquet" else ["--origin", "tower", "--dtype", dtype]
    assert main(["store", "load", "--store", again, "--input", output, *told]) == 0
    first, second = open_store(uri), open_store(again)
    assert contents(second) == contents(first)
    assert len(contents(first)) == len(SEEDS)
    generations = [store.meta().current_generation for store in (first, second)]
    assert [(g.fingerprint, g.width, g.dtype) for g in generations] == [("tower", 4, dtype)] * 2
    close_all(first, second)


def test_a_dump_is_a_table_that_others_read(tmp_path, capsys):
    uri = f"lmdb://{tmp_path}/store"
    fill(uri, SEEDS)[0].close()
    assert main(["store", "dump", "--store", uri, "--output", f"{tmp_path}/v.parquet"]) == 0
    expected = f"7 vectors of 4 numbers and 1 absent keys of generation 1 in {tmp_path}/v.parquet\n"
    assert capsys.readouterr().out == expected
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.column_names == ["key", "vector", "state", "content_hash", "written_s"]
    assert list(map(str, table.schema.types)) == ["string", "list<element: float>", "string", "string", "int64"]
    rows = {row["key"]: row for row in table.to_pylist()}
    assert rows.keys() == SEEDS.keys()
    for key, seed in SEEDS.items():
        original = record(key, seed)
        assert rows[key]["vector"] == (None if seed is None else vector(seed).tolist())
        assert rows[key]["state"] == ("absent" if seed is None else "present")
        assert rows[key]["content_hash"] == original.content_hash.hex()
        assert rows[key]["written_s"] == original.written_s
    assert main(["store", "dump", "--store", uri, "--output", f"{tmp_path}/v.csv"]) == 0
    with open(tmp_path / "v.csv", newline="", encoding="utf-8") as file:
        lines = {line["key"]: line for line in csv.DictReader(file)}
    assert [float(number) for number in lines["a.jpg"]["vector"].split(",")] == vector(1).tolist()
    assert (lines["bad"]["vector"], lines["bad"]["state"]) == ("", "absent")
    assert not list(tmp_path.glob("*.tmp-*"))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=6),
        st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
        min_size=1,
    )
)
def test_any_key_and_number_comes_back(tmp_path, numbers):
    place = tmp_path / str(time.time_ns())
    store = open_store(f"lmdb://{place}/1", writable=True)
    generation = store.begin("tower", 1, "float32")
    vectors = {key: None if number is None else np.float32([number]) for key, number in numbers.items()}
    store.put_many(generation, [Record(key, value, bytes(range(16)), -5) for key, value in vectors.items()])
    store.complete(generation)
    for ending in (".parquet", ".csv"):
        dump.dump(store, generation, f"{place}/v{ending}")
        other = open_store(f"lmdb://{place}/{ending}", writable=True)
        if ending == ".csv" and not any(value is not None for value in vectors.values()):
            with pytest.raises(DataError, match="holds no vectors; give files"):
                load(other, f"{place}/v.csv", COLUMNS, "tower", None)
        else:
            load(other, f"{place}/v{ending}", COLUMNS, "tower", None)
            assert contents(other) == contents(store)
        other.close()
    store.close()


def test_an_older_generation(tmp_path, capsys):
    uri = f"lmdb://{tmp_path}/store"
    fill(uri, {"a": 1})[0].close()
    store, _ = fill(uri, {"a": 2}, fingerprint="other tower")
    store.begin("third", 4, "float32")
    store.close()
    for number, origin, seed in ((None, "other tower", 2), (1, "tower", 1)):
        flags = ["--store", uri] + ([] if number is None else ["--generation", str(number)])
        assert main(["store", "dump", *flags, "--output", f"{tmp_path}/v.parquet"]) == 0
        assert pq.read_table(tmp_path / "v.parquet")["vector"].to_pylist() == [vector(seed).tolist()]
        assert dump.origin_of(pq.read_schema(tmp_path / "v.parquet")) == (origin, 4, "float32")
        capsys.readouterr()
        assert main(["store", "get", *flags, "--key", "a"]) == 0
        assert json.loads(capsys.readouterr().out)["origin"] == origin
    for number, says in ((3, "is not complete in"), (9, "does not exist in")):
        assert main(["store", "get", "--store", uri, "--key", "a", "--generation", str(number)]) == 1
        assert f"--generation {number}: {says} {uri}; complete generations: 1, 2" in capsys.readouterr().err


def test_get_prints_what_the_store_has(uri, capsys):
    fill(uri, SEEDS)[0].close()
    keys = ["bad", "b/ü ,;|.png", "k" * 600]
    assert main(["store", "get", "--store", uri, *[word for key in keys for word in ("--key", key)]]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for key, line in zip(keys, lines, strict=True):
        seed, original = SEEDS[key], record(key, SEEDS[key])
        assert line == {
            "key": key,
            "state": "absent" if seed is None else "present",
            "content_hash": original.content_hash.hex(),
            "written_s": original.written_s,
            "generation": 1,
            "origin": "tower",
            "vector": None if seed is None else vector(seed).tolist(),
        }
    assert main(["store", "get", "--store", uri, "--key", "no", "--key", "a.jpg", "--key", "none"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["key"] == "a.jpg"
    assert "--key no, none: is not in generation 1 of" in captured.err


def test_a_dump_in_a_bucket(tmp_path, bucket):
    uri = f"lmdb://{tmp_path}/store"
    fill(uri, SEEDS)[0].close()
    assert main(["store", "dump", "--store", uri, "--output", f"{bucket}/out/v.parquet"]) == 0
    assert exists(f"{bucket}/out/v.parquet")
    assert main(["store", "load", "--store", f"lmdb://{tmp_path}/again", "--input", f"{bucket}/out/*.parquet"]) == 0
    first, second = open_store(uri), open_store(f"lmdb://{tmp_path}/again")
    assert contents(second) == contents(first)
    close_all(first, second)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["dump"], "store dump: give the file to write with --output"),
        (["dump", "--output", "v.npy"], "--output v.npy: is neither .parquet nor .csv; write one of these"),
        (["dump", "--output", "no/folder/v.csv"], "no/folder/v.csv: the folder no/folder does not exist; create it"),
        (["get"], "store get: give the key of a vector with --key"),
        (["load"], "store load: give the files with --input"),
    ],
)
def test_commands_that_lack_something(tmp_path, monkeypatch, capsys, flags, says):
    monkeypatch.chdir(tmp_path)
    fill("lmdb://store", {"a": 1})[0].close()
    assert main(["store", *flags, "--store", "lmdb://store"]) == 1
    assert says in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_a_generation_that_is_removed_meanwhile_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(dump, "RECORDS_AT_A_TIME", 1)
    store, first = fill(f"lmdb://{tmp_path}/store", {"a": 1, "b": 2})
    fill(f"lmdb://{tmp_path}/store", {"a": 1}, fingerprint="other tower")[0].close()
    monkeypatch.setattr(store, "keep", lambda generation: store.prune())
    with pytest.raises(StoreError, match="generation 1 was removed while it was read"):
        dump.dump(store, first, f"{tmp_path}/v.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    store.close()


def test_a_dumped_generation_is_kept_meanwhile(uri, tmp_path, monkeypatch):
    monkeypatch.setattr(dump, "RECORDS_AT_A_TIME", 1)
    fill(uri, {"a": 1, "b": 2})[0].close()
    fill(uri, {"a": 1}, fingerprint="other tower")[0].close()
    store = open_store(uri, writable=True)
    first = store.meta().generations[1]
    keep, pruned = store.keep, []

    def keep_and_prune(generation):
        kept = keep(generation)
        pruned.append(store.prune().kept)
        return kept

    monkeypatch.setattr(store, "keep", keep_and_prune)
    assert dump.dump(store, first, f"{tmp_path}/v.parquet").num_present == 2
    assert pruned[:2] == [{1: "is being read"}] * 2
    store.close()


def test_a_key_that_no_table_holds_is_left_out_and_told(tmp_path, capsys):
    uri = f"lmdb://{tmp_path}/store"
    fill(uri, {"a": 1, "\ud800x": 2})[0].close()
    assert main(["store", "dump", "--store", uri, "--output", f"{tmp_path}/v.csv"]) == 0
    assert "1 keys are left out" in capsys.readouterr().err
    assert "a" in (tmp_path / "v.csv").read_text()
    assert main(["store", "get", "--store", uri, "--key", "\ud800x"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == "\ud800x"


def dumped(**changes):
    row = {"key": "a", "vector": [1.0], "state": "present", "content_hash": "00" * 16, "written_s": 5} | changes
    return pa.Table.from_pylist([row])


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (dumped(state="gone"), "row 1: 'state' is 'gone', not present or absent"),
        (dumped(content_hash="00"), "row 1: 'content_hash' is '00' and 'written_s' 5, not 32 hexadecimal digits and"),
        (dumped(content_hash=None), "row 1: 'content_hash' is None and"),
        (dumped(written_s=None), "'written_s' None, not 32"),
        (dumped(vector=None), "row 1: 'vector' is None, not a vector of finite numbers"),
        (dumped(vector=None, state="absent"), "holds no vectors; give files with keys and vectors"),
        (dumped(key=None), "row 1: 'key' is empty"),
    ],
)
def test_dumps_that_were_changed(tmp_path, table, says):
    pq.write_table(table, tmp_path / "v.parquet")
    store = open_store(f"lmdb://{tmp_path}/store", writable=True)
    with pytest.raises(DataError, match=says):
        load(store, f"{tmp_path}/v.parquet", COLUMNS, "words", None)
    assert store.meta().current_generation is None
    with pytest.raises(DataError, match="does not tell what computed the vectors; name it with --origin"):
        load(store, f"{tmp_path}/v.parquet", COLUMNS, None, None)
    store.close()


def test_dumps_of_two_origins(tmp_path):
    for number, origin in enumerate(("one", "two")):
        store, generation = fill(f"lmdb://{tmp_path}/{origin}", {origin: number + 1}, fingerprint=origin)
        dump.dump(store, generation, f"{tmp_path}/{number}.parquet")
        store.close()
    store = open_store(f"lmdb://{tmp_path}/store", writable=True)
    with pytest.raises(DataError, match=r"1.parquet: holds vectors of 'two', but files before it those of 'one'"):
        load(store, f"{tmp_path}/*.parquet", COLUMNS, None, None)
    assert load(store, f"{tmp_path}/*.parquet", COLUMNS, "both", None).number == 2
    store.close()


def test_a_column_of_a_users_table_that_has_the_name_of_one_in_a_dump(tmp_path):
    pq.write_table(pa.table({"key": ["a"], "vector": [[1.0]], "state": ["Ohio"]}), tmp_path / "v.parquet")
    store = open_store(f"lmdb://{tmp_path}/store", writable=True)
    assert load(store, f"{tmp_path}/v.parquet", COLUMNS, "words", None).number == 1
    store.close()
