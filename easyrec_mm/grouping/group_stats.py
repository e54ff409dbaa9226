"""The report on grouping, as text and as stats.json: rows in and out, groups and their sizes, pictures, columns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from easyrec_mm import __version__
from easyrec_mm.files import join
from easyrec_mm.grouping.assign import GroupsReport
from easyrec_mm.grouping.column_stats import LogStats
from easyrec_mm.grouping.options import GroupOptions
from easyrec_mm.grouping.output_folder import written
from easyrec_mm.grouping.plans import Inference
from easyrec_mm.grouping.rows import RowsReport
from easyrec_mm.grouping.shards import ShardReport
from easyrec_mm.grouping.sides import SIDES, TRAIN

STATS, SUCCESS = "stats.json", "_SUCCESS"


@dataclass
class GroupStats:
    """The reports of all steps."""

    options: GroupOptions
    rows: RowsReport
    groups: GroupsReport
    inference: Inference
    shards: list[ShardReport]

    def of_side(self, side: int) -> list[ShardReport]:
        """Return the shards of a side."""
        return [shard for shard in self.shards if shard.side == side]

    def write(self, folder: str) -> None:
        """Write stats.json and _SUCCESS; if there are two sides, for each side and for both together."""
        shared_values = self._shared_values()
        if self.options.split_by is None:
            write_stats(folder, shared_values | self._side(TRAIN))
            return
        of_sides = {name: self._side(side) for side, name in enumerate(SIDES)}
        for name, values in of_sides.items():
            write_stats(join(folder, name), shared_values | values)
        counts = {name: {key: values[key] for key in ("rows", "groups")} for name, values in of_sides.items()}
        write_stats(folder, shared_values | {"splits": counts})

    def lines(self) -> list[str]:
        """Return a summary as lines of text."""
        pictures, several = self.groups.count_pictures()
        num_out = sum(shard.num_rows for shard in self.shards)
        lines = [
            f"{self.options.output}: {self.rows.num_rows:,} rows in, {num_out:,} out, "
            f"{self.rows.num_refused:,} refused, {self.groups.num_duplicate_rows:,} duplicates",
            f"{self.groups.num_items:,} items, {pictures:,} pictures ({several:,} shared by several items), "
            f"{self.groups.num_rows_without_picture:,} rows without a picture",
        ]
        for side, name in enumerate(SIDES):
            shards = self.of_side(side)
            if shards:
                num_groups = sum(shard.num_groups for shard in shards)
                mean = sum(shard.num_rows for shard in shards) / max(num_groups, 1)
                summary = f"{num_groups:,} groups of {mean:.1f} rows on average in {len(shards)} file(s)"
                lines.append(f"{name}: {summary}" if self.options.split_by else summary)
        return lines

    def _shared_values(self) -> dict[str, Any]:
        """Return the values that are the same for both sides."""
        pictures, several = self.groups.count_pictures()
        return {
            "rows_in": self.rows.num_rows,
            "rows_refused": self.rows.num_refused,
            "rows_out": sum(shard.num_rows for shard in self.shards),
            "items": self.groups.num_items,
            "items_in_conflict": self.groups.num_conflicts,
            "pictures": pictures,
            "pictures_of_several_items": several,
            "rows_without_picture": self.groups.num_rows_without_picture,
            "duplicate_rows": self.groups.num_duplicate_rows,
            "labels": [label.name for label in self.inference.labels],
            "left_out": self.inference.left_out,
            "per_group": sorted(field.name for field in self.inference.fields if field.per_group),
        }

    def _side(self, side: int) -> dict[str, Any]:
        shards = self.of_side(side)
        values = {
            "split": SIDES[side] if self.options.split_by else None,
            "rows": sum(shard.num_rows for shard in shards),
            "groups": sum(shard.num_groups for shard in shards),
            "group_sizes": {str(size): int(number) for size, number in enumerate(self.groups.sizes[side]) if number},
            "shards": [self._shard(shard) for shard in shards],
            "columns": _columns(self.rows.stats[side]),
        }
        if self.options.embed_images:
            values["packed_pictures"] = sum(shard.num_pictures for shard in shards)
            values["bad_pictures"] = sum(len(shard.bad_pictures) for shard in shards)
        return values

    def _shard(self, shard: ShardReport) -> dict[str, Any]:
        values: dict[str, Any] = {"file": shard.name, "groups": shard.num_groups, "rows": shard.num_rows}
        if self.options.embed_images:
            values |= {"pictures": shard.num_pictures, "bad_pictures": len(shard.bad_pictures)}
        return values


def write_stats(folder: str, values: dict[str, Any]) -> None:
    """Write stats.json, and then _SUCCESS, which marks the folder as complete."""
    with written(join(folder, STATS)) as path, open(path, "w", encoding="utf-8") as file:
        json.dump({"easyrec_mm": __version__, **values}, file, indent=1, ensure_ascii=False)
    with written(join(folder, SUCCESS)) as path, open(path, "wb"):
        pass


def _columns(stats: LogStats) -> dict[str, dict[str, Any]]:
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
