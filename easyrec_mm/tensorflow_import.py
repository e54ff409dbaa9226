"""Imports TensorFlow without the messages that its libraries write to the terminal meanwhile."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

# Only one thread at a time may exchange stderr.
_lock = threading.Lock()


@cache
def import_tensorflow() -> Any:
    """Import and return TensorFlow, before modules that import it; its messages are shown only if the import fails.

    If tensorflow-io is installed, it is imported too, because it adds file schemes to TensorFlow.
    """
    with import_messages_hidden():
        import tensorflow

        with suppress(ImportError):
            import tensorflow_io  # noqa: F401
    return tensorflow


@contextmanager
def import_messages_hidden() -> Iterator[None]:
    """Hide what is written to stderr while modules are imported that may import TensorFlow, unless that fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with _lock:
        stderr = os.dup(2)
        with tempfile.TemporaryFile() as notices:
            os.dup2(notices.fileno(), 2)
            try:
                yield
            except BaseException:
                notices.seek(0)
                os.write(stderr, notices.read())
                raise
            finally:
                os.dup2(stderr, 2)
                os.close(stderr)
