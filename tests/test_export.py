"""The export: three models that plain TensorFlow loads, equal to each other and to what `predict` writes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from flow_helpers import KINDS, use_small_backbone
from model_helpers import CLICK, make_model, make_pipeline, onnx_rec_outputs, random_batch, use_tiny_backbone

from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import CheckpointError, ExportError
from easyrec_mm.export import export, parts
from easyrec_mm.manifest import read_manifest
from easyrec_mm.network.rec import task_outputs
from easyrec_mm.runs.best_checkpoint import choose_checkpoint


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    use_small_backbone(monkeypatch)


def signatures(folder):
    return tf.saved_model.load(str(folder)).signatures


@pytest.fixture(scope="module")
def predicted(exported, samples):
    """What `predict` writes for the test data by column, and the rec model's fields of the same samples."""
    _, rows = samples
    inputs = read_manifest(str(exported.folder / "rec"), "rec").signatures[parts.DEFAULT]["inputs"]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    fields = {name: tf.constant(columns[name]) for name in inputs if name != parts.IMAGE_TEXT}
    dtypes = {name: inputs[name]["dtype"] for name in fields}
    return columns, {name: tf.cast(v, dtypes[name]) if dtypes[name] != "string" else v for name, v in fields.items()}


def outputs_of(columns):
    return {name: np.array(v) for name, v in columns.items() if name.startswith(("logits_", "probs_", "y_"))}


def assert_close(outputs, expected):
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value, rtol=1e-5, atol=2e-6, err_msg=name)


# --- What they compute


@pytest.mark.slow
def test_image_and_rec_model_give_what_predict_writes(exported, predicted):
    columns, fields = predicted
    contents = tf.constant([(exported.data / path).read_bytes() for path in columns["img_path"]])
    image = signatures(exported.folder / "image")
    vectors = image["encoded"](img_path=contents)
    rec = signatures(exported.folder / "rec")
    expected = outputs_of(columns)
    by_text = rec["serving_default"](**fields, img_emb=vectors["img_emb"])
    assert_close({name: v.numpy() for name, v in by_text.items()}, expected)
    by_vector = rec["vector"](**fields, img_emb_vector=vectors["img_emb_vector"])
    assert_close({name: v.numpy() for name, v in by_vector.items()}, expected)
    total = signatures(exported.folder / "total")["encoded"](**fields, img_path=contents)
    texts = [[float(number) for number in text.split(b",")] for text in total.pop("img_emb").numpy()]
    np.testing.assert_allclose(texts, vectors["img_emb_vector"], rtol=1e-5, atol=2e-6)
    assert_close({name: v.numpy() for name, v in total.items()}, expected)


def test_pixels_and_files_give_the_same_vector(exported):
    files = sorted((exported.data / "images").rglob("*.jpg"))[:5]
    contents = tf.constant([path.read_bytes() for path in files])
    image = signatures(exported.folder / "image")
    pixels = image["decode"](img_path=contents)["pixels"]
    assert pixels.dtype == tf.uint8
    by_pixels = image["serving_default"](img_path=tf.cast(pixels, tf.float32))
    by_file = image["encoded"](img_path=contents)
    np.testing.assert_array_equal(by_pixels["img_emb_vector"], by_file["img_emb_vector"])
    vectors = by_file["img_emb_vector"].numpy()
    texts = [text.decode().split(",") for text in by_file["img_emb"].numpy()]
    np.testing.assert_array_equal(np.array(texts, np.float32), vectors)
    assert len(np.unique(vectors, axis=0)) > 1


def test_text_gives_back_every_float32():
    # TensorFlow computes with 0 for the numbers below 1.2e-38.
    bits = np.random.default_rng(0).integers(0, 2**32, 400_000, dtype=np.uint32)
    vector = bits.view(np.float32)
    vector = vector[np.isfinite(vector) & (np.abs(vector) > 1.2e-38)]
    vector = np.append(vector, np.float32([0, 1, -0.1, 1 / 3, 3.4028235e38, 1.1754944e-38, 123456789]))
    np.testing.assert_array_equal(parts.text_vector(parts.vector_text(vector[None]), len(vector))[0], vector)


def test_a_field_of_one_sample_counts_for_all(exported, predicted):
    _, fields = predicted
    rec = signatures(exported.folder / "rec")["vector"]
    vector = tf.random.normal([3, read_manifest(str(exported.folder / "rec"), "rec").image_width], seed=1)
    first = {name: value[:1] for name, value in fields.items()}
    repeated = {name: tf.repeat(value, 3) for name, value in first.items()}
    once, thrice = rec(**first, img_emb_vector=vector), rec(**repeated, img_emb_vector=vector)
    for name in once:
        np.testing.assert_array_equal(once[name], thrice[name])


def test_empty_text_takes_the_default(exported, predicted):
    _, fields = predicted
    rec = signatures(exported.folder / "rec")["vector"]
    vector = tf.zeros([1, read_manifest(str(exported.folder / "rec"), "rec").image_width])
    sample = {name: value[:1] for name, value in fields.items()}
    empty, default = (
        rec(**{**sample, "user_gender": tf.constant([v])}, img_emb_vector=vector) for v in ("", "unknown")
    )
    np.testing.assert_array_equal(empty["logits_click"], default["logits_click"])


def test_a_text_that_is_no_vector_is_refused(exported, predicted):
    _, fields = predicted
    rec = signatures(exported.folder / "rec")["serving_default"]
    for text in ("", "1,2", "1,2,3,x"):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"img_emb must hold|could not be|StringToNumber"):
            rec(**fields, img_emb=tf.constant([text]))


NETWORKS = {
    "highway": f'highway_dnn {{ input: "img" emb_size: 6 }} bottom_dnn {{ hidden_units: [8] }} {CLICK}',
    "experts": "img_dnn { hidden_units: [5] } expert_dnn { hidden_units: [6] } num_expert: 2 "
    'task_towers { tower_name: "stars" label_name: "stars" num_class: 4 dnn { hidden_units: [6] } } '
    f'{CLICK[:-1]} relation_tower_names: "stars" relation_dnn {{ hidden_units: [3] }} }}',
    "after bottom": "image_fusion: AFTER_BOTTOM bottom_dnn { hidden_units: [8] } "
    'task_towers { tower_name: "seconds" label_name: "seconds" loss_type: SIGMOID_L2_LOSS dnn { hidden_units: [6] } }',
}


@pytest.mark.parametrize(("network", "combiner"), zip(NETWORKS, ["mean", "sum", "sqrtn"], strict=True))
def test_onnx_rec_model_equals_the_network(tmp_path, monkeypatch, network, combiner):
    use_tiny_backbone(monkeypatch)
    pipeline = make_pipeline(tmp_path, NETWORKS[network])
    text = Path(pipeline.path).read_text().replace('separator: ","', f'separator: "," combiner: "{combiner}"')
    Path(pipeline.path).write_text(text)
    model = make_model(load_pipeline(pipeline.path))
    batch = random_batch(model.schema)
    vector = np.random.default_rng(1).normal(size=(batch.num_samples, model.image_width)).astype(np.float32)
    outputs = onnx_rec_outputs(model, tmp_path, batch, vector)
    logits, _ = model.rec(batch.features, vector)
    expected = {}
    for task in model.schema.tasks:
        expected |= {name: value.numpy() for name, value in task_outputs(task, logits[task.name]).items()}
    assert_close(outputs, expected)


# --- What is written


@pytest.mark.slow
def test_plain_tensorflow_loads_them(exported):
    code = (
        "import sys, tensorflow as tf\n"
        "for folder in sys.argv[1:]:\n"
        "    loaded = tf.saved_model.load(folder)\n"
        "    print(sorted(loaded.signatures))\n"
        "assert not {name for name in sys.modules if name.startswith(('easyrec_mm', 'keras_hub'))}\n"
    )
    folders = [str(exported.folder / kind) for kind in KINDS]
    completed = subprocess.run([sys.executable, "-I", "-c", code, *folders], capture_output=True, text=True, check=True)
    assert completed.stdout.splitlines() == [
        "['decode', 'encoded', 'serving_default']", "['serving_default', 'vector']", "['encoded', 'serving_default']",
    ]  # fmt: skip


def test_each_holds_its_own_variables_and_no_python_function(exported):
    names = {}
    for kind in KINDS:
        folder = exported.folder / kind
        variables = tf.train.load_checkpoint(str(folder / "variables" / "variables")).get_variable_to_shape_map()
        names[kind] = {name for name in variables if not name.startswith("_CHECKPOINTABLE")}
        assert b"PyFunc" not in (folder / "saved_model.pb").read_bytes()
    assert names["image"]
    assert names["rec"]
    assert not names["image"] & names["rec"]
    assert names["image"] | names["rec"] == names["total"]
    assert not any("seed_generator" in name or "optimizer" in name for name in names["total"])


def test_signature_defaults_are_those_of_the_fields(exported):
    saved = tf.saved_model.load(str(exported.folder / "rec"))
    assert set(saved.signatures["serving_default"].structured_input_signature[1]) > {"user_gender", "img_emb"}
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    model.ParseFromString((exported.folder / "rec" / "saved_model.pb").read_bytes())
    defaults = model.meta_graphs[0].signature_def["serving_default"].defaults
    assert tf.make_ndarray(defaults["user_gender"]).tolist() == [b"unknown"]
    assert set(defaults) == {"user_gender"}  # the only field with a default_val


def test_manifest_tells_where_it_comes_from(exported):
    image, rec = (read_manifest(str(exported.folder / kind), kind) for kind in ("image", "rec"))
    assert image.image_tower_fingerprint == rec.image_tower_fingerprint
    assert image.checkpoint == f"model.ckpt-{image.step}"
    assert image.schema == rec.schema == load_pipeline(str(exported.model_dir / "pipeline.config")).schema
    assert {"tensorflow", "easyrec_mm", "onnxruntime"} <= set(rec.versions)
    assert set(rec.files) >= {"saved_model.pb", "rec.onnx", "rec.tables"}
    report = rec.parity
    assert report["num_pictures"] == 12
    assert report["num_samples"] > 24
    differences = report["max_abs_difference"]
    assert differences["rec(image) vs total"]["probs_click"] <= 1e-6
    assert differences["onnx rec(image) vs rec(image)"]["probs_click"] <= 1e-5
    aucs = [values["auc_click"] for values in report["auc"].values()]
    assert np.ptp(aucs) < 1e-3


def test_fingerprint_changes_with_weights_and_pixels_alone(tmp_path, monkeypatch):
    use_tiny_backbone(monkeypatch)

    def fingerprint(change=lambda model: None, text=lambda t: t):
        pipeline = make_pipeline(tmp_path)
        Path(pipeline.path).write_text(text(Path(pipeline.path).read_text()))
        pipeline = load_pipeline(pipeline.path)
        model = make_model(pipeline)
        change(model)
        return export.image_tower_fingerprint(model, pipeline.config.model_config.e2e_mm_dbmtl.img_model)

    original = fingerprint()
    assert original == fingerprint()
    assert original != fingerprint(
        lambda model: model.weights()["image/projection/bias"].assign_add(tf.ones([16]) * 1e-6)
    )
    assert original != fingerprint(text=lambda t: t.replace("width: 32 height: 32", "width: 32 height: 31"))
    assert original == fingerprint(text=lambda t: t.replace("hidden_units: [6]", "hidden_units: [7]"))
    upscaled = fingerprint(text=lambda t: t.replace("e2e_mm_dbmtl {", "e2e_mm_dbmtl { img_model { upscale: 2 }"))
    # Of equally many numbers.
    grids = ("colour_grid: 4 colour_bins: 0 edge_grid: 0", "colour_grid: 0 colour_bins: 0 edge_grid: 3")
    texts = [f"e2e_mm_dbmtl {{ img_model {{ descriptors {{ {grid} }} }}" for grid in grids]
    described = [fingerprint(text=lambda t, new=new: t.replace("e2e_mm_dbmtl {", new)) for new in texts]
    assert len({original, upscaled, *described}) == 4


# --- What goes wrong


@pytest.mark.slow
def test_models_that_disagree_are_not_written(exported, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "e"
    shutil.copytree(exported.folder, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(parts, "task_outputs", lambda task, logits: task_outputs(task, logits * 1.001))
    assert main(exported.export_arguments(folder)) == 1
    assert "the exported models disagree" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in folder.iterdir()) == sorted(KINDS)


def test_a_folder_that_holds_something_else(exported, tmp_path, capsys):
    (tmp_path / "rec").mkdir()
    (tmp_path / "rec" / "thesis.txt").write_text("x")
    assert main(exported.export_arguments(tmp_path)) == 1
    assert "rec: contains files that do not belong to an export" in capsys.readouterr().err
    assert (tmp_path / "rec" / "thesis.txt").exists()


def test_one_folder_for_two_models(exported, tmp_path, capsys):
    arguments = [*exported.export_arguments(tmp_path), f"--img_model_export_dir={tmp_path / 'rec'}"]
    assert main(arguments) == 1
    assert "give each of the three models a folder of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 9}'), "only formats up to 2"),
        (
            lambda folder: (folder / "manifest.json").write_text('{"format": 1, "schema": {}}'),
            "is not a valid manifest",
        ),
        (lambda folder: (folder / "rec.tables").write_bytes(b"x"), "rec.tables: has 1 bytes"),
        (lambda folder: (folder / "rec.onnx").unlink(), "rec.onnx: cannot be read"),
    ],
)
def test_a_damaged_folder(exported, tmp_path, damage, message):
    shutil.copytree(exported.folder / "rec", tmp_path / "rec")
    damage(tmp_path / "rec")
    with pytest.raises(ExportError, match=message):
        read_manifest(str(tmp_path / "rec"), "rec")


def test_a_folder_of_another_model(exported):
    with pytest.raises(ExportError, match="holds the total model, not the rec model"):
        read_manifest(str(exported.folder / "total"), "rec")


def test_best_checkpoint_by_evaluations(exported, tmp_path):
    shutil.copytree(exported.model_dir, tmp_path / "m")
    step = int(next((tmp_path / "m").glob("*.index")).stem.partition("-")[2])
    for other in (1, 2):
        for file in (tmp_path / "m").glob(f"model.ckpt-{step}.*"):
            shutil.copy(file, str(file).replace(f"ckpt-{step}", f"ckpt-{other}"))
    names = "".join(f'all_model_checkpoint_paths: "model.ckpt-{s}"\n' for s in (1, 2, step))
    (tmp_path / "m" / "checkpoint").write_text(f'model_checkpoint_path: "model.ckpt-{step}"\n{names}')
    scores = {1: 0.6, 2: 0.7, step: 0.5, 99: 0.9}
    lines = [json.dumps({"kind": "eval", "step": s, "num_samples": 9, "auc_click": v}) for s, v in scores.items()]
    (tmp_path / "m" / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    def chosen(*settings):
        flags = [f"model_dir={tmp_path / 'm'}", "eval_input_path=eval", *settings]
        pipeline = load_pipeline(str(tmp_path / "m" / "pipeline.config"), flags)
        return Path(choose_checkpoint(pipeline, None).path).name

    best = 'export_config.exporter_type="best"'
    assert chosen() == f"model.ckpt-{step}"
    assert chosen(best) == "model.ckpt-2"
    assert chosen(best, 'export_config.best_exporter_metric="auc_click"') == "model.ckpt-2"
    with pytest.raises(CheckpointError, match=r"has a value of 'gauc_click' \(best_exporter_metric\)"):
        chosen(best, 'export_config.best_exporter_metric="gauc"')
