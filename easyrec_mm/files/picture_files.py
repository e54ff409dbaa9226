"""Reads whole files of pictures, but none that is larger than any picture within the limit of pixels."""

from __future__ import annotations

from easyrec_mm.files.paths import is_remote, plain
from easyrec_mm.files.place import place_of
from easyrec_mm.files.regular_files import open_regular
from easyrec_mm.files.storage import StorageError

# Bytes of an uncompressed pixel, and of what else a file may contain.
_BYTES_PER_PIXEL, _MOST_OTHER_BYTES = 4, 1 << 20


def most_bytes(max_pixels: int) -> int:
    """Return the size in bytes of the largest file that may be a picture of so many pixels."""
    return _BYTES_PER_PIXEL * max_pixels + _MOST_OTHER_BYTES


def too_large(max_bytes: int) -> str:
    """Return the problem of a file with more bytes than `most_bytes`."""
    return f"has more bytes than a picture of max_image_pixels can need ({max_bytes:,})"


def read_picture(path: str, max_bytes: int) -> bytes | str:
    """Return the content of a picture, local or remote, or the problem with it; see `most_bytes`."""
    content = read_begin(path, max_bytes + 1)
    return too_large(max_bytes) if len(content) > max_bytes and isinstance(content, bytes) else content


def read_begin(path: str, num_bytes: int) -> bytes | str:
    """Return the first bytes of a picture, local or remote, or the problem with it."""
    try:
        if is_remote(path):
            remote = place_of(path).read(path, max_bytes=num_bytes)
            content = remote.data if remote else b""
        else:
            with open(plain(path), "rb", opener=open_regular) as file:
                content = file.read(num_bytes)
    except StorageError as error:
        return f"cannot be read: {error.reason}"
    except (OSError, ValueError) as error:  # ValueError: no file can have that path
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return content or "is empty (0 bytes)"
