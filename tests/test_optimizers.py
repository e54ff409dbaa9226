"""Every optimizer against its formula in NumPy float64: dense variables, rows of a table, and never a whole table."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from easyrec_mm.network.layers.row_lookup import look_up_rows
from easyrec_mm.protos.optimizer_pb2 import Optimizer
from easyrec_mm.training.optimizers import OPTIMIZERS, build_optimizer
from easyrec_mm.training.row_gradients import sum_duplicate_rows

# A rate that differs from step to step, so that a step counted twice or not at all shows.
BASE_RATE, HALF_LIFE = 0.1, 4
RATE = (
    "learning_rate { exponential_decay_learning_rate { "
    f"initial_learning_rate: {BASE_RATE} decay_steps: {HALF_LIFE} decay_factor: 0.5 staircase: false }} }}"
)
ADAM = {"beta1": 0.8, "beta2": 0.95}
FTRL = {
    "learning_rate_power": -0.6,
    "initial_accumulator_value": 0.2,
    "l1_reg": 0.02,
    "l2_reg": 0.3,
    "l2_shrinkage_reg": 0.05,
}
# Settings that differ from every default.
SETTINGS = {
    "sgd_optimizer": {},
    "momentum_optimizer": {"momentum_optimizer_value": 0.7},
    "rms_prop_optimizer": {"momentum_optimizer_value": 0.6, "decay": 0.8, "epsilon": 0.01},
    "adagrad_optimizer": {"initial_accumulator_value": 0.3},
    "ftrl_optimizer": FTRL,
    "adam_optimizer": ADAM,
    "lazy_adam_optimizer": ADAM,
    "adamw_optimizer": {**ADAM, "weight_decay": 0.2},
}
SLOTS = {
    "sgd_optimizer": {},
    "momentum_optimizer": {"accumulator": 0.0},
    "rms_prop_optimizer": {"mean_square": 1.0, "accumulator": 0.0},
    "adagrad_optimizer": {"accumulator": 0.3},
    "ftrl_optimizer": {"accumulator": 0.2, "linear": 0.0},
    "adam_optimizer": {"m": 0.0, "v": 0.0},
    "lazy_adam_optimizer": {"m": 0.0, "v": 0.0},
    "adamw_optimizer": {"m": 0.0, "v": 0.0},
}
NUM_STEPS = 6


def make(kind, tables=(), multiplier=1.0, rate=RATE, factors=None, **changes):
    settings = {**SETTINGS[kind], **changes}
    text = " ".join(f"{name}: {value}" for name, value in settings.items())
    config = f"{kind} {{ {rate} {text} }} embedding_learning_rate_multiplier: {multiplier}"
    return build_optimizer(text_format.Parse(config, Optimizer()), tables, factors)


def variable_of(values):
    return keras.Variable(np.asarray(values, np.float32))


def reference_rate(step):
    """`step` from 0."""
    return BASE_RATE * 0.5 ** (step / HALF_LIFE)


def reference_step(kind, w, slots, g, rate, number, decayed=True):
    """New weights; `slots` change in place. `number` of the step is from 1. All float64."""
    c = SETTINGS[kind]
    if kind == "sgd_optimizer":
        return w - rate * g
    if kind == "momentum_optimizer":
        slots["accumulator"] = c["momentum_optimizer_value"] * slots["accumulator"] + g
        return w - rate * slots["accumulator"]
    if kind == "rms_prop_optimizer":
        slots["mean_square"] = c["decay"] * slots["mean_square"] + (1 - c["decay"]) * g * g
        step = rate * g / np.sqrt(slots["mean_square"] + c["epsilon"])
        slots["accumulator"] = c["momentum_optimizer_value"] * slots["accumulator"] + step
        return w - slots["accumulator"]
    if kind == "adagrad_optimizer":
        slots["accumulator"] = slots["accumulator"] + g * g
        return w - rate * g / np.sqrt(slots["accumulator"])
    if kind == "ftrl_optimizer":
        # McMahan et al., algorithm 1, one coordinate at a time; alpha is the rate, beta is in the accumulator.
        power = -c["learning_rate_power"]
        old, slots["accumulator"] = slots["accumulator"], slots["accumulator"] + g * g
        sigma = (slots["accumulator"] ** power - old**power) / rate
        slots["linear"] = slots["linear"] + g + 2 * c["l2_shrinkage_reg"] * w - sigma * w
        z = slots["linear"]
        divisor = slots["accumulator"] ** power / rate + 2 * c["l2_reg"]
        return np.where(np.abs(z) <= c["l1_reg"], 0.0, -(z - np.sign(z) * c["l1_reg"]) / divisor)
    if decayed:
        w = w - rate * c.get("weight_decay", 0.0) * w
    slots["m"] = c["beta1"] * slots["m"] + (1 - c["beta1"]) * g
    slots["v"] = c["beta2"] * slots["v"] + (1 - c["beta2"]) * g * g
    step = rate * np.sqrt(1 - c["beta2"] ** number) / (1 - c["beta1"] ** number)
    return w - step * slots["m"] / (np.sqrt(slots["v"]) + 1e-8)


def initial_slots(kind, shape):
    return {slot: np.full(shape, value, np.float64) for slot, value in SLOTS[kind].items()}


def slot_values(optimizer, name):
    return {key.split("/")[1]: slot.numpy() for key, slot in optimizer.named_slots([name]).items()}


def assert_near(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def compiled(step):
    return tf.function(step, autograph=False, reduce_retracing=True)


def test_every_optimizer_has_a_reference_here():
    assert SETTINGS.keys() == SLOTS.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(5, 3), (7,)])
@pytest.mark.parametrize("wrap", [compiled, lambda step: step], ids=["function", "eager"])
def test_dense_variable(kind, shape, wrap):
    rng = np.random.default_rng(0)
    variable = variable_of(rng.normal(size=shape))
    w, slots = variable.numpy().astype(np.float64), initial_slots(kind, shape)
    optimizer = make(kind)
    optimizer.build([variable])
    step = wrap(lambda gradient: optimizer.apply([gradient], [variable]))
    for i in range(NUM_STEPS):
        gradient = rng.normal(size=shape).astype(np.float32)
        step(tf.constant(gradient))
        decayed = len(shape) > 1
        w = reference_step(kind, w, slots, gradient.astype(np.float64), reference_rate(i), i + 1, decayed)
    assert_near(variable.numpy(), w)
    for slot, value in slot_values(optimizer, "w").items():
        assert_near(value, slots[slot])
    assert int(optimizer.iterations) == NUM_STEPS


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("wrap", [compiled, lambda step: step], ids=["function", "eager"])
def test_rows_of_a_table(kind, wrap):
    """Each row follows the rule in the steps that use it; an unused row and its slots keep every bit."""
    rng = np.random.default_rng(1)
    num_rows, dim, num_used = 9, 3, 6
    table = variable_of(rng.normal(size=(num_rows, dim)))
    before = table.numpy()
    w, slots = before.astype(np.float64), initial_slots(kind, (num_rows, dim))
    optimizer = make(kind, [table])
    optimizer.build([table])
    slots_before = slot_values(optimizer, "t")

    def apply(values, ids):
        optimizer.apply([tf.IndexedSlices(values, ids, tf.constant([num_rows, dim]))], [table])

    step = wrap(apply)
    for i in range(NUM_STEPS):
        ids = rng.choice(num_used, size=3, replace=False)
        gradient = rng.normal(size=(3, dim)).astype(np.float32)
        step(tf.constant(gradient), tf.constant(ids, tf.int64))
        rows = {slot: value[ids] for slot, value in slots.items()}
        w[ids] = reference_step(kind, w[ids], rows, gradient.astype(np.float64), reference_rate(i), i + 1)
        for slot, value in rows.items():
            slots[slot][ids] = value
    assert_near(table.numpy(), w)
    np.testing.assert_array_equal(table.numpy()[num_used:], before[num_used:])
    for slot, value in slot_values(optimizer, "t").items():
        assert_near(value, slots[slot])
        np.testing.assert_array_equal(value[num_used:], slots_before[slot][num_used:])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_table_and_dense_variable_agree_when_every_row_is_used(kind):
    """Duplicate indices count as the sum of their gradients, as the dense gradient has it."""
    rng = np.random.default_rng(2)
    num_rows, dim = 5, 4
    values = rng.normal(size=(num_rows, dim))
    table, dense = variable_of(values), variable_of(values)
    of_table, of_dense = make(kind, [table]), make(kind)
    of_table.build([table])
    of_dense.build([dense])
    for _ in range(NUM_STEPS):
        ids = np.concatenate([rng.permutation(num_rows), rng.integers(num_rows, size=6)])
        gradient = rng.normal(size=(len(ids), dim)).astype(np.float32)
        whole = np.zeros((num_rows, dim), np.float32)
        np.add.at(whole, ids, gradient)
        slices = tf.IndexedSlices(tf.constant(gradient), tf.constant(ids), tf.constant([num_rows, dim]))
        of_table.apply(sum_duplicate_rows([slices]), [table])
        of_dense.apply([tf.constant(whole)], [dense])
    assert_near(table.numpy(), dense.numpy())
    for slot, value in slot_values(of_table, "w").items():
        assert_near(value, slot_values(of_dense, "w")[slot])


def test_sum_duplicate_rows():
    ids = tf.constant([4, 1, 4, 0, 1, 4], tf.int64)
    values = tf.reshape(tf.range(12, dtype=tf.float32), [6, 2])
    (summed,) = sum_duplicate_rows([tf.IndexedSlices(values, ids, tf.constant([7, 2]))])
    rows = dict(zip(summed.indices.numpy().tolist(), summed.values.numpy().tolist(), strict=True))
    assert rows == {4: [0 + 4 + 10, 1 + 5 + 11], 1: [2 + 8, 3 + 9], 0: [6, 7]}
    assert len(summed.indices) == 3
    dense = tf.ones([2, 2])
    assert sum_duplicate_rows([dense])[0] is dense
    assert sum_duplicate_rows([None]) == [None]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_rows_of_a_batch_without_any(kind):
    table = variable_of(np.ones((3, 2)))
    optimizer = make(kind, [table])
    optimizer.build([table])
    nothing = tf.IndexedSlices(tf.zeros([0, 2]), tf.zeros([0], tf.int64), tf.constant([3, 2]))
    optimizer.apply(sum_duplicate_rows([nothing]), [table])
    np.testing.assert_array_equal(table.numpy(), np.ones((3, 2)))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_multiplier_is_for_tables_alone(kind):
    """A table's rate is multiplied, whether its gradient is rows or the whole; another variable's is not."""
    rng = np.random.default_rng(3)
    shape = (4, 2)
    start, gradient = rng.normal(size=shape), rng.normal(size=shape).astype(np.float32)
    by_rows, whole, other = (variable_of(start) for _ in range(3))
    optimizer = make(kind, [by_rows, whole], multiplier=0.25)
    optimizer.build([by_rows, whole, other])
    slices = tf.IndexedSlices(tf.constant(gradient), tf.range(4), tf.constant(shape))
    optimizer.apply([slices, tf.constant(gradient), tf.constant(gradient)], [by_rows, whole, other])
    w, g = start.astype(np.float32).astype(np.float64), gradient.astype(np.float64)
    for variable, rate in ((by_rows, BASE_RATE / 4), (whole, BASE_RATE / 4), (other, BASE_RATE)):
        assert_near(variable.numpy(), reference_step(kind, w, initial_slots(kind, shape), g, rate, 1))


def test_adamw_decays_kernels_and_used_rows_alone():
    """With a gradient of zero only the decay is left."""
    kernel, bias = variable_of(np.full((3, 2), 2.0)), variable_of(np.full(4, 2.0))
    table = variable_of(np.full((5, 2), 2.0))
    optimizer = make("adamw_optimizer", [table])
    optimizer.build([kernel, bias, table])
    rows = tf.IndexedSlices(tf.zeros([2, 2]), tf.constant([1, 3]), tf.constant([5, 2]))
    optimizer.apply([tf.zeros([3, 2]), tf.zeros([4]), rows], [kernel, bias, table])
    decayed = 2 * (1 - BASE_RATE * SETTINGS["adamw_optimizer"]["weight_decay"])
    np.testing.assert_allclose(kernel.numpy(), np.full((3, 2), decayed), rtol=1e-6)
    np.testing.assert_array_equal(bias.numpy(), np.full(4, 2.0))
    np.testing.assert_allclose(table.numpy()[[1, 3]], np.full((2, 2), decayed), rtol=1e-6)
    np.testing.assert_array_equal(table.numpy()[[0, 2, 4]], np.full((3, 2), 2.0))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_rate_of_zero_changes_no_weight(kind):
    """The first step of a warm-up and the end of a cosine."""
    warm_up = "learning_rate { constant_learning_rate { learning_rate: 0.1 warmup_steps: 2 } }"
    table, dense = variable_of(np.ones((3, 2))), variable_of(np.ones((3, 2)))
    optimizer = make(kind, [table], rate=warm_up)
    optimizer.build([table, dense])
    rows = tf.IndexedSlices(tf.ones([2, 2]), tf.constant([0, 2]), tf.constant([3, 2]))
    step = compiled(lambda: optimizer.apply([rows, tf.ones([3, 2])], [table, dense]))
    step()
    np.testing.assert_array_equal(table.numpy(), np.ones((3, 2)))
    np.testing.assert_array_equal(dense.numpy(), np.ones((3, 2)))
    step()
    assert np.isfinite(table.numpy()).all()
    assert np.isfinite(dense.numpy()).all()
    assert (table.numpy()[[0, 2]] != 1).all()


@pytest.mark.parametrize("kind", ["adagrad_optimizer", "ftrl_optimizer"])
def test_accumulator_may_start_from_zero(kind):
    """A gradient of zero then changes nothing that was zero, and spoils nothing."""
    start = np.array([[0.0, 1.0, 1.0]], np.float32)
    gradient = np.array([[0.0, 1.0, -2.0]], np.float32)
    dense, table = variable_of(start), variable_of(start)
    plain = {"l1_reg": 0, "l2_reg": 0, "l2_shrinkage_reg": 0} if kind == "ftrl_optimizer" else {}
    optimizer = make(kind, [table], initial_accumulator_value=0.0, **plain)
    optimizer.build([dense, table])
    rows = tf.IndexedSlices(tf.constant(gradient), tf.constant([0]), tf.constant([1, 3]))
    optimizer.apply([tf.constant(gradient), rows], [dense, table])
    assert_near(table.numpy(), dense.numpy())
    assert table.numpy()[0, 0] == 0
    if kind == "adagrad_optimizer":
        assert_near(table.numpy(), [[0.0, 1 - BASE_RATE, 1 + BASE_RATE]])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_slots_have_names(kind):
    variables = [variable_of(np.zeros(shape)) for shape in ((3, 2), (4,))]
    optimizer = make(kind)
    optimizer.build(variables)
    slots = optimizer.named_slots(["embedding/user_id", "rec/bias"])
    assert slots.keys() == {f"{name}/{slot}" for name in ("embedding/user_id", "rec/bias") for slot in SLOTS[kind]}
    for name, slot in slots.items():
        assert tuple(slot.shape) == ((3, 2) if name.startswith("embedding/") else (4,))
        np.testing.assert_array_equal(slot.numpy(), np.full(slot.shape, SLOTS[kind][name.rsplit("/")[-1]], np.float32))


# A step never makes a tensor of the size of the table.

NUM_ROWS, DIM = 977, 3


def operations(graph):
    """Those of the graph and of the functions that it calls."""
    inner = [operations(function.graph) for function in graph._functions.values()]
    return [*graph.get_operations(), *(operation for body in inner for operation in body)]


def whole_table_operations(step):
    """Kinds of the operations of a traced step with an output of the size of the table."""
    return [
        operation.type
        for operation in operations(step.get_concrete_function().graph)
        for output in operation.outputs
        if output.dtype not in (tf.resource, tf.variant) and output.shape.rank and output.shape[0] == NUM_ROWS
    ]


def traced_step(optimizer, table):
    """Forward, backward and update, as the trainer does them."""
    ids = tf.constant([3, 5, 3, 900])

    def step():
        with tf.GradientTape() as tape:
            tape.watch(table.value)
            loss = tf.reduce_sum(tf.square(look_up_rows([(table.value, ids)])[0]))
        (gradient,) = sum_duplicate_rows([tape.gradient(loss, table.value)])
        assert isinstance(gradient, tf.IndexedSlices)
        clipped, _ = tf.clip_by_global_norm([gradient], 1.0)
        optimizer.apply(clipped, [table])

    return tf.function(step, autograph=False)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_never_makes_a_tensor_of_the_size_of_the_table(kind):
    table = variable_of(np.zeros((NUM_ROWS, DIM)))
    optimizer = make(kind, [table])
    optimizer.build([table])
    assert whole_table_operations(traced_step(optimizer, table)) == []


@pytest.mark.parametrize("inner", [False, True])
def test_that_check_finds_a_dense_update(inner):
    table = variable_of(np.zeros((NUM_ROWS, DIM)))
    stock = keras.optimizers.Adagrad()
    stock.build([table])
    step = traced_step(stock, table)
    outer = tf.function(lambda: tf.cond(stock.iterations.value > 0, step, lambda: None), autograph=False)
    assert whole_table_operations(outer if inner else step) != []
