"""Finds the files of `--input`: files, folders and patterns. In folders, only files of known kinds are read."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from typing import NamedTuple

from easyrec_mm.errors import DataError
from easyrec_mm.files import is_remote, place_of, plain
from easyrec_mm.files.data_names import is_data, is_meant, is_picture

_GZIP_ENDING = ".gz"
_LOG_ENDINGS = (".csv", ".tsv", ".parquet", ".pq")
_GROUPED_ENDINGS = (".parquet", ".pq", ".tfrecord", ".tfrecords", ".txt")
_PARQUET_MAGIC = b"PAR1"

# Whether a file in a folder is read, according to its path.
IsKnown = Callable[[str], bool]


class Found(NamedTuple):
    """The files that are read, each once, sorted per folder or pattern; and the others of the folders."""

    files: list[str]
    others: list[str]

    def notes(self) -> list[str]:
        """Return a note on the others, if there are any."""
        if not self.others:
            return []
        number = f"{len(self.others):,} file(s) below --input are not read, such as {self.others[0]}"
        return [f"{number}: their endings are not those of data; a file that is named is read"]


def is_log(path: str) -> bool:
    """Return whether a file in a folder is a part of a flat log: CSV or Parquet, by its name or its first bytes."""
    name = os.path.basename(path)
    return _ends(name, _LOG_ENDINGS) or ("." not in name and _start_of(path) == _PARQUET_MAGIC)


def is_grouped(path: str) -> bool:
    """Return whether a file in a folder holds groups, by its name; a file without an ending does."""
    name = os.path.basename(path)
    return _ends(name, _GROUPED_ENDINGS) or "." not in name


def find_inputs(paths: str, is_known: IsKnown) -> Found:
    """Find the files in a comma-separated list of files, folders and patterns.

    Raises:
      DataError: if a part of the list matches no file.
    """
    parts = [part.strip() for part in paths.split(",") if part.strip()]
    if not parts:
        raise DataError("--input: names no file; give the files of the log")
    all_files: list[str] = []
    all_others: list[str] = []
    for part in parts:
        files, others = _remote_files(part, is_known) if is_remote(part) else _files_here(plain(part), is_known)
        if not files:
            reason = f"holds no file of a known kind, but {others[0]}; name the files" if others else "matches no file"
            raise DataError(f"--input: '{part}' {reason}; check the path")
        all_files += files
        all_others += others
    return Found(list(dict.fromkeys(all_files)), list(dict.fromkeys(all_others)))


def is_folder(path: str) -> bool:
    """Return whether a path, of this machine or remote, is that of a folder."""
    if is_remote(path):
        return any(info.is_folder for info in place_of(path).find(path))
    return os.path.isdir(path)


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return name.lower().removesuffix(_GZIP_ENDING).endswith(endings)


def _start_of(path: str) -> bytes:
    if is_remote(path):
        return place_of(path).start(path, len(_PARQUET_MAGIC))
    with open(path, "rb") as file:
        return file.read(len(_PARQUET_MAGIC))


def _remote_files(pattern: str, is_known: IsKnown) -> Found:
    place = place_of(pattern)
    found = Found([], [])
    for info in place.find(pattern):
        if info.is_folder:
            names = sorted(entry.path for entry in place.below(info.path) if not entry.is_folder)
            inside = [name for name in names if all(map(is_data, name[len(info.path) :].strip("/").split("/")))]
            _add(found, inside, is_known)
        elif is_meant(info.path, pattern):
            _add(found, [info.path], lambda path: not is_picture(path))
    return found


def _files_here(pattern: str, is_known: IsKnown) -> Found:
    paths = sorted(glob.glob(pattern, recursive=True)) if not os.path.exists(pattern) else [pattern]
    found = Found([], [])
    for path in paths:
        if os.path.isdir(path):
            _add(found, _files_of(path), is_known)
        elif is_meant(path, pattern):
            _add(found, [path], lambda path: not is_picture(path))
    return found


def _files_of(folder: str) -> list[str]:
    """Return the files in a folder and its subfolders, without hidden files and those that stand beside data."""
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if is_data(name))
        files += [os.path.join(root, name) for name in sorted(names) if is_data(name)]
    return files


def _add(found: Found, files: list[str], is_known: IsKnown) -> None:
    for file in files:
        (found.files if is_known(file) else found.others).append(file)
