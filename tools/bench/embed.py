"""Offline embedding against the bare forward pass of the same image model, on pictures of 48 and of 224 pixels a side.

"Embedding" is everything from JPEG files to vectors in an LMDB store, once it runs, by ONNX Runtime; "bare" is the
faster of ONNX Runtime and the SavedModel on pixels in memory, in batches of 64 or 256, whichever is faster, and nothing
else. The two take turns; ratios are of neighbouring turns. 48 pixels are those of the demo, whose pictures are taken;
224 are photo-like ones.

    python tools/bench/embed.py [--turns 5] [--num_pictures 8000 800]
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import sys
import tempfile
from functools import partial
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
    from easyrec_mm.cli.main import main as run
    from easyrec_mm.embedding.image_model import ImageModel

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
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH_SIZES[-1], size, size, 3)).astype(np.uint8)
    context = multiprocessing.get_context("spawn")
    connection, other_end = context.Pipe()
    process = context.Process(target=embed_on_demand, args=(folder, pictures, other_end))
    process.start()

    def embed_per_s(count: int) -> float:
        connection.send(count)
        return float(connection.recv())

    embed_per_s(BATCH_SIZES[-1])
    bare, embedding, ratios = [], [], []
    for _ in range(turns):
        before = bare_per_s(model, pixels)
        embedding.append(embed_per_s(number))
        bare.append((before + bare_per_s(model, pixels)) / 2)
        ratios.append(embedding[-1] / bare[-1])
    connection.send(0)
    process.join()
    return {
        "bare_per_s": workload.median(bare),
        "embed_per_s": workload.median(embedding),
        "ratio": workload.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def embed_on_demand(folder: Path, pictures: Path, connection: Any) -> None:
    """Process that embeds the first N pictures into a new store for each N it gets, and answers with images/s."""
    os.environ["TF_NUM_INTRAOP_THREADS"] = "1"  # as the command does
    from easyrec_mm.embedding.embed import EmbedOptions, embed
    from easyrec_mm.embedding.image_model import ImageModel
    from easyrec_mm.embedding.items import read_items
    from easyrec_mm.store import open_store

    model = ImageModel(str(folder / "img"), "onnx")
    items = read_items(f"{pictures}/*", model.manifest.schema).items
    for turn, number in enumerate(iter(connection.recv, 0)):
        store = open_store(f"lmdb://{folder}/store{turn}", writable=True)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            result = embed(model, items[:number], store, EmbedOptions(os.devnull))
        store.close()
        connection.send(result.per_s)


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
    """Images/s of the forward pass, by the faster runtime with the better batch size."""
    numbers = pixels.astype(np.float32)
    num_passes = max(3, 20 * 48 * 48 // pixels.shape[1] ** 2)
    return max(
        size / workload.median(workload.seconds(partial(run, numbers[:size], {}, np.arange(size)), num_passes))
        for run in model._runtimes.values()
        for size in BATCH_SIZES
    )


if __name__ == "__main__":
    main()
