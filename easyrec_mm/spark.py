"""Spark: its session, and functions that run on its workers. Imported only where a user asks for Spark."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark import SparkConf
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from easyrec_mm.errors import DataError, UserError
from easyrec_mm.safe_text import hide_secrets
from easyrec_mm.tensorflow_import import import_messages_hidden

Result = TypeVar("Result")
# A task of run_tasks takes one row and returns one: its number, and its argument or outcome.
_NUMBER, _VALUE = "number", "value"
_SCHEMA = pa.schema([(_NUMBER, pa.int64()), (_VALUE, pa.binary())])


@contextmanager
def spark_session(master: str, command: str) -> Iterator[SparkSession]:
    """Yield the active session, or a new one, which is stopped at the end.

    Args:
      master: cluster of a new session; "" for the one in Spark's own configuration.
      command: the command of easyrec-mm, for the name of a new session.

    Raises:
      DataError: if no session can be started, or if a task fails repeatedly.
    """
    running = SparkSession.getActiveSession()
    try:
        session = running or _new_session(master, command)
    except (PySparkException, Py4JError) as error:
        raise DataError(
            f"--engine spark: no session on '{master or 'the configured master'}': {_cause(error)}; check "
            "--spark_master, and that Java 17 or later is installed"
        ) from error
    try:
        yield session
    except (PySparkException, Py4JError) as error:
        raise DataError(f"--engine spark: {_cause(error)}; see Spark's log") from error
    finally:
        if running is None:
            session.stop()


def _cause(error: Exception) -> str:
    """Return the line of a Spark error that says what happened, from between stack traces of two languages."""
    lines = [line.strip(" :") for line in str(error).splitlines() if line.strip(" :")]
    return next((line for line in lines if "Exception: " in line or "Error: " in line), lines[0] if lines else "")


def _new_session(master: str, command: str) -> SparkSession:
    builder = SparkSession.builder.appName(f"easyrec-mm {command}")
    if master:
        builder = builder.master(master)
    if (master or SparkConf().get("spark.master") or "local").startswith("local"):
        # Local workers must run the same Python, with the same packages, as this process.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = builder.config("spark.executorEnv.PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    return builder.getOrCreate()


def guarded(run: Callable[[], Any]) -> bytes:
    """Call a function; return its result, or a UserError as a value, because Spark would bury it in a stack trace."""
    try:
        return pickle.dumps((run(), ""))
    except UserError as error:
        return pickle.dumps((None, str(error)))


def result_of(outcome: bytes) -> Any:
    """Return the result of a guarded function.

    Raises:
      DataError: if it raised a UserError.
    """
    result, problem = pickle.loads(bytes(outcome))
    if problem:
        raise DataError(problem)
    return result


def run_tasks(
    session: SparkSession,
    function: Callable[[Any], Result],
    arguments: Sequence[Any],
    secret_uris: Sequence[str] = (),
) -> list[Result]:
    """Call a function with each argument, each in a task of Spark; return the results in the order of the arguments.

    The current folder is the same on the workers, if they have it, so that relative paths mean the same files.

    Args:
      session: the session.
      function: can be pickled; may be called twice with an argument, even at the same time.
      arguments: can be pickled.
      secret_uris: URIs whose passwords do not get into Spark's log.

    Raises:
      DataError: if the function raised a UserError.
    """
    folder, pickled_function = os.getcwd(), pickle.dumps(function)

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        # Here the workers import what the function needs.
        with import_messages_hidden():
            loaded = pickle.loads(pickled_function)
        for batch in batches:
            for number, argument in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                outcome = _outcome(partial(loaded, pickle.loads(argument)), folder, secret_uris)
                yield pa.RecordBatch.from_pydict({_NUMBER: [number], _VALUE: [outcome]}, _SCHEMA)

    schema = from_arrow_schema(_SCHEMA)
    pickled = [(number, pickle.dumps(argument)) for number, argument in enumerate(arguments)]
    rows = session.createDataFrame(session.sparkContext.parallelize(pickled, len(pickled)), schema)
    outcomes = dict(map(tuple, rows.mapInArrow(run, schema).collect()))
    return [result_of(outcomes[number]) for number in range(len(pickled))]


def _outcome(run: Callable[[], Any], folder: str, secret_uris: Sequence[str]) -> bytes:
    """Return the guarded result of a function that runs in a folder, if there is one on this machine."""
    before = os.getcwd()
    with suppress(OSError):
        os.chdir(folder)
    try:
        return guarded(run)
    except Exception as error:
        # A mistake in this program. Spark writes what is raised to its log.
        text = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        raise RuntimeError(hide_secrets(text, *secret_uris)) from None
    finally:
        os.chdir(before)
