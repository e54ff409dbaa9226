"""Exports that an earlier version wrote, as format 1 of manifest.json, still serve.

`format_1/` was made in November 2026 by training the config in it for 12 steps, by `export` and by `predict`. It has
features of every type but those whose vectors lie in a store, and of the exported folder what ONNX Runtime reads.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from easyrec_mm.manifest import read_manifest
from easyrec_mm.serving.release import ServiceOptions
from easyrec_mm.serving.service import Service
from easyrec_mm.store import Record, open_store

FOLDER = Path(__file__).parent / "format_1"


def test_its_answers_are_those_of_then(tmp_path):
    saved = json.loads((FOLDER / "answers.json").read_text())
    manifest = read_manifest(str(FOLDER / "rec"), "rec")
    store = open_store(f"lmdb://{tmp_path}/store", writable=True)
    generation = store.begin(manifest.image_tower_fingerprint, manifest.image_width, "float32")
    vectors = saved["image_vectors"].items()
    store.put_many(generation, [Record(key, np.float32(vector), bytes(16), 0) for key, vector in vectors])
    store.complete(generation)
    answer = Service(ServiceOptions(str(FOLDER / "rec")), store).answer({"instances": saved["instances"]})
    np.testing.assert_allclose(answer.outputs["logits_click"], saved["logits_click"], atol=1e-5)
    assert np.std(saved["logits_click"]) > 0.1
