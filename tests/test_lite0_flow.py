"""Training and exporting with the pretrained weights of EfficientNet-Lite0, by the settings of any preset."""

import json

import pytest
from training_helpers import Training

from easyrec_mm.cli.main import main
from easyrec_mm.errors import ConfigError
from easyrec_mm.manifest import IMAGE_ONNX
from easyrec_mm.network.layers.backbones import preset_backbone

pytestmark = pytest.mark.slow
TOWER = "image/backbone/"


@pytest.mark.slow
def test_the_last_stages_are_trained_on_from_the_pretrained_weights(data, lite0_preset, tmp_path):
    """Of pictures of 12 x 12, which the network halves to one position. The export compares SavedModels and ONNX models
    with the network, and fails where they differ."""
    settings = f'preset: "{lite0_preset}" trainable: LAST_N_STAGES last_n_stages: 1 layer_decay: 0.5'
    training = Training(data, tmp_path / "t", settings).run()
    tower = {name for name in training.history[0] if name.startswith(TOWER)}
    pretrained = preset_backbone(str(lite0_preset), (12, 12, 3), "float32").model
    assert len(tower) == len(pretrained.variables)
    kernel = f"{TOWER}stem_conv/kernel"
    assert (training.history[-1][kernel] == pretrained.get_layer("stem_conv").kernel.numpy()).all()
    changed = {name.removeprefix(TOWER).split("/")[0] for name in training.changed() & tower}
    assert changed == {"block6a_", "block6b_", "block6c_", "block6d_", "block7a_", "top_conv", "top_bn"}
    folders = [f"--{kind}_model_export_dir={tmp_path / kind}" for kind in ("img", "rec", "total")]
    assert main(["export", "--model_dir", f"{training.model_dir}", *folders]) == 0
    manifest = json.loads((tmp_path / "img" / "manifest.json").read_text())
    assert IMAGE_ONNX in manifest["files"]
    assert manifest["parity"]["left_out"] == {}


def test_the_output_of_an_inner_layer(data, lite0_preset, tmp_path):
    settings = f'preset: "{lite0_preset}" trainable: HEAD feature_layer: "block5c_"'
    values = Training(data, tmp_path / "t", settings).values()
    assert values["image/projection/kernel"].shape == (112, 4)
    assert not any(name.startswith(f"{TOWER}block6a_") for name in values)
    with pytest.raises(ConfigError, match="no layer named 'block5c'; nearest names: block5c_,"):
        Training(data, tmp_path / "u", settings.replace("block5c_", "block5c")).run()


def test_a_name_is_found_where_it_was_fetched(data, lite0_preset, tmp_path, monkeypatch):
    """Or a config that names it says what to do, before anything is built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = 'preset: "efficientnet_lite0" trainable: NONE'
    with pytest.raises(
        ConfigError, match=r"not on this machine yet; run: easyrec-mm weights fetch efficientnet_lite0$"
    ):
        Training(data, tmp_path / "t", settings).run()
    folder = tmp_path / "cache" / "easyrec_mm" / "weights"
    folder.mkdir(parents=True)
    (folder / "efficientnet_lite0").symlink_to(lite0_preset)
    assert Training(data, tmp_path / "t", settings).values()[f"{TOWER}top_conv/kernel"].shape == (1, 1, 320, 1280)
