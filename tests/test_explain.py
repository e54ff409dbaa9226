"""What explanations are made of: chosen samples, vectors of items, the rec network alone; ablation, neighbours, map."""

import shutil
from dataclasses import replace
from functools import cached_property

import numpy as np
import pytest
import tensorflow as tf
from every_feature import write_data
from model_helpers import make_pipeline
from network_reference import randomise
from sklearn.metrics import log_loss, roc_auc_score
from training_helpers import Training, assert_same_values, optimizer, spy_on_loading, use_backbone_of_three_stages

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.data.picture_reader import picture_reader
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.explain import untrained
from easyrec_mm.explain.ablation import MEAN_PICTURE, OTHER_PICTURE, Pictures, ablate, another_item, most_samples
from easyrec_mm.explain.attribution import Logit, attribute
from easyrec_mm.explain.neighbours import neighbours_of, shared_share
from easyrec_mm.explain.path import VectorPath, ends_of, logits_at, mean_baseline
from easyrec_mm.explain.picture_map import place_items
from easyrec_mm.explain.pictures import TILE, embed_items, tile
from easyrec_mm.explain.rec_part import RecPart, feature_sets
from easyrec_mm.explain.samples import Limits, explained_plan, read_samples
from easyrec_mm.explain.untrained import NoUntrainedModelError, untrained_model
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.schema import Attention

EVALUATION = 'eval_config { metrics_set { auc {} } metrics_set { log_loss {} } } model_dir: "'
POOLED = 'image_separator: ";" image_pooling: ATTENTION no_image_vector: true'


class Case:
    """A config on a file of the training data, with random weights."""

    def __init__(self, data, folder, file="one.txt", img_model="", batch_size=4, more=""):
        changes = {'model_dir: "': EVALUATION, "batch_size: 4": f"batch_size: {batch_size}"}
        if more:
            changes["l2_regularization: 0"] = more
        self.pipeline = Training(data, folder, img_model, file=file, changes=changes).pipeline
        self.config, self.schema = self.pipeline.config, self.pipeline.schema
        self.data = self.config.data_config

    @cached_property
    def inputs(self):
        fields = (*explained_plan(self.config, self.schema).fields, "item")
        path = self.config.train_input_path
        return Input(self.data, self.schema, path, "train_input_path", BadRecords(None, 1.0), kept_fields=fields)

    def read(self, limits=None, **settings):
        plan = explained_plan(self.config, self.schema)
        return read_samples(self.inputs, self.schema, plan, limits or Limits(), "item", **settings), plan

    def model(self):
        return randomise(MultimodalModel(self.config, self.schema))

    def loader(self):
        return PictureLoader(self.schema.image, picture_reader(self.data))


@pytest.fixture(scope="module", autouse=True)
def _three_stages():
    with pytest.MonkeyPatch.context() as patch:
        use_backbone_of_three_stages(patch)
        yield


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    return Case(data, tmp_path_factory.mktemp("one"))


def samples_of(case, model):
    """Outputs and shown vectors of all samples as predictions compute them: from their own batches."""
    outputs, vectors = [], []
    for item in case.inputs.batches():
        batch = item.batch
        outputs.append({name: value.numpy() for name, value in model.predict(batch).items()})
        shown = model.image_side()[1](model.image_vectors(batch), batch.images.has_picture).numpy()
        vectors.append(shown[batch.sample_image.numpy()])
    return {name: np.concatenate([o[name] for o in outputs]) for name in outputs[0]}, np.concatenate(vectors)


def test_all_samples_and_items_are_read_without_loading_a_picture(one, monkeypatch):
    loaded = spy_on_loading(monkeypatch)
    read, _ = one.read(asked=[3, 20])
    assert set(loaded) == set()
    assert (read.num_samples, len(read.samples), read.num_items) == (24, 24, 5)
    assert sorted(item.paths for item in read.items) == [(f"{i}.png".encode(),) for i in range(5)]
    assert read.asked.number.tolist() == [3, 20]
    batches = [item.batch for item in one.inputs.batches()]
    price = np.concatenate([batch.features["price"].numpy() for batch in batches])
    np.testing.assert_array_equal(read.samples.features["price"], price[read.samples.number])
    np.testing.assert_array_equal(read.asked.features["price"], price[[3, 20]])
    clicks = np.concatenate([batch.labels["click"].numpy() for batch in batches])
    np.testing.assert_array_equal(read.samples.labels["click"], clicks[read.samples.number])
    # Groups of 1, 2, 3, 1, 2, 3 ... samples show the pictures 0, 1, 2, 3, 4, 0 ...
    pictures = np.repeat(np.arange(12) % 5, np.arange(12) % 3 + 1)
    of_samples = [read.items[item].paths[0] for item in read.samples.item]
    assert of_samples == [f"{pictures[number]}.png".encode() for number in read.samples.number]


@pytest.mark.slow
def test_a_choice_is_of_whole_items_and_the_same_for_any_batches(one, data, tmp_path):
    chosen = []
    for batch_size in (1, 5, 12):
        read, _ = Case(data, tmp_path, batch_size=batch_size).read(Limits(num_samples=11))
        chosen.append(read.samples.number.tolist())
    assert chosen[0] == chosen[1] == chosen[2]
    assert 0 < len(chosen[0]) <= 11
    pictures = np.repeat(np.arange(12) % 5, np.arange(12) % 3 + 1)
    of_chosen = set(pictures[chosen[0]].tolist())
    assert chosen[0] == np.flatnonzero(np.isin(pictures, list(of_chosen))).tolist()


def test_limits_hold_for_pictures_and_for_a_single_item_that_is_too_large(one):
    read, _ = one.read(Limits(num_samples=100, num_pictures=2), asked=[0, 1, 3, 4])
    assert len({read.items[item].key for item in read.samples.item}) == 2
    assert read.num_items == 5
    read, _ = one.read(Limits(num_samples=2))
    assert len(read.samples) == 2
    read, _ = one.read(num_read=8)
    assert read.num_samples == 8
    assert len(read.samples) == 8


@pytest.mark.parametrize(
    ("file", "img_model"), [("one.txt", ""), pytest.param("several.txt", POOLED, marks=pytest.mark.slow)]
)
def test_vectors_and_outputs_are_those_of_a_prediction(data, tmp_path, file, img_model):
    case = Case(data, tmp_path, file, img_model)
    model = case.model()
    read, _ = case.read()
    made = embed_items(read.items, [model], case.loader())
    outputs, vectors = samples_of(case, model)
    number = read.samples.number
    np.testing.assert_allclose(made.vectors[0][read.samples.item], vectors[number], rtol=1e-4, atol=1e-5)
    rec = RecPart(model, case.inputs.spec()).outputs(read.samples.features, made.vectors[0], read.samples.item)
    assert rec.keys() == outputs.keys()
    for name, values in outputs.items():
        np.testing.assert_allclose(rec[name], values[number], rtol=1e-4, atol=1e-5)
    if img_model:
        without = [not item.paths for item in read.items]
        assert any(without)
        np.testing.assert_array_equal(made.has_picture, ~np.array(without))


def test_pictures_that_have_vanished_are_named_and_the_rest_is_as_before(data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    case = Case(folder, tmp_path)
    model = case.model()
    read, _ = case.read()
    before = embed_items(read.items, [model], case.loader())
    (folder / "3.png").unlink()
    after = embed_items(read.items, [model], case.loader())
    assert list(after.problems) == [b"3.png"]
    assert "No such file" in after.problems[b"3.png"]
    is_there = np.array([item.paths != (b"3.png",) for item in read.items])
    np.testing.assert_array_equal(after.has_picture, is_there)
    np.testing.assert_allclose(after.vectors[0][is_there], before.vectors[0][is_there], rtol=1e-5)
    assert [bool(content) for content in after.content] == is_there.tolist()
    assert (after.tiles[~is_there] == 128).all()


@pytest.mark.slow
def test_equal_files_have_equal_contents_and_tiles_show_the_whole_picture(data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    shutil.copy(folder / "0.png", folder / "4.png")
    case = Case(folder, tmp_path)
    read, _ = case.read()
    made = embed_items(read.items, [case.model()], case.loader())
    content = {item.paths[0]: hashed for item, hashed in zip(read.items, made.content, strict=True)}
    assert content[b"0.png"] == content[b"4.png"]
    assert len(set(content.values())) == 4
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, :40] = 200
    small = tile(wide)
    assert small.shape == (TILE, TILE, 3)
    assert small[24, 4, 0] == 200
    assert small[24, 44, 0] == 0
    assert small[2, 24, 0] == 128


# --- Ablation


def only_price(model):
    """Let the logit depend on the price alone."""
    for name, variable in model.named_variables().items():
        value = variable.numpy()
        if name == "rec/tower_click/dnn/dense_0/kernel":
            value[:6] = value[7:] = 0
            variable.assign(value)


def test_without_what_the_model_does_not_use_nothing_changes(one):
    read, plan = one.read()
    model = one.model()
    only_price(model)
    made = embed_items(read.items, [model], one.loader())
    rec = RecPart(model, one.inputs.spec())
    result = ablate(rec, read.samples, Pictures(made.vectors[0], made.has_picture), plan)
    by_name = {change.name: change.differences for change in result.changes}
    assert list(by_name) == [MEAN_PICTURE, OTHER_PICTURE, "user", "item", "price"]
    for name, differences in by_name.items():
        auc = differences["auc_click"]
        assert (max(abs(auc.value), abs(auc.low), abs(auc.high)) < 1e-12) == (name != "price")
    # Of price: the mean over permutations of sklearn's metrics of the model's own outputs.
    labels = read.samples.labels["click"]
    expected = {"auc_click": [], "log_loss_click": []}
    for repeat in range(result.num_repeats):
        order = np.random.default_rng([0, repeat, 2]).permutation(24)
        features = read.samples.features | {"price": tf.gather(read.samples.features["price"], order)}
        probs = rec.outputs(features, made.vectors[0], read.samples.item)["probs_click"]
        expected["auc_click"].append(roc_auc_score(labels, probs))
        expected["log_loss_click"].append(log_loss(labels, probs.astype(np.float64)))
    for name, values in expected.items():
        change = by_name["price"][name]
        assert change.value == pytest.approx(np.mean(values) - result.values[name], rel=1e-5)
        assert change.low <= change.value <= change.high
    assert (result.num_samples, result.num_clusters, result.num_replicates) == (24, 5, 200)


def test_pictures_are_replaced_by_their_mean_and_by_those_of_others(one):
    read, plan = one.read()
    model = one.model()
    made = embed_items(read.items, [model], one.loader())
    vectors, labels = made.vectors[0], read.samples.labels["click"]
    rec = RecPart(model, one.inputs.spec())
    result = ablate(rec, read.samples, Pictures(vectors, made.has_picture), plan, seed=3)
    mean = vectors[read.samples.item].mean(axis=0)
    other = another_item(made.has_picture, 3)
    for change, replaced in zip(result.changes[:2], (np.tile(mean, (5, 1)), vectors[other]), strict=True):
        probs = rec.outputs(read.samples.features, replaced, read.samples.item)["probs_click"].astype(np.float64)
        expected = log_loss(labels, probs) - result.values["log_loss_click"]
        assert change.differences["log_loss_click"].value == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert abs(expected) > 1e-3


def test_another_item_is_never_the_same_and_items_without_pictures_stay():
    has_picture = np.random.default_rng(0).random(50) < 0.8
    for seed in range(5):
        other = another_item(has_picture, seed)
        assert (other[~has_picture] == np.flatnonzero(~has_picture)).all()
        assert sorted(other) == list(range(50))
        assert (other[has_picture] != np.flatnonzero(has_picture)).all()
        assert has_picture[other[has_picture]].all()


def test_features_that_stand_for_one_thing_change_together(tmp_path):
    schema = make_pipeline(tmp_path, image=False).schema
    user = next(feature for feature in schema.features if feature.name == "user")
    wide = replace(user, name="user_wide", is_wide=True, is_joined=False)
    attention = Attention("history", ("user",), ("age", "tags"), 4, False)
    schema = replace(schema, features=(*schema.features, wide), attentions=(attention,))
    assert feature_sets(schema) == {
        "user": ("user", "user_wide"),
        "price": ("price",),
        "age + tags": ("age", "tags"),
        "user_x_age": ("user_x_age",),
    }


def test_more_parts_leave_fewer_samples(one, data, tmp_path):
    _, plan = one.read()
    full = most_samples(plan, one.schema)
    config = type(one.config)()
    config.CopyFrom(one.config)
    config.eval_config.bootstrap.num_replicates = 2000
    assert most_samples(explained_plan(config, one.schema), one.schema) < full


# --- Every kind of feature


@pytest.mark.slow
def test_every_kind_of_feature_is_read_replaced_and_attributed(tmp_path):
    """Sequences, attentions of which one has the picture as its key, vectors from a store, lists with weights."""
    write_data(tmp_path)
    pipeline = load_pipeline(str(tmp_path / "x.config"))
    config, schema = pipeline.config, pipeline.schema
    config.eval_config.metrics_set.add().auc.SetInParent()
    config.eval_config.bootstrap.num_replicates = 10
    model = randomise(MultimodalModel(config, schema))
    plan = explained_plan(config, schema)
    records = BadRecords(None, 1.0)
    inputs = Input(config.data_config, schema, config.train_input_path, "", records, kept_fields=plan.fields)
    read = read_samples(inputs, schema, plan, Limits())
    samples = read.samples
    loader = PictureLoader(schema.image, picture_reader(config.data_config))
    made = embed_items(read.items, [model], loader)
    rec = RecPart(model, inputs.spec())
    result = ablate(rec, samples, Pictures(made.vectors[0], made.has_picture), plan)
    assert "seen + seen_categories" in {change.name for change in result.changes}
    assert all(np.isfinite(change.differences["auc_click"].value) for change in result.changes)
    # Attributions: their path ends at the prediction, and they add up.
    vectors = made.vectors[0][samples.item]
    ends = ends_of(model, samples.features)
    logits = rec.outputs(samples.features, made.vectors[0], samples.item)["logits_click"]
    at_end = logits_at(model, ends, ends.numbers, tf.constant(vectors))["click"][:, 0]
    np.testing.assert_allclose(at_end, logits, rtol=1e-4, atol=1e-5)
    baseline = mean_baseline(model, samples.features, len(samples))
    path = VectorPath(vectors[:8], vectors.mean(axis=0))
    attributions = attribute(model, samples.rows(list(range(8))), path, baseline, Logit("click", [0] * 8))
    assert attributions.is_exact.all()
    assert (np.abs(attributions.values).max(axis=0) > 0).all()


# --- The model before training


@pytest.mark.slow
def test_the_untrained_model_is_the_one_that_the_training_began_with(data, tmp_path, monkeypatch):
    training = Training(data, tmp_path / "a", train="num_steps: 2 save_checkpoints_steps: 2", optimizers=optimizer())
    config, schema = training.run().pipeline.config, training.pipeline.schema
    model, origin = untrained_model(config, schema)
    assert origin == "random weights, by the seed"
    values = {name: v.numpy() for name, v in model.named_variables().items()}
    assert_same_values(values, training.history[0])
    assert training.changed() & {name for name in values if name.startswith("image/")}
    # A training that began with the weights of another one.
    config.train_config.fine_tune_checkpoint = f"{training.model_dir}/model.ckpt-2"
    model, origin = untrained_model(config, schema)
    assert origin == f"the weights of '{training.model_dir}/model.ckpt-2'"
    trained = {name: v for name, v in training.history[-1].items() if "seed" not in name}
    assert_same_values({name: model.named_variables()[name].numpy() for name in trained}, trained)
    config.train_config.fine_tune_checkpoint = f"{tmp_path}/gone"
    with pytest.raises(NoUntrainedModelError, match=r"what the training started from cannot be loaded: .*gone"):
        untrained_model(config, schema)
    monkeypatch.setattr(untrained, "MAX_TABLE_BYTES", 100)
    with pytest.raises(NoUntrainedModelError, match=r"another 0\.0 GiB of memory for its tables"):
        untrained_model(config, schema)


# --- Neighbours and map


def test_neighbours_are_those_by_centred_cosine_and_duplicates_are_marked():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(40, 6)) + 20).astype(np.float32)
    vectors[7] = vectors[3]
    content = [bytes([i]) for i in range(40)]
    content[9] = content[3]
    has_picture = np.arange(40) != 5
    result = neighbours_of(vectors, content, has_picture, [3, 11], 39)
    units = vectors.astype(np.float64) - vectors[has_picture].mean(axis=0, dtype=np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    for query, nearest in zip(result.queries, result.nearest, strict=True):
        cosines = units @ units[query]
        keys = [int(neighbour.key) for neighbour in nearest]
        assert sorted(keys) == sorted(set(range(40)) - {query, 5})
        np.testing.assert_allclose([n.cosine for n in nearest], cosines[keys], atol=1e-5)
        assert (np.diff([n.cosine for n in nearest]) <= 1e-6).all()
    marks = {int(n.key): n.duplicate for n in result.nearest[0] if n.duplicate}
    assert marks == {7: "same vector as the query", 9: "same content as the query"}
    assert shared_share(result, result) == 1.0


@pytest.mark.slow
def test_the_map_keeps_clusters_together_and_is_the_same_again():
    rng = np.random.default_rng(0)
    kind = np.arange(150) % 5
    vectors = (rng.normal(size=(5, 16))[kind] + 0.1 * rng.normal(size=(150, 16)) + 30).astype(np.float32)
    places = place_items(vectors)
    distances = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(150)
    assert (kind[distances.argmin(axis=1)] == kind).all()
    np.testing.assert_array_equal(places, place_items(vectors))
    assert (place_items(np.ones((9, 3), np.float32)) == 0).all()
    with pytest.raises(ValueError, match="4 items make no map"):
        place_items(vectors[:4])
