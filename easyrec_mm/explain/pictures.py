"""The contents of items: pictures, loaded once, encoded by the towers of one or several models, and made small; others.

Legend: I items, P distinct pictures, L pairs of an item and one of its pictures, D width of an image vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import tensorflow as tf

from easyrec_mm.data.batch import has_content
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.explain.samples import Item, is_something
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.schema import TEXT, Schema

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

# Side of the small picture of an item, in pixels.
TILE = 48
_PICTURES_AT_A_TIME = 64
_ITEMS_AT_A_TIME = 512
_GREY = 128


@dataclass(frozen=True)
class ItemPictures:
    """What was made of the contents of items.

    vectors       for each model: float32 [I, D], as its rec network takes them: of all contents
    images        float32 [I, D] of the first model: the vectors before they are fused with those of others
    has_picture   bool [I], whether a picture of the item could be loaded
    has_other     kind of another content -> bool [I], whether the item has it
    tiles         uint8 [I, TILE, TILE, 3], the first picture that could be loaded; grey without one
    content       hash of the contents of the item, equal for equal ones; b"" without any
    problems      path of each picture that could not be loaded -> why
    num_pictures  P
    """

    vectors: tuple[Floats, ...]
    images: Floats
    has_picture: npt.NDArray[np.bool_]
    has_other: Mapping[str, npt.NDArray[np.bool_]]
    tiles: Pixels
    content: tuple[bytes, ...]
    problems: dict[bytes, str]
    num_pictures: int

    @property
    def has_content(self) -> npt.NDArray[np.bool_]:
        """Return whether an item has any content, bool `[I]`."""
        has_content: npt.NDArray[np.bool_] = np.any([self.has_picture, *self.has_other.values()], axis=0)
        return has_content


class _Distinct:
    """The distinct pictures of items: a path with a category is one picture, as for the image tower."""

    def __init__(self, items: Sequence[Item]) -> None:
        places: dict[tuple[bytes, int], int] = {}
        links = [
            (number, places.setdefault((path, item.category), len(places)))
            for number, item in enumerate(items)
            for path in item.paths
        ]
        self.paths = [path for path, _ in places]
        self.category = np.array([category for _, category in places], np.int64)
        self.link_item, self.link_picture = np.array(links, np.int32).reshape(-1, 2).T  # [L] each


def embed_items(items: Sequence[Item], models: Sequence[MultimodalModel], loader: PictureLoader) -> ItemPictures:
    """Load each distinct picture of the items once, and encode it and the other contents by the towers of each model.

    Args:
      items: the items.
      models: models of one config, whose items have contents.
      loader: loads their pictures.

    Raises:
      DataError: if no picture can be reached, see PictureReader.read.
    """
    schema = models[0].schema
    distinct = _Distinct(items)
    num_pictures, others = len(distinct.paths), other_contents(items, schema)
    encode = _encoder(models) if schema.uses_image else None
    vectors = [np.zeros((num_pictures, model.image_width), np.float32) for model in models]
    tiles = np.full((num_pictures, TILE, TILE, 3), _GREY, np.uint8)
    hashes: list[bytes] = []
    problems: dict[int, str] = {}
    for start in range(0, num_pictures, _PICTURES_AT_A_TIME):
        end = start + _PICTURES_AT_A_TIME
        contents, unread = loader.read(distinct.paths[start:end])
        pictures = loader.decode(contents, unread)
        hashes += [hashlib.blake2b(content, digest_size=16).digest() for content in contents]
        problems |= {start + row: problem for row, problem in pictures.problems.items()}
        encoded = encode(pictures.pixels, distinct.category[start:end]) if encode else []
        for of_model, made in zip(vectors, encoded, strict=True):
            of_model[start:end] = made.numpy()
        for row, pixels in enumerate(pictures.pixels.numpy(), start):
            tiles[row] = tile(pixels)
    is_good = np.ones(num_pictures, bool)
    is_good[list(problems)] = False
    is_kept, has_picture = _kept_links(distinct, is_good, len(items), schema)
    first = _first_of_items(distinct, is_good, len(items))
    images = [
        _of_items(model, of_model, distinct, is_kept, has_picture)
        for model, of_model in zip(models, vectors, strict=True)
    ]
    return ItemPictures(
        vectors=tuple(item_vectors(model, of_model, others) for model, of_model in zip(models, images, strict=True)),
        images=images[0],
        has_picture=has_picture,
        has_other={kind: has_content(tf.constant(values)).numpy() for kind, values in others.items()},
        tiles=_of_first(tiles, first),
        content=_contents(distinct, is_good, hashes, items),
        problems={distinct.paths[picture]: problem for picture, problem in problems.items()},
        num_pictures=num_pictures,
    )


def other_contents(items: Sequence[Item], schema: Schema) -> dict[str, Array]:
    """Return the contents of items other than pictures by kind, `[I, ...]`, as Contents.values has them."""
    return {
        kind: np.array([item.contents[kind] for item in items], object)
        if kind == TEXT
        else np.array([item.contents[kind] for item in items], np.float32).reshape(len(items), feature.num_numbers)
        for kind, feature in schema.contents.items()
    }


def item_vectors(model: MultimodalModel, images: Floats, others: Mapping[str, Array]) -> Floats:
    """Return the vectors of items as the rec network takes them, float32 `[I, W]`.

    Of image vectors alone, they are these.

    Args:
      model: the model.
      images: image vectors `[I, D]`.
      others: the result of `other_contents`.
    """
    if not model.parts.contents:
        return images
    parts = [np.zeros((0, model.item_width), np.float32)]
    for start in range(0, len(images), _ITEMS_AT_A_TIME):
        end = start + _ITEMS_AT_A_TIME
        of_part = tf.constant(images[start:end]) if model.image is not None else None
        contents = {kind: tf.constant(values[start:end]) for kind, values in others.items()}
        parts.append(model.parts.of_items(of_part, contents).numpy())
    return np.concatenate(parts)


def tile(pixels: Pixels) -> Pixels:
    """Return pixels `[H, W, C]` as a picture of `[TILE, TILE, 3]`, whole, with grey margins."""
    picture = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    factor = TILE / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    picture = picture.resize(size, PIL.Image.Resampling.BICUBIC, reducing_gap=2.0)
    result = PIL.Image.new("RGB", (TILE, TILE), (_GREY,) * 3)
    result.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    return np.asarray(result)


def _encoder(models: Sequence[MultimodalModel]) -> Any:
    image = models[0].schema.image
    towers = [model.image_side()[0] for model in models]
    signature = [
        tf.TensorSpec([None, image.height, image.width, image.channels], tf.uint8),
        tf.TensorSpec([None], tf.int64),
    ]
    return tf.function(
        lambda pixels, category: [tower(pixels, category, training=False) for tower in towers],
        input_signature=signature,
        autograph=False,
    )


def _kept_links(
    distinct: _Distinct, is_good: npt.NDArray[np.bool_], num_items: int, schema: Schema
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which pairs of an item and its picture count, bool `[L]`, and which items have a good picture, `[I]`.

    As in training, a bad picture is left out if the item has another one, or may be without a picture.
    """
    good_link = is_good[distinct.link_picture]
    has_picture = np.bincount(distinct.link_item, good_link, num_items) > 0
    if schema.has_no_image_vector:
        return good_link, has_picture
    return good_link | ~has_picture[distinct.link_item], has_picture


def _of_items(
    model: MultimodalModel,
    vectors: Floats,
    distinct: _Distinct,
    is_kept: npt.NDArray[np.bool_],
    has_picture: npt.NDArray[np.bool_],
) -> Floats:
    """Return the image vectors of items `[I, D]`, given those of pictures `[P, D]`."""
    if model.image is None:
        return np.zeros((len(has_picture), 0), np.float32)
    _, item = model.image_side()
    of_links = tf.gather(vectors, distinct.link_picture[is_kept])
    pooled = item.pooled(of_links, tf.constant(distinct.link_item[is_kept]), len(has_picture))
    shown: Floats = item(pooled, tf.constant(has_picture), training=False).numpy()
    return shown


def _first_of_items(distinct: _Distinct, is_good: npt.NDArray[np.bool_], num_items: int) -> npt.NDArray[np.int64]:
    """Return the first good picture of each item, int64 `[I]`; -1 without one."""
    first = np.full(num_items, -1, np.int64)
    is_used = is_good[distinct.link_picture]
    # Of several assignments to an element, the last one counts.
    first[distinct.link_item[is_used][::-1]] = distinct.link_picture[is_used][::-1]
    return first


def _of_first(tiles: Pixels, first: npt.NDArray[np.int64]) -> Pixels:
    """Return the small picture of each item, of its first picture; grey without one."""
    if not len(tiles):
        return np.full((len(first), *tiles.shape[1:]), _GREY, np.uint8)
    return np.where((first >= 0)[:, None, None, None], tiles[first], np.uint8(_GREY))


def _hash(content: Any) -> bytes:
    """Return the hash of a text or a vector; b"" for none."""
    if not is_something(content):
        return b""
    data = content.encode() if isinstance(content, str) else np.asarray(content).tobytes()
    return hashlib.blake2b(data, digest_size=16).digest()


def _contents(
    distinct: _Distinct, is_good: npt.NDArray[np.bool_], hashes: list[bytes], items: Sequence[Item]
) -> tuple[bytes, ...]:
    contents = [b"".join(_hash(content) for content in item.contents.values()) for item in items]
    for item, picture in zip(distinct.link_item.tolist(), distinct.link_picture.tolist(), strict=True):
        if is_good[picture]:
            contents[item] += hashes[picture]
    return tuple(contents)
