"""Pictures packed into tar files, one beside each data file: part-0.pictures.tar has the pictures of part-0.parquet.

The headers of a tar are read once, when its first picture is requested; from then on pictures are read by their
position in the tar.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import PurePosixPath

from easyrec_mm.errors import DataError
from easyrec_mm.files import FileInfo, is_remote, place_of, plain
from easyrec_mm.files.data_names import PICTURES_ENDING
from easyrec_mm.files.local_copies import LocalCopies
from easyrec_mm.formats.data_files import DataFiles

# Number of tars that are kept open, together with the positions of all their pictures.
NUM_OPEN_TARS = 32
# Separates the path of a tar and the path of a picture in it; no path of a file contains it.
_SEPARATOR = b"\x00"
# A link that leads to more links than Linux follows leads nowhere.
_MOST_LINKS = 40


def tar_beside(file: str) -> str:
    """Return the path of the tar of a data file: the file's path without .gz and its extension, plus .pictures.tar."""
    folder, slash, name = file.rpartition("/")
    return f"{folder}{slash}{PurePosixPath(name.removesuffix('.gz')).stem}{PICTURES_ENDING}"


def packed_path(file: str, path: bytes) -> bytes:
    """Return the argument of `PackedPictures.read` for a picture of a data file."""
    return path_in(tar_beside(file), path)


def path_in(tar: str, path: bytes) -> bytes:
    """Return the argument of `PackedPictures.read` for a picture in a tar."""
    return os.fsencode(tar) + _SEPARATOR + path


def own_path(path: bytes) -> bytes:
    """Return the path of a picture without that of the tar which holds it, if one does."""
    return path.rpartition(_SEPARATOR)[2]


def is_packed(path: bytes) -> bool:
    """Return whether a path is a result of `path_in`."""
    return _SEPARATOR in path


def find_tars(files: DataFiles) -> dict[str, FileInfo]:
    """Find the tars of data files, by path; the tar of a remote data file is fetched together with it.

    Raises:
      DataError: if a tar is missing, or several data files have the same tar.
    """
    name, number = Counter(map(tar_beside, files.names)).most_common(1)[0]
    if number > 1:
        raise DataError(f"data_config.packed_images: {number} files need the same {name}; give them different names")
    return files.find_companions(tar_beside, "data_config.packed_images")


@dataclass
class _Tar:
    lock: threading.Lock = field(default_factory=threading.Lock)
    # Python closes it when nothing refers to it any more.
    file: FileIO | None = None
    places: dict[bytes, tuple[int, int]] = field(default_factory=dict)


class PackedPictures:
    """Reads pictures from tars; many threads may read at once.

    Args:
      copies: keeps the copies of remote tars.
      tars: the tars that were found, by path; others are read as they are when they are opened.
    """

    def __init__(self, copies: LocalCopies, tars: Mapping[str, FileInfo] | None = None) -> None:
        self._copies = copies
        self._infos = tars or {}
        self._lock = threading.Lock()
        self._tars: OrderedDict[str, _Tar] = OrderedDict()

    def read(self, packed: bytes, max_bytes: int) -> bytes:
        """Return the first `max_bytes` bytes of a picture's content.

        Args:
          packed: see `packed_path`.
          max_bytes: number of bytes.

        Raises:
          OSError: if the tar has no such picture.
          DataError: if the tar cannot be read.
        """
        tar_bytes, _, path = packed.partition(_SEPARATOR)
        name = os.fsdecode(tar_bytes)
        tar = self._tar(name)
        if not path:
            raise OSError(0, "the path is empty")
        place = tar.places.get(_member(path))
        if place is None or tar.file is None:
            raise OSError(0, f"is not in {os.path.basename(name)}")
        offset, size = place[0], min(place[1], max_bytes)
        content = os.pread(tar.file.fileno(), size, offset)
        if len(content) < size:
            raise DataError(f"{name}: has changed while it was read; start again, with files that nobody writes to")
        return content

    def names(self, tar: str) -> list[bytes]:
        """Return the names of the files in a tar.

        Raises:
          DataError: if the tar cannot be read.
        """
        return list(self._tar(tar).places)

    def _tar(self, name: str) -> _Tar:
        with self._lock:
            tar = self._tars.setdefault(name, _Tar())
            self._tars.move_to_end(name)
            if len(self._tars) > NUM_OPEN_TARS:
                self._tars.popitem(last=False)
        with tar.lock:
            if tar.file is None:
                self._open(name, tar)
        return tar

    def _open(self, name: str, tar: _Tar) -> None:
        try:
            file = FileIO(self._path(name))
            with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as members:
                tar.places = _places(members)
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{name}: cannot be read: {error}") from error
        tar.file = file

    def _path(self, name: str) -> str:
        """Return a path on this machine."""
        if not is_remote(name):
            return plain(name)
        return self._copies.get(self._infos.get(name) or place_of(name).stat(name))


def _member(path: bytes) -> bytes:
    """Return the name under which a path is in a tar: tar drops the slash at the start of a path."""
    return posixpath.normpath(b"/" + path).lstrip(b"/")


def _places(members: Iterable[tarfile.TarInfo]) -> dict[bytes, tuple[int, int]]:
    """Return name -> (position, size) of the files in a tar; a link has those of the file in the tar that it names."""
    places: dict[bytes, tuple[int, int]] = {}
    links: dict[bytes, bytes] = {}
    for member in members:
        name, target = _member(os.fsencode(member.name)), os.fsencode(member.linkname)
        if member.isreg():
            places[name] = (member.offset_data, member.size)
        elif member.islnk():
            links[name] = _member(target)
        elif member.issym():
            links[name] = _member(posixpath.join(posixpath.dirname(b"/" + name), target))
    for name, target in links.items():
        for _ in range(_MOST_LINKS):
            if target not in links:
                break
            target = links[target]
        if target in places:
            places[name] = places[target]
    return places
