"""Saliency: for some predictions, what in their pictures raises the logit."""

from __future__ import annotations

import numpy as np
import PIL.Image

from easyrec_mm.data.whole_pictures import thumbnail
from easyrec_mm.explain.pictures import Pixels
from easyrec_mm.explain.saliency import Saliency, overlay, saliency
from easyrec_mm.report.context import Context
from easyrec_mm.report.explained import ChosenSample, Explained, picture_name
from easyrec_mm.report.section import Heading, Part, Picture, Pictures, Text, by_task
from easyrec_mm.schema import Task

# Side of a picture and its overlay in pixels, and pictures of an item that are shown.
_SIDE = 160
_MOST_PICTURES = 3
_METHODS = {
    "Grad-CAM": "Grad-CAM of the last feature map of the image tower",
    "gradient x token": "gradient times token (less the mean of all) where patches enter the last block",
    "gradient of pixels": "the size of the gradient of the pixels, up or down",
}


def seen(context: Context) -> list[Part]:
    """Return some pictures of each task, and beside each what in it raises the logit."""
    context.require_pictures()
    explained = context.explained
    methods: set[str] = set()
    options = {task.name: _of_task(context, explained, task, methods) for task in explained.tasks}
    about = (
        "Beside each picture, as the network sees it, yellow marks what raises the logit of the sample most: with less "
        "of it, the prediction would be lower. Each picture has its own scale; one without colour raises nothing. It "
        "shows where the model looks, not whether it is right to look there."
    )
    how = "; ".join(_METHODS[method] for method in sorted(methods))
    parts: list[Part] = [Text(about, "note"), *([Text(f"Method: {how}.", "note")] if how else [])]
    if len(explained.tasks) < len(context.schema.tasks):
        parts.append(Text(f"The first {len(explained.tasks)} of {len(context.schema.tasks)} tasks are shown.", "note"))
    return [*parts, *explained.notes(), *by_task(options)]


def _of_task(context: Context, explained: Explained, task: Task, methods: set[str]) -> list[Part]:
    parts: list[Part] = []
    by_title: dict[str, list[ChosenSample]] = {}
    for sample in explained.chosen(task):
        by_title.setdefault(sample.title, []).append(sample)
    for title, samples in by_title.items():
        pictures = [picture for sample in samples for picture in _of_sample(explained, task, sample, methods)]
        parts += [Heading(title), Pictures(pictures, side=_SIDE)]
    return parts or [Text("There are no samples.", "note")]


def _of_sample(explained: Explained, task: Task, sample: ChosenSample, methods: set[str]) -> list[Picture]:
    asked = explained.read.asked
    item = explained.read.items[int(asked.item[sample.row])]
    loaded = explained.loader.load(list(item.paths)) if item.paths else None
    good = [row for row in range(len(item.paths)) if loaded is not None and row not in loaded.problems]
    if loaded is None or not good:
        problem = next(iter(loaded.problems.values())) if loaded is not None else "no picture"
        return [Picture(None, (explained.name_of(item),), problem)]
    pixels = loaded.pixels.numpy()[good]
    features = asked.rows([sample.row])
    result = saliency(explained.model, features, pixels, item.category, task.name, explained.class_of(task, sample))
    methods.add(result.method)
    pairs: list[Picture] = []
    for number in range(min(len(good), _MOST_PICTURES)):
        shown = _enlarged(pixels[number])
        lines = _lines(item.paths[good[number]], sample, result, number, len(good))
        pairs.append(Picture(thumbnail(shown, _SIDE), lines))
        pairs.append(Picture(thumbnail(overlay(shown, result.maps[number]), _SIDE), ("what raises the logit",)))
    return pairs


def _lines(path: bytes, sample: ChosenSample, result: Saliency, number: int, total: int) -> tuple[str, ...]:
    of_item = f"picture {number + 1} of {total}" if total > 1 else ""
    lines = (f"logit {result.logit:.3g}, label {sample.label:g}", picture_name(path), of_item)
    return tuple(line for line in lines if line)


def _enlarged(pixels: Pixels) -> Pixels:
    """Return pixels `[H, W, C]` as `[h, w, 3]`, so large that an overlay on them is smooth."""
    picture = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    factor = _SIDE / max(picture.size)
    if factor > 1:
        size = (round(picture.width * factor), round(picture.height * factor))
        picture = picture.resize(size, PIL.Image.Resampling.BICUBIC)
    return np.asarray(picture)
