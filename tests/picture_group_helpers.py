"""Groups with pictures for trainings of several replicas, and a config with all that concerns pictures.

Groups have one to three samples, some of weight 0. A global batch has 8 of them, in their order, so that the second of
two replicas has no pictures of the second batch, neither has any of the third, and in the last one of five epochs of
31 groups the second replica has no samples.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from training_helpers import Training, optimizer

BATCH, NUM_EPOCHS, NUM_STEPS = 8, 5, 20
# In own.txt, no two groups have a picture in common; in shared.txt, all have some of eight pictures.
OWN, SHARED = "own.txt", "shared.txt"
LOSSES = """
  image_losses { weight: 0.5 label_name: "kind" num_class: 3 softmax {} }
  image_losses { weight: 0.3 label_name: "kind" num_class: 3 cosface { scale: 5 rarity_power: 0.25 } }
  image_losses { weight: 0.2 label_name: "kind" num_class: 3 multi_similarity { beta: 5 } }
  image_losses { weight: 0.3 contrastive { item_feature: "item" temperature: 0.5 } }
"""
HEAD = 'img_dnn { hidden_units: 4 activation: "tanh" }'
# Not MEAN: that of the two pictures of a batch is 0 behind batch norm, and rounding errors alone decide its direction.
_SEVERAL = 'no_image_vector: true image_separator: ";" image_pooling: MAX'
_CHANGES = {
    "batch_size: 4": 'batch_size: 8 shuffle: false sample_weight: "weight"',
    'input_fields { input_name: "path"': """input_fields { input_name: "weight" input_type: FLOAT }
  input_fields { input_name: "path\"""",
    'model_class: "E2E_MM_DBMTL"': 'model_class: "E2E_MM_DBMTL" embedding_regularization: 1e-3',
    "l2_regularization: 0": "l2_regularization: 1e-3",
}


def make_picture_groups(folder: Path, num_groups: int = 31, without_picture: range = range(12, 24)) -> Path:
    """Write own.txt, shared.txt and their pictures to a folder; return the folder."""
    rng = np.random.default_rng(0)
    for i in range(3 * num_groups):
        # Of different colours: rounding errors grow in batch norm of what is nearly equal.
        pixels = rng.integers(0, 196, 3) + rng.integers(0, 60, (12, 12, 3))
        Pillow.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    lines: dict[str, list[str]] = {OWN: [], SHARED: []}
    for i in range(num_groups):
        size, popular = 1 + i % 3, int(rng.integers(6))
        clicks = "\x01".join(str(rng.integers(2)) for _ in range(size))
        users = [f"u{rng.integers(9)}" for _ in range(size)]
        numbers = [f"{rng.normal():.3f}\x02{0.5 * (j % 4)}" for j in rng.integers(0, 4, size)]
        pictures = {OWN: range(3 * i, 3 * i + 2 + i % 2), SHARED: range(popular, popular + 2 + popular % 2)}
        for name, of_name in lines.items():
            kind = (i if name == OWN else popular) % 3
            samples = [f"{u}\x02i{i % 7}\x02{kind % 2}\x02{n}" for u, n in zip(users, numbers, strict=True)]
            path = "" if i in without_picture else ";".join(f"{number}.png" for number in pictures[name])
            fields = (clicks, "\x01".join([str(kind)] * size), "\x01".join(samples), path, str(size))
            of_name.append("|".join(fields))
    for name, of_name in lines.items():
        (folder / name).write_text("\n".join(of_name) + "\n")
    return folder


def picture_training(data: Path, folder: Path, file: str, img_model: str = "", train: str = "", **settings) -> Training:
    """A training of one process on such groups; its config is folder/test.config."""
    changes = {**_CHANGES, **settings.pop("changes", {})}
    losses = "" if "trainable: NONE" in img_model and "unfreeze" not in img_model else LOSSES
    average = "use_moving_average: true moving_average_decay: 0.9"
    return Training(
        data,
        folder,
        img_model=f"{_SEVERAL} {losses} {img_model}",
        train=f"gradient_clipping_by_norm: 0.5 {train}",
        head=settings.pop("head", HEAD),
        # Not Adam, see test_workers.py.
        optimizers=optimizer("momentum", 0.02, average),
        file=file,
        changes=changes,
        **settings,
    )
