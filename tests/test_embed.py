"""Offline embedding: whole commands into real stores, against the image model itself."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from flow_helpers import ROOT
from input_helpers import WRITERS, read_groups

from easyrec_mm.cli.main import main
from easyrec_mm.embedding.items import Item, read_items
from easyrec_mm.errors import DataError
from easyrec_mm.manifest import read_manifest
from easyrec_mm.store import State, open_store


def vectors(exported, keys):
    contents = tf.constant([(exported.data / key).read_bytes() for key in keys])
    image = tf.saved_model.load(str(exported.folder / "image")).signatures["encoded"]
    return image(img_path=contents)["img_emb_vector"].numpy()


@pytest.fixture
def root(exported, tmp_path):
    """A copy of the pictures that a test may spoil."""
    shutil.copytree(exported.data / "images", tmp_path / "images")
    return tmp_path


def embed(exported, root, *flags, expect=0, image=None):
    arguments = ["embed", "--img_model_dir", str(image or exported.folder / "image"), "--store", f"lmdb://{root}/store"]
    arguments += ["--input", f"{root}/images/test/*", "--image_root", str(root), "--batch_size", "5"]
    assert main([*arguments, "--bad_pictures", f"{root}/bad.jsonl", *map(str, flags)]) == expect


def stored(root, keys):
    store = open_store(f"lmdb://{root}/store")
    try:
        return store.get_many(keys)
    finally:
        store.close()


def keys_of(root):
    return sorted(str(path.relative_to(root)) for path in (root / "images" / "test").iterdir())


@pytest.mark.parametrize("runtime", ["onnx", "tensorflow", "auto"])
def test_vectors_are_the_image_models(exported, root, capsys, runtime):
    embed(exported, root, "--runtime", runtime)
    keys = keys_of(root)
    assert f"{len(keys)} pictures embedded by" in capsys.readouterr().out
    answer = stored(root, keys)
    assert answer.states.all()
    np.testing.assert_allclose(answer.vectors, vectors(exported, keys), rtol=1e-4, atol=1e-5)


def test_a_second_run_finds_all_there(exported, root, capsys):
    embed(exported, root)
    before = stored(root, keys_of(root))
    capsys.readouterr()
    embed(exported, root)
    assert f"0 pictures embedded, {len(keys_of(root))} already in the store" in capsys.readouterr().out
    np.testing.assert_array_equal(stored(root, keys_of(root)).vectors, before.vectors)


def test_bad_pictures_are_absent_and_listed(exported, root, capsys):
    keys = keys_of(root)
    bad = {keys[0]: b"", keys[3]: b"no picture", keys[4]: (root / keys[4]).read_bytes()[:200]}
    for key, content in bad.items():
        (root / key).write_bytes(content)
    embed(exported, root, expect=1)
    assert f"3 of {len(keys)} items have no valid picture, more than --max_bad_share (0.1)" in capsys.readouterr().err
    embed(exported, root, "--max_bad_share", "0.3")
    assert f"{len(keys) - 3} already in the store, " in (output := capsys.readouterr().out)
    assert "3 bad (absent; listed in" in output
    answer = stored(root, keys)
    assert [keys[i] for i in np.flatnonzero(answer.states == State.ABSENT)] == sorted(bad)
    lines = [json.loads(line) for line in (root / "bad.jsonl").read_text().splitlines()]
    assert {line["key"] for line in lines} == bad.keys()
    assert all(line["problem"] for line in lines)


def test_refresh_takes_what_changed(exported, root, capsys):
    embed(exported, root)
    keys = keys_of(root)
    before = stored(root, keys)
    shutil.copy(root / keys[1], root / keys[0])
    (root / keys[2]).unlink()
    (root / keys[2]).write_bytes(b"")
    capsys.readouterr()
    embed(exported, root)
    assert "0 pictures embedded" in capsys.readouterr().out
    embed(exported, root, "--refresh", "changed")
    assert (
        f"1 pictures embedded by onnx, {len(keys) - 2} already in the store, 1 bad"
        in capsys.readouterr().out.replace("tensorflow", "onnx")
    )
    after = stored(root, keys)
    np.testing.assert_allclose(after.vectors[0], before.vectors[1], atol=1e-5)
    assert after.states[2] == State.ABSENT
    np.testing.assert_array_equal(after.vectors[3:], before.vectors[3:])
    embed(exported, root, "--refresh", "all")
    assert f"{len(keys) - 1} pictures embedded" in capsys.readouterr().out


def test_another_tower_makes_another_generation(exported, earlier_export, root, capsys):
    embed(exported, root)
    first = stored(root, keys_of(root))
    capsys.readouterr()
    embed(exported, root, image=earlier_export / "image")
    second = stored(root, keys_of(root))
    assert (first.generation, second.generation) == (1, 2)
    assert not np.allclose(first.vectors, second.vectors)
    (root / "keys.txt").write_text("\n".join([*keys_of(root), "unknown"]))
    capsys.readouterr()
    assert main(["store", "stat", "--store", f"lmdb://{root}/store", "--keys", f"{root}/keys.txt"]) == 0
    shown = capsys.readouterr().out
    number = len(keys_of(root))
    assert f"of {number + 1} keys; 1 missing, 0 absent" in shown
    assert f"drift from generation 1: {number} of {number} compared keys" in shown
    assert read_manifest(str(exported.folder / "image"), "image").image_tower_fingerprint[:12] in shown
    assert main(["store", "rollback", "--store", f"lmdb://{root}/store"]) == 0
    np.testing.assert_array_equal(stored(root, keys_of(root)).vectors, first.vectors)
    assert main(["store", "prune", "--store", f"lmdb://{root}/store"]) == 0
    assert "removed generations: 2" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(exported, root):
    """Killed at several moments; what was written stays and is not embedded again."""
    for copy in range(40):
        for key in keys_of(exported.data)[:10]:
            shutil.copy(root / key, root / "images" / "test" / f"copy_{copy}_{Path(key).name}")
    keys = keys_of(root)
    arguments = ["embed", "--img_model_dir", exported.folder / "image", "--store", f"lmdb://{root}/store", "--input"]
    arguments += [f"{root}/images/test/*", "--image_root", root, "--batch_size", "1", "--runtime", "onnx"]
    code = "import sys, easyrec_mm.cli.main as cli; sys.exit(cli.main(sys.argv[1:]))"
    seen = 0
    for _ in range(2):
        command = [sys.executable, "-c", code, *map(str, arguments), "--bad_pictures", f"{root}/bad.jsonl"]
        process = subprocess.Popen(command, cwd=ROOT)
        store = None
        while process.poll() is None and store is None:
            if (root / "store" / "data.mdb").exists():
                store = open_store(f"lmdb://{root}/store")
            time.sleep(0.01)
        while process.poll() is None:
            generations = list(store.meta().generations.values())
            done = sum(h is not None for h in store.hashes(generations[0], keys)) if generations else 0
            if done >= seen + 30:
                process.send_signal(signal.SIGKILL)
                process.wait()
                break
        generation = store.meta().generations[1]
        written = {record.key: record for record in store.scan(generation)}
        assert len(written) >= seen + 30
        assert store.meta().current == 0
        seen = len(written)
        store.close()
    embed(exported, root)
    store = open_store(f"lmdb://{root}/store")
    after = {record.key: record for record in store.scan(store.meta().current_generation)}
    store.close()
    assert after.keys() == set(keys)
    for key, record in written.items():
        assert after[key].written_s == record.written_s
        np.testing.assert_array_equal(after[key].vector, record.vector)


@pytest.mark.slow
def test_a_full_disk(exported, root):
    code = (
        "import resource, signal, sys, easyrec_mm.cli.main as cli; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.exit(cli.main(sys.argv[1:]))"
    )
    arguments = ["embed", "--img_model_dir", exported.folder / "image", "--store", f"lmdb://{root}/store", "--input"]
    arguments += [f"{root}/images/test/*", "--image_root", root, "--bad_pictures", root / "bad.jsonl"]
    arguments += ["--runtime", "onnx"]
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert "check the path, its permissions and the free space" in process.stderr
    assert "Traceback" not in process.stderr
    embed(exported, root)
    assert stored(root, keys_of(root)).states.all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input", "none/*"], "--input: 'none/*' matches no file"),
        (["--img_model_dir", "none"], "none: no manifest.json"),
        (["--store", "lmdb://"], "give a path"),
        (
            ["--bad_pictures", "/none/bad"],
            "--bad_pictures /none/bad: the folder /none does not exist; create it, or give another",
        ),
    ],
)
def test_mistakes(exported, root, capsys, flags, message):
    embed(exported, root, *flags, expect=1)
    assert message in capsys.readouterr().err


# --- What an input names


@pytest.fixture
def schema(exported):
    return read_manifest(str(exported.folder / "image"), "image").schema


def test_items_of_tables_and_lists(schema, tmp_path):
    rows = [("a", "x/1.jpg"), ("b", "x/2.jpg"), ("a", "x/3.jpg"), ("", "x/4.jpg")]
    with (tmp_path / "i.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "file"), *rows])
    pq.write_table(pa.table({"id": [r[0] for r in rows], "file": [r[1] for r in rows]}), tmp_path / "i.parquet")
    expected = [Item("a", "x/1.jpg"), Item("b", "x/2.jpg")]
    for name in ("i.csv", "i.parquet"):
        assert read_items(str(tmp_path / name), schema, "", "id", "file").items == expected
        with pytest.raises(DataError, match=r"no column 'img_path'; .*--key_column"):
            read_items(str(tmp_path / name), schema)
    (tmp_path / "i.txt").write_text("x/1.jpg\n\nx/2.jpg\nx/1.jpg\n")
    assert read_items(str(tmp_path / "i.txt"), schema).items == [Item("x/1.jpg", "x/1.jpg"), Item("x/2.jpg", "x/2.jpg")]


def test_items_of_grouped_samples_and_of_a_folder(exported, schema, tmp_path):
    files = f"{exported.data}/test/*"
    from_lines = {item.key for item in read_items(files, schema).items}
    assert from_lines == set(keys_of(exported.data))
    for path in (exported.data / "test").iterdir():
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert {item.key for item in read_items(f"{tmp_path}/*.gz", schema).items} == from_lines
    from_folder = read_items(f"{exported.data}/images/test/**", schema, str(exported.data)).items
    assert {item.key for item in from_folder} == from_lines


def test_groups_of_which_the_picture_is_unclear_are_left_out_and_listed(exported, root, schema, tmp_path, capsys):
    (picture, other) = keys_of(exported.data)[:2]
    groups = {"img_path": [[picture] * 2, [picture, other], [other]], "group_size": [2, 2, 0]}
    pq.write_table(pa.table(groups), tmp_path / "a.parquet")
    unclear = f"sample 1: '{other}', but sample 0 has '{picture}'; the value must be the same in a group"
    refused = [
        (2, "column 'img_path'", unclear),
        (3, "column 'group_size'", "group size 0 is not 1 or more"),
    ]
    items = read_items(str(tmp_path / "a.parquet"), schema)
    assert items.items == [Item(picture, picture)]
    assert [(refusal.row, refusal.where, refusal.problem) for refusal in items.refused] == refused
    listed = tmp_path / "bad.jsonl"
    embed(exported, root, "--input", tmp_path / "a.parquet", "--bad_pictures", listed)
    assert (
        f"2 records are left out (listed in {listed}). The first: {tmp_path}/a.parquet:2: " in capsys.readouterr().out
    )
    assert [json.loads(line)["row"] for line in listed.read_text().splitlines()] == [2, 3]


def test_items_of_groups_in_every_format(exported, schema, tmp_path):
    groups = [group for path in sorted((exported.data / "test").iterdir()) for group in read_groups(path)]
    for kind, write in WRITERS.items():
        write(
            tmp_path / ("part-0.parquet" if "Parquet" in kind else "part-0.csv" if kind == "CSVInput" else kind), groups
        )
    expected = read_items(f"{exported.data}/test/*", schema).items
    for path in tmp_path.iterdir():
        assert read_items(str(path), schema).items == expected, path
    record = tmp_path / "GroupTFRecordInput"
    by_city = {item.key for item in read_items(str(record), schema, "", "category", "img_path").items}
    assert by_city == {group["category"][0] for group in groups}
    with pytest.raises(DataError, match=r"no column 'catgory'; did you mean 'category'\?"):
        read_items(str(record), schema, "", "catgory", "img_path")
    content = bytearray(record.read_bytes())
    content[-7] ^= 1
    record.write_bytes(content)
    with pytest.raises(DataError, match=r"record \d+ has a wrong checksum"):
        read_items(str(record), schema)


@pytest.mark.parametrize(
    ("name", "content"), [("x.parquet", b"nonsense"), ("x.txt.gz", gzip.compress(b"a" * 999, mtime=0)[:20])]
)
def test_items_of_a_damaged_file(schema, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        read_items(str(tmp_path / name), schema)
