"""Runs the steps of grouping on Spark: the same functions on its workers, its shuffle and sort between them.

Rows travel as Arrow. What a step has to tell besides (counts, statistics, what was refused) travels as one more row of
each task, so that it is neither lost nor counted twice when a task runs again.
"""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession, functions
from pyspark.sql.pandas.types import from_arrow_schema

from easyrec_mm.errors import DataError, UserError
from easyrec_mm.files import is_remote
from easyrec_mm.formats.columns import ORDER
from easyrec_mm.grouping.assign import FIRST, PLACE_COLUMNS, POSITION, SHARD, GroupRule, GroupsReport, assign
from easyrec_mm.grouping.constancy import Constancy, ConstantColumns
from easyrec_mm.grouping.flat_files import Split
from easyrec_mm.grouping.rows import LogLayout, RowsReport, SplitReader, merged
from easyrec_mm.grouping.shards import OutputRule, ShardReport, put_shard
from easyrec_mm.grouping.spill import read_bucket, write_spill
from easyrec_mm.stable_hash import hash_column

Item = TypeVar("Item")
Result = TypeVar("Result")
Batches = Iterator[pa.RecordBatch]

# What a task tells, pickled (its other columns are null); and the hash of a row's item, by which rows are shuffled.
_TOLD, _ITEM = "easyrec_mm:told", "easyrec_mm:item"
# Rows whose keys one task can take, and bytes of rows that it holds.
_TASK_ROWS, _HELD_BYTES = 2_000_000, 64 << 20
_MAX_SLICES = 1000
_BATCH_ROWS = 1 << 16
# Folder of shards that are being written, in that of the output.
_ATTEMPTS = ".attempts"


@contextmanager
def spark_engine(master: str = "") -> Iterator[SparkEngine]:
    """An engine on the session that there is, or on a new one, which ends with it.

    Args:
      master: cluster of a new session; "" for what Spark's own configuration says.

    Raises:
      DataError: if there can be no session, or a task fails again and again.
    """
    running = SparkSession.getActiveSession()
    try:
        session = running or _new_session(master)
    except (PySparkException, Py4JError) as error:
        raise DataError(
            f"--engine spark: no session on '{master or 'the configured master'}': {_cause(error)}; check "
            "--spark_master, and that Java 17 or later is installed"
        ) from error
    try:
        yield SparkEngine(session)
    except (PySparkException, Py4JError) as error:
        raise DataError(f"--engine spark: {_cause(error)}; see Spark's log") from error
    finally:
        if running is None:
            session.stop()


def _cause(error: Exception) -> str:
    """The line of a Spark error that says what happened; stack traces of two languages are around it."""
    lines = [line.strip(" :") for line in str(error).splitlines() if line.strip(" :")]
    return next((line for line in lines if "Exception: " in line or "Error: " in line), lines[0] if lines else "")


def _new_session(master: str) -> SparkSession:
    builder = SparkSession.builder.appName("easyrec-mm group")
    if master:
        builder = builder.master(master)
    if master.startswith("local"):
        # Workers on this machine are to run what runs here.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = builder.config("spark.executorEnv.PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    return builder.getOrCreate()


class SparkEngine:
    """Groups rows on the workers of a Spark session.

    Input, output and pictures must be under the same paths on all of them, or remote.
    """

    def __init__(self, session: SparkSession) -> None:
        self._session = session
        self._session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", _BATCH_ROWS)
        self._rows: DataFrame | None = None
        self._placed: DataFrame | None = None
        self._num_rows = 0

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """The results for each item, in their order."""
        items = list(items)
        if not items:
            return []
        told = self._session.sparkContext.parallelize(items, min(len(items), _MAX_SLICES)).map(_Guarded(function))
        return [_result(one) for one in told.collect()]

    def read(self, splits: list[Split], layout: LogLayout) -> RowsReport:
        """Read and check the rows; they are kept for `group`."""
        schema = layout.schema.append(pa.field(_ITEM, pa.int64()))
        numbers = self._session.range(0, len(splits), 1, len(splits))
        self._rows, told = self._run(numbers, _ReadSplits(splits, layout, schema), schema)
        reports = sorted(told, key=lambda one: one[0])
        self._num_rows = sum(report.num_rows for _, report in reports)
        return merged((report for _, report in reports), layout)

    def group(self, rule: GroupRule) -> tuple[GroupsReport, ConstantColumns]:
        """Make groups of what was read; they are kept for `write`."""
        schema = pa.schema([*rule.layout.schema, *PLACE_COLUMNS.items()])
        num_tasks = max(self._session.sparkContext.defaultParallelism, -(-self._num_rows // _TASK_ROWS))
        rows = _without_told(self._rows).repartition(num_tasks, functions.col(f"`{_ITEM}`"))
        self._placed, told = self._run(rows, _GroupRows(rule, schema), schema)
        self._rows.unpersist()  # type: ignore[union-attr]
        report, constant = GroupsReport(), ConstantColumns(set(rule.layout.kinds))
        for some, some_constant in told:
            report.merge(some)
            constant.merge(some_constant)
        return report, constant

    def write(self, rule: OutputRule) -> list[ShardReport]:
        """Write the shards of what was grouped."""
        attempts = _attempts(rule)
        if attempts:
            os.mkdir(attempts)
        places = [functions.col(f"`{name}`") for name in (SHARD, POSITION, FIRST, ORDER)]
        rows = _without_told(self._placed).repartition(sum(rule.num_shards), places[0]).sortWithinPartitions(*places)
        written = rows.mapInArrow(_WriteShards(rule), from_arrow_schema(pa.schema([(_TOLD, pa.binary())])))
        reports = dict(itertools.chain.from_iterable(_result(row[0]) for row in written.collect()))
        self._placed.unpersist()  # type: ignore[union-attr]
        # What no row belongs to is a file of no groups.
        for shard in range(sum(rule.num_shards)):
            if shard not in reports:
                reports[shard] = put_shard(shard, [], rule, attempts)
        if attempts:
            shutil.rmtree(attempts, ignore_errors=True)  # also what tasks left that were killed
        return [reports[shard] for shard in sorted(reports)]

    def _run(self, rows: DataFrame, function: Any, schema: pa.Schema) -> tuple[DataFrame, list[Any]]:
        """The rows that a function makes, kept on the workers' disks, and what its tasks tell."""
        whole = from_arrow_schema(schema.append(pa.field(_TOLD, pa.binary())))
        made = rows.mapInArrow(function, whole).persist(StorageLevel.DISK_ONLY)
        told = made.filter(_told_column().isNotNull()).select(_told_column()).collect()
        return made, [_result(row[0]) for row in told]


def _told_column() -> Column:
    return functions.col(f"`{_TOLD}`")


def _without_told(rows: DataFrame | None) -> DataFrame:
    if rows is None:
        raise RuntimeError("the step before this one did not run")
    return rows.filter(_told_column().isNull()).drop(_TOLD)


@dataclass(frozen=True)
class _Guarded:
    """A function whose mistakes of the user come back as values: Spark would bury them in a stack trace."""

    function: Callable[[Any], Any]

    def __call__(self, item: Any) -> bytes:
        return _guarded(lambda: self.function(item))


def _guarded(run: Callable[[], Any]) -> bytes:
    try:
        return pickle.dumps((run(), ""))
    except UserError as error:
        return pickle.dumps((None, str(error)))


def _result(told: bytes) -> Any:
    result, problem = pickle.loads(bytes(told))
    if problem:
        raise DataError(problem)
    return result


class _Step:
    """What runs on a worker: batches of rows -> batches of rows, and one row that tells `self.told()`."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema

    def __call__(self, batches: Batches) -> Batches:
        none: pa.Array = None
        try:
            for table in self.tables(batches):
                told = pa.nulls(len(table), pa.binary())
                yield from table.select(self._schema.names).append_column(_TOLD, told).to_batches(_BATCH_ROWS)
            told = pickle.dumps((self.told(), ""))
        except UserError as error:
            told = pickle.dumps((None, str(error)))
        none = [pa.nulls(1, field.type) for field in self._schema]
        yield pa.RecordBatch.from_arrays([*none, pa.array([told], pa.binary())], [*self._schema.names, _TOLD])

    def tables(self, batches: Batches) -> Iterator[pa.Table]:
        """The rows that are made."""
        raise NotImplementedError

    def told(self) -> Any:
        """What there is to tell behind them."""
        raise NotImplementedError


class _ReadSplits(_Step):
    """Numbers of splits (one a task) -> their rows."""

    def __init__(self, splits: list[Split], layout: LogLayout, schema: pa.Schema) -> None:
        super().__init__(schema)
        self._splits = splits
        self._layout = layout
        self._number = -1
        self._report: RowsReport | None = None

    def tables(self, batches: Batches) -> Iterator[pa.Table]:
        for number in itertools.chain.from_iterable(batch.column(0).to_pylist() for batch in batches):
            reader = SplitReader(self._splits[number], self._layout)
            self._number, self._report = number, reader.report
            for table in reader.tables():
                items = table[self._layout.group_by].combine_chunks().dictionary_encode()
                yield table.append_column(_ITEM, pa.array(hash_column(items).view(np.int64)))

    def told(self) -> Any:
        return self._number, self._report or RowsReport.of(self._layout)


class _GroupRows(_Step):
    """All rows of some items -> the same, with their places."""

    def __init__(self, rule: GroupRule, schema: pa.Schema) -> None:
        super().__init__(schema)
        self._rule = rule
        self._report = GroupsReport()
        self._constant = ConstantColumns(set(rule.layout.kinds))

    def tables(self, batches: Batches) -> Iterator[pa.Table]:
        rule = self._rule
        with tempfile.TemporaryDirectory(prefix="easyrec_mm_rows_") as folder:
            names = (os.path.join(folder, f"{number}.arrow") for number in itertools.count())
            files = [write_spill(next(names), table) for table in _in_portions(batches)]
            keys = read_bucket(files, 0, rule.key_columns)
            if keys is None:
                return
            assignment = assign(keys, rule)
            constancy = Constancy(list(rule.layout.kinds), len(keys), assignment.num_runs)
            start = 0
            for file in files:
                table = read_bucket([file], 0)
                if table is None:
                    continue
                constancy.add(table, assignment.row_run[start : start + len(table)])
                for name, column in assignment.places(start, len(table)).items():
                    table = table.append_column(name, column)
                yield table
                start += len(table)
            self._report, self._constant = assignment.report, constancy.result()

    def told(self) -> Any:
        return self._report, self._constant


@dataclass(frozen=True)
class _WriteShards:
    """Rows of some shards, sorted -> their files."""

    rule: OutputRule

    def __call__(self, batches: Batches) -> Batches:
        yield pa.RecordBatch.from_arrays([pa.array([_guarded(lambda: self._write(batches))], pa.binary())], [_TOLD])

    def _write(self, batches: Batches) -> list[tuple[int, ShardReport]]:
        reports = []
        parts = itertools.chain.from_iterable(map(_by_shard, batches))
        for shard, some in itertools.groupby(parts, key=lambda part: part[0]):
            reports.append((shard, self._put(shard, (table for _, table in some))))
        return reports

    def _put(self, shard: int, tables: Iterable[pa.Table]) -> ShardReport:
        # Spark may run a task twice, at the same time.
        return put_shard(shard, tables, self.rule, _attempts(self.rule))


def _attempts(rule: OutputRule) -> str | None:
    """Where shards are written before they are whole."""
    return None if is_remote(rule.folder) else os.path.join(rule.folder, _ATTEMPTS)


def _by_shard(batch: pa.RecordBatch) -> Iterator[tuple[int, pa.Table]]:
    """Parts of a batch that are of one shard each."""
    table = pa.Table.from_batches([batch])
    shard = table[SHARD].to_numpy()
    starts = np.flatnonzero(np.diff(shard, prepend=-1)).tolist()
    for start, end in zip(starts, [*starts[1:], len(table)], strict=True):
        yield int(shard[start]), table.slice(start, end - start)


def _in_portions(batches: Batches) -> Iterator[pa.Table]:
    """The same rows in tables of about _HELD_BYTES."""
    held: list[pa.RecordBatch] = []
    num_bytes = 0
    for batch in batches:
        held.append(batch)
        num_bytes += batch.nbytes
        if num_bytes >= _HELD_BYTES:
            yield pa.Table.from_batches(held)
            held, num_bytes = [], 0
    if held:
        yield pa.Table.from_batches(held)
