"""The folders of the three models: they are written beside their places, and put there together at the end.

An export that fails or is killed leaves the previous one as it was. Only if it is killed in the moment between the
first and the last of three renames do the places hold models of both; all models are there then, and the next export
puts those of one export in place before it does anything else.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from easyrec_mm.errors import ExportError
from easyrec_mm.files.folders import UNFINISHED, Folder
from easyrec_mm.files.replace_folder import exchange
from easyrec_mm.manifest import MANIFEST, Kind


@dataclass(frozen=True)
class ExportFolders:
    """The folders for the three models."""

    image: str
    rec: str
    total: str


def places_of(folders: ExportFolders) -> dict[Kind, Folder]:
    """Return the places of the models; what a killed export left there is put right.

    Raises:
      ExportError: if two are the same, one contains something other than an export, or another export writes there.
    """
    places: dict[Kind, Folder] = {
        "image": Folder(folders.image), "rec": Folder(folders.rec), "total": Folder(folders.total)
    }  # fmt: skip
    names = [place.path.rstrip("/") if place.is_remote else str(place.local.absolute()) for place in places.values()]
    if len(set(names)) < len(names):
        raise ExportError(f"{', '.join(names)}: give each of the three models a folder of its own")
    for place in places.values():
        _require_export(place)
    _require_alone(places.values())
    _put_right({kind: place.local for kind, place in places.items() if not place.is_remote})
    return places


@contextmanager
def written(places: Mapping[Kind, Folder]) -> Iterator[dict[Kind, Path]]:
    """Yield folders beside the places, which are put there at the end; after an error they are removed.

    Raises:
      ExportError: if a folder cannot be written, or another export writes there.
    """
    new = {kind: place.local.parent / f".{place.local.name}.tmp-{os.getpid()}" for kind, place in places.items()}
    try:
        for folder in new.values():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        _require_alone(places.values())
        yield new
        _put_together(new, places)
        for place in places.values():
            if place.is_remote:
                place.replace(last=MANIFEST)
    except OSError as error:
        path = error.filename or places["rec"].path
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        copies = [place.local for place in places.values() if place.is_remote]
        for folder in [*new.values(), *(_aside(place.local) for place in places.values()), *copies]:
            shutil.rmtree(folder, ignore_errors=True)


def _require_export(place: Folder) -> None:
    place.look()
    names, path = place.names(), place.path
    if not place.is_remote and place.local.exists():
        if not place.local.is_dir():
            raise ExportError(f"{path}: is a file; choose a new folder")
        names = os.listdir(place.local)
    if names and MANIFEST not in names and UNFINISHED not in names:
        raise ExportError(f"{path}: contains files that do not belong to an export; choose a new folder")


def _require_alone(places: Iterable[Folder]) -> None:
    for place in places:
        for folder in _beside(place.local):
            process = _process_of(folder)
            if process != str(os.getpid()) and _is_running(process):
                raise ExportError(
                    f"{place.path}: another export (process {process}) is writing it; wait until it has ended"
                )


def _put_together(new: Mapping[Kind, Path], places: Mapping[Kind, Folder]) -> None:
    """Put all folders in their places, or none if one cannot be."""
    done: list[Kind] = []
    try:
        for kind, place in places.items():
            _put(new[kind], place.local)
            done.append(kind)
    except OSError:
        for kind in done:
            place = places[kind]
            if _aside(place.local).exists():
                os.rename(place.local, new[kind])
                os.rename(_aside(place.local), place.local)
            elif not new[kind].exists():
                os.rename(place.local, new[kind])
            else:
                exchange(new[kind], place.local)
        raise


def _put(new: Path, place: Path) -> None:
    """Put a folder in a place; the one that was there takes the place of the new one, or is put aside."""
    if not place.exists():
        os.rename(new, place)
    elif not exchange(new, place):  # the file system cannot do it
        os.rename(place, _aside(place))
        os.rename(new, place)


def _aside(place: Path) -> Path:
    return place.parent / f".{place.name}.old-{os.getpid()}"


def _put_right(places: Mapping[Kind, Path]) -> None:
    """Put the models of one export in the places, if an export was killed while it did that; remove what it left."""
    left = [folder for place in places.values() for folder in _beside(place)]
    in_place = {kind: _origin(place) for kind, place in places.items()}
    if left and any(in_place.values()) and len(set(in_place.values())) > 1:
        found = {kind: {_origin(folder): folder for folder in [*_beside(p), p]} for kind, p in places.items()}
        common = set.intersection(*map(set, found.values())) - {""}
        for kind, place in places.items():
            # Without a whole export, at least what is missing.
            choices = common or (set() if place.exists() else set(found[kind]) - {""})
            origin = max(choices, default=in_place[kind])
            if origin != in_place[kind]:
                _put(found[kind][origin], place)
    for folder in [*left, *(_aside(place) for place in places.values())]:
        shutil.rmtree(folder, ignore_errors=True)


def _beside(place: Path) -> list[Path]:
    """Return the folders beside a place that exports to it have left or are writing."""
    return [*place.parent.glob(f".{place.name}.tmp-*"), *place.parent.glob(f".{place.name}.old-*")]


def _process_of(folder: Path) -> str:
    return folder.name.rpartition("-")[2]


def _is_running(process: str) -> bool:
    return process.isdecimal() and Path(f"/proc/{process}").exists()


def _origin(folder: Path) -> str:
    """Return what the three models of one export have in common, later exports being larger; "" without a manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return f"{manifest['created']} {manifest['checkpoint']} {manifest['image_tower_fingerprint']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
