"""How often the nearest picture, by the frozen features of a preset, is of the same kind.

Pictures are those of a tar file, a folder a kind; by default 800 of 10 kinds of groceries, 64 x 64. They are enlarged
to each side as `upscale` does it. Chance is what a picture at random would give.

    python tools/bench/nearest.py --preset weights/efficientnet_lite0 [--pictures PICTURES.tar] [--sides 64 128 192]
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
import workload
from numpy.typing import NDArray
from PIL import Image

from easyrec_mm.network.layers.backbones import preset_backbone
from easyrec_mm.network.layers.descriptors import Descriptors
from easyrec_mm.network.layers.image_tower import ImageTower, TowerOptions
from easyrec_mm.weights.catalog import preset_location

PHOTOGRAPHS = workload.ROOT / "tests/photographs/groceries.tar"
_BATCH = 50


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--preset", required=True, help="folder or name of a preset")
    flags.add_argument("--pictures", type=Path, default=PHOTOGRAPHS)
    flags.add_argument("--sides", type=int, nargs="+", default=[64, 128, 192])
    options = flags.parse_args()
    pixels, kinds = read(options.pictures)
    _, counts = np.unique(kinds, return_counts=True)
    chance = float((counts * (counts - 1)).sum() / (len(kinds) * (len(kinds) - 1)))
    figures = {"chance": round(chance, 3), "colours and edges": share_of_kind(descriptors(pixels), kinds)}
    for side in options.sides:
        figures[f"{side} x {side}"] = share_of_kind(features(options.preset, pixels, side), kinds)
    workload.report(f"nearest {options.pictures.stem}", figures)


def read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.str_]]:
    """Pixels `[P, H, W, 3]` of all pictures of a tar file, and the folder of each."""
    pixels, kinds = [], []
    with tarfile.open(path) as tar:
        for member in tar:
            if (file := tar.extractfile(member)) is not None:
                pixels.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
                kinds.append(Path(member.name).parent.name)
    return np.stack(pixels), np.array(kinds)


def features(preset: str, pixels: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """What the pooled backbone finds in pictures that are enlarged to a side."""
    upscale = side // pixels.shape[1]
    shape = (pixels.shape[1] * upscale, pixels.shape[2] * upscale, 3)
    backbone = preset_backbone(preset_location(preset), shape, "float32", "")
    tower = ImageTower(backbone, shape, 0, None, "float32", TowerOptions(upscale=upscale))
    return in_batches(lambda batch: tower.features(batch), pixels)


def descriptors(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Colours and edges, as the inferred config has them."""
    return in_batches(Descriptors(colour_grid=4, colour_bins=8, edge_grid=8), pixels)


def in_batches(function: Callable[[tf.Tensor], tf.Tensor], pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A function of pictures, of some at a time."""
    traced = tf.function(function, autograph=False)
    starts = range(0, len(pixels), _BATCH)
    return np.concatenate([traced(tf.constant(pixels[i : i + _BATCH])).numpy() for i in starts])


def share_of_kind(vectors: NDArray[np.float32], kinds: NDArray[np.str_]) -> float:
    """Share of pictures whose nearest other one, by the cosine of standardised features, is of the same kind."""
    x = (vectors - vectors.mean(0)) / (vectors.std(0) + 1e-6)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    nearness = x @ x.T
    np.fill_diagonal(nearness, -2)
    return round(float((kinds[nearness.argmax(1)] == kinds).mean()), 3)


if __name__ == "__main__":
    main()
