"""Assigns rows to groups, and groups to places in shards; both depend on the rows of the same item alone.

Rows of one item and picture are divided, in the order of the log, into groups of at most max_group_size. The groups of
an item go to the shards in turn, starting with a shard given by the item's hash, and within a shard to positions as far
apart as possible, so that a batch rarely contains an item twice. Their neighbours in the shard depend on the seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easyrec_mm.formats.columns import ORDER
from easyrec_mm.grouping.rows import ROW_HASH, SIDE, LogLayout
from easyrec_mm.stable_hash import hash_column, mix, seeded

# Columns for the place of a row: the shard of its group (int32), the position in the shard (int64, 0 to 2^63) and the
# ORDER of the group's first row (int64), which is unique to the group.
SHARD, POSITION, FIRST = "easyrec_mm:shard", "easyrec_mm:position", "easyrec_mm:first"
PLACE_COLUMNS = {SHARD: pa.int32(), POSITION: pa.int64(), FIRST: pa.int64()}
# Maximum number of conflicts that are listed.
MAX_LISTED = 100_000

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class GroupRule:
    """How groups are made. `num_shards` is per side; the second side's shards are numbered after those of the first."""

    layout: LogLayout
    max_group_size: int
    num_shards: tuple[int, int]
    seed: int

    @property
    def key_columns(self) -> list[str]:
        """Return the columns that decide the group and the place of a row."""
        layout = self.layout
        return list(dict.fromkeys((layout.group_by, layout.image, *layout.group_fields, SIDE, ORDER, ROW_HASH)))


@dataclass
class Conflict:
    """An item with two values where one is expected; `order` is the ORDER of the first row with the second value."""

    order: int
    item: str
    column: str
    first: str
    second: str


@dataclass
class GroupsReport:
    """Counts for all rows of some items; only the conflicts that come first in the log are listed."""

    num_items: int = 0
    num_conflicts: int = 0
    conflicts: list[Conflict] = field(default_factory=list)
    num_duplicate_rows: int = 0
    num_rows_without_picture: int = 0
    sizes: Ints = field(default_factory=lambda: np.zeros((2, 1), np.int64))  # [side, size]: number of groups
    # The picture's hash for each distinct pair of an item and a picture.
    pictures: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))

    def merge(self, other: GroupsReport) -> None:
        """Add the report of other items."""
        self.num_items += other.num_items
        self.num_conflicts += other.num_conflicts
        self.conflicts = sorted(self.conflicts + other.conflicts, key=lambda conflict: conflict.order)[:MAX_LISTED]
        self.num_duplicate_rows += other.num_duplicate_rows
        self.num_rows_without_picture += other.num_rows_without_picture
        self.pictures = np.concatenate([self.pictures, other.pictures])
        width = max(self.sizes.shape[1], other.sizes.shape[1])
        self.sizes = _widened(self.sizes, width) + _widened(other.sizes, width)

    def count_pictures(self) -> tuple[int, int]:
        """Return the number of distinct pictures, and how many of them belong to several items."""
        _, counts = np.unique(self.pictures, return_counts=True)
        return len(counts), int(np.count_nonzero(counts > 1))


def _widened(sizes: Ints, width: int) -> Ints:
    return np.pad(sizes, ((0, 0), (0, width - sizes.shape[1])))


@dataclass
class Assignment:
    """The groups of N rows, which are all rows of some items.

    row_group  [N]: the group of each row, in the order of the given rows
    row_run    [N]: the run (item and picture) of each row
    shard, position, first  of each group
    """

    row_group: NDArray[np.int32]
    row_run: NDArray[np.int32]
    shard: NDArray[np.int32]
    position: Ints
    first: Ints
    num_runs: int
    report: GroupsReport

    def places(self, start: int, size: int) -> dict[str, pa.Array]:
        """Return PLACE_COLUMNS of the `size` rows from `start` on."""
        group = self.row_group[start : start + size]
        return {
            SHARD: pa.array(self.shard[group]),
            POSITION: pa.array(self.position[group]),
            FIRST: pa.array(self.first[group]),
        }


def assign(keys: pa.Table, rule: GroupRule) -> Assignment:
    """Assign rows to groups.

    Args:
      keys: rule.key_columns of all rows of some items, in any order.
      rule: how groups are made.
    """
    layout = rule.layout
    order = keys[ORDER].to_numpy()
    item, item_hash = _items(keys, layout.group_by, rule.seed)
    fields = {name: _codes(keys[name]) for name in (layout.image, *layout.group_fields)}
    run = item
    for code, _ in fields.values():
        run = _paired(run, code)
    by_run, sizes = _runs(order, item, run)
    first_rows = by_run[_from_sizes(sizes)]  # one per run
    run_item = item[first_rows]

    # Each run is divided into groups.
    groups_of_run = -(-sizes // rule.max_group_size)
    group_run = np.repeat(np.arange(len(sizes)), groups_of_run)
    part = _counting(groups_of_run)
    group_size = np.minimum(rule.max_group_size, sizes[group_run] - part * rule.max_group_size)
    group_item = run_item[group_run]
    group_start = _from_sizes(group_size)
    side = keys[SIDE].to_numpy()[by_run[group_start]]
    shard, position = _places(group_item, item_hash[group_item], side, rule)

    row_group, row_run = np.empty(len(order), np.int32), np.empty(len(order), np.int32)
    row_group[by_run] = np.repeat(np.arange(len(group_size), dtype=np.int32), group_size)
    row_run[by_run] = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    codes = {name: code[first_rows] for name, (code, _) in fields.items()}
    picture, pictures = codes[layout.image], fields[layout.image][1]
    is_empty = picture == pc.index(pictures, pa.scalar("")).as_py()
    report = GroupsReport(
        num_items=len(item_hash) // 2,
        num_duplicate_rows=_count_repeated(keys[ROW_HASH].to_numpy()),
        num_rows_without_picture=int(sizes[is_empty].sum()),
        pictures=hash_column(pictures)[
            _distinct_pairs(item[first_rows][~is_empty], len(item_hash) // 2, picture[~is_empty])
        ],
        sizes=np.stack([np.bincount(group_size[side == s], minlength=_greatest(group_size) + 1) for s in (0, 1)]),
    )
    _find_conflicts(keys, rule, first_rows, run_item, codes, is_empty, report)
    first = order[by_run[group_start]]
    return Assignment(row_group, row_run, shard, position, first, len(sizes), report)


def _runs(order: Ints, item: Ints, run: Ints) -> tuple[Ints, Ints]:
    """Return the rows sorted by item, first appearance of the run, and ORDER; and the size of each run."""
    is_sorted = bool(np.all(order[1:] > order[:-1]))
    by_run = np.argsort(run, kind="stable") if is_sorted else np.lexsort((order, run))
    starts = _starts(run[by_run])
    sizes = np.diff(np.append(starts, len(order)))
    run_order = np.lexsort((order[by_run[starts]], item[by_run[starts]]))
    by_run = by_run[np.repeat(starts[run_order], sizes[run_order]) + _counting(sizes[run_order])]
    return by_run, sizes[run_order]


def _items(keys: pa.Table, group_by: str, seed: int) -> tuple[Ints, NDArray[np.uint64]]:
    """Return the code of each row's item and side, and the hash of the item of each code."""
    code, items = _codes(keys[group_by])
    side = keys[SIDE].to_numpy().astype(np.int64)
    hashes = seeded(hash_column(items), seed)
    return code + side * len(items), np.concatenate([hashes, hashes])


def _codes(column: pa.ChunkedArray) -> tuple[Ints, pa.Array]:
    """Return the index of each value among the distinct values, and these; a null has the next index after them."""
    encoded = column.dictionary_encode()  # all chunks share one dictionary
    distinct = encoded.chunk(0).dictionary if encoded.num_chunks else pa.array([], column.type)
    codes = [pc.fill_null(c.indices, len(distinct)).to_numpy(zero_copy_only=False) for c in encoded.chunks]
    return np.concatenate(codes or [np.zeros(0)]).astype(np.int64), distinct


def _paired(first: Ints, second: Ints) -> Ints:
    """Return one code for each pair of codes."""
    paired = first * (_greatest(second) + 1) + second
    return paired if _greatest(paired) < 1 << 40 else np.unique(paired, return_inverse=True)[1].astype(np.int64)


def _greatest(codes: Ints) -> int:
    """Return the greatest code; 0 without any codes."""
    return int(np.max(codes)) if len(codes) else 0


def _starts(values: Ints) -> Ints:
    """Return the positions of a sorted array at which a new value begins."""
    return np.flatnonzero(np.diff(values, prepend=-1))


def _distinct_pairs(item: Ints, num_items: int, picture: Ints) -> Ints:
    """Return the picture of each distinct pair of item and picture, regardless of the item's side."""
    width = _greatest(picture) + 1
    return np.unique(item % num_items * width + picture) % width


def _count_repeated(values: Ints) -> int:
    """Return how many values repeat an earlier one."""
    ordered = np.sort(values)  # np.unique takes four times as long
    return int(np.count_nonzero(ordered[1:] == ordered[:-1]))


def _from_sizes(sizes: Ints) -> Ints:
    return np.cumsum(sizes) - sizes


def _counting(sizes: Ints) -> Ints:
    """Return 0 to size - 1 for each size, concatenated."""
    return np.arange(int(sizes.sum())) - np.repeat(_from_sizes(sizes), sizes)


def _places(
    item: Ints, item_hash: NDArray[np.uint64], side: NDArray[np.int8], rule: GroupRule
) -> tuple[NDArray[np.int32], Ints]:
    """Return the shard and the position of each group; groups are sorted by item."""
    starts = _starts(item)
    counts = np.diff(np.append(starts, len(item)))
    number = _counting(counts).astype(np.uint64)  # of the group within its item
    num_groups = np.repeat(counts, counts).astype(np.uint64)
    num_shards = np.array(rule.num_shards, np.uint64)[side]
    with np.errstate(over="ignore"):
        shard = (item_hash % num_shards + number) % num_shards
        # An item's groups in one shard have equal distances; the first position depends on the item and the shard.
        place = mix(item_hash ^ (shard + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
        rounds = (num_groups + num_shards - np.uint64(1)) // num_shards
        place += (number // num_shards) * (np.uint64(2**64 - 1) // rounds)
    first_shard = np.array([0, rule.num_shards[0]], np.int64)[side]
    return (shard.astype(np.int64) + first_shard).astype(np.int32), (place >> np.uint64(1)).astype(np.int64)


def _find_conflicts(
    keys: pa.Table,
    rule: GroupRule,
    rows: Ints,
    item: Ints,
    codes: dict[str, Ints],
    is_empty: NDArray[np.bool_],
    report: GroupsReport,
) -> None:
    """Add items with two pictures, or with two values of a group field, to a report.

    Args:
      keys: as for assign.
      rule: how groups are made.
      rows: int64 [R], the first row of each run; runs are sorted by item, and within an item by first row.
      item: int64 [R], the item of each run.
      codes: image and group fields -> int64 [R], the code of each run's value.
      is_empty: bool [R], whether a run has no picture, which alone is not a conflict.
      report: the report to which they are added.
    """
    layout = rule.layout
    order = keys[ORDER].to_numpy()[rows]
    conflicts: list[tuple[int, int, int, str]] = []  # order, run before, run, column
    for name, code in codes.items():
        runs = np.flatnonzero(~is_empty) if name == layout.image else np.arange(len(item))
        is_other = (np.diff(item[runs]) == 0) & (np.diff(code[runs]) != 0)
        before, after = runs[:-1][is_other], runs[1:][is_other]
        _, first = np.unique(item[after], return_index=True)  # only the first one per item
        conflicts += zip(order[after[first]].tolist(), before[first].tolist(), after[first].tolist(), repeat(name))
    report.num_conflicts = len(np.unique(item[[after for _, _, after, _ in conflicts]])) if conflicts else 0
    for place, before, after, name in sorted(conflicts)[:MAX_LISTED]:
        values = [str(keys[name][int(rows[run])].as_py()) for run in (before, after)]
        report.conflicts.append(Conflict(place, str(keys[layout.group_by][int(rows[after])].as_py()), name, *values))
