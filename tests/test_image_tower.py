"""The image tower: pooling, attention, what is trained, what is computed again; and items of several pictures or none.

Against NumPy float64, or against the plain way with the same weights.
"""

import functools

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from layer_helpers import random

from easyrec_mm.network.layers import backbone_parts, image_tower
from easyrec_mm.network.layers.backbone_stages import stages_of
from easyrec_mm.network.layers.backbones import Backbone, BackboneError
from easyrec_mm.network.layers.dnn import DNN
from easyrec_mm.network.layers.fast_layers import with_fast_layers
from easyrec_mm.network.layers.image_tower import ImageTower, TowerOptions
from easyrec_mm.network.layers.item_image import ItemImage

P, SIDE, D = 6, 16, 4
SHAPE = (SIDE, SIDE, 3)
# Pixels as they are, so that references need no normalisation.
AS_THEY_ARE = ((1.0,) * 3, (0.0,) * 3)
PICTURES = np.random.default_rng(0).uniform(-1, 1, (P, *SHAPE)).astype(np.float32)
CATEGORY = np.array([1, 0, 4, 1, 1, 2])
CATEGORIES = {"num_categories": 5, "category_dim": 3}


def as_backbone(model, num_special=0):
    return Backbone(model, AS_THEY_ARE, stages_of(model), num_special, "test")


def conv_backbone(batch_norm=True, dropout=0.0, channels=3):
    """A stem, two blocks at half the resolution and one at a quarter of it."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((None, None, channels))
    for name, filters, strides in (("stem", 4, 2), ("block1a", 4, 1), ("block1b", 4, 1), ("block2a", 6, 2)):
        shortcut = x
        x = keras.layers.Conv2D(filters, 3, strides, "same", use_bias=not batch_norm, name=f"{name}_conv")(x)
        if batch_norm:
            x = keras.layers.BatchNormalization(momentum=0.8, name=f"{name}_bn")(x)
        x = keras.layers.Activation("tanh", name=f"{name}_tanh")(x)
        if dropout and name != "stem":
            x = keras.layers.Dropout(dropout, seed=7, name=f"{name}_drop")(x)
        if name == "block1b":
            x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    model = keras.Model(inputs, x)
    return as_backbone(with_fast_layers(model, "float32"))


def vit_backbone(dropout=0.0):
    """Two blocks on a class token and 16 others."""
    keras.utils.set_random_seed(3)
    model = keras_hub.models.ViTBackbone(
        SHAPE, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, dropout_rate=dropout
    )
    return as_backbone(keras.Model(model.inputs[0], model.output), num_special=1)


def dinov3_backbone():
    """Its blocks also take the embedding of positions, computed of the picture's size."""
    keras.utils.set_random_seed(3)
    model = keras_hub.models.DINOV3Backbone(
        patch_size=4, num_layers=2, hidden_dim=8, num_heads=2, intermediate_dim=16, num_register_tokens=2,
        image_shape=SHAPE,
    )  # fmt: skip
    return as_backbone(keras.Model(model.inputs[0], model.output), num_special=3)


def deit_backbone():
    """Its blocks give their outputs together with a None."""
    keras.utils.set_random_seed(3)
    model = keras_hub.models.DeiTBackbone(SHAPE, 4, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16)
    return as_backbone(keras.Model(model.inputs[0], model.output), num_special=2)


def token_backbone(number, width, num_special):
    """Gives back its input, as tokens."""
    inputs = keras.Input((SIDE, SIDE, 3))
    return as_backbone(keras.Model(inputs, keras.layers.Reshape((number, width))(inputs)), num_special)


def map_backbone():
    inputs = keras.Input((None, None, 3))
    return as_backbone(keras.Model(inputs, keras.layers.Activation("linear", name="same")(inputs)))


def make_tower(backbone, head=None, dtype="float32", **options):
    keras.utils.set_random_seed(5)
    tower = ImageTower(backbone, SHAPE, D, head, dtype, TowerOptions(**options))
    tower(tf.zeros([1, *SHAPE]), tf.zeros([1], tf.int64))
    # Attention starts as the same for all pictures and categories.
    for i, v in enumerate(v for layer in tower.attention if layer for v in layer.trainable_variables):
        v.assign(random(*v.shape, seed=i))
    return tower


# Pooling


def gem(x, axes, power=3.0):
    return np.mean(np.maximum(x.astype(np.float64), 1e-6) ** power, axis=axes) ** (1 / power)


@pytest.mark.parametrize("pooling", ["AVG", "MAX", "GEM"])
def test_pooling_of_maps(pooling):
    tower = make_tower(map_backbone(), pooling=pooling)
    expected = {"AVG": np.mean, "MAX": np.max, "GEM": lambda x, axis: gem(x, axis)}[pooling](PICTURES, axis=(1, 2))
    np.testing.assert_allclose(tower.features(PICTURES), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["AVG", "MAX", "GEM", "CLS_TOKEN"])
@pytest.mark.parametrize("num_special", [0, 1, 3])
def test_pooling_of_tokens(pooling, num_special):
    """Class and register tokens take no part in the pooling of places."""
    if pooling == "CLS_TOKEN" and not num_special:
        return
    tower = make_tower(token_backbone(64, 12, num_special), pooling=pooling)
    tokens = PICTURES.reshape(P, 64, 12)
    places = tokens[:, num_special:]
    expected = {
        "AVG": lambda: places.mean(axis=1),
        "MAX": lambda: places.max(axis=1),
        "GEM": lambda: gem(places, 1),
        "CLS_TOKEN": lambda: tokens[:, 0],
    }[pooling]()
    np.testing.assert_allclose(tower.features(PICTURES), expected, rtol=1e-5, atol=1e-6)


def test_a_vector_of_the_backbones_own_is_not_pooled():
    inputs = keras.Input(SHAPE)
    backbone = as_backbone(keras.Model(inputs, keras.layers.GlobalMaxPooling2D()(inputs)))
    np.testing.assert_array_equal(make_tower(backbone).features(PICTURES), PICTURES.max(axis=(1, 2)))
    for pooling in ("MAX", "GEM"):
        with pytest.raises(BackboneError, match=f"{pooling} has no effect") as caught:
            make_tower(backbone, pooling=pooling)
        assert caught.value.setting == "pooling"


@pytest.mark.parametrize("backbone", [map_backbone, functools.partial(token_backbone, 64, 12, 0)])
def test_no_class_token(backbone):
    with pytest.raises(BackboneError, match="no class token; choose AVG, MAX or GEM") as caught:
        make_tower(backbone(), pooling="CLS_TOKEN")
    assert caught.value.setting == "pooling"


def test_gradient_of_gem():
    """y = (mean x^p)^(1/p): of the places, none for those that are not positive, and of p."""
    tower = make_tower(map_backbone(), pooling="GEM")
    power = next(v for v in tower.trainable_variables if v.name == "gem_power")
    assert float(power) == 3.0
    power.assign(2.5)
    upstream = random(P, 3, seed=2)
    pixels = tf.constant(PICTURES)
    with tf.GradientTape() as tape:
        tape.watch([pixels, power.value])
        loss = tf.reduce_sum(tower.features(pixels) * upstream)
    actual, of_power = tape.gradient(loss, [pixels, power.value])
    x, p = np.maximum(PICTURES.astype(np.float64), 1e-6), 2.5
    mean = np.mean(x**p, axis=(1, 2))
    y = mean ** (1 / p)
    expected = (upstream * y ** (1 - p))[:, None, None] * x ** (p - 1) / SIDE**2 * (PICTURES > 1e-6)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    of_y = y * (np.mean(x**p * np.log(x), axis=(1, 2)) / (p * mean) - np.log(mean) / p**2)
    assert float(of_power) == pytest.approx(float(np.sum(upstream * of_y)), rel=1e-4)


def test_gem_in_bfloat16_reads_its_power_in_float32():
    """A step of training would be lost in bfloat16, whose numbers next to 3 are 1/64 apart."""
    inputs = keras.Input((None, None, 3), dtype="bfloat16")
    same = keras.layers.Activation("linear", dtype="mixed_bfloat16")(inputs)
    tower = make_tower(as_backbone(keras.Model(inputs, same)), dtype="mixed_bfloat16", pooling="GEM")
    power = next(v for v in tower.trainable_variables if v.name == "gem_power")
    assert power.dtype == "float32"
    pixels = tf.fill([1, SIDE, SIDE, 3], 0.5) * tf.constant([[[[1.0]], [[0.5]]]] * 1)[:, :1]
    pixels = tf.concat([pixels[:, : SIDE // 2], pixels[:, SIDE // 2 :] / 16], axis=1)

    def derivative():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.cast(tower.features(pixels), tf.float32))
        return float(tape.gradient(loss, power.value))

    before = derivative()
    power.assign(3.001)
    assert derivative() != before


# Attention


def rows(tables, name):
    return tf.gather(tables[name].value, CATEGORY)


@pytest.mark.parametrize(("places", "ends"), [
    ("EACH_STAGE", ["block1b_add", "block2a_tanh"]), ("EACH_BLOCK", ["block1a_tanh", "block1b_add", "block2a_tanh"]),
])  # fmt: skip
@pytest.mark.parametrize("rematerialize", [False, True])
def test_attention_behind_stages_or_blocks(places, ends, rematerialize):
    """The same as the parts of the backbone and the layers of attention in turn; not behind the stem."""
    backbone = conv_backbone()
    tower = make_tower(backbone, **CATEGORIES, attention_places=places, rematerialize=rematerialize)
    attention = [layer for layer in tower.attention if layer is not None]
    assert len(attention) == len(ends)
    assert len({layer.name for layer in attention}) == len(ends)
    start, x, tables = backbone.model.input, tf.constant(PICTURES), tower.category_tables()
    for end, layer in zip(ends, attention, strict=True):
        end = backbone.model.get_layer(end).output
        x = layer(keras.Model(start, end)(x), rows(tables, "channel"), rows(tables, "spatial"))
        start = end
    assert start is backbone.model.output
    features = tower.features(PICTURES, CATEGORY)
    np.testing.assert_allclose(features, tf.reduce_mean(x, axis=[1, 2]), rtol=1e-5, atol=1e-6)
    plain = make_tower(conv_backbone()).features(PICTURES)
    assert not np.allclose(features, plain, rtol=1e-2)


def test_vectors_are_of_a_picture_and_a_category():
    tower = make_tower(conv_backbone(), **CATEGORIES)
    same = np.repeat(PICTURES[:1], 5, axis=0)
    vectors = tower(same, np.arange(5)).numpy()
    for i in range(5):
        for j in range(i):
            assert not np.allclose(vectors[i], vectors[j], rtol=1e-6)
    order = np.random.default_rng(1).permutation(P)
    permuted = tower(PICTURES[order], CATEGORY[order])
    np.testing.assert_allclose(permuted, tower(PICTURES, CATEGORY).numpy()[order], rtol=1e-5, atol=1e-6)


def test_attention_needs_maps():
    with pytest.raises(BackboneError, match="no feature maps for its attention") as caught:
        make_tower(vit_backbone(), **CATEGORIES)
    assert caught.value.setting == "category_feature"


# The same step by other ways


def steps(tower, may_be_empty=False):
    """A function of pictures: loss, gradients by variable, and all variables after one step in training from here."""
    variables = [v for v in tower.trainable_variables if "seed" not in v.path]

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, *SHAPE]), tf.TensorSpec([None], tf.int64)])
    def run(pictures, category):
        with tf.GradientTape() as tape:
            vectors = tower(pictures, category, training=True, may_be_empty=may_be_empty)
            loss = tf.reduce_sum(tf.square(vectors) * tf.range(1.0, D + 1))
        return loss, tape.gradient(loss, [v.value for v in variables])

    def step(pictures):
        before = [v.numpy() for v in tower.variables]
        loss, gradients = run(pictures, CATEGORY[: len(pictures)])
        after = [v.numpy() for v in tower.variables]
        for variable, value in zip(tower.variables, before, strict=True):
            variable.assign(value)
        return loss.numpy(), gradients, after

    return step


def assert_same_gradients(actual, expected, rtol=1e-5):
    """Relative to the largest number of all: a bias of keys has none, but for rounding."""
    largest = max(np.abs(tf.convert_to_tensor(g)).max() for g in expected if g is not None)
    for gradient, other in zip(actual, expected, strict=True):
        assert (gradient is None) == (other is None)
        if other is not None:
            gradient, other = tf.convert_to_tensor(gradient), tf.convert_to_tensor(other)
            np.testing.assert_allclose(gradient, other, rtol=rtol, atol=rtol * largest)


def assert_same_steps(step, expected_step, rtol=2e-5):
    loss, gradients, after = step(PICTURES)
    expected_loss, expected_gradients, expected_after = expected_step(PICTURES)
    np.testing.assert_allclose(loss, expected_loss, rtol=rtol)
    assert_same_gradients(gradients, expected_gradients, rtol)
    for actual, expected in zip(after, expected_after, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol)


def assert_same_training(tower, other):
    """The two towers have the same variables, in the same order."""
    assert [v.shape for v in tower.variables] == [v.shape for v in other.variables]
    for v, value in zip(tower.variables, other.variables, strict=True):
        v.assign(value)
    assert_same_steps(steps(tower), steps(other))


@pytest.fixture
def recomputed(monkeypatch):
    """How many parts were computed by `recompute`."""
    calls = []

    def counted(function, *inputs):
        calls.append(function)
        return recompute(function, *inputs)

    recompute = image_tower.recompute
    for module in (image_tower, backbone_parts):
        monkeypatch.setattr(module, "recompute", counted)
    return calls


@pytest.mark.parametrize(
    ("build", "options", "number"),
    [
        (functools.partial(conv_backbone, dropout=0.3), {}, 3),
        (conv_backbone, {**CATEGORIES, "attention_places": "EACH_BLOCK"}, 4),
        (functools.partial(vit_backbone, dropout=0.3), {"pooling": "CLS_TOKEN", "lora_rank": 2}, 2),
        (dinov3_backbone, {}, 2),
        (deit_backbone, {}, 2),
    ],
    ids=["conv", "attention", "vit", "dinov3", "deit"],
)
def test_rematerialized_step_is_the_plain_one(recomputed, build, options, number):
    """Loss, gradients, averages of batch norm, states of dropout; each stage or block computed again."""
    plain = make_tower(build(), **options)
    tower = make_tower(build(), rematerialize=True, **options)
    assert_same_training(tower, plain)
    assert len(recomputed) == number
    # Where nothing is trained there is nothing to compute again.
    recomputed.clear()
    np.testing.assert_allclose(tower(PICTURES, CATEGORY), plain(PICTURES, CATEGORY), rtol=1e-5, atol=1e-6)
    tower.train_last_stages(0)
    tower(PICTURES, CATEGORY, training=True)
    assert not recomputed


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (functools.partial(conv_backbone, batch_norm=False), {**CATEGORIES, "pooling": "GEM"}),
        pytest.param(
            vit_backbone,
            {},
        ),
    ],
    ids=["conv", "vit"],
)
def test_step_in_micro_batches_is_the_plain_one(build, options):
    assert_same_training(make_tower(build(), micro_batch=4, **options), make_tower(build(), **options))


def test_rematerialized_step_in_micro_batches():
    options = {**CATEGORIES, "micro_batch": 4}
    build = functools.partial(conv_backbone, dropout=0.3)
    assert_same_training(make_tower(build(), rematerialize=True, **options), make_tower(build(), **options))


@pytest.mark.parametrize("options", [{}, {"micro_batch": 4, "rematerialize": True}], ids=["plain", "again"])
def test_gradients_of_category_tables_are_rows(options):
    tower = make_tower(conv_backbone(), **CATEGORIES, **options)
    tables = {id(table) for table in tower.category_tables().values()}
    _, gradients, _ = steps(tower)(PICTURES)
    found = [gradient for v, gradient in zip(tower.trainable_variables, gradients, strict=True) if id(v) in tables]
    assert len(found) == 2
    for gradient in found:
        assert isinstance(gradient, tf.IndexedSlices)
        np.testing.assert_array_equal(gradient.indices, CATEGORY)


# No pictures


@pytest.mark.parametrize(
    "options",
    [{}, {"rematerialize": True}, {**CATEGORIES, "rematerialize": True, "micro_batch": 4}],
    ids=["plain", "recomputed", "in slices"],
)
def test_a_batch_without_pictures(options):
    """No vectors, no gradients, no change of averages; with pictures all is as ever."""
    tower = make_tower(conv_backbone(), DNN([5, D], dropout=[0.2, 0.0]), **options)
    no_pictures = np.zeros([0, *SHAPE], np.float32)
    assert tower(no_pictures, CATEGORY[:0], may_be_empty=True).shape == (0, D)
    step = steps(tower, may_be_empty=True)
    before = [v.numpy() for v in tower.variables]
    loss, gradients, after = step(no_pictures)
    assert loss == 0
    for gradient in gradients:
        assert gradient is None or not tf.convert_to_tensor(gradient).numpy().any()
    for v, value, then in zip(tower.variables, before, after, strict=True):
        if "seed" not in v.path:
            np.testing.assert_array_equal(then, value, err_msg=v.path)
    assert_same_steps(step, steps(tower))


# What is trained


def averages(tower):
    return {v.path: v.numpy() for v in tower.variables if v.name.startswith("moving_")}


@pytest.mark.parametrize(
    ("number", "moved"),
    [
        (None, ["stem", "block1a", "block1b", "block2a"]),
        (3, ["stem", "block1a", "block1b", "block2a"]),
        (2, ["block1a", "block1b", "block2a"]),
        (1, ["block2a"]),
        (0, []),
    ],
)
def test_batch_norm_of_frozen_stages_works_with_its_averages(number, moved):
    """It keeps them, too."""
    backbone = conv_backbone()
    tower = make_tower(backbone)
    tower(5 * PICTURES + 1, training=True)
    tower.train_last_stages(number)
    before = averages(tower)
    assert len(before) == 8
    features = tower.features(PICTURES, training=True)
    after = averages(tower)
    changed = {path.split("_")[0] for path, value in after.items() if (value != before[path]).any()}
    assert changed == set(moved)
    # By the layers one after the other, each as it must be.
    for v in tower.variables:
        if v.path in before:
            v.assign(before[v.path])
    known = {}
    for operation in backbone.model.operations:
        if isinstance(operation, keras.layers.InputLayer):
            known[id(operation.output)] = tf.constant(PICTURES)
            continue
        inputs = [known[id(tensor)] for tensor in keras.tree.flatten(operation.input)]
        trained = {"training": operation.name.split("_")[0] in moved} if operation.name.endswith("_bn") else {}
        known[id(operation.output)] = operation(inputs if len(inputs) > 1 else inputs[0], **trained)
    expected = tf.reduce_mean(known[id(backbone.model.output)], axis=[1, 2])
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


def trained(tower):
    """Names of the backbone's variables whose layers are trained."""
    names = tower.variable_names()
    layers = [layer for stage in tower.stages for layer in stage.layers if layer.trainable]
    return {names[id(v)] for layer in layers for v in layer._trainable_variables}


def test_the_last_stages_of_a_transformer_are_its_last_blocks():
    tower = make_tower(vit_backbone())
    tower.train_last_stages(1)
    one = trained(tower)
    block = "vit_encoder/transformer_block_2/"
    assert {name for name in one if not name.startswith(block)} == {"vit_encoder/ln/gamma", "vit_encoder/ln/beta"}
    assert len([name for name in one if name.startswith(block)]) == 16
    tower.train_last_stages(2)
    assert {name.split("/")[1] for name in trained(tower) - one} == {"transformer_block_1"}
    tower.train_last_stages(None)
    assert any("embedding" in name for name in trained(tower))
    tower.train_last_stages(0)
    assert not trained(tower)


def test_more_stages_than_there_are():
    tower = make_tower(conv_backbone())
    with pytest.raises(BackboneError, match="4, but the backbone has 3 stages: stem, stage 1, stage 2") as caught:
        tower.train_last_stages(4)
    assert caught.value.setting == "last_n_stages"
    assert tower.num_trained_stages == 3
    with pytest.raises(BackboneError, match="9, but the backbone has 3 stages: stem, block 1, block 2"):
        make_tower(vit_backbone()).train_last_stages(9)


def test_dropout_of_a_frozen_backbone_is_off():
    tower = make_tower(conv_backbone(dropout=0.5))
    tower.train_last_stages(0)
    np.testing.assert_array_equal(tower.features(PICTURES, training=True), tower.features(PICTURES))
    tower.train_last_stages(1)
    assert (tower.features(PICTURES, training=True).numpy() != tower.features(PICTURES).numpy()).any()


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (functools.partial(conv_backbone, dropout=0.5), {"num_categories": 5, "category_dim": 3}),
        (functools.partial(vit_backbone, dropout=0.5), {"lora_rank": 2}),
        (dinov3_backbone, {}),
    ],
)
def test_stages_of_variables(build, options):
    """Each of the backbone's and no other has one, states of dropout too; of it the name tells which."""
    tower = make_tower(build(), **options)
    stages, names = tower.variable_stages(), tower.variable_names()
    assert stages.keys() == names.keys() == {id(v) for v in tower.backbone.variables}
    number = {"stem": 0, "block1a": 1, "block1b": 1, "block2a": 2}
    number |= {f"transformer_block_{i}": i for i in (1, 2)} | {"layers_0": 1, "layers_1": 2}
    last = len(tower.stages) - 1
    for key, name in names.items():
        parts = [*name.split("/"), name.split("_")[0]]
        expected = next((number[part] for part in parts if part in number), 0)
        if parts[0].endswith("layernorm") or name.startswith(("vit_encoder/ln/", "vit_encoder/dropout/")):
            expected = last
        assert stages[key] == expected, name


# Low-rank updates


def test_updates_start_as_nothing():
    tower = make_tower(vit_backbone(), lora_rank=2, lora_alpha=6.0)
    plain = make_tower(vit_backbone())
    np.testing.assert_allclose(tower(PICTURES), plain(PICTURES), rtol=1e-5, atol=1e-6)
    names = tower.variable_names()
    kinds = {names[key].split("/")[-1] for key in tower.lora_variables()}
    assert kinds == {"lora_kernel_a", "lora_kernel_b"}
    # Query, key, value and output of attention, and two dense layers, of each block.
    assert len(tower.lora_variables()) == 2 * 6 * 2
    assert all("transformer_block_" in names[key] for key in tower.lora_variables())
    assert {v.dtype for v in tower.lora_variables().values()} == {"float32"}
    assert len(set(names.values())) == len(names)


def test_kernels_together_with_their_updates():
    """kernel + alpha / rank * A @ B, and a plain tower with that computes the same."""
    tower = make_tower(vit_backbone(), lora_rank=2, lora_alpha=6.0)
    names = tower.variable_names()
    by_name = {names[id(v)]: v for v in tower.backbone.variables}
    for i, v in enumerate(tower.lora_variables().values()):
        v.assign(random(*v.shape, seed=i) / 5)
    plain = make_tower(vit_backbone())
    plain_by_name = {name: v for v in plain.backbone.variables for name in [plain.variable_names()[id(v)]]}
    merged = tower.kernels_with_updates()
    assert len(merged) == 2 * 6
    for kernel, together in merged:
        layer = names[id(kernel)].removesuffix("/kernel")
        a, b = (by_name[f"{layer}/lora_kernel_{part}"].numpy().astype(np.float64) for part in "ab")
        expected = kernel.numpy() + 6.0 / 2 * (a @ b)
        assert together.shape == kernel.shape
        np.testing.assert_allclose(together, expected, rtol=1e-5, atol=1e-6)
        plain_by_name[f"{layer}/kernel"].assign(together)
    np.testing.assert_allclose(tower(PICTURES), plain(PICTURES), rtol=1e-4, atol=1e-5)
    assert not np.allclose(tower(PICTURES), make_tower(vit_backbone())(PICTURES), rtol=1e-2)


def test_unset_alpha_is_the_rank():
    tower = make_tower(vit_backbone(), lora_rank=3)
    key, factor_b = list(tower.lora_variables().items())[1]
    layer = tower.variable_names()[key].removesuffix("/lora_kernel_b")
    factor_b.assign(random(*factor_b.shape))
    by_name = {tower.variable_names()[id(v)]: v for v in tower.backbone.variables}
    kernel, a = by_name[f"{layer}/kernel"], by_name[f"{layer}/lora_kernel_a"]
    together = next(together for other, together in tower.kernels_with_updates() if other is kernel)
    np.testing.assert_allclose(together, kernel + a.numpy() @ factor_b.numpy(), rtol=1e-5, atol=1e-6)


def test_updates_need_a_transformer():
    with pytest.raises(BackboneError, match="not a transformer: it has no blocks of attention and dense") as caught:
        make_tower(conv_backbone(), lora_rank=2)
    assert caught.value.setting == "lora_rank"


# Items

IMAGE = np.array([0, 0, 2, 3, 3, 3])
VECTORS = random(6, D, seed=9)


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def pooled_reference(pooling, item):
    w = {v.path: v.numpy().astype(np.float64) for v in item.variables}
    expected = np.zeros((5, D))
    for i in set(IMAGE):
        own = VECTORS[i == IMAGE].astype(np.float64)
        if pooling == "MEAN":
            expected[i] = own.mean(axis=0)
        elif pooling == "MAX":
            expected[i] = own.max(axis=0)
        else:
            hidden = np.tanh(own @ w["attention_hidden/kernel"] + w["attention_hidden/bias"])
            scores = hidden @ w["attention_score/kernel"][:, 0] + w["attention_score/bias"]
            expected[i] = softmax(scores) @ own
    return expected


@pytest.mark.parametrize("pooling", ["MEAN", "MAX", "ATTENTION"])
def test_pictures_of_an_item(pooling):
    """Zeros for images 1 and 4, which have none; also of negative vectors."""
    item = ItemImage(D, pooling)
    for i, v in enumerate(item.variables):
        v.assign(random(*v.shape, seed=i))
    actual = item.pooled(tf.constant(VECTORS), tf.constant(IMAGE, tf.int32), 5)
    np.testing.assert_allclose(actual, pooled_reference(pooling, item), rtol=1e-5, atol=1e-6)
    negative = ItemImage(D, "MAX").pooled(-tf.abs(VECTORS), tf.constant(IMAGE, tf.int32), 5).numpy()
    assert (negative[[0, 2, 3]] < 0).all()
    assert (negative[[1, 4]] == 0).all()


def test_attention_over_pictures_of_large_scores():
    """They do not overflow."""
    item = ItemImage(D, "ATTENTION")
    for v in item.variables:
        v.assign(1000 * random(*v.shape, seed=4))
    actual = item.pooled(tf.constant(VECTORS), tf.constant(IMAGE, tf.int32), 5)
    np.testing.assert_allclose(actual, pooled_reference("ATTENTION", item), rtol=1e-4, atol=1e-5)


def test_gradient_of_attention_over_pictures():
    """Of vectors and weights, against that of the formula, item by item."""
    item = ItemImage(D, "ATTENTION")
    for i, v in enumerate(item.variables):
        v.assign(random(*v.shape, seed=i))
    vectors, upstream = tf.constant(VECTORS), random(5, D, seed=7)
    sources = [vectors, *(v.value for v in item.variables)]
    with tf.GradientTape() as tape:
        tape.watch(vectors)
        loss = tf.reduce_sum(item.pooled(vectors, tf.constant(IMAGE, tf.int32), 5) * upstream)
    actual = tape.gradient(loss, sources)
    hidden, hidden_bias, score, score_bias = sources[1:]
    with tf.GradientTape() as tape:
        tape.watch(vectors)
        loss = 0.0
        for i in (0, 2, 3):
            own = tf.boolean_mask(vectors, i == IMAGE)
            scores = tf.tanh(own @ hidden + hidden_bias) @ score + score_bias
            loss += tf.reduce_sum(own * tf.nn.softmax(scores, axis=0) * upstream[i])
    for gradient, expected in zip(actual, tape.gradient(loss, sources), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_one_picture_an_item():
    """The vector itself, or zeros."""
    image = tf.constant([2, 0], tf.int32)
    expected = [VECTORS[1], np.zeros(D), VECTORS[0]]
    np.testing.assert_array_equal(ItemImage(D).pooled(tf.constant(VECTORS[:2]), image, 3), expected)


@pytest.mark.parametrize("pooling", ["", "MEAN", "MAX", "ATTENTION"])
def test_items_that_have_no_pictures_at_all(pooling):
    item = ItemImage(D, pooling)
    pooled = item.pooled(tf.zeros([0, D]), tf.zeros([0], tf.int32), 3)
    np.testing.assert_array_equal(pooled, np.zeros((3, D)))


def test_no_image_vector():
    """It stands where there is no picture, and learns from there alone."""
    item = ItemImage(D, has_no_image_vector=True)
    (vector,) = item.trainable_variables
    np.testing.assert_array_equal(vector, np.zeros(D))
    vector.assign(random(D, seed=1))
    vectors, has_picture = tf.constant(VECTORS), tf.constant([True, False, True, True, False, False])
    upstream = random(6, D, seed=2)
    with tf.GradientTape() as tape:
        tape.watch(vectors)
        shown = item(vectors, has_picture, training=True)
        loss = tf.reduce_sum(shown * upstream)
    expected = np.where(has_picture.numpy()[:, None], VECTORS, vector.numpy())
    np.testing.assert_array_equal(shown, expected)
    of_vectors, of_vector = tape.gradient(loss, [vectors, vector.value])
    np.testing.assert_allclose(of_vectors, upstream * has_picture.numpy()[:, None], rtol=1e-6)
    np.testing.assert_allclose(of_vector, upstream[[1, 4, 5]].sum(axis=0), rtol=1e-5)


def test_without_a_no_image_vector_vectors_stay():
    item = ItemImage(D)
    assert not item.variables
    vectors = tf.constant(VECTORS)
    np.testing.assert_array_equal(item(vectors, tf.zeros([6], tf.bool), training=True), VECTORS)


def test_modality_dropout():
    """Its share of the pictures, drawn anew in every step, in training alone; an item without one stays without."""
    item = ItemImage(1, has_no_image_vector=True, dropout=0.25)
    vectors, has_picture = tf.ones([20000, 1]), tf.range(20000) >= 4000
    first, second = (item(vectors, has_picture, training=True).numpy()[:, 0] for _ in range(2))
    assert set(np.unique(first)) == {0.0, 1.0}
    assert not first[:4000].any()
    assert first[4000:].mean() == pytest.approx(0.75, abs=0.015)
    assert (first != second).any()
    both = ((first == 0) & (second == 0))[4000:].mean()
    assert both == pytest.approx(0.25**2, abs=0.01)
    np.testing.assert_array_equal(item(vectors, has_picture)[:, 0], has_picture.numpy())


def test_modality_dropout_repeats_from_its_seed_and_its_state():
    def shares(item, steps=2):
        return [item(tf.ones([50, 1]), tf.ones([50], tf.bool), training=True).numpy() for _ in range(steps)]

    def make(seed):
        return ItemImage(1, has_no_image_vector=True, dropout=0.5, seed=seed)

    item = make(3)
    (state,) = [v for v in item.variables if "seed" in v.path]
    saved = state.numpy()
    first = shares(item)
    np.testing.assert_array_equal(shares(make(3)), first)
    assert (np.array(shares(make(4))) != first).any()
    state.assign(saved)
    np.testing.assert_array_equal(shares(item), first)
    assert [v.path for v in make(0).variables] == [v.path for v in item.variables]
