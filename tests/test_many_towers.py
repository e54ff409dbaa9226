"""Many towers of a kind, which are computed together, equal the same towers one by one."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from model_helpers import make_model, make_pipeline, onnx_rec_outputs, random_batch
from network_reference import MIXED, Reference, arrays, assert_same, numpy, randomise
from test_wide_configs import write_config

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.data.vector_bank import NO_BANKS
from easyrec_mm.network.layers import together
from easyrec_mm.network.precision import FLOAT32, MIXED_BFLOAT16
from easyrec_mm.network.rec import task_outputs
from easyrec_mm.training.flops import StepFlops
from easyrec_mm.training.trainer import Trainer

# Of a kind; so many are together in these tests.
MANY = 3
NO_DROPOUT, DROPOUT = "", "dropout_ratio: [0.5, 0.2]"
# Settings of a tower of each kind, {i} and {j} are numbers of towers: alone, related to two others (of two kinds), with
# nothing but an output, with nothing but what others found. One of them has no equal, and is between the others.
KINDS = {
    "plain": 'label_name: "click" dnn { hidden_units: [4, 3] %(dropout)s }',
    "related": 'label_name: "like" dnn { hidden_units: 3 activation: "tanh" use_bn: false } '
    'relation_tower_names: ["plain%(j)d", "bare%(i)d"] relation_dnn { hidden_units: 3 }',
    "bare": 'label_name: "stars" num_class: 4',
    "listener": 'label_name: "like" loss_type: L2_LOSS relation_tower_names: "related%(j)d"',
}
ODD = 'task_towers { tower_name: "odd" label_name: "click" dnn { hidden_units: 5 } relation_tower_names: "related2" }'
BOTTOM = "bottom_dnn { hidden_units: [8, 6] }"
EXPERTS = "expert_dnn { hidden_units: [5, 4] } num_expert: 3"


def network(parts_before, dropout=NO_DROPOUT):
    towers = [
        f'task_towers {{ tower_name: "{kind}{i}" weight: {1 + i / 8} '
        f"{text % {'i': i, 'j': (i + 1) % MANY, 'dropout': dropout}} }}"
        for i in range(MANY)
        for kind, text in KINDS.items()
    ]
    return " ".join([parts_before, *towers[:7], ODD, *towers[7:], "l2_regularization: 0.01"])


NETWORKS = {"bottom": BOTTOM, "experts": f"{BOTTOM} {EXPERTS}", "nothing before": ""}


@pytest.fixture(autouse=True)
def _many(monkeypatch):
    monkeypatch.setattr(together, "MANY", MANY)


def made(folder, text, dtype=FLOAT32):
    pipeline = make_pipeline(folder, text, image=False)
    return randomise(make_model(pipeline, dtype)), pipeline


def num_products(graph):
    return sum(operation.type in ("MatMul", "BatchMatMulV2") for operation in graph.get_operations())


@pytest.mark.parametrize("before", NETWORKS)
def test_forward_pass(tmp_path, before):
    model, pipeline = made(tmp_path, network(NETWORKS[before]))
    batch = random_batch(pipeline.schema, MIXED)
    predict = tf.function(lambda: model.predict(batch), autograph=False).get_concrete_function()
    assert num_products(predict.graph) <= 20  # one by one, 13 towers with experts have 47
    assert_same(numpy(predict()), Reference(arrays(model), pipeline).outputs(batch))


def training_step(model, batch, compiled):
    """Losses, gradients and the variables after a step from the same state."""
    before = arrays(model)
    variables = {name: v.value for name, v in model.trained_variables().items()}

    def step():
        with tf.GradientTape() as tape:
            tape.watch(list(variables.values()))
            values = model.losses(batch)
            loss = tf.add_n(list(values.values()))
        gradients = tape.gradient(loss, list(variables.values()))
        return values, dict(zip(variables, map(tf.convert_to_tensor, gradients), strict=True))

    result = (tf.function(step, autograph=False) if compiled else step)()
    after = arrays(model)
    for name, variable in model.named_variables().items():
        variable.assign(before[name])
    return *map(numpy, result), after


@pytest.mark.parametrize("before", ["bottom", "experts"])
def test_losses_gradients_and_states(tmp_path, before):
    """Also the numbers that dropout drops, moving statistics, and the regularisation of kernels."""
    model, pipeline = made(tmp_path, network(NETWORKS[before], DROPOUT))
    batch = random_batch(pipeline.schema, MIXED)
    start = arrays(model)
    actual, expected = (training_step(model, batch, compiled) for compiled in (True, False))
    for of_graph, alone in zip(actual, expected, strict=True):
        assert_same(of_graph, alone, 2e-5)
    values, gradients, after = actual
    kernels = [v for name, v in start.items() if name.endswith("kernel")]
    assert values["l2_regularization"] == pytest.approx(0.005 * sum((v**2).sum() for v in kernels), rel=1e-5)
    assert all(np.any(gradient) for name, gradient in gradients.items() if name.endswith("output/kernel"))
    changed = {name for name, value in after.items() if not np.array_equal(value, start[name])}
    assert changed == {name for name in start if "moving_" in name or "seed_generator" in name}


def test_bfloat16_is_as_exact_as_one_by_one(tmp_path):
    exact, pipeline = made(tmp_path, network(BOTTOM))
    rounded, _ = made(tmp_path, network(BOTTOM), MIXED_BFLOAT16)
    batch = random_batch(pipeline.schema, MIXED)
    _, expected, _ = training_step(exact, batch, compiled=False)

    def error(compiled):
        _, gradients, _ = training_step(rounded, batch, compiled)
        squares = [np.sum((gradients[name] - value) ** 2) for name, value in expected.items()]
        return np.sqrt(sum(squares) / sum(np.sum(value**2) for value in expected.values()))

    assert 1e-4 < error(compiled=True) < 1.5 * error(compiled=False) < 0.1


def test_dropout_of_each_tower_is_its_own(tmp_path):
    """Towers of the same weights, and the same random state, drop the same; otherwise not."""
    towers = " ".join(
        f'task_towers {{ tower_name: "t{i}" label_name: "click" '
        "dnn { hidden_units: 64 use_bn: false dropout_ratio: 0.5 } }"
        for i in range(MANY)
    )
    model, pipeline = made(tmp_path, towers)
    batch = random_batch(pipeline.schema, MIXED)
    named = model.named_variables()
    for name, variable in named.items():
        if "/tower_t" in name and "seed_generator" not in name:
            variable.assign(named[name.replace(name.split("/")[1], "tower_t0")])
    states = [named[name] for name in named if "seed_generator" in name]
    assert len(states) == MANY
    states[1].assign(states[0])
    logits = tf.function(lambda: model.logits(batch, training=True)[0], autograph=False)()
    np.testing.assert_array_equal(logits["t0"], logits["t1"])
    assert len(np.unique([logits[f"t{i}"][:, 0] for i in range(MANY)], axis=0)) == MANY - 1


def test_floating_point_operations(tmp_path, monkeypatch):
    model, pipeline = made(tmp_path, network(BOTTOM))
    batch = random_batch(pipeline.schema)

    def count():
        return StepFlops(model, [v.value for v in model.trained_variables().values()], NO_BANKS, batch).of(batch)

    of_many = count()
    monkeypatch.setattr(together, "MANY", 100)
    model, _ = made(tmp_path, network(BOTTOM))
    assert of_many == count()


TRAIN = "num_steps: 3 gradient_clipping_by_norm: 0.5 nan_policy: SKIP freeze_gradient: 't1/dnn.*kern'"
AVERAGE = "optimizer_config { use_moving_average: true moving_average_decay: 0.9"


def trainer(folder, precision="FLOAT32"):
    """A trainer of towers with batch norm and dropout; one of their kernels is not trained."""
    pipeline = write_config(folder, 3, 4)
    text = Path(pipeline.path).read_text().replace("units: 2 use_bn: false", "units: 2 dropout_ratio: 0.3")
    # Not Adam, which makes a step of a gradient of 1e-9 as of one of 1.
    text = text.replace("optimizer_config {", AVERAGE).replace("adam_optimizer", "momentum_optimizer")
    text = text.replace("precision: FLOAT32 num_steps: 1", f"precision: {precision} {TRAIN}")
    Path(pipeline.path).write_text(text)
    return Trainer(load_pipeline(pipeline.path))


def state(steps):
    return {name: v.numpy() for name, v in steps.variables().items()}


@pytest.mark.parametrize("precision", ["FLOAT32", "FLOAT16"])
def test_training(tmp_path, monkeypatch, precision):
    """Weights, slots and averages have the names and values that they have one by one."""

    def trained(folder):
        training = trainer(folder, precision)
        for item in islice(training.batches(3), 3):
            assert training.run_step(item)
        return state(training.steps), len(training.steps.graphs(0))

    actual, num_graphs = trained(tmp_path / "together")
    monkeypatch.setattr(together, "MANY", 100)
    expected, num_graphs_alone = trained(tmp_path / "alone")
    assert (num_graphs, num_graphs_alone) == (1 if precision == "FLOAT16" else 2, 1)
    assert_same(actual, expected, 1e-5 if precision == "FLOAT32" else 2e-2)
    assert {"rec/tower_t3/dnn/bn_0/gamma/average", "optimizer_0/rec/tower_t0/output/kernel/accumulator"} < actual.keys()
    assert "optimizer_0/rec/tower_t1/dnn/dense_0/kernel/accumulator" not in actual


def test_a_step_that_is_not_finite_changes_nothing(tmp_path):
    training = trainer(tmp_path / "t")
    steps, (item,) = training.steps, islice(training.batches(1), 1)
    training.model.named_variables()["rec/tower_t2/output/kernel"].assign(np.full((2, 1), np.nan))
    before = state(steps)
    steps.run(item)
    assert not steps.was_finite
    after = state(steps)
    assert {name for name in after if not np.array_equal(after[name], before[name], equal_nan=True)} == {
        "progress/step", *(name for name in after if name.endswith("/last_used")),
    }  # fmt: skip


@pytest.mark.slow
def test_onnx_rec_model_equals_the_network(tmp_path, tiny_backbone):
    pipeline = make_pipeline(tmp_path, network(f"{BOTTOM} {EXPERTS}", DROPOUT))
    model = randomise(make_model(pipeline))
    batch = random_batch(pipeline.schema)
    vector = np.random.default_rng(1).normal(size=(batch.num_samples, model.image_width)).astype(np.float32)
    outputs = onnx_rec_outputs(model, tmp_path, batch, vector)
    logits, _ = model.rec(batch.features, vector)  # one by one
    expected = {}
    for task in model.schema.tasks:
        expected |= numpy(task_outputs(task, logits[task.name]))
    assert_same(outputs, expected)
