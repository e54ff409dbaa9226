"""The bank of pictures' vectors: what it lets a step leave out, and what the others then see."""

from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import CLICK, make_model, make_pipeline, random_batch, use_tiny_backbone

from easyrec_mm.data.batch import one_picture_each
from easyrec_mm.data.vector_bank import FIRST_ROWS, VectorBank
from easyrec_mm.network.content import from_bank
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.schema import IMAGE

WIDTH = 2
PICTURES = [b"p%d" % i for i in range(12)]
# Of each step the distinct pictures of its batch; a batch may have none.
batches = st.lists(st.lists(st.sampled_from(PICTURES), unique=True, max_size=8), max_size=25)
ratios = st.sampled_from([0.0, 0.1, 0.5, 0.9])
staleness = st.sampled_from([0, 1, 2, 5])


def plans_of(bank, batches, first=0):
    """Of each step the pictures that it encodes."""
    plans = [bank.plan(keys, step) for step, keys in enumerate(batches, first)]
    return [[keys[i] for i in plan.encoded] for keys, plan in zip(batches, plans, strict=True)]


def run(bank, batches, first=0, ahead=0):
    """Train these batches, with plans so many steps ahead of the training; of each step: picture -> what is seen.

    The tower makes of a picture its number and the step, so that a vector says what it is and when it was made.
    """
    waiting, seen = [], []
    for step, keys in enumerate([*batches, *[None] * ahead], first):
        if keys is not None:
            waiting.append((step, keys, bank.plan(keys, step)))
        if len(waiting) > ahead or keys is None:
            seen += [train(bank, *waiting.pop(0))] if waiting else []
    return seen


def train(bank, step, keys, plan):
    images = one_picture_each(len(keys))._replace(encoded=tf.constant(plan.encoded), bank_row=tf.constant(plan.rows))
    made = tf.constant([[float(keys[i][1:]), step] for i in plan.encoded], shape=[len(plan.encoded), WIDTH])
    bank.before_step(images.bank_row, images.encoded, step)
    vectors = from_bank(made, images, bank).numpy()
    return {key: (int(number), int(made_at)) for key, (number, made_at) in zip(keys, vectors, strict=True)}


# Plans.


@given(batches, ratios, staleness)
@settings(max_examples=100, deadline=None)
def test_pictures_are_encoded_when_first_seen_and_no_vector_is_too_old(batches, ratio, limit):
    """Nothing else is, in a bank without a ratio."""
    bank = VectorBank(WIDTH, ratio, limit)
    made_at = {}
    for step, (keys, encoded) in enumerate(zip(batches, plans_of(bank, batches), strict=True)):
        new = {key for key in keys if key not in made_at}
        old = {key for key in keys if key in made_at and limit and step - made_at[key] > limit}
        assert new | old <= set(encoded)
        if not ratio:
            assert set(encoded) == new | old
        made_at |= dict.fromkeys(encoded, step)


@given(batches, ratios, staleness, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_steps_see_the_vectors_that_the_plans_promise(batches, ratio, limit, ahead):
    """Of the right picture, made where it was encoded last, however far plans run ahead."""
    encoded = plans_of(VectorBank(WIDTH, ratio, limit), batches)
    made_at = {}
    seen = run(VectorBank(WIDTH, ratio, limit), batches, ahead=ahead)
    for step, (keys, pictures) in enumerate(zip(batches, encoded, strict=True)):
        made_at |= dict.fromkeys(pictures, step)
        assert seen[step] == {key: (int(key[1:]), made_at[key]) for key in keys}
        assert all(not limit or step - made_at[key] <= limit for key in keys)


@given(batches, ratios, staleness)
@settings(max_examples=60, deadline=None)
def test_plans_have_ascending_places_and_one_row_a_picture(batches, ratio, limit):
    bank, row_of = VectorBank(WIDTH, ratio, limit), {}
    for step, keys in enumerate(batches):
        plan = bank.plan(keys, step)
        assert plan.rows.dtype == plan.encoded.dtype == np.int32
        assert plan.encoded.tolist() == sorted(set(plan.encoded.tolist()))
        for key, row in zip(keys, plan.rows.tolist(), strict=True):
            assert row_of.setdefault(key, row) == row
    assert sorted(row_of.values()) == list(range(len(row_of)))


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.8])
def test_the_share_of_known_pictures_that_are_encoded(ratio):
    """In each step the share, rounded by chance, so that it holds on average even for one picture; each is chosen."""
    num_steps = 2000
    for keys in (PICTURES[:1], PICTURES[:7]):
        bank = VectorBank(WIDTH, ratio)
        bank.plan(keys, 0)
        encoded = [len(bank.plan(keys, step).encoded) for step in range(1, num_steps)]
        assert set(encoded) <= {int(ratio * len(keys)), int(ratio * len(keys)) + 1}
        # Five standard deviations of a mean of numbers that are one of two neighbours.
        assert np.mean(encoded) == pytest.approx(ratio * len(keys), abs=5 * 0.5 / np.sqrt(num_steps))
    bank = VectorBank(WIDTH, ratio)
    bank.plan(PICTURES, 0)
    counts = Counter(i for step in range(1, num_steps) for i in bank.plan(PICTURES, step).encoded.tolist())
    expected = ratio * num_steps
    assert all(abs(counts[i] - expected) < 6 * np.sqrt(expected) for i in range(len(PICTURES)))


def test_the_choice_is_a_function_of_seed_and_step():
    def plans(seed, first=1, others=()):
        bank = VectorBank(WIDTH, 0.5, seed=seed)
        bank.plan(PICTURES, 0)
        for step in others:
            bank.plan(PICTURES, step)
        return plans_of(bank, [PICTURES] * 4, first)

    assert plans(3) == plans(3)
    assert plans(3) != plans(4)
    assert plans(3)[0] != plans(3)[1]
    # Not of what was planned before.
    assert plans(3, first=5, others=(1, 2, 3, 4)) == plans(3, first=5)
    assert plans(3, first=5) != plans(3)


@pytest.mark.parametrize("num_epochs", [1, 3])
def test_a_frozen_tower_encodes_each_picture_once(num_epochs):
    bank = VectorBank(WIDTH)
    rng = np.random.default_rng(0)
    epochs = [rng.permutation(100) for _ in range(num_epochs)]
    batches = [[b"%d" % i for i in epoch[start : start + 7]] for epoch in epochs for start in range(0, 100, 7)]
    encoded = [key for keys in plans_of(bank, batches) for key in keys]
    assert sorted(encoded) == sorted(b"%d" % i for i in range(100))


def test_batches_without_pictures():
    bank = VectorBank(WIDTH, 0.5, 1)
    assert run(bank, [[], PICTURES[:2], []]) == [{}, {b"p0": (0, 1), b"p1": (1, 1)}, {}]
    assert VectorBank(WIDTH).state()["picture_bank/vectors"].shape == (0, WIDTH)


def test_there_is_room_for_any_number_of_pictures():
    """The rows grow in a step that needs more, within a function that was traced before, and keep what they hold."""
    bank = VectorBank(WIDTH)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, WIDTH])])
    def step(rows, made):
        images = one_picture_each(tf.size(rows))._replace(encoded=tf.range(tf.shape(made)[0]), bank_row=rows)
        return from_bank(made, images, bank)

    num_pictures, made = 0, []
    for number, size in enumerate((3, FIRST_ROWS, 10, 5 * FIRST_ROWS)):
        keys = [b"%d" % i for i in range(num_pictures, num_pictures + size)]
        plan = bank.plan(keys, number)
        assert len(plan.encoded) == size
        made.append(np.random.default_rng(number).normal(size=[size, WIDTH]).astype(np.float32))
        bank.before_step(tf.constant(plan.rows), tf.constant(plan.encoded), number)
        np.testing.assert_array_equal(step(plan.rows, made[-1]), made[-1])
        num_pictures += size
    plan = bank.plan([b"%d" % i for i in range(num_pictures)], 9)
    assert len(plan.encoded) == 0
    np.testing.assert_array_equal(step(plan.rows, tf.zeros([0, WIDTH])), np.concatenate(made))


def test_gradients_flow_to_what_was_made():
    """And not to what the bank has: of three pictures the second is encoded again, for it is too old."""
    bank = VectorBank(WIDTH, max_staleness_steps=5)
    for step, keys in ((0, PICTURES[1:2]), (3, PICTURES[0:3:2])):
        train(bank, step, keys, bank.plan(keys, step))
    plan = bank.plan(PICTURES[:3], 6)
    images = one_picture_each(3)._replace(encoded=tf.constant(plan.encoded), bank_row=tf.constant(plan.rows))
    made = tf.constant([[7.0, 8.0]])
    with tf.GradientTape() as tape:
        tape.watch(made)
        vectors = from_bank(made, images, bank)
        loss = tf.reduce_sum(vectors * [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    np.testing.assert_array_equal(vectors, [[0, 3], [7, 8], [2, 3]])
    np.testing.assert_array_equal(tape.gradient(loss, made), [[3, 4]])


# Bad pictures.


def test_bad_pictures_are_remembered_until_they_are_read_again():
    bank = VectorBank(WIDTH)
    rows = bank.plan(PICTURES[:4], 0).rows
    assert bank.are_bad(rows).tolist() == [False] * 4
    bank.mark_bad(rows, np.array([False, True, False, True]))
    assert bank.are_bad(rows[::-1]).tolist() == [True, False, True, False]
    bank.mark_bad(rows[1:2], np.array([False]))
    assert bank.are_bad(rows).tolist() == [False, False, False, True]
    bank.mark_bad(rows[:0], np.zeros(0, bool))
    assert bank.are_bad(rows[:0]).dtype == bool
    assert bank.are_bad(rows).tolist() == [False, False, False, True]


# Checkpoints.


def restored(folder, bank, ratio, limit, seed=0):
    path = Checkpoints(str(folder)).save(1, {**bank.state(), "other": tf.constant(1.0)})
    other = VectorBank(WIDTH, ratio, limit, seed)
    other.restore(path)
    return other


@given(batches, ratios, staleness, st.integers(0, 3), st.data())
@settings(max_examples=25, deadline=None)
def test_a_bank_that_goes_on_equals_one_that_did_not_stop(tmp_path_factory, batches, ratio, limit, ahead, data):
    """From a checkpoint between two steps, when later steps are planned but not trained."""
    stop = data.draw(st.integers(0, len(batches)))
    whole = run(VectorBank(WIDTH, ratio, limit), batches, ahead=ahead)
    bank = VectorBank(WIDTH, ratio, limit)
    plans = [bank.plan(keys, step) for step, keys in enumerate(batches[: stop + ahead])]
    for step, (keys, plan) in enumerate(zip(batches[:stop], plans[:stop], strict=True)):
        assert train(bank, step, keys, plan) == whole[step]
    resumed = restored(tmp_path_factory.mktemp("c"), bank, ratio, limit)
    encoded = plans_of(VectorBank(WIDTH, ratio, limit), batches)[stop:]
    again = restored(tmp_path_factory.mktemp("c"), resumed, ratio, limit)
    assert plans_of(again, batches[stop:], stop) == encoded
    assert run(resumed, batches[stop:], stop, ahead) == whole[stop:]


def test_bad_pictures_are_part_of_the_state(tmp_path):
    bank = VectorBank(WIDTH)
    train(bank, 0, PICTURES[:5], bank.plan(PICTURES[:5], 0))
    bank.mark_bad(bank.plan(PICTURES[:5], 1).rows, np.array([False, True, False, False, True]))
    resumed = restored(tmp_path, bank, 0.0, 0)
    rows = resumed.plan(PICTURES[:5][::-1], 1).rows
    assert resumed.are_bad(rows).tolist() == [True, False, False, True, False]


def test_a_checkpoint_without_a_bank_leaves_it_empty(tmp_path):
    path = Checkpoints(str(tmp_path)).save(1, {"other": tf.constant(1.0)})
    bank = VectorBank(WIDTH)
    bank.restore(path)
    assert plans_of(bank, [PICTURES]) == [PICTURES]


def test_the_state_has_room_for_many_pictures(tmp_path):
    keys = [b"p%d" % i for i in range(3 * FIRST_ROWS)]
    bank = VectorBank(WIDTH)
    train(bank, 0, keys, bank.plan(keys, 0))
    resumed = restored(tmp_path, bank, 0.0, 0)
    new = [b"p%d" % i for i in range(5 * FIRST_ROWS, 8 * FIRST_ROWS)]
    (seen,) = run(resumed, [[*new, *keys]], 1)
    assert seen == {key: (int(key[1:]), 0) for key in keys} | {key: (int(key[1:]), 1) for key in new}


# Gradients.


def test_gradients_flow_to_the_pictures_that_are_encoded(tmp_path, monkeypatch):
    """The vectors of the others are numbers that the bank has."""
    use_tiny_backbone(monkeypatch)
    pipeline = make_pipeline(tmp_path, f"img_model {{ num_classes: 6 encode_ratio: 0.5 }} {CLICK}")
    model = make_model(pipeline)
    bank = VectorBank(model.bank_width("ALL"))
    known = np.random.default_rng(0).normal(size=[2, model.bank_width("ALL")]).astype(np.float32)
    bank.vectors.scatter_update(tf.IndexedSlices(known, bank.plan([b"0", b"2"], 0).rows))
    plan = bank.plan([b"0", b"1", b"2", b"3"], 1)
    assert plan.encoded.tolist() == [1, 3]
    bank.before_step(tf.constant(plan.rows), tf.constant(plan.encoded), 1)
    batch = random_batch(pipeline.schema)
    images = batch.images._replace(encoded=tf.constant(plan.encoded), bank_row=tf.constant(plan.rows))
    batch = batch._replace(pixels=tf.gather(batch.pixels, plan.encoded), images=images)
    variables = {name: v.value for name, v in model.trained_variables().items()}
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(variables.values())
        loss = model.losses(batch, training=True, banks={IMAGE: bank})["click"]
        made = model.image(batch.pixels, training=True)
        vectors = tf.stack([known[0], made[0], known[1], made[1]])
        logits = model.rec(batch.features, tf.gather(vectors, batch.sample_image), training=True)[0]["click"][:, 0]
        expected = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(batch.labels["click"], logits))
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    gradients, expected = (tape.gradient(x, variables) for x in (loss, expected))
    for name, gradient in expected.items():
        gradient = tf.convert_to_tensor(gradient).numpy()
        np.testing.assert_allclose(tf.convert_to_tensor(gradients[name]), gradient, rtol=1e-4, atol=1e-7, err_msg=name)
    assert np.abs(expected["image/backbone/conv/kernel"]).max() > 1e-4
    np.testing.assert_array_equal(tf.gather(bank.vectors, plan.rows[::2]), known)
    np.testing.assert_allclose(tf.gather(bank.vectors, plan.rows[1::2]), made, rtol=1e-5, atol=1e-6)
