"""Folders with presets: what they say of their pictures, and files in them that cannot be read."""

import json

import pytest
from config_helpers import IMAGE, size

from easyrec_mm.config.image import PresetFiles, read_preset

SAVED = {"module": "keras_hub", "class_name": "X", "registered_name": "keras_hub>X"}


@pytest.fixture
def preset(tmp_path):
    """Writes the configs of a preset's folder; texts, or settings as Keras saves them."""

    def write(backbone=None, converter=None):
        folder = tmp_path / "preset"
        folder.mkdir()
        for name, content in (("config.json", backbone), ("image_converter.json", converter)):
            if content is not None:
                text = content if isinstance(content, str) else json.dumps({**SAVED, "config": content})
                (folder / name).write_text(text, encoding="utf-8")
        return folder

    return write


ANY = (None, None, None)


@pytest.mark.parametrize(
    ("backbone", "converter", "shape", "resized"),
    [
        ({"image_shape": [48, 64, 3]}, None, (48, 64, 3), (None, None)),
        ({"image_shape": [None, None, 3]}, {"image_size": [48, 64]}, (None, None, 3), (48, 64)),
        ({"image_shape": None}, {"image_size": None, "scale": 0.1}, ANY, (None, None)),
        ({"hidden_dim": 8}, {"height": 48, "width": 64, "mean": [0, 0, 0], "variance": [1, 1, 1]}, ANY, (48, 64)),
        (
            {"vision_encoder": {**SAVED, "config": {"image_shape": [48, 64, 3]}}, "text_encoder": {}},
            None,
            (48, 64, 3),
            (None, None),
        ),
        ({"vision_encoder": {**SAVED, "config": {}}}, None, ANY, (None, None)),
    ],
)
def test_what_a_preset_says_of_its_pictures(preset, backbone, converter, shape, resized):
    assert read_preset(preset(backbone, converter)) == PresetFiles(shape, resized)


@pytest.mark.parametrize(
    ("backbone", "converter", "says"),
    [
        (None, None, "config.json is missing (the folder contains nothing); give a folder written by save_to_preset"),
        (None, {}, "config.json is missing (the folder contains image_converter.json)"),
        ("{", None, "config.json is not JSON; give a folder written by save_to_preset"),
        ('{"model_type": "vit"}', None, "config.json is not a config of a keras-hub preset"),
        ("[1, 2]", None, "config.json is not a config of a keras-hub preset"),
        ('{"config": [1]}', None, "config.json is not a config of a keras-hub preset"),
        ({"vision_encoder": None}, None, "config.json is not a config of a keras-hub preset"),
        (
            {"image_shape": [224, 224]},
            None,
            "config.json is not a config of a keras-hub preset: its picture size is [224,",
        ),
        ({"image_shape": 224}, None, "config.json is not a config of a keras-hub preset: its picture size is 224"),
        ({"image_shape": ["a", "b", 3]}, None, "its picture size is ['a', 'b', 3]"),
        ({}, "{", "image_converter.json is not JSON"),
        (
            {},
            {"image_size": 224},
            "image_converter.json is not a config of a keras-hub preset: its picture size is 224",
        ),
    ],
)
def test_files_of_a_preset_that_cannot_be_read(problems, preset, backbone, converter, says):
    folder = preset(backbone, converter)
    ((place, message),) = problems([f"{IMAGE}.preset={folder}"])
    assert place == f"{IMAGE}.preset"
    assert message.startswith(f"'{folder}': ")
    assert says in message


def test_a_preset_of_bytes_that_are_no_text(problems, preset):
    folder = preset()
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    ((_, message),) = problems([f"{IMAGE}.preset={folder}"])
    assert "config.json is not JSON" in message


def test_a_preset_of_texts(problems):
    ((_, message),) = problems([f"{IMAGE}.preset=all_minilm_l6_v2"])
    assert message == "'all_minilm_l6_v2' encodes texts; use it in text_model, or choose a preset of pictures"


def test_many_files_in_the_place_of_a_preset(problems, preset):
    """A few are named."""
    folder = preset()
    for i in range(20):
        (folder / f"part-{i:02}").touch()
    ((_, message),) = problems([f"{IMAGE}.preset={folder}"])
    assert "part-07" in message
    assert "part-08" not in message


@pytest.mark.parametrize(
    ("backbone", "converter", "fits", "takes"),
    [
        ({"image_shape": [48, 64, 3]}, None, (64, 48, 3), "64 x 48 x 3"),
        ({"image_shape": [None, None, 3]}, {"image_size": [48, 64]}, (64, 48, 3), "64 x 48 x 3"),
        ({"image_shape": [None, None, 3]}, None, (20, 30, 3), "any x any x 3"),
        # The backbone's own shape is what it cannot do without.
        ({"image_shape": [48, 64, 3]}, {"image_size": [96, 96]}, (64, 48, 3), "64 x 48 x 3"),
        ({}, {"image_size": [48, 64]}, (64, 48, 1), "64 x 48 x any"),
    ],
)
def test_the_size_of_a_presets_pictures(load, problems, preset, backbone, converter, fits, takes):
    """In the order of img_shape: width, height, channels; a preset's files hold the height first."""
    folder = preset(backbone, converter)
    load(overrides=[*size(*fits), f"{IMAGE}.preset={folder}"])
    width, height, channels = takes.split(" x ")
    others = [(63, 48, 3)] * (width != "any") + [(64, 47, 3)] * (height != "any") + [(64, 48, 1)] * (channels != "any")
    assert others
    for other in others:
        ((place, message),) = problems([*size(*other), f"{IMAGE}.preset={folder}"])
        assert place == f"{IMAGE}.preset"
        given = f"{other[0]} x {other[1]} x {other[2]}"
        assert message == (
            f"'{folder}' takes pictures of {takes} (width x height x channels), but would get {given}; "
            "change img_shape or upscale"
        )
