"""Two days of a model whose pictures are frozen: the second is served from a delta, with the vectors of the first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from training_helpers import Training

from easyrec_mm import __version__
from easyrec_mm.cli.main import main
from easyrec_mm.manifest import read_manifest
from easyrec_mm.serving.release import ServiceOptions
from easyrec_mm.serving.service import Service
from easyrec_mm.store import open_store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("backbone_of_three_stages")]
NUM_WORDS = 20_000
WORDS = [f"u{i}" for i in range(NUM_WORDS)]
KINDS = ("img", "rec", "total")


def trained(data, folder, words, train):
    """With two tables of 16 numbers a row: a vocabulary in a file, and hash buckets."""
    folder.mkdir()
    (folder / "words.txt").write_text("\n".join(words) + "\n")
    changes = {
        '"user" feature_type: IdFeature hash_bucket_size: 12 embedding_dim: 3': '"user" feature_type: IdFeature '
        f'vocab_file: "{folder}/words.txt" embedding_dim: 16',
        '"item" feature_type: IdFeature hash_bucket_size: 12 embedding_dim: 3': '"item" feature_type: IdFeature '
        "hash_bucket_size: 20000 embedding_dim: 16",
    }
    return Training(data, folder, "trainable: NONE", train=train, changes=changes).run()


def export(training, data, folder, *flags):
    arguments = ["--model_dir", str(training.model_dir), "--eval_input_path", f"{data}/one.txt"]
    folders = [f"--{kind}_model_export_dir={folder}/{kind}" for kind in KINDS]
    assert main(["export", *arguments, *folders, *flags]) == 0


@pytest.fixture(scope="module")
def days(data, tmp_path_factory, backbone_of_three_stages):
    """Exports of both days and the delta: words have come first, gone, and moved."""
    folder = tmp_path_factory.mktemp("days")
    first = trained(data, folder / "first", WORDS, "num_epochs: 1")
    export(first, data, folder / "1")
    train = f'num_epochs: 1 fine_tune_checkpoint: "{first.model_dir}"'
    second = trained(data, folder / "second", [*(f"new{i}" for i in range(50)), *WORDS[:-30]], train)
    export(second, data, folder / "2", "--delta_from", f"{folder}/1/rec", "--delta_dir", f"{folder}/delta")
    return folder, second


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_the_result_computes_what_the_export_computes(days, data, tmp_path):
    """Its files are those of the export with which it was made; an export without a delta computes the same."""
    folder, second = days
    flags = ["--delta", f"{folder}/delta", "--base", f"{folder}/1/rec", "--output_dir", f"{tmp_path}/made"]
    assert main(["apply-delta", *flags]) == 0
    assert contents(tmp_path / "made") == contents(folder / "2" / "rec")
    assert json.loads((folder / "delta/delta.json").read_bytes())["easyrec_mm"] == __version__
    export(second, data, tmp_path / "again")
    assert (tmp_path / "made/rec.tables").read_bytes() == (tmp_path / "again/rec/rec.tables").read_bytes()
    users = tf.constant(["u0", "u1", "u8", "new1", "u19999", ""])
    fields = {"user": users, "item": users, "price": tf.range(6.0)}
    outputs = []
    for place in (tmp_path / "made", tmp_path / "again" / "rec"):
        model = tf.saved_model.load(str(place))
        outputs.append(model.signatures["vector"](**fields, img_emb_vector=tf.ones([1, 4])))
    for name, values in outputs[0].items():
        assert len(set(values.numpy().tolist())) > 3
        np.testing.assert_array_equal(values, outputs[1][name])


def test_a_delta_is_a_small_share(days):
    """Of the rows of 2.6 MB, which an export contains twice, few have changed; the words are written once."""
    folder, _ = days
    sizes = {path.name: path.stat().st_size for path in (folder / "delta").iterdir()}
    total = sum(map(len, contents(folder / "2" / "rec").values()))
    assert sizes["rows.bin"] < 100 * 80
    assert sum(sizes.values()) < 0.03 * total


def test_the_vectors_of_the_first_day_serve_the_second(days, data, tmp_path, capsys):
    """The image tower is the same, so embedding again finds nothing to do, and the server needs no other vectors."""
    folder, _ = days
    towers = [read_manifest(f"{folder}/{day}/rec", "rec").image_tower_fingerprint for day in (1, 2)]
    assert towers[0] == towers[1]
    store = f"lmdb://{tmp_path}/store"
    arguments = ["--input", f"{data}/*.png", "--image_root", str(data), "--store", store]
    said = []
    for day in (1, 2):
        assert main(["embed", "--img_model_dir", f"{folder}/{day}/img", *arguments]) == 0
        said.append(capsys.readouterr().out)
    assert "12 pictures embedded" in said[0]
    assert "0 pictures embedded" in said[1]
    assert "12 already in the store" in said[1]
    shutil.copytree(folder / "1" / "rec", tmp_path / "rec" / "1")
    service = Service(ServiceOptions(rec_model_dir=f"{tmp_path}/rec"), open_store(store), None)
    request = {"instances": [{"user": "u1", "item": "i0", "price": 0.5, "path": "0.png"}]}
    before = service.answer(request)
    flags = ["--delta", f"{folder}/delta", "--base", f"{tmp_path}/rec/1", "--output_dir", f"{tmp_path}/rec/2"]
    assert main(["apply-delta", *flags]) == 0
    service.reload()
    after = service.answer(request)
    assert before.outputs.keys() == after.outputs.keys()
    assert not np.array_equal(before.outputs["probs_click"], after.outputs["probs_click"])
    service = Service(ServiceOptions(rec_model_dir=f"{folder}/2/rec"), open_store(store), None)
    for name, values in service.answer(request).outputs.items():
        np.testing.assert_array_equal(after.outputs[name], values)
