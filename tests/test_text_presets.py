"""Text presets of keras-hub as the encoder of texts, against keras-hub's own pipeline."""

import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from flow_helpers import run
from text_helpers import TITLES, text_training, write_text_preset, write_titles
from training_helpers import Training, make_training_data

from easyrec_mm.errors import ConfigError, UserError
from easyrec_mm.network.layers.text_encoders import PresetEncoder

TOKENS = 12


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    return write_text_preset(tmp_path_factory.mktemp("preset"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = make_training_data(tmp_path_factory.mktemp("data"))
    write_titles(folder)
    return folder


def preset_training(preset, data, folder, settings=""):
    return text_training(data, folder, f'preset: "{preset}" max_tokens: {TOKENS} dim: 4 {settings}', image=False)


@pytest.mark.parametrize("pooling", ["AVG", "MAX", "CLS_TOKEN"])
def test_features_are_those_of_keras_hub(preset, pooling):
    encoder = PresetEncoder(preset, TOKENS, pooling, "float32")
    texts = tf.constant([*TITLES, "red " * 50])
    features = encoder(encoder.prepare(texts)).numpy()
    inputs = keras_hub.models.TextClassifierPreprocessor.from_preset(preset, sequence_length=TOKENS)(texts)
    vectors = keras_hub.models.Backbone.from_preset(preset)(inputs)["sequence_output"].numpy()
    mask = inputs["padding_mask"].numpy()[..., None]
    expected = {
        "AVG": (vectors * mask).sum(1) / mask.sum(1),
        "MAX": np.where(mask, vectors, -np.inf).max(1),
        "CLS_TOKEN": vectors[:, 0],
    }
    np.testing.assert_allclose(features, expected[pooling], atol=1e-5)


def test_an_empty_text_has_no_tokens(preset):
    encoder = PresetEncoder(preset, TOKENS, "AVG", "float32")
    assert encoder.is_there(encoder.prepare(tf.constant(["", "  ", "mug"]))).numpy().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ("trainable: HEAD", set()),
        ("trainable: LAST_N_STAGES last_n_stages: 1", {"transformer_layer_1"}),
        ("lora_rank: 2", {"transformer_layer_0", "transformer_layer_1"}),
    ],
)
def test_which_blocks_are_trained(preset, data, tmp_path, settings, trained):
    model = preset_training(preset, data, tmp_path, settings).model
    prefix = "image/text/tower/backbone/"
    names = [name.removeprefix(prefix) for name in model.trained_variables() if name.startswith(prefix)]
    assert {name.split("/")[0] for name in names} == trained
    assert all("lora" in name for name in names) == ("lora" in settings or not names)


@pytest.mark.slow
def test_low_rank_updates_are_merged_at_export(preset, data, tmp_path):
    training = preset_training(preset, data, tmp_path, "lora_rank: 2").run()
    folders = [f"--{kind}_model_export_dir={tmp_path / kind}" for kind in ("img", "rec", "total")]
    run("export", "--model_dir", training.model_dir, "--eval_input_path", f"{data}/titles_one.txt", *folders)
    import tensorflow_text  # noqa: F401  # registers the operations of tokenizers

    image = tf.saved_model.load(str(tmp_path / "img"))
    vectors = image.signatures["serving_default"](title=tf.constant([*TITLES, ""]))["img_emb_vector"]
    np.testing.assert_allclose(
        vectors, training.model.parts.of_items(None, {"text": tf.constant([*TITLES, ""])}), atol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("max_tokens: 40", "takes 16 tokens at most, and max_tokens is 40; lower it"),
        (
            "max_tokens: 16 trainable: LAST_N_STAGES last_n_stages: 9",
            "last_n_stages: 9, but the preset has 3 stages: stem, block 1",
        ),
    ],
)
def test_a_preset_that_lacks_what_is_asked_for(preset, data, tmp_path, settings, problem):
    training = text_training(data, tmp_path, f'preset: "{preset}" {settings}', image=False)
    with pytest.raises(UserError, match=problem):
        _ = training.model


@pytest.mark.parametrize(
    ("text_model", "fusion", "image", "problem"),
    [
        ('preset: "x" max_words: 3', "", True, "text_model.max_words: has no effect beside preset"),
        ('preset: "no/such"', "", True, "no folder 'no/such'; give a folder written by save_to_preset"),
        ("embedding_dim: 6 transformer { num_heads: 4 }", "", True, "4 heads do not divide embedding_dim"),
        ("max_letters: 2", "", True, r"max_letters: 2 is below min_letters \(3\)"),
        ("trainable: LAST_N_STAGES last_n_stages: 1", "", True, "LAST_N_STAGES needs preset"),
        ("dim: 0 trainable: HEAD", "", True, "HEAD trains the projection"),
        ("max_tokens: 9", "", True, "text_model.max_tokens: .*preset"),
        (
            "dim: 4",
            "item_fusion { gated {} }",
            False,
            "has no effect, because items do not have two parts",
        ),
        ("dim: 4", "item_fusion {}", True, "does not set a kind; choose one of concat, gated, attention, queries, bil"),
        ("dim: 4", "item_fusion { queries { dim: 6 } }", True, r"4 heads do not divide dim \(6\)"),
    ],
)
def test_settings_that_do_not_fit(data, tmp_path, text_model, fusion, image, problem):
    with pytest.raises(ConfigError, match=problem):
        text_training(data, tmp_path, text_model, fusion, image=image)


def test_a_loss_of_texts_without_texts(data, tmp_path):
    with pytest.raises(
        ConfigError, match=r"image_losses\[0\].text_contrastive: has no effect: no feature group of a Te"
    ):
        Training(data, tmp_path, img_model="image_losses { text_contrastive {} }")


def test_a_text_that_is_a_number(data, tmp_path):
    changes = {'input_names: "title" feature_type': 'input_names: ["title", "cat"] feature_type'}
    with pytest.raises(ConfigError, match="'cat' must be a STRING field to hold a text"):
        text_training(data, tmp_path, changes=changes)
