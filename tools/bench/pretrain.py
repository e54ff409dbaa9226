"""What pre-training brings on real photographs: neighbours of held-out pictures, and the ranking that starts from it.

PICTURES.csv has the columns picture and kind, PICTURES.tar the pictures. A log is a folder as tools/bench/ladder.py
takes it, over pictures of the same names. The pictures of items that the ranking is evaluated on are held out from
pre-training, too. The way is from the best AUC that is possible without pictures (0) to that of the truth (1).

    python tools/bench/pretrain.py real/clothing --preset efficientnet_lite0 [--log shop-0] [--label kind] [--epochs 8]
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import ladder
import pandas as pd
import workload
from google.protobuf import text_format
from sklearn.metrics import roc_auc_score

from easyrec_mm.config.pipeline import load_pipeline, write_config
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig

_TEXT = """
model_dir: "{model_dir}"
data_config {{ input_type: ParquetInput batch_size: 64 eval_batch_size: 128 seed: 1 }}
feature_config {{ features {{ input_names: "picture" feature_type: ImgFeature img_shape {{ width: 64 height: 64 }} }} }}
model_config {{
  model_class: "E2E_MM_DBMTL"
  feature_groups {{ group_name: "img" feature_names: "picture" }}
  e2e_mm_dbmtl {{ img_model {{ preset: "{preset}" num_classes: 0 upscale: 3 {tower} }} }}
}}
pretrain_config {{
  data_sets {{ name: "all" pictures: "{tar}" label: "{label}" {paths} {losses} }}
}}
train_config {{
  optimizer_config {{ adamw_optimizer {{ weight_decay: 0.05 learning_rate {{ cosine_decay_learning_rate {{
    learning_rate_base: {rate} warmup_learning_rate: 0 warmup_steps: {warmup}
  }} }} }} }}
  num_epochs: {epochs}
}}
eval_config {{ eval_interval_secs: 100000 }}
"""
_AUGMENTATION = (
    "augmentation { horizontal_flip: true random_resized_crop_min_area: 0.5 brightness: 0.1 contrast: 0.2 "
    "saturation: 0.2 }"
)
_LOSSES = "losses { softmax {} } losses { weight: 0.5 multi_similarity {} }"
_FROZEN = {"tower": "trainable: NONE", "losses": "", "rate": 0.003, "warmup": 20}


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("pictures", type=Path, help="path of PICTURES.csv and PICTURES.tar without their endings")
    flags.add_argument("--preset", required=True)
    flags.add_argument("--label", default="kind")
    flags.add_argument("--log", type=Path, help="of a ranking that starts from the tower")
    flags.add_argument("--epochs", type=int, default=8)
    flags.add_argument("--last_n_stages", type=int, default=4, help="trained stages; 0: all")
    options = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder))
    workload.report(f"pretrain {options.pictures.name}", figures)


def measure(options: Any, folder: Path) -> dict[str, object]:
    """Name of a row -> its metrics."""
    paths = f'input_path: "{options.pictures}.csv"'
    ranking = None
    if options.log:
        flags = "--preset", options.preset
        ranking = ladder.group(options.log, folder / "log", "click,basket", *flags)
        paths = divided(options, ranking, folder)
    figures: dict[str, object] = {}
    figures["linear probe of the frozen backbone"] = pretrain(options, folder / "probe", paths, _FROZEN)
    part = f"trainable: LAST_N_STAGES last_n_stages: {options.last_n_stages}" if options.last_n_stages else ""
    tuned = {"tower": f"{part} {_AUGMENTATION}", "losses": _LOSSES, "rate": 0.0007, "warmup": 50}
    figures["fine-tuned"] = pretrain(options, folder / "tuned", paths, tuned)
    if ranking is not None:
        _, test = ladder.rows(options.log, ranking)
        bounds = [roc_auc_score(test.click, test[name]) for name in ("p_without_pictures", "p_true")]
        for name, start in (("ranking from the preset", ""), ("ranking from pre-training", str(folder / "tuned"))):
            config = load_pipeline(str(ranking)).config
            config.train_config.fine_tune_checkpoint = start
            auc, seconds = ladder.train_config(config, folder / name.replace(" ", "-"), "click")
            way = (auc - bounds[0]) / (bounds[1] - bounds[0])
            figures[name] = {"auc": round(auc, 4), "way": round(way, 3), "seconds": round(seconds)}
            print(f"| {name} | {auc:.4f} | {way:.3f} |", flush=True)
    return figures


def divided(options: Any, ranking: Path, folder: Path) -> str:
    """Settings of a data set whose held-out pictures are those of the items that the ranking is evaluated on."""
    table = pd.read_csv(f"{options.pictures}.csv")
    _, test = ladder.rows(options.log, ranking)
    cold = {Path(path).name for path in test.img_path}
    is_cold = table.picture.map(lambda path: Path(path).name in cold)
    table[~is_cold].to_csv(folder / "train.csv", index=False)
    table[is_cold].to_csv(folder / "held_out.csv", index=False)
    return f'input_path: "{folder}/train.csv" eval_input_path: "{folder}/held_out.csv"'


def pretrain(options: Any, model_dir: Path, paths: str, settings: dict[str, Any]) -> dict[str, float]:
    """Metrics of the last evaluation."""
    text = _TEXT.format(
        model_dir=model_dir, preset=options.preset, tar=f"{options.pictures}.tar", label=options.label, paths=paths,
        epochs=options.epochs, **settings,
    )  # fmt: skip
    file = f"{model_dir}.config"
    write_config(text_format.Parse(text, EasyRecConfig()), file)
    workload.run(*ladder.CLI, "pretrain", "--pipeline_config", file)
    results = json.loads((model_dir / "eval_result.json").read_text(encoding="utf-8"))
    figures = {name.removesuffix("_all"): round(value, 4) for name, value in results.items() if name.endswith("_all")}
    print(f"| {model_dir.name} | {figures} |", flush=True)
    return figures


if __name__ == "__main__":
    main()
