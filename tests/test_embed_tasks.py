"""embed --task_index, --task_num: each item is embedded by one task, and all together are one generation."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from flow_helpers import run

from easyrec_mm.errors import StoreError
from easyrec_mm.store import open_store
from easyrec_mm.store.generations import Tasks


@pytest.fixture
def root(exported, tmp_path):
    """A copy of the pictures, of which two are bad, and a list with a key twice and with lines that are not UTF-8."""
    shutil.copytree(exported.data / "images" / "test", tmp_path / "images")
    keys = keys_of(tmp_path)
    for key in (keys[0], keys[7]):
        (tmp_path / key).write_bytes(b"no picture")
    lines = [key.encode() for key in keys]
    (tmp_path / "items.txt").write_bytes(b"\n".join([b"\xff", *lines[:5], lines[2], *lines[5:], b"\xfe"]))
    return tmp_path


def keys_of(root):
    return sorted(f"images/{path.name}" for path in (root / "images").iterdir())


def embed(exported, root, store, *flags, expect=0):
    model = exported.folder / "image"
    arguments = ["embed", "--img_model_dir", model, "--runtime", "onnx", "--store", f"lmdb://{root}/{store}"]
    arguments += ["--input", root / "items.txt", "--image_root", root, "--max_bad_share", 0.7]
    run(*arguments, "--bad_pictures", root / f"{store}.jsonl", *flags, expect=expect)


def records(root, store):
    opened = open_store(f"lmdb://{root}/{store}")
    try:
        found = {r.key: r.vector for r in opened.scan(opened.meta().current_generation)}
    finally:
        opened.close()
    return found


def listed(root, pattern):
    return [json.loads(line) for path in sorted(root.glob(pattern)) for line in path.read_text().splitlines()]


def place(line):
    return line.get("key", ""), line.get("row", 0)


@pytest.mark.parametrize("num", [3, 5])
def test_all_tasks_are_one_run(exported, root, capsys, num):
    embed(exported, root, "one")
    whole = records(root, "one")
    assert whole.keys() == set(keys_of(root))
    embedded = []
    for index in reversed(range(num)):
        capsys.readouterr()
        embed(exported, root, "parts", "--task_index", index, "--task_num", num)
        out = capsys.readouterr().out
        embedded.append(int(out.split(" pictures embedded")[0].splitlines()[-1]))
        missing = ", ".join(map(str, range(index)))
        verb = "has" if index == 1 else "have"
        state = f"is not current yet: task_index {missing} of task_num {num} {verb} not been written yet"
        assert "generation 1 of" in out
        assert (state if index else "is current; ") in out
    assert sum(embedded) == len(whole) - 2
    assert max(embedded) - min(embedded) <= 2
    parts = records(root, "parts")
    assert parts.keys() == whole.keys()
    for key, vector in whole.items():
        if vector is None:
            assert parts[key] is None
        else:
            np.testing.assert_allclose(parts[key], vector, atol=1e-6)
    expected = listed(root, "one.jsonl")
    assert len(expected) == 4
    assert sorted(listed(root, f"parts-*-of-{num:05d}.jsonl"), key=place) == sorted(expected, key=place)
    # Vectors that are added to a current generation are not waited for.
    embed(exported, root, "parts", "--refresh", "all", "--task_index", 1, "--task_num", 2)
    out = capsys.readouterr().out
    assert "generation 1 of" in out
    assert "is current; " in out


def test_more_tasks_than_items(exported, root):
    keys = keys_of(root)[1:3]
    (root / "items.txt").write_text("\n".join(keys))
    for index in range(5):
        embed(exported, root, "parts", "--task_index", index, "--task_num", 5)
    assert records(root, "parts").keys() == set(keys)


def test_another_division_is_refused(exported, root, capfd):
    embed(exported, root, "s", "--task_index", 0, "--task_num", 2)
    capfd.readouterr()
    embed(exported, root, "s", "--task_index", 1, "--task_num", 3, expect=1)
    error = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("error: "))
    assert error.startswith("error: --task_num 3: divides 12 items (")
    assert "but another task of generation 1 divides 12 items (" in error
    assert ") among 2; start all tasks with the same --task_num and --input, or remove the unfinished" in error
    with (root / "items.txt").open("ab") as file:
        file.write(b"\nnew.jpg")
    embed(exported, root, "s", "--task_index", 1, "--task_num", 2, expect=1)
    assert "--task_num 2: divides 13 items (" in capfd.readouterr().err
    # As the message says.
    run("store", "prune", "--store", f"lmdb://{root}/s")
    for index in range(3):
        embed(exported, root, "s", "--task_index", index, "--task_num", 3)
    out = capfd.readouterr().out
    assert "generation 2 of" in out
    assert "is current; " in out


def test_a_division_of_which_nothing_was_written_is_replaced(uri):
    store = open_store(uri, writable=True)
    first = store.begin("tower", 4, "float32", Tasks(2, "7 items"))
    other = open_store(uri, writable=True)
    with pytest.raises(StoreError, match=r"--task_num 3: divides 7 items, but another task of generation 1 divides 7"):
        other.begin("tower", 4, "float32", Tasks(3, "7 items"))
    with pytest.raises(StoreError, match=r"--task_num 2: divides 8 items, but another task of generation 1 divides 7"):
        other.begin("tower", 4, "float32", Tasks(2, "8 items"))
    store.close()  # as if it had been killed
    assert other.begin("tower", 4, "float32", Tasks(3, "8 items")) == first
    assert other.complete(first, (2, 3)) == "task_index 0, 2 of task_num 3 have not been written yet"
    with pytest.raises(StoreError, match="start all tasks with the same --task_num"):
        other.begin("tower", 4, "float32", Tasks(2, "8 items"))
    assert other.begin("tower", 4, "float32", Tasks(3, "8 items")) == first
    assert other.complete(first, (1, 3)) == "task_index 2 of task_num 3 has not been written yet"
    assert other.complete(first, (3, 3)) == ""
    # From then on any division may add to it.
    assert other.begin("tower", 4, "float32", Tasks(5, "9 items")).number == 1
    assert other.complete(first, (1, 5)) == ""
    other.close()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--task_num", 2], "--task_num 2: is without --task_index"),
        (["--task_index", 1], "--task_index 1: is without --task_num"),
        (["--task_index", 2, "--task_num", 2], "--task_index 2: is out of range; the indices of 2 tasks are 0 to 1"),
    ],
)
def test_wrong_tasks(exported, root, capfd, flags, problem):
    embed(exported, root, "s", *flags, expect=1)
    assert f"error: {problem}" in capfd.readouterr().err
    assert not (root / "s").exists()
