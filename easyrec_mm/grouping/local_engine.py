"""Runs the steps of grouping in one process: in parallel threads, with the rows in files between the steps."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa

from easyrec_mm.files import is_remote
from easyrec_mm.grouping.assign import POSITION, SHARD, Assignment, GroupRule, GroupsReport, assign
from easyrec_mm.grouping.constancy import Constancy, ConstantColumns
from easyrec_mm.grouping.flat_files import Split
from easyrec_mm.grouping.rows import LogLayout, RowsReport, SplitReader, merged
from easyrec_mm.grouping.shards import OutputRule, ShardReport, put_shard, sort_rows, write_shard
from easyrec_mm.grouping.spill import SpillFile, read_bucket, write_spill
from easyrec_mm.stable_hash import hash_column, seeded

Item = TypeVar("Item")
Result = TypeVar("Result")

# Bytes of memory for the keys of a row while groups are made, and in addition for each text among the keys.
_KEY_BYTES, _TEXT_KEY_BYTES = 90, 40
_SEED_OF_PARTITIONS = 0x9A27


class LocalEngine:
    """Groups rows on one machine.

    Args:
      folder: an empty folder, for the rows between the steps.
      memory_bytes: approximate limit for the rows in memory.
      num_workers: number of threads.
    """

    def __init__(self, folder: str, memory_bytes: int, num_workers: int) -> None:
        self._folder = folder
        self._memory = memory_bytes
        self._num_workers = num_workers
        self._numbers = itertools.count()
        self._rows: list[SpillFile] = []
        self._placed: list[SpillFile] = []
        self.num_partitions = 1
        self.buckets_a_shard = 1

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Apply a function to each item; return the results in the order of the items."""
        with ThreadPoolExecutor(self._num_workers) as pool:
            return list(pool.map(function, items))

    def read(self, splits: list[Split], layout: LogLayout) -> RowsReport:
        """Read and check the rows, and keep them for `group`."""
        num_rows = sum(split.num_rows for split in splits)
        texts = [
            name for name in (layout.group_by, layout.image, *layout.group_fields) if layout.kinds[name] == "string"
        ]
        key_bytes = num_rows * (_KEY_BYTES + _TEXT_KEY_BYTES * len(texts))
        self.num_partitions = max(1, -(-key_bytes // (self._memory // 2)))
        read = self.map(lambda split: self._read_split(split, layout), splits)
        self._rows = [file for files, _ in read for file in files]
        return merged((report for _, report in read), layout)

    def _read_split(self, split: Split, layout: LogLayout) -> tuple[list[SpillFile], RowsReport]:
        reader = SplitReader(split, layout)
        files = []
        for table in _in_portions(reader.tables(), self._memory // (16 * self._num_workers)):
            files.append(write_spill(self._new_file(), table, self._partitions(table, layout)))
        return files, reader.report

    def _partitions(self, table: pa.Table, layout: LogLayout) -> np.ndarray | None:
        if self.num_partitions == 1:
            return None
        encoded = table[layout.group_by].combine_chunks().dictionary_encode()
        hashes = seeded(hash_column(encoded), _SEED_OF_PARTITIONS)
        return (hashes % np.uint64(self.num_partitions)).astype(np.int64)

    def group(self, rule: GroupRule) -> tuple[GroupsReport, ConstantColumns]:
        """Make groups of the rows that were read, and keep them for `write`."""
        num_rows = sum(file.num_rows for file in self._rows)
        num_bytes = sum(os.path.getsize(file.path) for file in self._rows) * 3  # the files are compressed
        self.buckets_a_shard = max(1, -(-num_bytes // max(1, sum(rule.num_shards)) // self._portion))
        report, constant = GroupsReport(), ConstantColumns(set(rule.layout.kinds))
        for partition in range(self.num_partitions if num_rows else 0):
            part_report, part_constant = self._group_partition(partition, rule)
            report.merge(part_report)
            constant.merge(part_constant)
        for file in self._rows:
            os.remove(file.path)
        self._rows = []
        return report, constant

    @property
    def _portion(self) -> int:
        """Return how many bytes of rows a thread holds; sorting takes several times as many."""
        return self._memory // (8 * self._num_workers)

    def _group_partition(self, partition: int, rule: GroupRule) -> tuple[GroupsReport, ConstantColumns]:
        keys = read_bucket(self._rows, partition, rule.key_columns)
        if keys is None:
            return GroupsReport(), ConstantColumns(set(rule.layout.kinds))
        assignment = assign(keys, rule)
        constancy = Constancy(list(rule.layout.kinds), len(keys), assignment.num_runs)
        del keys
        portions: list[tuple[int, list[SpillFile]]] = []
        start, num_bytes = 0, 0
        for file in self._rows:
            if not portions or num_bytes > self._portion:
                portions.append((start, []))
                num_bytes = 0
            portions[-1][1].append(file)
            start += file.rows.get(partition, 0)
            num_bytes += 3 * os.path.getsize(file.path) // self.num_partitions

        def place(portion: tuple[int, list[SpillFile]]) -> SpillFile | None:
            return self._place(portion[1], partition, portion[0], assignment, constancy)

        self._placed += [file for file in self.map(place, portions) if file]
        return assignment.report, constancy.result()

    def _place(
        self, files: list[SpillFile], partition: int, start: int, assignment: Assignment, constancy: Constancy
    ) -> SpillFile | None:
        """Write rows with their places to a file, sorted by shard."""
        table = read_bucket(files, partition)
        if table is None:
            return None
        constancy.add(table, assignment.row_run[start : start + len(table)])
        for name, column in assignment.places(start, len(table)).items():
            table = table.append_column(name, column)
        part = (table[POSITION].to_numpy() >> 32) * self.buckets_a_shard >> 31
        buckets = table[SHARD].to_numpy().astype(np.int64) * self.buckets_a_shard + part
        return write_spill(self._new_file(), table, buckets)

    def write(self, rule: OutputRule) -> list[ShardReport]:
        """Write the shards of the groups."""
        # Nobody reads a local output folder before it is complete, so that shards can be written in place.
        write = put_shard if is_remote(rule.folder) else write_shard
        return self.map(lambda shard: write(shard, self._rows_of_shard(shard), rule), range(sum(rule.num_shards)))

    def _rows_of_shard(self, shard: int) -> Iterator[pa.Table]:
        for part in range(self.buckets_a_shard):
            table = read_bucket(self._placed, shard * self.buckets_a_shard + part)
            if table is not None:
                yield sort_rows(table)

    def _new_file(self) -> str:
        return os.path.join(self._folder, f"{next(self._numbers):06d}.arrow")


def _in_portions(tables: Iterable[pa.Table], num_bytes: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of about `num_bytes`."""
    held: list[pa.Table] = []
    num_held = 0
    for table in tables:
        held.append(table)
        num_held += table.nbytes
        if num_held >= num_bytes:
            yield pa.concat_tables(held)
            held, num_held = [], 0
    if held:
        yield pa.concat_tables(held)
