"""Shows an evaluation in TensorBoard: histograms of predictions and vectors, pictures with predictions, the projector.

The projector reads files of the run's folder: projector_config.pbtxt, and in the folder `projector` the vectors, a
table of what is known of each item, and one picture (a sprite) with the thumbnails of all items.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import PIL.Image
from google.protobuf import text_format
from PIL import ImageDraw, ImageFont
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.projector import ProjectorConfig

from easyrec_mm.evaluation.shown_items import LARGE_SIDE, SMALL_SIDE, Collected, ShownItems
from easyrec_mm.files import naming, put_text
from easyrec_mm.protos.train_pb2 import TrainConfig
from easyrec_mm.runs.progress import MetricsLog
from easyrec_mm.runs.shown import MOST_NUMBERS, histogram, picture

CONFIG, FOLDER = "projector_config.pbtxt", "projector"
VECTORS, METADATA, SPRITE = "vectors.tsv", "metadata.tsv", "sprite.png"
_NAME = "items"
# Pixels between pictures, and of a line of text below them.
_GAP, _LINE = 8, 13


def show_evaluation(shown: ShownItems, config: TrainConfig, log: MetricsLog, folder: Path, step: int) -> None:
    """Write what was collected in an evaluation.

    Args:
      shown: what has collected it.
      config: how many pictures and items to show.
      log: the log of the run, for what is shown of each step.
      folder: the folder of the run, for the projector, which shows the last evaluation.
      step: step of the evaluated checkpoint.

    Raises:
      OSError: if a file cannot be written.
    """
    collected = shown.collected
    if collected is None:
        return
    summaries: list[Summary] = [histogram(f"outputs/{name}", scores) for name, scores in collected.scores.items()]
    if collected.items:
        num_vectors = max(1, MOST_NUMBERS // collected.vectors.shape[1])
        summaries.append(histogram("outputs/image_vector", collected.vectors[:num_vectors]))
    if collected.part_weights:
        log.write_summaries("item_fusion", step, collected.part_weights)
    if shown.has_pictures and (num := min(config.num_summary_pictures, len(collected.items))):
        summaries += [picture(f"pictures/{task.name}", grid(collected, task.name, num)) for task in shown.tasks]
    log.write_shown(step, summaries)
    if num := min(config.num_projector_items, len(collected.items)):
        write_projector(folder, collected, num)


def grid(collected: Collected, task: str, num: int) -> PIL.Image.Image:
    """Draw the first pictures in rows, each with the mean label and prediction of its samples."""
    columns = math.ceil(math.sqrt(num))
    width, height = LARGE_SIDE + _GAP, LARGE_SIDE + 2 * _LINE + _GAP
    drawn = PIL.Image.new("RGB", (columns * width + _GAP, math.ceil(num / columns) * height + _GAP), "white")
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default()
    for place in range(num):
        x, y = _GAP + place % columns * width, _GAP + place // columns * height
        drawn.paste(collected.items[place].thumbnail, (x, y))
        label, prediction = collected.labels[task][place], collected.predictions[task][place]
        lines = f"label {label:.3g} ({collected.num_samples[place]})\npredicted {prediction:.3g}"
        draw.multiline_text((x, y + LARGE_SIDE + 1), lines, "black", font, spacing=1)
    return drawn


def write_projector(folder: Path, collected: Collected, num: int) -> None:
    """Write the files of the projector for the first items."""
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    vectors = io.StringIO()
    np.savetxt(vectors, collected.vectors[:num], "%.6g", "\t")
    put_text(target / VECTORS, vectors.getvalue())
    put_text(target / METADATA, metadata(collected, num))
    with naming(target / SPRITE):
        sprite(collected, num).save(target / SPRITE, compress_level=1)
    config = ProjectorConfig()
    embedding = config.embeddings.add(tensor_name=_NAME, tensor_path=f"{FOLDER}/{VECTORS}")
    embedding.metadata_path, embedding.sprite.image_path = f"{FOLDER}/{METADATA}", f"{FOLDER}/{SPRITE}"
    embedding.sprite.single_image_dim.extend([SMALL_SIDE, SMALL_SIDE])
    put_text(folder / CONFIG, text_format.MessageToString(config))


def metadata(collected: Collected, num: int) -> str:
    """Return the table of the first items: a line of names, and a line for each item."""
    means = {
        f"{kind}_{task}": values[task]
        for task in collected.labels
        for kind, values in (("label", collected.labels), ("predicted", collected.predictions))
    }
    lines = [["path", *collected.items[0].fields, "num_samples", *means]]
    for place, item in enumerate(collected.items[:num]):
        numbers = [f"{values[place]:.6g}" for values in means.values()]
        lines.append([item.path, *item.fields.values(), str(collected.num_samples[place]), *numbers])
    return "".join("\t".join(line) + "\n" for line in lines)


def sprite(collected: Collected, num: int) -> PIL.Image.Image:
    """Draw the thumbnails of the first items as TensorBoard cuts them apart: row by row of a square of places."""
    columns = math.ceil(math.sqrt(num))
    drawn = PIL.Image.new("RGB", (columns * SMALL_SIDE, columns * SMALL_SIDE), "white")
    for place, item in enumerate(collected.items[:num]):
        small = item.thumbnail.resize((SMALL_SIDE, SMALL_SIDE))
        drawn.paste(small, (place % columns * SMALL_SIDE, place // columns * SMALL_SIDE))
    return drawn
