"""Packs the pictures of a shard into a tar file beside it, each once, in the order in which the shard shows them.

A member's name is the picture's path as the data has it. The same pictures make the same bytes: no times, no owners.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from easyrec_mm.files import join
from easyrec_mm.files.first_pictures import read_picture

# Pictures that are read at the same time, and that are held.
_NUM_THREADS, _NUM_HELD = 64, 256

# Contents of pictures -> what is stored of them, or what is wrong with one.
Resize = Callable[[list[bytes]], list[bytes | str]]


@dataclass(frozen=True)
class PicturePacker:
    """Packs pictures.

    image_root  folder that relative paths start from
    resize      makes other pictures of them; None stores the files' own bytes
    """

    image_root: str = ""
    resize: Resize | None = None

    def pack(self, paths: list[str], tar_path: str) -> dict[str, str]:
        """Write a tar file of these pictures; path -> what is wrong, of those that are left out."""
        problems: dict[str, str] = {}
        with (
            tarfile.open(tar_path, "w", format=tarfile.PAX_FORMAT) as tar,
            ThreadPoolExecutor(_NUM_THREADS) as pool,
        ):
            for start in range(0, len(paths), _NUM_HELD):
                some = paths[start : start + _NUM_HELD]
                for path, content in zip(some, self._contents(list(pool.map(self._read, some))), strict=True):
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
        """The content of a picture, or what is wrong with it."""
        return read_picture(join(self.image_root, path))  # an absolute one stays as it is
