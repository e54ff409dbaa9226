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
import pyarrow.compute as pc
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from easyrec_mm.errors import DataError, UserError
from easyrec_mm.safe_text import hide_secrets

Result = TypeVar("Result")
_NUMBER, _OUTCOME = "easyrec_mm:number", "easyrec_mm:outcome"


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
    if master.startswith("local"):
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


def run_numbers(
    session: SparkSession, num: int, function: Callable[[int], Result], secret_uris: Sequence[str] = ()
) -> list[Result]:
    """Call a function with each number below `num`, each in a task of Spark; return the results in this order.

    The current folder is the same on the workers, if they have it, so that relative paths mean the same files.

    Args:
      session: the session.
      num: number of calls.
      function: can be pickled; may be called twice with a number, even at the same time.
      secret_uris: URIs whose passwords do not get into Spark's log.

    Raises:
      DataError: if the function raised a UserError.
    """

    folder = os.getcwd()

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield _outcome(number, partial(function, number), folder, secret_uris)

    return _results(session.range(0, num, 1, num), run)


def run_parts(
    session: SparkSession,
    rows: pa.Table,
    num: int,
    function: Callable[[pa.Table], Result],
    secret_uris: Sequence[str] = (),
) -> list[Result]:
    """Call a function with each of `num` parts of a table, each in a task of Spark; see run_numbers."""
    limits = [len(rows) * i // num for i in range(num + 1)]
    part = pa.array([i for i in range(num) for _ in range(limits[i + 1] - limits[i])], pa.int32())
    schema, folder = rows.schema, os.getcwd()

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        table = pa.Table.from_batches(list(batches))
        for number in table[_NUMBER].unique().to_pylist() if len(table) else ():
            own = table.filter(pc.equal(table[_NUMBER], number)).select(schema.names)
            yield _outcome(number, partial(function, own), folder, secret_uris)

    numbered = session.createDataFrame(rows.append_column(_NUMBER, part))
    return _results(numbered.repartitionByRange(num, f"`{_NUMBER}`"), run)


def _outcome(number: int, run: Callable[[], Any], folder: str, secret_uris: Sequence[str]) -> pa.RecordBatch:
    """Return the number and the guarded result of a function that runs in a folder, if there is one on this machine."""
    before = os.getcwd()
    with suppress(OSError):
        os.chdir(folder)
    try:
        outcome = guarded(run)
    except Exception:
        # Of a mistake in this program. Spark writes what is raised to its log.
        raise RuntimeError(hide_secrets(traceback.format_exc(), *secret_uris)) from None
    finally:
        os.chdir(before)
    return pa.RecordBatch.from_arrays([pa.array([number], pa.int64()), pa.array([outcome], pa.binary())], _names())


def _names() -> list[str]:
    return [_NUMBER, _OUTCOME]


def _results(rows: DataFrame, run: Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]) -> list[Any]:
    schema = from_arrow_schema(pa.schema(zip(_names(), (pa.int64(), pa.binary()), strict=True)))
    outcomes = dict(map(tuple, rows.mapInArrow(run, schema).collect()))
    return [result_of(outcomes[number]) for number in sorted(outcomes)]
