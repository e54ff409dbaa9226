"""Names of the variables of networks, and their initial weights."""

import re

import keras
import numpy as np
import pytest
from model_helpers import CLICK, make_model, make_pipeline, random_batch
from network_reference import NETWORKS, arrays

pytestmark = pytest.mark.usefixtures("tiny_backbone")

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
