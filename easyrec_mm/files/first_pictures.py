"""The first pictures of some data: whether most can be read, and in which folder they are if not in the given one.

A wrong folder is the commonest mistake with pictures, and costs hours if a run meets it late.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from easyrec_mm.files.paths import is_remote, join, place_name, plain
from easyrec_mm.files.place import place_of
from easyrec_mm.files.regular_files import open_regular
from easyrec_mm.files.storage import StorageError

# Pictures that are looked at, and the share of them that must be missing to stop.
NUM_FIRST, MAX_MISSING = 64, 0.5
# Folders above that of a file which are tried.
_NUM_ABOVE = 3
_NUM_THREADS = 16


def read_picture(path: str) -> bytes | str:
    """The content of a picture, or what is wrong with it."""
    try:
        if is_remote(path):
            content = place_of(path).read(path)
            return (content and content.data) or "is empty (0 bytes)"
        with open(plain(path), "rb", opener=open_regular) as file:
            return file.read() or "is empty (0 bytes)"
    except StorageError as error:
        return f"cannot be read: {error.reason}"
    except (OSError, ValueError) as error:  # ValueError: no file can have that path
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def missing(root: str, paths: Iterable[str]) -> dict[str, str]:
    """Path -> what is wrong, of the pictures that cannot be read from a folder."""
    paths = list(paths)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        contents = pool.map(lambda path: read_picture(join(root, path)), paths)
        return {path: one for path, one in zip(paths, contents, strict=True) if isinstance(one, str)}


def are_most(num_missing: int, num: int, max_share: float = MAX_MISSING) -> bool:
    """Whether so many pictures are missing that the folder must be wrong, rather than some pictures."""
    return num_missing > max(max_share, MAX_MISSING) * num


def folders_of(file: str) -> list[str]:
    """The folder of a file and some above it, whole paths."""
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
    """The first of some folders, "" for the current one, in which most of the pictures are."""
    paths = list(paths)
    return next((folder for folder in folders if not are_most(len(missing(folder, paths)), len(paths))), None)


def are_relative(paths: Iterable[str]) -> bool:
    """Whether a folder decides where some of the pictures are."""
    return any(not (is_remote(path) or os.path.isabs(plain(path))) for path in paths)


def shown(folder: str) -> str:
    """A folder as it is told."""
    return folder or "the current folder"
