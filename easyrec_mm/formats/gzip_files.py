"""Tells a gzip file that breaks off from one that ends: TensorFlow reads both without a word."""

from __future__ import annotations

import threading
import zlib

import tensorflow as tf

_GZIP_FORMAT = 31  # zlib's wbits for a gzip header and the largest window
# Unpacked, at most a thousand times as many.
_BYTES_AT_ONCE = 1 << 16


def first_truncated(files: list[str], stop: threading.Event) -> str | None:
    """The first of these gzip files whose data end too early; None if there is none, or once `stop` is set.

    A file that cannot be opened or is damaged otherwise is passed over: reading it fails anyway.
    """
    return next((file for file in files if _is_truncated(file, stop)), None)


def _is_truncated(file: str, stop: threading.Event) -> bool:
    part = None  # a file may hold several compressed parts, one behind the other
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
