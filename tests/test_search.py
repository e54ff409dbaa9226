"""Search against comparisons with everything in NumPy."""

from __future__ import annotations

import base64
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from easyrec_mm.cli.main import main
from easyrec_mm.errors import UserError
from easyrec_mm.store import Record, open_store
from easyrec_mm.store.search import Index, evaluate

WIDTH = 8
# Of the command's output: cosine and key.
ROW = r"^ +\d +(-?\d\.\d{6}) +\S+  (\S+)"


def vectors(number, seed=0, num_clusters=20):
    random = np.random.default_rng(seed)
    centres = random.normal(size=(num_clusters, WIDTH))
    clusters = random.integers(num_clusters, size=number)
    return (centres[clusters] + 0.5 * random.normal(size=(number, WIDTH))).astype(np.float32), clusters


def cosines(matrix):
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return unit @ unit.T


def test_exact_neighbours_are_those_of_numpy():
    matrix, _ = vectors(300)
    keys = [f"k{i}" for i in range(300)]
    expected = cosines(matrix)
    index = Index(keys, matrix.copy())
    assert index.kind == "exact"
    for row in (0, 17, 299):
        order = np.argsort(-expected[row], kind="stable")
        found, nearness = zip(*index.nearest(matrix[row] * 3, 10), strict=True)
        assert list(found) == [keys[i] for i in order[:10]]
        np.testing.assert_allclose(nearness, expected[row][order[:10]], rtol=1e-5)
        assert [key for key, _ in index.nearest(matrix[row], 10, keys[row])] == [keys[i] for i in order[1:11]]
    assert len(index.nearest(matrix[0], 1000)) == 300


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_the_recall_of_an_index_is_measured(kind, monkeypatch):
    matrix, _ = vectors(5000)
    index = Index([str(i) for i in range(5000)], matrix.copy(), kind)
    expected = np.argsort(-cosines(matrix), axis=1)[:, :10]
    rows, _ = index.search(index.vectors, 10)
    truth = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), expected.tolist(), strict=True)])
    assert index.recall(10) == pytest.approx(truth, abs=0.05)
    assert truth > 0.8
    monkeypatch.setattr("easyrec_mm.store.search._MOST_EXACT", 4999)
    assert Index([str(i) for i in range(5000)], matrix.copy()).kind == "ivf"


def test_recall_and_mmp_are_those_of_their_definition(tmp_path):
    matrix, clusters = vectors(120, seed=3, num_clusters=12)
    labels = clusters.copy()
    labels[:4] = [100, 101, 101, 102]  # alone, a pair, alone
    keys = [f"k{i}" for i in range(120)]
    rows = ["key,label", *(f"k{i},{label}" for i, label in enumerate(labels[:100])), "gone,1", "k119,"]
    (tmp_path / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    result = evaluate(Index(keys, matrix.copy()), str(tmp_path / "labels.csv"), 7)
    similarities = cosines(matrix[:100])  # those without a label are not looked among
    hits = {1: [], 7: []}
    precisions = []
    for query in range(100):
        others = [i for i in np.argsort(-similarities[query], kind="stable") if i != query]
        relevant = [labels[i] == labels[query] for i in others]
        if not any(relevant):
            continue
        for k, hit in hits.items():
            hit.append(any(relevant[:k]))
        most = min(sum(relevant), 5)
        precisions.append(sum(relevant[:most]) / most)
    assert result.recall == pytest.approx({k: np.mean(hit) for k, hit in hits.items()})
    assert result.mmp == pytest.approx(np.mean(precisions))
    assert (result.num_queries, result.num_alone, result.num_missing) == (len(precisions), 100 - len(precisions), 1)
    assert 0.2 < result.mmp < 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,name\na,b\n", r"has the columns \['key', 'name'\]; give one with key and label"),
        ("", "has the columns None"),
        ("key,label\nk0,a\nk1,b\n", r"no two of its items in the store \(2 of 2\) share a label"),
    ],
)
def test_labels_that_are_none(tmp_path, text, message):
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    index = Index(["k0", "k1"], np.eye(2, WIDTH, dtype=np.float32))
    with pytest.raises(UserError, match=message):
        evaluate(index, str(tmp_path / "labels.csv"), 3)
    with pytest.raises(UserError, match="cannot be read"):
        evaluate(index, str(tmp_path / "no.csv"), 3)


@pytest.fixture(scope="module")
def store(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    arguments = ["embed", "--img_model_dir", str(exported.folder / "image"), "--store", f"lmdb://{folder}/store"]
    arguments += ["--input", f"{exported.data}/images/test/*", "--image_root", str(exported.data)]
    assert main([*arguments, "--bad_pictures", f"{folder}/bad"]) == 0
    opened = open_store(f"lmdb://{folder}/store", writable=True)
    opened.put_many(opened.meta().current_generation, [Record("bad.jpg", None, bytes(16), 0)])
    opened.close()
    return f"lmdb://{folder}/store"


def test_the_command_by_key_and_by_picture(exported, store, tmp_path, capsys):
    key = exported.keys()[3]
    shutil.copy(exported.data / key, tmp_path / "<new>.jpg")
    page = tmp_path / "found.html"
    flags = ["--store", store, "--top_k", "5", "--image_root", str(exported.data)]
    assert main(["search", *flags, "--key", key, "--html", str(page)]) == 0
    by_key = re.findall(ROW, capsys.readouterr().out, re.MULTILINE)
    assert len(by_key) == 5
    assert key not in [neighbour for _, neighbour in by_key]
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(pictures) == 6
    shown = Image.open(io.BytesIO(base64.b64decode(pictures[0]))).convert("RGB")
    original = Image.open(exported.data / key).convert("RGB")
    assert shown.size == original.size
    assert np.abs(np.asarray(shown, float) - np.asarray(original, float)).mean() < 8
    assert all(neighbour in text for _, neighbour in by_key)
    image = ["--image", str(tmp_path / "<new>.jpg"), "--img_model_dir", str(exported.folder / "image")]
    assert main(["search", *flags, *image, "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^ +1 +1\.000000 +\S+  {key}  \(same content as the query\)$", out, re.MULTILINE)
    by_image = re.findall(ROW, out, re.MULTILINE)
    assert by_image[0] == ("1.000000", key)
    assert {neighbour for _, neighbour in by_image[1:]} == {neighbour for _, neighbour in by_key[:4]}
    text = page.read_text(encoding="utf-8")
    assert "&lt;new&gt;.jpg" in text
    assert text.count("<mark>same content as the query</mark>") == 1
    assert "similarity centred: cosine of the vectors less their mean" in text


def test_a_page_that_cannot_be_written_is_told_before_the_search(store, tmp_path, capsys):
    page = tmp_path / "none/found.html"
    assert main(["search", "--store", store, "--key", "no such key", "--html", str(page)]) == 1
    said = f"error: --html {page}: the folder {tmp_path}/none does not exist; create it, or give another file"
    assert capsys.readouterr().err.splitlines() == [said]


def test_the_command_by_labels(exported, store, tmp_path, capsys):
    rows = ["key,label", *(f"{key},{i % 2}" for i, key in enumerate(exported.keys()))]
    (tmp_path / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    flags = ["--store", store, "--eval", str(tmp_path / "labels.csv"), "--top_k", "3", "--index", "hnsw"]
    assert main(["search", *flags]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^hnsw index of \d+ vectors; recall@3 [01]\.\d{4}$", out, re.MULTILINE)
    assert "similarity centred: " in out
    assert re.search(r"^recall@1  [01]\.\d{4}\nrecall@3  [01]\.\d{4}\nmMP@5  [01]\.\d{4}$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give what to look for"),
        (["--key", "no"], "--key no: is not in the store"),
        (["--key", "bad.jpg"], "--key bad.jpg: is an invalid picture"),
        (["--image", "x.jpg"], "give the image model with --img_model_dir"),
        (["--image", "x.jpg", "--img_model_dir", "IMAGE"], "--picture x.jpg: cannot be read as a picture"),
    ],
)
def test_what_cannot_be_looked_for(exported, store, capsys, flags, message):
    flags = [str(exported.folder / "image") if flag == "IMAGE" else flag for flag in flags]
    assert main(["search", "--store", store, *flags]) == 1
    assert message in capsys.readouterr().err


def test_a_model_of_other_vectors_is_refused(exported, tmp_path, capsys):
    store = open_store(f"lmdb://{tmp_path}/store", writable=True)
    generation = store.begin("d" * 64, 16, "float32")
    store.put_many(generation, [Record("a", np.ones(16, np.float32), bytes(16), 0)])
    store.complete(generation)
    store.close()
    picture = str(exported.data / exported.keys()[0])
    flags = ["--image", picture, "--img_model_dir", str(exported.folder / "image")]
    assert main(["search", "--store", f"lmdb://{tmp_path}/store", *flags]) == 1
    assert re.search(r"is image tower \w{12}, but generation 1 of .* is of dddddddddddd", capsys.readouterr().err)
