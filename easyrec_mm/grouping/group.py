"""The command `group`: a flat log -> shards of groups, statistics, a list of refused rows, and a config for training.

An engine runs the steps: examine the files, read the rows, make groups, write shards. Each step ends before the next
begins, because the next one depends on its result: the number of shards, and which columns are constant per item.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Protocol, TypeVar

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import DataError, UserError
from easyrec_mm.files import is_remote, join
from easyrec_mm.grouping.assign import GroupRule, GroupsReport
from easyrec_mm.grouping.bad_rows import BAD_ROWS, BadRow, BadRows
from easyrec_mm.grouping.column_stats import LogStats
from easyrec_mm.grouping.constancy import ConstantColumns
from easyrec_mm.grouping.flat_files import Split
from easyrec_mm.grouping.group_stats import GroupStats
from easyrec_mm.grouping.image_root import choose_image_root
from easyrec_mm.grouping.inference import infer
from easyrec_mm.grouping.log_plan import LogPlan, plan_log
from easyrec_mm.grouping.options import GROUP_SIZE, GroupOptions
from easyrec_mm.grouping.output_folder import new_folder, written
from easyrec_mm.grouping.pictures import PicturePacker
from easyrec_mm.grouping.pipeline_template import INPUT_TYPES, Grouped, head_of_group, template
from easyrec_mm.grouping.plans import Inference
from easyrec_mm.grouping.rows import LogLayout, RowsReport
from easyrec_mm.grouping.shards import FORMATS, OutputRule, ShardReport
from easyrec_mm.grouping.sides import EVAL, SIDES, TRAIN
from easyrec_mm.grouping.trainable import require_trainable

# Target size of a shard in bytes, minimum of groups per shard, and minimum of shards if there are enough groups.
SHARD_BYTES, MIN_GROUPS, _MIN_SHARDS = 64 << 20, 64, 4

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """Runs the steps on one machine or many, with the same functions and the same output."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Apply a function to each item; return the results in the order of the items."""

    def read(self, splits: list[Split], layout: LogLayout) -> RowsReport:
        """Read and check the rows, and keep them for `group`."""

    def group(self, rule: GroupRule) -> tuple[GroupsReport, ConstantColumns]:
        """Make groups of the rows that were read, and keep them for `write`."""

    def write(self, rule: OutputRule) -> list[ShardReport]:
        """Write the shards of the groups; return their reports in the order of the shards."""


def group(options: GroupOptions, engine: Engine, packer: PicturePacker | None, work: str) -> str:
    """Run the command; return the text for the user.

    Args:
      options: the flags of the command.
      engine: runs the steps.
      packer: packs the pictures; None to leave them where they are.
      work: the folder of work_place for the output.

    Raises:
      DataError: if a file cannot be used, or if too many rows, items or pictures cannot be used.
    """
    plan = plan_log(options, engine.map)
    image_root = choose_image_root(options, plan)
    has_found_root = image_root != options.image_root
    if has_found_root:
        options = replace(options, image_root=image_root)
        packer = packer and replace(packer, image_root=image_root)
    bad = BadRows(options.output, options.max_bad_share)
    rows = _read(options, engine, plan, bad)
    num_shards = _num_shards(options, rows.stats)
    groups, constant = engine.group(GroupRule(plan.layout, options.max_group_size, num_shards, options.seed))
    bad.add(groups.num_conflicts, groups.num_items, "items", _conflicts(groups, plan.layout))
    inference = infer(options, rows.stats_of_all(), constant, plan.rounded)
    _require_pictures(options, rows)
    if options.pipeline_config_template:
        require_trainable(options, rows.stats[TRAIN], inference)
    inference.notes += _notes_on_labels(rows.stats[EVAL], inference)

    with new_folder(options.output, options.overwrite, work) as folder:
        has_sides = options.split_by is not None
        for side in SIDES if has_sides and not is_remote(folder) else ():
            os.mkdir(os.path.join(folder, side))
        fields = inference.group_fields(options)
        shards = engine.write(OutputRule(folder, options.format, fields, num_shards, has_sides, packer))
        num_bad = sum(len(shard.bad_pictures) for shard in shards)
        num_pictures = num_bad + sum(shard.num_pictures for shard in shards)
        bad.add(num_bad, num_pictures, "pictures", _bad_pictures(shards, plan.layout))
        stats = GroupStats(options, rows, groups, inference, shards)
        _require_all(stats)
        bad.write(join(folder, BAD_ROWS))
        stats.write(folder)
    found_root = [f"image_root: {image_root}, where the pictures were found"] if has_found_root else []
    notes = [*(f"note: {note}" for note in (*plan.notes, *inference.notes)), *_left_out(inference)]
    template = _write_template(stats) if options.pipeline_config_template else []
    return "\n".join([*stats.lines(), *bad.lines(), *found_root, *notes, *template])


def _read(options: GroupOptions, engine: Engine, plan: LogPlan, bad: BadRows) -> RowsReport:
    """Read the log, add its bad rows to `bad`, and check that some rows can train."""
    rows = engine.read(plan.splits, plan.layout)
    bad.add(rows.num_refused, rows.num_rows, "rows", (BadRow("row", *row) for row in rows.refused))
    if not rows.stats[TRAIN].num_rows:
        why = f"the first is refused: {bad.first}" if bad.first else "all are kept for evaluation"
        raise DataError(f"--input {options.input}: none of the {rows.num_rows} rows can be used for training; {why}")
    return rows


def _require_pictures(options: GroupOptions, rows: RowsReport) -> None:
    """Check that some row names a picture, unless pictures may be missing."""
    counts = [stats.columns[options.image_field].counts for stats in rows.stats]
    if all(values is not None and set(values) <= {""} for values in counts) and not options.allow_missing_pictures:
        num_rows = sum(stats.num_rows for stats in rows.stats)
        raise DataError(
            f"--image_field: column '{options.image_field}' is empty in all {num_rows:,} rows; name the column of the "
            "paths of pictures, or use --allow_missing_pictures to group without pictures"
        )


def _notes_on_labels(of_eval: LogStats, inference: Inference) -> list[str]:
    """Return notes on labels that have only one class among the rows that evaluate."""
    columns = {label.name: of_eval.columns[label.name] for label in inference.labels if label.is_binary}
    return [
        f"label '{name}' is {column.least} in all {of_eval.num_rows:,} evaluation rows, so its AUC is undefined there"
        for name, column in columns.items()
        if column.num_distinct == 1
    ]


def _left_out(inference: Inference) -> list[str]:
    lines = [f"no feature: {name}: {why}" for name, why in inference.left_out.items()]
    return [*lines, "to make a feature of such a column anyway, use --columns +NAME"] if lines else []


def _conflicts(groups: GroupsReport, layout: LogLayout) -> Iterator[BadRow]:
    for conflict in groups.conflicts:
        problem = f"'{conflict.second}', but an earlier row of item '{conflict.item}' has '{conflict.first}'"
        yield BadRow("conflict", *layout.place(conflict.order), f"column '{conflict.column}'", problem)


def _bad_pictures(shards: list[ShardReport], layout: LogLayout) -> Iterator[BadRow]:
    pictures = [picture for shard in shards for picture in shard.bad_pictures]
    for picture in sorted(pictures, key=lambda picture: picture.order):
        yield BadRow("picture", *layout.place(picture.order), picture.path, picture.problem)


def _num_shards(options: GroupOptions, stats: list[LogStats]) -> tuple[int, int]:
    """Return the number of shards per side: as given, in proportion for eval; by default by the bytes of the rows."""
    rows = [side.num_rows for side in stats]
    train = options.num_shards or _by_size(stats[TRAIN], options.max_group_size)
    if not rows[EVAL]:
        return train, 0
    if options.num_shards:
        return train, max(1, round(train * rows[EVAL] / rows[TRAIN]))
    return train, _by_size(stats[EVAL], options.max_group_size)


def _by_size(stats: LogStats, max_group_size: int) -> int:
    num_bytes = sum(8 * column.num_rows + column.num_bytes for column in stats.columns.values())
    most = max(1, stats.num_rows // max_group_size // MIN_GROUPS)
    return min(max(-(-num_bytes // SHARD_BYTES), _MIN_SHARDS), most)


def _require_all(stats: GroupStats) -> None:
    """Check that every row that was read is refused or written, as counted in the written files."""
    num_kept = 0
    for side, of_rows in enumerate(stats.rows.stats):
        shards = stats.of_side(side)
        written = sum(shard.num_rows for shard in shards), sum(shard.num_groups for shard in shards)
        expected = of_rows.num_rows, int(stats.groups.sizes[side].sum())
        if written != expected:
            raise UserError(
                f"{SIDES[side]}: {written[0]} rows in {written[1]} groups were written instead of {expected[0]} in "
                f"{expected[1]}, because of a bug in this program; no output is kept"
            )
        num_kept += of_rows.num_rows
    if stats.rows.num_rows != num_kept + stats.rows.num_refused:
        raise UserError(
            f"of {stats.rows.num_rows} rows {num_kept} were written and {stats.rows.num_refused} refused, because of a "
            "bug in this program; no output is kept"
        )


def _write_template(stats: GroupStats) -> list[str]:
    """Write the config, and load it as training will; return lines for the user."""
    options, of_train = stats.options, stats.rows.stats[TRAIN]

    def files(side: int) -> str:
        folder = join(options.output, SIDES[side]) if options.split_by else options.output
        return join(folder, f"part-*.{FORMATS[options.format].ending}")

    grouped = Grouped(
        train_path=files(TRAIN),
        eval_path=files(EVAL) if stats.of_side(EVAL) else "",
        model_dir=options.output.rstrip("/") + "_model",
        input_type=INPUT_TYPES[options.format],
        size_field=GROUP_SIZE,
        num_groups=int(stats.groups.sizes[TRAIN].sum()),
        num_rows=of_train.num_rows,
        num_rows_without_picture=stats.groups.num_rows_without_picture,
    )
    head = head_of_group(options, stats.inference, grouped)
    path = options.pipeline_config_template
    if not is_remote(path):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with written(path) as here, open(here, "w", encoding="utf-8") as file:
        file.write(template(head, options, stats.inference, grouped))
    load_pipeline(path)
    labels = ", ".join(label.name for label in stats.inference.labels)
    guessed = " (guessed; choose others with --label_fields)" if stats.inference.are_labels_guessed else ""
    return [f"labels: {labels}{guessed}", f"next: easyrec-mm train --pipeline_config {path}"]
