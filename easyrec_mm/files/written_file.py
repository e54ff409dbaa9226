"""Files of a command's output, which appear only when they are complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from easyrec_mm.errors import UserError
from easyrec_mm.files import put, written_at


@contextmanager
def written_file(output: str) -> Iterator[str]:
    """Yield a path of this machine at which to write a file, which becomes `output`, local or remote, at the end.

    Raises:
      UserError: if it cannot be written.
    """
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
