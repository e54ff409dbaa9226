"""A local Spark cluster of two workers, each a process of its own, with one core, and functions that fail there.

Workers import this module, again after each failure, so that it does without TensorFlow.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from easyrec_mm.errors import DataError

# With the memory that Spark's executors ask for.
MASTER = "local-cluster[2,1,1024]"
SECRET = "s3cr3t-w0rd"
URI = f"redis://:{SECRET}@nowhere:6379/0"


@contextmanager
def spark_environment() -> Iterator[pytest.MonkeyPatch]:
    """Settings for sessions that live for seconds; skips where Java is missing, but never in continuous integration."""
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        problem = "Java is not installed; scripts/services installs it (Debian, as root)"
        if os.environ.get("CI"):
            raise FileNotFoundError(problem)
        pytest.skip(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        # Programs that run for seconds are not worth the time of the second compiler and of parallel collection.
        java = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
        conf = {"spark.ui.enabled": "false", "spark.task.maxFailures": "2", "spark.driver.extraJavaOptions": java}
        conf["spark.executor.extraJavaOptions"] = java
        flags = " ".join(f"--conf '{name}={value}'" for name, value in conf.items())
        patch.setenv("PYSPARK_SUBMIT_ARGS", f"{flags} pyspark-shell")
        yield patch


def fail(number):
    """A mistake in this program, on a worker; what libraries raise may hold the password alone."""
    raise ValueError(f"{URI} and {SECRET}")


def refuse(number):
    raise DataError(f"worker {number} refuses {os.getcwd()}")


class Imported:
    """On a worker, returns whether stderr was a file without a name, to which nobody looks, while this was imported."""

    is_hidden = False

    def __setstate__(self, state):
        self.is_hidden = os.fstat(2).st_nlink == 0

    def __getstate__(self):
        return {"any": True}

    def __call__(self, number):
        return self.is_hidden and os.fstat(2).st_nlink > 0
