"""What a title adds to a picture: test AUC on demo data with titles, of picture, title, and both in several fusions.

The titles say partly what the pictures show and partly what no picture shows (samples/demo_titles.py). For each seed
new data is made, and `configs/demo_titles.config` is trained on it by the public commands.

    python tools/bench/titles.py [--seeds 0 1 2] [--fusions concat gated attention queries]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import workload
from google.protobuf import text_format
from quality import demo_aucs

from easyrec_mm.config.text import parse_config
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig

FUSIONS = ("concat", "gated", "attention", "queries", "bilinear", "joint_transformer")
_CONFIG = workload.ROOT / "configs" / "demo_titles.config"


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--fusions", nargs="+", default=["concat", "gated", "attention", "queries"], choices=FUSIONS)
    options = flags.parse_args()
    figures: dict[str, object] = {}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            workload.make_demo_data(folder / "data", seed, "--titles")
            for arm in ("picture", "title", *options.fusions):
                (folder / arm).mkdir()
                config = folder / arm / "arm.config"
                config.write_text(text_format.MessageToString(_arm(arm)), encoding="utf-8")
                aucs = demo_aucs(folder / "data", folder / arm, str(config), [])
                figures |= {f"seed_{seed}_{arm}": aucs["model"], f"seed_{seed}_oracle": aucs["oracle"]}
        best_alone = max(float(str(figures[f"seed_{seed}_{arm}"])) for arm in ("picture", "title"))
        for fusion in options.fusions:
            figures[f"seed_{seed}_{fusion}_over_better"] = float(str(figures[f"seed_{seed}_{fusion}"])) - best_alone
    workload.report("titles", figures)


def _arm(arm: str) -> EasyRecConfig:
    """Return the config of an arm: of the picture alone, of the title alone, or of both with a fusion."""
    config, _ = parse_config(_CONFIG.read_text(encoding="utf-8"), str(_CONFIG))
    network = config.model_config.e2e_mm_dbmtl
    if arm in FUSIONS:
        getattr(network.item_fusion, arm).SetInParent()
        if arm == "joint_transformer":  # takes positions of the towers, without what makes a vector of them
            network.ClearField("highway_dnn")
            for name in ("num_classes", "descriptors", "normalize_features"):
                network.img_model.ClearField(name)
            network.text_model.ClearField("dim")
        return config
    network.ClearField("item_fusion")
    left_out = {"picture": "title", "title": "img_path"}[arm]
    groups = [group for group in config.model_config.feature_groups if left_out not in group.feature_names]
    del config.model_config.feature_groups[:]
    config.model_config.feature_groups.extend(groups)
    for name in {"picture": ("text_model",), "title": ("img_model", "highway_dnn")}[arm]:
        network.ClearField(name)
    return config


if __name__ == "__main__":
    main()
