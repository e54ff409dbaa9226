"""Saliency: which parts of a picture raise the logit of a task.

Convolutional towers: Grad-CAM (Selvaraju et al., ICCV 2017) of the last stage whose map is not too coarse: that of the
last one, unless the pictures are small. Transformers: gradient times
input of the tokens of patches that enter the last block, less their mean: how much the logit would fall, to first
order, if a patch were like the mean of all. The product with the token itself would be 0 wherever only attention reads
it, because the layer normalisation before attention ignores the length of a token. Other towers: the gradient of the
pixels (Simonyan et al., ICLR 2014 workshop).
What descriptors add to the features does not pass through the feature map, and is not shown by it.
Legend: P pictures of an item, h x w places of a map, F channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import PIL.Image
import tensorflow as tf

from easyrec_mm.explain.samples import Features
from easyrec_mm.network.layers.image_tower import ImageTower
from easyrec_mm.network.model import MultimodalModel

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Method = Literal["Grad-CAM", "gradient x token", "gradient of pixels"]

# Least places along the sides of a feature map.
_LEAST_PLACES = 5
# Side of the map of gradients of pixels, which are too noisy one by one.
_CELLS = 14
# Colours of saliency from none to most, red, green, blue: they differ in lightness, too.
_COLOURS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float32)
_MOST_COVER = 0.75


@dataclass(frozen=True)
class Saliency:
    """Saliency of the pictures of an item for a sample's logit.

    method  how it was computed
    maps    for each picture float32 [h, w], 0 or more: what raises the logit
    logit   the logit
    """

    method: Method
    maps: tuple[Floats, ...]
    logit: float


def saliency(
    model: MultimodalModel,
    features: Features,
    pixels: Pixels,
    category: int,
    task: str,
    class_index: int = 0,
    contents: Mapping[str, Any] | None = None,
) -> Saliency:
    """Compute the saliency of pictures for one sample.

    Args:
      model: the model.
      features: the features of one sample.
      pixels: uint8 `[P, H, W, C]`, the pictures of its item.
      category: the id that the image tower takes in addition.
      task: name of the task.
      class_index: the class whose logit it is; 0 for a task without classes.
      contents: the other contents of the item by kind, if the model takes some.
    """
    tower, item = model.image_side()
    method = _method(tower)
    x = tf.cast(tf.constant(pixels), tf.float32)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        categories = tf.fill([len(pixels)], tf.constant(category, tf.int64))
        with _noted(tower, method) as noted:
            mapped = tower.feature_map(x, categories)
        vectors = tower.vectors(tower.pooled(mapped, x))
        pooled = item.pooled(vectors, tf.zeros([len(pixels)], tf.int32), 1) if len(pixels) > 1 else vectors
        vector = item(pooled, tf.constant([True]), training=False)
        vector = model.parts.of_items(vector, {kind: tf.constant([value]) for kind, value in (contents or {}).items()})
        logits, _ = model.rec(features, vector, training=False)
        logit = logits[task][0, class_index]
    explained = x if method == "gradient of pixels" else _finest_enough(noted)
    gradient = tape.gradient(logit, explained, unconnected_gradients="zero")
    explained, gradient = tf.cast(explained, tf.float32).numpy(), tf.cast(gradient, tf.float32).numpy()
    maps = _maps(method, explained, gradient, tower.num_special, pixels.shape[1:3])
    return Saliency(method, tuple(maps), float(logit))


def overlay(pixels: Pixels, saliency_map: Floats) -> Pixels:
    """Return pixels `[H, W, C]` as grey `[H, W, 3]`, covered by the colour of the saliency, the more the larger it is.

    The largest value of the map has the brightest colour; a map of zeros covers nothing.
    """
    height, width = pixels.shape[:2]
    largest = float(saliency_map.max(initial=0.0))
    share = saliency_map / largest if largest > 0 else np.zeros_like(saliency_map)
    smooth = PIL.Image.fromarray(share.astype(np.float32)).resize((width, height), PIL.Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(smooth), 0.0, 1.0)[..., None]
    places = np.linspace(0.0, 1.0, len(_COLOURS))
    colour = np.stack([np.interp(share[..., 0], places, of_channel) for of_channel in _COLOURS.T], axis=-1)
    grey = pixels.astype(np.float32).mean(axis=-1, keepdims=True)
    cover = _MOST_COVER * np.sqrt(share)
    return np.asarray(np.round((1 - cover) * grey + cover * colour), np.uint8)


def _method(tower: ImageTower) -> Method:
    if len(tower.backbone.output.shape) == 4:
        return "Grad-CAM"
    is_transformer = len(tower.backbone.output.shape) == 3 and not any(stage.block_ends for stage in tower.stages)
    return "gradient x token" if is_transformer and len(tower.stages) > 1 else "gradient of pixels"


@contextmanager
def _noted(tower: ImageTower, method: Method) -> Iterator[list[tf.Tensor]]:
    """Yield a list to which a call of the tower adds the map of each stage, or of a transformer the tokens."""
    noted: list[tf.Tensor] = []
    # Operation -> which of its outputs to note; None for its input.
    places: list[tuple[Any, int | None]] = []
    if method == "gradient x token":
        places = [(tower.stages[-1].layers[0], None)]
    elif method == "Grad-CAM":
        ends = [stage.block_ends[-1]._keras_history for stage in tower.stages]
        places = [(end.operation, end.tensor_index) for end in ends]
    calls = [operation.call for operation, _ in places]
    for (operation, index), call in zip(places, calls, strict=True):
        operation.call = _noting(call, noted, index)
    try:
        yield noted
    finally:
        for (operation, _), call in zip(places, calls, strict=True):
            operation.call = call


def _noting(call: Callable[..., Any], noted: list[tf.Tensor], index: int | None) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        outputs = call(*args, **kwargs)
        noted.append(tf.nest.flatten((args, kwargs))[0] if index is None else tf.nest.flatten(outputs)[index])
        return outputs

    return run


def _finest_enough(noted: list[tf.Tensor]) -> tf.Tensor:
    """Return the last of several maps that is not too coarse, or the finest; of tokens, the only ones."""
    is_fine = [x.shape.rank == 3 or min(x.shape[1:3]) >= _LEAST_PLACES for x in noted]
    return noted[len(noted) - 1 - is_fine[::-1].index(True)] if any(is_fine) else noted[0]


def _maps(
    method: Method, explained: Floats, gradient: Floats, num_special: int, size: tuple[int, ...]
) -> Iterator[Floats]:
    """Yield the map of each picture, given what is explained and the gradient of the logit: `[P, ...]` both."""
    if method == "Grad-CAM":
        weights = gradient.mean(axis=(1, 2), keepdims=True)
        yield from np.maximum((weights * explained).sum(axis=-1), 0)
    elif method == "gradient x token":
        tokens, gradient = explained[:, num_special:], gradient[:, num_special:]
        products = ((tokens - tokens.mean(axis=1, keepdims=True)) * gradient).sum(axis=-1)
        for of_picture in np.maximum(products, 0):
            yield of_picture.reshape(_grid(len(of_picture), *size))
    else:
        for of_picture in np.abs(gradient).sum(axis=-1):
            cells = (min(_CELLS, size[1]), min(_CELLS, size[0]))
            yield np.asarray(PIL.Image.fromarray(of_picture).resize(cells, PIL.Image.Resampling.BOX))


def _grid(num_tokens: int, height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of the patches of a picture: the division whose patches are nearest to squares."""
    rows = [r for r in range(1, num_tokens + 1) if num_tokens % r == 0]
    best = min(rows, key=lambda r: abs(np.log((height / r) / (width * r / num_tokens))))
    return best, num_tokens // best
