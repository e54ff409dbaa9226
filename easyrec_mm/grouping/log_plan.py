"""Plans how a log is read: its files, splits, columns and their kinds, and the time that separates train and eval."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import pyarrow as pa

from easyrec_mm.errors import DataError, did_you_mean
from easyrec_mm.features.field import Kind
from easyrec_mm.files import is_remote
from easyrec_mm.formats.columns import ARROW_TYPES, join_kinds, to_kind
from easyrec_mm.formats.rtp import forbidden
from easyrec_mm.grouping.column_kinds import NumberCounts, TextCounts, scan_numbers, scan_split
from easyrec_mm.grouping.column_stats import RowSample
from easyrec_mm.grouping.find_files import find_inputs, is_log
from easyrec_mm.grouping.flat_files import FilePlan, Split, first_rows, pieces, plan_file
from easyrec_mm.grouping.options import GROUP_SIZE, GroupOptions, SplitBy
from easyrec_mm.grouping.rows import LogLayout
from easyrec_mm.grouping.sides import SideRule
from easyrec_mm.grouping.time_columns import are_times
from easyrec_mm.grouping.times import date_order, times_of
from easyrec_mm.stable_hash import hash_column

# Number of sampled times by which the cut is found.
_NUM_TIMES = 1 << 17
# Maximum share of values in a column of numbers that are not numbers.
_MAX_BAD_TEXTS = 0.01

Item = TypeVar("Item")
Result = TypeVar("Result")


class Map(Protocol):
    """Applies a function to each item, on any machine; the results are in the order of the items."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return the results."""


class LogPlan(NamedTuple):
    """How a log is read.

    splits   the parts that are read
    layout   the layout of their rows
    rounded  columns of floats so large that several ids are the same float
    notes    what a person should know of the files
    """

    splits: list[Split]
    layout: LogLayout
    rounded: frozenset[str]
    notes: list[str]


def plan_log(options: GroupOptions, run: Map) -> LogPlan:
    """Examine all files; text files are read once for this.

    Raises:
      DataError: if a file cannot be read, lacks a column or has it in another type, or if there are no rows.
    """
    found = find_inputs(options.input, is_log)
    files = found.files
    plans = run(_PlanFile(options.separator), list(enumerate(map(_whole_path, files))))
    names = _columns(options, files, plans)
    splits, texts = _scan([split for plan in plans for split in plan.splits], options.separator, run)
    numbers = _scan_numbers(plans, names, run)
    if not any(split.num_rows for split in splits):
        raise DataError(f"{', '.join(files[:3])}: no row of data; give files that hold rows")
    kinds: dict[str, Kind] = {}
    for name in names:
        kinds[name] = options.types.get(name) or _kind(name, files, plans, texts, numbers, options.max_bad_share)
    for label in options.label_fields:
        if kinds[label] == "string":
            raise DataError(f"--label_fields: column '{label}' is text, and a label must be a number; correct the data")
    for flag, column in (("--group_by", options.group_by), ("--user_field", options.user_field)):
        if kinds.get(column) in ("float32", "float64"):
            raise DataError(
                f"{flag}: column '{column}' holds fractions, or floats too large for int64, which do not tell ids "
                "apart; write whole numbers or text"
            )
    layout = LogLayout(
        kinds={**kinds, options.image_field: "string"},
        files=tuple(files),
        separator=options.separator,
        group_by=options.group_by,
        image=options.image_field,
        group_fields=options.group_fields,
        labels=options.label_fields,
        forbidden=forbidden(options.rtp_separator) if options.format == "rtp" else "",
        seed=options.seed,
    )
    layout = replace(layout, side_rule=_side_rule(options, layout, splits, run), times=_times(layout, splits))
    rounded = frozenset(name for name, counts in numbers.items() if counts.is_rounded)
    return LogPlan(splits, layout, rounded, found.notes())


def _whole_path(file: str) -> str:
    """Return a path that is also valid in other processes."""
    return file if is_remote(file) else os.path.abspath(file)


def plan_columns(paths: list[str], files: list[str], separator: str, max_bad_share: float) -> dict[str, Kind]:
    """Return the columns that all files of a log have, and their kinds.

    Args:
      paths: paths at which the files can be opened.
      files: names of the files, for messages.
      separator, max_bad_share: see GroupOptions.

    Raises:
      DataError: if a file cannot be read, or lacks a column or has it in another type than the first.
    """
    plans = [plan_file(i, path, separator) for i, path in enumerate(paths)]
    names = next((list(plan.columns) for plan in plans if plan.columns), [])
    if not names:
        raise DataError(f"{', '.join(files[:3])}: no row of data; give files that hold rows")
    for file, plan in zip(files, plans, strict=True):
        _require_columns(file, plan, names, files[0])
    texts = _scan([split for plan in plans for split in plan.splits], separator, _here)[1]
    numbers = _scan_numbers(plans, names, _here)
    return {name: _kind(name, files, plans, texts, numbers, max_bad_share) for name in names}


def _here(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Apply a function to each item in this thread; this is a Map."""
    return [function(item) for item in items]


def _require_columns(file: str, plan: FilePlan, names: list[str], first: str) -> None:
    for name in names if plan.columns else ():
        if name not in plan.columns:
            raise DataError(
                f"{file}: no column '{name}', which {first} has; all files of a log "
                "must have the same columns: correct this "
                "one, or leave it out of --input"
            )


class _PlanFile:
    """plan_file with the separator that all files share."""

    def __init__(self, separator: str) -> None:
        self._separator = separator

    def __call__(self, item: tuple[int, str]) -> FilePlan:
        return plan_file(*item, self._separator)


def _columns(options: GroupOptions, files: list[str], plans: list[FilePlan]) -> list[str]:
    """Return the names of the columns that are used, in the order of the first file that has columns."""
    names = next((list(plan.columns) for plan in plans if plan.columns), [])
    if not names:
        raise DataError(f"{', '.join(files[:3])}: no row of data; give files that hold rows")
    columns_of_flags = {
        "--group_by": (options.group_by,),
        "--image_field": (options.image_field,),
        "--label_fields": options.label_fields,
        "--group_fields": options.group_fields,
        "--user_field": (options.user_field,),
        "--time_field": (options.time_field,),
        "--split_by": (options.split_by.column if options.split_by else "",),
        "--columns": options.columns,
        "--types": tuple(options.types),
    }
    for flag, columns in columns_of_flags.items():
        for name in filter(None, columns):
            if name not in names:
                raise DataError(f"{flag}: {files[0]} has no column '{name}'; {did_you_mean(name, names)}")
    needed = {name for flag, columns in columns_of_flags.items() if flag != "--types" for name in columns}
    if options.only_columns:
        names = [name for name in names if name in needed]
    if GROUP_SIZE in names:
        raise DataError(f"{files[0]}: has a column '{GROUP_SIZE}', but group adds a column of this name; rename it")
    for file, plan in zip(files, plans, strict=True):
        _require_columns(file, plan, names, files[0])
    return names


def _scan(splits: list[Split], separator: str, run: Map) -> tuple[list[Split], dict[str, TextCounts]]:
    """Return the splits with the numbers of their rows, and the counts of the text columns."""
    of_text = [split for split in splits if split.format == "csv"]
    scanned = dict(zip(of_text, run(_ScanSplit(separator), of_text), strict=True))
    counts: dict[str, TextCounts] = {}
    for result in scanned.values():
        for name, text_counts in result.counts.items():
            counts[name] = counts.get(name, TextCounts()) + text_counts
    numbered: list[Split] = []
    for split in splits:
        if split in scanned:
            before = numbered[-1] if numbered and numbered[-1].file == split.file else None
            first_row = before.first_row + before.num_rows if before else split.first_row
            split = replace(split, first_row=first_row, num_rows=scanned[split].num_rows)
        numbered.append(split)
    return numbered, counts


def _scan_numbers(plans: list[FilePlan], names: list[str], run: Map) -> dict[str, NumberCounts]:
    """Return the counts of the columns of floats, decimals and uint64 in Parquet files."""
    requests = [(split, plan.numbers & set(names)) for plan in plans for split in plan.splits if plan.numbers]
    counts: dict[str, NumberCounts] = {}
    for of_split in run(_scan_numbers_of, [request for request in requests if request[1]]):
        for name, number_counts in of_split.items():
            counts[name] = counts.get(name, NumberCounts()) + number_counts
    return counts


def _scan_numbers_of(request: tuple[Split, frozenset[str]]) -> dict[str, NumberCounts]:
    return scan_numbers(*request)


class _ScanSplit:
    """scan_split with the separator that all files share."""

    def __init__(self, separator: str) -> None:
        self._separator = separator

    def __call__(self, split: Split) -> Any:
        return scan_split(split, self._separator)


def _kind(
    name: str,
    files: list[str],
    plans: list[FilePlan],
    texts: dict[str, TextCounts],
    numbers: dict[str, NumberCounts],
    max_bad_share: float,
) -> Kind:
    # A few bad values do not make a column text; many do, even if so many rows may be refused.
    kind = texts[name].kind(min(max_bad_share, _MAX_BAD_TEXTS)) if name in texts else None
    first = "the text files"
    for file, plan in zip(files, plans, strict=True):
        of_file = plan.columns.get(name)
        of_numbers = numbers.get(name, NumberCounts())
        if name in plan.numbers:
            of_file = of_numbers.kind(of_file)
        if of_numbers.are_long_ids:
            # Some files hold longer ids than int64 can, so that those of all files are text.
            kind, of_file = ("string" if known == "int64" else known for known in (kind, of_file))
        try:
            joined = join_kinds(kind, of_file)
        except ValueError as error:
            raise DataError(
                f"{file}: column '{name}' is {of_file}, but {kind} in {first}; write it with one type, "
                f"or choose a type, as in --types {name}=STRING"
            ) from error
        first = file if joined != kind else first
        kind = joined
    return kind or "string"


def _times(layout: LogLayout, splits: list[Split]) -> frozenset[str]:
    """Return the columns of text that hold points in time in the first rows."""
    names = [name for name, kind in layout.kinds.items() if kind == "string"]
    first = next(filter(len, (first_rows(split, names, layout.separator) for split in splits)), None)
    if first is None:
        return frozenset()
    texts = {name: to_kind(first[name].combine_chunks(), "string").values for name in names}
    return frozenset(name for name, values in texts.items() if are_times(values))


def _side_rule(options: GroupOptions, layout: LogLayout, splits: list[Split], run: Map) -> SideRule | None:
    split_by = options.split_by
    if split_by is None:
        return None
    if split_by.by == "item":
        return SideRule("item", options.group_by, options.eval_share)
    if split_by.by == "user":
        if not options.user_field:
            raise DataError("--split_by user: name the column of the user with --user_field")
        return SideRule("user", options.user_field, options.eval_share)
    column, kind = split_by.column, layout.kinds[split_by.column]
    times = RowSample(_NUM_TIMES)
    for sample in run(partial(_sample_times, column=column, kind=kind, separator=options.separator), splits):
        times.merge(sample)
    rows = times.rows()
    values = rows[column].combine_chunks() if rows is not None else pa.array([], ARROW_TYPES[kind])
    rule = SideRule("time", column, options.eval_share)
    if kind == "string":
        try:
            rule = replace(rule, order=date_order(values))
        except ValueError as error:
            raise DataError(f"--split_by time:{column}: {error}; write times as YYYY-MM-DD HH:MM:SS") from error
    cut = _given_cut(split_by, kind) if split_by.cut else _cut(column, options, rule.comparable(values))
    return replace(rule, cut=cut)


def _given_cut(split_by: SplitBy, kind: Kind) -> Any:
    place = f"--split_by time:{split_by.column}:{split_by.cut}: column '{split_by.column}' holds"
    if kind == "string":
        (cut,) = times_of(pa.array([split_by.cut]), "ymd").to_pylist()
        if cut is None:
            raise DataError(f"{place} times; give one as YYYY-MM-DD, with HH:MM:SS behind it if needed")
        return cut
    try:
        return int(split_by.cut) if kind == "int64" else float(split_by.cut)
    except ValueError as error:
        raise DataError(f"{place} numbers; give one") from error


def _cut(column: str, options: GroupOptions, times: pa.Array) -> Any:
    """Return the first time that evaluates, so that about eval_share of the rows do; based on a sample of the times."""
    values = sorted(times.drop_null().to_pylist())
    if not values or values[0] == values[-1]:
        raise DataError(f"--split_by time:{column}: all rows have the same time; split by item or user")
    cut = values[min(int(len(values) * (1 - options.eval_share)), len(values) - 1)]
    return cut if cut > values[0] else next(time for time in values if time > values[0])


def _sample_times(split: Split, column: str, kind: Kind, separator: str) -> RowSample:
    sample = RowSample(_NUM_TIMES)
    for piece in pieces(split, [column], separator):
        values = to_kind(piece.table[column].combine_chunks(), kind).values.drop_null()
        sample.add(pa.table({column: values}), hash_column(values))
    return sample
