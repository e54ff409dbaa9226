"""Constants in place of fields in exported models: what they compute, what requests contain, and every mistake."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from config_helpers import EXPORT, FAMILY_PER_GROUP, IMAGE, assert_only_problem, case
from every_feature import CONFIG
from exported_helpers import exported_outputs
from flow_helpers import embed, use_small_backbone
from training_helpers import optimizer

from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import ConfigError
from easyrec_mm.manifest import read_manifest
from easyrec_mm.schema import Schema
from easyrec_mm.serving.openapi import document
from easyrec_mm.serving.release import ServiceOptions
from easyrec_mm.serving.service import Service
from easyrec_mm.serving.tensors import input_tensors
from easyrec_mm.store import open_store

# A number in buckets, one that is scaled, a text in a vocabulary and in a cross with another field, and a list.
CONSTANTS = {"position": "1", "price": "12.3", "user_gender": "F", "item_tags": "a,b,c"}
SETTING = ", ".join(f"{{ input_name: '{name}' value: '{value}' }}" for name, value in CONSTANTS.items())
FIELDS = (
    "user_id", "user_age_level", "user_gender", "user_city", "user_taste", "hour", "category", "price", "shop_id",
    "item_tags", "position",
)  # fmt: skip


@pytest.fixture(scope="module")
def constant(exported, samples, tmp_path_factory):
    """An export with constants; and what `predict` writes of the data, and of data that contain the constants."""
    folder = tmp_path_factory.mktemp("constants")
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        assert main([*exported.export_arguments(folder), "--set", f"{EXPORT}.serve_constants=[{SETTING}]"]) == 0
        write_with_constants(exported.data / "test", folder / "data.txt")
        arguments = ["--predict_input_path", f"{folder}/data.txt", "--output", f"{folder}/p.parquet"]
        assert main(["predict", *exported.flags, *arguments]) == 0
    return folder, pq.read_table(folder / "p.parquet").to_pylist()


def write_with_constants(data, path):
    """Copy lines of groups with the constants in all samples."""
    lines = []
    for file in sorted(data.iterdir()):
        for line in file.read_text(encoding="utf-8").splitlines():
            columns = line.split("|")
            rows = [dict(zip(FIELDS, text.split("\x02"), strict=True)) for text in columns[4].split("\x01")]
            columns[4] = "\x01".join("\x02".join((row | CONSTANTS).values()) for row in rows)
            lines.append("|".join(columns))
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def assert_equal(outputs, rows):
    names = [name for name in rows[0] if name.startswith(("logits_", "probs_", "y_"))]
    assert names
    for name in names:
        np.testing.assert_allclose(outputs[name], [row[name] for row in rows], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def stored(exported, tmp_path_factory):
    """Vectors of the pictures."""
    uri = f"lmdb://{tmp_path_factory.mktemp('vectors')}/store"
    embed(exported, uri)
    store = open_store(uri)
    yield store
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "tensorflow"])
def test_the_server_takes_the_constants_whatever_a_request_contains(exported, samples, constant, stored, runtime):
    folder, rows = constant
    service = Service(ServiceOptions(f"{folder}/rec", runtime=runtime), stored)
    instances, logged = samples
    assert_equal(service.answer({"instances": instances}).outputs, rows)
    without = [{name: value for name, value in row.items() if name not in CONSTANTS} for row in instances]
    assert_equal(service.answer({"instances": without}).outputs, rows)
    other = {"position": "ninth", "price": None, "user_gender": 5, "item_tags": ["b"] * 40}
    assert_equal(service.answer({"instances": [row | other for row in without]}).outputs, rows)
    body = json.dumps({"instances": without, "shared": {"position": 9, "price": 1e30}}).encode()
    assert_equal(service.answer(body).outputs, rows)
    differences = [abs(row["logits_click"] - other["logits_click"]) for row, other in zip(rows, logged, strict=True)]
    assert max(differences) > 1e-3


@pytest.mark.slow
def test_saved_models_have_no_such_input(exported, samples, constant):
    folder, rows = constant
    instances, _ = samples
    total = tf.saved_model.load(f"{folder}/total").signatures["encoded"]
    specs = total.structured_input_signature[1]
    assert CONSTANTS.keys().isdisjoint(specs)
    fields = {name: tf.cast([row[name] for row in instances], specs[name].dtype) for name in specs if name in FIELDS}
    contents = tf.constant([(exported.data / row["img_path"]).read_bytes() for row in instances])
    assert_equal(total(**fields, img_path=contents), rows)
    rec = tf.saved_model.load(f"{folder}/rec").signatures
    for signature in rec.values():
        assert CONSTANTS.keys().isdisjoint(signature.structured_input_signature[1])


@pytest.mark.slow
def test_manifest_and_descriptions_of_requests(constant, stored):
    folder, _ = constant
    manifest = read_manifest(f"{folder}/rec", "rec")
    assert {field.name: field.constant for field in manifest.schema.fields if field.constant is not None} == CONSTANTS
    assert all(CONSTANTS.keys().isdisjoint(entry["inputs"]) for entry in manifest.signatures.values())
    assert CONSTANTS.keys().isdisjoint(tensor["name"] for tensor in input_tensors(manifest, "img_path"))
    request = json.loads((folder / "rec" / "sample_request.json").read_text())
    assert all(CONSTANTS.keys().isdisjoint(instance) for instance in request["instances"])
    service = Service(ServiceOptions(f"{folder}/rec"), stored)
    required = document(service.release, "m")["components"]["schemas"]["Candidate"]["required"]
    assert CONSTANTS.keys().isdisjoint(required)
    assert set(required) == set(FIELDS) - CONSTANTS.keys() - {"user_id"}


@pytest.mark.slow
def test_predictions_of_exported_models_take_the_values_of_the_data(exported, samples, constant):
    folder, _ = constant
    overrides = [flag.removeprefix("--set=") for flag in exported.flags[2:]]
    outputs = exported_outputs(
        exported.flags[1], overrides, f"{exported.data}/test/*", folder / "rec", folder / "image"
    )
    assert_equal(outputs, samples[1])


def constant_of(name, value=""):
    return f"{EXPORT}.serve_constants=[{{ input_name: '{name}' {value} }}]"


INPUT_NAME, VALUE = f"{EXPORT}.serve_constants[0].input_name", f"{EXPORT}.serve_constants[0].value"
MISTAKES = [
    case(constant_of("cty", "value: '1'"), place=INPUT_NAME, says="no input field named 'cty'; did you mean 'city'?"),
    case(constant_of("img_path", "value: '1'"), place=INPUT_NAME, says="'img_path' is an input of the image tower"),
    case(constant_of("like", "value: '1'"), place=INPUT_NAME, says="'like' has no effect: no feature of the model"),
    case(constant_of("group_size", "value: '1'"), place=INPUT_NAME, says="'group_size' has no effect"),
    case(constant_of("level"), place=VALUE, says="is missing; give the value that exported models take for 'level'"),
    case(constant_of("level", "value: ''"), place=VALUE, says="is empty, but 'level' is int64; give a value like"),
    case(constant_of("level", "value: 'first'"), place=VALUE, says="'first' is not int64; give a value like those of"),
    case(constant_of("level", "value: '1.5'"), place=VALUE, says="'1.5' is not int64"),
    case(constant_of("latitude", "value: '1e30'"), place=VALUE, says="'1e30' is not a number from -1e19 to 1e19"),
    case(
        f"{EXPORT}.serve_constants=[{{ input_name: 'level' value: '1' }}, {{ input_name: 'level' value: '2' }}]",
        place=f"{EXPORT}.serve_constants[1].input_name",
        says="'level' is listed twice; remove one",
    ),
    case(
        f"{IMAGE}.category_feature=familyid",
        FAMILY_PER_GROUP,
        constant_of("familyid", "value: '1'"),
        place=INPUT_NAME,
        says="'familyid' is an input of the image tower, whose vectors are computed before; remove it",
    ),
]


@pytest.mark.parametrize(("changes", "place", "says"), MISTAKES)
def test_a_mistake_names_field_and_value(problems, changes, place, says):
    assert_only_problem(problems(changes), place, says)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("item", "1", "'item' is the key of vectors in a store, which exported models take instead; remove it"),
        ("seen", "u1", "'seen' is a list with as many values as 'seen_categories' in each sample; remove it"),
        ("clicks_of", "c1", "'c1' is not text of the form that features of 'clicks_of' need"),
        ("is_new", "new", "'new' is not bool; give a value like those of the data"),
        ("listed_at", "2026-13-01", "'2026-13-01' is not text of the form that features of 'listed_at' need"),
    ],
)
def test_fields_that_cannot_be_constants(tmp_path, name, value, says):
    settings = {"folder": tmp_path, "optimizer": optimizer(), "titles": f"lmdb://{tmp_path}/titles"}
    (tmp_path / "x.config").write_text(CONFIG % settings, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_pipeline(f"{tmp_path}/x.config", [constant_of(name, f"value: '{value}'")])
    assert says in str(caught.value)


def test_training_reads_the_field(tmp_path):
    """And so do evaluations: only what exported models read is another."""
    settings = {"folder": tmp_path, "optimizer": optimizer(), "titles": f"lmdb://{tmp_path}/titles"}
    (tmp_path / "x.config").write_text(CONFIG % settings, encoding="utf-8")
    plain = load_pipeline(f"{tmp_path}/x.config").schema
    schema = load_pipeline(f"{tmp_path}/x.config", [constant_of("price", "value: '3.5'")]).schema
    assert schema.fields_read() == plain.fields_read()
    assert schema.features == plain.features
    assert set(plain.request_fields()) - set(schema.request_fields()) == {"price"}
    assert set(plain.input_fields()) - set(schema.input_fields()) == {"price"}
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
