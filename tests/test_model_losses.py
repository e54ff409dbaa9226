"""Losses of the whole network against NumPy float64: tasks, weights, task spaces, regularization."""

import numpy as np
import pytest
from layer_helpers import sigmoid
from model_helpers import CLICK, make_model, make_pipeline, random_batch
from network_reference import BN, BOTTOM, EXPERTS, HIGHWAY, IMG_DNN, MIXED, Reference, arrays, randomise, softmax

pytestmark = pytest.mark.usefixtures("tiny_backbone")


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
