"""What a running server reads: exports and stores that are overwritten, replaced or pruned, and servers that freeze."""

from __future__ import annotations

import shutil
import subprocess
import time

import numpy as np
import pytest
from flow_helpers import embed
from serve_process import asked, running, wait_for

from easyrec_mm.cli.main import main
from easyrec_mm.store import open_store


def copy_onto(source, target):
    """As an operator does, in place."""
    subprocess.run(["cp", "-r", f"{source}/.", str(target)], check=True)


def of_store(answer):
    """The generation of an answer whose vectors are all of the store; 0 of another."""
    is_whole = {prediction["img_emb_source"] for prediction in answer["predictions"]} == {"store"}
    return answer["model"]["generation"] if is_whole else 0


@pytest.fixture
def place(serving_place, tmp_path):
    """Rec models by number, and a store, which a test may change."""
    shutil.copytree(serving_place, tmp_path / "place")
    return tmp_path / "place"


@pytest.mark.slow
def test_files_that_are_overwritten_under_load(exported, earlier_export, place, samples, tmp_path):
    """Export and store, again and again: each answer is of one model and one generation, and the server stays."""
    embed(exported, f"lmdb://{tmp_path}/both")
    embed(exported, f"lmdb://{tmp_path}/both", earlier_export)
    shutil.copytree(place / "store", tmp_path / "one")
    body = {"instances": samples[0]}
    with running(place / "rec", f"lmdb://{place}/store") as server:
        with asked(server, body) as replies:
            for _ in range(10):
                for rec, store in (
                    (earlier_export / "rec", tmp_path / "both"),
                    (exported.folder / "rec", tmp_path / "one"),
                ):
                    copy_onto(rec, place / "rec" / "1")
                    copy_onto(store, place / "store")
                    time.sleep(0.02)
            copy_onto(earlier_export / "rec", place / "rec" / "1")
            copy_onto(tmp_path / "both", place / "store")
            wait_for(lambda: of_store(server.predict(samples[0])[1]) == 2)
            time.sleep(0.2)
        assert server.process.poll() is None
        of_release = {}
        for status, answer in replies:
            assert status == 200
            if of_store(answer):
                scores = [prediction["logits_click"] for prediction in answer["predictions"]]
                of_release.setdefault(answer["model"]["checkpoint"], []).append(scores)
        assert of_release.keys() == {"model.ckpt-6", "model.ckpt-3"}
        for scores in of_release.values():
            np.testing.assert_allclose(scores, [scores[0]] * len(scores), rtol=1e-5)


@pytest.mark.slow
def test_a_model_waits_for_its_vectors(exported, earlier_export, place, samples):
    """At a start, too; what is served cannot be pruned."""
    shutil.copytree(earlier_export / "rec", place / "rec" / "2")
    uri = f"lmdb://{place}/store"
    with running(place / "rec", uri) as server:
        assert server.predict(samples[0])[1]["model"]["generation"] == 1
        (warning,) = [line["message"] for line in server.logs() if line["level"] == "WARNING"]
        assert "rec/1 is served, because a newer one is refused: " in warning
        assert "rec/2 (model.ckpt-3) belongs to image tower" in warning
        embed(exported, uri, earlier_export)
        wait_for(lambda: server.predict(samples[0])[1]["model"]["generation"] == 2)
        store = open_store(uri, writable=True)
        assert store.rollback().number == 1
        assert store.prune() == ([], {2: "is being read"})
        store.close()
        assert {p["img_emb_source"] for p in server.predict(samples[0])[1]["predictions"]} == {"store"}
        server.end()
    assert main(["store", "prune", "--store", uri]) == 0
    assert open_store(uri).meta().generations.keys() == {1}


@pytest.mark.slow
def test_a_store_that_is_replaced(exported, earlier_export, place, samples, tmp_path):
    """One that lacks the served vectors is refused, and the one that was removed is read on; a whole one is opened."""
    uri = f"lmdb://{place}/store"
    embed(exported, f"lmdb://{tmp_path}/other", earlier_export)
    embed(exported, f"lmdb://{tmp_path}/both", earlier_export)
    embed(exported, f"lmdb://{tmp_path}/both")
    with running(place / "rec", uri) as server:

        def replace_by(store):
            (place / "store").rename(tmp_path / f"{store}_removed")
            shutil.copytree(tmp_path / store, place / "store")

        expected = server.predict(samples[0])[1]
        replace_by("other")
        wait_for(lambda: server.metric('easyrec_mm_reloads_total{outcome="refused"}') == 1)
        assert server.predict(samples[0])[1] == expected
        replace_by("both")
        wait_for(lambda: server.predict(samples[0])[1]["model"]["generation"] == 2)
        assert server.predict(samples[0])[1]["predictions"][0]["img_emb_source"] == "store"
        problem = next(line["message"] for line in server.logs() if line["level"] == "ERROR")
        assert "belongs to image tower" in problem
