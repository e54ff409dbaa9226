"""Makes demo data: a shop's items with rendered pictures, users, and grouped impression logs (GroupRTPInput text).

Owns the simulation (`simulate`: who saw what, who clicked and with which probability) and the files
(`write_demo_data`); pictures are drawn by demo_pictures.py. The two meet only in an item's category, style and
appeal, so that the statistics can be studied without drawing a picture.

The click probability is `sigmoid(feature logit + APPEAL_WEIGHT * appeal + TASTE_WEIGHT * (style == taste))`. Appeal
and style are drawn independently of every feature and only the picture shows them; no feature identifies an item and
no item is in two splits. Hence no model without pictures can rank better than `p_no_image`, and none at all better
than `p_true`; both are written beside the evaluation and the test data.

With `--titles` items have titles, too (demo_titles.py): BENEFIT_WEIGHT * benefit is added to the logit, which only the
title tells; it also tells the style of every second item.

    python samples/make_demo_data.py --output data/demo [--titles]
"""

import argparse
import gzip
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
from demo_clicks import BIAS, click_probabilities
from demo_pictures import CATEGORIES, STYLES, render
from demo_titles import draw_benefits, write_titles
from PIL import Image

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SPLITS = ("train", "eval", "test")
COLUMN_SEPARATOR, SAMPLE_SEPARATOR, VALUE_SEPARATOR, TAG_SEPARATOR = "|", "\x01", "\x02", ","
USER_FEATURES = ("user_id", "user_age_level", "user_gender", "user_city", "user_taste")
ITEM_FEATURES = ("category", "price", "shop_id", "item_tags")
FEATURES = (*USER_FEATURES, "hour", *ITEM_FEATURES, "position")
GENDERS = ("F", "M", "")  # "" is unknown
CITIES = ("Berlin", "Chengdu", "Hangzhou", "Jakarta", "Lagos", "Lima", "London", "Madrid", "Mumbai", "Osaka", "Seoul")
TAGS = ("bundle", "express", "foldable", "gift", "handmade", "kids", "limited", "new", "organic", "outdoor", "sale")
NUM_USERS, NUM_SHOPS, NUM_AGE_LEVELS, NUM_POSITIONS = 2000, 100, 6, 20

MARKER = "Demo data of easyrec_mm, made by samples/make_demo_data.py"
OWN_NAMES = {*SPLITS, "images", "truth_eval.csv", "truth_test.csv", "README.txt"}


@dataclass(frozen=True)
class DemoOptions:
    """Sizes of the data; each field is a command-line option of the same name. Raises ValueError for a bad one."""

    num_train_groups: int = 10_000
    num_eval_groups: int = 500
    num_test_groups: int = 1000
    group_size: int = 16
    image_size: int = 64
    seed: int = 0
    num_files: int = 4
    titles: bool = False

    def __post_init__(self) -> None:
        ranges = {"group_size": (1, 10_000), "image_size": (16, 1024), "seed": (0, 2**32 - 1)}
        for name in NUMBERS:
            value, (low, high) = getattr(self, name), ranges.get(name, (1, 1_000_000))
            if not low <= value <= high:
                raise ValueError(f"--{name}: {value} is not between {low} and {high}")
        if self.num_files > self.num_train_groups:
            raise ValueError(
                f"--num_files: {self.num_files} is more than --num_train_groups ({self.num_train_groups}); "
                "each file needs a group"
            )


NUMBERS = tuple(field.name for field in fields(DemoOptions) if field.name != "titles")


@dataclass(frozen=True)
class World:
    """What all splits share: the users [num_users] and what each value of a feature adds to the click logit."""

    user_age: Ints  # 0-based
    user_gender: Ints
    user_city: Ints
    user_taste: Ints
    user_share: Floats  # of the impressions
    user_effect: Floats
    city_effect: Floats
    shop_effect: Floats
    tag_effect: Floats
    gender_category_effect: Floats  # [gender, category]


@dataclass(frozen=True)
class Split:
    """One split: I items, G groups (impressions of one item), S samples in the order of their groups."""

    item_ids: list[str]
    category: Ints  # [I]
    price: Floats  # [I]
    shop: Ints  # [I]
    tags: npt.NDArray[np.bool_]  # [I, tag]
    appeal: Floats  # [I], in [-1, 1]; only the picture shows it
    style: Ints  # [I]; only the picture shows it
    group_ids: list[str]
    group_item: Ints  # [G]: group -> item
    group_size: Ints  # [G]
    user: Ints  # [S]
    hour: Ints  # [S]
    position: Ints  # [S]
    click: Ints  # [S]
    play_time: Floats  # [S], seconds of viewing: 0 without a click, at most 10
    p: dict[str, Floats]  # name -> [S], click probability given what a model knows, see click_probabilities
    titles: list[str]  # [I]; [] without titles

    @property
    def p_true(self) -> Floats:
        """[S], click probability."""
        return self.p["p_true"]

    @property
    def p_no_image(self) -> Floats:
        """[S], click probability given everything but the picture."""
        return self.p["p_no_image"]


def auc(label: npt.ArrayLike, score: npt.ArrayLike) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties half; nan with one class only."""
    positive = np.asarray(label) > 0
    _, place, count = np.unique(np.asarray(score), return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # mean rank, from 1, of equal scores
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return math.nan
    return float((rank[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def make_world(seed: int) -> World:
    """Draws the users and the effects; the spread of each effect is the same for every seed."""
    rng = np.random.default_rng([seed, len(SPLITS)])

    def effect(spread: float, *shape: int) -> Floats:
        value = rng.normal(size=shape)
        value -= value.mean()
        return value * (spread / float(value.std()))

    activity = rng.lognormal(0.0, 0.7, NUM_USERS)
    return World(
        user_age=rng.integers(NUM_AGE_LEVELS, size=NUM_USERS),
        user_gender=rng.choice(len(GENDERS), NUM_USERS, p=(0.48, 0.42, 0.1)),
        user_city=rng.integers(len(CITIES), size=NUM_USERS),
        user_taste=rng.integers(len(STYLES), size=NUM_USERS),
        user_share=activity / activity.sum(),
        user_effect=effect(0.15, NUM_USERS),
        city_effect=effect(0.15, len(CITIES)),
        shop_effect=effect(0.3, NUM_SHOPS),
        tag_effect=effect(0.28, len(TAGS)),
        gender_category_effect=effect(0.35, len(GENDERS), len(CATEGORIES)),
    )


def simulate_split(world: World, options: DemoOptions, split: str, num_items: int, first_item: int) -> Split:
    """Simulates one split of `num_items` items whose numbers start at `first_item`; each item has one or two groups."""
    rng = np.random.default_rng([options.seed, SPLITS.index(split)])
    num_groups: int = getattr(options, f"num_{split}_groups")
    category = rng.integers(len(CATEGORIES), size=num_items)
    price = np.round(rng.lognormal(2.4 + 0.2 * category, 0.5), 2)
    shop = rng.integers(NUM_SHOPS, size=num_items)
    tags = rng.random((num_items, len(TAGS))) < 0.16
    appeal, style = rng.uniform(-1.0, 1.0, num_items), rng.integers(len(STYLES), size=num_items)

    group_item = rng.permutation(np.arange(num_groups) % num_items)
    spread = options.group_size // 2
    group_size = rng.integers(options.group_size - spread, options.group_size + spread, num_groups, endpoint=True)
    item = np.repeat(group_item, group_size)  # [S]
    user = rng.choice(NUM_USERS, len(item), p=world.user_share)
    hour, position = rng.integers(24, size=len(item)), rng.integers(1, NUM_POSITIONS + 1, len(item))

    price_level = (np.log(price[item]) - 3.1) / 0.68
    feature_logit = (
        BIAS
        + world.user_effect[user]
        + world.city_effect[world.user_city[user]]
        + world.gender_category_effect[world.user_gender[user], category[item]]
        + (world.shop_effect[shop] + tags @ world.tag_effect)[item]
        - (0.6 - 0.1 * world.user_age[user]) * price_level  # the younger, the thriftier
        + 0.25 * np.cos((hour - 21) * (2 * math.pi / 24))
        - 0.5 * (np.log(position) - 2.1)
    )
    match = (style[item] == world.user_taste[user]).astype(np.float64)
    benefit, names_style, titles = np.zeros(num_items), None, []
    if options.titles:
        of_titles = np.random.default_rng([options.seed, SPLITS.index(split), 2])
        benefit, names_style = draw_benefits(num_items, of_titles)
        titles = write_titles(category, style, benefit, names_style, of_titles)
    shown = None if names_style is None else names_style[item]
    p = click_probabilities(feature_logit, appeal[item], match, benefit[item], shown)
    click = (rng.random(len(item)) < p["p_true"]).astype(np.int64)
    seconds = np.exp(0.8 + 0.45 * appeal[item] + 0.35 * match + rng.normal(0.0, 0.35, len(item)))
    return Split(
        item_ids=[f"i{first_item + i:06d}" for i in range(num_items)],
        category=category,
        price=price,
        shop=shop,
        tags=tags,
        appeal=appeal,
        style=style,
        group_ids=[f"{split}_g{i:06d}" for i in range(num_groups)],
        group_item=group_item,
        group_size=group_size,
        user=user,
        hour=hour,
        position=position,
        click=click,
        play_time=np.round(np.clip(seconds, 0.1, 10.0), 2) * click,
        p=p,
        titles=titles,
    )


def simulate(options: DemoOptions) -> tuple[World, dict[str, Split]]:
    """Simulates all splits, without pictures. Their items are distinct; a tenth of the train items has two groups."""
    world, splits, first_item = make_world(options.seed), {}, 0
    for split in SPLITS:
        num_groups = getattr(options, f"num_{split}_groups")
        num_items = math.ceil(num_groups / 1.1) if split == "train" else num_groups
        splits[split] = simulate_split(world, options, split, num_items, first_item)
        first_item += num_items
    return world, splits


def render_item(split_name: str, split: Split, item: int, options: DemoOptions) -> Image.Image:
    """The picture of one item; the same whatever else is rendered and in which order."""
    # The last 1 keeps item 0 off the split's own stream: numpy fills short seeds with zeros.
    rng = np.random.default_rng([options.seed, SPLITS.index(split_name), item, 1])
    picture = (int(split.category[item]), int(split.style[item]), float(split.appeal[item]))
    return render(*picture, options.image_size, rng)


def group_lines(world: World, name: str, split: Split) -> Iterator[str]:
    """One line a group, without the line end.

    group_id|item_id|click|play_time|features|image path|group size|cate_label
    """
    start = 0
    for group, (item, size) in enumerate(zip(split.group_item, split.group_size, strict=True)):
        samples = range(start, start + size)
        start += size
        tags = TAG_SEPARATOR.join(tag for tag, present in zip(TAGS, split.tags[item], strict=True) if present)
        of_item = [CATEGORIES[split.category[item]], f"{split.price[item]:.2f}", f"s{split.shop[item]:03d}", tags]
        features = []
        for sample in samples:
            user = split.user[sample]
            of_user = [f"u{user:05d}", str(world.user_age[user] + 1), GENDERS[world.user_gender[user]]]
            of_user += [CITIES[world.user_city[user]], STYLES[world.user_taste[user]]]
            title = split.titles[item : item + 1]
            values = [*of_user, str(split.hour[sample]), *of_item, str(split.position[sample]), *title]
            features.append(VALUE_SEPARATOR.join(values))
        columns = [split.group_ids[group], split.item_ids[item]]
        columns.append(SAMPLE_SEPARATOR.join(str(split.click[sample]) for sample in samples))
        columns.append(SAMPLE_SEPARATOR.join(f"{split.play_time[sample]:.2f}" for sample in samples))
        columns += [SAMPLE_SEPARATOR.join(features), f"images/{name}/{split.item_ids[item]}.jpg", str(size)]
        columns.append(SAMPLE_SEPARATOR.join([str(split.category[item])] * size))
        yield COLUMN_SEPARATOR.join(columns)


def truth_lines(split: Split) -> Iterator[str]:
    """The truth file's lines, header first; samples in the order of the data lines."""
    yield ",".join(["group_id,sample,click", *split.p])
    row = 0
    for group_id, size in zip(split.group_ids, split.group_size, strict=True):
        for sample in range(size):
            yield ",".join([group_id, f"{sample},{split.click[row]}", *(f"{p[row]:.8f}" for p in split.p.values())])
            row += 1


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    """Writes lines as UTF-8 with Unix line ends, compressed where the name ends in .gz; equal lines, equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{line}\n" for line in lines).encode()
    if path.suffix != ".gz":
        path.write_bytes(content)
        return
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
        file.write(content)


def summary(splits: dict[str, Split]) -> str:
    """Sizes, click rates and the two AUCs of each split, as a small table."""
    rows = ["split  groups   items  samples  click rate  image-free ceiling AUC  oracle AUC"]
    for name, split in splits.items():
        ceiling, oracle = auc(split.click, split.p_no_image), auc(split.click, split.p_true)
        sizes = f"{name:5} {len(split.group_ids):7} {len(split.item_ids):7} {len(split.click):8}"
        rows.append(f"{sizes} {split.click.mean():11.3f} {ceiling:23.4f} {oracle:11.4f}")
    return "\n".join(rows)


def _readme(splits: dict[str, Split], options: DemoOptions) -> str:
    """Text of README.txt; its first line marks the folder as made by this script."""
    numbers = " ".join(f"--{name} {getattr(options, name)}" for name in NUMBERS)
    settings = numbers + " --titles" * options.titles
    return f"""{MARKER}
{settings}

train/ eval/ test/  One line a group: the impressions of one item. No item is in two splits.
  columns, split by "|": group_id, item_id, click, play_time (seconds), features, image path (from this folder), size,
  cate_label (the category as a number from 0 to {len(CATEGORIES) - 1})
  data_config: selected_cols "2,3,4,5,6"  rtp_separator "|"  group_sample_separator "\\001"  separator "\\002"
  features of a sample: {", ".join((*FEATURES, "title") if options.titles else FEATURES)}
  item_tags has several values, split by ","; an empty value is missing.
images/             The items' pictures, {options.image_size} x {options.image_size}.
truth_*.csv         In the order of the samples: the click, its true probability p_true, and p_no_image, its
                    probability given all but the picture. No model without pictures can beat the AUC of p_no_image
                    except by chance (the ceiling), and no model at all that of p_true (the oracle).
                    With titles also p_no_title, given all but the title, and p_no_content, given neither.

{summary(splits)}
"""


def check_output(output: Path, overwrite: bool) -> None:
    """Raises ValueError where writing would destroy what this script did not make."""
    if output == Path.cwd() or output in Path.cwd().parents:
        raise ValueError(f"--output: {output} contains the current folder; choose another folder")
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output: {output} is not a folder")
    if overwrite or not output.exists():
        return
    names, readme = {path.name for path in output.iterdir()}, output / "README.txt"
    is_own = names <= OWN_NAMES and readme.is_file() and readme.read_bytes().startswith(MARKER.encode())
    if names and not is_own:
        raise ValueError(f"--output: {output} holds other files; name another folder, or replace it by --overwrite")


def _write_files(folder: Path, options: DemoOptions, world: World, splits: dict[str, Split]) -> None:
    """Writes everything below `folder`, which exists and is empty."""
    for name, split in splits.items():
        lines = list(group_lines(world, name, split))
        num_files = options.num_files if name == "train" else 1
        for part in range(num_files):
            ending = ".gz" if part == num_files - 1 > 0 else ""  # the last of several: readers must take both kinds
            bounds = slice(part * len(lines) // num_files, (part + 1) * len(lines) // num_files)
            _write_lines(folder / name / f"part-{part:04d}.txt{ending}", lines[bounds])
        if name != "train":
            _write_lines(folder / f"truth_{name}.csv", list(truth_lines(split)))
        images = folder / "images" / name
        images.mkdir(parents=True)
        for item, item_id in enumerate(split.item_ids):
            render_item(name, split, item, options).save(images / f"{item_id}.jpg", quality=92)
    (folder / "README.txt").write_text(_readme(splits, options), encoding="utf-8", newline="\n")


def write_demo_data(output: Path, options: DemoOptions, overwrite: bool = False) -> dict[str, Split]:
    """Simulates, renders and writes all files; `output` appears, or is replaced, only once everything is there.

    Returns the splits. Raises ValueError where `output` holds what this script did not make, unless `overwrite`.
    """
    output = output.resolve()
    check_output(output, overwrite)
    world, splits = simulate(options)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as work:
        new, old = Path(work, "new"), Path(work, "old")
        new.mkdir()
        _write_files(new, options, world, splits)
        if output.exists():
            output.rename(old)
        new.rename(output)
    return splits


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; a user's mistake ends it with the usual usage message."""
    parser = argparse.ArgumentParser(
        description="Makes demo data for a multimodal click model: pictures, users and grouped impressions.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    texts = {"group_size": "mean number of samples of a group", "image_size": "width and height in pixels"}
    texts |= {"num_files": "files of the train split; the last of several is gzip-compressed"}
    for field in fields(DemoOptions):
        text = texts.get(field.name, field.name.replace("num_", "number of ").replace("_", " "))
        if field.name in NUMBERS:
            parser.add_argument(f"--{field.name}", type=int, default=field.default, metavar="N", help=text)
    parser.add_argument("--titles", action="store_true", help="give the items titles, which say what pictures do not")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that holds other files")
    arguments = parser.parse_args(argv)
    try:
        options = DemoOptions(**{field.name: getattr(arguments, field.name) for field in fields(DemoOptions)})
        check_output(arguments.output.resolve(), arguments.overwrite)
    except ValueError as error:
        parser.error(str(error))
    splits = write_demo_data(arguments.output, options, arguments.overwrite)
    print(f"{arguments.output}: {sum(len(split.item_ids) for split in splits.values())} pictures\n{summary(splits)}")


if __name__ == "__main__":
    main()
