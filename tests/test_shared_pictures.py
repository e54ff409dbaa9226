"""Pictures that several replicas' batches show are encoded by one of them, with the results of a single process."""

import itertools
import threading

import numpy as np
import pytest
import tensorflow as tf
from thread_replicas import results_of_replicas
from training_helpers import Training

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.distribution.shared_pictures import SharedPictures, encoded
from easyrec_mm.network.layers.recompute import in_micro_batches, recompute
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.training.exchange import StepExchange
from easyrec_mm.training.row_gradients import sum_duplicate_rows


@pytest.mark.parametrize("keys", [
    [[5, 9, 2], [9, 7], [2, 9, 5, 1]],
    [[3, 1], [], [1, 3]],
    [[], [], []],
    [[4], [4], [4]],
])  # fmt: skip
def test_each_picture_is_encoded_once_and_its_gradient_is_that_of_all(keys):
    random = np.random.default_rng(0)
    weights = [random.normal(size=(len(own), 2)).astype(np.float32) for own in keys]  # of the loss
    pictures = random.normal(size=(10, 4)).astype(np.float32)
    kernel = random.normal(size=(4, 2)).astype(np.float32)

    def encoded(replicas):
        own_keys = np.array(keys[replicas.number], np.int64)
        variable = tf.Variable(kernel)
        with tf.GradientTape() as tape:
            shared = SharedPictures(tf.constant(own_keys), replicas)
            own = tf.tanh(tf.constant(pictures[own_keys[shared.own.numpy()]]) @ variable)
            vectors = shared.of_all(own)
            loss = tf.reduce_sum(vectors * weights[replicas.number])
        return own_keys[shared.own.numpy()], vectors.numpy(), tape.gradient(loss, variable).numpy()

    owned, vectors, gradients = zip(*results_of_replicas(3, encoded), strict=True)
    assert sorted(np.concatenate(owned)) == sorted(set(itertools.chain(*keys)))
    for own_keys, own_vectors in zip(keys, vectors, strict=True):
        np.testing.assert_allclose(own_vectors, np.tanh(pictures[own_keys] @ kernel), rtol=1e-5)
    expected = np.zeros_like(kernel)
    for own_keys, weight in zip(keys, weights, strict=True):
        vector = np.tanh(pictures[own_keys] @ kernel)
        expected += pictures[own_keys].T @ (weight * (1 - vector**2))
    np.testing.assert_allclose(sum(gradients), expected, rtol=1e-4, atol=1e-5)


def test_popular_pictures_spread_over_the_replicas():
    keys = np.random.default_rng(0).integers(0, 1 << 62, 300)
    numbers = results_of_replicas(3, lambda replicas: len(SharedPictures(tf.constant(keys), replicas).own))
    assert sum(numbers) == 300
    assert min(numbers) > 70


@pytest.mark.usefixtures("backbone_of_three_stages")
def test_a_step_of_a_model_is_that_of_one_process(data, tmp_path):
    """Batch norm of the tower counts each picture once, as one process does."""
    pipeline = Training(data, tmp_path, train="sync_batch_norm: true share_pictures: true").pipeline
    config, schema = pipeline.config, pipeline.schema
    one_at_a_time = threading.Lock()  # Keras draws all initial weights from one seed

    def step(replicas):
        with one_at_a_time:
            config.data_config.batch_size = 8 // replicas.num
            model = MultimodalModel(config, schema, replicas=replicas)
            worker, records = (replicas.number, replicas.num), BadRecords(None, 1.0)
            inputs = Input(
                config.data_config, schema, config.train_input_path, "train", records, training=True, worker=worker
            )
            batch = next(iter(inputs.batches())).batch
        trained = {name: v.value for name, v in model.trained_variables().items()}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(trained.values())
            loss = tf.add_n(list(model.losses(batch).values()))
        own = sum_duplicate_rows(tape.gradient(loss, list(trained.values())))
        exchange = StepExchange(replicas, model.named_variables())
        gradients, (loss,) = exchange.merged(own, list(trained.values()), [loss])
        moving = {name: v.numpy() for name, v in model.named_variables().items() if "/moving_" in name}
        gradients = {name: tf.convert_to_tensor(g).numpy() for name, g in zip(trained, gradients, strict=True)}
        return {"loss": loss.numpy(), **gradients, **moving}, batch.num_encoded

    ((alone, num_alone),) = results_of_replicas(1, step)
    together = results_of_replicas(2, step)
    assert num_alone == 5
    assert sum(num for _, num in together) > num_alone  # a picture is in both batches
    for values, _ in together:
        assert values.keys() == alone.keys()
        for name, value in values.items():
            np.testing.assert_allclose(value, alone[name], rtol=0, atol=1e-5, err_msg=name)


def test_pictures_are_encoded_a_few_at_a_time():
    """As a tower without batch norm does, also again for the gradient; compiled, as a step is."""
    random = np.random.default_rng(0)
    pixels, kernel = (
        random.normal(size=(5, 4)).astype(np.float32),
        tf.Variable(random.normal(size=(4, 2)), dtype=tf.float32),
    )
    keys, category = tf.constant([7, 3, 9, 1, 5], tf.int64), tf.zeros([5], tf.int64)

    def slice_of(own):
        return tf.tanh(own @ kernel)

    @tf.function
    def step(once):
        with tf.GradientTape() as tape:
            encode = lambda own, _: in_micro_batches(lambda part: recompute(slice_of, part), 2, own)  # noqa: E731
            vectors = encoded(encode, tf.constant(pixels), category, keys, Replicas(), once)
            loss = tf.reduce_sum(vectors * tf.constant(pixels[:, :2]))
        return vectors, tape.gradient(loss, kernel)

    expected = np.tanh(pixels @ kernel.numpy())
    for once in (True, False):
        vectors, gradient = step(once)
        np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient, pixels.T @ (pixels[:, :2] * (1 - expected**2)), rtol=1e-4, atol=1e-5)
