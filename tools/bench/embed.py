"""Offline embedding against the bare forward pass of the same image model, on pictures of 48 and of 224 pixels a side.

"Embedding" is everything from JPEG files to vectors in an LMDB store, once it runs; "bare" is the faster of ONNX
Runtime and the SavedModel on pixels in memory, in batches of 64 or 256, whichever is faster, and nothing else. The two
take turns; ratios are of neighbouring turns. 48 pixels are those of the demo, whose pictures are taken; 224 are
photo-like ones.

    python tools/bench/embed.py [--turns 5] [--num_pictures 8000 800]
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "samples"))

import numpy as np
import workload

BATCH_SIZES = (64, 256)


def main() -> None:
    """Measure both sizes and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--turns", type=int, default=5)
    flags.add_argument("--num_pictures", type=int, nargs=2, default=[8000, 800], help="of 48 and of 224 pixels")
    options = flags.parse_args()
    figures: dict[str, Any] = {}
    for size, number in zip((48, 224), options.num_pictures, strict=True):
        with tempfile.TemporaryDirectory() as temporary:
            result = measure(Path(temporary), size, number, options.turns)
        figures |= {f"{name}_{size}": value for name, value in result.items()}
    workload.report("embed", figures)


def measure(folder: Path, size: int, number: int, turns: int) -> dict[str, Any]:
    """Images/s of both, and their ratio."""
    from easyrec_mm.cli import main as run
    from easyrec_mm.embed import ImageModel
    from easyrec_mm.items import read_items

    data = workload.write_data(folder / "data", 64, 2, size)
    text = workload.config_text(data, str(folder / "model"), 32, size, num_steps=1)
    (folder / "c.config").write_text(text, encoding="utf-8")
    exports = [f"--{flag}_model_export_dir={folder / flag}" for flag in ("img", "rec", "total")]
    with contextlib.redirect_stdout(io.StringIO()):
        config = str(folder / "c.config")
        for command in (["train", "--pipeline_config", config], ["export", "--pipeline_config_path", config, *exports]):
            if run(command):
                raise RuntimeError(f"{command} failed")
    pictures = write_pictures(folder / "pictures", size, number)
    model = ImageModel(str(folder / "img"))
    items = read_items(f"{pictures}/*", model.manifest.schema, "", "", "")
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH_SIZES[-1], size, size, 3)).astype(np.uint8)
    model.embed(pixels[: BATCH_SIZES[0]])  # chooses the faster
    embed_per_s(model, items[: BATCH_SIZES[-1]], f"lmdb://{folder}/warm")
    bare, embedding, ratios = [], [], []
    for turn in range(turns):
        before = bare_per_s(model, pixels)
        embedding.append(embed_per_s(model, items, f"lmdb://{folder}/store{turn}"))
        bare.append((before + bare_per_s(model, pixels)) / 2)
        ratios.append(embedding[-1] / bare[-1])
    return {
        "runtime": model.runtime,
        "bare_per_s": workload.median(bare),
        "embed_per_s": workload.median(embedding),
        "ratio": workload.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def embed_per_s(model: Any, items: Sequence[Any], uri: str) -> float:
    """Images/s of the embedding of some items into a new store."""
    from easyrec_mm.embed import embed
    from easyrec_mm.store import open_store

    store = open_store(uri, writable=True)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        result = embed(model, items, store, os.devnull)
    store.close()
    return result.per_s


def write_pictures(folder: Path, size: int, number: int) -> Path:
    """Those of the demo, or photo-like ones of the size of the model's input."""
    if size == 48:
        import make_demo_data as demo

        options = demo.DemoOptions(num_train_groups=number, num_eval_groups=8, num_test_groups=8, group_size=1)
        demo.write_demo_data(folder / "demo", options)
        return folder / "demo" / "images" / "train"
    random = np.random.default_rng(1)
    folder.mkdir()
    for i in range(number):
        workload._picture(random, size).save(folder / f"{i}.jpg", quality=90)
    return folder


def bare_per_s(model: Any, pixels: np.ndarray) -> float:
    """Images/s of the forward pass."""
    numbers = pixels.astype(np.float32)
    forward = model._runtimes[model.runtime]
    num_passes = max(3, 20 * 48 * 48 // pixels.shape[1] ** 2)
    return max(
        size / workload.median(workload.seconds(lambda size=size: forward(numbers[:size]), num_passes))
        for size in BATCH_SIZES
    )


if __name__ == "__main__":
    main()
