"""extract: several encoders from one config, runs that end early, tasks, changed contents, origins in stores."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from extract_helpers import (
    NCHW,
    TEXTS,
    extract,
    extract_and_stop,
    plain_nchw,
    refused,
    torch_pixels,
    write_nchw,
    write_pictures,
    write_settings,
    write_text_onnx,
    write_texts,
    write_tokenizer,
)
from forked import Process
from PIL import Image
from test_extract import PICTURES, rows, vectors_in

from easyrec_mm.extraction.encoders import Encoder
from easyrec_mm.store import open_store


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with pictures, texts and networks of both."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures")
    write_texts(tmp_path)
    write_nchw(tmp_path / "net.onnx")
    write_text_onnx(tmp_path / "words.onnx")
    write_tokenizer(tmp_path / "tokenizer.json")
    write_settings(tmp_path, **NCHW).rename("nchw.yaml")
    return tmp_path


FLAGS = ("--onnx", "net.onnx", "--preprocessing", "nchw.yaml", "--input", "pictures/*", "--image_root", "pictures")


def bad_items():
    return [json.loads(line) for line in Path("bad_items.jsonl").read_text().splitlines()]


def test_several_encoders_from_one_config(folder):
    """Common settings hold where an extraction has no other one; each layer is what the command alone writes."""
    config = {
        "output": "out/{name}_{layer}.npy",
        "image_root": "pictures",
        "extractions": [
            {"onnx": "net.onnx", "input": "pictures/*", "preprocessing": "nchw.yaml", "layers": ["y", "flat"]},
            {"onnx": "net.onnx", "input": "pictures/*", "preprocessing": {**NCHW, "normalize": "l2"}, "name": "unit",
             "store": "lmdb://stored"},
            {"onnx": "words.onnx", "input": "items.csv", "key_column": "id", "text_column": "title",
             "preprocessing": {"tokenizer": "tokenizer.json"}, "layers": "last_hidden_state"},
        ],
    }  # fmt: skip
    (folder / "extract.yaml").write_text(yaml.safe_dump(config))
    extract("--config", "extract.yaml")
    extract(*FLAGS, "--output", "alone.npy")
    alone = rows(folder / "alone.npy", PICTURES)
    np.testing.assert_array_equal(rows(folder / "out/net_y.npy", PICTURES), alone)
    unit = rows("lmdb://stored", PICTURES)
    np.testing.assert_allclose(unit, alone / np.linalg.norm(alone, axis=1, keepdims=True), rtol=1e-6)
    assert np.load(folder / "out/net_flat.npy").shape == (len(PICTURES), 4)
    assert set(vectors_in(folder / "out/words_last_hidden_state.npy")) == set(TEXTS)
    assert not [path for path in (folder / "out").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("output", ["--output=v.npy", "--store=lmdb://s"])
def test_a_run_that_was_cut_off_goes_on(folder, monkeypatch, capsys, output):
    """It encodes what is left, and has the vectors of a run that was not; a run after it has nothing to do."""
    flags = [*FLAGS, "--batch_size", "2", output]
    place = folder / "v.npy" if "npy" in output else "lmdb://s"
    encode, calls = Encoder.__call__, []

    def fail_at_the_third(encoder, prepared):
        calls.append(len(next(iter(prepared.arrays.values()))))
        if len(calls) == 4:  # the first is the example
            raise KeyboardInterrupt
        return encode(encoder, prepared)

    monkeypatch.setattr(Encoder, "__call__", fail_at_the_third)
    extract(*flags, expect=130)
    assert not (folder / "v.npy").exists()
    capsys.readouterr()
    monkeypatch.setattr(Encoder, "__call__", encode)
    extract(*flags)
    said = capsys.readouterr().out
    done = int(said.split("numbers), ")[1].split()[0])
    assert done in (2, 4)  # what was being written is not certain
    assert said.startswith(f"{len(PICTURES) - done} pictures encoded by 'y' (5 numbers)")
    expected = [plain_nchw(torch_pixels(folder / "pictures" / name))[1] for name in PICTURES]
    np.testing.assert_allclose(rows(place, PICTURES), expected, atol=1e-5, rtol=1e-5)
    extract(*flags)
    assert capsys.readouterr().out.startswith(f"0 pictures encoded by 'y' (5 numbers), {len(PICTURES)} already there")


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(folder, capsys):
    """In the working store beside the file."""
    flags = [*FLAGS, "--batch_size", "2", "--output", "v.npy"]
    process = Process(partial(extract_and_stop, 4, flags), folder, folder / "said.txt")
    process.wait_for(Path("reached"))
    process.kill()
    assert not Path("v.npy").exists()
    extract(*flags)
    done = int(capsys.readouterr().out.split("numbers), ")[1].split()[0])
    assert done in (2, 4)
    extract(*FLAGS, "--output", "whole.npy")
    np.testing.assert_allclose(rows(folder / "v.npy", PICTURES), rows(folder / "whole.npy", PICTURES), rtol=1e-6)


def test_only_changed_pictures(folder, capsys):
    flags = [*FLAGS, "--store", "lmdb://s"]
    extract(*flags)
    before = vectors_in("lmdb://s")
    Image.open("pictures/1.png").rotate(180).save("pictures/1.png")
    extract(*flags)
    assert vectors_in("lmdb://s")["1.png"].tolist() == before["1.png"].tolist()
    capsys.readouterr()
    extract(*flags, "--refresh", "changed")
    assert capsys.readouterr().out.startswith("1 pictures encoded by 'y' (5 numbers), 5 already there")
    after = vectors_in("lmdb://s")
    assert [key for key in PICTURES if after[key].tolist() != before[key].tolist()] == ["1.png"]


def test_vectors_of_two_origins_are_two_generations(folder):
    """Of another network, another layer or another preprocessing; the same origin goes on with its own."""
    flags = [*FLAGS, "--store", "lmdb://s"]
    extract(*flags)
    extract(*flags)
    extract(*flags, "--layers", "flat")
    changed = write_settings(folder, **{**NCHW, "resize": "bilinear"})
    extract(*flags, "--preprocessing", changed)
    shutil.move("net.onnx", "same.onnx")
    extract(*flags, "--onnx", "same.onnx")
    store = open_store("lmdb://s")
    meta = store.meta()
    store.close()
    widths = {number: generation.width for number, generation in meta.generations.items()}
    assert widths == {1: 5, 2: 4, 3: 5}
    assert meta.current == 1


def test_tasks_divide_the_items(folder, capsys):
    """Into a store, which becomes current with the last; into a file each."""
    extract(*FLAGS, "--output", "all.npy")
    for index in (0, 1):
        task = ["--task_num", "2", "--task_index", index]
        extract(*FLAGS, *task, "--store", "lmdb://s")
        waits = "is not current yet: task_index 1 of task_num 2 has not been written yet"
        assert f"; generation 1 of lmdb://s {'is current' if index else waits}; " in capsys.readouterr().out
        extract(*FLAGS, *task, "--output", "part.npy")
    expected = rows(folder / "all.npy", PICTURES)
    np.testing.assert_allclose(rows("lmdb://s", PICTURES), expected, rtol=1e-6)
    parts = [vectors_in(folder / f"part-0000{index}-of-00002.npy") for index in (0, 1)]
    assert [len(part) for part in parts] == [3, 3]
    np.testing.assert_allclose([(parts[0] | parts[1])[name] for name in PICTURES], expected, rtol=1e-6)


def test_bad_pictures_are_listed_and_absent(folder):
    (folder / "pictures" / "2.png").write_bytes(b"\x89PNG nothing")
    (folder / "pictures" / "3.png").write_bytes(b"text")
    (folder / "pictures" / "4.png").write_bytes(b"")
    extract(*FLAGS, "--output", "v.npy", "--max_bad_share", "0.5")
    assert set(vectors_in(folder / "v.npy")) == {"0.png", "1.png", "5.png"}
    listed = {line["key"]: line["problem"] for line in bad_items()}
    assert listed == {
        "2.png": "is damaged: cannot be decoded",
        "3.png": "is not a JPEG, PNG, GIF, BMP, WebP or AVIF picture",
        "4.png": "is empty (0 bytes)",
    }


def test_too_many_bad_pictures(folder, capsys):
    (folder / "pictures" / "2.png").write_bytes(b"text")
    said = refused(capsys, *FLAGS, "--store", "lmdb://s")
    assert "1 of 6 items have no valid picture, more than --max_bad_share (0.1); lmdb://s: not finished. Check" in said
    assert "The first: " in said
    assert "2.png is not a JPEG" in said
    store = open_store("lmdb://s")
    assert store.meta().current == 0
    store.close()


def test_texts_of_all_kinds(folder):
    """Empty, huge, not UTF-8, of a script that the tokenizer does not know, longer than the network takes."""
    titles = {
        "1": b"red shoes", "2": b"", "3": b" \t ", "4": b"\xff\xfe", "5": "красная".encode(), "6": b"red " * 300_000,
        "7": b"hat " * 200, "8": "красная red".encode(),
    }  # fmt: skip
    (folder / "all.csv").write_bytes(b"id,title\n" + b"".join(b"%s,%s\n" % (k.encode(), t) for k, t in titles.items()))
    flags = ["--onnx", "words.onnx", "--input", "all.csv", "--key_column", "id", "--text_column", "title"]
    settings = write_settings(folder, tokenizer="tokenizer.json", max_tokens=9)
    extract(*flags, "--preprocessing", settings, "--output", "v.npy", "--max_bad_share", "0.9")
    assert set(vectors_in(folder / "v.npy")) == {"1", "7", "8"}
    lines = bad_items()
    listed = {line["key"]: line["problem"] for line in lines if "key" in line}
    assert listed == {
        "2": "is empty",
        "3": "is empty",
        "5": "has no part that the tokenizer knows; choose an encoder for its script",
        "6": "has 1200000 bytes, more than 1048576",
    }
    ((kind, where, problem),) = [(x["kind"], x["where"], x["problem"]) for x in lines if "key" not in x]
    assert (kind, where) == ("group", "column 'title'")
    assert problem.endswith("is not UTF-8, as texts must be")
    assert all(len(line["path"]) < 100 for line in lines if "path" in line)


@pytest.mark.slow
def test_spark(folder, spark):
    """What one process writes."""
    extract(*FLAGS, "--store", f"lmdb://{folder}/one")
    shutil.copytree(folder / "pictures", folder / "more")
    (folder / "more" / "0.png").write_bytes(b"text")
    flags = [*FLAGS, "--input", f"{folder}/more/*", "--image_root", f"{folder}/more", "--max_bad_share", "0.5"]
    flags += ["--engine", "spark", "--task_num", "3"]
    extract(*flags, "--store", f"lmdb://{folder}/many")
    one, many = vectors_in(f"lmdb://{folder}/one"), vectors_in(f"lmdb://{folder}/many")
    assert many.pop("0.png") is None
    for key, vector in many.items():
        np.testing.assert_allclose(vector, one[key], rtol=1e-6)
    assert len(many) == len(PICTURES) - 1
    assert [line["key"] for line in bad_items()] == ["0.png"]
