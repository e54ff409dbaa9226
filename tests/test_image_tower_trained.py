"""What of the image tower is trained: stages, the head, low-rank updates."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from image_tower_helpers import PICTURES, conv_backbone, dinov3_backbone, make_tower, vit_backbone
from layer_helpers import random

from easyrec_mm.network.layers.backbones import BackboneError


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
    names = trained(tower)
    block = "vit_encoder/transformer_block_2/"
    assert {name for name in names if not name.startswith(block)} == {"vit_encoder/ln/gamma", "vit_encoder/ln/beta"}
    assert len([name for name in names if name.startswith(block)]) == 16
    tower.train_last_stages(2)
    assert {name.split("/")[1] for name in trained(tower) - names} == {"transformer_block_1"}
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
