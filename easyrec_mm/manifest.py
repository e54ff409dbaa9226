"""manifest.json: the contents of an export folder, their origin, and how closely the exported models agree.

It is written last into each of the three folders. Serving and embedding read nothing else of a folder before its
manifest shows that the folder is complete and of the kind that they need.
"""

from __future__ import annotations

import hashlib
import json
import keyword
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from easyrec_mm.errors import ExportError
from easyrec_mm.files import Failure, StorageError, join, read
from easyrec_mm.files.folders import Folder
from easyrec_mm.schema import TEXT, Schema

Kind = Literal["image", "rec", "total"]
MANIFEST = "manifest.json"
# Names of files, signatures and tensors that the export writes, and that embedding and serving read.
IMAGE_ONNX, REC_ONNX, TABLES_FILE = "image.onnx", "rec.onnx", "rec.tables"
# An example for clients, which nothing reads, so that users may change it.
SAMPLE_REQUEST = "sample_request.json"
DEFAULT, ENCODED, DECODE, VECTOR = "serving_default", "encoded", "decode", "vector"
PIXELS, IMAGE_TEXT, IMAGE_VECTOR, PICTURE_ITEM = "pixels", "img_emb", "img_emb_vector", "picture_item"


class Prepared(NamedTuple):
    """What ONNX cannot compute of a kind of content: the signature that does, and the name of its result."""

    signature: str
    name: str


PREPARED = {TEXT: Prepared("tokens", "text_tokens")}


def prepared_name(schema: Schema, kind: str) -> str:
    """Return the name of the input of image.onnx for contents of a kind; vectors have that of their feature."""
    return PREPARED[kind].name if kind in PREPARED else schema.contents[kind].name


# The format that is written, and those that can be read. In format 1 a feature has the settings of all types.
_FORMAT = 2
_KNOWN_FORMATS = (1, _FORMAT)
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """The contents of a manifest.json.

    kind                     which of the three models
    schema                   fields, features, picture and tasks
    image_input              name of the input that takes pixels or pictures; "" for items without pictures
    image_width              D, the width of an image vector: of the vector of an item, if items have other
                             contents, too
    no_image_vector          the D numbers that represent an item without any content; () if the model has no such
                             vector
    signatures               signature -> "inputs" and "outputs" -> name -> dtype and shape (-1: any)
    checkpoint, step         the checkpoint that was exported, and its training step
    image_tower_fingerprint  hash of the image tower's weights and preprocessing: vectors of two towers never mix
    versions                 package -> version
    parity                   differences between the models, and the limits that these had to keep
    files                    file of the folder -> bytes and SHA-256
    created                  time of the export, UTC
    vectors                  feature -> "fingerprint", "generation" and "width" of the vectors in its store with which
                             the model was trained
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


def invalid_inputs(schema: Schema) -> list[str]:
    """Return what is wrong with the names of the inputs that exported models would have; none for a valid schema."""
    fields = list(
        dict.fromkeys([*schema.input_fields(), *schema.image_input_fields(), *filter(None, [schema.image.field])])
    )
    names = (*fields, *(feature.name for feature in schema.in_stores()))
    of_contents = [PREPARED[kind].name for kind in schema.contents if kind in PREPARED]
    # TensorFlow changes other names silently, and refuses Python's keywords.
    odd = [name for name in names if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) or keyword.iskeyword(name)]
    taken = [name for name in fields if name in (IMAGE_TEXT, IMAGE_VECTOR, PICTURE_ITEM, *of_contents)]
    advice = "rename it: a letter of A-Z, then letters, digits and _, and no keyword of Python"
    return [
        *(f"'{name}' cannot be an input; {advice}" for name in odd),
        *(f"'{name}' is the name of an input for pictures, too; rename the field" for name in taken),
    ]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json."""
    values = {"format": _FORMAT, **asdict(manifest), "schema": manifest.schema.to_dict()}
    (folder / MANIFEST).write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(folder: str, kind: Kind) -> Manifest:
    """Read the manifest of a folder, and check that it is of the given kind and that its files are unchanged.

    Raises:
      ExportError: if there is no manifest, it is of another kind or format, or a file is missing or has changed.
    """
    manifest = read_header(folder, kind)
    require_unchanged(manifest, Path(folder), folder, manifest.files)
    return manifest


def require_unchanged(manifest: Manifest, folder: Path, shown: str, names: Iterable[str]) -> None:
    """Check that files are those that a manifest lists.

    Args:
      manifest: the manifest.
      folder: the folder of the files.
      shown: the folder's name in messages.
      names: the files, which the manifest lists.

    Raises:
      ExportError: if a file is missing or has changed.
    """
    for name in names:
        _check_file(folder / name, join(shown, name), manifest.files[name])


def read_header(folder: str, kind: Kind) -> Manifest:
    """Read the manifest like `read_manifest`, but without checking the files.

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
            raise ValueError(f"only formats up to {_FORMAT} are supported")
        no_image_vector = tuple(values.pop("no_image_vector", ()))
        manifest = Manifest(
            **{**values, "schema": Schema.from_dict(values["schema"]), "no_image_vector": no_image_vector}
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(
            f"{path}: is not a valid manifest ({error}); export again with this version of easyrec_mm"
        ) from error
    if manifest.kind != kind:
        raise ExportError(f"{folder}: holds the {manifest.kind} model, not the {kind} model")
    return manifest


def local_export(folder: str) -> str:
    """Return the local folder of an export; a remote folder is copied first.

    Raises:
      ExportError: if a remote folder contains no export.
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
    """Return the value of Manifest.files for the files in a folder."""
    unlisted = (MANIFEST, SAMPLE_REQUEST)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in unlisted)
    return {str(path.relative_to(folder)): describe_file(path) for path in paths}


def describe_file(path: Path) -> dict[str, Any]:
    """Return the bytes and the SHA-256 of a file, as a manifest lists them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _check_file(path: Path, shown: str, expected: dict[str, Any]) -> None:
    try:
        actual = describe_file(path)
    except OSError as error:
        raise ExportError(
            f"{shown}: cannot be read ({error.strerror}) though {MANIFEST} lists it; export again"
        ) from error
    if actual != expected:
        raise ExportError(
            f"{shown}: has {actual['bytes']} bytes with SHA-256 {actual['sha256'][:12]}, {MANIFEST} says "
            f"{expected['bytes']} with {expected['sha256'][:12]}; it is damaged or of another export; export again"
        )
