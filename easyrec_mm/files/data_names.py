"""Tells which files a pattern or a folder means: data, and not what programs put beside them."""

from __future__ import annotations

import re

_PICTURE_ENDINGS = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp"),
    *(".heic", ".heif", ".ico", ".jxl", ".svg", ".tif", ".tiff"),  # which are bad pictures
)
_SOUND_ENDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
# Ending of a tar file with the pictures of the data file beside it.
PICTURES_ENDING = ".pictures.tar"
# Reports that `group` and `convert` write beside the data.
_REPORTS = ("stats.json", "bad_rows.jsonl")


def is_data(path: str) -> bool:
    """Return whether a file is data: not hidden, a marker such as _SUCCESS, a report, or packed pictures."""
    name = path.rstrip("/").rpartition("/")[2]
    if name.startswith("_"):
        return is_picture(name)
    return not (name.startswith(".") or name in _REPORTS or name.endswith(PICTURES_ENDING))


def is_picture(path: str) -> bool:
    """Return whether a file is a picture, according to its name."""
    return path.lower().endswith(_PICTURE_ENDINGS)


def is_sound(path: str) -> bool:
    """Return whether a path ends as those of sounds do."""
    return path.lower().endswith(_SOUND_ENDINGS)


def is_meant(path: str, pattern: str) -> bool:
    """Return whether a pattern that matches a path means it: `*` passes over what is no data, a name does not."""
    name = pattern.rpartition("/")[2]
    return not re.search(r"[*?[]", pattern) or path == pattern or name[:1] in ("_", ".") or is_data(path)
