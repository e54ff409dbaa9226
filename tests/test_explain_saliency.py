"""Saliency equals formulas in NumPy, and shows where in a picture that lies which raises the click."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from model_helpers import make_model, make_pipeline, random_batch, use_tiny_backbone
from network_reference import Reference, arrays, randomise
from numpy.lib.stride_tricks import sliding_window_view

from easyrec_mm.explain.saliency import overlay, saliency
from easyrec_mm.network.layers.backbones import BACKBONES, MINUS_ONE_TO_ONE, Entry

NETWORK = """
img_model { num_classes: 6 %s } bottom_dnn { hidden_units: [8] use_bn: false activation: "tanh" }
task_towers { tower_name: "click" label_name: "click" dnn { hidden_units: [6] use_bn: false } }
task_towers { tower_name: "star" label_name: "stars" num_class: 4 }
"""


def explained(folder, more=""):
    pipeline = make_pipeline(folder, NETWORK % more)
    model = randomise(make_model(pipeline))
    batch = random_batch(pipeline.schema)
    return pipeline, model, {name: value[:1] for name, value in batch.features.items()}, batch.pixels.numpy()


def derivative(function, x, step=1e-5):
    """Of a number by each element of `x`, by central differences."""
    result = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[place] += step
        behind[place] -= step
        result[place] = (function(ahead) - function(behind)) / (2 * step)
    return result


@pytest.mark.parametrize(("task", "class_index"), [("click", 0), ("star", 1)])
@pytest.mark.parametrize("trained", ["ALL", "NONE"])
def test_of_a_convolutional_tower_it_is_grad_cam(tmp_path, monkeypatch, task, class_index, trained):
    use_tiny_backbone(monkeypatch)
    pipeline, model, features, pixels = explained(tmp_path)
    model.train_part(trained)
    result = saliency(model, features, pixels[:1], 0, task, class_index)
    reference = Reference(arrays(model), pipeline)
    x = (pixels[:1].astype(np.float64) - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    windows = sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2]
    x = np.einsum("uhwcij,ijcf->uhwf", windows, reference.w["image/backbone/conv/kernel"])
    feature_map = np.maximum(reference.batch_norm("image/backbone/bn", x, 1e-5), 0)
    columns = reference.columns(features)
    joined = np.concatenate([columns[f.name] for f in pipeline.schema.features], axis=1)
    joined = reference.batch_norm("rec/features_bn", joined)

    def logit(pooled):
        vector = reference.dense("image/projection", pooled[None])
        network = reference.network
        x = reference.dnn(network.bottom_dnn, "rec/bottom_dnn", np.concatenate([joined, vector], axis=1))
        if task == "click":
            x = reference.dnn(network.task_towers[0].dnn, "rec/tower_click/dnn", x)
        return reference.dense(f"rec/tower_{task}/output", x)[0, class_index]

    pooled = feature_map[0].mean(axis=(0, 1))
    # The gradient of a place is that of the mean, divided by the number of places; so is its mean over the places.
    weights = derivative(logit, pooled) / feature_map[0, ..., 0].size
    expected = np.maximum((feature_map[0] * weights).sum(axis=-1), 0)
    assert result.method == "Grad-CAM"
    assert result.logit == pytest.approx(logit(pooled), rel=1e-4)
    assert expected.max() > 0
    np.testing.assert_allclose(result.maps[0], expected, rtol=1e-3, atol=1e-6)


def use_small_vit(patch):
    def build(shape):
        import keras_hub

        return keras_hub.models.ViTBackbone(
            image_shape=shape, patch_size=8, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=16
        )

    patch.setitem(BACKBONES, "ViT-Tiny", Entry(build, MINUS_ONE_TO_ONE))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["AVG", "CLS_TOKEN"])
def test_of_a_transformer_it_is_what_a_token_adds_that_is_unlike_the_mean(tmp_path, monkeypatch, pooling):
    use_small_vit(monkeypatch)
    _, model, features, pixels = explained(tmp_path, f'model_name: "ViT-Tiny" pooling: {pooling}')
    tower, item = model.image_side()
    block = tower.stages[-1].layers[0]
    call = block.call

    def logits(token, share):
        """With one of the tokens that enter the last block moved from the mean of the patches, by a share."""
        is_moved = np.arange(17).reshape(1, 17, 1) == token

        def moved(x, *args, **kwargs):
            mean = tf.reduce_mean(x[:, 1:], axis=1, keepdims=True)
            return call(x + share * is_moved * (x - mean), *args, **kwargs)

        block.call = moved
        try:
            vectors = item(tower(pixels[:1], tf.zeros([1], tf.int64)), tf.constant([True]))
            return model.rec(features, vectors)[0]["star"][0].numpy()
        finally:
            block.call = call

    changes = np.stack([(logits(token, 0.05) - logits(token, -0.05)) / 0.1 for token in range(1, 17)])  # [T, classes]
    assert (changes.max(axis=0) > 1e-4).any()
    for class_index in range(4):
        result = saliency(model, features, pixels[:1], 0, "star", class_index)
        assert result.method == "gradient x token"
        assert result.maps[0].shape == (4, 4)
        expected = np.maximum(changes[:, class_index], 0)
        np.testing.assert_allclose(result.maps[0].ravel(), expected, atol=0.02 * np.abs(changes).max())


def test_of_other_towers_it_is_the_gradient_of_pixels(tmp_path):
    pipeline = make_pipeline(tmp_path, NETWORK % 'model_name: "None"')
    model = randomise(make_model(pipeline))
    batch = random_batch(pipeline.schema)
    features = {name: value[:1] for name, value in batch.features.items()}
    pixels = batch.pixels.numpy()[:1]
    result = saliency(model, features, pixels, 0, "click")
    assert result.method == "gradient of pixels"
    tower, item = model.image_side()

    def logit(colour):
        shifted = tf.constant(pixels.astype(np.float32) + colour.astype(np.float32))
        vectors = item(tower(shifted, tf.zeros([1], tf.int64)), tf.constant([True]))
        return float(model.rec(features, vectors)[0]["click"][0, 0])

    # Of the mean colour: each pixel moves it by its share.
    expected = np.abs(derivative(logit, np.zeros(3), step=1.0)).sum() / (32 * 32)
    np.testing.assert_allclose(result.maps[0], np.full((14, 14), expected), rtol=0.02)


def _bright_spots(shape):
    """Answers to bright pixels, each place for itself."""
    inputs = keras.Input((None, None, shape[2]))
    x = keras.layers.AveragePooling2D(4)(inputs)
    return keras.Model(inputs, keras.layers.Conv2D(3, 1, use_bias=False, activation="relu", name="conv")(x))


def test_the_place_that_raises_the_click_is_found_in_each_picture_of_an_item(tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "ResNet-18", Entry(partial(_bright_spots), MINUS_ONE_TO_ONE))
    pipeline = make_pipeline(tmp_path, NETWORK % 'image_separator: ";" image_pooling: ATTENTION')
    model = make_model(pipeline)
    for name, variable in model.named_variables().items():
        if name.endswith("kernel"):  # all that is brighter raises the logit
            variable.assign(np.abs(variable.numpy()) + 0.1)
    features = {name: value[:1] for name, value in random_batch(pipeline.schema).features.items()}
    pixels = np.full((2, 32, 32, 3), 30, np.uint8)
    pixels[0, 4:8, 24:28] = 250
    pixels[1, 20:24, 8:12] = 250
    result = saliency(model, features, pixels, 0, "click")
    places = [np.unravel_index(of_picture.argmax(), of_picture.shape) for of_picture in result.maps]
    assert places == [(1, 6), (5, 2)]
    shown = overlay(pixels[0], result.maps[0]).astype(int)
    assert shown.shape == (32, 32, 3)
    most = np.unravel_index((shown[..., 1] - shown[..., 2]).argmax(), (32, 32))
    assert 4 <= most[0] < 8 and 24 <= most[1] < 28  # noqa: PT018
    assert (shown[16:, :16] == 30).all()
    assert (overlay(pixels[0], np.zeros((8, 8), np.float32)) == pixels[0]).all()
