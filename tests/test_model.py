"""The whole network against NumPy float64, and what must not depend on how a batch is arranged."""

import numpy as np
import pytest
import tensorflow as tf
from model_helpers import make_model, make_pipeline, random_batch, use_tiny_backbone
from network_reference import (
    BN,
    BOTTOM,
    FULL,
    HIGHWAY,
    MIXED,
    NETWORKS,
    Reference,
    arrays,
    assert_same,
    numpy,
    randomise,
)

from easyrec_mm.data.batch import Batch
from easyrec_mm.runs.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("tiny_backbone")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Pipeline and model with every part, for tests that leave its weights alone."""
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        pipeline = make_pipeline(tmp_path_factory.mktemp("full"), FULL)
        return pipeline, randomise(make_model(pipeline))


# The forward pass


@pytest.mark.parametrize("network", NETWORKS)
def test_forward_pass(tmp_path, network):
    pipeline = make_pipeline(tmp_path, NETWORKS[network])
    model = randomise(make_model(pipeline))
    batch = random_batch(pipeline.schema, MIXED)
    reference = Reference(arrays(model), pipeline)
    expected = reference.outputs(batch)
    assert_same(numpy(model.predict(batch)), expected)
    assert list(expected) == [name for task in pipeline.schema.tasks for name in task.output_names]
    # The layers are alive: samples differ.
    assert all(value.std() > 1e-2 for value in reference.logits(batch).values())


WIDE = """
feature_groups { group_name: "wide" wide_deep: WIDE wide_regularization: 0.3 feature_names: ["user", "tags"] }
feature_groups { group_name: "both" wide_deep: WIDE wide_regularization: 0.7 feature_names: "user_x_age" }
"""


def test_wide_features_add_to_the_logits_and_are_regularised_by_themselves(tmp_path):
    pipeline = make_pipeline(tmp_path, f"{HIGHWAY} {BOTTOM} {BN} l2_regularization: 0", WIDE)
    model = randomise(make_model(pipeline))
    batch = random_batch(pipeline.schema, MIXED)
    reference = Reference(arrays(model), pipeline)
    assert_same(numpy(model.predict(batch)), reference.outputs(batch))
    # click, watch, star (4 classes), share, focal
    assert model.tables()["embedding/user_wide"].shape == (12, 8)
    columns = reference.columns(batch.features)
    expected = sum(
        0.5 * factor * (columns[name] ** 2).sum(axis=1).mean()
        for name, factor in (("user_wide", 0.3), ("tags_wide", 0.3), ("user_x_age_wide", 0.7))
    )
    assert float(model.losses(batch)["embedding_regularization"]) == pytest.approx(expected, rel=1e-5)


def test_what_wide_features_add_is_nothing_at_first(tmp_path):
    model = make_model(make_pipeline(tmp_path, f"{BOTTOM} {BN}", WIDE, image=False))
    assert not np.any(model.tables()["embedding/user_wide"])


def test_forward_pass_without_pictures(tmp_path):
    pipeline = make_pipeline(tmp_path, f"{BOTTOM} {BN}", image=False)
    model = randomise(make_model(pipeline))
    assert model.image is None
    assert not any(name.startswith("image/") for name in model.named_variables())
    batch = random_batch(pipeline.schema)
    assert batch.num_images == 0
    assert_same(numpy(model.predict(batch)), Reference(arrays(model), pipeline).outputs(batch))


def test_forward_pass_from_a_checkpoint(full, tmp_path):
    """The names in a checkpoint are enough to serve the model without this project."""
    pipeline, model = full
    path = Checkpoints(str(tmp_path)).save(1, {name: v.value for name, v in model.named_variables().items()})
    reader = tf.train.load_checkpoint(path)
    weights = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    batch = random_batch(pipeline.schema, MIXED)
    assert_same(numpy(model.predict(batch)), Reference(weights, pipeline).outputs(batch))


def test_prediction_function(full):
    pipeline, model = full
    batch = random_batch(pipeline.schema, MIXED)
    spec = Batch(*(tf.nest.map_structure(tf.type_spec_from_value, tuple(batch))))
    function = model.predictions.function(spec)
    assert model.predictions.function(spec) is function
    assert_same(numpy(function(batch)), numpy(model.predict(batch)))


def test_training_mode_uses_the_batch_and_moves_the_averages(tmp_path):
    pipeline = make_pipeline(tmp_path, NETWORKS["before bottom"])
    model = randomise(make_model(pipeline))
    batch = random_batch(pipeline.schema)
    before, inference = arrays(model), numpy(model.predict(batch))
    training, _ = model.logits(batch, training=True)
    assert np.abs(training["click"][:, 0] - inference["logits_click"]).max() > 1e-3
    after = arrays(model)
    columns = np.concatenate(list(Reference(before, pipeline).columns(batch.features).values()), axis=1)
    expected = 0.99 * before["rec/features_bn/moving_mean"] + 0.01 * columns.mean(axis=0)
    np.testing.assert_allclose(after["rec/features_bn/moving_mean"], expected, rtol=1e-5, atol=1e-6)
    for name, value in after.items():
        assert (value != before[name]).any() == ("moving_" in name), name


# Each distinct picture goes through the tower once


def naive(batch):
    """The batch with a picture of its own for every sample."""
    pixels = tf.gather(batch.pixels, batch.sample_image)
    return batch._replace(pixels=pixels, sample_image=tf.range(batch.num_samples))


def test_embed_once_equals_embed_every_sample(full):
    pipeline, model = full
    for sample_image in ((0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3), MIXED, (0,), (1, 0)):
        batch = random_batch(pipeline.schema, sample_image)
        assert_same(numpy(model.predict(batch)), numpy(model.predict(naive(batch))))


# A batch norm behind the pictures lets their gradients cancel out over the batch: rounding errors count for more.
@pytest.mark.parametrize(("network", "tolerance"), [("no batch norm", 1e-5), ("experts after bottom", 2e-4)])
@pytest.mark.parametrize("sample_image", [(0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3), (2, 0, 1, 1, 2, 0)])
def test_embed_once_has_the_gradients_of_embed_every_sample(tmp_path, network, tolerance, sample_image):
    """In training with groups of one size, so that the statistics of the pictures' batch norms are the same."""
    pipeline = make_pipeline(tmp_path, NETWORKS[network], model="embedding_regularization: 0.01")
    model = randomise(make_model(pipeline))
    batch = random_batch(pipeline.schema, sample_image)
    variables = {name: v.value for name, v in model.named_variables().items() if v.trainable}

    def gradients(batch):
        with tf.GradientTape() as tape:
            tape.watch(list(variables.values()))
            loss = tf.add_n(list(model.losses(batch).values()))
        derivatives = tape.gradient(loss, variables)
        return float(loss), {name: tf.convert_to_tensor(gradient).numpy() for name, gradient in derivatives.items()}

    loss, once = gradients(batch)
    naive_loss, every = gradients(naive(batch))
    assert loss == pytest.approx(naive_loss, rel=1e-5)
    assert once.keys() == variables.keys()
    # The gradient of a bias before a batch norm is 0, but for rounding errors: small beside all others.
    largest = max(np.abs(gradient).max() for gradient in every.values())
    for name, gradient in every.items():
        limit = tolerance * np.abs(gradient).max() + 1e-6 * largest
        np.testing.assert_allclose(once[name], gradient, rtol=0, atol=limit, err_msg=name)
    assert np.abs(once["image/backbone/conv/kernel"]).max() > 1e-4


def test_the_image_tower_gets_distinct_pictures(full, monkeypatch):
    pipeline, model = full
    tower, shapes = model.image, []

    def spy(pixels, *args, **kwargs):
        shapes.append(tuple(pixels.shape))
        return tower(pixels, *args, **kwargs)

    monkeypatch.setattr(model, "image", spy)
    model.predict(random_batch(pipeline.schema, MIXED))
    assert shapes == [(4, 32, 32, 3)]


def test_permuting_samples_permutes_outputs(full):
    pipeline, model = full
    batch = random_batch(pipeline.schema, MIXED)
    order = np.random.default_rng(1).permutation(len(MIXED))
    permuted = batch._replace(
        features={name: tf.gather(value, order) for name, value in batch.features.items()},
        sample_image=tf.gather(batch.sample_image, order),
    )
    expected = {name: value[order] for name, value in numpy(model.predict(batch)).items()}
    assert_same(numpy(model.predict(permuted)), expected)


def test_permuting_pictures_changes_nothing(full):
    pipeline, model = full
    batch = random_batch(pipeline.schema, MIXED)
    order = np.array([2, 0, 3, 1])
    place = tf.constant(np.argsort(order), tf.int32)
    permuted = batch._replace(pixels=tf.gather(batch.pixels, order), sample_image=tf.gather(place, batch.sample_image))
    assert_same(numpy(model.predict(permuted)), numpy(model.predict(batch)))
