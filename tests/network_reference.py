"""The whole network in plain NumPy, and networks of every form."""

from itertools import combinations

import numpy as np
from layer_helpers import sigmoid
from numpy.lib.stride_tricks import sliding_window_view

from easyrec_mm.config.network import activation_name
from easyrec_mm.features.tag_feature import TagFeature

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
        columns = {}
        for feature in self.schema.features:
            value = features[feature.name]
            if isinstance(feature, TagFeature):
                table, weights = self.w[f"embedding/{feature.table}"], features[feature.weight_key].to_list()
                columns[feature.name] = np.stack([
                    np.average(table[tags], axis=0, weights=weight) if tags else np.zeros(feature.width)
                    for tags, weight in zip(value.to_list(), weights, strict=True)
                ])  # fmt: skip
            elif feature.table:
                columns[feature.name] = self.w[f"embedding/{feature.table}"][value.numpy()]
            else:
                columns[feature.name] = value.numpy().astype(np.float64)
        return columns

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

        task_logits = {name: self.dense(f"rec/tower_{name}/output", relation(name)) for name in towers}
        start = 0
        for name, logits in task_logits.items():
            end = start + logits.shape[1]
            task_logits[name] = logits + sum(part[:, start:end] for part in wide)
            start = end
        return task_logits

    def outputs(self, batch):
        outputs = {}
        for task in self.schema.tasks:
            x = self.logits(batch)[task.name]
            if task.activation == "binary":
                outputs |= {f"logits_{task.name}": x[:, 0], f"probs_{task.name}": sigmoid(x[:, 0])}
            elif task.activation == "multiclass":
                outputs |= {
                    f"logits_{task.name}": x,
                    f"probs_{task.name}": softmax(x),
                    f"y_{task.name}": x.argmax(axis=1),
                }
            else:
                outputs[f"y_{task.name}"] = sigmoid(x[:, 0]) if task.activation == "sigmoid_value" else x[:, 0]
        return outputs


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
