"""Runs the steps of grouping on Spark: the same functions on its workers, with its shuffle and sort between them.

Rows are passed as Arrow data. The report of a step (counts, statistics, refused rows) is passed as an additional row of
each task, so that it is neither lost nor counted twice when a task runs again.
"""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession, functions
from pyspark.sql.pandas.types import from_arrow_schema

from easyrec_mm.errors import UserError
from easyrec_mm.files import is_remote
from easyrec_mm.files.work_folder import work_folder
from easyrec_mm.formats.columns import ORDER
from easyrec_mm.grouping.assign import FIRST, PLACE_COLUMNS, POSITION, SHARD, GroupRule, GroupsReport, assign
from easyrec_mm.grouping.constancy import Constancy, ConstantColumns
from easyrec_mm.grouping.flat_files import Split
from easyrec_mm.grouping.rows import LogLayout, RowsReport, SplitReader, merged
from easyrec_mm.grouping.shards import OutputRule, ShardReport, put_shard
from easyrec_mm.grouping.spill import read_bucket, write_spill
from easyrec_mm.spark import guarded, result_of, spark_session
from easyrec_mm.stable_hash import hash_column

Item = TypeVar("Item")
Result = TypeVar("Result")
Batches = Iterator[pa.RecordBatch]

# Column of a task's report, pickled (in a row whose other columns are null); and column of the hash of a row's item, by
# which rows are shuffled.
_REPORT, _ITEM = "easyrec_mm:report", "easyrec_mm:item"
# Number of rows whose keys one task can process, and bytes of rows that it holds in memory.
TASK_ROWS, _HELD_BYTES = 2_000_000, 64 << 20
_MAX_SLICES = 1000
_BATCH_ROWS = 1 << 16
# Folder, inside the output folder, of shards that are being written.
_ATTEMPTS = ".attempts"


@contextmanager
def spark_engine(master: str = "") -> Iterator[SparkEngine]:
    """Yield an engine on the active session, or on a new one; see spark_session."""
    with spark_session(master, "group") as session:
        yield SparkEngine(session)


class SparkEngine:
    """Groups rows on the workers of a Spark session.

    Input, output and pictures must have the same paths on all workers, or be remote.
    """

    def __init__(self, session: SparkSession) -> None:
        self.session = session
        self.session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", _BATCH_ROWS)
        self._rows: DataFrame | None = None
        self._placed: DataFrame | None = None
        self._num_rows = 0

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Apply a function to each item; return the results in the order of the items."""
        items = list(items)
        if not items:
            return []
        outcomes = self.session.sparkContext.parallelize(items, min(len(items), _MAX_SLICES)).map(_Guarded(function))
        return [result_of(outcome) for outcome in outcomes.collect()]

    def read(self, splits: list[Split], layout: LogLayout) -> RowsReport:
        """Read and check the rows, and keep them for `group`."""
        schema = layout.schema.append(pa.field(_ITEM, pa.int64()))
        numbers = self.session.range(0, len(splits), 1, len(splits))
        self._rows, results = self._run(numbers, _ReadSplits(splits, layout, schema), schema)
        reports = sorted(results, key=lambda result: result[0])
        self._num_rows = sum(report.num_rows for _, report in reports)
        return merged((report for _, report in reports), layout)

    def group(self, rule: GroupRule) -> tuple[GroupsReport, ConstantColumns]:
        """Make groups of the rows that were read, and keep them for `write`."""
        schema = pa.schema([*rule.layout.schema, *PLACE_COLUMNS.items()])
        num_tasks = max(self.session.sparkContext.defaultParallelism, -(-self._num_rows // TASK_ROWS))
        rows = _without_reports(self._rows).repartition(num_tasks, functions.col(f"`{_ITEM}`"))
        self._placed, results = self._run(rows, PlaceRows(rule, schema), schema)
        self._rows.unpersist()  # type: ignore[union-attr]
        report, constant = GroupsReport(), ConstantColumns(set(rule.layout.kinds))
        for part_report, part_constant in results:
            report.merge(part_report)
            constant.merge(part_constant)
        return report, constant

    def write(self, rule: OutputRule) -> list[ShardReport]:
        """Write the shards of the groups."""
        attempts = _attempts(rule)
        if attempts:
            os.mkdir(attempts)
        places = [functions.col(f"`{name}`") for name in (SHARD, POSITION, FIRST, ORDER)]
        rows = _without_reports(self._placed).repartition(sum(rule.num_shards), places[0]).sortWithinPartitions(*places)
        written = rows.mapInArrow(_WriteShards(rule), from_arrow_schema(pa.schema([(_REPORT, pa.binary())])))
        reports = dict(itertools.chain.from_iterable(result_of(row[0]) for row in written.collect()))
        self._placed.unpersist()  # type: ignore[union-attr]
        # A shard without rows becomes a file without groups.
        for shard in range(sum(rule.num_shards)):
            if shard not in reports:
                reports[shard] = put_shard(shard, [], rule, attempts)
        if attempts:
            shutil.rmtree(attempts, ignore_errors=True)  # including files that killed tasks have left
        return [reports[shard] for shard in sorted(reports)]

    def _run(self, rows: DataFrame, function: Any, schema: pa.Schema) -> tuple[DataFrame, list[Any]]:
        """Apply a function to rows; return its rows, kept on the workers' disks, and the reports of its tasks."""
        spark_schema = from_arrow_schema(schema.append(pa.field(_REPORT, pa.binary())))
        made = rows.mapInArrow(function, spark_schema).persist(StorageLevel.DISK_ONLY)
        outcomes = made.filter(_report_column().isNotNull()).select(_report_column()).collect()
        return made, [result_of(row[0]) for row in outcomes]


def _report_column() -> Column:
    return functions.col(f"`{_REPORT}`")


def _without_reports(rows: DataFrame | None) -> DataFrame:
    if rows is None:
        raise RuntimeError("the step before this one did not run")
    return rows.filter(_report_column().isNull()).drop(_REPORT)


@dataclass(frozen=True)
class _Guarded:
    """A function that returns a UserError as a value, because Spark would bury it in a stack trace."""

    function: Callable[[Any], Any]

    def __call__(self, item: Any) -> bytes:
        return guarded(lambda: self.function(item))


class _Step:
    """A function that runs on a worker: batches of rows -> batches of rows, and one row with `self.report()`."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema

    def __call__(self, batches: Batches) -> Batches:
        none: pa.Array = None
        try:
            for table in self.tables(batches):
                nulls = pa.nulls(len(table), pa.binary())
                yield from table.select(self._schema.names).append_column(_REPORT, nulls).to_batches(_BATCH_ROWS)
            outcome = pickle.dumps((self.report(), ""))
        except UserError as error:
            outcome = pickle.dumps((None, str(error)))
        none = [pa.nulls(1, field.type) for field in self._schema]
        yield pa.RecordBatch.from_arrays([*none, pa.array([outcome], pa.binary())], [*self._schema.names, _REPORT])

    def tables(self, batches: Batches) -> Iterator[pa.Table]:
        """Yield the rows that the step makes."""
        raise NotImplementedError

    def report(self) -> Any:
        """Return the report of the step, after its rows."""
        raise NotImplementedError


class _ReadSplits(_Step):
    """Reads splits: numbers of splits (one per task) -> their rows."""

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

    def report(self) -> Any:
        return self._number, self._report or RowsReport.of(self._layout)


class PlaceRows(_Step):
    """Makes groups: all rows of some items -> the same rows with their places."""

    def __init__(self, rule: GroupRule, schema: pa.Schema) -> None:
        super().__init__(schema)
        self._rule = rule
        self._report = GroupsReport()
        self._constant = ConstantColumns(set(rule.layout.kinds))

    def tables(self, batches: Batches) -> Iterator[pa.Table]:
        rule = self._rule
        with tempfile.TemporaryDirectory(dir=work_folder()) as folder:
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

    def report(self) -> Any:
        return self._report, self._constant


@dataclass(frozen=True)
class _WriteShards:
    """Writes shards: sorted rows of some shards -> their files."""

    rule: OutputRule

    def __call__(self, batches: Batches) -> Batches:
        yield pa.RecordBatch.from_arrays([pa.array([guarded(lambda: self._write(batches))], pa.binary())], [_REPORT])

    def _write(self, batches: Batches) -> list[tuple[int, ShardReport]]:
        reports = []
        parts = itertools.chain.from_iterable(map(_by_shard, batches))
        for shard, shard_parts in itertools.groupby(parts, key=lambda part: part[0]):
            reports.append((shard, self._put(shard, (table for _, table in shard_parts))))
        return reports

    def _put(self, shard: int, tables: Iterable[pa.Table]) -> ShardReport:
        # Spark may run a task twice at the same time, so that a shard is written elsewhere and then moved.
        return put_shard(shard, tables, self.rule, _attempts(self.rule))


def _attempts(rule: OutputRule) -> str | None:
    """Return the folder in which shards are written before they are complete; None if the output is remote."""
    return None if is_remote(rule.folder) else os.path.join(rule.folder, _ATTEMPTS)


def _by_shard(batch: pa.RecordBatch) -> Iterator[tuple[int, pa.Table]]:
    """Yield the shard and the rows of each part of a batch; a part belongs to one shard."""
    table = pa.Table.from_batches([batch])
    shard = table[SHARD].to_numpy()
    starts = np.flatnonzero(np.diff(shard, prepend=-1)).tolist()
    for start, end in zip(starts, [*starts[1:], len(table)], strict=True):
        yield int(shard[start]), table.slice(start, end - start)


def _in_portions(batches: Batches) -> Iterator[pa.Table]:
    """Yield the same rows in tables of about _HELD_BYTES."""
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
