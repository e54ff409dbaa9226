"""`easyrec-mm quantize` on every kind of store: what becomes current, what stays, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from code_helpers import cluster_vectors, put

import easyrec_mm as er
from easyrec_mm.cli.main import main
from easyrec_mm.codes import quantize as module
from easyrec_mm.errors import StoreError, UserError
from easyrec_mm.store import Record, State, open_store
from easyrec_mm.store.base import Store
from easyrec_mm.store.codes import codebooks_uri, codes_uri, parse_origin

VECTORS, CLUSTERS = cluster_vectors(60)
KEYS = [f"k{i}" for i in range(60)]
SHAPE = "3x8"


def put_items(uri, rows, fingerprint="tower", vectors=VECTORS):
    put(uri, {KEYS[row]: vectors[row] for row in rows}, fingerprint)


def codes_of(uri, keys=KEYS):
    """Key -> its current codes, of those that have some; and the current generation."""
    store = open_store(codes_uri(uri))
    found = store.get_many(list(keys))
    generation = store.meta().current_generation
    store.close()
    rows = zip(keys, found.vectors.astype(int).tolist(), found.states, strict=True)
    return {key: codes for key, codes, state in rows if state == State.PRESENT}, generation


# --- One generation after another


def test_new_items_are_coded_and_old_codes_stay(uri):
    """By the codebooks of the store, in the same generation."""
    put_items(uri, range(40))
    first = er.quantize(uri, codes=SHAPE)
    codes, generation = codes_of(uri)
    assert (first.is_new, first.num_items, first.num_written, first.generation) == (True, 40, 40, 1)
    assert len({tuple(code[:1]) for code in codes.values()}) == len(set(CLUSTERS)) == first.num_used[0]
    for key, code in codes.items():
        assert code[0] == codes[KEYS[CLUSTERS[KEYS.index(key)]]][0]
    changed = VECTORS.copy()
    changed[0] = VECTORS[1]  # of a picture that was replaced: an item of another cluster now
    put_items(uri, [0, *range(40, 60)], vectors=changed)
    second = er.quantize(uri)
    after, generation_after = codes_of(uri)
    assert generation_after.number == generation.number
    assert parse_origin(generation.fingerprint).vectors == "tower"
    assert (second.is_new, second.num_items, second.num_written) == (False, 60, 21)
    assert (second.changes.num_compared, second.changes.num_changed, second.changes.num_changed_first) == (40, 1, 1)
    assert after["k0"] == codes["k1"]
    assert {key: after[key] for key in KEYS[1:40]} == {key: codes[key] for key in KEYS[1:40]}
    assert all(after[key][0] == after[KEYS[1:9][(i - 1) % 8]][0] for i, key in enumerate(KEYS) if i)
    third = er.quantize(uri)
    assert (third.num_written, third.changes.num_changed) == (0, 0)


def test_vectors_of_another_tower_need_new_codebooks(uri):
    """Their codes keep their names; those of the tower before stay beside them."""
    put_items(uri, range(60))
    er.quantize(uri, codes=SHAPE)
    codes, generation = codes_of(uri)
    turned = VECTORS @ np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0].astype(np.float32) * 3 + 5
    put_items(uri, range(60), "other tower", turned.astype(np.float32))
    with pytest.raises(
        StoreError, match=r"for vectors of 'tower', but generation 2 holds those of 'other tower'.*add --refit"
    ):
        er.quantize(uri)
    assert codes_of(uri) == (codes, generation)
    report = er.quantize(uri, refit=True)
    assert (report.shape, report.generation, report.num_fitted) == ((3, 8), 2, 60)
    after, generation_after = codes_of(uri)
    assert {key: code[0] for key, code in after.items()} == {key: code[0] for key, code in codes.items()}
    assert report.changes.num_compared == 60
    assert report.changes.num_changed == sum(after[key] != codes[key] for key in KEYS) < 30
    assert parse_origin(generation_after.fingerprint).vectors == "other tower"
    store = open_store(codes_uri(uri))
    assert store.get_many(["k0"], generation).vectors.tolist() == [codes["k0"]]
    store.close()


def test_another_shape_is_asked_for(uri):
    put_items(uri, range(60))
    er.quantize(uri, codes=SHAPE)
    with pytest.raises(StoreError, match=r"--codes 2x4: the codebooks of .* are 3x8; leave it out, or add --refit"):
        er.quantize(uri, codes="2x4")
    report = er.quantize(uri, codes="2x4", refit=True)
    assert (report.shape, report.changes.num_compared) == ((2, 4), 0)
    assert {len(code) for code in codes_of(uri)[0].values()} == {2}


class Killed(BaseException):
    """In place of a signal that ends the process."""


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("num_writes", [1, 2])
def test_a_run_that_was_killed_is_started_again(tmp_path, monkeypatch, refit, num_writes):
    """After the codebooks, or among the codes: what was current stays, and the end is that of one run."""
    monkeypatch.setattr(module, "RECORDS_AT_A_TIME", 20)
    places = [f"lmdb://{tmp_path}/{name}" for name in ("killed", "whole")]
    for uri in places:
        put_items(uri, range(40))
        if refit:
            er.quantize(uri, codes=SHAPE)
            put_items(uri, range(40), "other tower", VECTORS[::-1].copy())
    killed, whole = places
    before = codes_of(killed) if refit else None
    write, count = Store.put_many, [0]

    def put_many(self, *arguments):
        count[0] += 1
        if count[0] > num_writes:
            raise Killed
        write(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_many", put_many)
        with pytest.raises(Killed):
            er.quantize(killed, codes=SHAPE, refit=refit, output=f"{tmp_path}/codes.csv")
    assert not (tmp_path / "codes.csv").exists()
    if before:
        assert codes_of(killed) == before
    else:
        with pytest.raises(StoreError, match=r"no complete generation|no store there"):
            codes_of(killed)
    again = er.quantize(killed, codes=SHAPE, refit=refit)
    once = er.quantize(whole, codes=SHAPE, refit=refit)
    assert codes_of(killed)[0] == codes_of(whole)[0]
    assert codes_of(killed)[1].fingerprint == codes_of(whole)[1].fingerprint
    assert again.collisions == once.collisions


# --- Odd contents


@pytest.mark.parametrize(
    ("vectors", "codes"),
    [
        ({"one": [1, 2]}, {"one": [1, 1, 1]}),
        ({"a": [1, 2], "b": [1, 2], "c": [1, 2]}, {"a": [1, 1, 1], "b": [1, 1, 1], "c": [1, 1, 1]}),
        ({"zero": [0, 0], "negative": [-0.0, 0.0], "no": None}, {"zero": [1, 1, 1], "negative": [1, 1, 1]}),
    ],
)
def test_few_equal_and_absent_vectors(uri, vectors, codes, capsys):
    put(uri, {key: None if v is None else np.array(v, np.float32) for key, v in vectors.items()})
    assert main(["quantize", "--store", uri, "--codes", SHAPE]) == 0
    assert codes_of(uri, vectors)[0] == codes
    out = capsys.readouterr().out
    absent = ", 1 without a vector" if "no" in vectors else ""
    assert f"{len(codes)} items with codes{absent}; {len(vectors)} written" in out
    assert len(re.findall(r"^ +[123] +1 +-$", out, re.MULTILINE)) == 3  # there is no variance to explain
    assert "reconstruction error: 0 (mean squared distance)" in out


def test_a_store_without_vectors(tmp_path):
    uri = f"lmdb://{tmp_path}/store"
    with pytest.raises(StoreError, match="no store there"):
        er.quantize(uri)
    put(uri, {"a": np.ones(2, np.float32)})
    put(uri, {"a": None, "b": None, "c": np.ones(3, np.float32)}, "none")
    store = open_store(uri, writable=True)
    generation = store.meta().current_generation
    store.put_many(generation, [Record("c", None, bytes(16), 0)])
    store.close()
    with pytest.raises(StoreError, match=r"generation 2 holds no vector to code"):
        er.quantize(uri)


def test_codes_are_not_coded(tmp_path):
    uri = f"lmdb://{tmp_path}/store"
    put_items(uri, range(9))
    er.quantize(uri, codes=SHAPE)
    with pytest.raises(StoreError, match="/codes: holds codes, not vectors; give the store that they are beside"):
        er.quantize(f"{uri}/codes")


def test_damaged_codebooks_are_refused_and_can_be_made_anew(tmp_path):
    uri = f"lmdb://{tmp_path}/store"
    put_items(uri, range(40))
    er.quantize(uri, codes=SHAPE)
    before = codes_of(uri)
    store = open_store(codebooks_uri(uri), writable=True)
    generation = store.meta().current_generation
    record = next(store.scan(generation))
    store.put_many(generation, [record._replace(vector=record.vector + 1)])
    store.close()
    with pytest.raises(
        StoreError, match="codebooks: generation 1 holds no valid codebooks; make new ones with --refit"
    ):
        er.quantize(uri)
    er.quantize(uri, refit=True)
    assert {k: c[0] for k, c in codes_of(uri)[0].items()} == {k: c[0] for k, c in before[0].items()}
    assert er.quantize(uri).changes.num_changed == 0


# --- The command


def test_the_output_holds_the_codes(tmp_path, capsys):
    uri = f"lmdb://{tmp_path}/store"
    put(uri, {**dict(zip(KEYS, VECTORS, strict=True)), "bad": None, "\ud800": VECTORS[0]})
    tables = []
    for name in ("codes.parquet", "codes.csv"):
        assert main(["quantize", "--store", uri, "--codes", SHAPE, "--output", f"{tmp_path}/{name}"]) == 0
        read = pq.read_table if name.endswith("parquet") else pc.read_csv
        tables.append(read(f"{tmp_path}/{name}").to_pylist())
    assert tables[0] == tables[1]
    rows = {row["key"]: row for row in tables[0]}
    codes, _ = codes_of(uri)
    assert set(rows) == {*KEYS, "bad"}
    assert {key: [row[f"code_{level}"] for level in (1, 2, 3)] for key, row in rows.items()} == {
        **codes,
        "bad": [0, 0, 0],
    }
    assert rows["k7"]["semantic_id"] == "_".join(map(str, codes["k7"]))
    captured = capsys.readouterr()
    assert "1 keys are left out of" in captured.err
    assert "61 items with codes, 1 without a vector; 62 written" in captured.out
    assert f"generation 1 of {uri}/codes is current" in captured.out


@pytest.mark.parametrize("text", ["4", "x", "0x8", "4x0", "17x8", "4x65537", "4x256x2", "-1x3"])
def test_shapes_that_are_wrong(text, capsys):
    assert main(["quantize", "--store", "lmdb://no", f"--codes={text}"]) == 1
    assert (
        f"codes: '{text}' is not a number of levels and one of codes, as in 4x256: 1 to 16" in capsys.readouterr().err
    )


def test_arguments_that_are_wrong(tmp_path):
    for arguments, message in (
        ({"seed": -1}, "quantize: seed: is -1; give a number from 0"),
        ({"sample": 0}, "quantize: sample: is 0; give a number from 1"),
        ({"output": tmp_path / "codes.txt"}, "codes.txt: is neither .parquet nor .csv; write one of these"),
    ):
        with pytest.raises(UserError, match=message):
            er.quantize("lmdb://no", **arguments)
