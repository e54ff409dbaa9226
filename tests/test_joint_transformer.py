"""Early fusion: one transformer over the positions of pictures and the words of texts."""

import json
import math
from contextlib import closing

import keras
import numpy as np
import pytest
import tensorflow as tf
from flow_helpers import run
from text_helpers import TITLES, text_training, title_of, write_text_preset, write_titles
from training_helpers import NUM_GROUPS, NUM_PICTURES, make_training_data, use_backbone_of_three_stages

from easyrec_mm.errors import ConfigError
from easyrec_mm.network.layers.item_image import OrNothing
from easyrec_mm.network.layers.joint_transformer import JointTransformer
from easyrec_mm.network.layers.sequences import packed
from easyrec_mm.store import open_store

JOINT = "item_fusion { joint_transformer { dim: 8 num_layers: 1 num_heads: 2 } }"
# In place of a head, which a tower of positions does not have.
NO_HEAD = {"img_model { num_classes: 4": "img_model {"}


@pytest.fixture(scope="module", autouse=True)
def _small_backbone():
    with pytest.MonkeyPatch.context() as patch:
        use_backbone_of_three_stages(patch)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = make_training_data(tmp_path_factory.mktemp("data"))
    for file in ("one.txt", "none.txt"):
        write_titles(folder, file)
    return folder


def joint_training(data, folder, text_model="", fusion=JOINT, **settings):
    changes = {**NO_HEAD, **settings.pop("changes", {})}
    return text_training(data, folder, text_model, fusion, head="", changes=changes, **settings)


def random_sequences(rng, number, length, width):
    values = rng.normal(size=(number, length, width)).astype(np.float32)
    return values, rng.random((number, length)) < 0.6


def test_the_layer_equals_a_plain_transformer():
    rng = np.random.default_rng(0)
    layer = JointTransformer(("image", "text"), (3, 4), 8, 2, 2, 0.0)
    parts = [random_sequences(rng, 5, 3, 6), random_sequences(rng, 5, 4, 2)]
    vectors = [packed(tf.constant(values), tf.constant(used)) for values, used in parts]
    layer(vectors)
    for variable in layer.variables:
        if "seed" not in variable.path:
            variable.assign(rng.normal(0, 0.5, variable.shape))
    w = {v.path.removeprefix("fusion/"): v.numpy().astype(np.float64) for v in layer.variables}

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}/gamma"] + w[f"{name}/beta"]

    def erf(x):
        return np.vectorize(math.erf)(x)

    def attention(x, used, name):
        q, k, v = (
            np.einsum("nd,dhe->hne", x, w[f"{name}/{part}/kernel"]) + w[f"{name}/{part}/bias"][:, None]
            for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])) * used
        mixed = scores / scores.sum(-1, keepdims=True) @ v
        output = f"{name}/attention_output"
        return np.einsum("hne,hed->nd", mixed, w[f"{output}/kernel"]) + w[f"{output}/bias"]

    def of_item(sequences):
        x, is_used = [w["token"][None]], [np.array([True])]
        for number, (part, (values, used)) in enumerate(zip(("image", "text"), sequences, strict=True)):
            projected = values @ w[f"{part}_projection/kernel"] + w[f"{part}_projection/bias"]
            x.append(projected + w[f"{part}_places"] + w["types"][number])
            is_used.append(used)
        x, used = np.concatenate(x), np.concatenate(is_used)
        for i in range(2):
            name = f"block_{i}"
            x = x + attention(norm(x, f"{name}/self_attention_layer_norm"), used, f"{name}/self_attention_layer")
            hidden = norm(x, f"{name}/feedforward_layer_norm") @ w[f"{name}/feedforward_intermediate_dense/kernel"]
            hidden = hidden + w[f"{name}/feedforward_intermediate_dense/bias"]
            hidden = 0.5 * hidden * (1 + erf(hidden / math.sqrt(2)))
            x = x + hidden @ w[f"{name}/feedforward_output_dense/kernel"] + w[f"{name}/feedforward_output_dense/bias"]
        return norm(x[0], "norm")

    expected = [of_item([(values[i], used[i]) for values, used in parts]) for i in range(5)]
    np.testing.assert_allclose(layer(vectors), expected, atol=1e-5)
    weights = layer.weights_of(vectors)
    assert list(weights) == ["image", "text"]
    assert float(sum(weights.values())) == pytest.approx(1, abs=1e-5)


def test_positions_that_are_not_used_have_no_effect():
    rng = np.random.default_rng(1)
    layer = JointTransformer(("image", "text"), (3, 4), 8, 1, 2, 0.0)
    image, (text, used) = packed(tf.constant(rng.normal(size=(5, 3, 6)), tf.float32)), random_sequences(rng, 5, 4, 2)
    others = np.where(used[..., None], text, 7)
    first, second = (layer([image, packed(tf.constant(x), tf.constant(used))]) for x in (text, others))
    np.testing.assert_array_equal(first, second)


def test_an_item_without_a_content_has_one_trained_position():
    layer = OrNothing("no_text", 4 * 3, "vector", length=4)
    layer.nothing.assign([5, 6])
    values = packed(tf.ones([2, 4, 2]), tf.constant([[True] * 4, [False] * 4]))
    made = layer(values, tf.constant([True, False])).numpy().reshape(2, 4, 3)
    np.testing.assert_array_equal(made[0], np.ones((4, 3)))
    np.testing.assert_array_equal(made[1], [[5, 6, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]])


def test_what_neither_part_tells_is_learned():
    """The label is whether exactly one of colour and word is the second of two: no sum of functions of both is it."""
    rng = np.random.default_rng(2)
    colour, word, place = rng.integers(0, 2, 256), rng.integers(0, 2, 256), rng.integers(0, 4, 256)
    picture = rng.normal(0, 0.1, (256, 4, 3)).astype(np.float32)
    picture[np.arange(256), place, colour] += 1
    text = np.eye(2, dtype=np.float32)[word][:, None]
    label = tf.constant(colour ^ word, tf.float32)[:, None]
    vectors = [packed(tf.constant(picture)), packed(tf.constant(text))]
    keras.utils.set_random_seed(0)
    joint, output = JointTransformer(("image", "text"), (4, 1), 16, 1, 2, 0.0), keras.layers.Dense(1)
    linear = keras.layers.Dense(1)

    def accuracy(logits, variables):
        optimizer = keras.optimizers.Adam(0.01)
        optimizer.build(variables())

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(label, logits()))
            optimizer.apply(tape.gradient(loss, [v.value for v in variables()]), variables())

        for _ in range(150):
            step()
        return float(tf.reduce_mean(tf.cast((logits() > 0) == (label > 0.5), tf.float32)))

    output(joint(vectors))
    linear(tf.concat(vectors, 1))
    late = accuracy(lambda: linear(tf.concat(vectors, 1)), lambda: linear.trainable_variables)
    early = accuracy(lambda: output(joint(vectors)), lambda: [*joint.trainable_variables, *output.trainable_variables])
    assert early > 0.98
    assert late < 0.7


def picture_of(data, group):
    return (data / "titles_none.txt").read_text().splitlines()[group].split("|")[3]


@pytest.mark.slow
def test_the_split_is_equal_and_its_vectors_are_stored(data, tmp_path):
    training = joint_training(
        data, tmp_path, "embedding_dim: 4 max_words: 6 modality_dropout: 0.2", file="titles_none.txt",
        img_model="no_image_vector: true",
    ).run()  # fmt: skip
    model, out = training.model, tmp_path / "out"
    assert {"image/fusion/token", "image/fusion/text_places", "image/item/no_image", "image/backbone/conv0/kernel"} <= (
        training.changed()
    )
    folders = [f"--{kind}_model_export_dir={out / kind}" for kind in ("img", "rec", "total")]
    run("export", "--model_dir", training.model_dir, "--eval_input_path", f"{data}/titles_none.txt", *folders)
    manifest = json.loads((out / "img" / "manifest.json").read_text())
    assert manifest["image_width"] == 8
    assert not manifest["parity"]["left_out"]
    table = tmp_path / "items.csv"
    rows = [(f"k{group}", picture_of(data, group), title_of(group)) for group in range(NUM_GROUPS)]
    table.write_text("key,path,title\n" + "".join(f'{key},{path},"{title}"\n' for key, path, title in rows))
    run("embed", "--img_model_dir", out / "img", "--input", table, "--key_column", "key", "--path_column", "path",
        "--image_root", data, "--store", f"lmdb://{tmp_path}/s", "--bad_pictures", tmp_path / "bad.jsonl", "--runtime",
        "onnx", "--max_bad_share", 0.5)  # fmt: skip
    with closing(open_store(f"lmdb://{tmp_path}/s")) as opened:
        stored = opened.get_many([key for key, _, _ in rows]).vectors
    for (_, path, title), vector in zip(rows, stored, strict=True):
        if path or title:
            pixels = tf.io.decode_png((data / path).read_bytes())[None] if path else None
            image = model.item.in_place()[None] if pixels is None else model.image(pixels)
            expected = model.parts.of_items(image, {"text": tf.constant([title])})[0]
            np.testing.assert_allclose(vector, expected, atol=1e-5)


@pytest.mark.slow
def test_banks_of_frozen_towers_keep_sequences(data, tmp_path):
    """Of each picture and each text, encoded once."""
    text = f'preset: "{write_text_preset(tmp_path / "preset")}" max_tokens: 8 trainable: NONE'
    training = joint_training(data, tmp_path, text, img_model="trainable: NONE", train="num_epochs: 2").run()
    model, banks = training.model, training.trainer.steps.phases[0].banks
    pixels = np.stack([tf.io.decode_png((data / f"{i}.png").read_bytes()).numpy() for i in range(NUM_PICTURES)])
    texts = tf.constant([*TITLES, ""])
    made = {"image": model.image(pixels), "text": model.parts.contents["text"].tower(texts)}
    assert sum(training.encoded) == NUM_PICTURES
    for kind, expected in made.items():
        kept = banks[kind].vectors.numpy()[: len(expected)]
        order, expected_order = (np.lexsort(np.round(x, 4).T) for x in (kept, expected.numpy()))
        np.testing.assert_allclose(kept[order], expected.numpy()[expected_order], atol=1e-5)


@pytest.mark.parametrize(
    ("text_model", "img_model", "changes", "problem"),
    [
        ("dim: 4", "", {}, "text_model.dim: does not go with item_fusion.joint_transformer"),
        ("", "pooling: MAX", {}, "img_model.pooling: does not go with"),
        ("", "", {"img_model {": "img_model { num_classes: 4"}, "img_model.num_classes: does not go with"),
        ("trainable: HEAD", "", {}, "text_model.trainable: HEAD trains what stands behind the backbone"),
        ("", 'image_separator: ";"', {}, "img_model.image_separator: does not go with"),
        ("", "", {"num_heads: 2": "num_heads: 3"}, r"joint_transformer.num_heads: 3 heads do not divide dim \(8\)"),
    ],
)
def test_what_a_transformer_over_positions_does_not_go_with(data, tmp_path, text_model, img_model, changes, problem):
    with pytest.raises(ConfigError, match=problem):
        joint_training(data, tmp_path, text_model, img_model=img_model, changes=changes)
