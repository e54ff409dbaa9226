"""A step of the image tower, recomputed, in micro batches or without pictures, against the plain one."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from image_tower_helpers import (
    CATEGORIES,
    CATEGORY,
    PICTURES,
    SHAPE,
    D,
    conv_backbone,
    deit_backbone,
    dinov3_backbone,
    make_tower,
    vit_backbone,
)

from easyrec_mm.network.layers import backbone_parts, image_tower
from easyrec_mm.network.layers.dnn import DNN


def steps(tower, may_be_empty=False):
    """A function of pictures: loss, gradients by variable, and all variables after one step in training from here."""
    variables = [v for v in tower.trainable_variables if "seed" not in v.path]

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, *SHAPE]), tf.TensorSpec([None], tf.int64)])
    def run(pictures, category):
        with tf.GradientTape() as tape:
            vectors = tower(pictures, category, training=True, may_be_empty=may_be_empty)
            loss = tf.reduce_sum(tf.square(vectors) * tf.range(1.0, D + 1))
        return loss, tape.gradient(loss, [v.value for v in variables])

    def step(pictures):
        before = [v.numpy() for v in tower.variables]
        loss, gradients = run(pictures, CATEGORY[: len(pictures)])
        after = [v.numpy() for v in tower.variables]
        for variable, value in zip(tower.variables, before, strict=True):
            variable.assign(value)
        return loss.numpy(), gradients, after

    return step


def assert_same_gradients(actual, expected, rtol=1e-5):
    """Relative to the largest number of all: a bias of keys has none, but for rounding."""
    largest = max(np.abs(tf.convert_to_tensor(g)).max() for g in expected if g is not None)
    for gradient, other in zip(actual, expected, strict=True):
        assert (gradient is None) == (other is None)
        if other is not None:
            gradient, other = tf.convert_to_tensor(gradient), tf.convert_to_tensor(other)
            np.testing.assert_allclose(gradient, other, rtol=rtol, atol=rtol * largest)


def assert_same_steps(step, expected_step, rtol=2e-5):
    loss, gradients, after = step(PICTURES)
    expected_loss, expected_gradients, expected_after = expected_step(PICTURES)
    np.testing.assert_allclose(loss, expected_loss, rtol=rtol)
    assert_same_gradients(gradients, expected_gradients, rtol)
    for actual, expected in zip(after, expected_after, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol)


def assert_same_training(tower, other):
    """The two towers have the same variables, in the same order."""
    assert [v.shape for v in tower.variables] == [v.shape for v in other.variables]
    for v, value in zip(tower.variables, other.variables, strict=True):
        v.assign(value)
    assert_same_steps(steps(tower), steps(other))


@pytest.fixture
def recomputed(monkeypatch):
    """How many parts were computed by `recompute`."""
    calls = []

    def counted(function, *inputs):
        calls.append(function)
        return recompute(function, *inputs)

    recompute = image_tower.recompute
    for module in (image_tower, backbone_parts):
        monkeypatch.setattr(module, "recompute", counted)
    return calls


@pytest.mark.parametrize(
    ("build", "options", "number"),
    [
        (functools.partial(conv_backbone, dropout=0.3), {}, 3),
        (conv_backbone, {**CATEGORIES, "attention_places": "EACH_BLOCK"}, 4),
        (functools.partial(vit_backbone, dropout=0.3), {"pooling": "CLS_TOKEN", "lora_rank": 2}, 2),
        (dinov3_backbone, {}, 2),
        (deit_backbone, {}, 2),
    ],
    ids=["conv", "attention", "vit", "dinov3", "deit"],
)
def test_rematerialized_step_is_the_plain_one(recomputed, build, options, number):
    """Loss, gradients, averages of batch norm, states of dropout; each stage or block computed again."""
    plain = make_tower(build(), **options)
    tower = make_tower(build(), rematerialize=True, **options)
    assert_same_training(tower, plain)
    assert len(recomputed) == number
    # Where nothing is trained there is nothing to compute again.
    recomputed.clear()
    np.testing.assert_allclose(tower(PICTURES, CATEGORY), plain(PICTURES, CATEGORY), rtol=1e-5, atol=1e-6)
    tower.train_last_stages(0)
    tower(PICTURES, CATEGORY, training=True)
    assert not recomputed


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (functools.partial(conv_backbone, batch_norm=False), {**CATEGORIES, "pooling": "GEM"}),
        pytest.param(
            vit_backbone,
            {},
        ),
    ],
    ids=["conv", "vit"],
)
def test_step_in_micro_batches_is_the_plain_one(build, options):
    assert_same_training(make_tower(build(), micro_batch=4, **options), make_tower(build(), **options))


def test_rematerialized_step_in_micro_batches():
    options = {**CATEGORIES, "micro_batch": 4}
    build = functools.partial(conv_backbone, dropout=0.3)
    assert_same_training(make_tower(build(), rematerialize=True, **options), make_tower(build(), **options))


@pytest.mark.parametrize("options", [{}, {"micro_batch": 4, "rematerialize": True}], ids=["plain", "again"])
def test_gradients_of_category_tables_are_rows(options):
    tower = make_tower(conv_backbone(), **CATEGORIES, **options)
    tables = {id(table) for table in tower.category_tables().values()}
    _, gradients, _ = steps(tower)(PICTURES)
    table_gradients = [
        gradient for v, gradient in zip(tower.trainable_variables, gradients, strict=True) if id(v) in tables
    ]
    assert len(table_gradients) == 2
    for gradient in table_gradients:
        assert isinstance(gradient, tf.IndexedSlices)
        np.testing.assert_array_equal(gradient.indices, CATEGORY)


# No pictures


@pytest.mark.parametrize(
    "options",
    [{}, {"rematerialize": True}, {**CATEGORIES, "rematerialize": True, "micro_batch": 4}],
    ids=["plain", "recomputed", "in slices"],
)
def test_a_batch_without_pictures(options):
    """No vectors, no gradients, no change of averages; with pictures all is as ever."""
    tower = make_tower(conv_backbone(), DNN([5, D], dropout=[0.2, 0.0]), **options)
    no_pictures = np.zeros([0, *SHAPE], np.float32)
    assert tower(no_pictures, CATEGORY[:0], may_be_empty=True).shape == (0, D)
    step = steps(tower, may_be_empty=True)
    before = [v.numpy() for v in tower.variables]
    loss, gradients, after = step(no_pictures)
    assert loss == 0
    for gradient in gradients:
        assert gradient is None or not tf.convert_to_tensor(gradient).numpy().any()
    for v, value, then in zip(tower.variables, before, after, strict=True):
        if "seed" not in v.path:
            np.testing.assert_array_equal(then, value, err_msg=v.path)
    assert_same_steps(step, steps(tower))
