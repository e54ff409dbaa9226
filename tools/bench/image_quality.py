"""What each device of the image tower is worth: test AUC on demo data, on several seeds.

Every variant trains configs/demo.config with some settings changed, by the public commands, on the same data. "Frozen
pretrained" trains the tower first on nothing but the category of the pictures (the label cate_label), then keeps it.

    python tools/bench/image_quality.py [--seeds 0 1 2] [--variants "no picture" "end to end"]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import workload
from google.protobuf import text_format

from easyrec_mm.config import parse_config

TOWER = "model_config.e2e_mm_dbmtl.img_model"
TOWERS = "model_config.e2e_mm_dbmtl.task_towers"
NUM_CATEGORIES = 8
SOFTMAX = f'label_name: "cate_label" num_class: {NUM_CATEGORIES} softmax {{}}'
PRETRAINING = [
    f"{TOWER}.image_losses={SOFTMAX}",
    f"{TOWERS}[0].weight=0",
    f"{TOWERS}[1].weight=0",
]
NO_PICTURE = "no picture"
PRETRAINED = "frozen, pretrained on the category"
VARIANTS: dict[str, list[str]] = {
    NO_PICTURE: [],
    "frozen, random": [f"{TOWER}.trainable=NONE"],
    PRETRAINED: [f"{TOWER}.trainable=NONE"],
    "end to end": [],
    "+ category attention": [f"{TOWER}.category_feature=category"],
    "+ auxiliary loss": [f"{TOWER}.image_losses=weight: 0.1 {SOFTMAX}"],
    "encode_ratio 0.5": [f"{TOWER}.encode_ratio=0.5"],
    "encode_ratio 0.2": [f"{TOWER}.encode_ratio=0.2"],
}


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    options = flags.parse_args()
    figures: dict[str, object] = {}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            workload.run(
                sys.executable, workload.ROOT / "samples/make_demo_data.py", "--output", folder / "data", "--seed", seed
            )
            for variant in options.variants:
                figures[f"seed_{seed}, {variant}"] = measure(folder, variant)
                print(f"seed {seed}, {variant}: {figures[f'seed_{seed}, {variant}']:.4f}", flush=True)
    workload.report("image_quality", figures)


def measure(folder: Path, variant: str) -> float:
    """Test AUC of a variant on the data in a folder."""
    settings = list(VARIANTS[variant])
    if variant == PRETRAINED:
        before = folder / "pretraining"
        train(folder, before, PRETRAINING)
        settings.append(f"train_config.fine_tune_checkpoint={before}")
    model = folder / variant.replace(" ", "_").replace(",", "")
    train(folder, model, settings, has_pictures=variant != NO_PICTURE)
    return float(json.loads((model / "eval_result.json").read_text(encoding="utf-8"))["auc_click"])


def train(folder: Path, model: Path, settings: list[str], has_pictures: bool = True) -> None:
    """Train and evaluate on the test data."""
    config = folder / "bench.config"
    config.write_text(config_text(has_pictures), encoding="utf-8")
    data = folder / "data"
    changed = [
        f"train_input_path={data}/train/*",
        f"eval_input_path={data}/test/*",
        f"data_config.image_root={data}",
        f"model_dir={model}",
        *settings,
    ]
    command = [sys.executable, "-m", "easyrec_mm.cli", "train", "--pipeline_config", config]
    workload.run(*command, *[f"--set={setting}" for setting in changed])


def config_text(has_pictures: bool) -> str:
    """The demo's config with a label for the category, and its item features as such; without pictures if wanted."""
    path = workload.ROOT / "configs/demo.config"
    config, _ = parse_config(path.read_text(encoding="utf-8"), str(path))
    data, model = config.data_config, config.model_config
    data.selected_cols = "2,3,7,4,5,6"
    data.label_fields.append("cate_label")
    data.input_fields.add(input_name="cate_label", input_type=data.INT32)
    next(f for f in config.feature_config.features if list(f.input_names) == ["category"]).per_group = True
    if not has_pictures:
        groups = [group for group in model.feature_groups if group.group_name != "img"]
        del model.feature_groups[:]
        model.feature_groups.extend(groups)
        for name in ("img_model", "highway_dnn"):
            model.e2e_mm_dbmtl.ClearField(name)
    return text_format.MessageToString(config)


if __name__ == "__main__":
    main()
