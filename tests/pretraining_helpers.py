"""Pre-trainings of seconds: pictures of 12 x 12 whose classes are tints, at any brightness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from training_helpers import optimizer

from easyrec_mm.config.pipeline import Pipeline, load_pipeline
from easyrec_mm.pretraining.tables import prepared

TINTS = {"blue": (-48, -48, 96), "green": (-48, 96, -48), "red": (96, -48, -48)}
NUM_PICTURES = 90
TOWER = 'img_model { num_classes: 8 } highway_dnn { input: "img" emb_size: 8 }'
LABELLED = 'data_sets { name: "tints" input_path: "%(data)s/tints.csv" pictures: "%(data)s" label: "tint" %(more)s }'

_TEXT = """
model_dir: "%(folder)s/m"
data_config { input_type: ParquetInput batch_size: 16 seed: 3 num_parallel_calls: 1 }
feature_config {
  features { input_names: "path" feature_type: ImgFeature img_shape { width: 12 height: 12 } }
  features { input_names: "title" feature_type: TextFeature }
}
model_config {
  model_class: "E2E_MM_DBMTL"
  feature_groups { group_name: "img" feature_names: "path" }
  %(text_group)s
  e2e_mm_dbmtl { %(tower)s l2_regularization: 0 }
}
pretrain_config { %(pretrain)s held_out_share: 0.3 }
train_config { %(optimizer)s precision: FLOAT32 log_step_count_steps: 1 %(train)s }
"""


def make_pictures(folder: Path) -> Path:
    """Pictures, and tints.csv with path, title, tint (a text), and number (of the tint)."""
    rng = np.random.default_rng(0)
    lines = ["path,title,tint,number"]
    for i in range(NUM_PICTURES):
        number = i % len(TINTS)
        tint = list(TINTS)[number]
        pixels = rng.integers(40, 200) + np.array(TINTS[tint]) + rng.normal(0, 8, (12, 12, 3))
        Pillow.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,a {tint} thing no {i},{tint},{number}")
    (folder / "tints.csv").write_text("\n".join(lines) + "\n")
    return folder


def config_of(
    data: Path,
    folder: Path,
    pretrain: str = LABELLED,
    train: str = "num_steps: 60",
    tower: str = TOWER,
    more: str = "",
    has_text: bool = False,
) -> str:
    """The file of a config; `more` are settings of the data set."""
    folder.mkdir(exist_ok=True)
    settings = {
        "folder": folder, "tower": tower, "train": train, "optimizer": optimizer(rate=0.02),
        "pretrain": pretrain % {"data": data, "more": more},
        "text_group": 'feature_groups { group_name: "text" feature_names: "title" }' if has_text else "",
    }  # fmt: skip
    file = folder / "pretrain.config"
    file.write_text(_TEXT % settings)
    return str(file)


def pipeline_of(*arguments: object, **settings: object) -> Pipeline:
    """The prepared pipeline of `config_of`."""
    return prepared(load_pipeline(config_of(*arguments, **settings)))  # type: ignore[arg-type]
