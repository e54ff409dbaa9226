"""manifest.json: what an export folder holds, where it comes from and how exactly its models agree.

Written last into each of the three folders. Serving and embedding read nothing of a folder before its manifest says
that it is whole and of the kind they need.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from easyrec_mm.errors import ExportError
from easyrec_mm.files import Failure, StorageError, join, read
from easyrec_mm.files.folders import Folder
from easyrec_mm.schema import Schema

Kind = Literal["image", "rec", "total"]
MANIFEST = "manifest.json"
# Files of the folders, signatures and tensors that the export writes, and embedding and serving read.
IMAGE_ONNX, REC_ONNX, TABLES_FILE = "image.onnx", "rec.onnx", "rec.tables"
DEFAULT, ENCODED, DECODE, VECTOR = "serving_default", "encoded", "decode", "vector"
PIXELS, IMAGE_TEXT, IMAGE_VECTOR, PICTURE_ITEM = "pixels", "img_emb", "img_emb_vector", "picture_item"
# Written, and those that are read. In format 1 a feature has the settings of all types side by side.
_FORMAT = 2
_KNOWN_FORMATS = (1, _FORMAT)
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """The contents of a manifest.json.

    kind                     which of the three models
    schema                   fields, features, picture and tasks
    image_input              name of the input that takes pixels or pictures
    image_width              D, numbers of an image vector
    no_image_vector          the D numbers that stand for no picture; () if the model has none
    signatures               signature -> "inputs" and "outputs" -> name -> dtype and shape (-1: any)
    checkpoint, step         what was exported
    image_tower_fingerprint  of the image tower's weights and preprocessing: vectors of two towers never mix
    versions                 package -> version
    parity                   how far the models are from each other, and the limits they had to keep
    files                    file of the folder -> bytes and SHA-256
    created                  UTC
    vectors                  feature -> "fingerprint", "generation" and "width" of the vectors of its store that the
                             model was trained with
    """

    kind: Kind
    schema: Schema
    image_input: str
    image_width: int
    signatures: dict[str, dict[str, dict[str, dict[str, Any]]]]
    checkpoint: str
    step: int
    image_tower_fingerprint: str
    versions: dict[str, str]
    parity: dict[str, Any]
    files: dict[str, dict[str, Any]]
    created: str
    no_image_vector: tuple[float, ...] = ()
    vectors: dict[str, dict[str, Any]] = field(default_factory=dict)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json."""
    values = {"format": _FORMAT, **asdict(manifest), "schema": manifest.schema.to_dict()}
    (folder / MANIFEST).write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(folder: str, kind: Kind) -> Manifest:
    """Read the manifest of a folder and check that it is of that kind and that its files are as they were written.

    Raises:
      ExportError: if there is none, it is of another kind or format, or a file is missing or has changed.
    """
    manifest = read_header(folder, kind)
    for name, expected in manifest.files.items():
        _check_file(Path(folder) / name, expected)
    return manifest


def read_header(folder: str, kind: Kind) -> Manifest:
    """As `read_manifest`, without looking at the files.

    Raises:
      ExportError: if there is no manifest, or it is of another kind or format.
    """
    path = join(folder, MANIFEST)
    try:
        values = json.loads(read(path))
    except (OSError, StorageError, ValueError) as error:
        if isinstance(error, FileNotFoundError) or getattr(error, "failure", None) == Failure.MISSING:
            raise ExportError(f"{folder}: no {MANIFEST}; give a folder that easyrec-mm export has written") from error
        raise ExportError(f"{path}: cannot be read: {error}; export again") from error
    try:
        if values.pop("format") not in _KNOWN_FORMATS:
            raise ValueError(f"only formats up to {_FORMAT} are known")
        no_image_vector = tuple(values.pop("no_image_vector", ()))
        manifest = Manifest(
            **{**values, "schema": Schema.from_dict(values["schema"]), "no_image_vector": no_image_vector}
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(f"{path}: is not understood ({error}); export with this version") from error
    if manifest.kind != kind:
        raise ExportError(f"{folder}: holds the {manifest.kind} model, not the {kind} model")
    return manifest


def local_export(folder: str) -> str:
    """The folder of an export; of a remote one, a copy.

    Raises:
      ExportError: if it holds no export.
      StorageError: if it cannot be read.
    """
    export = Folder(folder)
    if export.is_remote:
        export.look()
        if MANIFEST not in export.names():
            raise ExportError(f"{folder}: no {MANIFEST}; give a folder that easyrec-mm export has written")
        export.fetch()
    return str(export.local)


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Manifest.files of what is in a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): _describe(path) for path in paths}


def _describe(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _check_file(path: Path, expected: dict[str, Any]) -> None:
    try:
        found = _describe(path)
    except OSError as error:
        raise ExportError(
            f"{path}: cannot be read ({error.strerror}) though {MANIFEST} lists it; export again"
        ) from error
    if found != expected:
        raise ExportError(
            f"{path}: has {found['bytes']} bytes with SHA-256 {found['sha256'][:12]}, {MANIFEST} says "
            f"{expected['bytes']} with {expected['sha256'][:12]}; it is damaged or of another export; export again"
        )
