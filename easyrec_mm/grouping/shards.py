"""Writes shards: rows with the place of their group -> a file of groups, and optionally a tar file of pictures."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from easyrec_mm.files import join, naming, put
from easyrec_mm.files.data_names import PICTURES_ENDING
from easyrec_mm.files.work_folder import work_folder
from easyrec_mm.formats.columns import ORDER, to_kind
from easyrec_mm.formats.grouped_table import GroupFields, Groups, GroupWriter
from easyrec_mm.formats.parquet import ParquetWriter, count_parquet
from easyrec_mm.formats.rtp import RtpWriter, count_rtp
from easyrec_mm.formats.tfrecord import TfRecordWriter, count_tfrecord
from easyrec_mm.grouping.assign import FIRST, PLACE_COLUMNS, POSITION
from easyrec_mm.grouping.pictures import PicturePacker
from easyrec_mm.grouping.sides import SIDES


@dataclass(frozen=True)
class Format:
    """A format of grouped samples.

    ending  extension of its files
    writer  path and fields -> writer of a file
    count   path and fields -> numbers of groups and samples in a written file
    """

    ending: str
    writer: Callable[..., GroupWriter]
    count: Callable[[str, GroupFields], tuple[int, int]]


FORMATS = {
    "parquet": Format("parquet", ParquetWriter, count_parquet),
    "tfrecord": Format("tfrecord", TfRecordWriter, count_tfrecord),
    "rtp": Format("txt", RtpWriter, count_rtp),
}


@dataclass(frozen=True)
class OutputRule:
    """How shards are written.

    folder      folder of the shards, or of one folder per side
    num_shards  number of shards per side
    has_sides   whether each side has a folder of its own
    packer      packs the pictures of a shard; None to leave them where they are
    """

    folder: str
    format: str
    fields: GroupFields
    num_shards: tuple[int, int]
    has_sides: bool
    packer: PicturePacker | None = None

    def place(self, shard: int) -> tuple[int, str]:
        """Return the side and the path of a shard."""
        side = int(shard >= self.num_shards[0])
        number = shard - self.num_shards[0] * side
        folder = join(self.folder, SIDES[side]) if self.has_sides else self.folder
        return side, join(folder, f"part-{number:05d}.{FORMATS[self.format].ending}")


@dataclass
class BadPicture:
    """A picture that could not be packed, and the ORDER of a row that names it."""

    order: int
    path: str
    problem: str


@dataclass
class ShardReport:
    """The contents of a shard; groups and rows are counted in the written file."""

    side: int
    name: str
    num_groups: int = 0
    num_rows: int = 0
    num_pictures: int = 0
    bad_pictures: list[BadPicture] = field(default_factory=list)


def write_shard(shard: int, tables: Iterable[pa.Table], rule: OutputRule) -> ShardReport:
    """Write a shard.

    Args:
      shard: number of the shard.
      tables: rows of the shard, sorted by position and group, and in a group by ORDER, with PLACE_COLUMNS and ORDER; a
        group may begin in one table and end in the next.
      rule: how the shard is written.

    Raises:
      DataError: if a value cannot be written in the format.
    """
    with naming(rule.place(shard)[1]):
        return _write_shard(shard, tables, rule)


def _write_shard(shard: int, tables: Iterable[pa.Table], rule: OutputRule) -> ShardReport:
    side, path = rule.place(shard)
    kind = FORMATS[rule.format]
    writer = kind.writer(path, rule.fields)
    pictures: dict[str, int] = {}
    for table in _whole_groups(tables):
        groups, first = to_groups(table, rule.fields)
        writer.write(groups)
        if rule.packer:
            paths = groups.columns[rule.fields.image].to_pylist()
            for picture, order in zip(paths, first.tolist(), strict=True):
                if picture:
                    pictures[picture] = min(order, pictures.get(picture, order))
    writer.close()
    report = ShardReport(side, os.path.basename(path), *kind.count(path, rule.fields))
    if rule.packer:
        problems = rule.packer.pack(list(pictures), os.path.splitext(path)[0] + PICTURES_ENDING)
        report.num_pictures = len(pictures) - len(problems)
        report.bad_pictures = [BadPicture(pictures[picture], picture, problem) for picture, problem in problems.items()]
    return report


def put_shard(shard: int, tables: Iterable[pa.Table], rule: OutputRule, parent: str | None = None) -> ShardReport:
    """Write a shard to a temporary folder, and move it from there to its place, which may be remote.

    Args:
      shard, tables, rule: see write_shard.
      parent: folder on the same disk as the shard's place, for the temporary folder; None if the place is remote.
    """
    target = os.path.dirname(rule.place(shard)[1])
    with tempfile.TemporaryDirectory(dir=parent or work_folder()) as folder:
        report = write_shard(shard, tables, replace(rule, folder=folder, has_sides=False))
        for name in os.listdir(folder):
            put(Path(folder) / name, join(target, name))
    return report


def sort_rows(table: pa.Table) -> pa.Table:
    """Sort rows by position and group; rows of a group keep their order."""
    order = np.lexsort((table[FIRST].to_numpy(), table[POSITION].to_numpy()))
    return table.take(pa.array(order))


def _whole_groups(tables: Iterable[pa.Table]) -> Iterable[pa.Table]:
    """Yield the same rows in tables that end where a group ends."""
    remainder: pa.Table | None = None
    for table in tables:
        table = table if remainder is None else pa.concat_tables([remainder, table])
        first = table[FIRST].to_numpy()
        last_start = int(np.flatnonzero(np.diff(first, prepend=-1))[-1]) if len(first) else 0
        if last_start:
            yield table.slice(0, last_start)
        remainder = table.slice(last_start)
    if remainder is not None and len(remainder):
        yield remainder


def to_groups(table: pa.Table, fields: GroupFields) -> tuple[Groups, np.ndarray]:
    """Convert rows of whole groups to groups; return these, and the ORDER of the first row of each group."""
    starts = np.flatnonzero(np.diff(table[FIRST].to_numpy(), prepend=-1))
    size = np.diff(np.append(starts, len(table))).astype(np.int64)
    columns = {}
    for name, kind in fields.kinds.items():
        column = table[name].combine_chunks()
        column = column.take(pa.array(starts)) if name in fields.per_group else column
        columns[name] = to_kind(column, kind).values
    return Groups(size, columns), table[ORDER].to_numpy()[starts]


NEEDED_COLUMNS = (*PLACE_COLUMNS, ORDER)
