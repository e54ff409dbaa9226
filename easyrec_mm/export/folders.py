"""The folders of the three models: they are written beside their places, and put there together at the end.

An export that fails or is killed leaves the previous one as it was. Only if it is killed in the moment between the
first and the last of three renames do the places hold models of both; all models are there then, and the next export
puts those of one export in place before it does anything else.

Beside each place, an export has a hidden folder with the new model, and with the old one while it puts them in place.
It holds the lock of that folder: an export that was killed has lost it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from easyrec_mm.errors import ExportError
from easyrec_mm.files.folders import UNFINISHED, Folder
from easyrec_mm.files.lock import locked
from easyrec_mm.files.replace_folder import exchange
from easyrec_mm.manifest import MANIFEST, Kind

_SETTINGS: dict[Kind, str] = {
    "image": "--img_model_export_dir", "rec": "--rec_model_export_dir", "total": "--total_model_export_dir"
}  # fmt: skip


@dataclass(frozen=True)
class ExportFolders:
    """The folders for the three models."""

    image: str
    rec: str
    total: str


@contextmanager
def written(folders: ExportFolders) -> Iterator[dict[Kind, Path]]:
    """Yield new folders, which are put in the places of the models at the end; after an error they are removed.

    What a killed export left in the places is put right first.

    Raises:
      ExportError: if two places are the same, or one contains something other than an export or cannot be written.
      UserError: if another export writes there.
    """
    places = _places_of(folders)
    try:
        with ExitStack() as stack:
            for kind, place in places.items():
                beside = _beside(place.local)
                stack.enter_context(locked(str(beside), _SETTINGS[kind], place.path))
                stack.callback(shutil.rmtree, beside, ignore_errors=True)
            _put_right({kind: place.local for kind, place in places.items() if not place.is_remote})
            new = {kind: _new(place.local) for kind, place in places.items()}
            for folder in new.values():
                folder.mkdir()
            yield new
            _put_together(new, places)
            for place in places.values():
                if place.is_remote:
                    place.replace(last=MANIFEST)
    except OSError as error:
        path = error.filename or places["rec"].path
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        for place in places.values():
            if place.is_remote:
                shutil.rmtree(place.local, ignore_errors=True)


def _places_of(folders: ExportFolders) -> dict[Kind, Folder]:
    places: dict[Kind, Folder] = {
        "image": Folder(folders.image), "rec": Folder(folders.rec), "total": Folder(folders.total)
    }  # fmt: skip
    names = [place.path.rstrip("/") if place.is_remote else str(place.local.absolute()) for place in places.values()]
    if len(set(names)) < len(names):
        raise ExportError(f"{', '.join(names)}: give each of the three models a folder of its own")
    for place in places.values():
        _require_export(place)
    return places


def _require_export(place: Folder) -> None:
    names, path = place.contents(), place.path
    if names is None:
        raise ExportError(f"{path}: is a file; choose a new folder")
    if names and MANIFEST not in names and UNFINISHED not in names:
        raise ExportError(f"{path}: contains files that do not belong to an export; choose a new folder")


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
            if _old(place.local).exists():
                os.rename(place.local, new[kind])
                os.rename(_old(place.local), place.local)
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
        os.rename(place, _old(place))
        os.rename(new, place)


def _put_right(places: Mapping[Kind, Path]) -> None:
    """Put the models of one export in the places, if an export was killed while it did that; remove what it left."""
    left = {
        kind: [folder for folder in (_new(place), _old(place)) if folder.exists()] for kind, place in places.items()
    }
    in_place = {kind: _origin(place) for kind, place in places.items()}
    if any(left.values()) and any(in_place.values()) and len(set(in_place.values())) > 1:
        found = {kind: {_origin(folder): folder for folder in [*left[kind], p]} for kind, p in places.items()}
        common = set.intersection(*map(set, found.values())) - {""}
        for kind, place in places.items():
            # Without a whole export, at least what is missing.
            choices = common or (set() if place.exists() else set(found[kind]) - {""})
            origin = max(choices, default=in_place[kind])
            if origin != in_place[kind]:
                _put(found[kind][origin], place)
    for place in places.values():
        for folder in (_new(place), _old(place)):
            shutil.rmtree(folder, ignore_errors=True)


def _beside(place: Path) -> Path:
    return place.parent / f".{place.name}.tmp"


def _new(place: Path) -> Path:
    return _beside(place) / "new"


def _old(place: Path) -> Path:
    return _beside(place) / "old"


def _origin(folder: Path) -> str:
    """Return what the three models of one export have in common, later exports being larger; "" without a manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return f"{manifest['created']} {manifest['checkpoint']} {manifest['image_tower_fingerprint']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
