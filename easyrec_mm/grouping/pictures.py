"""Packs the pictures of a shard into a tar file next to it, each once, in the order of their first use in the shard.

A member's name is the picture's path in the data. Members have no times and no owners, so that the same pictures always
give the same bytes.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from easyrec_mm.files import join
from easyrec_mm.files.picture_files import most_bytes, read_picture
from easyrec_mm.protos.data_pb2 import DatasetConfig

# Number of pictures that are read in parallel, and that are held in memory.
_NUM_THREADS, _NUM_HELD = 64, 256
# The largest file that is packed; the config that is written does not set max_image_pixels.
_MAX_BYTES = most_bytes(DatasetConfig().max_image_pixels)

# Contents of pictures -> for each picture the content to store, or the problem with it.
Resize = Callable[[list[bytes]], list[bytes | str]]


@dataclass(frozen=True)
class PicturePacker:
    """Packs pictures.

    image_root  folder to which relative paths refer
    resize      converts pictures before they are stored; None stores the files' own bytes
    """

    image_root: str = ""
    resize: Resize | None = None

    def pack(self, paths: list[str], tar_path: str) -> dict[str, str]:
        """Write a tar file of these pictures; return path -> problem of the pictures that are left out."""
        problems: dict[str, str] = {}
        with (
            tarfile.open(tar_path, "w", format=tarfile.PAX_FORMAT) as tar,
            ThreadPoolExecutor(_NUM_THREADS) as pool,
        ):
            for start in range(0, len(paths), _NUM_HELD):
                portion = paths[start : start + _NUM_HELD]
                for path, content in zip(portion, self._contents(list(pool.map(self._read, portion))), strict=True):
                    if isinstance(content, str):
                        problems[path] = content
                        continue
                    member = tarfile.TarInfo(path)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return problems

    def _contents(self, read: list[bytes | str]) -> list[bytes | str]:
        if self.resize is None:
            return read
        good = [content for content in read if isinstance(content, bytes)]
        resized = iter(self.resize(good) if good else [])
        return [next(resized) if isinstance(content, bytes) else content for content in read]

    def _read(self, path: str) -> bytes | str:
        """Return the content of a picture, or the problem with it."""
        return read_picture(join(self.image_root, path), _MAX_BYTES)  # join does not change an absolute path
