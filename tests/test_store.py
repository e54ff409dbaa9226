"""Stores of image vectors, each against a dict and against what a reader must never see; on real servers."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import subprocess
import threading
import time

import numpy as np
import pytest
from fuzz_helpers import fuzz
from hypothesis import given
from hypothesis import strategies as st
from store_helpers import fill, record, vector

from easyrec_mm.cli.main import main
from easyrec_mm.errors import StoreError
from easyrec_mm.store import Record, State, open_store
from easyrec_mm.store.records import content_hash


def test_round_trip(uri):
    seeds = {"a.jpg": 1, "b/ü ,;|.png": 2, "bad": None, "k" * 600: 3, "k" * 599 + "ü": 4}
    fill(uri, seeds)[0].close()
    store = open_store(uri)
    answer = store.get_many([*seeds, "no such key", "a.jpg"])
    assert answer.states.tolist() == [1, 1, 2, 1, 1, 0, 1]
    expected = [np.zeros(4) if seed is None else vector(seed) for seed in seeds.values()]
    np.testing.assert_array_equal(answer.vectors, np.array([*expected, np.zeros(4), vector(1)], np.float32))
    generation = store.meta().current_generation
    assert (generation.fingerprint, generation.width, generation.dtype, answer.generation) == ("tower", 4, "float32", 1)
    records = {r.key: r for r in store.scan(generation)}
    assert records.keys() == seeds.keys()
    for key, seed in seeds.items():
        expected = record(key, seed)
        assert records[key].content_hash == expected.content_hash
        assert records[key].written_s == expected.written_s
        assert (records[key].vector is None) == (seed is None)
    assert store.hashes(generation, ["bad", "x", "a.jpg"]) == [content_hash(b"None"), None, content_hash(b"1")]
    store.close()


def test_a_reader_is_asked_for_a_generation_that_it_has_not_seen(uri):
    fill(uri, {"a": 1})[0].close()
    reader = open_store(uri, writable=True)
    store, generation = fill(uri, {"a": 2}, fingerprint="other tower")
    np.testing.assert_array_equal(reader.get_many(["a"], generation).vectors, [vector(2)])
    reader.close()
    store.close()


def test_half_precision(uri):
    store, _ = fill(uri, {"a": 1, "b": None}, dtype="float16")
    answer = store.get_many(["a", "b"])
    assert answer.vectors.dtype == np.float32
    np.testing.assert_array_equal(answer.vectors[0], vector(1).astype(np.float16))
    assert answer.states.tolist() == [State.PRESENT, State.ABSENT]


def test_no_key(uri):
    store, _ = fill(uri, {"a": 1})
    answer = store.get_many([])
    assert answer.vectors.shape == (0, 4)
    assert store.hashes(store.meta().current_generation, []) == []


def test_a_new_tower_makes_a_new_generation_that_readers_see_at_once(uri):
    store, first = fill(uri, {"a": 1, "b": 2})
    reader = open_store(uri)
    assert reader.get_many(["a"]).generation == 1
    second = store.begin("other tower", 3, "float32")
    assert second.number == 2
    store.put_many(second, [record("a", 7, width=3)])
    assert reader.get_many(["a"]).vectors.shape == (1, 4)  # not complete
    store.complete(second)
    answer = reader.get_many(["a", "b"])
    assert (answer.generation, answer.states.tolist()) == (2, [1, 0])
    np.testing.assert_array_equal(answer.vectors[0], vector(7, 3))
    np.testing.assert_array_equal(reader.get_many(["a"], first).vectors[0], vector(1))  # an old one, while it is kept
    assert store.rollback().number == 1
    np.testing.assert_array_equal(reader.get_many(["a"]).vectors[0], vector(1))
    with pytest.raises(StoreError, match="nothing to roll back to"):
        store.rollback()
    store.complete(second)
    third = store.begin("third", 2, "float32")
    store.put_many(third, [record("c", 1, width=2)])
    assert store.prune().removed == [1]
    assert set(store.meta().generations) == {2, 3}  # the third is being written
    with pytest.raises(StoreError, match="generation 1 was removed while it was read"):
        list(store.scan(first))
    for handle in (reader, store):
        with pytest.raises(StoreError, match="generation 1 no longer exists"):
            handle.get_many(["a"], first)
    assert reader.get_many(["a"]).generation == 2


def test_the_same_tower_goes_on_in_its_generation(uri):
    store = open_store(uri, writable=True)
    begun = store.begin("tower", 4, "float32")
    store.put_many(begun, [record("a", 1)])
    store.close()
    again = open_store(uri, writable=True)
    assert again.begin("tower", 4, "float32").number == begun.number
    with pytest.raises(StoreError, match="holds vectors of 4 float32, not 4 float16"):
        again.begin("tower", 4, "float16")
    with pytest.raises(StoreError, match="no complete generation"):
        again.get_many(["a"])
    again.complete(begun)
    assert again.get_many(["a"]).states.tolist() == [1]


@pytest.mark.parametrize("bad", [np.zeros(5), np.array([1, 2, np.nan, 3]), np.array([1, 2, np.inf, 3])])
def test_a_vector_that_is_none(uri, bad):
    store, generation = fill(uri, {})
    with pytest.raises(StoreError, match="x: "):
        store.put_many(generation, [Record("x", bad.astype(np.float32), bytes(16), 0)])


def test_too_large_for_half_precision(uri):
    store, generation = fill(uri, {}, dtype="float16")
    with pytest.raises(StoreError, match="not finite as float16"):
        store.put_many(generation, [Record("x", np.full(4, 1e5, np.float32), bytes(16), 0)])


def test_a_place_without_a_store(uri):
    with pytest.raises(StoreError, match=r"easyrec-mm embed|does not exist"):
        open_store(uri)


# Also NUL, halves of surrogate pairs, and keys that are longer than LMDB or an index of PostgreSQL takes.
KEYS = st.one_of(
    st.text(max_size=8),
    st.text(st.characters(), max_size=4),
    st.sampled_from(["\0", "\x01", "a\0b", "\ud800"]),
    st.builds(
        lambda end, n: "k" * n + end, st.text(max_size=3), st.sampled_from([500, 506, 507, 508, 2599, 2600, 9000])
    ),
)
WRITES = st.lists(st.dictionaries(KEYS, st.one_of(st.none(), st.integers(0, 99)), max_size=6), max_size=4)


@given(writes=WRITES, asked=st.lists(KEYS, max_size=5))
@fuzz(25)
@pytest.mark.fuzz
def test_like_a_dict(uri, writes, asked):
    store, generation = fill(f"{uri}{time.time_ns()}", {})
    written = {}
    for seeds in writes:
        store.put_many(generation, [record(key, seed) for key, seed in seeds.items()])
        written |= seeds
    keys = [*asked, *written]
    answer = store.get_many(keys)
    for key, row, state in zip(keys, answer.vectors, answer.states, strict=True):
        seed = written.get(key)
        assert state == (State.MISSING if key not in written else State.ABSENT if seed is None else State.PRESENT)
        np.testing.assert_array_equal(row, np.zeros(4) if seed is None else vector(seed))
    for r in store.scan(generation):
        seed = written.pop(r.key)
        assert (r.vector is None) == (seed is None)
        assert seed is None or (r.vector == vector(seed)).all()
    assert not written
    store.close()


def _switch(uri, num_switches):
    store = open_store(uri, writable=True)
    for number in range(num_switches):
        generation = store.begin(f"tower {number}", 4, "float32")
        store.put_many(generation, [Record(f"k{i}", np.full(4, number, np.float32), bytes(16), 0) for i in range(50)])
        store.complete(generation)


def test_a_reader_never_sees_two_generations_in_one_answer(uri):
    _switch(uri, 1)
    reader = open_store(uri)
    writer = multiprocessing.get_context("spawn").Process(target=_switch, args=(uri, 40))
    writer.start()
    seen = set()
    while writer.is_alive():
        answer = reader.get_many([f"k{i}" for i in range(50)])
        assert answer.states.all()
        assert len(np.unique(answer.vectors)) == 1
        assert answer.vectors[0, 0] == answer.generation - 1
        seen.add(answer.generation)
    writer.join()
    assert writer.exitcode == 0
    assert len(seen) > 2


@pytest.mark.parametrize("name", ["redis", "postgres"])
def test_a_server_that_is_down_and_comes_back(name, servers):
    server = servers(name)
    option = {"redis": "prefix", "postgres": "table"}[name]
    uri = f"{server.uri}?{option}=down{time.time_ns()}"
    store, _ = fill(uri, {"a": 1})
    server.stop()
    for attempt in (lambda: store.get_many(["a"]), lambda: open_store(uri)):
        with pytest.raises(StoreError, match="check that the server runs"):
            attempt()
    server.start()
    np.testing.assert_array_equal(store.get_many(["a"]).vectors[0], vector(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["redis", "postgres"])
def test_a_server_that_is_frozen(name, servers):
    """It keeps its connections and accepts new ones, but does not answer."""
    server = servers(name)
    option = {"redis": "prefix", "postgres": "table"}[name]
    uri = f"{server.uri}?{option}=frozen{time.time_ns()}"
    store, _ = fill(uri, {"a": 1})
    with server.frozen():
        started = time.monotonic()
        for attempt in (lambda: store.get_many(["a"]), lambda: open_store(uri)):
            with pytest.raises(StoreError, match="check that the server runs"):
                attempt()
        assert time.monotonic() < started + 30
    np.testing.assert_array_equal(store.get_many(["a"]).vectors[0], vector(1))


def test_options_in_the_uri(servers):
    """Are those of the drivers: another database of Redis, another schema of PostgreSQL."""
    address, name = servers("redis").uri.removesuffix("/0"), time.time_ns()
    fill(f"{address}?db=3&prefix=p{name}&socket_timeout=1", {"a": 1})[0].close()
    assert open_store(f"{address}/3?prefix=p{name}").get_many(["a"]).states.tolist() == [1]
    with pytest.raises(StoreError, match=f"no vectors under the prefix 'p{name}'"):
        open_store(f"{address}/0?prefix=p{name}")
    uri = f"{servers('postgres').uri}?application_name=a%20b&options=-c%20search_path%3Dpg_temp&table=t{name}"
    store, _ = fill(uri, {"a": 1})
    assert store.get_many(["a"]).states.tolist() == [1]
    with pytest.raises(StoreError, match=f'"t{name}_meta" does not exist'):  # not there for another connection
        open_store(uri)


def test_an_odd_key_affects_itself_alone(uri):
    odd = ["a\0b", "k" * 100_000, "\ud800", ""]
    store, generation = fill(uri, {"a": 1})
    assert store.get_many([*odd, "a"]).states.tolist() == [State.MISSING] * 4 + [State.PRESENT]
    assert store.hashes(generation, [*odd, "a"]) == [None] * 4 + [content_hash(b"1")]
    store.put_many(generation, [record(key, 2) for key in odd])
    assert store.get_many([*odd, "a"]).states.tolist() == [State.PRESENT] * 5
    store.close()


def test_passwords_are_not_shown():
    with pytest.raises(StoreError) as error:
        open_store("redis://user:geheim@127.0.0.1:1/0")
    assert "geheim" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("vectors", "no store has the scheme '://'"),
        ("lmbd://x", "did you mean 'lmdb'"),
        ("lmdb://", "give a path"),
        ("postgresql://u@127.0.0.1:1/d?table=a;b", "use letters, digits and _"),
    ],
)
def test_an_address_that_is_none(uri, message):
    with pytest.raises(StoreError, match=message):
        open_store(uri, writable=True)


def test_a_damaged_file(tmp_path):
    fill(f"lmdb://{tmp_path}", {f"k{i}": i for i in range(2000)})[0].close()
    for content in (b"", b"nonsense" * 1000):
        (tmp_path / "data.mdb").write_bytes(content)
        with pytest.raises(StoreError, match=r"lmdb://"):
            open_store(f"lmdb://{tmp_path}").get_many(["k1"])


def test_a_file_that_is_cut(tmp_path, capsys):
    """Reading beyond its end would end the process."""
    uri = f"lmdb://{tmp_path}"
    fill(uri, {f"k{i}": i for i in range(20_000)})[0].close()
    size = (tmp_path / "data.mdb").stat().st_size
    for rest in (size - 4096, size // 2, 8192, 5000, 4096, 100):
        os.truncate(tmp_path / "data.mdb", rest)
        for command in (["stat"], ["prune"], ["rollback"]):
            assert main(["store", *command, "--store", uri]) == 1
            assert f"data.mdb is cut: it has {rest} bytes" in capsys.readouterr().err


def test_a_copy_that_was_made_while_a_store_was_written(tmp_path):
    """Its pages may be of different times. The store itself is read, also after its writer was killed."""
    store = open_store(f"lmdb://{tmp_path}/1", writable=True)
    generation = store.begin("tower", 4, "float32")
    store.put_many(generation, [record("a", 1)])
    (tmp_path / "2").mkdir()
    shutil.copy(tmp_path / "1" / "data.mdb", tmp_path / "2")
    with pytest.raises(StoreError, match="2: is a copy of a store that was being written; copy it again when"):
        open_store(f"lmdb://{tmp_path}/2").meta()
    assert store.complete(generation) == ""
    shutil.copy(tmp_path / "1" / "data.mdb", tmp_path / "2")
    assert open_store(f"lmdb://{tmp_path}/2").get_many(["a"]).states.tolist() == [1]
    store.close()


def test_a_file_that_is_overwritten_while_it_is_read(tmp_path):
    """By `cp` and by cutting it: each answer is of one store, and the end is the last one's."""
    for number in (1, 2):
        store = open_store(f"lmdb://{tmp_path}/{number}", writable=True)
        generation = store.begin(f"tower {number}", 4, "float32")
        store.put_many(generation, [Record(f"k{i}", np.full(4, number), bytes(16), 0) for i in range(3000 * number)])
        store.complete(generation)
        store.close()
    shutil.copytree(tmp_path / "1", tmp_path / "used")
    reader, keys, is_done = open_store(f"lmdb://{tmp_path}/used"), [f"k{i}" for i in range(100)], threading.Event()
    answers, problems = [], []

    def read():
        while not is_done.is_set():
            try:
                answers.append(np.unique(reader.get_many(keys).vectors).tolist())
            except StoreError as error:
                problems.append(str(error))

    reading = threading.Thread(target=read)
    reading.start()
    for _ in range(25):
        for number in (2, 1):
            subprocess.run(["cp", "-r", f"{tmp_path}/{number}/.", f"{tmp_path}/used"], check=True)
        os.truncate(tmp_path / "used" / "data.mdb", 10_000)
    subprocess.run(["cp", f"{tmp_path}/2/data.mdb", f"{tmp_path}/used"], check=True)
    time.sleep(0.3)
    is_done.set()
    reading.join()
    assert [answer for answer in answers if answer not in ([1.0], [2.0])] == []
    assert answers[-1] == [2.0]
    for problem in problems:
        assert re.search(r"data.mdb to write to it;|is writing to data.mdb;|data.mdb is cut: it has \d+ bytes", problem)


@pytest.mark.parametrize("of", ["folder", "file"])
def test_a_store_in_the_place_of_another(tmp_path, of):
    """The one that was opened is read on until it is opened anew."""
    for number in (1, 2):
        fill(f"lmdb://{tmp_path}/{number}", {"a": number})[0].close()
    reader = open_store(f"lmdb://{tmp_path}/1")
    assert reader.reopened() is None
    if of == "folder":
        (tmp_path / "1").rename(tmp_path / "old")
        assert reader.reopened() is None
        (tmp_path / "2").rename(tmp_path / "1")
    else:
        (tmp_path / "2" / "data.mdb").rename(tmp_path / "1" / "data.mdb")
    other = reader.reopened()
    assert other.identity != reader.identity
    for store, number in ((reader, 1), (other, 2), (reader, 1)):
        np.testing.assert_array_equal(store.get_many(["a"]).vectors[0], vector(number))
    for store in (reader, other):
        store.close()


def test_a_writer_beside_a_reader(tmp_path):
    """It need not wait long for the reader, which sees what is written."""
    fill(f"lmdb://{tmp_path}", {"a": 1})[0].close()
    reader = open_store(f"lmdb://{tmp_path}")
    for number in range(2):
        started = time.monotonic()
        writer = multiprocessing.get_context("spawn").Process(target=_switch, args=(f"lmdb://{tmp_path}", number + 1))
        writer.start()
        while writer.is_alive():
            assert reader.get_many(["a"], reader.meta().generations[1]).states.tolist() == [1]
        assert writer.exitcode == 0
        assert time.monotonic() < started + 30
        assert len(reader.meta().generations) == number + 2
    reader.close()


def test_a_folder_that_may_not_be_written(tmp_path):
    """As on a file system that is read-only; who may write there, as root may, finds that nothing was."""
    fill(f"lmdb://{tmp_path}", {"a": 1})[0].close()
    (tmp_path / "lock.mdb").unlink()
    before = sorted(path.name for path in tmp_path.iterdir())
    tmp_path.chmod(0o555)
    reader = open_store(f"lmdb://{tmp_path}")
    assert reader.get_many(["a"]).states.tolist() == [1]
    reader.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    tmp_path.chmod(0o755)


def test_a_foreign_database(tmp_path):
    import lmdb

    with lmdb.open(str(tmp_path), max_dbs=2) as environment:
        database = environment.open_db(b"easyrec_mm")
        with environment.begin(write=True) as transaction:
            transaction.put(b"meta", b"{}", db=database)
    with pytest.raises(StoreError, match="is not a store of easyrec_mm"):
        open_store(f"lmdb://{tmp_path}").meta()
