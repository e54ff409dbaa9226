"""Training with what img_model and the optimizers can be told: what is trained, what is encoded, what is kept."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image as Pillow

from easyrec_mm.config import load_pipeline
from easyrec_mm.layers import backbones
from easyrec_mm.trainer import Trainer

NUM_GROUPS, NUM_PICTURES, NUM_KINDS, BATCH_SIZE = 12, 5, 3, 4
STEPS_PER_EPOCH = NUM_GROUPS // BATCH_SIZE

_TEXT = r"""
train_input_path: "%(data)s/train.txt"
model_dir: "%(model_dir)s"
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
train_config {
  %(optimizers)s
  precision: %(precision)s
  log_step_count_steps: 1
  %(train)s
}
"""
SGD = "optimizer_config { sgd_optimizer { learning_rate { constant_learning_rate { learning_rate: %g } } } %s }"
ADAM = "optimizer_config { adam_optimizer { learning_rate { constant_learning_rate { learning_rate: %g } } } %s }"
HEAD = "highway_dnn { input: 'img' emb_size: 4 }"


def path_of(i):
    return f"{i % NUM_PICTURES}.png"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Groups of one to three samples that share five pictures, of two categories."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(NUM_PICTURES):
        Pillow.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(folder / f"{i}.png")
    lines = []
    for i in range(NUM_GROUPS):
        size, picture = 1 + i % 3, i % NUM_PICTURES
        samples = [f"u{rng.integers(9)}\x02i{i % 7}\x02{picture % 2}\x02{rng.normal():.3f}" for _ in range(size)]
        clicks = [str(rng.integers(2)) for _ in range(size)]
        lines.append("|".join(["\x01".join(clicks), "\x01".join([str(picture % NUM_KINDS)] * size), "\x01".join(samples), path_of(i), str(size)]))
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    return folder


def backbone(shape, batch_norm=True):
    inputs = x = keras.Input((None, None, shape[2]))
    for i, filters in enumerate((3, 4, 4)):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=not batch_norm, name=f"conv{i}")(x)
        if batch_norm:
            x = keras.layers.BatchNormalization(name=f"bn{i}")(x)
        x = keras.layers.ReLU(name=f"relu{i}")(x)
    return keras.Model(inputs, x)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    use_backbone(monkeypatch)


def use_backbone(monkeypatch, **options):
    entry = backbones.Entry(lambda shape: backbone(shape, **options), backbones.MINUS_ONE_TO_ONE)
    monkeypatch.setitem(backbones.BACKBONES, "ResNet-18", entry)


class Training:
    """A training in its own folder; settings are texts of the config."""

    def __init__(self, data, folder, img_model="", head=HEAD, optimizers=ADAM % (0.01, ""), precision="FLOAT32",
                 train="num_epochs: 1", change=lambda text: text):  # fmt: skip
        self.folder = folder
        folder.mkdir(exist_ok=True)
        values = {"data": data, "model_dir": folder / "m", "img_model": img_model, "head": head}
        text = _TEXT % {**values, "optimizers": optimizers, "precision": precision, "train": train}
        (folder / "test.config").write_text(change(text))
        self.trainer = Trainer(load_pipeline(str(folder / "test.config")))
        self.names = self.trainer._model.named_variables()

    def run(self):
        self.result = self.trainer.train()
        return self

    @property
    def values(self):
        return {name: v.numpy() for name, v in self.names.items()}

    @property
    def log(self):
        return [json.loads(line) for line in (self.folder / "m/metrics.jsonl").read_text().splitlines()]


import time


@pytest.mark.parametrize("i", range(3))
def test_time(data, tmp_path, i):
    t0 = time.time()
    t = Training(data, tmp_path)
    t1 = time.time()
    print([s.name for s in t.trainer._model.image.stages])
    print(list(t.names))
    t.run()
    print("TIMES", t1 - t0, time.time() - t1)
    print(t.log[0])
