"""The whole network against NumPy float64, and what must not depend on how a batch is arranged."""

import re
from itertools import combinations

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_helpers import sigmoid
from model_helpers import CLICK, make_model, make_pipeline, random_batch, use_tiny_backbone
from numpy.lib.stride_tricks import sliding_window_view

from easyrec_mm.config.network import activation_name
from easyrec_mm.data.batch import Batch
from easyrec_mm.features.tag_feature import TagFeature
from easyrec_mm.network import precision
from easyrec_mm.network.precision import FLOAT32, MIXED_BFLOAT16
from easyrec_mm.protos.train_pb2 import Precision
from easyrec_mm.runs.checkpoint import Checkpoints


@pytest.fixture(autouse=True)
def _tiny_backbone(monkeypatch):
    use_tiny_backbone(monkeypatch)


# The network in plain NumPy: weights by name, in float64.


def softmax(x):
    z = np.exp(x - x.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


ACTIVATIONS = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh, "linear": lambda x: x}


class Reference:
    """The forward pass in inference mode, one step after the other as docs and comments describe it."""

    def __init__(self, weights, pipeline):
        self.w = {name: value.astype(np.float64) for name, value in weights.items()}
        self.network = pipeline.config.model_config.e2e_mm_dbmtl
        self.schema = pipeline.schema

    def dense(self, name, x):
        return x @ self.w[f"{name}/kernel"] + self.w[f"{name}/bias"]

    def batch_norm(self, name, x, epsilon=1e-3):
        x = (x - self.w[f"{name}/moving_mean"]) / np.sqrt(self.w[f"{name}/moving_variance"] + epsilon)
        return x * self.w[f"{name}/gamma"] + self.w[f"{name}/beta"]

    def dnn(self, config, name, x):
        for i in range(len(config.hidden_units)):
            x = self.dense(f"{name}/dense_{i}", x)
            x = self.batch_norm(f"{name}/bn_{i}", x) if config.use_bn else x
            x = ACTIVATIONS[activation_name(config.activation)](x)
        return x

    def image_vector(self, pixels):
        x = (pixels.astype(np.float64) - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
        windows = sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2]  # [U, h, w, C, 3, 3]
        x = np.einsum("uhwcij,ijcf->uhwf", windows, self.w["image/backbone/conv/kernel"])
        x = np.maximum(self.batch_norm("image/backbone/bn", x, 1e-5), 0).mean(axis=(1, 2))
        x = self.dense("image/projection", x)
        if self.network.HasField("img_dnn"):
            return self.dnn(self.network.img_dnn, "image/img_dnn", x)
        if self.network.HasField("highway_dnn"):
            x = np.maximum(self.dense("image/highway_dnn/input_projection", x), 0)
            gate = sigmoid(self.dense("image/highway_dnn/gate", x))
            return gate * np.maximum(self.dense("image/highway_dnn/transform", x), 0) + (1 - gate) * x
        return x

    def columns(self, features):
        """Feature -> its columns."""
        found = {}
        for feature in self.schema.features:
            value = features[feature.name]
            if isinstance(feature, TagFeature):
                table, weights = self.w[f"embedding/{feature.table}"], features[feature.weight_key].to_list()
                found[feature.name] = np.stack([
                    np.average(table[tags], axis=0, weights=weight) if tags else np.zeros(feature.width)
                    for tags, weight in zip(value.to_list(), weights, strict=True)
                ])  # fmt: skip
            elif feature.table:
                found[feature.name] = self.w[f"embedding/{feature.table}"][value.numpy()]
            else:
                found[feature.name] = value.numpy().astype(np.float64)
        return found

    def logits(self, batch):
        """Task name -> [S, num_class]."""
        network = self.network
        columns = self.columns(batch.features)
        wide = [columns[f.name] for f in self.schema.features if f.is_wide]
        joined = [columns[f.name] for f in self.schema.features if f.is_joined]
        if network.use_feature_bn:
            x = self.batch_norm("rec/features_bn", np.concatenate(joined, axis=1))
            joined = np.split(x, np.cumsum([part.shape[1] for part in joined])[:-1], axis=1)
        image = []
        if self.schema.uses_image:
            image = [self.image_vector(batch.pixels.numpy())[batch.sample_image.numpy()]]
        joins_first = network.image_fusion == network.BEFORE_BOTTOM
        joined += image if joins_first else []
        products = []
        if network.HasField("dot_interaction"):
            projected = [self.dense(f"rec/dot_interaction/projection_{i}", part) for i, part in enumerate(joined)]
            scale = network.dot_interaction.scale
            products = [scale * (a * b).sum(axis=1, keepdims=True) for a, b in combinations(projected, 2)]
        x = np.concatenate([*joined, *products], axis=1)
        x = self.dnn(network.bottom_dnn, "rec/bottom_dnn", x)
        x = np.concatenate([x, *([] if joins_first else image)], axis=1)
        inputs = [x] * len(network.task_towers)
        if network.num_expert:
            experts = [self.dnn(network.expert_dnn, f"rec/mmoe/expert_{e}", x) for e in range(network.num_expert)]
            gates = [softmax(self.dense(f"rec/mmoe/gate_{t}", x)) for t in range(len(inputs))]
            inputs = [sum(gate[:, e : e + 1] * expert for e, expert in enumerate(experts)) for gate in gates]
        towers = {tower.tower_name: (i, tower) for i, tower in enumerate(network.task_towers)}

        def relation(name):
            i, tower = towers[name]
            parts = [self.dnn(tower.dnn, f"rec/tower_{name}/dnn", inputs[i])]
            parts += [relation(other) for other in tower.relation_tower_names]
            return self.dnn(tower.relation_dnn, f"rec/tower_{name}/relation_dnn", np.concatenate(parts, axis=1))

        found = {name: self.dense(f"rec/tower_{name}/output", relation(name)) for name in towers}
        start = 0
        for name, logits in found.items():
            end = start + logits.shape[1]
            found[name] = logits + sum(part[:, start:end] for part in wide)
            start = end
        return found

    def outputs(self, batch):
        found = {}
        for task in self.schema.tasks:
            x = self.logits(batch)[task.name]
            if task.activation == "binary":
                found |= {f"logits_{task.name}": x[:, 0], f"probs_{task.name}": sigmoid(x[:, 0])}
            elif task.activation == "multiclass":
                found |= {
                    f"logits_{task.name}": x,
                    f"probs_{task.name}": softmax(x),
                    f"y_{task.name}": x.argmax(axis=1),
                }
            else:
                found[f"y_{task.name}"] = sigmoid(x[:, 0]) if task.activation == "sigmoid_value" else x[:, 0]
        return found


def randomise(model, seed=0):
    """New values for every float variable, so that nothing is at a neutral start; with biases that keep relu alive."""
    rng = np.random.default_rng(seed)
    for name, v in model.named_variables().items():
        if v.dtype != "float32":
            continue
        value = rng.normal(size=v.shape) / np.sqrt(max(1, np.prod(v.shape[:-1])))
        if name.startswith("embedding/"):
            value = rng.normal(size=v.shape)
        if name.endswith(("bias", "beta", "moving_variance", "gamma")):
            value = rng.uniform(0.5, 1.5, v.shape)
        v.assign(value.astype(np.float32))
    return model


def arrays(model):
    return {name: v.numpy() for name, v in model.named_variables().items()}


def numpy(outputs):
    return {name: value.numpy() for name, value in outputs.items()}


def assert_same(actual, expected, tolerance=1e-5):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


# Configs

TOWERS = """
task_towers {
  tower_name: "click" label_name: "click" dnn { hidden_units: [6, 5] use_bn: %(bn)s }
  relation_tower_names: ["watch", "star"] relation_dnn { hidden_units: 4 use_bn: %(bn)s }
}
task_towers {
  tower_name: "watch" label_name: "seconds" loss_type: L2_LOSS
  relation_tower_names: "star" relation_dnn { hidden_units: [3] activation: "tanh" use_bn: %(bn)s }
}
task_towers {
  tower_name: "star" label_name: "stars" num_class: 4 dnn { hidden_units: 5 use_bn: %(bn)s }
}
task_towers {
  tower_name: "share" label_name: "like" loss_type: SIGMOID_L2_LOSS relation_tower_names: "click"
}
task_towers {
  tower_name: "focal" label_name: "like" loss_type: BINARY_FOCAL_LOSS dnn { hidden_units: 4 activation: "tf.nn.tanh" }
}
"""
BN, NO_BN = TOWERS % {"bn": "true"}, TOWERS % {"bn": "false"}
HIGHWAY = 'img_model { num_classes: 6 } highway_dnn { input: "img" emb_size: 4 }'
IMG_DNN = "img_model { num_classes: 6 } img_dnn { hidden_units: [5, 3] }"
BOTTOM = "bottom_dnn { hidden_units: [8, 6] }"
EXPERTS = "expert_dnn { hidden_units: [5, 4] } num_expert: 3"
AFTER = "image_fusion: AFTER_BOTTOM"
NETWORKS = {
    "before bottom": f"{HIGHWAY} {BOTTOM} {BN}",
    "after bottom": f"{HIGHWAY} {BOTTOM} {AFTER} {BN}",
    "experts": f"{IMG_DNN} {BOTTOM} {EXPERTS} {BN}",
    "experts after bottom": f"{IMG_DNN} {BOTTOM} {AFTER} {EXPERTS} {NO_BN}",
    "no bottom": f"img_model {{ num_classes: 5 }} {BN}",
    "no bottom, after": f"{IMG_DNN} {AFTER} {BN}",
    "experts without bottom": f"{HIGHWAY} expert_dnn {{ hidden_units: [5] use_bn: false }} num_expert: 2 {NO_BN}",
    "no batch norm": f"{HIGHWAY} bottom_dnn {{ hidden_units: [8] use_bn: false activation: 'linear' }} {NO_BN}",
    "products": f"{HIGHWAY} {BOTTOM} dot_interaction {{ dim: 3 }} use_feature_bn: false {BN}",
    "products, after": f"{HIGHWAY} {BOTTOM} {AFTER} dot_interaction {{ dim: 3 scale: 4 }} {BN}",
    "dropout": f"{HIGHWAY} bottom_dnn {{ hidden_units: [8, 6] dropout_ratio: [0.5, 0.0] }} {BN}",
}
FULL = NETWORKS["experts"]
# Samples of three groups that share a picture, not side by side.
MIXED = (0, 2, 1, 1, 0, 2, 2, 0, 1, 3)


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
    function = model.prediction_function(spec)
    assert model.prediction_function(spec) is function
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
            loss = tf.add_n(list(model.losses(batch).values()))
        found = tape.gradient(loss, variables)
        return float(loss), {name: tf.convert_to_tensor(gradient).numpy() for name, gradient in found.items()}

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


# Losses


def cross_entropy(labels, logits):
    return np.log1p(np.exp(logits)) - labels * logits


def mean(losses, weights):
    return np.sum(losses * weights) / max(1, np.count_nonzero(weights))


def losses_of(tmp_path, network, data="", model=""):
    """Losses in inference mode, and what they are made of: labels, logits, weights, the batch, arrays by name."""
    pipeline = make_pipeline(tmp_path, f"img_model {{ num_classes: 4 }} l2_regularization: 0 {network}", model, data)
    built = randomise(make_model(pipeline))
    batch = random_batch(pipeline.schema, MIXED)
    logits = Reference(arrays(built), pipeline).logits(batch)
    losses = {name: float(value) for name, value in built.losses(batch, training=False).items()}
    return losses, {name: label.numpy() for name, label in batch.labels.items()}, logits, batch.sample_weight.numpy()


def test_losses_of_tasks_and_their_weights(tmp_path):
    network = """
      task_towers { tower_name: "click" label_name: "click" weight: 0.5 }
      task_towers { tower_name: "star" label_name: "stars" num_class: 4 weight: 3 }
      task_towers { tower_name: "watch" label_name: "seconds" loss_type: L2_LOSS }
      task_towers { tower_name: "like" label_name: "like" loss_type: SIGMOID_L2_LOSS weight: 0 }
    """
    losses, y, x, _ = losses_of(tmp_path, network)
    stars = -np.log(softmax(x["star"])[np.arange(len(MIXED)), y["stars"].astype(int)])
    assert losses == pytest.approx({
        "click": 0.5 * np.mean(cross_entropy(y["click"], x["click"][:, 0])),
        "star": 3 * np.mean(stars),
        "watch": np.mean((x["watch"][:, 0] - y["seconds"]) ** 2),
        "like": 0.0,
    }, rel=1e-5)  # fmt: skip


def test_sample_weights(tmp_path):
    """Samples of weight 0 do not count in the divisor; a tower may ignore the weights."""
    network = """
      task_towers { tower_name: "click" label_name: "click" weight: 2 }
      task_towers { tower_name: "like" label_name: "like" use_sample_weight: false }
    """
    losses, y, x, weights = losses_of(tmp_path, network, data='sample_weight: "weight"')
    assert set(weights) == {0.0, 0.5, 2.0}
    click, like = (cross_entropy(y[name], x[name][:, 0]) for name in ("click", "like"))
    expected = 2 * np.sum(weights * click) / np.sum(weights != 0)
    assert losses == pytest.approx({"click": expected, "like": np.mean(like)}, rel=1e-5)


@pytest.mark.parametrize(("inside", "outside"), [(1, 0), (3, 0.5), (0, 2), (0, 0)])
def test_task_space(tmp_path, inside, outside):
    """Weights of samples within and outside a task's space, times the sample weights."""
    network = f"""
      task_towers {{
        tower_name: "like" label_name: "like" task_space_indicator_label: "click"
        in_task_space_weight: {inside} out_task_space_weight: {outside} weight: 0.5
      }}
    """
    losses, y, x, weights = losses_of(tmp_path, network, data='sample_weight: "weight"')
    weights = weights * np.where(y["click"] > 0, inside, outside)
    expected = 0.5 * mean(cross_entropy(y["like"], x["like"][:, 0]), weights)
    assert losses == pytest.approx({"like": expected}, rel=1e-5)


def test_several_losses_of_a_tower(tmp_path):
    network = """
      task_towers {
        tower_name: "click" label_name: "click" weight: 2
        losses { loss_type: CLASSIFICATION weight: 0.25 }
        losses { loss_type: BINARY_FOCAL_LOSS weight: 4 binary_focal_loss { gamma: 1.5 alpha: 0.2 } }
        losses { loss_type: BINARY_FOCAL_LOSS }
      }
    """
    losses, y, x, _ = losses_of(tmp_path, network)
    y, x = y["click"], x["click"][:, 0]
    p = np.where(y == 1, sigmoid(x), 1 - sigmoid(x))
    focal = np.where(y == 1, 0.2, 0.8) * (1 - p) ** 1.5 * -np.log(p)
    expected = 2 * np.mean(0.25 * cross_entropy(y, x) + 4 * focal + (1 - p) ** 2 * -np.log(p))
    assert losses == pytest.approx({"click": expected}, rel=1e-5)


def test_focal_loss_as_the_only_loss(tmp_path):
    network = 'task_towers { tower_name: "click" label_name: "click" loss_type: BINARY_FOCAL_LOSS }'
    losses, y, x, _ = losses_of(tmp_path, network)
    p = np.where(y["click"] == 1, sigmoid(x["click"][:, 0]), 1 - sigmoid(x["click"][:, 0]))
    assert losses == pytest.approx({"click": np.mean((1 - p) ** 2 * -np.log(p))}, rel=1e-5)


def test_embedding_regularization(tmp_path):
    """Half of it times the squares of the embedding vectors of the batch; numbers and pictures do not count."""
    pipeline = make_pipeline(tmp_path, model="embedding_regularization: 0.2")
    model = randomise(make_model(pipeline))
    batch = random_batch(pipeline.schema, MIXED)
    columns = Reference(arrays(model), pipeline).columns(batch.features)
    expected = 0.1 * sum(np.sum(columns[name] ** 2) for name in ("user", "age", "tags", "user_x_age"))
    assert float(model.losses(batch)["embedding_regularization"]) == pytest.approx(expected, rel=1e-5)
    larger = batch._replace(
        features=batch.features | {"price": 100 * batch.features["price"]}, pixels=batch.pixels // 2
    )
    assert float(model.losses(larger)["embedding_regularization"]) == pytest.approx(expected, rel=1e-5)
    without = make_pipeline(tmp_path)
    assert "embedding_regularization" not in make_model(without).losses(batch)


@pytest.mark.parametrize("image_layers", [IMG_DNN, HIGHWAY])
def test_l2_regularization(tmp_path, image_layers):
    """Half of it times the squares of the kernels of the dense layers, in rec and in img_dnn."""
    pipeline = make_pipeline(tmp_path, f"{image_layers} {BOTTOM} {EXPERTS} {BN} l2_regularization: 0.3")
    model = randomise(make_model(pipeline))
    kernels = {name: value for name, value in arrays(model).items() if name.endswith("/kernel")}
    counted = [name for name in kernels if name.startswith(("rec/", "image/img_dnn/"))]
    for part in ("bottom_dnn", "mmoe/expert_2", "mmoe/gate_0", "tower_click/dnn", "tower_click/relation_dnn",
                 "tower_click/output"):  # fmt: skip
        assert any(name.startswith(f"rec/{part}/") for name in counted)
    assert "image/backbone/conv/kernel" in kernels.keys() - set(counted)
    expected = 0.15 * sum(np.sum(kernels[name].astype(np.float64) ** 2) for name in counted)
    assert float(model.losses(random_batch(pipeline.schema))["l2_regularization"]) == pytest.approx(expected, rel=1e-5)


def test_l2_regularization_can_be_off(tmp_path):
    pipeline = make_pipeline(tmp_path, f"{CLICK} l2_regularization: 0")
    assert make_model(pipeline).losses(random_batch(pipeline.schema)).keys() == {"click"}


# bfloat16


def test_bfloat16_keeps_float32_where_it_counts(tmp_path):
    pipeline = make_pipeline(tmp_path, FULL, model="embedding_regularization: 0.01")
    wide, narrow = make_model(pipeline, FLOAT32), make_model(pipeline, MIXED_BFLOAT16)
    assert {v.dtype for v in narrow.named_variables().values()} == {"float32"}
    randomise(wide)
    randomise(narrow)
    batch = random_batch(pipeline.schema, MIXED)
    outputs = narrow.predict(batch)
    assert {name: value.dtype for name, value in outputs.items()} == {
        name: value.dtype for name, value in wide.predict(batch).items()
    }
    assert {value.dtype for name, value in outputs.items() if name != "y_star"} == {tf.float32}
    expected = numpy(wide.predict(batch))
    for name, value in numpy(outputs).items():
        if name != "y_star":
            np.testing.assert_allclose(value, expected[name], rtol=0.05, atol=0.05, err_msg=name)
    # The layers do compute in bfloat16.
    assert np.abs(outputs["logits_click"] - expected["logits_click"]).max() > 1e-5
    losses, wide_losses = narrow.losses(batch), wide.losses(batch)
    assert {value.dtype for value in losses.values()} == {tf.float32}
    for name in ("embedding_regularization", "l2_regularization"):
        assert float(losses[name]) == pytest.approx(float(wide_losses[name]), rel=1e-6)


def test_bfloat16_does_not_round_numbers_before_they_are_normalised(tmp_path):
    """bfloat16 has steps of 8 at 1500: prices that differ by 1 would all be one."""
    pipeline = make_pipeline(tmp_path, 'task_towers { tower_name: "click" label_name: "click" }')
    batch = random_batch(pipeline.schema, (0,) * 20)
    prices = np.linspace(1490, 1510, 20, dtype=np.float32)[:, None]
    features = {name: tf.gather(value, [0] * 20) for name, value in batch.features.items()}
    batch = batch._replace(features=features | {"price": tf.constant(prices)})
    logits = []
    for dtype in (FLOAT32, MIXED_BFLOAT16):
        model = randomise(make_model(pipeline, dtype))
        for name, value in (("moving_mean", 1500.0), ("moving_variance", 36.0)):
            v = model.named_variables()[f"rec/features_bn/{name}"]
            v.assign(tf.fill(v.shape, value))
        logits.append(model.predict(batch)["logits_click"].numpy())
    assert len(np.unique(np.round(logits[0], 4))) > 10
    np.testing.assert_allclose(logits[1], logits[0], rtol=0.03, atol=0.03 * np.ptp(logits[0]))


@pytest.mark.parametrize(("cpuinfo", "expected"), [
    ("processor : 0\nflags\t\t: fpu sse2 avx512_bf16 avx2\n", MIXED_BFLOAT16),
    ("processor : 0\nflags\t\t: fpu amx_bf16 amx_tile\n", MIXED_BFLOAT16),
    ("processor : 0\nFeatures\t: fp asimd bf16\n", MIXED_BFLOAT16),
    ("processor : 0\nflags\t\t: fpu sse2 avx2 avx512f\n", FLOAT32),
    ("", FLOAT32),
])  # fmt: skip
def test_precision_auto_is_bfloat16_where_the_processor_has_it(monkeypatch, cpuinfo, expected):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(precision.Path, "read_text", lambda path, encoding: cpuinfo)
    assert precision.dtype_policy(Precision.AUTO) == expected
    assert precision.dtype_policy(Precision.FLOAT32) == FLOAT32
    assert precision.dtype_policy(Precision.BFLOAT16) == MIXED_BFLOAT16


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), FLOAT32), ((8, 0), MIXED_BFLOAT16), ((9, 0), MIXED_BFLOAT16)]
)
def test_precision_auto_on_a_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu"])
    details = {"compute_capability": capability}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    assert precision.dtype_policy(Precision.AUTO) == expected


# Names and initial weights

_LAYER = r"(dnn|relation_dnn|bottom_dnn|img_dnn|expert_\d+)/"
NAMES = [
    r"embedding/(user|age|tags|user_x_age)",
    r"image/backbone/(conv/kernel|bn/(gamma|beta|moving_mean|moving_variance))",
    r"image/projection/(kernel|bias)",
    r"image/highway_dnn/(input_projection|gate|transform)/(kernel|bias)",
    r"rec/features_bn/(gamma|beta|moving_mean|moving_variance)",
    rf"(image|rec|rec/mmoe|rec/tower_\w+)/{_LAYER}dense_\d/(kernel|bias)",
    rf"(image|rec|rec/mmoe|rec/tower_\w+)/{_LAYER}bn_\d/(gamma|beta|moving_mean|moving_variance)",
    rf"(image|rec|rec/mmoe|rec/tower_\w+)/{_LAYER}dropout_\d/seed_generator_state",
    r"rec/mmoe/gate_\d/(kernel|bias)",
    r"rec/tower_\w+/output/(kernel|bias)",
]


@pytest.mark.parametrize("network", ["before bottom", "experts", "dropout"])
def test_names_of_variables(tmp_path, network):
    """Every variable of the parts once, under a name of the documented form; another model has the same names."""
    pipeline = make_pipeline(tmp_path, NETWORKS[network])
    model = make_model(pipeline)
    named = model.named_variables()
    of_parts = {id(v) for part in (model.image, model.rec, model.image.backbone) for v in part.variables}
    assert {id(v) for v in named.values()} == of_parts
    assert len(named) == len(of_parts)
    assert [name for name in named if not any(re.fullmatch(pattern, name) for pattern in NAMES)] == []
    keras.layers.Dropout(0.5)  # what else the process builds has no influence
    other = make_model(pipeline).named_variables()
    assert list(other) == list(named)
    tables = model.tables()
    assert tables.keys() == {"embedding/user", "embedding/age", "embedding/tags", "embedding/user_x_age"}
    assert all(named[name] is table for name, table in tables.items())


@pytest.mark.parametrize(("backbone", "name"), [("ResNet", "conv1_conv"), ("MobileNet", "conv")])
def test_real_backbones(tmp_path, monkeypatch, backbone, name):
    """They build and predict, and their layers keep their names."""
    monkeypatch.undo()
    pipeline = make_pipeline(tmp_path, f'img_model {{ model_name: "{backbone}" }} {CLICK}')
    model = make_model(pipeline)
    named = model.named_variables()
    assert f"image/backbone/{name}/kernel" in named
    assert len(named) == len({id(v) for part in (model.image, model.rec) for v in part.variables})
    assert np.isfinite(model.predict(random_batch(pipeline.schema, (0, 0)))["probs_click"]).all()


def test_seed_decides_the_initial_weights(tmp_path):
    network = NETWORKS["dropout"]
    first, second, other = (
        arrays(make_model(make_pipeline(tmp_path, network, data=f"seed: {seed}"))) for seed in (7, 7, 8)
    )
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
        random = name.endswith(("/kernel", "seed_generator_state")) or name.startswith("embedding/")
        assert (value != other[name]).any() == random, name


def test_seed_repeats_a_training_step_with_dropout(tmp_path):
    losses = []
    for _ in range(2):
        pipeline = make_pipeline(tmp_path, NETWORKS["dropout"])
        model = make_model(pipeline)
        batch = random_batch(pipeline.schema)
        losses.append([float(model.losses(batch)["click"]) for _ in range(3)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3
