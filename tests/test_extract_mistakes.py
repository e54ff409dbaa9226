"""extract: what is said of encoders, settings and configs that do not fit."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import pytest
from extract_helpers import (
    NCHW,
    refused,
    write_image_preset,
    write_nchw,
    write_pictures,
    write_saved_model,
    write_text_onnx,
    write_texts,
    write_tokenizer,
)

from easyrec_mm.errors import ConfigError
from easyrec_mm.extraction.encoders import vectors_of
from easyrec_mm.extraction.plan import Extraction, checked, read_plan
from easyrec_mm.extraction.preprocessing import Settings, read_settings, settings_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, texts and networks of both; not to be changed."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_pictures(folder / "pictures")
    write_texts(folder)
    write_nchw(folder / "net.onnx")
    write_text_onnx(folder / "words.onnx")
    write_text_onnx(folder / "nine.onnx", 9)
    write_tokenizer(folder / "tokenizer.json")
    write_saved_model(folder / "saved")
    (folder / "broken.onnx").write_bytes(b"no network")
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


TEXTS = ("--input", "items.csv", "--key_column", "id", "--text_column", "title")


@pytest.mark.parametrize(
    ("encoder", "settings", "says"),
    [
        ("--onnx=net.onnx", {**NCHW, "size": [32, 16]}, "'x' takes 3 x 16 x 16, but would get 3 x 32 x 16 (channels x"),
        ("--onnx=net.onnx", {**NCHW, "layout": "NHWC"}, "'x' takes 3 x 16 x 16, but would get 16 x 16 x 3 (height x w"),
        ("--onnx=net.onnx", {"channels": "GREY"}, "'x' takes 3 x 16 x 16, but would get 1 x 16 x 16"),
        ("--onnx=net.onnx", {"max_tokens": 7}, "--onnx net.onnx: max_tokens has no effect, because the encoder takes "),
        ("--onnx=net.onnx", {"inputs": {"pixels": "z"}}, "inputs: has no input 'z'; its inputs are x"),
        ("--onnx=net.onnx", {"layers": ["/stage/rel"]}, "no layer named '/stage/rel'; nearest names: /stage/relu"),
        ("--onnx=net.onnx", {"pooling": "max"}, "layer 'y': its output [1, 5] has nothing for pooling: max; remove th"),
        ("--onnx=net.onnx", {"layers": ["conv"], "pooling": "cls"}, "its output [1, 4, 16, 16] has nothing for poolin"),
        ("--onnx=net.onnx", {**NCHW, "resize_to": 12}, "resize_to: 12 is less than size [16, 16]; raise it"),
        ("--onnx=broken.onnx", {"size": 16}, "--onnx broken.onnx: is not an ONNX model: "),
        ("--onnx=none.onnx", {"size": 16}, "--onnx none.onnx: no such file; give a model in the ONNX format"),
        ("--onnx=words.onnx", {"pooling": "mean"}, "takes tokens; name its tokenizer (tokenizer: tokenizer.json in --"),
        ("--onnx=words.onnx", {"tokenizer": "items.csv"}, "tokenizer: items.csv cannot be read: "),
        ("--onnx=words.onnx", {"tokenizer": "tokenizer.json", "size": 9}, "size has no effect, because the encoder ta"),
        ("--onnx=words.onnx", {"inputs": {"token_ids": "input_ids"}}, "takes attention_mask, too; say what each input"),
        ("--onnx=nine.onnx", {"tokenizer": "tokenizer.json", "max_tokens": 12}, "'input_ids' takes 9 tokens, but wou"),
        ("--saved_model=pictures", {"size": 9}, "--saved_model pictures: is not the folder of a SavedModel, which con"),
        ("--saved_model=saved", {"signature": "serving"}, "signature: no signature 'serving'; choose one of serving_d"),
        ("--saved_model=saved", {"size": 9}, "'pixels' takes 8 x 6 x 3, but would get 9 x 9 x 3"),
        ("--preset=all_minilm_l6_v3", {"pooling": "cls"}, "--preset 'all_minilm_l6_v3' is neither a folder nor a pres"),
        ("--preset=pictures", {"pooling": "cls"}, "--preset 'pictures' cannot be loaded: "),
        ("--preset=efficientnet_lite0", {"size": 9}, "is not on this machine yet; run: easyrec-mm weights fetch effic"),
    ],
)  # fmt: skip
def test_encoders_that_do_not_fit(here, tmp_path, monkeypatch, capsys, encoder, settings, says):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "s.yaml"
    path.write_text(json.dumps(settings))
    flags = [encoder, "--preprocessing", path, "--store", f"lmdb://{tmp_path}/s"]
    flags += TEXTS if "words" in encoder or "nine" in encoder else ["--input", "pictures/*"]
    assert says in refused(capsys, *flags)
    assert not (tmp_path / "s").exists()


def test_a_hub_that_cannot_be_reached(here, tmp_path, monkeypatch, capsys):
    """A name that keras-hub knows, without a network."""
    import keras_hub

    def fail(name):
        raise ConnectionError("Failed to resolve 'www.kaggle.com'")

    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", fail)
    said = refused(capsys, "--preset", "bert_tiny_en_uncased", *TEXTS, "--output", tmp_path / "v.npy")
    assert "'bert_tiny_en_uncased' cannot be fetched: Failed to resolve 'www.kaggle.com'; without network acc" in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--store=lmdb://s", "--input=p"], "error: --preset, saved_model, onnx: none is given; give one of"),
        (["--onnx=n", "--preset=p", "--store=lmdb://s", "--input=p"], "--preset and onnx exclude each other; give one"),
        (["--onnx=n", "--input=p"], "--store, output: none is given; give one of store, output"),
        (["--onnx=n", "--output=v.csv", "--input=p"], "--output: 'v.csv' is neither .parquet nor .npy; write one of t"),
        (["--onnx=n", "--output=v.npy"], "--input: is missing; give pictures, or a table or list with paths or texts"),
        (["--config=c", "--onnx=n"], "--onnx: has no effect with --config; write it into c"),
        (["--config=none.yaml"], "none.yaml: cannot be read: No such file or directory; check the path"),
        (["--onnx=net.onnx", "--input=pictures/*", "--output=/proc/v/v.npy"], "--output /proc/v/v.npy: cannot be writ"),
        (["--onnx=net.onnx", "--input=none/*", "--output=v.npy"], "--input: 'none/*' matches no file; check the path"),
        (["--onnx=net.onnx", "--output=v.npy", *TEXTS], "--text_column: has no effect, because --onnx net.onnx takes "),
        (["--onnx=net.onnx", "--layers=y,flat", "--input=pictures/*", "--store=lmdb://s"],
         "lmdb://s: is the place of 'y' of net.onnx and of 'flat' of net.onnx; write {layer} or {name} into --store"),
    ],
)  # fmt: skip
def test_flags_that_do_not_fit(here, monkeypatch, capsys, tmp_path, flags, says):
    assert says in refused(capsys, *flags, "--bad_items", tmp_path / "bad")


def test_a_store_with_vectors_of_another_number_format(here, tmp_path, capsys):
    from extract_helpers import extract

    flags = ["--onnx", "net.onnx", "--input", "pictures/*", "--store", f"lmdb://{tmp_path}/s"]
    flags += ["--bad_items", tmp_path / "b"]
    extract(*flags)
    assert "with this fingerprint holds vectors of 5 float32, not 5 float16" in refused(
        capsys, *flags, "--dtype=float16"
    )


def test_an_npy_has_no_keys_with_line_breaks(here, tmp_path, capsys):
    (tmp_path / "p.csv").write_text('key,path\n"a\nb",0.png\n')
    flags = ["--onnx", "net.onnx", "--input", tmp_path / "p.csv", "--key_column", "key", "--path_column", "path"]
    flags += ["--image_root", "pictures", "--bad_items", tmp_path / "b"]
    said = refused(capsys, *flags, "--output", tmp_path / "v.npy")
    assert re.search(r"the key 'a\\+nb' has a line break; write Parquet instead", said)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "s.yaml: names no setting; write lines such as size: [224, 224]"),
        ("size: [1", "s.yaml:1: is not YAML"),
        ("size: 8\nsize: 9", "s.yaml:2: size: stands in line 1, too; keep one of them"),
        ("sice: 8", "s.yaml:1: sice: no such setting; did you mean 'size'?"),
        ("size: [8, 9, 3]", "s.yaml:1: size: is [8, 9, 3]; give [height, width]"),
        ("fit: croop", "s.yaml:1: fit: is 'croop'; did you mean 'crop'?"),
        ("resize: 3", "s.yaml:1: resize: is 3; give one of nearest, bilinear, bicubic, lanczos, area"),
        ("antialias: 1", "s.yaml:1: antialias: is 1; give true or false"),
        ("mean: [1, 2]", "s.yaml:1: mean: is [1, 2]; give a number, or three for the channels"),
        ("std: 0", "s.yaml:1: std: is 0; give numbers above 0"),
        (
            "mean: 0.5\nscale: 2",
            "s.yaml:2: scale: cannot be combined with mean; give mean and std, or scale and offset",
        ),
        ("fit: pad\nresize_to: 9", "s.yaml:2: resize_to: has no effect with fit: pad; give fit: crop, or remove it"),
        ("max_tokens: 0", "s.yaml:1: max_tokens: is 0; give a whole number, 1 or more"),
        ("inputs: {pixel: x}", "s.yaml:1: inputs: no input stands for 'pixel'; did you mean 'pixels'?"),
        ("inputs: x", "s.yaml:1: inputs: is 'x'; write {pixels: name}, with names of inputs of the network"),
        ("layers: [a, a]", "s.yaml:1: layers: is ['a', 'a']; give names, each once"),
    ],
)
def test_settings_that_are_wrong(tmp_path, text, says):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_settings(str(tmp_path / "s.yaml"))
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("onnx: n.onnx", "c.yaml: store, output: none is given"),
        ("extractions: {onnx: n}", "c.yaml:1: extractions: is not a list of extractions; write extractions: [{preset:"),
        ("extractions: [{onx: n}]", "c.yaml: extractions[1]: onx: no such setting; did you mean 'onnx'?"),
        ("batch_size: x", "c.yaml:1: batch_size: is 'x'; give a whole number, 0 or more"),
        ("input: 3", "c.yaml:1: input: is 3; give a text"),
        (
            "extractions: [{preprocessing: {sice: 3}}]",
            "extractions[1]: preprocessing: sice: no such setting; did you me",
        ),
    ],
)
def test_configs_that_are_wrong(tmp_path, text, says):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(Exception, match=re.escape(says)):
        read_plan(str(tmp_path / "c.yaml"))


def test_what_an_extraction_has_of_its_own_replaces_what_all_have(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "{onnx: a.onnx, input: i, store: 'lmdb://{name}', extractions: [{}, {preset: p}, {output: o.npy, layers: l}]}"
    )
    first, second, third = read_plan(str(tmp_path / "c.yaml"))
    assert first == Extraction("i", onnx="a.onnx", store="lmdb://{name}")
    assert second == Extraction("i", preset="p", store="lmdb://{name}")
    assert (third.onnx, third.store, third.output, third.preprocessing.layers) == ("a.onnx", "", "o.npy", ("l",))
    assert [first.place("x"), second.place("x")] == ["lmdb://a", "lmdb://p"]
    with pytest.raises(Exception, match="--dtype: is 'int8'"):
        checked(Extraction("i", onnx="a", output="v.npy", dtype="int8"))


def test_poolings():
    """Against plain loops; tokens that are not used count nowhere, and a vector of zeros stays."""
    random = np.random.default_rng(0)
    tokens, maps = random.normal(size=(2, 3, 4)), random.normal(size=(2, 4, 5, 6))
    mask = np.array([[True, True, False], [True, False, False]])

    def vectors(x, mask=None, **settings):
        return vectors_of(x, mask, settings_of(settings, "s"), "p")

    expected = [tokens[0, :2].mean(0), tokens[1, 0]]
    np.testing.assert_allclose(vectors(tokens, mask, pooling="mean"), expected, rtol=1e-5)
    np.testing.assert_allclose(vectors(tokens, mask, pooling="max"), [tokens[0, :2].max(0), tokens[1, 0]], rtol=1e-5)
    np.testing.assert_allclose(vectors(tokens, mask, pooling="cls"), tokens[:, 0], rtol=1e-5)
    np.testing.assert_allclose(vectors(maps, pooling="mean", layout="NCHW"), maps.mean((2, 3)), rtol=1e-4)
    np.testing.assert_allclose(vectors(maps, pooling="max"), maps.max((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(vectors(maps, pooling="flatten"), maps.reshape(2, -1), rtol=1e-5)
    unit = vectors(np.array([[3.0, 4.0], [0.0, 0.0]]), normalize="l2")
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    with pytest.raises(Exception, match="texts have different numbers of tokens; choose pooling"):
        vectors(tokens, mask, pooling="flatten")


def test_weights_of_an_onnx_file_may_lie_beside_it(here, tmp_path):
    """As those of large models; they decide the fingerprint."""
    from easyrec_mm.extraction.onnx_network import OnnxNetwork

    paths = [tmp_path / str(i) / "n.onnx" for i in range(2)]
    for i, path in enumerate(paths):
        path.parent.mkdir()
        model = onnx.load("net.onnx")
        if i:
            model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[::-1]
        onnx.save(model, str(path), save_as_external_data=True, location="weights", size_threshold=0)
    first, second = (OnnxNetwork(str(path), ()) for path in paths)
    x = {"pixels": np.ones((1, 3, 16, 16), np.float32)}
    np.testing.assert_array_equal(first.run(x)[0], OnnxNetwork("net.onnx", ()).run(x)[0])
    assert first.source != second.source


def test_a_preset_of_any_size_needs_one(tmp_path, capsys):
    write_image_preset(tmp_path / "p")
    (tmp_path / "p" / "image_converter.json").unlink()
    said = refused(capsys, "--preset", tmp_path / "p", "--input", "x", "--output", tmp_path / "v.npy")
    assert "takes pictures of any size; give one (size: [224, 224] in --preprocessing)" in said


def test_settings_over_defaults():
    defaults = Settings(size=(8, 8), scale=(0.5,), offset=(1.0,))
    assert Settings(mean=(0.5,)).over(defaults) == Settings(size=(8, 8), mean=(0.5,))
    assert Settings(resize="area").over(defaults) == Settings(size=(8, 8), scale=(0.5,), offset=(1.0,), resize="area")
