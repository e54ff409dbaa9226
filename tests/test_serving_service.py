"""The service behind the server: what answers say, what is exchanged and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
import time

import numpy as np
import pytest

from easyrec_mm.cli.main import main
from easyrec_mm.embedding.image_model import PictureEmbedder
from easyrec_mm.errors import ExportError, StoreError
from easyrec_mm.manifest import MANIFEST, SAMPLE_REQUEST, read_header, write_manifest
from easyrec_mm.serving.field_values import RequestError
from easyrec_mm.serving.release import ServiceOptions, ServingError, Source, exports_of, image_model_of
from easyrec_mm.serving.service import Service
from easyrec_mm.store import Record, open_store
from easyrec_mm.store.lmdb_store import LmdbStore


@pytest.fixture
def place(exported, tmp_path):
    """A rec model and a store that a test may change."""
    shutil.copytree(exported.folder / "rec", tmp_path / "rec")
    arguments = ["embed", "--img_model_dir", str(exported.folder / "image"), "--store", f"lmdb://{tmp_path}/store"]
    arguments += ["--input", f"{exported.data}/images/test/*", "--image_root", str(exported.data)]
    assert main([*arguments, "--bad_pictures", f"{tmp_path}/bad"]) == 0
    return tmp_path


def serve(place, load_embedder=None, **options):
    options = {"rec_model_dir": str(place / "rec"), **options}
    return Service(ServiceOptions(**options), open_store(f"lmdb://{place}/store", writable=True), load_embedder)


@pytest.mark.parametrize("runtime", ["onnx", "tensorflow"])
def test_answers_are_what_predict_says(place, samples, runtime):
    instances, rows = samples
    answer = serve(place, runtime=runtime).answer({"instances": instances})
    for name, values in answer.outputs.items():
        np.testing.assert_allclose(values, [row[name] for row in rows], rtol=1e-4, atol=1e-5, err_msg=name)
    assert (answer.sources == Source.STORE).all()
    assert answer.outputs.keys() == {name for name in rows[0] if name not in instances[0]}


def test_the_sample_request_of_an_export_is_answered(exported, place):
    """It has values and pictures of the data, and may be changed without damage to the export."""
    path = place / "rec" / SAMPLE_REQUEST
    body = json.loads(path.read_text())
    assert len(body["instances"]) == 3
    pictures = {str(path.relative_to(exported.data)) for path in exported.data.glob("images/*/*.jpg")}
    assert {instance["img_path"] for instance in body["instances"]} <= pictures
    path.write_text("{}")
    ours = serve(place)
    answer = ours.answer(json.dumps(body).encode())
    assert np.isfinite(answer.outputs["probs_click"]).all()
    fields = set(ours.release.predictor.manifest.schema.feature_fields())
    assert all(set(instance) == fields | {"img_path"} for instance in body["instances"])


def test_shared_fields_and_vectors_of_the_request(place, samples):
    instances, _ = samples
    users = ("user_age_level", "user_gender", "user_city", "user_taste", "hour")
    first = {name: instances[0][name] for name in users}
    repeated = [{**instance, **first} for instance in instances]
    shared = [{name: value for name, value in instance.items() if name not in users} for instance in instances]
    service = serve(place)
    expected = service.answer({"instances": repeated})
    answer = service.answer({"instances": shared, "shared": first})
    np.testing.assert_array_equal(answer.outputs["probs_click"], expected.outputs["probs_click"])
    vectors = open_store(f"lmdb://{place}/store", writable=True).get_many([i["img_path"] for i in instances]).vectors
    brought = [
        {**{n: v for n, v in instance.items() if n != "img_path"}, "img_emb": vector.tolist()}
        for instance, vector in zip(repeated, vectors, strict=True)
    ]
    brought[1] = repeated[1]
    answer = service.answer({"instances": brought})
    np.testing.assert_array_equal(answer.outputs["probs_click"], expected.outputs["probs_click"])
    assert answer.sources[:3].tolist() == [Source.REQUEST, Source.STORE, Source.REQUEST]


def test_a_missing_vector(place, samples):
    instances = [dict(instance) for instance in samples[0][:4]]
    instances[2]["img_path"] = "unknown.jpg"
    store = open_store(f"lmdb://{place}/store", writable=True)
    generation = store.meta().current_generation
    store.put_many(generation, [Record("bad.jpg", None, bytes(16), 0)])
    instances[3]["img_path"] = "bad.jpg"
    mean = np.mean([r.vector for r in store.scan(generation) if r.vector is not None], axis=0)
    with_mean = serve(place).answer({"instances": instances})
    assert with_mean.sources.tolist() == [Source.STORE, Source.STORE, Source.MEAN, Source.MEAN]
    by_hand = [*instances[:2], *({**instance, "img_emb": mean.tolist()} for instance in instances[2:])]
    expected = serve(place).answer({"instances": by_hand})
    np.testing.assert_allclose(with_mean.outputs["logits_click"], expected.outputs["logits_click"], rtol=1e-4)
    with pytest.raises(ServingError, match=r"instance 2: the store has no vector of 'unknown.jpg'"):
        serve(place, missing_vector="error").answer({"instances": instances})
    with pytest.raises(ServingError, match="give the image model"):
        serve(place, missing_vector="compute")


def test_missing_vectors_are_computed(exported, place, samples, tmp_path):
    """As they would have been embedded, by the image model of the same tower; what cannot be read has the mean."""
    store = open_store(f"lmdb://{place}/store", writable=True)
    generation = store.meta().current_generation
    instances = [dict(samples[0][0]), dict(samples[0][5]), dict(samples[0][0])]
    key = instances[0]["img_path"]
    shutil.copy(exported.data / key, tmp_path / "new.jpg")
    shutil.copy(exported.data / key, tmp_path.parent / "outside.jpg")
    instances[0]["img_path"], instances[2]["img_path"] = "new.jpg", "../outside.jpg"
    embedder = PictureEmbedder(str(exported.folder / "image"))
    ours = serve(
        place, lambda fingerprint: embedder, missing_vector="compute", image_root=str(tmp_path), picture_timeout_s=30.0
    )
    answer = ours.answer({"instances": instances})
    assert answer.sources.tolist() == [Source.COMPUTED, Source.STORE, Source.MEAN]
    brought = [{**instances[0], "img_emb": store.get_many([key], generation).vectors[0].tolist()}]
    expected = ours.answer({"instances": brought}).outputs["logits_click"][0]
    np.testing.assert_allclose(answer.outputs["logits_click"][0], expected, rtol=1e-4, atol=1e-6)
    (tmp_path / "new.jpg").unlink()  # it is kept
    assert ours.answer({"instances": instances[:1]}).sources.tolist() == [Source.COMPUTED]
    embedder.fingerprint = "0" * 64
    with pytest.raises(
        ServingError, match="--img_model_dir holds image tower 000000000000, but the rec model belongs to"
    ):
        serve(place, lambda fingerprint: embedder, missing_vector="compute", image_root=str(tmp_path))
    with pytest.raises(ServingError, match="say where they may be, with --image_root or --image_hosts"):
        serve(place, lambda fingerprint: embedder, missing_vector="compute")


def test_a_store_that_is_down(place, samples, monkeypatch):
    ours, strict = serve(place), serve(place, missing_vector="error")
    now_s, calls = [time.monotonic()], []
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])

    def fail(store, keys, generation):
        calls.append(keys)
        raise StoreError("no connection")

    body = {"instances": samples[0][:2]}
    with monkeypatch.context() as patch:
        patch.setattr(LmdbStore, "get_many", fail)
        assert (ours.answer(body).sources == Source.MEAN).all()
        assert (ours.answer(body).sources == Source.MEAN).all()
        assert len(calls) == 1  # left alone for a second
        with pytest.raises(ServingError, match="no connection"):
            strict.answer(body)
        with pytest.raises(ServingError, match="is down"):
            strict.answer(body)
    now_s[0] += 1.01
    assert (ours.answer(body).sources == Source.STORE).all()


def test_a_store_of_another_tower_is_refused(place, samples):
    store = open_store(f"lmdb://{place}/store", writable=True)
    other = store.begin("f" * 64, 16, "float32")
    store.complete(other)
    ours = serve(place)  # the generation of the rec model's tower is still there
    assert (ours.release.generation.number, store.meta().current) == (1, 2)
    assert ours.answer({"instances": samples[0][:1]}).sources.tolist() == [Source.STORE]
    assert store.prune() == ([], {1: "is being read"})
    ours.release.store.let_go([1])
    assert store.prune() == ([1], {})
    fingerprint = read_header(str(place / "rec"), "rec").image_tower_fingerprint[:12]
    with pytest.raises(ServingError, match=rf"belongs to image tower {fingerprint}, .*generation 2 of ffffffffffff"):
        serve(place)


def test_a_new_generation_of_the_tower_is_taken(place):
    ours = serve(place)
    assert ours.reload() is None
    store = open_store(f"lmdb://{place}/store", writable=True)
    first = store.meta().generations[1]
    again = dataclasses.replace(first, number=2, begun_s=first.begun_s + 5, completed_s=first.begun_s + 6)
    store.change(lambda meta: dataclasses.replace(meta, current=2, generations={1: first, 2: again}))
    with pytest.raises(ServingError, match=r"generation 2 of .* has no vectors"):
        ours.reload()
    store.put_many(again, list(store.scan(first)))
    assert ours.reload().generation.number == 2


def test_model_and_vectors_are_exchanged_together(exported, earlier_export, place, samples):
    """Whichever comes first, no answer is computed by one tower's model on another tower's vectors."""
    ours = serve(place)
    body = {"instances": samples[0]}
    expected = {ours.release.identity: ours.answer(body).outputs["logits_click"]}
    arguments = ["embed", "--img_model_dir", str(earlier_export / "image"), "--store", f"lmdb://{place}/store"]
    arguments += ["--input", f"{exported.data}/images/test/*", "--image_root", str(exported.data)]
    answers, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            answers.append(ours.answer(body))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert main([*arguments, "--bad_pictures", f"{place}/bad"]) == 0
        assert ours.reload() is None  # the new vectors wait for their model
        shutil.copytree(earlier_export / "rec", place / "new")
        (place / "rec").rename(place / "old")
        (place / "new").rename(place / "rec")
        new = ours.reload()
        assert new.generation.number == 2
        time.sleep(0.2)
    finally:
        stop.set()
        asking.join()
    expected[new.identity] = serve(place).answer(body).outputs["logits_click"]
    assert len({answer.release.identity for answer in answers}) == 2
    for answer in answers:
        assert (answer.sources == Source.STORE).all()
        np.testing.assert_array_equal(answer.outputs["logits_click"], expected[answer.release.identity])


def spoil_onnx(folder):
    (folder / "rec.onnx").write_bytes(b"x" * 100)


def take_other_fields(folder):
    header = read_header(str(folder), "rec")
    fields = tuple(dataclasses.replace(f, dtype="float32") if f.name == "hour" else f for f in header.schema.fields)
    more = dataclasses.replace(header.schema.features[0], name="more", inputs=("no_such",))
    fields += (dataclasses.replace(fields[0], name="no_such", optional=False),)
    layout = dataclasses.replace(header.schema.layout, sample_fields=(*header.schema.layout.sample_fields, "no_such"))
    schema = dataclasses.replace(header.schema, fields=fields, features=(*header.schema.features, more), layout=layout)
    write_manifest(folder, dataclasses.replace(header, schema=schema))


def claim_another_tower(folder):
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**values, "image_tower_fingerprint": "0" * 64}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (spoil_onnx, "rec.onnx: has 100 bytes"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "cannot be read"),
        (claim_another_tower, "belongs to image tower 000000000000"),
        (
            take_other_fields,
            "cannot answer any of the last requests; the first problem is: instance 0: no_such: is missing",
        ),
        (shutil.rmtree, "no manifest.json"),
    ],
)
def test_a_bad_release_stays_out(place, samples, damage, message):
    ours = serve(place)
    body = {"instances": samples[0]}
    before = ours.answer(body)
    shutil.copytree(place / "rec", place / "next")
    (place / "rec").rename(place / "old")
    (place / "next").rename(place / "rec")
    damage(place / "rec")
    with pytest.raises((ExportError, ServingError), match=message):
        ours.reload()
    after = ours.answer(body)
    assert after.release is before.release
    np.testing.assert_array_equal(after.outputs["logits_click"], before.outputs["logits_click"])


def test_a_field_that_only_the_new_model_needs(place, samples):
    """Clients can begin to send it while the old model serves; the new one takes over when they do."""
    (place / "rec").rename(place / "1")
    (place / "rec").mkdir()
    (place / "1").rename(place / "rec" / "1")
    ours = serve(place)
    old = {"instances": samples[0][:2]}
    new = {"instances": [{**instance, "no_such": 1} for instance in old["instances"]]}
    expected = ours.answer(old).outputs["probs_click"]
    with pytest.raises(RequestError, match="no field 'no_such'"):
        ours.answer(new)
    shutil.copytree(place / "rec" / "1", place / "rec" / "2")
    take_other_fields(place / "rec" / "2")
    with pytest.raises(ServingError, match=r"2: cannot answer any of the last requests; .*no_such: is missing"):
        ours.reload()
    for body in (old, new, json.dumps(new).encode()):
        answer = ours.answer(body)
        assert answer.release.folder == str(place / "rec" / "1")
        np.testing.assert_array_equal(answer.outputs["probs_click"], expected)
    assert ours.reload().folder == str(place / "rec" / "2")
    ours.answer(new)
    with pytest.raises(RequestError, match="no_such: is missing"):
        ours.answer(old)


def test_the_newest_that_is_whole(exported, earlier_export, place, samples, caplog):
    """Also at the start, and never an older one than that which is served, as long as that is there."""
    (place / "rec").rename(place / "2")
    (place / "rec").mkdir()
    (place / "2").rename(place / "rec" / "2")
    for number, source in (("1", exported.folder), ("3", exported.folder), ("4", earlier_export)):
        shutil.copytree(source / "rec", place / "rec" / number)
    spoil_onnx(place / "rec" / "3")
    ours = serve(place)
    assert ours.release.folder == str(place / "rec" / "2")
    assert "is served, because a newer one is refused: " in caplog.text
    with pytest.raises(ServingError, match=r"rec/4 \(model.ckpt-3\) belongs to image tower"):
        ours.reload()
    spoil_onnx(place / "rec" / "2")
    os.utime(place / "rec" / "2" / MANIFEST)
    with pytest.raises(ServingError, match="rec/4"):
        ours.reload()
    assert ours.release.folder == str(place / "rec" / "2")
    shutil.rmtree(place / "rec" / "2")  # back
    assert ours.reload().folder == str(place / "rec" / "1")
    arguments = ["embed", "--img_model_dir", str(earlier_export / "image"), "--store", f"lmdb://{place}/store"]
    arguments += ["--input", f"{exported.data}/images/test/*", "--image_root", str(exported.data)]
    assert main([*arguments, "--bad_pictures", f"{place}/bad"]) == 0
    assert ours.reload().folder == str(place / "rec" / "4")


def test_the_image_model_of_a_tower(exported, earlier_export, tmp_path):
    """It may be older than the newest one, whose rec model has no vectors yet."""
    for number, source in (("1", exported.folder), ("2", earlier_export)):
        shutil.copytree(source / "image", tmp_path / number)
    fingerprint = read_header(str(exported.folder / "image"), "image").image_tower_fingerprint
    assert image_model_of(fingerprint, str(tmp_path)) == str(tmp_path / "1")
    assert image_model_of("another", str(tmp_path)) == str(tmp_path / "2")


def test_what_is_not_finite_is_never_answered(place, samples, monkeypatch):
    ours = serve(place)
    run = ours.release.predictor.__class__.__call__

    def spoilt(self, fields, vectors, of_features):
        outputs = run(self, fields, vectors, of_features)
        outputs["probs_click"] = np.where(np.arange(len(vectors)) == 1, np.nan, outputs["probs_click"])
        return outputs

    monkeypatch.setattr(ours.release.predictor.__class__, "__call__", spoilt)
    with pytest.raises(ServingError, match="instance 1: the model's probs_click is nan"):
        ours.answer({"instances": samples[0][:3]})


def test_a_wrong_request(place):
    with pytest.raises(RequestError, match="instance 0: user_age_level: is missing"):
        serve(place).answer({"instances": [{"img_path": "a"}]})


def test_numbered_exports(exported, tmp_path):
    for name in ("9", "10", "x", "²"):
        shutil.copytree(exported.folder / "rec", tmp_path / name)
    (tmp_path / "11").mkdir()  # being written
    assert exports_of(str(tmp_path)) == [str(tmp_path / "10"), str(tmp_path / "9")]
    with pytest.raises(ExportError, match="or a folder of such folders with numbers as names"):
        exports_of(str(tmp_path / "11"))
