"""Checks whether most of the first pictures of data can be read, and if not, finds the folder that contains them.

A wrong folder is the most common mistake with pictures, and costs hours if a run notices it late.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from easyrec_mm.files.paths import is_remote, join, place_name, plain
from easyrec_mm.files.picture_files import read_begin

# Number of pictures that are checked, and the share of missing ones above which a run stops.
NUM_FIRST, MAX_MISSING = 64, 0.5
# Number of folders above the folder of a file that are tried as well.
_NUM_ABOVE = 3
_NUM_THREADS = 16


def missing(root: str, paths: Iterable[str]) -> dict[str, str]:
    """Return path -> what is wrong, for the pictures that cannot be read from a folder."""
    paths = list(paths)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        begins = pool.map(lambda path: read_begin(join(root, path), 1), paths)
        return {path: begin for path, begin in zip(paths, begins, strict=True) if isinstance(begin, str)}


def are_most(num_missing: int, num: int, max_share: float = MAX_MISSING) -> bool:
    """Return whether so many pictures are missing that the folder must be wrong, rather than some pictures."""
    return num_missing > max(max_share, MAX_MISSING) * num


def folders_of(file: str) -> list[str]:
    """Return the folder of a file and some folders above it, as complete paths."""
    if is_remote(file):
        name = place_name(file)
        parts = file[len(name) :].strip("/").split("/")[:-1]
        return ["/".join([name, *parts[:end]]) for end in range(len(parts), -1, -1)][: _NUM_ABOVE + 1]
    folder = os.path.dirname(os.path.abspath(plain(file)))
    folders: list[str] = []
    while folder != os.path.dirname(folder) and len(folders) <= _NUM_ABOVE:
        folders.append(folder)
        folder = os.path.dirname(folder)
    return folders


def find_root(paths: Iterable[str], folders: Iterable[str]) -> str | None:
    """Return the first of these folders, "" for the current one, that has most of the pictures; None without one."""
    paths = list(paths)
    return next((folder for folder in folders if not are_most(len(missing(folder, paths)), len(paths))), None)


def are_relative(paths: Iterable[str]) -> bool:
    """Return whether some of the paths are relative to a folder."""
    return any(not (is_remote(path) or os.path.isabs(plain(path))) for path in paths)


def shown(folder: str) -> str:
    """Return a folder as messages show it."""
    return folder or "the current folder"
