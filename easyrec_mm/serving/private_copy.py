"""Copies of exports from which a server loads them.

ONNX Runtime maps the tables of a model into memory. If a file were overwritten in place, a server that had loaded it
would answer with a mixture of two models, or end (SIGBUS). It therefore loads copies that nobody else writes to.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from easyrec_mm.errors import ExportError
from easyrec_mm.manifest import MANIFEST, Manifest, require_unchanged


def private_copy(folder: str, manifest: Manifest, names: Sequence[str], place: str) -> str:
    """Copy files of an export, unless they have been copied before; return the folder of the copies.

    Args:
      folder: local folder of the export.
      manifest: its manifest.
      names: the files.
      place: folder for copies, which several processes may share.

    Raises:
      ExportError: if any file of the export is missing or not the one that the manifest lists, or there is no room.
    """
    require_unchanged(manifest, Path(folder), folder, manifest.files)
    digest = hashlib.sha256("".join(f"{name}\n{manifest.files[name]}\n" for name in sorted(names)).encode()).hexdigest()
    target = Path(place) / f"export-{digest[:16]}"
    try:
        require_unchanged(manifest, target, folder, names)
    except ExportError:  # as it is the first time
        shutil.rmtree(target, ignore_errors=True)
        _copy(folder, manifest, names, target)
    return str(target)


def _copy(folder: str, manifest: Manifest, names: Sequence[str], target: Path) -> None:
    new = Path(tempfile.mkdtemp(prefix="new-", dir=target.parent))
    try:
        for name in names:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder) / name, new / name)
        require_unchanged(manifest, new, folder, names)
        new.rename(target)
    except FileNotFoundError as error:
        raise ExportError(f"{error.filename}: is missing, though {MANIFEST} lists it; export again") from error
    except OSError as error:
        if not target.is_dir():  # as another process that was faster has left it
            raise ExportError(
                f"{folder}: cannot be copied to {target.parent}: {error.strerror}; give a folder for temporary files "
                "that has room for it with TMPDIR"
            ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
