"""extract: the vectors of each kind of encoder are those of its own pipeline, wherever they go."""

from __future__ import annotations

import re

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import yaml
from extract_helpers import (
    NCHW,
    SIZES,
    TEXTS,
    extract,
    plain_nchw,
    plain_text,
    refused,
    torch_pixels,
    write_image_preset,
    write_nchw,
    write_pictures,
    write_saved_model,
    write_settings,
    write_text_onnx,
    write_text_preset,
    write_texts,
    write_tokenizer,
)
from PIL import Image

import easyrec_mm as er
from easyrec_mm.store import open_store

EQUAL = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures and texts; not to be changed."""
    folder = tmp_path_factory.mktemp("extract")
    write_pictures(folder / "pictures")
    write_texts(folder)
    return folder


def pixels_of(folder):
    return [np.asarray(Image.open(folder / "pictures" / f"{i}.png").convert("RGB")) for i in range(len(SIZES))]


def pictures_of(folder):
    return ["--input", f"{folder}/pictures/*", "--image_root", f"{folder}/pictures"]


def vectors_in(path):
    """Key -> vector."""
    if str(path).startswith("lmdb://"):
        store = open_store(str(path))
        try:
            return {r.key: r.vector for r in store.scan(store.meta().current_generation)}
        finally:
            store.close()
    if path.suffix == ".npy":
        keys = path.with_name(f"{path.stem}.ids.txt").read_text(encoding="utf-8").splitlines()
        return dict(zip(keys, np.load(path), strict=True))
    table = pq.read_table(path)
    return dict(zip(table["key"].to_pylist(), map(np.array, table["vector"].to_pylist()), strict=True))


def rows(path, keys):
    found = vectors_in(path)
    assert set(found) == set(keys)
    return np.stack([found[key] for key in keys])


PICTURES = [f"{i}.png" for i in range(len(SIZES))]


def test_onnx_of_pytorch(folder, tmp_path):
    """The output and an inner tensor, with torchvision's preprocessing."""
    flags = ["--onnx", write_nchw(tmp_path / "n.onnx"), "--preprocessing", write_settings(tmp_path, **NCHW)]
    extract(*flags, *pictures_of(folder), "--layers", "y,/stage/relu", "--output", f"{tmp_path}/v_{{layer}}.npy")
    outputs = [plain_nchw(torch_pixels(folder / "pictures" / name)) for name in PICTURES]
    np.testing.assert_allclose(rows(tmp_path / "v_y.npy", PICTURES), [y for _, y in outputs], **EQUAL)
    means = [maps.mean((1, 2)) for maps, _ in outputs]
    np.testing.assert_allclose(rows(tmp_path / "v_stage_relu.npy", PICTURES), means, **EQUAL)
    assert np.std(means) > 0.1
    origin = yaml.safe_load((tmp_path / "v_stage_relu.yaml").read_text())
    assert origin["preprocessing"] == {**NCHW, "channels": "RGB", "resampler": "pillow", "pooling": "mean"}
    assert (origin["layer"], origin["width"], origin["kind"]) == ("/stage/relu", 4, "image")


def test_an_onnx_file_of_one_picture_a_time(folder, tmp_path):
    """Its batches are divided; maxima of maps, of length 1."""
    settings = write_settings(tmp_path, **NCHW, pooling="max", normalize="l2", layers=["/stage/relu"])
    flags = ["--onnx", write_nchw(tmp_path / "n.onnx", batch=1), "--preprocessing", settings]
    extract(*flags, *pictures_of(folder), "--output", tmp_path / "v.parquet")
    maxima = np.stack([plain_nchw(torch_pixels(folder / "pictures" / n))[0].max((1, 2)) for n in PICTURES])
    expected = maxima / np.linalg.norm(maxima, axis=1, keepdims=True)
    np.testing.assert_allclose(rows(tmp_path / "v.parquet", PICTURES), expected, **EQUAL)


def test_a_preset_of_pictures(folder, tmp_path):
    """By its own image converter; and with settings that replace parts of it."""
    backbone, converter = write_image_preset(tmp_path / "p")
    flags = ["--preset", tmp_path / "p", *pictures_of(folder)]
    extract(*flags, "--store", f"lmdb://{tmp_path}/s")
    expected = [backbone(converter(pixels[None])).numpy().mean((0, 1, 2)) for pixels in pixels_of(folder)]
    np.testing.assert_allclose(rows(f"lmdb://{tmp_path}/s", PICTURES), expected, **EQUAL)
    assert np.std(expected) > 0.01

    layer = "stack0_block0_out"
    settings = write_settings(tmp_path, size=[16, 20], fit="stretch", resize="bilinear", mean=0.5, std=0.25)
    extract(*flags, "--preprocessing", settings, "--layers", layer, "--output", tmp_path / "v.npy")
    inner = keras.Model(backbone.inputs, backbone.get_layer(layer).output)
    # Keras keeps whole numbers whole.
    resized = [np.round(tf.image.resize(pixels, (16, 20))) for pixels in pixels_of(folder)]
    expected = [inner((x[None] / 255 - 0.5) / 0.25).numpy().mean((0, 1, 2)) for x in resized]
    np.testing.assert_allclose(rows(tmp_path / "v.npy", PICTURES), expected, **EQUAL)


def test_a_preset_of_texts(folder, tmp_path):
    """Mean of all tokens and the first token, against each text by itself, without padding."""
    backbone, tokenizer = write_text_preset(tmp_path / "p")
    flags = ["--preset", tmp_path / "p", "--input", folder / "items.csv"]
    flags += ["--key_column", "id", "--text_column", "title"]
    settings = write_settings(tmp_path, max_tokens=12)
    extract(*flags, "--preprocessing", settings, "--output", tmp_path / "v.parquet")
    expected = []
    for text in TEXTS.values():
        ids = np.array([[2, *np.asarray(tokenizer(text)), 3]])
        inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}
        expected.append(backbone(inputs)["sequence_output"].numpy()[0])
    means = [tokens.mean(0) for tokens in expected]
    np.testing.assert_allclose(rows(tmp_path / "v.parquet", TEXTS), means, **EQUAL)
    assert np.std(means, axis=0).min() > 0.001
    settings = write_settings(tmp_path, max_tokens=12, pooling="cls")
    extract(*flags, "--preprocessing", settings, "--output", tmp_path / "v.parquet")
    np.testing.assert_allclose(rows(tmp_path / "v.parquet", TEXTS), [t[0] for t in expected], **EQUAL)


@pytest.mark.parametrize("length", ["L", 9])
def test_onnx_of_transformers(folder, tmp_path, length):
    """With its tokenizer.json beside the settings; its input of any length, or of one."""
    table = write_text_onnx(tmp_path / "t.onnx", length)
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    settings = write_settings(tmp_path, tokenizer="tokenizer.json", max_tokens=9)
    flags = ["--onnx", tmp_path / "t.onnx", "--preprocessing", settings, "--input", folder / "items.csv"]
    extract(*flags, "--key_column", "id", "--text_column", "title", "--output", tmp_path / "v.parquet")
    expected = [plain_text(table, tokenizer.encode(text).ids) for text in TEXTS.values()]
    np.testing.assert_allclose(rows(tmp_path / "v.parquet", TEXTS), expected, **EQUAL)


def test_a_saved_model(folder, tmp_path, capsys):
    """Its output and an inner tensor, found by a message; blue first, as OpenCV has it, in integers 0-255 times 0.5."""
    model = write_saved_model(tmp_path / "m")
    settings = write_settings(tmp_path, resize="bilinear", channels="BGR", scale=0.5)
    flags = ["--saved_model", tmp_path / "m", "--preprocessing", settings, *pictures_of(folder)]
    said = refused(capsys, *flags, "--layers", "inner/Relu", "--output", tmp_path / "x.npy")
    inner = re.search(r"no layer named 'inner/Relu'; nearest names: .*?([\w/]+/inner\w*/Relu)", said)[1]
    extract(*flags, "--layers", f"vector,{inner}", "--output", f"{tmp_path}/{{name}}_{{layer}}.npy")
    pixels = [np.asarray(Image.fromarray(x).resize((6, 8), Image.Resampling.BILINEAR)) for x in pixels_of(folder)]
    x = np.stack(pixels)[..., ::-1].astype(np.float32) * 0.5
    hidden = keras.Model(model.inputs, model.get_layer("inner").output)(x)
    np.testing.assert_allclose(rows(tmp_path / "m_vector.npy", PICTURES), model(x), rtol=1e-5, atol=1e-4)
    found = rows(tmp_path / f"m_{inner.replace('/', '_')}.npy", PICTURES)
    np.testing.assert_allclose(found, hidden, rtol=1e-5, atol=1e-4)


def test_python(folder, tmp_path):
    """From a DataFrame, into 16 bits; without columns, a line is a text and its own key."""
    pandas = pytest.importorskip("pandas")
    table = write_text_onnx(tmp_path / "t.onnx")
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    settings = {"tokenizer": str(tmp_path / "tokenizer.json")}
    expected = [plain_text(table, tokenizer.encode(text).ids) for text in TEXTS.values()]
    frame = pandas.DataFrame({"id": [*TEXTS], "words": [*TEXTS.values()]})
    common = {"onnx": tmp_path / "t.onnx", "preprocessing": settings, "bad_items": str(tmp_path / "bad")}
    output = tmp_path / "v.npy"
    (result,) = er.extract(frame, text_column="words", key_column="id", dtype="float16", output=output, **common)
    assert (result.kind, result.width, result.result.embedded) == ("text", 6, len(TEXTS))
    assert np.load(output).dtype == np.float16
    np.testing.assert_allclose(rows(output, TEXTS), expected, rtol=1e-2)
    (tmp_path / "titles.txt").write_text("\n".join(TEXTS.values()))
    er.extract(tmp_path / "titles.txt", output=tmp_path / "w.npy", **common)
    np.testing.assert_allclose(rows(tmp_path / "w.npy", TEXTS.values()), expected, **EQUAL)
    with pytest.raises(er.UserError, match=r"extract: no option 'outputs'; did you mean 'output'\?"):
        er.extract(frame, outputs="x", **common)
