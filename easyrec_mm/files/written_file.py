"""Files of a command's output, which appear only when they are complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from easyrec_mm.errors import UserError
from easyrec_mm.files import is_remote, plain, put, written_at


def require_folder(output: str, flag: str = "") -> None:
    """Check that a file of this machine can be written, before time is spent on what it will hold.

    Args:
      output: the file; a remote one is not checked.
      flag: the flag that names it, for the message.

    Raises:
      UserError: if its folder does not exist or cannot be written, or if it is a folder itself.
    """
    if is_remote(output):
        return
    path, name = Path(plain(output)), f"{flag} {output}".lstrip()
    if not path.parent.is_dir():
        raise UserError(f"{name}: the folder {path.parent} does not exist; create it, or give another file")
    if path.is_dir():
        raise UserError(f"{name}: is a folder; give a file, such as {path / 'name'}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{name}: the folder {path.parent} cannot be written; give another file")


@contextmanager
def written_file(output: str) -> Iterator[str]:
    """Yield a path of this machine at which to write a file, which becomes `output`, local or remote, at the end.

    Raises:
      UserError: if it cannot be written.
    """
    require_folder(output)
    with moved_to(output, written_at(output)) as path:
        yield path


@contextmanager
def moved_to(output: str, temporary: Path) -> Iterator[str]:
    """Yield the temporary path, whose file becomes `output` at the end, and is removed after an error.

    Raises:
      UserError: if it cannot be written.
    """
    try:
        yield str(temporary)
        put(temporary, output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
