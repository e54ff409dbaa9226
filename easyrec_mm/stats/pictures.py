"""Statistics of an input's pictures: their number and, of a sample, bad ones, sizes, formats, and similar pictures."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import imagehash
import numpy as np
import PIL.Image
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from easyrec_mm.data.picture_reader import PictureReader
from easyrec_mm.data.plain_pictures import format_of
from easyrec_mm.data.whole_pictures import decode_whole, thumbnail
from easyrec_mm.schema import Image
from easyrec_mm.stable_hash import Hashes, hash_column

# Number of bits, of 64, in which the hashes of similar pictures may differ.
MAX_DISTANCE = 4
_NUM_THREADS, _READ_AT_ONCE = 16, 256
_THUMBNAIL = 96
# Pictures look alike only if the mean colours of no cell differ by more than this: the same dress in blue and in black
# are two pictures.
_MAX_COLOUR_DIFFERENCE, _COLOUR_CELLS = 32, 4
# Duplicates are removed when twice this number of hashes is exceeded.
_COMPACT_AT = 1 << 20


class Picture(NamedTuple):
    """A picture that was opened.

    mode           how the file holds its pixels, in Pillow's words, such as RGB, P (a palette) or CMYK
    width, height  of the upright picture
    alike          perceptual hash, 64 bits: DCT of the grey picture (imagehash.phash)
    colours        uint8 `[48]`: mean red, green and blue of 4 x 4 cells
    thumbnail      JPEG
    content        hash of the file, equal only for the same bytes
    """

    path: str
    num_bytes: int
    format: str
    mode: str
    width: int
    height: int
    alike: int
    colours: NDArray[np.uint8]
    thumbnail: bytes
    content: bytes


@dataclass
class PathStats:
    """The pictures that groups name: their exact number, and those with the smallest hashes, which are to be opened."""

    num_wanted: int
    separator: str = ""
    num_without: int = 0  # groups without a picture
    _hashes: list[Hashes] = field(default_factory=list)
    _num_kept: int = 0
    _sample: dict[int, tuple[str, str]] = field(default_factory=dict)

    @property
    def num_distinct(self) -> int:
        """Return the number of different paths."""
        self._compact()
        return self._num_kept

    @property
    def hashes(self) -> Hashes:
        """Return the hashes of the different paths, as hash_column computes them, ascending."""
        self._compact()
        return self._hashes[0] if self._hashes else np.zeros(0, np.uint64)

    @property
    def sample(self) -> list[tuple[str, str]]:
        """Return (path, file that names it) of the pictures to open, in a random order given by their hashes."""
        return [self._sample[key] for key in sorted(self._sample)[: self.num_wanted]]

    def add(self, image: pa.Array, file: str) -> None:
        """Add the paths of groups, `[G]`."""
        texts = [text or "" for text in image.to_pylist()]
        self.num_without += texts.count("")
        split = (text.split(self.separator) if self.separator else (text,) for text in texts)
        paths = list(dict.fromkeys(path for group_paths in split for path in group_paths if path))
        hashes = hash_column(pa.array(paths, pa.string()))
        self._hashes.append(hashes)
        self._num_kept += len(hashes)
        if self._num_kept > 2 * _COMPACT_AT:
            self._compact()
        limit = max(self._sample, default=0) if len(self._sample) >= self.num_wanted else None
        for key, path in zip(hashes.tolist(), paths, strict=True):
            if limit is None or key < limit:
                self._sample.setdefault(key, (path, file))
        if len(self._sample) > 2 * self.num_wanted:
            self._sample = {key: self._sample[key] for key in sorted(self._sample)[: self.num_wanted]}

    def _compact(self) -> None:
        self._hashes = [np.unique(np.concatenate(self._hashes))] if self._hashes else []
        self._num_kept = sum(map(len, self._hashes))


@dataclass
class PictureStats:
    """Statistics of the pictures that were opened.

    problems  (path, problem) of the pictures that cannot be read
    """

    pictures: list[Picture]
    problems: list[tuple[str, str]]

    @cached_property
    def alike(self) -> list[list[Picture]]:
        """Groups of similar pictures, the largest first."""
        hashes = np.array([picture.alike for picture in self.pictures], np.uint64)
        colours = np.array([picture.colours for picture in self.pictures]).reshape(-1, 3 * _COLOUR_CELLS**2)
        groups = [[self.pictures[i] for i in group] for group in groups_alike(hashes, colours)]
        return sorted(groups, key=lambda group: (-len(group), group[0].path))

    def counts(self, attribute: str) -> Counter[str]:
        """Return the number of pictures by "format", "mode" or "size"."""
        if attribute == "size":
            return Counter(f"{picture.width} x {picture.height}" for picture in self.pictures)
        return Counter(getattr(picture, attribute) for picture in self.pictures)


def open_pictures(paths: Sequence[bytes], reader: PictureReader, image: Image) -> PictureStats:
    """Open pictures and return their statistics.

    Args:
      paths: in the form that the reader takes.
      reader: reads the contents of pictures.
      image: how they are decoded, and their greatest number of pixels.
    """
    good: list[Picture] = []
    problems: list[tuple[str, str]] = []
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for path, result in _opened(paths, reader, image, pool):
            if isinstance(result, str):
                problems.append((path, result))
            else:
                good.append(result)
    return PictureStats(good, problems)


def _opened(
    paths: Sequence[bytes], reader: PictureReader, image: Image, pool: ThreadPoolExecutor
) -> Iterator[tuple[str, Picture | str]]:
    for start in range(0, len(paths), _READ_AT_ONCE):
        portion = list(paths[start : start + _READ_AT_ONCE])
        reader.begin(portion, image.max_pixels)
        contents, problems = reader.read(portion, image.max_pixels)
        names = [_name(path) for path in portion]
        results = pool.map(_look_at, names, contents, [image] * len(portion))
        for row, (name, picture) in enumerate(zip(names, results, strict=True)):
            yield name, problems.get(row, picture)


def _name(path: bytes) -> str:
    return path.rpartition(b"\x00")[2].decode("utf-8", "replace")  # without the path of the tar that contains it


def _look_at(path: str, content: bytes, image: Image) -> Picture | str:
    try:
        pixels = decode_whole(content, image)
    except ValueError as error:
        return str(error)
    height, width, _ = pixels.shape
    alike = int(str(imagehash.phash(PIL.Image.fromarray(pixels))), 16)
    cells = PIL.Image.fromarray(pixels).resize((_COLOUR_CELLS, _COLOUR_CELLS), PIL.Image.Resampling.BOX)
    colours = np.asarray(cells).reshape(-1)
    small = thumbnail(pixels, _THUMBNAIL)
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return Picture(path, len(content), format_of(content), _mode(content), width, height, alike, colours, small, digest)


def _mode(content: bytes) -> str:
    try:
        with PIL.Image.open(io.BytesIO(content)) as picture:
            return picture.mode
    except Exception:  # a good picture may still have a part that Pillow does not take, such as a very long text
        return "unknown"


def groups_alike(
    hashes: NDArray[np.uint64], colours: NDArray[np.uint8], max_distance: int = MAX_DISTANCE
) -> list[list[int]]:
    """Group the indices of pictures that look alike, directly or through a chain of others.

    Hashes `[N]` of such a pair differ in at most `max_distance` of 64 bits, and no value of its colours `[N, C]` by
    more than _MAX_COLOUR_DIFFERENCE. Of max_distance + 1 parts of two such hashes, at least one is equal: only hashes
    with an equal part are compared.
    """
    _, rows, where = np.unique(
        np.column_stack([hashes, colours.astype(np.uint64)]), axis=0, return_index=True, return_inverse=True
    )
    distinct, distinct_colours = hashes[rows], colours[rows].astype(np.int16)
    pairs = [np.zeros((0, 2), np.int64)]
    limits = np.linspace(0, 64, max_distance + 2).astype(int)
    for low, high in pairwise(limits):
        part = (distinct >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(part, kind="stable")
        starts = np.flatnonzero(np.diff(part[order], prepend=part[order[:1]] + np.uint64(1)))
        for bucket in np.split(order, starts[1:]) if len(order) else []:
            for i, index in enumerate(bucket[:-1]):
                later = bucket[i + 1 :]
                later = later[np.bitwise_count(distinct[index] ^ distinct[later]) <= max_distance]
                difference = np.abs(distinct_colours[later] - distinct_colours[index]).max(axis=1, initial=0)
                near = later[difference <= _MAX_COLOUR_DIFFERENCE]
                pairs.append(np.stack([np.full(len(near), index), near], 1))
    edges = np.concatenate(pairs)
    graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (len(distinct), len(distinct)))
    group = connected_components(graph, directed=False)[1][where.reshape(-1)] if len(distinct) else np.zeros(0, int)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1]) if len(group) else []
    return [indices.tolist() for indices in members if len(indices) > 1]
