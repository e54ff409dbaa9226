"""Every kind of feature through whole commands: trained, checked, predicted, exported, and served by both runtimes."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from every_feature import sample_names, samples_of, write_data, write_titles
from exported_helpers import exported_outputs
from prometheus_client import REGISTRY
from training_helpers import use_backbone_of_three_stages

from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.errors import StoreError
from easyrec_mm.features.numpy_transform import NumpyTransform
from easyrec_mm.manifest import read_manifest
from easyrec_mm.serving import feature_lookup, list_sizes, monitoring
from easyrec_mm.serving.field_values import RequestError
from easyrec_mm.serving.release import ServiceOptions
from easyrec_mm.serving.service import Service
from easyrec_mm.store import open_store
from easyrec_mm.store.feature_vectors import VectorStores


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Data, a training of it, its export and the vectors of its pictures."""
    folder = tmp_path_factory.mktemp("features")
    with pytest.MonkeyPatch.context() as patch:
        use_backbone_of_three_stages(patch)
        write_data(folder)
        config = ["--pipeline_config", f"{folder}/x.config"]
        assert main(["train", *config]) == 0
        kinds = ("rec", "total", "img")
        exports = [flag for kind in kinds for flag in (f"--{kind}_model_export_dir", f"{folder}/{kind}")]
        assert main(["export", *config, *exports]) == 0
        embed = ["embed", "--img_model_dir", f"{folder}/img", "--input", f"{folder}/*.png", "--image_root", f"{folder}"]
        assert main([*embed, "--store", f"lmdb://{folder}/store", "--bad_pictures", f"{folder}/bad"]) == 0
    return folder


def test_check_shows_every_feature(trained, capsys, monkeypatch):
    use_backbone_of_three_stages(monkeypatch)
    assert main(["check", "--pipeline_config", f"{trained}/x.config"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.split("\nfeatures\n")[1].splitlines() if line}
    assert lines["wanted"].split()[1] == "ExprFeature"
    cells = lines["clicks_of_category"].split()
    assert cells[1:5] == ["LookupFeature", "(identity)", "3", "10"]
    assert 0 < float(cells[5].rstrip("%")) < 100  # samples whose map lacks the category
    assert 0 < float(cells[6].rstrip("%")) < 50  # numbers above 9
    assert lines["seen"].split()[1:3] == ["SequenceFeature", "(hash)"]
    assert lines["seen_looks"].split()[1:5] == ["SequenceFeature", "(numbers)", "2", "4"]
    assert 0 < float(lines["seen"].split()[5].rstrip("%")) < 50  # without any
    for name, kind in (("title", "VectorFeature"), ("seen_titles", "SequenceFeature")):
        cells = lines[name].split()
        assert cells[1:5] == [kind, "(store)", "5", "-"]
        assert 0 < float(cells[6].rstrip("%")) < 50  # keys of which the store has no vector


@pytest.fixture(scope="module")
def rows(trained):
    """What `predict` writes, beside the fields."""
    manifest = read_manifest(f"{trained}/rec", "rec")
    names = [*manifest.schema.feature_fields(), "path"]
    arguments = ["--predict_input_path", f"{trained}/data.txt", "--output", f"{trained}/p.parquet"]
    with pytest.MonkeyPatch.context() as patch:
        use_backbone_of_three_stages(patch)
        columns = ["--reserved_columns", ",".join(names)]
        assert main(["predict", "--pipeline_config", f"{trained}/x.config", *arguments, *columns]) == 0
    return pq.read_table(f"{trained}/p.parquet").to_pylist(), names


def test_vectors_of_a_store_in_batches(trained):
    """Against the table that was loaded and the lines themselves; what is missing is counted."""
    pipeline = load_pipeline(f"{trained}/x.config")
    bad_records = BadRecords(None, 1.0)
    inputs = Input(pipeline.config.data_config, pipeline.schema, f"{trained}/data.txt", "train_input_path", bad_records)
    batches = [item.batch.features for item in inputs.batches()]
    table = pq.read_table(trained / "titles.parquet").to_pydict()
    vectors = {str(key): np.float32(v) for key, v in zip(table["item"], table["vector"], strict=True)}
    nothing = np.zeros(5, np.float32)
    lines = (trained / "data.txt").read_text().splitlines()
    samples = [dict(zip(sample_names(), s.split("\x02"), strict=True)) for x in lines for s in samples_of(x)]
    expected = [vectors.get(s["item"], nothing) for s in samples]
    np.testing.assert_array_equal(np.concatenate([batch["title"] for batch in batches]), expected)
    histories = [[key for key in s["seen_items"].split(",") if key][:3] for s in samples]
    seen = [row.numpy() for batch in batches for row in batch["seen_titles"]]
    assert len(seen) == len(histories) > len(expected) - 1
    for keys, history_vectors in zip(histories, seen, strict=True):
        np.testing.assert_array_equal(history_vectors, np.reshape([vectors.get(key, nothing) for key in keys], [-1, 5]))
    assert min(map(len, seen)) == 0  # also one without any
    flat = [key for keys in histories for key in keys]
    counts = bad_records.counts
    assert (counts["vectors_title"], counts["vectors_seen_titles"]) == (len(samples), len(flat))
    assert counts["missing_vectors_title"] == sum(s["item"] not in vectors for s in samples) > 0
    assert counts["missing_vectors_seen_titles"] == sum(key not in vectors for key in flat) > 0
    summary = bad_records.summary().splitlines()[0]
    assert re.fullmatch(r"feature 'title': \d+ of 72 keys have no vector, such as '8'", summary)


def test_a_saved_model_takes_the_vectors(trained, rows):
    """Whoever runs the SavedModel looks them up, and need not know what padding holds."""
    rows, names = rows
    store, codes = (open_store(f"lmdb://{trained}/{name}") for name in ("titles", "titles/codes"))
    loaded = tf.saved_model.load(f"{trained}/rec")
    run = loaded.signatures["vector"]
    inputs = run.structured_input_signature[1]
    assert {"item", "seen_items"}.isdisjoint(inputs)
    given = {n: tf.cast([row[n] for row in rows], inputs[n].dtype) for n in names if n in inputs}
    seen = [[key for key in row["seen_items"].split(",") if key][:3] for row in rows]
    padded = np.full((len(rows), 4, 5), 7, np.float32)
    for i, keys in enumerate(seen):
        padded[i, : len(keys)] = store.get_many(keys).vectors
    vectors = {
        "title_vector": store.get_many([str(row["item"]) for row in rows]).vectors,
        "codes_vector": codes.get_many([str(row["item"]) for row in rows]).vectors,
        "seen_titles_vector": padded,
        "seen_titles_length": tf.constant([len(keys) for keys in seen], tf.int64),
        "img_emb_vector": open_store(f"lmdb://{trained}/store").get_many([row["path"] for row in rows]).vectors,
    }
    outputs = run(**given, **{name: tf.constant(value) for name, value in vectors.items()})
    np.testing.assert_allclose(outputs["logits_click"], [row["logits_click"] for row in rows], rtol=1e-4, atol=1e-5)
    vectors["title_vector"] = vectors["title_vector"][::-1].copy()
    others = run(**given, **{name: tf.constant(value) for name, value in vectors.items()})
    assert np.abs(others["logits_click"] - outputs["logits_click"]).max() > 1e-4


def test_exported_models_in_batches_compute_what_predict_writes(trained, rows):
    """Features of every type, with the vectors of a store."""
    files = (f"{trained}/data.txt", f"{trained}/rec", f"{trained}/img")
    outputs = exported_outputs(f"{trained}/x.config", [], *files)
    assert outputs.keys() <= rows[0][0].keys()
    for name, values in outputs.items():
        np.testing.assert_allclose(values, [row[name] for row in rows[0]], atol=1e-5)


def test_lists_that_do_not_fit_each_other_are_refused(trained, rows):
    rows, names = rows
    service = Service(ServiceOptions(f"{trained}/rec"), open_store(f"lmdb://{trained}/store"))
    instances = [{name: row[name] for name in names} for row in rows[:3]]
    instances[2] |= {"seen": "u1|u2", "seen_categories": "c1"}
    with pytest.raises(RequestError, match=r"^instance 2: 'seen' has 2 values, but 'seen_categories' has 1; give both"):
        service.answer({"instances": instances})
    for instance in instances:
        instance["seen"] = "u1|u2"
        del instance["seen_categories"]
    with pytest.raises(RequestError, match="instance 0: 'seen' has 2 values, but 'seen_categories' has 3; give both"):
        service.answer({"instances": instances, "shared": {"seen_categories": "c0,c1,c2"}})
    answer = service.answer({"instances": instances, "shared": {"seen_categories": "c0,c1"}})
    assert len(answer.outputs["probs_click"]) == 3


@pytest.mark.parametrize("runtime", ["onnx", "tensorflow"])
def test_served_answers_are_the_predictions(trained, rows, runtime):
    rows, names = rows
    service = Service(ServiceOptions(f"{trained}/rec", runtime=runtime), open_store(f"lmdb://{trained}/store"))
    instances = [{name: row[name] for name in names} for row in rows]
    answer = service.answer({"instances": instances})
    for name in ("logits_click", "probs_click"):
        np.testing.assert_allclose(answer.outputs[name], [row[name] for row in rows], rtol=1e-4, atol=1e-5)
    assert np.std(answer.outputs["logits_click"]) > 1e-3


def test_a_server_computes_the_features_of_training(trained, rows):
    pipeline, files = load_pipeline(f"{trained}/x.config"), (f"{trained}/data.txt", "train_input_path")
    batches = list(Input(pipeline.config.data_config, pipeline.schema, *files, BadRecords(None, 1.0)).batches())
    reader = Service(ServiceOptions(f"{trained}/rec"), open_store(f"lmdb://{trained}/store")).release.reader
    fields = reader.read({"instances": [{name: row[name] for name in rows[1]} for row in rows[0]]}).fields
    served = NumpyTransform(pipeline.schema.features)(fields, len(rows[0]))
    for name in ("hour", "is_new_today", "wanted", "price"):
        np.testing.assert_array_equal(served[name], np.concatenate([item.batch.features[name] for item in batches]))


@pytest.mark.parametrize("runtime", ["onnx", "tensorflow"])
def test_large_requests_are_computed_in_parts(trained, rows, runtime, monkeypatch):
    """Of candidates with lists of similar lengths, each with the answer that it has in a small request."""
    rows, names = rows
    service = Service(ServiceOptions(f"{trained}/rec", runtime=runtime), open_store(f"lmdb://{trained}/store"))
    instances = [{name: row[name] for name in names} for row in rows]
    shared = {"seen_items": instances[0]["seen_items"], "clicks_of": instances[0]["clicks_of"]}
    own = [{name: value for name, value in instance.items() if name not in shared} for instance in instances]
    whole = [service.answer({"instances": instances}), service.answer({"instances": own, "shared": shared})]
    predict, sizes = type(service.release.predictor).__call__, []

    def recorded(self, fields, vectors, of_features):
        sizes.append(len(vectors))
        return predict(self, fields, vectors, of_features)

    monkeypatch.setattr(type(service.release.predictor), "__call__", recorded)
    monkeypatch.setattr(list_sizes, "VALUES_OF_A_PART", 60)
    parts = [service.answer({"instances": instances}), service.answer({"instances": own, "shared": shared})]
    assert sum(sizes) == 2 * len(instances)
    assert 4 < len(sizes) < len(instances)
    for answer, expected in zip(parts, whole, strict=True):
        for name, values in expected.outputs.items():
            np.testing.assert_allclose(answer.outputs[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
        assert answer.missing_vectors == expected.missing_vectors


@pytest.fixture
def served(trained, tmp_path):
    """A function that serves the rec model with a copy of the titles, and the store of that copy."""
    shutil.copytree(trained / "titles", tmp_path / "titles")
    uri = f"lmdb://{tmp_path}/titles"
    # One process may open it for reading beside, but not for writing after that.
    stores = [open_store(uri, writable=True)]

    def serve(**options):
        vector_stores = {"title": uri, "seen_titles": uri, "codes": f"{uri}/codes"}
        options = ServiceOptions(f"{trained}/rec", vector_stores=vector_stores, **options)
        stores.append(open_store(f"lmdb://{trained}/store"))
        return Service(options, stores[-1])

    yield serve, uri
    for store in stores:
        store.close()


def test_a_server_counts_keys_without_vectors(rows, served):
    rows, names = rows
    serve, _ = served
    service = serve()
    instances = [{name: row[name] for name in names} for row in rows[:3]]
    for instance, item, seen in zip(instances, (0, 99, 98), ("1,77", "", "77,76,2,3"), strict=True):
        instance |= {"item": item, "seen_items": seen}
    answer = service.answer({"instances": instances})
    assert answer.missing_vectors == {"title": 2, "seen_titles": 3, "codes": 2}  # of a longer sequence, what is kept
    before = counted("seen_titles")
    monitoring.count_vectors(answer)
    assert counted("seen_titles") == before + 3
    shared = [{n: v for n, v in instance.items() if n not in ("item", "seen_items")} for instance in instances]
    together = service.answer({"instances": shared, "shared": {"item": 0, "seen_items": "1,77"}})
    assert together.missing_vectors == {"title": 0, "seen_titles": 1, "codes": 0}
    np.testing.assert_allclose(together.outputs["logits_click"][0], answer.outputs["logits_click"][0], rtol=1e-5)


def counted(feature):
    return REGISTRY.get_sample_value("easyrec_mm_feature_vector_misses_total", {"feature": feature}) or 0.0


def test_a_store_of_vectors_that_is_down(rows, served, monkeypatch):
    """Counts as one without vectors, unless that is an error, and is asked again after a while."""
    rows, names = rows
    serve, _ = served
    body = {"instances": [{name: rows[0][name] for name in names} | {"item": 1, "seen_items": "1"}]}
    lenient, strict = serve(), serve(missing_vector="error")
    expected = lenient.answer(body).outputs["logits_click"]
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        raise StoreError("redis://far: no answer")

    clock = [0.0]
    monkeypatch.setattr(feature_lookup.time, "monotonic", lambda: clock[0])
    with monkeypatch.context() as patch:
        patch.setattr(VectorStores, "look_up", fail)
        for _ in range(3):
            answer = lenient.answer(body)
            assert answer.missing_vectors == {"title": 1, "seen_titles": 1, "codes": 1}
            assert len(calls) == 2  # of each of the two stores
        with pytest.raises(StoreError, match=r"feature 'title': redis://far: no answer"):
            strict.answer(body)
    assert np.abs(answer.outputs["logits_click"] - expected).max() > 1e-4
    with pytest.raises(StoreError, match="feature 'title': the store is down"):
        strict.answer(body)
    clock[0] = 1.0
    for service in (lenient, strict):
        np.testing.assert_allclose(service.answer(body).outputs["logits_click"], expected, rtol=1e-6)


def test_a_server_takes_vectors_of_the_origin_of_training(rows, served, tmp_path):
    rows, names = rows
    serve, uri = served
    service = serve()
    body = {"instances": [{name: rows[0][name] for name in names} | {"item": 1}]}
    expected = service.answer(body).outputs["logits_click"]
    assert service.reload() is None
    # Of another origin: the generation before stays, as long as it is there.
    write_titles(tmp_path, uri, "other words")
    assert service.reload() is None
    np.testing.assert_array_equal(service.answer(body).outputs["logits_click"], expected)
    np.testing.assert_array_equal(serve().answer(body).outputs["logits_click"], expected)
    store = open_store(uri, writable=True)
    assert store.prune() == ([], {1: "is being read"})
    service.release.lookup.close()
    assert store.prune().removed == [1]
    with pytest.raises(StoreError, match="holds generation 2 of 'other words', but not the vectors that the model"):
        service.reload()
    # The same vectors again, in a new generation, which is taken without a restart.
    write_titles(tmp_path, uri, "words")
    old = service.release
    assert service.reload() is service.release is not old
    np.testing.assert_array_equal(service.answer(body).outputs["logits_click"], expected)
    assert service.reload() is None


def test_stores_that_the_server_is_told(trained, tmp_path, caplog):
    store = open_store(f"lmdb://{trained}/store")

    def serve(**vector_stores):
        return Service(ServiceOptions(f"{trained}/rec", vector_stores=vector_stores), store)

    # It may be a feature of the model to come, which needs the flag before it can take over.
    assert serve(titel="lmdb://x").release.lookup.is_newest()
    text = "--vector_store titel: no feature of this model with that name has vectors in a store; did you mean 'title'?"
    assert text in caplog.text
    with pytest.raises(StoreError, match=rf"feature 'title': lmdb://{tmp_path}/no: no store there; write one"):
        serve(title=f"lmdb://{tmp_path}/no")
    with pytest.raises(StoreError, match=r"feature 'title': .*: holds generation 1 of '[0-9a-f]{40}', but not"):
        serve(title=store.uri)


@pytest.mark.parametrize("command", ["train", "eval", "predict", "export"])
def test_commands_take_vectors_of_the_origin_of_training(trained, command, capsys, monkeypatch, tmp_path):
    use_backbone_of_three_stages(monkeypatch)
    shutil.copytree(trained / "titles", tmp_path / "titles")
    uri = f"lmdb://{tmp_path}/titles"
    write_titles(tmp_path, uri, "other words")
    flags = {
        "train": [],
        "eval": ["--eval_input_path", f"{trained}/data.txt"],
        "predict": ["--predict_input_path", f"{trained}/data.txt", "--output", f"{tmp_path}/p.csv"],
        "export": [f"--{k}_model_export_dir={tmp_path}/{k}" for k in ("rec", "total", "img")],
    }[command]
    for i in (11, 12):
        flags += ["--set", f"feature_config.features[{i}].vector_store={uri}"]
    # As a training of other vectors would find it: none of the origin that the checkpoint tells.
    store = open_store(uri, writable=True)
    assert store.prune().removed == [1]
    store.close()
    assert main([command, "--pipeline_config", f"{trained}/x.config", *flags]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        f"error: feature 'title': {uri}: holds generation 2 of 'other words', but not the vectors that the model was "
        "trained with; restore them"
    )


@pytest.mark.slow
def test_a_training_in_a_bucket_needs_vectors_of_its_origin(s3, trained, capsys, monkeypatch, tmp_path):
    """A training whose data end with too few of them stops; one that goes on takes no others."""
    use_backbone_of_three_stages(monkeypatch)
    uri = f"lmdb://{tmp_path}/titles"
    write_titles(tmp_path, uri, "words")
    settings = [f"feature_config.features[{i}].vector_store={uri}" for i in (11, 12)]
    settings += [f"model_dir={s3.new_bucket()}/m", "train_config.save_checkpoints_steps=1"]
    command = ["train", "--pipeline_config", f"{trained}/x.config", *[f"--set={setting}" for setting in settings]]
    assert main([*command, "--set=feature_config.features[11].max_missing_share=0.05"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"error: feature 'title': the store has no vector of \d+ of \d+ keys, more than max_missing_share \(0.05\), "
        r"such as '[89]', '[89]'; load the vectors or raise the share",
        error,
    )
    write_titles(tmp_path, uri, "other words")
    store = open_store(uri, writable=True)
    assert store.prune().removed == [1]
    store.close()
    assert main(command) == 1
    assert "holds generation 2 of 'other words', but not the vectors that the model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("redis://:secret@cache:6379/0?prefix=a@b", "redis://cache:6379/0?prefix=a@b"),
        ("redis://me:secret@cache?prefix=a@b", "redis://me@cache?prefix=a@b"),
        ("postgresql://user@db/x", "postgresql://user@db/x"),
        ("lmdb:///a:b/c@d", "lmdb:///a:b/c@d"),
        ("lmdb://a:b/c@d", "lmdb://a:b/c@d"),
    ],
)
def test_exports_hold_no_passwords(trained, given, shown):
    schema = read_manifest(f"{trained}/rec", "rec").schema

    def with_uri(features, uri):
        return tuple(replace(f, stored=replace(f.stored, uri=uri)) if f.stored else f for f in features)

    stored = with_uri(schema.features, given)
    exported_features = replace(schema, features=stored).without_passwords().features
    assert exported_features == with_uri(stored, shown)


def test_flags_of_vector_stores_that_are_none(trained, capsys):
    serve = ["serve", "--rec_model_dir", f"{trained}/rec", "--store", f"lmdb://{trained}/store"]
    assert main([*serve, "--vector_store", "title"]) == 1
    assert "--vector_store title: give a feature and its store, as in title=lmdb" in capsys.readouterr().err
    assert main([*serve, "--vector_store", "title=lmdb://a", "--vector_store", "title=lmdb://b"]) == 1
    assert "--vector_store title=lmdb://b: 'title' has a store already" in capsys.readouterr().err
