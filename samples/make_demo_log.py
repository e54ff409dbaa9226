"""Makes a click log of the demo's shop: clicks.csv with a row per impression, and the items' pictures.

The rows have what a real log has, too: a number of each impression, the time at which it was shown, and the seconds of
viewing, which are known only after a click. make_demo_data.py describes how clicks come about.

    python samples/make_demo_log.py --output shop
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from demo_pictures import CATEGORIES, STYLES
from make_demo_data import CITIES, GENDERS, TAGS, DemoOptions, Split, World, auc, render_item, simulate

FIRST_DAY, NUM_DAYS = datetime(2026, 11, 1), 28
COLUMNS = (
    "impression_id", "shown_at", "user_id", "user_age_level", "user_gender", "user_city", "user_taste", "item_id",
    "img_path", "category", "price", "shop_id", "item_tags", "position", "click", "play_time",
)  # fmt: skip


def rows(world: World, split: Split, seed: int) -> Iterator[tuple[object, ...]]:
    """Yield the impressions in the order in which they were shown."""
    days = np.random.default_rng([seed, NUM_DAYS]).integers(NUM_DAYS * 60, size=len(split.hour))
    item_of = np.repeat(split.group_item, split.group_size)
    shown = [
        FIRST_DAY + timedelta(days=int(day % NUM_DAYS), hours=int(hour), minutes=int(day // NUM_DAYS))
        for day, hour in zip(days, split.hour, strict=True)
    ]
    for number, sample in enumerate(sorted(range(len(shown)), key=shown.__getitem__)):
        item, user = item_of[sample], split.user[sample]
        tags = ",".join(tag for tag, present in zip(TAGS, split.tags[item], strict=True) if present)
        yield (
            f"{number:07d}",
            shown[sample].isoformat(" "),
            f"u{user:05d}",
            world.user_age[user] + 1,
            GENDERS[world.user_gender[user]],
            CITIES[world.user_city[user]],
            STYLES[world.user_taste[user]],
            split.item_ids[item],
            f"images/{split.item_ids[item]}.jpg",
            CATEGORIES[split.category[item]],
            f"{split.price[item]:.2f}",
            f"s{split.shop[item]:03d}",
            tags,
            split.position[sample],
            split.click[sample],
            f"{split.play_time[sample]:.2f}" if split.click[sample] else "",
        )


def write_log(output: Path, num_items: int, seed: int) -> Split:
    """Write clicks.csv and images/ into a folder; return what was simulated."""
    groups = round(num_items * 1.1)
    options = DemoOptions(num_train_groups=groups, num_eval_groups=1, num_test_groups=1, seed=seed, num_files=1)
    world, splits = simulate(options)
    split = splits["train"]
    (output / "images").mkdir(parents=True, exist_ok=True)
    for item, item_id in enumerate(split.item_ids):
        render_item("train", split, item, options).save(output / "images" / f"{item_id}.jpg", quality=92)
    with (output / "clicks.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows(world, split, seed))
    return split


def main() -> None:
    """Write the log, and print what is possible with it."""
    parser = argparse.ArgumentParser(description="Makes a click log with pictures.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--num_items", type=int, default=3000, help="items, each with a picture (default 3000)")
    parser.add_argument("--seed", type=int, default=0, help="another number makes another shop")
    flags = parser.parse_args()
    if flags.num_items < 10:
        parser.error(f"--num_items: {flags.num_items} is less than 10")
    if (flags.output / "clicks.csv").exists():
        sys.exit(f"--output: {flags.output} has a clicks.csv; name another folder")
    split = write_log(flags.output, flags.num_items, flags.seed)
    print(f"{flags.output}/clicks.csv: {len(split.click)} impressions, {split.click.sum()} clicks")
    print(f"{flags.output}/images: {len(split.item_ids)} pictures")
    print("AUC that is possible")
    print(f"  without pictures {auc(split.click, split.p_no_image):.4f}")
    print(f"  with pictures    {auc(split.click, split.p_true):.4f}")


if __name__ == "__main__":
    main()
