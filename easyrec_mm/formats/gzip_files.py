"""Finds truncated gzip files, which TensorFlow reads without an error."""

from __future__ import annotations

import threading
import zlib

import tensorflow as tf

_GZIP_FORMAT = 31  # zlib's wbits for a gzip header and the largest window
# Decompressed, these are at most a thousand times as many bytes.
_BYTES_AT_ONCE = 1 << 16


def first_truncated(files: list[str], stop: threading.Event) -> str | None:
    """Return the first of these gzip files that is truncated; None if all are complete, or once `stop` is set.

    A file that cannot be opened or is damaged otherwise is skipped, because reading it fails anyway.
    """
    return next((file for file in files if _is_truncated(file, stop)), None)


def _is_truncated(file: str, stop: threading.Event) -> bool:
    part = None  # a file may consist of several compressed parts
    try:
        with tf.io.gfile.GFile(file, "rb") as stream:
            while not stop.is_set() and (data := stream.read(_BYTES_AT_ONCE)):
                while data:
                    part = part or zlib.decompressobj(_GZIP_FORMAT)
                    part.decompress(data)
                    data, part = part.unused_data, None if part.eof else part
    except (zlib.error, tf.errors.OpError):
        return False
    return part is not None and not stop.is_set()
