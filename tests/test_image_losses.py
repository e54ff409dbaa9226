"""Losses of image vectors against NumPy float64, one image at a time."""

import numpy as np
import pytest
import tensorflow as tf
from layer_helpers import random

from easyrec_mm.network.layers.image_losses import (
    CLASS_LOSSES,
    ClassLoss,
    ContrastiveLoss,
    MultiSimilarityLoss,
    arcface,
)

U, WIDTH, NUM_CLASS, DIM = 7, 5, 4, 3
LABELS = np.array([0, 2, 2, 1, 0, 2, 1])
ITEMS = np.array([11, 12, 13, 12, 14, 12, 15])
ALL = np.ones(U, bool)
SOME = np.array([True, False, True, True, True, True, False])


VECTORS, EMBEDDINGS = random(U, WIDTH, seed=1), random(U, DIM, seed=2)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cross_entropy(logits, own):
    return np.log(np.sum(np.exp(logits))) - logits[own]


def loss_of(layer, vectors, *others, **settings):
    """A loss of arrays."""
    return layer(tf.constant(vectors), *(tf.constant(x) for x in others), **settings)


def gradient_of(layer, vectors, *others, **settings):
    """The loss and its gradient by the vectors."""
    x = tf.constant(vectors)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = layer(x, *(tf.constant(value) for value in others), **settings)
    return float(loss), tape.gradient(loss, x).numpy()


def assert_gradient(function, at, gradient, rel=1e-3):
    """Against central differences of a float64 function, in some directions."""
    rng = np.random.default_rng(8)
    at = at.astype(np.float64)
    for _ in range(5):
        direction = rng.normal(size=at.shape)
        expected = (function(at + 1e-6 * direction) - function(at - 1e-6 * direction)) / 2e-6
        assert np.sum(gradient * direction) == pytest.approx(expected, rel=rel, abs=1e-4)


# Classes

SCALE, MARGIN = 8.0, 0.4


def class_loss(kind, **settings):
    """A layer with classes in random directions, which are also returned in float64."""
    layer = ClassLoss(NUM_CLASS, kind, **{"scale": SCALE, "margin": MARGIN, **settings})
    layer.build((None, WIDTH))
    layer.kernel.assign(random(WIDTH, NUM_CLASS, seed=3))
    if kind == "softmax":
        layer.bias.assign(random(NUM_CLASS, seed=4))
    return layer, layer.kernel.numpy().astype(np.float64)


def class_reference(kind, vectors, labels, mask, kernel, bias=0.0, margins=MARGIN):
    margins = np.broadcast_to(margins, NUM_CLASS)
    losses = []
    for vector, label in zip(vectors[mask].astype(np.float64), labels[mask], strict=True):
        logits = vector @ kernel + bias
        if kind != "softmax":
            theta = np.arccos(unit(vector) @ unit(kernel.T).T)
            own, margin = theta[label], margins[label]
            logits = np.cos(theta)
            if kind == "cosface":
                logits[label] = np.cos(own) - margin
            elif own + margin < np.pi:
                logits[label] = np.cos(own + margin)
            else:
                logits[label] = np.cos(own) - margin * np.sin(margin)
            logits = SCALE * logits
        losses.append(cross_entropy(logits, label))
    return np.mean(losses)


@pytest.mark.parametrize("kind", CLASS_LOSSES)
@pytest.mark.parametrize("mask", [ALL, SOME], ids=["all", "some"])
def test_class_loss(kind, mask):
    layer, kernel = class_loss(kind)
    bias = layer.bias.numpy() if kind == "softmax" else 0.0

    def reference(vectors):
        return class_reference(kind, vectors, LABELS, mask, kernel, bias)

    loss, gradient = gradient_of(layer, VECTORS, LABELS, mask)
    assert loss == pytest.approx(reference(VECTORS), rel=1e-5)
    assert_gradient(reference, VECTORS, gradient)
    np.testing.assert_array_equal(gradient[~mask], 0)


@pytest.mark.parametrize("kind", CLASS_LOSSES)
def test_gradient_of_the_class_directions(kind):
    layer, kernel = class_loss(kind)
    bias = layer.bias.numpy() if kind == "softmax" else 0.0
    with tf.GradientTape() as tape:
        loss = loss_of(layer, VECTORS, LABELS, ALL)
    gradient = tape.gradient(loss, layer.kernel.value).numpy()
    assert_gradient(lambda k: class_reference(kind, VECTORS, LABELS, ALL, k, bias), kernel, gradient)


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.0])
def test_arcface_falls_as_the_angle_grows(margin):
    """Also beyond pi - margin, where cos(theta + margin) itself rises again."""
    theta = np.linspace(0.0, np.pi, 2001)
    value = arcface(tf.constant(np.cos(theta), tf.float32), tf.constant(margin, tf.float32)).numpy()
    assert (np.diff(value) < 1e-6).all()
    inside = theta + margin < np.pi - 1e-3
    np.testing.assert_allclose(value[inside], np.cos(theta + margin)[inside], atol=2e-3 * margin)
    beyond = theta + margin > np.pi + 1e-3
    np.testing.assert_allclose(value[beyond], (np.cos(theta) - margin * np.sin(margin))[beyond], atol=1e-6)


def test_arcface_beyond_pi():
    """An image opposite to its class, in the whole loss."""
    layer, kernel = class_loss("arcface")
    vectors = (-kernel.T[LABELS] + 0.05 * random(U, WIDTH)).astype(np.float32)
    theta = np.arccos(np.sum(unit(vectors) * unit(kernel.T)[LABELS], axis=1))
    assert (theta + MARGIN > np.pi).all()

    def reference(x):
        return class_reference("arcface", x, LABELS, ALL, kernel)

    loss, gradient = gradient_of(layer, vectors, LABELS, ALL)
    assert loss == pytest.approx(reference(vectors), rel=1e-5)
    assert_gradient(reference, vectors, gradient)


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_gradients_at_the_class_and_opposite_to_it_are_finite(kind):
    """There the sine is 0, and its root has no gradient."""
    layer, kernel = class_loss(kind)
    for sign in (1.0, -1.0):
        loss, gradient = gradient_of(layer, (sign * kernel.T).astype(np.float32), np.arange(NUM_CLASS), ALL[:NUM_CLASS])
        assert np.isfinite(loss)
        assert np.abs(gradient).max() < 10


def test_margins_make_the_loss_harder():
    for kind in ("arcface", "cosface"):
        losses = [float(loss_of(class_loss(kind, margin=m)[0], VECTORS, LABELS, ALL)) for m in (0.0, 0.2, 0.4)]
        assert losses == sorted(losses)
        assert losses[0] < losses[1] < losses[2]
        assert losses[0] == pytest.approx(
            class_reference(kind, VECTORS, LABELS, ALL, class_loss(kind)[1], margins=0.0), rel=1e-5
        )


@pytest.mark.parametrize("kind", CLASS_LOSSES)
def test_descent_separates_the_classes(kind):
    """Of free vectors: a class's become alike, and with a margin more so than any two of different classes."""
    layer, _ = class_loss(kind)
    vectors = tf.Variable(VECTORS)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            loss = layer(vectors, tf.constant(LABELS), tf.constant(ALL), training=True)
        variables = [vectors, *(v.value for v in layer.trainable_weights)]
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.5 * gradient)
        return loss

    losses = [float(step()) for _ in range(200)]
    assert losses[-1] < 0.2 * losses[0]
    x = unit(vectors.numpy())
    alike = x @ x.T
    same = LABELS[:, None] == LABELS[None, :]
    assert alike[same].mean() > alike[~same].mean() + 0.5
    if kind != "softmax":
        assert alike[same].min() > alike[~same].max() + 0.3


def test_unknown_kind():
    with pytest.raises(ValueError, match="kind: 'sphereface'; choose one of softmax, arcface, cosface"):
        ClassLoss(3, "sphereface")


# Margins by rarity


def test_margins_follow_the_images_seen():
    """Used before the step's own images are counted; larger for rarer classes; images that do not count, do not."""
    power = 0.25
    layer, kernel = class_loss("cosface", rarity_power=power)
    seen = np.zeros(NUM_CLASS)
    margins = []
    for step in range(3):
        mask = SOME if step == 1 else ALL
        loss = float(loss_of(layer, VECTORS, LABELS, mask, training=True))
        rarest = seen[seen > 0].min() if seen.any() else 1
        margins = MARGIN * np.minimum(rarest / np.maximum(seen, 1), 1) ** power
        expected = class_reference("cosface", VECTORS, LABELS, mask, kernel, margins=margins)
        assert loss == pytest.approx(expected, rel=1e-5)
        seen += np.bincount(LABELS[mask], minlength=NUM_CLASS)
        np.testing.assert_array_equal(layer.class_counts.numpy(), seen)
    assert seen.tolist() == [6, 5, 8, 0]
    assert MARGIN == margins[3] == margins[1] > margins[0] > margins[2]


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_counts_stay_outside_of_training(kind):
    layer, kernel = class_loss(kind, rarity_power=0.5)
    layer.class_counts.assign([8.0, 0.0, 3.0, 24.0])
    loss = float(loss_of(layer, VECTORS, LABELS, ALL))
    margins = MARGIN * np.array([3 / 8, 1.0, 1.0, 3 / 24]) ** 0.5
    assert loss == pytest.approx(class_reference(kind, VECTORS, LABELS, ALL, kernel, margins=margins), rel=1e-5)
    np.testing.assert_array_equal(layer.class_counts.numpy(), [8, 0, 3, 24])


def test_counts_in_a_compiled_step():
    layer, _ = class_loss("arcface", rarity_power=0.25)
    step = tf.function(lambda *x: layer(*x, training=True), autograph=False)
    other, _ = class_loss("arcface", rarity_power=0.25)
    for _ in range(2):
        compiled = float(step(tf.constant(VECTORS), tf.constant(LABELS), tf.constant(SOME)))
        assert compiled == pytest.approx(float(loss_of(other, VECTORS, LABELS, SOME, training=True)), rel=1e-6)
    np.testing.assert_array_equal(layer.class_counts.numpy(), 2 * np.bincount(LABELS[SOME], minlength=NUM_CLASS))


def test_only_margins_that_differ_need_counts():
    def names(**settings):
        layer, _ = class_loss(**settings)
        return [v.path for v in layer.trainable_weights], [v.path for v in layer.non_trainable_weights]

    assert names(kind="softmax", rarity_power=0.25) == (["class_loss/kernel", "class_loss/bias"], [])
    assert names(kind="arcface") == (["class_loss/kernel"], [])
    assert names(kind="arcface", rarity_power=0.25) == (["class_loss/kernel"], ["class_loss/class_counts"])


# Pairs

PAIR_SETTINGS = {"alpha": 2.0, "beta": 20.0, "base": 0.4, "epsilon": 0.1}
# Labels that overlap somewhat, so that every image has pairs to keep and pairs to leave.
PAIR_LABELS = np.arange(16) % NUM_CLASS
PAIR_VECTORS = random(NUM_CLASS, WIDTH, seed=5)[PAIR_LABELS] + 0.6 * random(16, WIDTH, seed=6)
PAIR_MASK = np.arange(16) % 5 != 2


def pair_reference(vectors, labels, mask, alpha, beta, base, epsilon):
    x, labels = unit(vectors[mask].astype(np.float64)), labels[mask]
    losses = []
    for i in range(len(x)):
        similarity = x @ x[i]
        positives = [similarity[k] for k in range(len(x)) if labels[k] == labels[i] and k != i]
        negatives = [similarity[k] for k in range(len(x)) if labels[k] != labels[i]]
        if not positives or not negatives:
            losses.append(0.0)
            continue
        kept = [s for s in positives if s < max(negatives) + epsilon]
        hard = [s for s in negatives if s > min(positives) - epsilon]
        loss = np.log1p(sum(np.exp(-alpha * (s - base)) for s in kept)) / alpha
        losses.append(loss + np.log1p(sum(np.exp(beta * (s - base)) for s in hard)) / beta)
    return np.mean(losses)


@pytest.mark.parametrize("changed", [{}, {"epsilon": 0.0}, {"beta": 50.0}, {"alpha": 3.0, "base": 0.8}], ids=str)
@pytest.mark.parametrize("mask", [np.ones(16, bool), PAIR_MASK], ids=["all", "some"])
def test_multi_similarity_loss(changed, mask):
    settings = {**PAIR_SETTINGS, **changed}
    layer = MultiSimilarityLoss(**settings)

    def reference(vectors):
        return pair_reference(vectors, PAIR_LABELS, mask, **settings)

    loss, gradient = gradient_of(layer, PAIR_VECTORS, PAIR_LABELS, mask)
    assert loss == pytest.approx(reference(PAIR_VECTORS), rel=1e-5)
    assert_gradient(reference, PAIR_VECTORS, gradient)
    np.testing.assert_array_equal(gradient[~mask], 0)


def test_epsilon_decides_how_many_pairs_are_kept():
    """A larger one keeps more; from 2 on all, for two cosines differ by no more."""
    losses = []
    for epsilon in (0.0, 0.1, 0.4, 2.0, 3.0):
        settings = {**PAIR_SETTINGS, "epsilon": epsilon}
        losses.append(float(loss_of(MultiSimilarityLoss(**settings), PAIR_VECTORS, PAIR_LABELS, np.ones(16, bool))))
    assert losses[0] < losses[1] < losses[2] < losses[3] == losses[4]
    x = unit(PAIR_VECTORS)
    excess = x @ x.T - PAIR_SETTINGS["base"]
    same = PAIR_LABELS[:, None] == PAIR_LABELS
    pulls = np.log1p(np.sum(np.exp(-2.0 * excess) * (same & ~np.eye(16, dtype=bool)), axis=1)) / 2.0
    pushes = np.log1p(np.sum(np.exp(20.0 * excess) * ~same, axis=1)) / 20.0
    assert losses[3] == pytest.approx(np.mean(pulls + pushes), rel=1e-5)


def test_separated_labels_have_no_loss():
    """Every positive nearer than every negative by more than epsilon."""
    vectors = np.eye(WIDTH, dtype=np.float32)[LABELS] + 0.01 * VECTORS
    loss, gradient = gradient_of(MultiSimilarityLoss(), vectors, LABELS, ALL)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def test_a_label_with_one_image_pushes_others_only():
    """It keeps no pair itself, and is a negative of the images that have a positive."""
    labels = np.array([0, 0, 1])
    vectors = random(3, WIDTH, seed=5)
    layer = MultiSimilarityLoss(**PAIR_SETTINGS)
    loss, gradient = gradient_of(layer, vectors, labels, ALL[:3])
    assert loss == pytest.approx(pair_reference(vectors, labels, ALL[:3], **PAIR_SETTINGS), rel=1e-5)
    assert np.abs(gradient[2]).max() > 1e-3


def test_identical_vectors_of_different_labels():
    """The largest exponent that there is: finite even where e to its power is not in float32."""
    vectors = np.ones((4, WIDTH), np.float32)
    labels = np.array([0, 0, 1, 1])
    for beta in (50.0, 1000.0):
        loss, gradient = gradient_of(MultiSimilarityLoss(beta=beta), vectors, labels, ALL[:4])
        expected = np.log1p(np.exp(-1.0)) / 2 + 0.5 + np.log(2) / beta
        assert loss == pytest.approx(expected, rel=1e-5)
        assert np.isfinite(gradient).all()


# Pictures and items

TEMPERATURE = 0.2


def contrastive_loss(**settings):
    """A layer with a random projection, which is also returned in float64."""
    layer = ContrastiveLoss(DIM, **{"temperature": TEMPERATURE, **settings})
    layer.build((None, WIDTH))
    (kernel,) = layer.weights
    assert kernel.path == "contrastive_loss/projection/kernel"
    kernel.assign(random(WIDTH, DIM, seed=6))
    return layer, kernel.numpy().astype(np.float64)


def contrastive_reference(vectors, embeddings, items, mask, kernel):
    images, embeddings = unit(vectors[mask].astype(np.float64) @ kernel), unit(embeddings[mask].astype(np.float64))
    items = items[mask]
    losses = []
    for i in range(len(items)):
        others = [k for k in range(len(items)) if items[k] != items[i]]
        for anchor, candidates in ((images[i], embeddings), (embeddings[i], images)):
            logits = np.array([anchor @ candidates[k] for k in (i, *others)]) / TEMPERATURE
            losses.append(cross_entropy(logits, 0))
    return np.mean(losses)


@pytest.mark.parametrize("mask", [ALL, SOME], ids=["all", "some"])
def test_contrastive_loss(mask):
    """Items 12 of three pictures are no negatives of each other."""
    layer, kernel = contrastive_loss()
    embeddings = EMBEDDINGS[np.unique(ITEMS, return_inverse=True)[1]]
    x = [tf.constant(value) for value in (VECTORS, embeddings)]
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = layer(*x, tf.constant(ITEMS), tf.constant(mask))
    gradients = [g.numpy() for g in tape.gradient(loss, [*x, layer.weights[0].value])]
    assert float(loss) == pytest.approx(contrastive_reference(VECTORS, embeddings, ITEMS, mask, kernel), rel=1e-5)
    assert_gradient(lambda v: contrastive_reference(v, embeddings, ITEMS, mask, kernel), VECTORS, gradients[0])
    assert_gradient(lambda e: contrastive_reference(VECTORS, e, ITEMS, mask, kernel), embeddings, gradients[1])
    assert_gradient(lambda k: contrastive_reference(VECTORS, embeddings, ITEMS, mask, k), kernel, gradients[2])
    for gradient in gradients[:2]:
        np.testing.assert_array_equal(gradient[~mask], 0)


def test_pictures_of_one_item_alone():
    """No wrong answer to choose: no loss."""
    layer, _ = contrastive_loss()
    same = np.full(U, 12)
    loss, gradient = gradient_of(layer, VECTORS, EMBEDDINGS, same, ALL)
    assert loss == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize(("stop_gradient", "moved"), [
    ("none", (True, True, True)), ("item", (True, False, True)), ("image", (False, True, True)),
])  # fmt: skip
def test_stop_gradient(stop_gradient, moved):
    """The same loss; one side without gradient, the other with the gradient that it has otherwise."""
    x = [tf.constant(value) for value in (VECTORS, EMBEDDINGS)]

    def gradients(layer):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = layer(*x, tf.constant(ITEMS), tf.constant(ALL))
        return float(loss), tape.gradient(loss, [*x, layer.weights[0].value])

    loss, expected = gradients(contrastive_loss()[0])
    same_loss, actual = gradients(contrastive_loss(stop_gradient=stop_gradient)[0])
    assert same_loss == loss
    assert tuple(gradient is not None for gradient in actual) == moved
    for gradient, full in zip(actual, expected, strict=True):
        assert np.abs(full).max() > 1e-3
        if gradient is not None:
            np.testing.assert_allclose(gradient, full, rtol=1e-5, atol=1e-6)


def test_unknown_stop_gradient():
    with pytest.raises(ValueError, match="stop_gradient: 'both'; choose one of none, item, image"):
        ContrastiveLoss(3, stop_gradient="both")


# Edges of all of them


@pytest.fixture(params=[*CLASS_LOSSES, "pairs", "items"])
def layer(request):
    if request.param == "pairs":
        return MultiSimilarityLoss()
    if request.param == "items":
        return contrastive_loss()[0]
    return class_loss(request.param, rarity_power=0.25)[0]


@pytest.fixture
def others(layer):
    """What it takes between the vectors and which of them count."""
    return (EMBEDDINGS, ITEMS) if isinstance(layer, ContrastiveLoss) else (LABELS,)


@pytest.mark.parametrize("compiled", [False, True])
def test_no_image_counts(layer, others, compiled):
    """Neither do rows of NaN and labels that do not exist."""
    vectors = np.full((U, WIDTH), np.nan, np.float32)
    others = [*(np.full_like(x, np.nan) for x in others[:-1]), np.full(U, -1)]
    call = tf.function(layer, autograph=False) if compiled else layer
    loss, gradient = gradient_of(call, vectors, *others, np.zeros(U, bool))
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def test_an_empty_batch(layer, others):
    loss, _ = gradient_of(layer, VECTORS[:0], *(x[:0] for x in others), ALL[:0])
    assert loss == 0


def test_images_that_do_not_count_change_nothing(layer, others):
    """The loss and the gradients are those of the counted images alone, whatever the other rows hold."""
    vectors = np.where(SOME[:, None], VECTORS, np.nan).astype(np.float32)
    alone, expected = gradient_of(layer, VECTORS[SOME], *(x[SOME] for x in others), ALL[SOME])
    spoilt = [*others[:-1], np.where(SOME, others[-1], -1)]
    loss, gradient = gradient_of(layer, vectors, *spoilt, SOME)
    assert loss == pytest.approx(alone, rel=1e-6)
    np.testing.assert_allclose(gradient[SOME], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gradient[~SOME], 0)


def test_one_image(layer, others):
    loss, gradient = gradient_of(layer, VECTORS[:1], *(x[:1] for x in others), ALL[:1])
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    if not isinstance(layer, ClassLoss):
        assert loss == 0
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-8], ids=["zero", "equal", "tiny"])
def test_collapsed_vectors(layer, others, value):
    """All the same, of length 0 too: what the losses are there to repair must not break them."""
    vectors = np.full((U, WIDTH), value, np.float32)
    loss, gradient = gradient_of(layer, vectors, *others, ALL)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() < 1e4 * SCALE


def test_one_label(layer, others):
    same = [*others[:-1], np.full(U, 1)]
    loss, gradient = gradient_of(layer, VECTORS, *same, ALL)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    if not isinstance(layer, ClassLoss):
        assert loss == pytest.approx(0, abs=1e-6)


def test_order_of_the_images_does_not_matter(layer, others):
    order = np.random.default_rng(9).permutation(U)
    loss, gradient = gradient_of(layer, VECTORS, *others, SOME)
    shuffled, moved = gradient_of(layer, VECTORS[order], *(x[order] for x in others), SOME[order])
    assert shuffled == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(moved, gradient[order], rtol=1e-4, atol=1e-6)


def test_vectors_of_bfloat16_are_used_in_float32(layer, others):
    narrow = tf.cast(VECTORS, tf.bfloat16)
    loss = layer(narrow, *(tf.constant(x) for x in others), tf.constant(ALL))
    assert loss.dtype == tf.float32
    assert {v.dtype for v in layer.weights} <= {"float32"}
    exact = loss_of(layer, tf.cast(narrow, tf.float32).numpy(), *others, ALL)
    assert float(loss) == float(exact)
