"""Converters from text encoders of other frameworks to backbones and tokenizers of keras-hub, one per architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
from numpy.typing import NDArray

from easyrec_mm.weights.sentence_transformer_file import SentenceTransformer

Tensors = Mapping[str, NDArray[Any]]


class ConvertedText(NamedTuple):
    """The parts of a text preset; the tokenizer is one of keras-hub."""

    backbone: keras.Model
    tokenizer: Any


def sentence_transformers_bert(model: SentenceTransformer) -> ConvertedText:
    """Convert BERT of Sentence Transformers, whose vectors are the mean of its tokens, so that its pooler is left out.

    keras-hub's BertBackbone approximates GELU, as the first BERT did, and models of PyTorch do not: vectors would
    differ in the third digit. Its DistilBertBackbone is the same network with the exact GELU, but without segments. A
    text of one segment adds the same vector to every token, which is added to the vectors of positions here.
    """
    import keras_hub  # takes half a second

    config, tensors = model.config, model.tensors
    backbone = keras_hub.models.DistilBertBackbone(
        vocabulary_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        hidden_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],
        dropout=config["hidden_dropout_prob"],
        max_sequence_length=config["max_position_embeddings"],
    )
    embeddings = backbone.embeddings
    embeddings.token_embedding.embeddings.assign(tensors["embeddings.word_embeddings.weight"])
    segment = tensors["embeddings.token_type_embeddings.weight"][0]
    positions = tensors["embeddings.position_embeddings.weight"] + segment
    embeddings.position_embedding.position_embeddings.assign(positions)
    _assign_norm(backbone.embeddings_layer_norm, tensors, "embeddings.LayerNorm")
    for number, layer in enumerate(backbone.transformer_layers):
        _assign_block(layer, tensors, f"encoder.layer.{number}", config["num_attention_heads"])
    # BERT's tokenizer removes accents if it makes letters small, unless its config says otherwise.
    tokenizer = keras_hub.tokenizers.DistilBertTokenizer(
        vocabulary=model.vocabulary, lowercase=model.lowercase, strip_accents=model.strips_accents
    )
    return ConvertedText(backbone, tokenizer)


TEXT_CONVERTERS: dict[str, Callable[[SentenceTransformer], ConvertedText]] = {
    "sentence_transformers_bert": sentence_transformers_bert
}


def _assign_block(layer: Any, tensors: Tensors, name: str, num_heads: int) -> None:
    """Assign a block; kernels are transposed, and those of attention divided among the heads."""
    attention = layer._self_attention_layer
    for part, dense in (
        ("query", attention.query_dense), ("key", attention.key_dense), ("value", attention.value_dense),
    ):  # fmt: skip
        kernel = tensors[f"{name}.attention.self.{part}.weight"].T  # [F, F]
        dense.kernel.assign(kernel.reshape(len(kernel), num_heads, -1))
        dense.bias.assign(tensors[f"{name}.attention.self.{part}.bias"].reshape(num_heads, -1))
    kernel = tensors[f"{name}.attention.output.dense.weight"].T
    attention.output_dense.kernel.assign(kernel.reshape(num_heads, -1, kernel.shape[1]))
    attention.output_dense.bias.assign(tensors[f"{name}.attention.output.dense.bias"])
    _assign_norm(layer._self_attention_layer_norm, tensors, f"{name}.attention.output.LayerNorm")
    _assign_dense(layer._feedforward_intermediate_dense, tensors, f"{name}.intermediate.dense")
    _assign_dense(layer._feedforward_output_dense, tensors, f"{name}.output.dense")
    _assign_norm(layer._feedforward_layer_norm, tensors, f"{name}.output.LayerNorm")


def _assign_dense(layer: keras.layers.Dense, tensors: Tensors, name: str) -> None:
    layer.kernel.assign(tensors[f"{name}.weight"].T)
    layer.bias.assign(tensors[f"{name}.bias"])


def _assign_norm(layer: keras.layers.LayerNormalization, tensors: Tensors, name: str) -> None:
    layer.gamma.assign(tensors[f"{name}.weight"])
    layer.beta.assign(tensors[f"{name}.bias"])
