"""The command `group`: a flat log -> shards of groups, statistics, what was refused, and a config to train with.

The steps are those of an engine: look at the files, read the rows, make groups, write shards. Each has to end before
the next begins, because it decides what that does: how many shards there are, which columns are the same for an item.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from easyrec_mm.errors import DataError, UserError
from easyrec_mm.grouping.assign import GroupRule, GroupsReport
from easyrec_mm.grouping.column_stats import LogStats
from easyrec_mm.grouping.constancy import ConstantColumns
from easyrec_mm.grouping.flat_files import Split
from easyrec_mm.grouping.inference import Inference, infer
from easyrec_mm.grouping.log_plan import Map, plan_log
from easyrec_mm.grouping.options import GroupOptions
from easyrec_mm.grouping.output_folder import check_output, new_folder
from easyrec_mm.grouping.pictures import PicturePacker
from easyrec_mm.grouping.pipeline_template import Grouped, template
from easyrec_mm.grouping.rows import LogLayout, RowsReport
from easyrec_mm.grouping.shards import FORMATS, OutputRule, ShardReport
from easyrec_mm.grouping.sides import EVAL, SIDES, TRAIN

BAD_ROWS, STATS, SUCCESS = "bad_rows.jsonl", "stats.json", "_SUCCESS"
NUM_SHOWN = 10
# Bytes of a shard that are aimed at, groups that one has at least, and shards that there are if groups suffice.
_SHARD_BYTES, _MIN_GROUPS, _MIN_SHARDS = 64 << 20, 64, 4


class Engine(Protocol):
    """Runs the steps, on one machine or many; both with the same functions and the same output."""

    map: Map

    def read(self, splits: list[Split], layout: LogLayout) -> RowsReport:
        """Read and check the rows; they are kept for `group`."""

    def group(self, rule: GroupRule) -> tuple[GroupsReport, ConstantColumns]:
        """Make groups of what was read; they are kept for `write`."""

    def write(self, rule: OutputRule) -> list[ShardReport]:
        """Write the shards of what was grouped."""


class BadRow(NamedTuple):
    """Something that could not be used: a row, a conflict of an item, or a picture; as bad_rows.jsonl has it."""

    kind: str
    file: str
    row: int
    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.where}: {self.problem}"


def group(options: GroupOptions, engine: Engine, packer: PicturePacker | None) -> str:
    """Run the command; what to tell the user.

    Args:
      options: what is wanted.
      engine: runs the steps.
      packer: of the pictures; None to leave them where they are.

    Raises:
      DataError: if a file cannot be used, or too much of the log cannot.
    """
    check_output(options.output, options.overwrite)
    plan = plan_log(options, engine.map)
    layout = plan.layout
    bad = _Bad(options)
    rows = engine.read(plan.splits, layout)
    bad.add(rows.num_refused, rows.num_rows, "rows", (BadRow("row", *row) for row in rows.refused))
    num_kept = [stats.num_rows for stats in rows.stats]
    if not num_kept[TRAIN]:
        raise DataError(f"--input {options.input}: none of {rows.num_rows} rows can train; {bad.first()}")

    num_shards = _num_shards(options, rows.stats)
    groups, constant = engine.group(GroupRule(layout, options.max_group_size, num_shards, options.seed))
    conflicts = (
        BadRow(
            "conflict",
            *layout.place(one.order),
            f"column '{one.column}'",
            f"'{one.second}', but '{one.first}' before in item '{one.item}'",
        )
        for one in groups.conflicts
    )
    bad.add(groups.num_conflicts, groups.num_items, "items", conflicts)

    inference = infer(options, rows.stats[TRAIN], constant)
    if options.pipeline_config_template and not inference.labels:
        raise DataError("--label_fields: no column looks like a label of 0 and 1; name the columns that are labels")
    with new_folder(options.output, options.overwrite) as folder:
        has_sides = options.split_by is not None
        for side in SIDES if has_sides else ():
            os.mkdir(os.path.join(folder, side))
        fields = inference.group_fields(options)
        rule = OutputRule(folder, options.format, fields, num_shards, has_sides, packer)
        shards = engine.write(rule)
        num_pictures = sum(shard.num_pictures + len(shard.bad_pictures) for shard in shards)
        pictures = (
            BadRow("picture", *layout.place(one.order), one.path, one.problem)
            for shard in shards
            for one in shard.bad_pictures
        )
        bad.add(sum(len(shard.bad_pictures) for shard in shards), num_pictures, "pictures", pictures)
        _require_all(rows, num_kept, groups, shards)
        bad.write(os.path.join(folder, BAD_ROWS))
        _write_stats(folder, options, rows, groups, inference, shards)
    lines = _summary(options, rows, groups, shards)
    if options.pipeline_config_template:
        lines += _write_template(options, rows.stats[TRAIN], groups, inference, num_kept)
    return "\n".join([*lines, *(f"note: {note}" for note in inference.notes), *bad.told(options.output)])


class _Bad:
    """Collects what could not be used, and stops when it is too much."""

    def __init__(self, options: GroupOptions) -> None:
        self._options = options
        self._rows: list[BadRow] = []
        self._counts: list[str] = []
        self._num_unlisted = 0

    def add(self, num_bad: int, num_all: int, what: str, rows: Iterable[BadRow]) -> None:
        """Note `num_bad` of `num_all`, of which `rows` are listed.

        Raises:
          DataError: if they are more than --max_bad_share; they are then listed beside the output.
        """
        some = list(rows)
        self._rows += some
        self._num_unlisted += num_bad - len(some)
        if not num_bad:
            return
        kinds = {"rows": "cannot be used", "items": "have two values where one is expected", "pictures": "are bad"}
        self._counts.append(f"{num_bad:,} of {num_all:,} {what} {kinds[what]}")
        if num_bad > self._options.max_bad_share * num_all:
            path = f"{self._options.output.rstrip('/')}.{BAD_ROWS}"
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            self.write(path)
            shown = "\n".join(f"  {row}" for row in some[:NUM_SHOWN])
            raise DataError(
                f"{num_bad:,} of {num_all:,} {what} {kinds[what]}, more than --max_bad_share "
                f"({self._options.max_bad_share:g}). The first:\n{shown}\nAll are in {path}. Mend the data or raise the "
                "share."
            )

    def write(self, path: str) -> None:
        """Write all that are listed."""
        with open(path, "w", encoding="utf-8") as file:
            for row in self._rows:
                file.write(json.dumps(row._asdict(), ensure_ascii=False) + "\n")
            if self._num_unlisted:
                file.write(json.dumps({"kind": "more", "number": self._num_unlisted}) + "\n")

    def first(self) -> str:
        """The first that was noted."""
        return f"the first: {self._rows[0]}" if self._rows else "all are set apart to evaluate"

    def told(self, output: str) -> list[str]:
        """Lines for the user."""
        return [f"{count}; see {os.path.join(output, BAD_ROWS)}" for count in self._counts]


def _num_shards(options: GroupOptions, stats: list[LogStats]) -> tuple[int, int]:
    """Shards of each side: as told, those of eval in proportion; else by the bytes of the rows."""
    rows = [side.num_rows for side in stats]
    train = options.num_shards or _by_size(stats[TRAIN], options.max_group_size)
    if not rows[EVAL]:
        return train, 0
    if options.num_shards:
        return train, max(1, round(train * rows[EVAL] / rows[TRAIN]))
    return train, _by_size(stats[EVAL], options.max_group_size)


def _by_size(stats: LogStats, max_group_size: int) -> int:
    num_bytes = sum(8 * column.num_rows + column.num_bytes for column in stats.columns.values())
    most = max(1, stats.num_rows // max_group_size // _MIN_GROUPS)
    return min(max(-(-num_bytes // _SHARD_BYTES), _MIN_SHARDS), most)


def _require_all(rows: RowsReport, num_kept: list[int], groups: GroupsReport, shards: list[ShardReport]) -> None:
    """What was read is refused or written, row by row; what was written was counted in the files."""
    for side, kept in enumerate(num_kept):
        written = sum(shard.num_rows for shard in shards if shard.side == side)
        written_groups = sum(shard.num_groups for shard in shards if shard.side == side)
        if written != kept or written_groups != int(groups.sizes[side].sum()):
            raise UserError(f"{written} rows were written of {kept} that {SIDES[side]}: nothing is kept; tell us")
    if rows.num_rows != sum(num_kept) + rows.num_refused:
        raise UserError(f"{rows.num_rows} rows were read, {sum(num_kept)} kept and {rows.num_refused} refused; tell us")


def _write_stats(
    folder: str,
    options: GroupOptions,
    rows: RowsReport,
    groups: GroupsReport,
    inference: Inference,
    shards: list[ShardReport],
) -> None:
    pictures, several = groups.count_pictures()
    whole: dict[str, Any] = {
        "rows_in": rows.num_rows,
        "rows_refused": rows.num_refused,
        "rows_out": sum(shard.num_rows for shard in shards),
        "items": groups.num_items,
        "items_in_conflict": groups.num_conflicts,
        "pictures": pictures,
        "pictures_of_several_items": several,
        "rows_without_picture": groups.num_rows_without_picture,
        "duplicate_rows": groups.num_duplicate_rows,
        "labels": [label.name for label in inference.labels],
        "per_group": sorted(one.name for one in inference.fields if one.per_group),
    }
    for side, name in enumerate(SIDES):
        of_side = [shard for shard in shards if shard.side == side]
        if options.split_by is None and side == EVAL:
            continue
        part = whole | {
            "split": name if options.split_by else None,
            "rows": sum(shard.num_rows for shard in of_side),
            "groups": sum(shard.num_groups for shard in of_side),
            "group_sizes": {str(size): int(n) for size, n in enumerate(groups.sizes[side]) if n},
            "shards": [_shard_values(shard, options) for shard in of_side],
            "columns": _column_values(rows.stats[side]),
        }
        path = os.path.join(folder, name) if options.split_by else folder
        with open(os.path.join(path, STATS), "w", encoding="utf-8") as file:
            json.dump(part, file, indent=1, ensure_ascii=False)
        open(os.path.join(path, SUCCESS), "wb").close()


def _shard_values(shard: ShardReport, options: GroupOptions) -> dict[str, Any]:
    values: dict[str, Any] = {"file": shard.name, "groups": shard.num_groups, "rows": shard.num_rows}
    if options.embed_images:
        values |= {"pictures": shard.num_pictures, "bad_pictures": len(shard.bad_pictures)}
    return values


def _column_values(stats: LogStats) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "type": column.kind,
            "missing": column.num_missing,
            "distinct": column.num_distinct,
            "distinct_is_exact": column.counts is not None,
            "least": column.least,
            "greatest": column.greatest,
        }
        for name, column in stats.columns.items()
    }


def _write_template(
    options: GroupOptions, stats: LogStats, groups: GroupsReport, inference: Inference, num_kept: list[int]
) -> list[str]:
    """Write the config, and load it as training will."""
    from easyrec_mm.config import load_pipeline

    def files(side: str) -> str:
        folder = os.path.join(options.output, side) if options.split_by else options.output
        return os.path.join(folder, f"part-*.{FORMATS[options.format].ending}")

    sample = stats.sample.table
    grouped = Grouped(
        train_path=files("train"),
        eval_path=files("eval") if num_kept[EVAL] else "",
        num_groups=int(groups.sizes[TRAIN].sum()),
        num_rows=num_kept[TRAIN],
        num_rows_without_picture=groups.num_rows_without_picture,
        pictures=tuple(filter(None, sample[options.image_field].to_pylist())) if sample is not None else (),
    )
    path = options.pipeline_config_template
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(template(options, inference, grouped))
    load_pipeline(path)
    lines = [f"labels: {', '.join(label.name for label in inference.labels)}"]
    if inference.are_labels_guessed:
        lines[0] += " (guessed; --label_fields tells others)"
    return [*lines, f"next: easyrec-mm train --pipeline_config {path}"]


def _summary(
    options: GroupOptions, rows: RowsReport, groups: GroupsReport, shards: list[ShardReport]
) -> Iterator[str] | list[str]:
    pictures, several = groups.count_pictures()
    lines = [
        f"{options.output}: {rows.num_rows:,} rows in, {sum(shard.num_rows for shard in shards):,} out, "
        f"{rows.num_refused:,} refused",
        f"{groups.num_items:,} items, {pictures:,} pictures ({several:,} of several items), "
        f"{groups.num_rows_without_picture:,} rows without a picture, {groups.num_duplicate_rows:,} rows that are there "
        "before",
    ]
    for side, name in enumerate(SIDES):
        of_side = [shard for shard in shards if shard.side == side]
        if of_side:
            num_rows, num_groups = (sum(getattr(s, n) for s in of_side) for n in ("num_rows", "num_groups"))
            lines.append(
                f"{name + ': ' if options.split_by else ''}{num_groups:,} groups of {num_rows / max(num_groups, 1):.1f} "
                f"rows on average in {len(of_side)} shard(s)"
            )
    return lines
