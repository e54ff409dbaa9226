"""Saliency: for some predictions, what in their pictures raises the logit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import PIL.Image

from easyrec_mm.data.whole_pictures import thumbnail
from easyrec_mm.explain.pictures import Pixels
from easyrec_mm.explain.saliency import overlay, saliency
from easyrec_mm.pages.render import render
from easyrec_mm.report.context import Context
from easyrec_mm.report.explained import ChosenSample, Explained, picture_name
from easyrec_mm.report.section import Heading, Markup, Part, Text, by_task
from easyrec_mm.schema import Task

# Side of a picture and its overlay in pixels, and pictures of an item that are shown.
_SIDE = 160
_MOST_PICTURES = 3
_METHODS = {
    "Grad-CAM": "Grad-CAM of the last stage of the image tower whose map is fine enough",
    "gradient x token": "gradient times token (less the mean of all) where patches enter the last block",
    "gradient of pixels": "the size of the gradient of the pixels, up or down",
}


def seen(context: Context) -> list[Part]:
    """Return some pictures of each task, and beside each what in it raises the logit."""
    context.require_pictures()
    explained = context.explained
    methods: set[str] = set()
    options = {task.name: _of_task(explained, task, methods) for task in explained.tasks}
    about = (
        "Beside each picture, as the network sees it, yellow marks what raises the logit of the sample most: with less "
        "of it, the prediction would be lower. Each picture has its own scale; one without colour raises nothing. It "
        "shows where the model looks, not whether it is right to look there."
    )
    how = "; ".join(_METHODS[method] for method in sorted(methods))
    parts: list[Part] = [Text(about, "note"), *([Text(f"Method: {how}.", "note")] if how else [])]
    if context.run.pipeline.config.model_config.e2e_mm_dbmtl.img_model.HasField("descriptors"):
        parts.append(
            Text("What the descriptors of colours and edges add does not pass through it, and is not shown.", "note")
        )
    if len(explained.tasks) < len(context.schema.tasks):
        parts.append(Text(f"The first {len(explained.tasks)} of {len(context.schema.tasks)} tasks are shown.", "note"))
    return [*parts, *explained.notes(), *by_task(options)]


@dataclass(frozen=True)
class _Pair:
    """A picture as the network sees it, and the same with what raises the logit; or why there is none."""

    lines: tuple[str, ...]
    picture: bytes = b""
    overlay: bytes = b""
    problem: str = ""


def _of_task(explained: Explained, task: Task, methods: set[str]) -> list[Part]:
    parts: list[Part] = []
    by_title: dict[str, list[ChosenSample]] = {}
    for sample in explained.chosen(task):
        by_title.setdefault(sample.title, []).append(sample)
    for title, samples in by_title.items():
        pairs = [pair for sample in samples for pair in _of_sample(explained, task, sample, methods)]
        parts += [Heading(title), Markup(render("saliency.html", pairs=pairs, side=2 * _SIDE))]
    return parts or [Text("There are no samples.", "note")]


def _of_sample(explained: Explained, task: Task, sample: ChosenSample, methods: set[str]) -> list[_Pair]:
    asked = explained.read.asked
    item = explained.read.items[int(asked.item[sample.row])]
    loaded = explained.loader.load(list(item.paths))
    good = [row for row in range(len(item.paths)) if row not in loaded.problems]
    if not good:
        return [_Pair((explained.name_of(item),), problem=next(iter(loaded.problems.values()), "no picture"))]
    pixels = loaded.pixels.numpy()[good]
    features = asked.rows([sample.row])
    shown_class = explained.class_of(task, sample)
    result = saliency(explained.model, features, pixels, item.category, task.name, shown_class, item.contents)
    methods.add(result.method)
    pairs: list[_Pair] = []
    for number in range(min(len(good), _MOST_PICTURES)):
        shown = _enlarged(pixels[number])
        of_item = f"picture {number + 1} of {len(good)}" if len(good) > 1 else ""
        lines = f"logit {result.logit:.3g}, label {sample.label:g}", picture_name(item.paths[good[number]]), of_item
        shown_overlay = overlay(shown, result.maps[number])
        pairs.append(_Pair(tuple(filter(None, lines)), thumbnail(shown, _SIDE), thumbnail(shown_overlay, _SIDE)))
    return pairs


def _enlarged(pixels: Pixels) -> Pixels:
    """Return pixels `[H, W, C]` as `[h, w, 3]`, so large that an overlay on them is smooth."""
    picture = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    factor = _SIDE / max(picture.size)
    if factor > 1:
        size = (round(picture.width * factor), round(picture.height * factor))
        picture = picture.resize(size, PIL.Image.Resampling.BICUBIC)
    return np.asarray(picture)
