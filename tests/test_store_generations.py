"""Generations of a store that several processes write, read, prune and leave, on real servers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from store_helpers import fill, record, vector

from easyrec_mm.cli.main import main
from easyrec_mm.errors import StoreError
from easyrec_mm.store import Record, generations, open_store

SPAWN = multiprocessing.get_context("spawn")
NUM_RACES = 15


@pytest.fixture
def later(monkeypatch):
    """Lets time pass for leases."""

    def pass_s(seconds):
        now_s = time.time() + seconds
        monkeypatch.setattr(time, "time", lambda: now_s)

    return pass_s


# --- Two writers


def begin_at_once(uri, origin, barrier, numbers):
    for race in range(NUM_RACES):
        store = open_store(f"{uri}{race}", writable=True)
        barrier.wait()
        generation = store.begin(origin, 4, "float32")
        store.put_many(generation, [Record(f"{origin}{i}", vector(1), bytes(16), 0) for i in range(3)])
        store.complete(generation)
        store.close()
        numbers.put((race, generation.number))


def test_two_towers_begin_at_once(uri):
    """Each writes a generation of its own, also where the store is made at that moment."""
    barrier, numbers = SPAWN.Barrier(2, timeout=60), SPAWN.Queue()
    processes = [SPAWN.Process(target=begin_at_once, args=(uri, origin, barrier, numbers)) for origin in "ab"]
    for process in processes:
        process.start()
    found = sorted(numbers.get(timeout=120) for _ in range(2 * NUM_RACES))
    assert found == [(race, number) for race in range(NUM_RACES) for number in (1, 2)]
    for process in processes:
        process.join()
    for race in range(NUM_RACES):
        store = open_store(f"{uri}{race}")
        for generation in store.meta().generations.values():
            assert {r.key[0] for r in store.scan(generation)} == {generation.fingerprint}
        store.close()


def test_a_generation_is_current_when_all_its_writers_are_through(uri):
    one, other = open_store(uri, writable=True), open_store(uri, writable=True)
    generation = one.begin("tower", 4, "float32")
    assert other.begin("tower", 4, "float32") == generation
    one.put_many(generation, [record("a", 1)])
    assert one.complete(generation).startswith("another run is writing to it (")
    assert one.meta().current == 0
    other.put_many(generation, [record("b", 2)])
    assert other.complete(generation) == ""
    assert one.get_many(["a", "b"]).states.tolist() == [1, 1]
    # From then on it stays current while vectors are added.
    one.begin("tower", 4, "float32")
    other.begin("tower", 4, "float32")
    assert one.complete(generation) == ""
    # Who gives up holds up nobody.
    new = one.begin("new tower", 4, "float32")
    other.begin("new tower", 4, "float32")
    other.close()
    assert one.complete(new) == ""
    one.close()


def test_shares(uri):
    """One after the other; a run of another kind does not make half of a generation current."""
    for part, waits_for in ((1, "share 2, 3 of 3 have not"), (3, "share 2 of 3 has not"), (3, "share 2 of 3 has not")):
        store = open_store(uri, writable=True)
        generation = store.begin("tower", 4, "float32")
        assert store.complete(generation, (part, 3)).startswith(waits_for)
        store.close()
    store = open_store(uri, writable=True)
    generation = store.begin("tower", 4, "float32")
    assert store.complete(generation).startswith("share 2 of 3 has not")
    with pytest.raises(StoreError, match=r"share 2/4: another share of generation 1 was one of 3"):
        store.complete(generation, (2, 4))
    assert store.meta().current == 0
    assert store.complete(generation, (2, 3)) == ""
    assert store.meta().current == 1
    store.close()


def test_shares_by_the_command(tmp_path, capsys):
    uri = f"lmdb://{tmp_path}/store"
    for part, says in ((1, "is not current yet: share 2 of 2 has not been written yet"), (2, "generation 1 of")):
        (tmp_path / "v.csv").write_text(f'key,vector\n{part},"1,2"\n')
        flags = ["--store", uri, "--input", f"{tmp_path}/v.csv", "--origin", "words", "--share", f"{part}/2"]
        assert main(["store", "load", *flags]) == 0
        assert says in capsys.readouterr().out
    assert main(["store", "stat", "--store", uri]) == 0
    assert "vectors: 2; " in capsys.readouterr().out
    for wrong in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(SystemExit):
            main(["store", "load", *flags[:-1], wrong])
        assert "is not a part of a number of parts, as in 2/3" in capsys.readouterr().err


# --- Pruning


def test_a_generation_that_is_used_is_kept(uri, later):
    store, first = fill(uri, {"a": 1})
    reader = open_store(uri)
    assert reader.keep(first)
    fill(uri, {"a": 2}, fingerprint="other")[0].close()
    third = store.begin("third", 4, "float32")
    assert store.prune() == ([], {1: "is being read", 3: "is being written"})
    assert store.meta().generations.keys() == {1, 2, 3}
    reader.close()
    assert store.prune() == ([1], {3: "is being written"})
    later(generations.LEASE_S + 1)
    assert store.prune() == ([3], {})
    # What is written late goes nowhere, and is not taken for vectors of the next tower.
    assert store.begin("fourth", 4, "float32").number == 4
    with pytest.raises(StoreError, match="generation 3 was removed while it was being written; write it again"):
        store.put_many(third, [record("a", 1)])
    with pytest.raises(StoreError, match="generation 3 no longer exists"):
        store.complete(third)
    store.change(lambda meta: replace(meta, generations={**meta.generations, 3: third}))
    assert list(store.scan(third)) == []
    store.close()


def test_leases_are_renewed(uri, later, monkeypatch):
    """As long as something is written, or the lease is asked for again."""
    clock_s = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: clock_s[0])
    store, first = fill(uri, {"a": 1})
    fill(uri, {"a": 2}, fingerprint="other")[0].close()
    third = store.begin("third", 4, "float32")
    reader = open_store(uri)
    for _ in range(3):
        assert reader.keep(first)
        store.put_many(third, [record("a", 1)])
        assert store.prune().removed == []
        later(generations.LEASE_S * 0.9)
        clock_s[0] += generations.LEASE_S * 0.9
    reader.close()
    store.close()


def end_in_the_middle(uri):
    store = open_store(uri, writable=True)
    store.put_many(store.begin("tower", 4, "float32"), [record("a", 1)])
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_writer_that_was_killed(uri, later):
    """Its lease ends with it on its own machine, after a time elsewhere; another one goes on in its generation."""
    process = SPAWN.Process(target=end_in_the_middle, args=(uri,))
    process.start()
    process.join()
    store = open_store(uri, writable=True)
    (dead,) = store.meta().use(1).writers
    store.change(lambda meta: meta.with_writer(1, f"elsewhere{dead}", int(time.time()) + generations.LEASE_S))
    assert store.prune() == ([], {1: "is being written"})
    later(generations.LEASE_S + 1)
    generation = store.begin("tower", 4, "float32")
    assert generation.number == 1
    assert store.complete(generation) == ""
    assert store.get_many(["a"]).states.tolist() == [1]
    store.begin("other", 4, "float32")
    store.close()
    store = open_store(uri, writable=True)
    store.change(lambda meta: meta.with_writer(2, dead, int(time.time()) + generations.LEASE_S))
    assert store.prune() == ([2], {})
    store.close()


def test_a_prune_that_was_killed_is_finished_by_the_next(uri):
    store, first = fill(uri, {"a": 1})
    fill(uri, {"a": 2}, fingerprint="other")[0].close()
    store.change(lambda meta: meta.without([1]))
    assert store.begin("third", 4, "float32").number == 3
    assert store.prune() == ([], {3: "is being written"})
    assert store.meta().removed == ()
    store.change(lambda meta: replace(meta, generations={**meta.generations, 1: first}))
    assert list(store.scan(first)) == []
    store.close()


# --- Reading


def test_a_scan_sees_a_whole_generation_or_says_that_it_went(uri):
    store, first = fill(uri, {f"k{i}": i for i in range(2500)})
    store.complete(store.begin("other", 4, "float32"))
    records = store.scan(first)
    next(records)
    assert store.prune().removed == [1]
    with pytest.raises(StoreError, match="generation 1 was removed while it was read; read again"):
        list(records)
    store.close()


def test_stat_of_a_generation_that_is_removed_meanwhile(uri, capsys, monkeypatch):
    """As by `store rollback` and `store prune` of another process."""
    fill(uri, {"a": 1})[0].close()
    fill(uri, {"a": 1, "b": 2}, fingerprint="other")[0].close()
    norm = np.linalg.norm

    def norm_meanwhile(array):
        process = SPAWN.Process(target=roll_back_and_prune, args=(uri,))
        process.start()
        process.join()
        monkeypatch.setattr(np.linalg, "norm", norm)
        return norm(array)

    monkeypatch.setattr(np.linalg, "norm", norm_meanwhile)
    assert main(["store", "stat", "--store", uri]) == 1
    output = capsys.readouterr()
    assert "generation 2 was removed while it was read; read again" in output.err
    assert "vectors:" not in output.out


def roll_back_and_prune(uri):
    store = open_store(uri, writable=True)
    store.rollback()
    store.prune()
    store.close()
