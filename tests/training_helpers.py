"""Trainings of seconds: a few groups, pictures of 12 x 12, a backbone of three stages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property, partial
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image as Pillow

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.evaluation.evaluator import Evaluator
from easyrec_mm.evaluation.summary import EvalResults
from easyrec_mm.network.layers import backbones
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.training.trainer import Trainer

NUM_GROUPS, NUM_PICTURES, NUM_KINDS = 12, 5, 3

_TEXT = r"""
train_input_path: "%(data)s/%(file)s"
model_dir: "%(folder)s/m"
data_config {
  input_type: GroupRTPInput
  batch_size: 4
  image_root: "%(data)s"
  num_parallel_calls: 1
  separator: "\002"
  rtp_separator: "|"
  selected_cols: "0,1,2,3,4"
  label_fields: ["click", "kind"]
  input_fields { input_name: "click" input_type: INT32 }
  input_fields { input_name: "kind" input_type: INT32 }
  input_fields { input_name: "user" input_type: STRING }
  input_fields { input_name: "item" input_type: STRING }
  input_fields { input_name: "cat" input_type: INT32 }
  input_fields { input_name: "price" input_type: FLOAT }
  input_fields { input_name: "path" input_type: STRING }
  input_fields { input_name: "size" input_type: INT32 }
}
feature_config {
  features { input_names: "user" feature_type: IdFeature hash_bucket_size: 12 embedding_dim: 3 }
  features { input_names: "item" feature_type: IdFeature hash_bucket_size: 12 embedding_dim: 3 per_group: true }
  features { input_names: "cat" feature_type: IdFeature num_buckets: 2 embedding_dim: 3 per_group: true }
  features { input_names: "price" feature_type: RawFeature }
  features { input_names: "path" feature_type: ImgFeature img_shape { width: 12 height: 12 } }
  features { input_names: "size" feature_type: SampleNumFeature }
}
model_config {
  model_class: "E2E_MM_DBMTL"
  feature_groups { group_name: "img" feature_names: "path" }
  feature_groups { group_name: "all" feature_names: ["user", "item", "price"] }
  e2e_mm_dbmtl {
    img_model { num_classes: 4 %(img_model)s }
    %(head)s
    task_towers { tower_name: "click" label_name: "click" dnn { hidden_units: [4] use_bn: false } }
    l2_regularization: 0
  }
}
train_config { %(optimizers)s precision: FLOAT32 log_step_count_steps: 1 %(train)s }
"""
HIGHWAY = 'highway_dnn { input: "img" emb_size: 4 }'


def optimizer(kind: str = "adam", rate: float = 0.01, more: str = "") -> str:
    """Text of an optimizer_config."""
    rate_text = f"learning_rate {{ constant_learning_rate {{ learning_rate: {rate:g} }} }}"
    return f"optimizer_config {{ {kind}_optimizer {{ {rate_text} }} {more} }}"


def make_training_data(folder: Path) -> Path:
    """Pictures 0.png to 11.png, and files of groups of one to three samples; the folder.

    one.txt        a picture each, of 5; its kind and category are functions of it
    several.txt    one to three pictures each, or none, with ";" between them
    own.txt        a picture of its own for each group
    none.txt       no picture in most groups, in the first 4 of all
    """
    rng = np.random.default_rng(0)
    for i in range(NUM_GROUPS):
        Pillow.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(folder / f"{i}.png")
    names = {"one.txt": [], "several.txt": [], "own.txt": [], "none.txt": []}
    for i in range(NUM_GROUPS):
        size, picture = 1 + i % 3, i % NUM_PICTURES
        samples = [f"u{rng.integers(9)}\x02i{i % 7}\x02{picture % 2}\x02{rng.normal():.3f}" for _ in range(size)]
        clicks = "\x01".join(str(rng.integers(2)) for _ in range(size))
        kinds = "\x01".join([str(picture % NUM_KINDS)] * size)
        several = ";".join(f"{(picture + j) % NUM_PICTURES}.png" for j in range(i % 4))
        paths = (f"{picture}.png", several, f"{i}.png", f"{picture}.png" if i > 4 and i % 3 == 0 else "")
        for lines, path in zip(names.values(), paths, strict=True):
            lines.append("|".join([clicks, kinds, "\x01".join(samples), path, str(size)]))
    for name, lines in names.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def _three_stages(shape: tuple[int, int, int], has_batch_norm: bool) -> keras.Model:
    """Three times convolution with stride 2, batch norm, relu."""
    inputs = x = keras.Input((None, None, shape[2]))
    for i, filters in enumerate((3, 4, 4)):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False, name=f"conv{i}")(x)
        if has_batch_norm:
            x = keras.layers.BatchNormalization(momentum=0.9, name=f"bn{i}")(x)
        x = keras.layers.ReLU(name=f"relu{i}")(x)
    return keras.Model(inputs, x)


def use_backbone_of_three_stages(patch: pytest.MonkeyPatch, has_batch_norm: bool = True) -> None:
    """In place of ResNet."""
    entry = backbones.Entry(partial(_three_stages, has_batch_norm=has_batch_norm), backbones.MINUS_ONE_TO_ONE)
    patch.setitem(backbones.BACKBONES, "ResNet-18", entry)


def use_backbone_of_three_stages_alone(has_batch_norm: bool = True) -> None:
    """In place of ResNet in a process of its own, to its end."""
    use_backbone_of_three_stages(pytest.MonkeyPatch(), has_batch_norm)


class Training:
    """A training in its own folder, of settings that are parts of the text of its config.

    encoded    of each step the number of pictures that went through the tower
    history    values of all variables before the first step and after each
    """

    def __init__(
        self,
        data: Path,
        folder: Path,
        img_model: str = "",
        train: str = "num_epochs: 1",
        head: str = HIGHWAY,
        optimizers: str = optimizer(),
        file: str = "one.txt",
        changes: dict[str, str] | None = None,
    ):
        folder.mkdir(exist_ok=True)
        self.model_dir = folder / "m"
        text = _TEXT % {"data": data, "file": file, "folder": folder, "img_model": img_model, "head": head,
                        "optimizers": optimizers, "train": train}  # fmt: skip
        for old, new in (changes or {}).items():
            assert old in text
            text = text.replace(old, new)
        (folder / "test.config").write_text(text)
        self.pipeline = load_pipeline(str(folder / "test.config"))
        self.encoded: list[int] = []
        self.history: list[dict[str, np.ndarray]] = []

    @cached_property
    def trainer(self) -> Trainer:
        """Takes seconds to make, which a test of the config alone does not need."""
        return Trainer(self.pipeline)

    @property
    def model(self) -> MultimodalModel:
        return self.trainer.model

    def run(self) -> Training:
        """Train to the end."""
        step = self.trainer.run_step

        def spied(item):
            if item is None:  # the end
                return step(item)
            self.encoded.append(item.batch.pixels.shape[0])
            self.history = self.history or [self.values()]
            losses = step(item)
            self.history.append(self.values())
            return losses

        self.trainer.run_step = spied
        self.trainer.train()
        return self

    def values(self) -> dict[str, np.ndarray]:
        return {name: v.numpy() for name, v in self.model.named_variables().items()}

    def changed(self, first: int = 0, last: int = -1) -> set[str]:
        """Names of the variables that steps `first` to `last` have changed."""
        before, after = self.history[first], self.history[last]
        return {name for name, value in after.items() if not np.array_equal(value, before[name])}

    @property
    def log(self) -> list[dict]:
        """What metrics.jsonl says of each step."""
        return self.lines("train")

    def lines(self, kind: str) -> list[dict]:
        """Lines of that kind of metrics.jsonl."""
        lines = [json.loads(text) for text in (self.model_dir / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if line["kind"] == kind]

    def checkpoint(self, step: int) -> dict[str, np.ndarray]:
        """All numbers that the checkpoint of a step holds."""
        reader = tf.train.load_checkpoint(str(self.model_dir / f"model.ckpt-{step}"))
        dtypes = reader.get_variable_to_dtype_map()
        return {name: reader.get_tensor(name) for name, dtype in dtypes.items() if dtype != tf.string}


EACH_STEP = "save_checkpoints_steps: 1"


def set_evaluations(monkeypatch: pytest.MonkeyPatch, values: Iterable[float]) -> None:
    """Sets the AUC of the evaluations that follow."""
    left = iter(values)
    monkeypatch.setattr(Evaluator, "run", lambda *_: EvalResults({"auc_click": next(left), "num_samples": 9}))


def evaluated_training(
    data: Path,
    folder: Path,
    export: str,
    train: str = f"num_epochs: 3 {EACH_STEP}",
    optimizers: str = optimizer(),
    model_dir: str = "",
) -> Training:
    """A training of 9 steps that evaluates at each checkpoint."""
    added = f'''eval_input_path: "{data}/one.txt"
        eval_config {{ eval_interval_secs: 0 metrics_set {{ auc {{}} }} metrics_set {{ log_loss {{}} }} }}
        export_config {{ {export} }}
        model_dir: "{model_dir or folder / "m"}"'''
    changes = {f'model_dir: "{folder}/m"': added}
    return Training(data, folder, train=train, optimizers=optimizers, changes=changes)


def spy_on_loading(patch: pytest.MonkeyPatch) -> list[bytes]:
    """The paths of all pictures that are loaded from now on."""
    loaded: list[bytes] = []
    load = PictureLoader.load
    patch.setattr(PictureLoader, "load", lambda self, paths: loaded.extend(paths) or load(self, paths))
    return loaded


def assert_same_values(values: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 0.0) -> None:
    """Equal to the last bit, or nearly."""
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
