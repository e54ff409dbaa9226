"""The lazy moving average against the plain one, which touches every row in every step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from easyrec_mm.runs.moving_average import MovingAverage

NUM_ROWS, DIM, NUM_STEPS = 8, 3, 40
NEVER, ONCE, AT_THE_END = 7, 6, 5
DECAY = 0.9


class Run:
    """Random updates of a table and a dense variable, with both averages beside them."""

    def __init__(self, decay=DECAY, seed=0):
        self.rng = np.random.default_rng(seed)
        self.table = keras.Variable(self.random(NUM_ROWS, DIM))
        self.dense = keras.Variable(self.random(4))
        self.named = {"embedding/t": self.table, "dense": self.dense}
        self.average = MovingAverage(self.named, ["embedding/t"], decay)
        self.decay, self.step = decay, 0
        self.plain = {name: v.numpy().astype(np.float64) for name, v in self.named.items()}
        self.around = tf.function(self.in_python, autograph=False, reduce_retracing=True)

    def random(self, *shape):
        return self.rng.normal(size=shape).astype(np.float32)

    def in_python(self, ids, rows, dense, step):
        def update():
            self.table.value.scatter_sub(tf.IndexedSlices(rows, ids))
            self.dense.value.assign_sub(dense)

        self.average.around(update, {"embedding/t": ids}, step)

    def run(self, ids, around=None):
        self.step += 1
        ids = np.asarray(ids, np.int64)
        changes = self.random(len(ids), DIM), self.random(4)
        (around or self.around)(tf.constant(ids), *(tf.constant(c) for c in changes), tf.constant(self.step))
        for name, v in self.named.items():
            self.plain[name] = self.decay * self.plain[name] + (1 - self.decay) * v.numpy().astype(np.float64)

    def run_many(self, num_steps=NUM_STEPS, around=None):
        """Steps in which rows are used now and then; row NEVER never, ONCE in step 3, AT_THE_END in the last."""
        for _ in range(num_steps):
            ids = self.rng.choice(AT_THE_END, size=self.rng.integers(0, 4), replace=False).tolist()
            ids += [ONCE] if self.step + 1 == 3 else []
            ids += [AT_THE_END] if self.step + 1 == num_steps else []
            self.run(ids, around)

    def assert_equal_to_plain(self):
        """Reads the average, which overwrites the variables."""
        self.average.assign_to_variables(tf.constant(self.step, tf.int64))
        for name, v in self.named.items():
            np.testing.assert_allclose(v.numpy(), self.plain[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_the_average_of_the_whole_table(decay, seed):
    run = Run(decay, seed)
    never = run.table.numpy()[NEVER]
    run.run_many()
    run.assert_equal_to_plain()
    np.testing.assert_array_equal(run.table.numpy()[NEVER], never)


def test_equal_without_a_function():
    run = Run()
    run.run_many(10, around=run.in_python)
    run.assert_equal_to_plain()


def test_average_differs_from_the_last_weights():
    """The tests above would pass for an average that is always the present value, if weights never moved."""
    run = Run()
    run.run_many()
    last = run.table.numpy()
    assert np.abs(last - run.plain["embedding/t"])[[*range(AT_THE_END), AT_THE_END]].min() > 1e-3


def test_reading_the_average_does_not_move_it():
    """Evaluation in the middle of a training: read, put the weights back, go on."""
    run = Run()
    run.run_many(10)
    last = {name: v.numpy() for name, v in run.named.items()}
    run.average.assign_to_variables(tf.constant(run.step))
    for name, v in run.named.items():
        v.assign(last[name])
    run.run_many(10)
    run.assert_equal_to_plain()


def test_reads_the_table_in_parts(monkeypatch):
    monkeypatch.setattr("easyrec_mm.runs.moving_average._ROWS_AT_A_TIME", 3)
    run = Run()
    run.run_many()
    run.assert_equal_to_plain()


def test_named_variables_hold_the_whole_state():
    """A training that stops and goes on in another process has the same average."""
    run, resumed = Run(), Run(seed=9)
    run.run_many()
    for name, v in run.named.items():
        resumed.named[name].assign(v)
    state = run.average.named_variables()
    assert state.keys() == {"embedding/t/average", "embedding/t/last_used", "dense/average"}
    assert state.keys() == resumed.average.named_variables().keys()
    for name, v in resumed.average.named_variables().items():
        v.assign(state[name])
    resumed.plain, resumed.step = run.plain, run.step
    resumed.run_many()
    resumed.assert_equal_to_plain()


def test_start_from_variables():
    """After a warm start the average begins at the restored weights."""
    run = Run()
    for v in run.named.values():
        v.assign(run.random(*v.shape))
    run.average.start_from_variables()
    run.plain = {name: v.numpy().astype(np.float64) for name, v in run.named.items()}
    run.run_many()
    run.assert_equal_to_plain()


def test_a_step_does_not_read_the_table():
    """Like the optimizers, it touches the rows of the batch alone."""
    run = Run()
    spec = tf.TensorSpec([None, DIM])
    concrete = run.around.get_concrete_function(
        tf.TensorSpec([None], tf.int64), spec, tf.TensorSpec([4]), tf.TensorSpec([], tf.int32)
    )
    sizes = [out.shape[0] for op in concrete.graph.get_operations() for out in op.outputs if out.shape.rank]
    assert 4 in sizes  # the dense variable
    assert NUM_ROWS not in sizes
