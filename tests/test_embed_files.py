"""What `embed --input` takes for pictures: told by content and company, not by a list of endings."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from contextlib import closing

import numpy as np
import pytest
from decode_helpers import FILES

from easyrec_mm.cli.main import main
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.embedding.items import Item, read_items
from easyrec_mm.errors import DataError
from easyrec_mm.manifest import read_header
from easyrec_mm.store import open_store


@pytest.fixture(scope="module")
def schema(exported):
    return read_header(str(exported.folder / "image"), "image").schema


@pytest.fixture
def folder(tmp_path):
    """Good pictures of unusual names, and other files that lie beside them."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.jfif", "b.jpe", "without_ending", "deep/c,d[1].png"):
        (folder / name).write_bytes(FILES["png rgb" if name.endswith("png") else "jpeg"])
    (folder / "phone.HEIC").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(100))
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(100))
    (folder / "README.md").write_text("two\nlines\n")
    return folder


def test_a_folder_of_pictures_with_other_files(exported, folder, tmp_path, capsys):
    store = f"lmdb://{tmp_path}/store"
    arguments = ["--input", str(folder), "--image_root", str(folder), "--store", store, "--max_bad_share", "0.5"]
    arguments += ["--bad_pictures", f"{tmp_path}/bad.jsonl"]
    assert main(["embed", "--img_model_dir", str(exported.folder / "image"), *arguments]) == 0
    assert "4 pictures embedded" in capsys.readouterr().out
    records = map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())
    bad = {record["key"]: record["problem"] for record in records}
    assert set(bad) == {"phone.HEIC", "Thumbs.db", "README.md"}
    assert set(bad.values()) == {"is not a JPEG, PNG, GIF, BMP, WebP or AVIF picture"}
    opened = open_store(store)
    assert set(opened.get_many(["a.jfif", "b.jpe", "without_ending", "deep/c,d[1].png"]).states) == {1}
    opened.close()


def test_damaged_pictures_have_the_reasons_of_training(exported, tmp_path):
    """A loaded model tells an error with the places of its nodes."""
    contents = list(FILES.values())
    damaged = [content[: len(content) // 2] for content in contents] + [content[:99] for content in contents]
    paths = [tmp_path / f"{i}" for i in range(len(damaged))]
    for path, content in zip(paths, damaged, strict=True):
        path.write_bytes(content)
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in paths))
    arguments = ["--input", f"{tmp_path}/list.txt", "--store", f"lmdb://{tmp_path}/store"]
    arguments += ["--bad_pictures", f"{tmp_path}/bad.jsonl"]
    assert main(["embed", "--img_model_dir", str(exported.folder / "image"), *arguments]) == 1
    told = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    image = read_header(str(exported.folder / "image"), "image").schema.image
    _, expected = PictureLoader(image).load([os.fsencode(path) for path in paths])
    assert {record["key"]: record["problem"] for record in told} == {
        str(paths[row]): problem for row, problem in expected.items()
    }
    assert len(expected) > 4


def test_names_with_commas_and_brackets(schema, folder):
    for name in ("deep/c,d[1].png", "deep"):
        items = read_items(str(folder / name), schema, str(folder)).items
        assert items == [Item("deep/c,d[1].png", str(folder / "deep/c,d[1].png"))]
    both = read_items(f"{folder}/a.jfif, {folder}/without_ending", schema, str(folder)).items
    assert [item.key for item in both] == ["a.jfif", "without_ending"]


def test_a_path_that_is_not_utf8_is_left_out_alone(schema, folder):
    os.rename(os.fsencode(folder / "a.jfif"), os.fsencode(folder) + b"/\xe9.jfif")
    items, refused = read_items(str(folder), schema, str(folder))
    assert "b.jpe" in {item.key for item in items}
    assert [(record.file, record.problem) for record in refused] == [
        (f"{folder}/\ufffd.jfif", "is not UTF-8, as keys must be")
    ]
    (folder.parent / "list.txt").write_bytes(b"\xef\xbb\xbfa.jpg\n\xe9.jpg\nb.jpg\n")
    items, refused = read_items(str(folder.parent / "list.txt"), schema)
    assert items == [Item("a.jpg", "a.jpg"), Item("b.jpg", "b.jpg")]
    assert [(record.row, record.where) for record in refused] == [(2, "line")]
    (folder.parent / "list.csv").write_bytes(b"img_path,x\na.jpg,1\n\xe9.jpg,2\nc.jpg,3\n")
    items, refused = read_items(str(folder.parent / "list.csv"), schema)
    assert items == [Item("a.jpg", "a.jpg"), Item("c.jpg", "c.jpg")]
    assert [(record.row, record.where) for record in refused] == [(2, "column 'img_path'")]
    assert refused[0].problem.endswith("is not UTF-8, as keys must be")


def test_a_text_without_pictures_is_a_list(schema, folder):
    assert [item.key for item in read_items(str(folder / "README.md"), schema).items] == ["two", "lines"]
    with pytest.raises(DataError, match="matches no file"):
        read_items(f"{folder}/none*", schema)


def test_a_folder_of_a_bucket(schema, folder, s3, bucket):
    s3.put_folder(folder, f"{bucket}/pictures")
    items = read_items(f"{bucket}/pictures", schema, bucket).items
    assert len(items) == 7
    assert Item("pictures/deep/c,d[1].png", f"{bucket}/pictures/deep/c,d[1].png") in items


def test_packed_pictures(exported, schema, tmp_path, capsys):
    """As training reads them, beside the data, and by themselves: the same vectors everywhere."""
    data = tmp_path / "data"
    shutil.copytree(exported.data / "test", data)
    (file, *others) = sorted(data.iterdir())
    keys = [item.key for item in read_items(str(file), schema).items]
    with tarfile.open(data / f"{file.stem}.pictures.tar", "w") as tar:
        for key in keys:
            tar.add(exported.data / key, key)
    for other in others:
        other.unlink()
    items = [Item(key, key, tar=f"{data}/{file.stem}.pictures.tar") for key in keys]
    assert read_items(str(file), schema).items == read_items(str(data), schema).items == items
    inputs = {"files": [f"{exported.data}/{key}" for key in keys], "data": [str(data)], "tars": [f"{data}/*.tar"]}
    vectors = {}
    for name, paths in inputs.items():
        arguments = ["--input", ",".join(paths), "--store", f"lmdb://{tmp_path}/{name}"]
        arguments += ["--image_root", str(exported.data if name == "files" else tmp_path)]
        arguments += ["--bad_pictures", f"{tmp_path}/bad.jsonl", "--runtime", "onnx"]
        assert main(["embed", "--img_model_dir", str(exported.folder / "image"), *arguments]) == 0
        assert f"{len(keys)} pictures embedded" in capsys.readouterr().out
        with closing(open_store(f"lmdb://{tmp_path}/{name}")) as store:
            found = store.get_many(keys)
        assert found.states.all()
        vectors[name] = found.vectors
    for name in inputs:
        np.testing.assert_allclose(vectors[name], vectors["files"], rtol=1e-5, atol=1e-6)
    (data / "broken.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match=r"broken.tar: cannot be read"):
        read_items(f"{data}/broken.tar", schema)


@pytest.mark.slow
def test_libraries_write_nothing_to_the_terminal(exported, tmp_path):
    arguments = ["--img_model_dir", str(exported.folder / "image"), "--input", "none.txt", "--store", "lmdb://s"]
    command = [sys.executable, "-m", "easyrec_mm", "embed", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: --input: 'none.txt' matches no file; check the path\n"
