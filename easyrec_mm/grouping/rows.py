"""Reads, checks and counts the rows of a log before they are grouped, and divides them into train and eval.

A row that cannot be used is refused: left out, counted and listed with its file and number. Rows that are passed on
have the log's columns in their kinds, and three additional columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easyrec_mm.features.field import A_NUMBER, Kind
from easyrec_mm.formats.columns import ARROW_TYPES, ORDER, ROW_BITS, to_kind
from easyrec_mm.formats.rtp import HOLDS_SEPARATOR
from easyrec_mm.grouping.column_stats import LogStats
from easyrec_mm.grouping.flat_files import Piece, Split, pieces
from easyrec_mm.grouping.sides import SIDES, SideRule

# The side of a row (int8), and a hash of its values (int64), by which duplicate rows are found.
SIDE, ROW_HASH = "easyrec_mm:side", "easyrec_mm:hash"
OWN_COLUMNS = {ORDER: pa.int64(), SIDE: pa.int8(), ROW_HASH: pa.int64()}
# Maximum number of refused rows that are listed; the first ones are kept.
MAX_LISTED = 100_000
SAMPLE_ROWS = 1 << 15

_KIND_NAMES: dict[Kind, str] = {
    "int64": "a whole number of at most 18 digits",
    "float32": A_NUMBER,
    "float64": A_NUMBER,
    "bool": "true or false",
    "string": "UTF-8 text",
}


class Refused(NamedTuple):
    """A row that is left out: file and row (from 1), column or other place, and the problem."""

    file: str
    row: int
    where: str
    problem: str


@dataclass(frozen=True)
class LogLayout:
    """The meaning of the columns of a log.

    kinds         column -> kind, for the columns that are used, in the order of the first file
    files         names of the files, for messages
    group_by      column of the item
    image         column of the picture's path
    group_fields  other columns that must have the same value in all rows of an item
    labels        label columns, in which a row must have a value
    side_rule     how rows are divided into train and eval; None if all train
    times         columns of text that hold points in time
    forbidden     regular expression that must not match a part of any text; "" for none
    """

    kinds: dict[str, Kind]
    files: tuple[str, ...]
    separator: str
    group_by: str
    image: str
    group_fields: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    side_rule: SideRule | None = None
    times: frozenset[str] = frozenset()
    forbidden: str = ""
    seed: int = 0

    @property
    def schema(self) -> pa.Schema:
        """Return the schema of the rows that are passed on."""
        columns = [(name, ARROW_TYPES[kind]) for name, kind in self.kinds.items()]
        return pa.schema([*columns, *OWN_COLUMNS.items()])

    @property
    def required(self) -> tuple[str, ...]:
        """Return the columns in which a row must have a value."""
        of_side = (self.side_rule.column,) if self.side_rule else ()
        return tuple(dict.fromkeys((self.group_by, *of_side, *self.labels)))

    def place(self, order: int) -> tuple[str, int]:
        """Return the file and the row of an ORDER."""
        return self.files[order >> ROW_BITS], order & ((1 << ROW_BITS) - 1)


@dataclass
class RowsReport:
    """Counts of rows read and refused, the refused rows, and per side the statistics of the rows that are passed on."""

    num_rows: int = 0
    num_refused: int = 0
    refused: list[Refused] = field(default_factory=list)
    stats: list[LogStats] = field(default_factory=list)

    @staticmethod
    def of(layout: LogLayout) -> RowsReport:
        """Return the report of no rows."""
        return RowsReport(stats=[LogStats.of(layout.kinds, SAMPLE_ROWS, layout.times) for _ in SIDES])

    def stats_of_all(self) -> LogStats:
        """Return the statistics of all rows that are passed on."""
        total = self.stats[0].empty()
        for stats in self.stats:
            total.merge(stats)
        return total

    def merge(self, other: RowsReport) -> None:
        """Add the report of the next split."""
        self.num_rows += other.num_rows
        self.num_refused += other.num_refused
        self.refused = (self.refused + other.refused)[:MAX_LISTED]
        for mine, its in zip(self.stats, other.stats, strict=True):
            mine.merge(its)


class SplitReader:
    """Reads a split; `report` is complete when `tables` has ended."""

    def __init__(self, split: Split, layout: LogLayout) -> None:
        self._split = split
        self._layout = layout
        self.report = RowsReport.of(layout)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the valid rows in their order, with layout.schema.

        Raises:
          DataError: if the file is truncated, damaged or has vanished.
        """
        layout, split = self._layout, self._split
        for piece in pieces(split, list(layout.kinds), layout.separator):
            table = self._check(piece)
            if len(table):
                yield table

    def _check(self, piece: Piece) -> pa.Table:
        layout = self._layout
        checks = _Checks(piece, layout)
        columns = {name: checks.typed(name, kind) for name, kind in layout.kinds.items()}
        for name in layout.required:
            checks.require(name, columns[name])
        if layout.side_rule and layout.side_rule.order:
            checks.require_comparable(layout.side_rule, columns[layout.side_rule.column])
        columns[layout.image] = pc.fill_null(columns[layout.image], "")
        good = ~checks.is_bad
        table = pa.table({**columns, ORDER: piece.table[ORDER]})
        table = table if good.all() else table.filter(pa.array(good))
        file = layout.files[self._split.file]
        malformed = [Refused(file, row, "row", problem) for row, problem in piece.malformed]
        refused = sorted(malformed + checks.refused(), key=lambda row: row.row)
        self.report.num_rows += piece.num_rows
        self.report.num_refused += len(refused)
        self.report.refused += refused[: MAX_LISTED - len(self.report.refused)]
        rule = layout.side_rule
        side = rule.sides(table, layout.seed) if rule else np.zeros(len(table), np.int8)
        table = table.append_column(SIDE, pa.array(side))
        return table.append_column(ROW_HASH, pa.array(self._count(table, side).view(np.int64)))

    def _count(self, table: pa.Table, side: NDArray[np.int8]) -> NDArray[np.uint64]:
        """Add rows to the statistics of their side; return the hash of each row's values."""
        hashes = np.zeros(len(table), np.uint64)
        for number, stats in enumerate(self.report.stats):
            is_here = side == number
            if is_here.all():
                return stats.add(table)
            if is_here.any():
                hashes[is_here] = stats.add(table.filter(pa.array(is_here)))
        return hashes


class _Checks:
    """Finds the bad rows of a piece, and keeps the first problem of each."""

    def __init__(self, piece: Piece, layout: LogLayout) -> None:
        self._table = piece.table
        self._layout = layout
        self._problems: dict[int, tuple[str, str]] = {}
        self.is_bad = np.zeros(len(piece.table), bool)

    def typed(self, name: str, kind: Kind) -> pa.Array:
        """Return a column in its kind, null where a value is missing or empty; mark rows with invalid values as bad."""
        values = self._table[name].combine_chunks()
        typed = to_kind(values, kind)
        if typed.is_bad is not None:
            self._refuse(name, typed.is_bad, lambda row: f"'{_shown(values[row].as_py())}' is not {_KIND_NAMES[kind]}")
        if kind == "string" and self._layout.forbidden:
            is_divided = pc.fill_null(pc.match_substring_regex(typed.values, self._layout.forbidden), False)
            self._refuse_where(name, is_divided, lambda row: f"{_shown(values[row].as_py())!r} {HOLDS_SEPARATOR}")
        if kind == "string":
            is_empty = pc.equal(typed.values, "")
            return pc.if_else(is_empty, None, typed.values) if pc.any(is_empty).as_py() else typed.values
        return typed.values

    def require(self, name: str, values: pa.Array) -> None:
        """Mark rows without a value as bad."""
        is_missing = values.is_null()
        if pa.types.is_string(values.type):
            is_missing = pc.or_(is_missing, pc.fill_null(pc.equal(values, ""), True))
        self._refuse_where(name, is_missing, lambda row: "is empty")

    def require_comparable(self, rule: SideRule, values: pa.Array) -> None:
        """Mark rows whose value cannot be compared with the others as bad."""
        is_bad = pc.and_(rule.comparable(values).is_null(), values.is_valid())
        problem = "is not a time like the others"
        self._refuse_where(rule.column, is_bad, lambda row: f"'{_shown(values[row].as_py())}' {problem}")

    def refused(self) -> list[Refused]:
        """Return the bad rows."""
        orders = self._table[ORDER].to_numpy()
        return [
            Refused(*self._layout.place(int(orders[row])), f"column '{where}'", problem)
            for row, (where, problem) in self._problems.items()
        ]

    def _refuse_where(self, name: str, is_bad: pa.Array, problem: Callable[[int], str]) -> None:
        if pc.any(is_bad).as_py():
            self._refuse(name, is_bad.to_numpy(zero_copy_only=False), problem)

    def _refuse(self, name: str, is_bad: NDArray[np.bool_], problem: Callable[[int], str]) -> None:
        for row in np.flatnonzero(is_bad & ~self.is_bad):
            self._problems[int(row)] = (name, problem(int(row)))
        self.is_bad |= is_bad


def _shown(value: object) -> str:
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def merged(reports: Iterable[RowsReport], layout: LogLayout) -> RowsReport:
    """Return the report of all splits, whose reports are given in their order."""
    total = RowsReport.of(layout)
    for report in reports:
        total.merge(report)
    return total
