"""The loss scale: gradients come back as they were, an overflow changes nothing, and the scale finds its size."""

import numpy as np
import pytest
import tensorflow as tf
from training_helpers import Training, optimizer, use_backbone_of_three_stages

from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.checkpoint_reader import restore
from easyrec_mm.training.loss_scale import FIRST, LARGEST, STEPS_BEFORE_GROWTH, LossScale

WRAPS = {"eager": lambda step: step, "function": lambda step: tf.function(step, autograph=False)}


class Run:
    """A table and a dense variable; each step takes its factor times the same gradient from them."""

    def __init__(self, wrap="function", on_all=tf.identity):
        self.scale, self.on_all = LossScale(), on_all
        self.table, self.dense = tf.Variable(tf.ones([4, 2])), tf.Variable([1.0, 2.0])
        self.step = WRAPS[wrap](self._step)

    def _step(self, of_table, of_dense):
        gradients = [tf.IndexedSlices(of_table, tf.constant([1, 3]), tf.constant([4, 2])), of_dense, None]

        def update():
            self.table.scatter_sub(tf.IndexedSlices(of_table, tf.constant([1, 3])))
            self.dense.assign_sub(of_dense)

        self.scale.apply_if_finite(gradients, update, self.on_all)

    def run(self, of_table=0.0, of_dense=0.0):
        self.step(tf.fill([2, 2], tf.constant(of_table)), tf.fill([2], tf.constant(of_dense)))

    @property
    def values(self):
        return self.table.numpy().tolist(), self.dense.numpy().tolist()


def state(scale):
    return {name.split("/")[1]: float(v) for name, v in scale.named_variables().items()}


def test_an_overflow_of_another_replica_counts():
    """In its part of a table; all skip the step, and have the same scale after it."""
    run = Run(on_all=tf.zeros_like)
    before = run.values
    run.run(1.0, 1.0)
    assert run.values == before
    assert float(run.scale.value) == FIRST / 2


@pytest.mark.parametrize("factor", [1.0, 2.0**15, 2.0**24])
def test_gradients_come_back_as_they_were(factor):
    """Of a table too, and exactly: the scale is a power of two."""
    scale = LossScale()
    scale.value.assign(factor)
    table = tf.Variable(np.random.default_rng(0).normal(size=[5, 3]).astype(np.float32))
    variables = [table, tf.Variable(0.1), tf.Variable(1.0)]
    with tf.GradientTape(persistent=True) as tape:
        plain = tf.reduce_sum(tf.square(tf.nn.embedding_lookup(table, [1, 4, 1]))) + tf.sin(variables[1])
        scaled = scale.scaled(plain)
    assert float(scaled) == float(plain) * factor
    expected = tape.gradient(plain, variables)
    gradients = scale.unscaled(tape.gradient(scaled, variables))
    assert isinstance(gradients[0], tf.IndexedSlices)
    np.testing.assert_array_equal(gradients[0].values, expected[0].values)
    np.testing.assert_array_equal(gradients[0].indices, [1, 4, 1])
    np.testing.assert_array_equal(gradients[0].dense_shape, [5, 3])
    np.testing.assert_array_equal(gradients[1], expected[1])
    assert gradients[2] is None


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("where", ["of_table", "of_dense"])
def test_an_overflow_halves_the_scale_and_changes_nothing_else(wrap, bad, where):
    run = Run(wrap)
    run.run(0.5, 0.25)
    before = run.values
    assert before == ([[1, 1], [0.5, 0.5], [1, 1], [0.5, 0.5]], [0.75, 1.75])
    assert state(run.scale) == {"loss_scale": FIRST, "steps_since_overflow": 1}
    run.run(**{where: bad})
    assert run.values == before
    assert state(run.scale) == {"loss_scale": FIRST / 2, "steps_since_overflow": 0}
    run.run(**{where: bad})
    assert state(run.scale)["loss_scale"] == FIRST / 4
    run.run(0.5)
    assert run.values[0][1] == [0, 0]
    assert state(run.scale) == {"loss_scale": FIRST / 4, "steps_since_overflow": 1}


def test_one_bad_number_among_many_is_an_overflow():
    run = Run()
    run.step(tf.constant([[1.0, 1.0], [1.0, float("nan")]]), tf.constant([1.0, 1.0]))
    assert run.values == ([[1, 1]] * 4, [1, 2])


def test_large_numbers_are_none():
    run = Run()
    run.run(3e38, -3e38)
    assert state(run.scale) == {"loss_scale": FIRST, "steps_since_overflow": 1}


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_scale_grows_after_steps_without_an_overflow(wrap):
    run = Run(wrap)
    steps = run.scale.named_variables()["progress/steps_since_overflow"]
    steps.assign(STEPS_BEFORE_GROWTH - 2)
    run.run()
    assert state(run.scale) == {"loss_scale": FIRST, "steps_since_overflow": STEPS_BEFORE_GROWTH - 1}
    run.run()
    assert state(run.scale) == {"loss_scale": 2 * FIRST, "steps_since_overflow": 0}
    run.run()
    assert state(run.scale) == {"loss_scale": 2 * FIRST, "steps_since_overflow": 1}
    # An overflow starts the count anew.
    steps.assign(STEPS_BEFORE_GROWTH - 1)
    run.run(float("inf"))
    run.run()
    assert state(run.scale) == {"loss_scale": FIRST, "steps_since_overflow": 1}


def test_the_scale_has_bounds():
    run = Run()
    run.scale.value.assign(LARGEST)
    run.scale.named_variables()["progress/steps_since_overflow"].assign(STEPS_BEFORE_GROWTH - 1)
    run.run()
    assert state(run.scale) == {"loss_scale": LARGEST, "steps_since_overflow": 0}
    run.scale.value.assign(1.0)
    run.run(float("inf"))
    assert state(run.scale)["loss_scale"] == 1.0


def test_a_checkpoint_holds_its_state(tmp_path):
    run, other = Run(), LossScale()
    run.run(float("inf"))
    run.run()
    path = Checkpoints(str(tmp_path)).save(1, run.scale.named_variables())
    restore(path, other.named_variables())
    assert state(other) == state(run.scale) == {"loss_scale": FIRST / 2, "steps_since_overflow": 1}


# Trainings in float16.


def training_of(data, folder, precision, train="num_epochs: 2"):
    changes = {"FLOAT32": precision}
    return Training(data, folder, train=train, optimizers=optimizer("momentum", 0.05), changes=changes)


@pytest.mark.slow
def test_float16_trains_like_float32(data, tmp_path, monkeypatch):
    use_backbone_of_three_stages(monkeypatch)
    wide, narrow = (training_of(data, tmp_path / name, name).run() for name in ("FLOAT32", "FLOAT16"))
    losses, expected = ([line["loss"] for line in training.log] for training in (narrow, wide))
    np.testing.assert_allclose(losses, expected, rtol=0.01)
    assert losses != expected
    assert np.ptp(expected) > 0.02  # it learns
    assert {line["loss_scale"] for line in narrow.log} == {FIRST}
    state = narrow.checkpoint(6)
    assert (state["progress/loss_scale"], state["progress/steps_since_overflow"]) == (FIRST, 6)
    assert "progress/loss_scale" not in wide.checkpoint(6)


def test_a_step_that_overflows_is_left_out(data, tmp_path, monkeypatch):
    """It counts as a step, and the next one has half the scale."""
    use_backbone_of_three_stages(monkeypatch)
    training = training_of(data, tmp_path, "FLOAT16", "num_steps: 2")
    training.trainer.steps.loss_scale.value.assign(2.0**100)
    training.run()
    trained = training.model.all_trainable()
    assert not training.changed() & trained
    assert [line["loss_scale"] for line in training.log] == [2.0**99, 2.0**98]
    assert all(np.isfinite(value).all() for value in training.values().values())
    assert int(training.trainer.steps.number) == 2
