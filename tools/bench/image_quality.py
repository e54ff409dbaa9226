"""What each device of the image tower is worth: test AUC on demo data, on several seeds.

Every variant trains configs/demo.config, without descriptors and with batch normalization, with some settings changed,
by the public commands, on the same data. "Frozen pretrained" trains the tower first on nothing but the category of the
pictures (the label cate_label), then keeps it.

    python tools/bench/image_quality.py [--seeds 0 1 2] [--variants "no picture" "end to end"]
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import workload
from google.protobuf import text_format

TOWER = "model_config.e2e_mm_dbmtl.img_model"
TOWERS = "model_config.e2e_mm_dbmtl.task_towers"
NUM_CATEGORIES = 8
ON_CATEGORY = f'label_name: "cate_label" num_class: {NUM_CATEGORIES}'
SOFTMAX = f"{ON_CATEGORY} softmax {{}}"
COSFACE = f"{ON_CATEGORY} cosface {{ margin: 0 scale: 10 }}"


@dataclass(frozen=True)
class Variant:
    """Settings, and the variant whose weights it begins with."""

    settings: Sequence[str] = ()
    begins_with: str = ""
    is_result: bool = True


TWENTY_EPOCHS = ["train_config.num_epochs=20", f"{workload.DEMO_RATE}.total_steps=3140"]
NO_PICTURE, PRETRAINING, END_TO_END = "no picture", "pretraining on the category", "end to end"
VARIANTS = {
    NO_PICTURE: Variant(),
    "frozen, random": Variant([f"{TOWER}.trainable=NONE"]),
    PRETRAINING: Variant(
        [f"{TOWER}.image_losses={SOFTMAX}", f"{TOWERS}[0].weight=0", f"{TOWERS}[1].weight=0"], is_result=False
    ),
    "frozen, pretrained on the category": Variant([f"{TOWER}.trainable=NONE"], PRETRAINING),
    END_TO_END: Variant(),
    "+ category attention": Variant([f"{TOWER}.category_feature=category"]),
    "+ softmax loss, weight 0.01": Variant([f"{TOWER}.image_losses=weight: 0.01 {SOFTMAX}"]),
    "+ softmax loss, weight 0.1": Variant([f"{TOWER}.image_losses=weight: 0.1 {SOFTMAX}"]),
    "+ cosface loss, weight 0.01": Variant([f"{TOWER}.image_losses=weight: 0.01 {COSFACE}"]),
    "+ cosface loss, weight 0.1": Variant([f"{TOWER}.image_losses=weight: 0.1 {COSFACE}"]),
    "encode_ratio 0.5": Variant([f"{TOWER}.encode_ratio=0.5"]),
    "encode_ratio 0.2": Variant([f"{TOWER}.encode_ratio=0.2"]),
    "end to end, 20 epochs": Variant(TWENTY_EPOCHS),
    "encode_ratio 0.2, 20 epochs": Variant([*TWENTY_EPOCHS, f"{TOWER}.encode_ratio=0.2"]),
    "end to end, 3 epochs more": Variant(workload.CONTINUATION, END_TO_END),
    "encode_ratio 0.2, 3 epochs more": Variant([*workload.CONTINUATION, f"{TOWER}.encode_ratio=0.2"], END_TO_END),
}


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    options = flags.parse_args()
    figures: dict[str, object] = {}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            workload.make_demo_data(folder / "data", seed)
            for variant in options.variants:
                auc = measure(folder, variant, seed)
                if VARIANTS[variant].is_result:
                    print(f"seed {seed}, {variant}: {auc:.4f}", flush=True)
                    figures[f"seed {seed}, {variant}"] = auc
    workload.report("image_quality", figures)


def measure(folder: Path, name: str, seed: int) -> float:
    """Test AUC of a variant on the data in a folder, where its model stays; those it begins with are trained before."""
    variant = VARIANTS[name]
    settings = [*variant.settings, f"data_config.seed={seed}"]
    if variant.begins_with:
        measure(folder, variant.begins_with, seed)
        settings.append(f"train_config.fine_tune_checkpoint={model_dir(folder, variant.begins_with)}")
    config = folder / "bench.config"
    config.write_text(config_text(has_pictures=name != NO_PICTURE), encoding="utf-8")
    return workload.demo_auc(folder / "data", model_dir(folder, name), settings, config)


def model_dir(folder: Path, variant: str) -> Path:
    """Where the model of a variant goes."""
    return folder / variant.replace(" ", "_").replace(",", "")


def config_text(has_pictures: bool) -> str:
    """The plain demo with a label for the category, and its item features as such; without pictures if wanted."""
    config = workload.plain_demo()
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
    text: str = text_format.MessageToString(config)
    return text


if __name__ == "__main__":
    main()
