"""Small encoders of every kind, pictures and texts, and the vectors of their own pipelines in NumPy."""

from __future__ import annotations

import json
import time
from pathlib import Path

import keras
import numpy as np
import onnx
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from easyrec_mm.cli.main import main
from easyrec_mm.extraction.encoders import Encoder

SIZES = ((40, 30), (24, 50), (33, 33), (21, 64), (70, 20), (36, 48))
SHORT, SIDE = 20, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NCHW = {"size": [SIDE, SIDE], "fit": "crop", "resize_to": SHORT, "resize": "bicubic", "mean": list(MEAN),
        "std": list(STD), "layout": "NCHW"}  # fmt: skip
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "shoe", "hat", "warm", "##s"]
TEXTS = {"1": "red shoes", "2": "warm blue hat", "3": "hat", "4": "blue zebra", "5": "red red red red warm hat shoe"}


def extract(*flags, expect=0):
    """Run the command."""
    assert main(["extract", *map(str, flags)]) == expect


def extract_and_stop(call, flags):
    """Run the command up to a call of the encoder, which never returns; the file `reached` tells of it."""
    encode, calls = Encoder.__call__, []

    def stop(encoder, prepared):
        calls.append(prepared)
        if len(calls) == call:
            Path("reached").touch()
            time.sleep(60)
        return encode(encoder, prepared)

    Encoder.__call__ = stop
    extract(*flags)


def refused(capsys, *flags):
    """What the command says of a mistake."""
    extract(*flags, expect=1)
    return capsys.readouterr().err


def write_pictures(folder):
    """Smooth pictures of several shapes, without a loss, by name."""
    folder.mkdir()
    random = np.random.default_rng(5)
    for i, (height, width) in enumerate(SIZES):
        small = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


# --- ONNX, as PyTorch exports it


def weights_of_nchw():
    random = np.random.default_rng(0)
    kernel = random.normal(size=(4, 3, 3, 3)).astype(np.float32)
    return kernel, random.normal(size=(5, 4)).astype(np.float32), random.normal(size=5).astype(np.float32)


def write_nchw(path, batch="N"):
    """Convolution, ReLU, global mean, dense layer."""
    kernel, dense, bias = weights_of_nchw()
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["/stage/relu"]),
        helper.make_node("GlobalAveragePool", ["/stage/relu"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense", "bias"], ["y"], transB=1),
    ]
    constants = [numpy_helper.from_array(a, n) for a, n in ((kernel, "kernel"), (dense, "dense"), (bias, "bias"))]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])
    _save(path, nodes, [x], [y], constants)
    return path


def _save(path, nodes, inputs, outputs, constants):
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def torch_pixels(path):
    """Resize(SHORT, BICUBIC), CenterCrop(SIDE), ToTensor, Normalize of torchvision: `[3, H, W]`."""
    with Image.open(path) as picture:
        width, height = picture.size
        short = min(width, height)
        size = (int(SHORT * width / short), int(SHORT * height / short))
        picture = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    top, left = round((size[1] - SIDE) / 2), round((size[0] - SIDE) / 2)
    values = np.asarray(picture)[top : top + SIDE, left : left + SIDE].astype(np.float64) / 255
    return ((values - MEAN) / STD).transpose(2, 0, 1)


def plain_nchw(pixels):
    """Outputs of the ReLU `[4, H, W]` and of the dense layer `[5]` for `[3, H, W]`."""
    kernel, dense, bias = weights_of_nchw()
    padded = np.pad(pixels, [(0, 0), (1, 1), (1, 1)])
    maps = sum(
        np.einsum("oc,chw->ohw", kernel[:, :, i, j], padded[:, i : i + SIDE, j : j + SIDE])
        for i in range(3)
        for j in range(3)
    )
    maps = np.maximum(maps, 0)
    return maps, dense @ maps.mean((1, 2)) + bias


# --- ONNX of texts, as Transformers exports them


def write_tokenizer(path):
    """A tokenizer.json with special tokens as BERT has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(dict(zip(WORDS, range(len(WORDS)), strict=True)), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.save(str(path))
    return tokenizer


def write_text_onnx(path, length="L"):
    """Vectors of tokens, mixed with the mean of all that the mask has."""
    table = np.random.default_rng(1).normal(size=(len(WORDS), 6)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["tokens", "mask3"], ["used"]),
        helper.make_node("ReduceSum", ["used", "middle"], ["sum"], keepdims=1),
        helper.make_node("Add", ["tokens", "sum"], ["last_hidden_state"]),
    ]
    constants = [numpy_helper.from_array(table, "table")]
    constants += [numpy_helper.from_array(np.array([a], np.int64), n) for a, n in ((2, "last"), (1, "middle"))]
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["N", length]) for n in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["N", length, 6])
    _save(path, nodes, inputs, [output], constants)
    return table


def plain_text(table, ids):
    """The mean of the tokens of one text."""
    tokens = table[ids].astype(np.float64)
    return (tokens + tokens.sum(0)).mean(0)


def write_texts(folder):
    path = folder / "items.csv"
    path.write_text("id,title\n" + "".join(f"{key},{text}\n" for key, text in TEXTS.items()), encoding="utf-8")
    return path


# --- Presets and SavedModels


def write_image_preset(folder):
    """A ResNet with random weights whose converter crops and scales as it likes; the backbone."""
    import keras_hub

    keras.utils.set_random_seed(3)
    backbone = keras_hub.models.ResNetBackbone(
        [64], [3], [64, 12], [1, 1], [1, 2], "basic_block", image_shape=(None, None, 3)
    )
    backbone.save_to_preset(str(folder))
    converter = keras_hub.layers.ResNetImageConverter(
        image_size=(24, 32), scale=[0.01, 0.02, 0.03], offset=[0.1, -0.2, 0.3], interpolation="bicubic"
    )
    converter.save_to_preset(str(folder))
    return backbone, converter


def write_text_preset(folder):
    """A BERT with random weights and a small vocabulary; the backbone and what prepares its inputs."""
    import keras_hub

    keras.utils.set_random_seed(4)
    backbone = keras_hub.models.BertBackbone(len(WORDS), 2, 2, 8, 16, max_sequence_length=12)
    tokenizer = keras_hub.tokenizers.BertTokenizer(vocabulary=[*WORDS, "[MASK]"], lowercase=True)
    backbone = keras_hub.models.BertBackbone(len(WORDS) + 1, 2, 2, 8, 16, max_sequence_length=12)
    backbone.save_to_preset(str(folder))
    tokenizer.save_to_preset(str(folder))
    return backbone, tokenizer


def write_saved_model(folder):
    """Pictures of 8 x 6 -> two dense layers; the model."""
    keras.utils.set_random_seed(6)
    x = inputs = keras.Input((8, 6, 3), name="pixels")
    x = keras.layers.Dense(4, activation="relu", name="inner")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, keras.layers.Dense(3, name="outer")(x))
    function = tf.function(lambda pixels: {"vector": model(pixels)})
    signature = function.get_concrete_function(tf.TensorSpec([None, 8, 6, 3], tf.float32, name="pixels"))
    tf.saved_model.save(model, str(folder), signatures=signature)
    return model


def write_settings(folder, **settings):
    path = folder / f"settings-{abs(hash(json.dumps(settings))) % 10**8}.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    return path
