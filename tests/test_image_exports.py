"""Categories, several pictures and no picture from training to an answer: all ways agree with `predict`."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from exported_helpers import exported_outputs
from flow_helpers import KINDS, demo_flags, make_data, small_backbone, use_small_backbone

from easyrec_mm.cli.main import main
from easyrec_mm.embedding.image_model import ImageModel, PictureEmbedder
from easyrec_mm.embedding.items import read_items
from easyrec_mm.errors import DataError
from easyrec_mm.manifest import ENCODED, IMAGE_VECTOR, PICTURE_ITEM, read_header
from easyrec_mm.network.layers import backbones
from easyrec_mm.serving.release import MissingVectorError, ServiceOptions, ServingError, Source
from easyrec_mm.serving.request import RequestError
from easyrec_mm.serving.service import Service
from easyrec_mm.store import open_store

TOWER = "model_config.e2e_mm_dbmtl.img_model"
CATEGORY = {f"{TOWER}.category_feature": "category", "feature_config.features[5].per_group": "true"}
# Each with much at once, because a training, its export and its store take long.
KINDS_OF_ITEMS = {
    "several, low-rank": {
        f"{TOWER}.image_separator": ";",
        f"{TOWER}.image_pooling": "ATTENTION",
        f"{TOWER}.model_name": "vit_tiny",
        f"{TOWER}.lora_rank": "2",
        f"{TOWER}.lora_alpha": "8",
    },
    "all": {
        **CATEGORY,
        f"{TOWER}.no_image_vector": "true",
        f"{TOWER}.modality_dropout": "0.3",
        f"{TOWER}.image_separator": ";",
        f"{TOWER}.image_pooling": "MAX",
        f"{TOWER}.pooling": "GEM",
        f"{TOWER}.resize": "PAD",
        f"{TOWER}.descriptors.edge_grid": "4",
    },
}


class Trained:
    """A training of a few steps on data with such items, its export, store and predictions of the test data."""

    def __init__(self, folder: Path, kind: str) -> None:
        settings = KINDS_OF_ITEMS[kind]
        self.data = make_data(folder / "data", num_train_groups=24)
        for split in ("train", "eval", "test"):
            for path in sorted((self.data / split).glob("*.txt")):
                self._change(path, none=kind == "all")
        flags = demo_flags(self.data, folder / "m")
        self.flags = [*flags, *[f"--set={name}={value}" for name, value in settings.items()]]
        self.folder = folder / "exported"
        run("train", *self.flags)
        folders = [f"--{flag}_model_export_dir={self.folder / kind}" for kind, flag in KINDS.items()]
        run("export", "--model_dir", folder / "m", "--eval_input_path", f"{self.data}/eval/*.txt", *folders)
        self.store = f"lmdb://{folder}/store"
        self.rows = self._predictions(folder / "p.parquet")
        with open(folder / "items.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["key", "img_path", "category"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows({**row, "key": f"{row['img_path']}#{row['category']}"} for row in self.rows)
        self.items = folder / "items.csv"
        run(
            "embed", "--img_model_dir", self.folder / "image", "--input", self.items, "--key_column", "key",
            "--path_column", "img_path", "--image_root", self.data, "--store", self.store,
            "--bad_pictures", folder / "bad.jsonl",
        )  # fmt: skip
        self.bad = [json.loads(line) for line in (folder / "bad.jsonl").read_text().splitlines()]

    def _change(self, path: Path, none: bool) -> None:
        """Every third line names two pictures, the second of the line before; with `none` every fourth has none."""
        lines, before = [], ""
        for number, line in enumerate(path.read_text().splitlines()):
            columns = line.split("|")
            image = columns[5]
            if number % 3 == 0 and before:
                columns[5] = f"{image};{before}"
            if number % 6 == 0 and ";" in columns[5]:
                columns[5] += ";images/absent.jpg"
            if none and number % 4 == 1:
                columns[5] = ""
            before = image
            lines.append("|".join(columns))
        path.write_text("".join(f"{line}\n" for line in lines))

    def _predictions(self, output: Path) -> list[dict]:
        self.fields = list(read_header(str(self.folder / "rec"), "rec").schema.feature_fields())
        names = ",".join(dict.fromkeys([*self.fields, "img_path", "category"]))
        run("predict", *self.flags, "--set=data_config.max_bad_record_share=0.5", "--predict_input_path",
            f"{self.data}/test/*", "--output", output, "--reserved_columns", names)  # fmt: skip
        return pq.read_table(output).to_pylist()

    def service(self, embedder=None, **options) -> Service:
        store = open_store(self.store)
        options = ServiceOptions(str(self.folder / "rec"), key_field="key", **options)
        return Service(options, store, (lambda fingerprint: embedder) if embedder else None)

    def instances(self) -> list[dict]:
        return [
            {
                **{name: row[name] for name in self.fields},
                "key": f"{row['img_path']}#{row['category']}" if row["img_path"] else "",
            }
            for row in self.rows
        ]

    def expected(self) -> dict[str, np.ndarray]:
        names = [name for name in self.rows[0] if name.startswith(("probs_", "y_"))]
        return {name: np.array([row[name] for row in self.rows]) for name in names}


def small_transformer(shape):
    return keras_hub.models.ViTBackbone(
        image_shape=shape, patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16
    )


def run(*arguments, expect=0):
    assert main([*map(str, arguments)]) == expect


@pytest.fixture(scope="module", params=KINDS_OF_ITEMS)
def trained(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        patch.setitem(backbones.BACKBONES, "ViT-Tiny", backbones.Entry(small_transformer, backbones.MINUS_ONE_TO_ONE))
        return Trained(tmp_path_factory.mktemp("trained"), request.param)


def test_a_server_answers_what_predict_writes(trained):
    """Every sample, those without a picture and those with several among them."""
    service = trained.service()
    answer = service.answer({"instances": trained.instances()})
    for name, values in trained.expected().items():
        np.testing.assert_allclose(answer.outputs[name], values, rtol=1e-5, atol=2e-6, err_msg=name)
    without = [not row["img_path"] for row in trained.rows]
    assert (answer.sources == np.where(without, Source.NO_IMAGE, Source.STORE)).all()


def test_exported_models_in_batches_compute_what_predict_writes(trained):
    config, *overrides = trained.flags[1:]
    overrides = [flag.removeprefix("--set=") for flag in overrides]
    models = (trained.folder / "rec", trained.folder / "image")
    outputs = exported_outputs(config, overrides, f"{trained.data}/test/*", *models)
    for name, values in trained.expected().items():
        np.testing.assert_allclose(outputs[name], values, atol=1e-5)


def test_vectors_that_the_store_lacks_are_computed(trained):
    embedder = PictureEmbedder(str(trained.folder / "image"))
    options = {"missing_vector": "compute", "image_root": str(trained.data), "picture_timeout_s": 60.0}
    service = trained.service(embedder, **options)
    instances = [
        {**instance, "key": row["img_path"]} for instance, row in zip(trained.instances(), trained.rows, strict=True)
    ]
    answer = service.answer({"instances": instances})
    for name, values in trained.expected().items():
        np.testing.assert_allclose(answer.outputs[name], values, rtol=1e-5, atol=2e-6, err_msg=name)
    assert set(answer.sources.tolist()) <= {Source.COMPUTED, Source.NO_IMAGE}
    assert service.answer({"instances": instances}).outputs["probs_click"] == pytest.approx(
        answer.outputs["probs_click"]
    )


def test_both_runtimes_embed_the_same(trained):
    schema = read_header(str(trained.folder / "image"), "image").schema
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, schema.image.height, schema.image.width, 3), np.uint8)
    owner = np.array([0, 0, 1, 2, 2])
    fields = {name: ["bag", "dress", "lamp"] for name in schema.image_fields()}
    vectors = [
        ImageModel(str(trained.folder / "image"), runtime).embed(pixels, fields, owner)
        for runtime in ("onnx", "tensorflow")
    ]
    np.testing.assert_allclose(*vectors, rtol=1e-4, atol=1e-5)
    if schema.category:
        other = ImageModel(str(trained.folder / "image"), "onnx").embed(
            pixels, {"category": fields["category"][::-1]}, owner
        )
        assert np.abs(other - vectors[0]).max() > 1e-6


def test_a_model_without_the_vector_refuses_no_image(trained):
    schema = read_header(str(trained.folder / "rec"), "rec").schema
    instances = [{**trained.instances()[0], "key": "unknown"}]
    if schema.has_no_image_vector:
        assert trained.service().answer({"instances": instances}).sources.tolist() == [Source.NO_IMAGE]
        assert trained.service(missing_vector="mean").answer({"instances": instances}).sources.tolist() == [Source.MEAN]
        strict = trained.service(missing_vector="error")
        with pytest.raises(MissingVectorError):
            strict.answer({"instances": instances})
        del instances[0]["key"]
        assert strict.answer({"instances": instances}).sources.tolist() == [Source.NO_IMAGE]
        assert strict.answer(json.dumps({"instances": instances}).encode()).sources.tolist() == [Source.NO_IMAGE]
    else:
        with pytest.raises(ServingError, match=r"--missing_vector no_image: .*no_image_vector"):
            trained.service(missing_vector="no_image")
        assert trained.service().answer({"instances": instances}).sources.tolist() == [Source.MEAN]
        del instances[0]["key"]
        with pytest.raises(RequestError, match="key: is missing"):
            trained.service().answer({"instances": instances})


class Bessel(keras.layers.Layer):
    """ONNX has no such operation."""

    def call(self, x):
        return tf.math.bessel_i0e(x)


@pytest.mark.slow
def test_a_backbone_that_onnx_lacks(exported, tmp_path, monkeypatch, capsys):
    """It is exported, embedded and served, by TensorFlow. The layer has no weights: it fits another training."""

    def build(shape):
        model = small_backbone(shape)
        return keras.Model(model.input, Bessel(name="bessel")(model.output))

    monkeypatch.setitem(backbones.BACKBONES, "ResNet-18", backbones.Entry(build, backbones.MINUS_ONE_TO_ONE))
    run(*exported.export_arguments(tmp_path))
    assert "warning: image.onnx was not written, so embed will use TensorFlow: " in capsys.readouterr().err
    image = str(tmp_path / "image")
    manifest = read_header(image, "image")
    assert "image.onnx" not in manifest.files
    assert "Bessel" in manifest.parity["left_out"]["image.onnx"]
    to_embed = ["embed", "--img_model_dir", image, "--input", f"{exported.data}/images/test/*"]
    to_embed += ["--store", f"lmdb://{tmp_path}/s", "--bad_pictures", tmp_path / "bad.jsonl"]
    run(*to_embed)
    assert "embedded by tensorflow" in capsys.readouterr().out
    run(*to_embed, "--runtime", "onnx", expect=1)
    error = capsys.readouterr().err
    assert "has no image.onnx" in error
    assert "--runtime tensorflow" in error


def test_low_rank_updates_are_merged(trained):
    """No variable of them is left, and kernels are others than those before the training."""
    module = tf.saved_model.load(str(trained.folder / "image"))
    names = list(module.weights)
    assert names
    assert not any("lora" in name for name in names)


def test_empty_contents_stand_for_no_picture(trained):
    image = tf.saved_model.load(str(trained.folder / "image")).signatures[ENCODED]
    header = read_header(str(trained.folder / "image"), "image")
    if not header.schema.has_no_image_vector:
        assert header.no_image_vector == ()
        return
    row = next(row for row in trained.rows if row["img_path"])
    content = (trained.data / row["img_path"].split(";")[0]).read_bytes()
    beside = {name: tf.constant([row[name]]) for name in header.schema.image_fields()}
    item = tf.constant([0, 1], tf.int64)
    vectors = image(img_path=tf.constant([content, b""]), **beside, **{PICTURE_ITEM: item})[IMAGE_VECTOR].numpy()
    np.testing.assert_array_equal(vectors[1], np.float32(header.no_image_vector))
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-6


def test_bad_pictures_among_several_are_listed(trained):
    assert {record["path"] for record in trained.bad} == {"images/absent.jpg"}


def test_items_with_categories(trained, tmp_path):
    schema = read_header(str(trained.folder / "image"), "image").schema
    if not schema.category:
        assert {item.fields for item in read_items(f"{trained.data}/test/*", schema).items} == {()}
        return
    from_lines = {item.key: item.fields for item in read_items(f"{trained.data}/eval/*", schema).items}
    lines = (line.split("|") for line in (trained.data / "eval" / "part-0000.txt").read_text().splitlines())
    of_lines = {columns[5]: (columns[4].split("\x01")[0].split("\x02")[6],) for columns in lines if columns[5]}
    assert from_lines == of_lines
    (tmp_path / "paths.txt").write_text("a.jpg\n")
    with pytest.raises(DataError, match=r"paths.txt: the image model also takes 'category'"):
        read_items(str(tmp_path / "paths.txt"), schema)
    (tmp_path / "two.csv").write_text("img_path,category\na.jpg,bag\na.jpg,lamp\n")
    with pytest.raises(DataError, match=r"key 'a.jpg' has category 'lamp' here and 'bag' before; .*--key_column"):
        read_items(str(tmp_path / "two.csv"), schema)
    (tmp_path / "none.csv").write_text("img_path\na.jpg\n")
    with pytest.raises(DataError, match="no column 'category'"):
        read_items(str(tmp_path / "none.csv"), schema)
    number = replace(schema, fields=tuple(replace(f, dtype="int64", default="0") for f in schema.fields))
    (tmp_path / "odd.csv").write_text("img_path,category\na.jpg,bag\n")
    with pytest.raises(DataError, match="row 1: category: 'bag' is not a valid int64"):
        read_items(str(tmp_path / "odd.csv"), number)


def test_search_takes_the_category_of_the_picture(trained, capsys):
    schema = read_header(str(trained.folder / "image"), "image").schema
    row = next(row for row in trained.rows if row["img_path"] and ";" not in row["img_path"])
    picture = trained.data / row["img_path"]
    search = ["search", "--store", trained.store, "--img_model_dir", trained.folder / "image", "--image", picture]
    if not schema.category:
        run(*search)
        run(*search, "--field", "category=bag", expect=1)
        assert "--field category: the image model takes no such field" in capsys.readouterr().err
        return
    run(*search, expect=1)
    assert "the image model also takes 'category'; give it with --field category=VALUE" in capsys.readouterr().err
    run(*search, "--field", f"category={row['category']}")
    (first,) = [words for words in map(str.split, capsys.readouterr().out.splitlines()) if words[0] == "1"]
    assert float(first[1]) == pytest.approx(1.0, abs=1e-5)
