"""The workload that the benchmarks share: grouped samples with 18 features and a JPEG each group, and its config."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from easyrec_mm.config.text import parse_config
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig

ROOT = Path(__file__).resolve().parents[2]
DEMO_CONFIG = ROOT / "configs/demo.config"
NUM_ID_FEATURES = 12
NUM_RAW_FEATURES = 6
EMBEDDING_DIM = 16

ADAM = "adam_optimizer { learning_rate { constant_learning_rate { learning_rate: 0.001 } } }"
SGD = "sgd_optimizer { learning_rate { constant_learning_rate { learning_rate: 0.001 } } }"

DEMO_RATE = "train_config.optimizer_config[0].adamw_optimizer.learning_rate.cosine_decay_learning_rate"
# A trained model of the demo goes on: three epochs at a tenth of the learning rate.
CONTINUATION = (
    "train_config.num_epochs=3", f"{DEMO_RATE}.learning_rate_base=0.0002", f"{DEMO_RATE}.total_steps=471"
)  # fmt: skip


def write_data(
    folder: Path,
    num_groups: int,
    group_size: int,
    image_size: int,
    samples_per_image: int | None = None,
    num_ids: int = 1_000_000,
    seed: int = 0,
    num_pictures: int = 0,
) -> str:
    """Write GroupRTP lines and pictures; returns the path of the lines.

    Args:
      folder: where to write.
      num_groups: groups of `group_size` samples.
      group_size: samples a group.
      image_size: side of the square pictures; 0 writes none.
      samples_per_image: samples that share a line and a picture; unset means group_size.
      num_ids: ids are integers below it.
      seed: of the content.
      num_pictures: distinct pictures, of which the n-th is shown in proportion to 1 / n; 0: each line has its own.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    per_line = samples_per_image or group_size
    num_lines = num_groups * group_size // per_line
    lines = []
    numbers = np.arange(num_lines)
    if num_pictures:
        popularity = 1 / np.arange(1, num_pictures + 1)
        numbers = random.choice(num_pictures, num_lines, p=popularity / popularity.sum())
    for number in numbers:
        picture = folder / f"{number}.jpg"
        if image_size and not picture.exists():
            _picture(random, image_size).save(picture, quality=90)
        samples = [_sample(random, num_ids) for _ in range(per_line)]
        click = "\x01".join(str(random.integers(0, 2)) for _ in samples)
        play_time = "\x01".join(f"{random.exponential(2.0):.2f}" for _ in samples)
        lines.append("|".join([click, play_time, "\x01".join(samples), str(picture), str(per_line)]))
    path = folder / "data.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def _sample(random: np.random.Generator, num_ids: int) -> str:
    ids = [str(value) for value in random.integers(0, num_ids, NUM_ID_FEATURES)]
    return "\x02".join(ids + [f"{value:.3f}" for value in random.normal(size=NUM_RAW_FEATURES)])


def _picture(random: np.random.Generator, size: int) -> Image.Image:
    coarse = random.integers(0, 256, (max(size // 16, 2), max(size // 16, 2), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def config_text(
    data: str,
    model_dir: str,
    batch_size: int,
    image_size: int,
    optimizer: str = ADAM,
    hash_bucket_size: int = 100_000,
    precision: str = "AUTO",
    num_steps: int = 0,
    img_model: str = "",
) -> str:
    """Pipeline config of the workload; image_size 0 means a model without pictures; img_model: text of its settings."""
    ids = [f"id_{i}" for i in range(NUM_ID_FEATURES)]
    raws = [f"raw_{i}" for i in range(NUM_RAW_FEATURES)]
    fields = [("click", "INT32"), ("play_time", "FLOAT")]
    fields += [(name, "STRING") for name in ids] + [(name, "FLOAT") for name in raws]
    fields += [("img_path", "STRING"), ("group_size", "INT32")]
    input_fields = "\n".join(f'input_fields {{ input_name: "{n}" input_type: {t} }}' for n, t in fields)
    features = "\n".join(
        f'features {{ input_names: "{n}" feature_type: IdFeature hash_bucket_size: {hash_bucket_size} '
        f"embedding_dim: {EMBEDDING_DIM} }}"
        for n in ids
    )
    features += "\n" + "\n".join(f'features {{ input_names: "{n}" feature_type: RawFeature }}' for n in raws)
    names = "\n".join(f'feature_names: "{name}"' for name in ids + raws)
    shape = max(image_size, 1)
    image_group = 'feature_groups { group_name: "img" feature_names: "img_path" }' if image_size else ""
    image_head = 'highway_dnn { input: "img" emb_size: 16 }' if image_size else ""
    tower = "dnn { hidden_units: [256, 128, 64, 32] use_bn: false } relation_dnn { hidden_units: 16 use_bn: false }"
    return f"""
train_input_path: "{data}"
model_dir: "{model_dir}"
data_config {{
  input_type: GroupRTPInput batch_size: {batch_size} rtp_separator: "|" separator: "\\002" selected_cols: "0,1,2,3,4"
  label_fields: ["click", "play_time"]
  {input_fields}
}}
feature_config {{
  {features}
  features {{ input_names: "img_path" feature_type: ImgFeature img_shape {{ width: {shape} height: {shape} }} }}
  features {{ input_names: "group_size" feature_type: SampleNumFeature }}
}}
model_config {{
  model_class: "E2E_MM_DBMTL"
  {image_group}
  feature_groups {{ group_name: "all" {names} }}
  embedding_regularization: 1e-5
  e2e_mm_dbmtl {{
    {f"img_model {{ {img_model} }}" if img_model else ""}
    {image_head}
    bottom_dnn {{ hidden_units: [1024, 512] dropout_ratio: [0.3, 0.3] use_bn: false }}
    task_towers {{ tower_name: "click" label_name: "click" {tower} }}
    task_towers {{
      tower_name: "play_time" label_name: "play_time" loss_type: L2_LOSS relation_tower_names: "click" {tower}
    }}
  }}
}}
train_config {{ optimizer_config {{ {optimizer} }} precision: {precision} num_steps: {num_steps} }}
"""


def pipeline(folder: Path, text: str) -> Any:
    """Write a config and load it."""
    from easyrec_mm.config.pipeline import load_pipeline

    path = folder / "bench.config"
    path.write_text(text, encoding="utf-8")
    return load_pipeline(str(path))


def run(*command: object) -> None:
    """Run a command in the project's folder, and show it."""
    texts = [str(part) for part in command]
    print("$", " ".join(texts), flush=True)
    subprocess.run(texts, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def make_demo_data(folder: Path, seed: int, *flags: str) -> None:
    """Write the demo's data, with further flags of its script."""
    run(sys.executable, ROOT / "samples/make_demo_data.py", "--output", folder, "--seed", seed, *flags)


def plain_demo() -> EasyRecConfig:
    """The demo's config with a tower that is the backbone alone: what is measured is that backbone, or its devices."""
    config, _ = parse_config(DEMO_CONFIG.read_text(encoding="utf-8"), str(DEMO_CONFIG))
    tower = config.model_config.e2e_mm_dbmtl.img_model
    for name in ("descriptors", "normalize_features", "min_map_size"):
        tower.ClearField(name)
    config.model_config.e2e_mm_dbmtl.bottom_dnn.use_bn = True
    rate = config.train_config.optimizer_config[0].adamw_optimizer.learning_rate.cosine_decay_learning_rate
    rate.learning_rate_base = 0.002  # of all stages of the backbone
    return config


def demo_auc(data: Path, model_dir: Path, settings: Sequence[str], config: Path) -> float:
    """Train on the demo's data, unless the model is there; its click AUC on the test data."""
    if not model_dir.exists():
        changed = [
            f"train_input_path={data}/train/*",
            f"eval_input_path={data}/test/*",
            f"data_config.image_root={data}",
            f"model_dir={model_dir}",
            *settings,
        ]
        command = [sys.executable, "-m", "easyrec_mm", "train", "--pipeline_config", config]
        run(*command, *[f"--set={setting}" for setting in changed])
    return float(json.loads((model_dir / "eval_result.json").read_text(encoding="utf-8"))["auc_click"])


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Wall-clock seconds of each run, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def median(values: Sequence[float]) -> float:
    """Median."""
    return float(statistics.median(values))


def machine() -> str:
    """Processor, cores and library versions, for the record."""
    import os

    import tensorflow as tf

    model = platform.processor() or platform.machine()
    try:
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = next(line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpus = ", ".join(gpu.name for gpu in tf.config.list_physical_devices("GPU")) or "no GPU"
    return f"{model}, {os.cpu_count()} cores, {gpus}, Python {platform.python_version()}, TensorFlow {tf.__version__}"


def report(name: str, figures: dict[str, Any]) -> None:
    """Print figures for a person, then as a JSON line."""
    for key, value in figures.items():
        print(f"{key:<40} {value:.4g}" if isinstance(value, float) else f"{key:<40} {value}")
    print(json.dumps({"benchmark": name, "date": time.strftime("%Y-%m-%d"), "machine": machine(), **figures}))


def parser(text: str | None) -> argparse.ArgumentParser:
    """Command line of a benchmark; its help is the script's docstring."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
