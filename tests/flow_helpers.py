"""Small demo data and a small model for tests of whole commands."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import keras
import make_demo_data as demo

from easyrec_mm.cli.main import main
from easyrec_mm.network.layers import backbones

ROOT = Path(__file__).resolve().parents[1]
IMAGE_SIZE = 16


def make_data(folder: Path, num_train_groups: int = 48, titles: bool = False) -> Path:
    """Demo data of a few groups; the folder."""
    options = demo.DemoOptions(
        num_train_groups=num_train_groups, num_eval_groups=12, num_test_groups=12, group_size=4, image_size=IMAGE_SIZE,
        titles=titles,
    )  # fmt: skip
    demo.write_demo_data(folder, options)
    return folder


def small_backbone(shape: tuple[int, int, int]) -> keras.Model:
    """One convolution with batch norm, in place of ResNet-18."""
    inputs = keras.Input((None, None, shape[2]))
    x = keras.layers.Conv2D(8, 3, strides=2, use_bias=False, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="bn")(x)
    return keras.Model(inputs, keras.layers.ReLU(name="relu")(x))


SMALL = backbones.Entry(small_backbone, backbones.MINUS_ONE_TO_ONE)


def use_small_backbone(monkeypatch) -> None:
    """Replace the demo's backbone."""
    monkeypatch.setitem(backbones.BACKBONES, "ResNet-18", SMALL)


def use_small_backbone_alone() -> None:
    """Replace the demo's backbone in a process of its own, to its end."""
    backbones.BACKBONES["ResNet-18"] = SMALL


def demo_flags(data: Path, model_dir: Path, **settings: object) -> list[str]:
    """Flags of the demo config for that data, small batches, one epoch; more settings by keyword, "__" for "."."""
    changed = {
        "train_input_path": f"{data}/train/*",
        "eval_input_path": "",  # an evaluation after each training would double the time of these tests
        "model_dir": model_dir,
        "data_config.image_root": data,
        "data_config.batch_size": 8,
        "data_config.num_parallel_calls": 2,
        "feature_config.features[11].img_shape.width": IMAGE_SIZE,
        "feature_config.features[11].img_shape.height": IMAGE_SIZE,
        "export_config.img_shape.width": IMAGE_SIZE,
        "export_config.img_shape.height": IMAGE_SIZE,
        "model_config.e2e_mm_dbmtl.img_model.descriptors.edge_grid": 0,  # they make an export a quarter longer
        "train_config.precision": "FLOAT32",
        "train_config.num_epochs": 1,
        "train_config.log_step_count_steps": 1,
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    return ["--pipeline_config", str(ROOT / "configs/demo.config"), *[f"--set={k}={v}" for k, v in changed.items()]]


def copy_checkpoint(source: Path, step: int, target: Path) -> None:
    """Make the checkpoint of that step in a model_dir the only one that another lists."""
    target.mkdir(parents=True, exist_ok=True)
    name = f"model.ckpt-{step}"
    for path in source.glob(f"{name}.*"):
        shutil.copy(path, target)
    (target / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n')


KINDS = {"image": "img", "rec": "rec", "total": "total"}


class Exported:
    """Demo data, a training of 6 steps with two checkpoints, and the export of the last.

    Made where the folder does not hold it yet. The export lies in `folder/exported/{image,rec,total}`.
    """

    def __init__(self, folder: Path) -> None:
        self.data, self.model_dir, self.folder = folder / "data", folder / "m", folder / "exported"
        self.flags = demo_flags(self.data, self.model_dir, train_config__save_checkpoints_steps=3)
        if not self.folder.exists():
            make_data(self.data)
            assert main(["train", *self.flags]) == 0
            assert main(self.export_arguments(self.folder)) == 0

    def export_arguments(self, folder: Path) -> list[str]:
        return [
            "export", "--model_dir", str(self.model_dir), "--eval_input_path", f"{self.data}/eval/*",
            "--parity_groups", "12", *[f"--{flag}_model_export_dir={folder / kind}" for kind, flag in KINDS.items()],
        ]  # fmt: skip

    def export_earlier(self, folder: Path) -> None:
        """Export the earlier checkpoint, which is another model."""
        assert main([*self.export_arguments(folder), "--checkpoint_path", f"{self.model_dir}/model.ckpt-3"]) == 0

    def keys(self) -> list[str]:
        """Pictures of the test data."""
        return sorted(str(path.relative_to(self.data)) for path in (self.data / "images" / "test").iterdir())


def numbers(results, place: str = "") -> dict[str, float]:
    """The numbers in eval_result.json by their places, those within lists and objects too."""
    if isinstance(results, (dict, list)):
        parts = results.items() if isinstance(results, dict) else enumerate(results)
        return {name: value for key, part in parts for name, value in numbers(part, f"{place}/{key}").items()}
    return {place: results} if isinstance(results, (int, float)) else {}


def embed(exported, store, models=None):
    """With the image model of that export, by default the last."""
    data, image = exported.data, (models or exported.folder) / "image"
    arguments = ["embed", "--img_model_dir", str(image), "--store", store, "--input"]
    arguments += [f"{data}/images/test/*", "--image_root", str(data), "--bad_pictures", os.devnull]
    assert main(arguments) == 0


def run(*arguments, expect=0):
    assert main([str(a) for a in arguments]) == expect
