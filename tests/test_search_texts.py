"""Search by texts, with and without a picture, against vectors that the image model computes."""

from __future__ import annotations

import re
from contextlib import closing

import numpy as np
import pytest
from flow_helpers import run
from text_helpers import text_training, write_titles
from training_helpers import make_training_data, use_backbone_of_three_stages

import easyrec_mm as er
from easyrec_mm.embedding.image_model import ImageModel
from easyrec_mm.errors import UserError
from easyrec_mm.store import open_store

TITLES = {"shirt": "red cotton shirt", "mug": "blue mug", "both": "red mug"}
pytestmark = pytest.mark.slow


def exported(data, folder, **settings):
    """The folder of an image model, and a store of items with the titles above, of which two have a picture."""
    training = text_training(data, folder, "dim: 4 embedding_dim: 8", train="num_epochs: 1", **settings).run()
    out = folder / "out"
    folders = [f"--{kind}_model_export_dir={out / kind}" for kind in ("img", "rec", "total")]
    run("export", "--model_dir", training.model_dir, "--eval_input_path", f"{data}/titles_none.txt", *folders)
    pictures = sorted(path.name for path in data.glob("*.png"))
    paths = {"shirt": pictures[0], "mug": pictures[1], "both": ""}
    rows = "".join(f'{key},{paths[key]},"{title}"\n' for key, title in TITLES.items())
    (folder / "items.csv").write_text(f"key,path,title\n{rows}")
    run("embed", "--img_model_dir", out / "img", "--input", folder / "items.csv", "--key_column", "key",
        "--path_column", "path", "--image_root", data, "--store", f"lmdb://{folder}/store",
        "--bad_pictures", folder / "bad.jsonl")  # fmt: skip
    return str(out / "img"), f"lmdb://{folder}/store", paths


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        use_backbone_of_three_stages(patch)
        folder = make_training_data(tmp_path_factory.mktemp("data"))
        write_titles(folder, "none.txt")
        yield folder


@pytest.fixture(scope="module")
def both(data, tmp_path_factory):
    settings = {"img_model": "no_image_vector: true"}
    folder, store, paths = exported(data, tmp_path_factory.mktemp("both"), file="titles_none.txt", **settings)
    with er.Index(store, image_model=folder, similarity="cosine") as index:
        yield folder, store, paths, index


def vector(folder, title, picture=None):
    """What the signature of the SavedModel that takes files says of an item."""
    model = ImageModel(folder, "tensorflow")
    inputs = {"pixels": np.zeros((0, 12, 12, 3), np.uint8), "owner": np.zeros(0, np.int64)}
    if picture is not None:
        pixels = model.decode(np.array([picture.read_bytes()])).numpy()
        inputs = {"pixels": pixels, "owner": np.zeros(1, np.int64)}
    return model.embed(fields={"title": [title]}, **inputs)[0]


def test_text_alone_picture_alone_and_both(both, data):
    folder, store, paths, index = both
    with closing(open_store(store)) as opened:
        vectors = dict(zip(TITLES, opened.get_many([*TITLES]).vectors, strict=True))
    shirt = data / paths["shirt"]
    queries = [({"text": "red mug"}, "both"), ({"picture": shirt, "text": TITLES["shirt"]}, "shirt")]
    for query, expected in queries:
        found = index.search(**query)
        assert found["key"][0] == expected
        assert found["distance"][0] == pytest.approx(0, abs=1e-5)
        assert found["cosine"][0] == pytest.approx(1, abs=1e-5)
    for query, sought in [
        ({"text": "blue shirt"}, vector(folder, "blue shirt")),
        ({"picture": shirt}, vector(folder, "", shirt)),
        ({"picture": shirt.read_bytes(), "fields": {"title": "mug"}}, vector(folder, "mug", shirt)),
    ]:
        found = index.search(**query)
        expected = {key: float(v @ sought / np.linalg.norm(v) / np.linalg.norm(sought)) for key, v in vectors.items()}
        assert list(found["key"]) == sorted(expected, key=lambda key: -expected[key])
        assert dict(zip(found["key"], found["cosine"], strict=True)) == pytest.approx(expected, abs=1e-5)


def test_the_command_by_text(both, capsys):
    folder, store, _, _ = both
    run("search", "--store", store, "--img_model_dir", folder, "--text", "red mug", "--similarity", "cosine")
    out = capsys.readouterr().out
    assert re.search(r"^ +1 +1\.000000 +\S+  both  \(same content as the query\)$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"text": " "}, "--text: is empty; give some words, or a picture"),
        ({"text": "x", "fields": {"title": "y"}}, "is the field 'title', which --field has, too; give it once"),
        ({"text": "x", "fields": {"titel": "y"}}, "--field titel: the image model takes no such field; did you mean"),
        ({"text": "a\udcff"}, "'title': the text is not UTF-8"),
        ({"text": "x", "key": "mug"}, "give either the key of an item, or a picture or a text"),
        ({"text": "x" * 200_000}, "'title' has more than 100000 characters"),
        ({"picture": b"GIF89a"}, "--picture: cannot be read as a picture: it"),
        ({}, "give what to look for: --picture or --text"),
    ],
)
def test_queries_that_are_refused(both, query, message):
    with pytest.raises(UserError, match=message):
        both[-1].search(**query)
