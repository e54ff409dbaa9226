"""delta.json says what a delta was made from, what it makes, and which parts make up each file of the result.

A delta is a folder of three files:

    delta.json  the description
    rows.bin    for each table, one after another: int64 [copies, 3], each the first row of the result, the first row of
                the base and a number of rows that are the same; int64 [changed], rows of the result; and their values
    data.gz     the bytes of all parts of kind "data", in the order of the description
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from easyrec_mm import __version__
from easyrec_mm.errors import ExportError
from easyrec_mm.files import join
from easyrec_mm.manifest import MANIFEST, Manifest, describe_file, read_header

DELTA, ROWS, DATA = "delta.json", "rows.bin", "data.gz"
_FORMAT = 1
# Bytes of a row's number, and of the description of rows that are the same.
ID_BYTES, COPY_BYTES = 8, 24


@dataclass(frozen=True)
class Release:
    """An exported rec model.

    fingerprint  SHA-256 of its manifest.json, which contains the checksums of its files
    checkpoint   the checkpoint that was exported
    image_tower  fingerprint of the image tower whose vectors it takes
    """

    fingerprint: str
    checkpoint: str
    image_tower: str

    def __str__(self) -> str:
        return f"{self.fingerprint[:12]} ({self.checkpoint})"


@dataclass(frozen=True)
class TableDelta:
    """A table of the result.

    name         name of the table
    rows         number of its rows
    row_bytes    bytes of a row
    base_rows    number of rows in the base; 0 if the base does not have the table
    base_offset  where it begins in the base's rec.tables
    copies       how many sequences of rows are those of the base
    changed      how many rows differ from those of the base, or are new
    """

    name: str
    rows: int
    row_bytes: int
    base_rows: int
    base_offset: int
    copies: int
    changed: int


@dataclass(frozen=True)
class Part:
    """A part of a file of the result.

    kind    "copy": bytes of the base's file of the same name; "table": the bytes of a table; "data": bytes of data.gz
    length  number of bytes
    place   where a copy begins, or the index of the table
    """

    kind: Literal["copy", "table", "data"]
    length: int
    place: int = 0


@dataclass(frozen=True)
class Delta:
    """The description of a delta.

    base, result  the model that it was made from, and the one that it makes
    tables        the tables of the result
    files         file of the result -> its parts
    contents      file of the delta -> bytes and SHA-256
    """

    base: Release
    result: Release
    tables: tuple[TableDelta, ...]
    files: dict[str, tuple[Part, ...]]
    contents: dict[str, dict[str, Any]]


def read_release(folder: str) -> tuple[Release, Manifest]:
    """Return which release an exported rec model is, and its manifest; its other files are not read.

    Args:
      folder: a local folder.

    Raises:
      ExportError: if it is not an exported rec model.
    """
    manifest = read_header(folder, "rec")
    fingerprint = hashlib.sha256((Path(folder) / MANIFEST).read_bytes()).hexdigest()
    return Release(fingerprint, Path(manifest.checkpoint).name, manifest.image_tower_fingerprint), manifest


def write_description(folder: Path, delta: Delta) -> None:
    """Write delta.json."""
    text = json.dumps({"format": _FORMAT, "easyrec_mm": __version__, **asdict(delta)}, indent=1)
    (folder / DELTA).write_text(text + "\n", encoding="utf-8")


def read_delta(folder: Path, shown: str) -> Delta:
    """Read delta.json, and check the other files of the delta.

    Args:
      folder: the folder of the delta.
      shown: its name in messages.

    Raises:
      ExportError: if it is not a delta, or is damaged.
    """
    try:
        values = json.loads((folder / DELTA).read_bytes())
    except FileNotFoundError as error:
        raise ExportError(f"{shown}: no {DELTA}; give a folder that easyrec-mm export --delta_from made") from error
    except ValueError as error:
        raise ExportError(f"{join(shown, DELTA)}: is damaged ({error}); copy the delta again") from error
    try:
        if values["format"] != _FORMAT:
            raise ValueError(f"only format {_FORMAT} is supported")
        delta = Delta(
            base=Release(**values["base"]),
            result=Release(**values["result"]),
            tables=tuple(TableDelta(**table) for table in values["tables"]),
            files={name: tuple(Part(**part) for part in parts) for name, parts in values["files"].items()},
            contents=values["contents"],
        )
        outside = [name for name in delta.files if PurePosixPath(name).is_absolute() or ".." in name.split("/")]
        if outside or set(delta.contents) != {ROWS, DATA}:
            raise ValueError(f"unexpected files {outside or list(delta.contents)}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(
            f"{join(shown, DELTA)}: is not a valid delta ({error}); make it with this version of easyrec_mm"
        ) from error
    for name, expected in delta.contents.items():
        if not (folder / name).is_file():
            raise ExportError(f"{join(shown, name)}: is missing; copy the delta again")
        actual = describe_file(folder / name)
        if actual != expected:
            raise ExportError(
                f"{join(shown, name)}: has {actual['bytes']} bytes with SHA-256 {actual['sha256'][:12]}, {DELTA} says "
                f"{expected['bytes']} with {expected['sha256'][:12]}; copy the delta again"
            )
    return delta
