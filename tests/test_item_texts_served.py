"""Items with a text in everything behind the training: vectors, the server, explanations, check, worth and tune."""

import json
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from flow_helpers import run
from network_reference import randomise
from text_helpers import text_training, title_of, write_titles
from training_helpers import NUM_GROUPS, make_training_data, use_backbone_of_three_stages

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.data.picture_reader import picture_reader
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.embedding.image_model import PictureEmbedder
from easyrec_mm.evaluation.shown_items import ShownItems
from easyrec_mm.evaluation.tensorboard import metadata
from easyrec_mm.explain.ablation import NO_CONTENT, OTHER_CONTENT, Pictures, ablate, changed_content
from easyrec_mm.explain.attribution import PICTURE_AND_TEXT, Logit, attribute
from easyrec_mm.explain.path import VectorPath, mean_baseline
from easyrec_mm.explain.pictures import embed_items, other_contents
from easyrec_mm.explain.rec_part import RecPart
from easyrec_mm.explain.samples import Limits, explained_plan, read_samples
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.serving.openapi import document
from easyrec_mm.serving.release import ServiceOptions, ServingError, Source
from easyrec_mm.serving.service import Service
from easyrec_mm.store import open_store
from easyrec_mm.store.records import State
from easyrec_mm.tuning.texts import text_space
from easyrec_mm.worth.arms import arms_of

NO_TEXT, OTHER_TEXT = (changed_content("text", how) for how in (NO_CONTENT, OTHER_CONTENT))
GATED = "item_fusion { gated { dim: 6 } }"
METRICS = {'model_dir: "': 'eval_config { metrics_set { auc {} } metrics_set { log_loss {} } } model_dir: "'}


@pytest.fixture(scope="module", autouse=True)
def _small_backbone():
    with pytest.MonkeyPatch.context() as patch:
        use_backbone_of_three_stages(patch)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = make_training_data(tmp_path_factory.mktemp("data"))
    write_titles(folder, "none.txt")
    return folder


@pytest.fixture(scope="module")
def case(data, tmp_path_factory):
    """A config of items with a picture or none and a title or none, its model with random weights, and its input."""
    folder = tmp_path_factory.mktemp("case")
    training = text_training(
        data, folder, "dim: 4 embedding_dim: 8 hash_bucket_size: 500", GATED, file="titles_none.txt",
        img_model="no_image_vector: true", changes=METRICS,
    )  # fmt: skip
    pipeline = training.pipeline
    inputs = Input(
        pipeline.config.data_config, pipeline.schema, pipeline.config.train_input_path, "train_input_path",
        BadRecords(None, 1.0), kept_fields=(*explained_plan(pipeline.config, pipeline.schema).fields, "title"),
    )  # fmt: skip
    model = randomise(MultimodalModel(pipeline.config, pipeline.schema))
    return SimpleNamespace(
        pipeline=pipeline, config=pipeline.config, schema=pipeline.schema, inputs=inputs, model=model
    )


@pytest.fixture(scope="module")
def explained(case):
    plan = explained_plan(case.config, case.schema)
    read = read_samples(case.inputs, case.schema, plan, Limits())
    loader = PictureLoader(case.schema.image, picture_reader(case.config.data_config))
    made = embed_items(read.items, [case.model], loader)
    rec = RecPart(case.model, case.inputs.spec())
    return SimpleNamespace(plan=plan, read=read, made=made, rec=rec)


def test_the_vectors_of_explained_items_give_the_predictions_of_the_model(case, explained):
    expected = [case.model.predict(item.batch)["logits_click"].numpy() for item in case.inputs.batches()]
    samples = explained.read.samples
    outputs = explained.rec.outputs(samples.features, explained.made.vectors[0], samples.item)
    np.testing.assert_allclose(outputs["logits_click"], np.concatenate(expected)[samples.number], atol=1e-5)
    assert {item.text for item in explained.read.items} == {title_of(group) for group in range(NUM_GROUPS)}
    assert explained.made.has_other["text"].tolist() == [bool(item.text) for item in explained.read.items]


def test_texts_are_replaced_by_none_and_by_others(case, explained):
    """With as many predictions as a network has that is given these texts."""
    samples, items, made = explained.read.samples, explained.read.items, explained.made
    others = other_contents(items, case.model.schema)
    pictures = Pictures(made.vectors[0], made.has_picture, made.images, others, made.has_other)
    result = ablate(explained.rec, samples, pictures, explained.plan)
    changes = {change.name: change for change in result.changes}
    assert {changes[name].kind for name in (NO_TEXT, OTHER_TEXT)} == {"content"}
    without = case.model.parts.of_items(tf.constant(made.images), {"text": tf.constant([""] * len(items))}).numpy()
    outputs = explained.rec.outputs(samples.features, without, samples.item)
    labels, probabilities = samples.labels["click"], outputs["probs_click"].astype(np.float64)
    loss = -np.mean(labels * np.log(probabilities) + (1 - labels) * np.log(1 - probabilities))
    change = changes[NO_TEXT].differences["log_loss_click"].value
    assert change == pytest.approx(loss - result.values["log_loss_click"], abs=1e-6)
    assert changes[OTHER_TEXT].differences["log_loss_click"].value != 0


def test_attributions_of_fused_vectors_add_up(case, explained):
    samples = explained.read.samples
    vectors = explained.made.vectors[0][samples.item]
    rows = np.arange(8)
    path = VectorPath(vectors[rows], vectors.mean(axis=0))
    baseline = mean_baseline(case.model, samples.features, len(samples))
    result = attribute(case.model, samples.rows(rows), path, baseline, Logit("click", [0] * 8))
    assert result.names[-1] == PICTURE_AND_TEXT
    assert result.is_exact.all()
    assert np.abs(result.values[:, -1]).max() > 1e-3


def test_tensorboard_has_the_vectors_texts_and_weights_of_items(case):
    shown = ShownItems(case.config, case.schema)
    inputs = Input(
        case.config.data_config, case.schema, case.config.train_input_path, "train_input_path", BadRecords(None, 1.0),
        kept_fields=shown.fields,
    )  # fmt: skip
    banks = case.model.predictions.banks()
    vectors = {}
    for item in inputs.batches(banks_of=lambda step: banks):
        shown.add(item, case.model.predict(item.batch, banks))
        images = case.model.image_vectors(item.batch, banks=banks)
        of_texts = case.model.parts.encoded(item.batch.contents, False, banks)
        fused = case.model.parts.of_batch(images, of_texts, False).numpy()
        texts = item.batch.contents["text"]
        by_image = texts.values.numpy()[texts.of_image.numpy()]
        for image, has_picture in enumerate(item.batch.images.has_picture.numpy()):
            if has_picture:
                path = item.picture_path[int(item.batch.images.link_picture.numpy()[
                    list(item.batch.images.link_image.numpy()).index(image)])].decode()  # fmt: skip
                vectors[path, by_image[image].decode()] = fused[image]
    shown.finish(case.model)
    collected = shown.collected
    assert len(collected.items) == len(vectors)
    for item, vector in zip(collected.items, collected.vectors, strict=True):
        np.testing.assert_allclose(vector, vectors[item.path, item.contents["text"].decode()], atol=1e-5)
    assert "title" in metadata(collected, 1).splitlines()[0].split("\t")
    assert sum(collected.part_weights.values()) == pytest.approx(1, abs=1e-5)


def test_check_describes_texts_and_their_tower(case, capsys):
    run("check", "--pipeline_config", case.pipeline.path)
    shown = capsys.readouterr().out
    assert "texts of items: title\n  4 distinct in 12 groups; 8.3% empty\n  words: 2 to 5, median 3, " in shown
    assert "text tower: words and parts of words, 4,000 weights\n  reads at most 32 words of a text; " in shown


def test_arms_without_texts_and_the_space_of_texts(case, data, tmp_path):
    arms, left_out = arms_of(case.pipeline, ("none", "no_text", "no_content"), tmp_path / "shuffled")
    uses = {arm.name: (arm.pipeline.schema.uses_image, arm.pipeline.schema.text is not None) for arm in arms}
    expected = {"own": (True, True), "none": (False, True), "no_text": (True, False), "no_content": (False, False)}
    assert uses == expected
    (tmp_path / "alone").mkdir()
    alone = text_training(data, tmp_path / "alone", "dim: 4", image=False, file="titles_none.txt", changes=METRICS)
    arms, left_out = arms_of(alone.pipeline, (), tmp_path / "shuffled")
    assert [arm.name for arm in arms] == ["own", "no_text"]
    assert all("has no pictures" in reason for reason in left_out.values())
    entries, left_out = text_space(case.pipeline)
    names = {entry.name.removeprefix("model_config.e2e_mm_dbmtl.") for entry in entries}
    assert {"text_model.learning_rate_multiplier", "text_model.dim", "item_fusion.gated.dim"} <= names
    assert not left_out


@pytest.fixture(scope="module")
def exported(data, tmp_path_factory):
    """Exported models of a short training, and a store with the vectors of the items k0 to k5."""
    folder = tmp_path_factory.mktemp("exported")
    training = text_training(
        data, folder, "dim: 4 embedding_dim: 8 hash_bucket_size: 500", GATED, file="titles_none.txt",
        img_model="no_image_vector: true",
    )  # fmt: skip
    training.trainer.train()
    flags = [f"--{kind}_model_export_dir={folder / kind}" for kind in ("img", "rec", "total")]
    run("export", "--model_dir", training.model_dir, "--eval_input_path", f"{data}/titles_none.txt", *flags)
    (folder / "items.csv").write_text(
        "key,path,title\nk0,0.png,red shirt\nk1,,blue mug\nk2,gone.png,a lamp\nk3,1.png,\n"
    )
    return folder


def embed(exported, data, *flags):
    run("embed", "--img_model_dir", exported / "img", "--input", exported / "items.csv", "--key_column", "key",
        "--path_column", "path", "--image_root", data, "--store", f"lmdb://{exported}/store",
        "--bad_pictures", exported / "bad.jsonl", "--max_bad_share", 0.5, *flags)  # fmt: skip


@pytest.mark.slow
def test_vectors_are_stored_again_if_a_text_changes_and_computed_by_the_server(exported, data, capsys):
    embed(exported, data)
    bad = [json.loads(line) for line in (exported / "bad.jsonl").read_text().splitlines()]
    assert [(line["key"], line["path"]) for line in bad] == [("k2", "gone.png")]
    with closing(open_store(f"lmdb://{exported}/store")) as store:
        before = store.get_many(["k0", "k1", "k2", "k3"])
    assert before.states.tolist() == [State.PRESENT] * 4  # a text is enough where the picture is bad
    table = exported / "items.csv"
    table.write_text(table.read_text().replace("blue mug", "green bowl"))
    capsys.readouterr()
    embed(exported, data, "--refresh", "changed")
    assert "1 pictures embedded" in capsys.readouterr().out
    with closing(open_store(f"lmdb://{exported}/store")) as store:
        after = store.get_many(["k0", "k1", "k2", "k3"])
    changed = (before.vectors != after.vectors).any(1)
    assert changed.tolist() == [False, True, False, False]

    sample = json.loads((exported / "rec" / "sample_request.json").read_text())["instances"][0]
    assert sample["title"] == title_of(0)
    embedder = PictureEmbedder(str(exported / "img"))
    options = ServiceOptions(
        str(exported / "rec"), missing_vector="compute", image_root=str(data), picture_timeout_s=30
    )
    service = Service(options, open_store(f"lmdb://{exported}/store"), lambda fingerprint: embedder)
    fields = {name: value for name, value in sample.items() if name not in ("path", "title")}
    instances = [
        {**fields, "path": "k0"},  # in the store
        {**fields, "path": "0.png", "title": "red shirt"},  # the same item, computed
        {**fields, "path": "", "title": "green bowl"},  # as k1: a text alone
        {**fields, "title": "green bowl"},
        {**fields, "path": "", "title": " "},  # nothing
        {**fields, "path": "gone.png", "title": "a lamp"},  # as k2: its picture cannot be read
    ]
    answer = service.answer({"instances": instances})
    source = [Source(number).name for number in answer.sources]
    assert source == ["STORE", "COMPUTED", "COMPUTED", "COMPUTED", "NO_IMAGE", "COMPUTED"]
    logits = answer.outputs["logits_click"]
    assert logits[1] == pytest.approx(logits[0], abs=1e-5)
    stored = service.answer({"instances": [{**fields, "path": key} for key in ("k1", "k2")]}).outputs["logits_click"]
    np.testing.assert_allclose(logits[[2, 3, 5]], stored[[0, 0, 1]], atol=1e-5)
    kept = {wanted[0] for wanted in service.release.computed}
    assert kept == {"0.png", ""}  # what a picture that comes back would change is computed again
    candidate = document(service.release, "model")["components"]["schemas"]["Candidate"]
    assert "of which its vector is computed" in candidate["properties"]["title"]["description"]
    assert "title" not in candidate["required"]
    without = ServiceOptions(str(exported / "rec"), missing_vector="compute")
    with pytest.raises(ServingError, match="say where they may be, with --image_root"):
        Service(without, open_store(f"lmdb://{exported}/store"), lambda fingerprint: embedder)


def test_a_text_that_differs_within_a_group_or_is_not_utf_8_is_refused(case, data, tmp_path):
    first, *others = (data / "titles_none.txt").read_bytes().splitlines(keepends=True)
    differs = others[0].replace(b"\x02blue mug", b"\x02red mug", 1)
    assert differs != others[0]
    lines = [
        first.replace(b"cotton", b"\xff\xfe"),
        differs,
        others[1].replace("红色".encode(), b"x" * (1 << 20)),
        *others[2:],
    ]
    (tmp_path / "bad.txt").write_bytes(b"".join(lines))
    config = case.pipeline.path
    pipeline = load_pipeline(config)
    records = BadRecords(None, 1.0)
    inputs = Input(pipeline.config.data_config, pipeline.schema, str(tmp_path / "bad.txt"), "x", records)
    texts = {text for item in inputs.batches() for text in item.batch.contents["text"].values.numpy()}
    assert max(map(len, texts)) > 1 << 20
    assert b"\xff\xfe" not in b"".join(texts)
    assert records.counts["bad_groups"] == 2
    outputs = [case.model.predict(item.batch)["logits_click"].numpy() for item in inputs.batches()]
    assert np.isfinite(np.concatenate(outputs)).all()
