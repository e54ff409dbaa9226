"""Resizes pictures to the size of training in advance, by the same definition of decoding and to the same pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import tensorflow as tf

from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.data.whole_pictures import ANY_PICTURE


@dataclass(frozen=True)
class Resizer:
    """Converts contents of pictures to contents of PNG files of one size, which decoding does not change any more."""

    width: int
    height: int

    def __call__(self, contents: list[bytes]) -> list[bytes | str]:
        """Return the PNG file of each picture, or what is wrong with a picture that cannot be decoded."""
        pictures = _loader(self.width, self.height).decode(contents, {})
        encoded = [tf.io.encode_png(pixels).numpy() for pixels in pictures.pixels]
        return [pictures.problems.get(i, content) for i, content in enumerate(encoded)]


@lru_cache(maxsize=1)
def _loader(width: int, height: int) -> PictureLoader:
    return PictureLoader(replace(ANY_PICTURE, height=height, width=width))
