"""Makes demo data: a shop's items with rendered pictures, users, and grouped impression logs (GroupRTPInput text).

Owns the simulation (`simulate`: who saw what, who clicked and with which probability), the rendering (`render`: one
product picture) and the files (`write_demo_data`). The two halves meet only in an item's category, style and appeal,
so that the statistics can be studied without drawing a picture.

The click probability is `sigmoid(feature logit + APPEAL_WEIGHT * appeal + TASTE_WEIGHT * (style == taste))`. Appeal
and style are drawn independently of every feature and only the picture shows them; no feature identifies an item and
no item is in two splits. Hence no model without pictures can rank better than `p_no_image`, and none at all better
than `p_true`; both are written beside the evaluation and the test data.

    python samples/make_demo_data.py --output data/demo
"""

import argparse
import colorsys
import gzip
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Plane = npt.NDArray[np.float32]  # [height, width]
Color = tuple[int, int, int]

SPLITS = ("train", "eval", "test")
COLUMN_SEPARATOR, SAMPLE_SEPARATOR, VALUE_SEPARATOR, TAG_SEPARATOR = "|", "\x01", "\x02", ","
USER_FEATURES = ("user_id", "user_age_level", "user_gender", "user_city", "user_taste")
ITEM_FEATURES = ("category", "price", "shop_id", "item_tags")
FEATURES = (*USER_FEATURES, "hour", *ITEM_FEATURES, "position")
STYLES = ("retro", "botanic", "urban", "pure")  # values of user_taste, too
GENDERS = ("F", "M", "")  # "" is unknown
CITIES = ("Berlin", "Chengdu", "Hangzhou", "Jakarta", "Lagos", "Lima", "London", "Madrid", "Mumbai", "Osaka", "Seoul")
TAGS = ("bundle", "express", "foldable", "gift", "handmade", "kids", "limited", "new", "organic", "outdoor", "sale")
NUM_USERS, NUM_SHOPS, NUM_AGE_LEVELS, NUM_POSITIONS = 2000, 100, 6, 20

BIAS, APPEAL_WEIGHT, TASTE_WEIGHT = -2.0, 1.55, 1.75  # an oracle AUC of 0.82, 0.68 without pictures

# Outline of each category's product: (height, half width) from top to bottom, mirrored; both in [-1, 1].
SILHOUETTES: dict[str, list[tuple[float, float]]] = {
    "bag": [(-0.45, 0.55), (0.2, 0.72), (0.8, 0.8), (0.9, 0.7)],
    "bottle": [(-1, 0.2), (-0.5, 0.2), (-0.3, 0.45), (-0.15, 0.5), (0.9, 0.5), (1, 0.42)],
    "cushion": [(-0.8, 0.82), (-0.72, 0.86), (0, 0.74), (0.72, 0.86), (0.8, 0.82)],
    "dress": [(-1, 0.32), (-0.6, 0.36), (-0.25, 0.26), (0.3, 0.58), (1, 0.82)],
    "lamp": [(-0.95, 0.35), (0.1, 0.85), (0.1, 0.12), (0.8, 0.12), (0.85, 0.45), (0.98, 0.45)],
    "mug": [(-0.7, 0.62), (0.5, 0.6), (0.68, 0.48), (0.72, 0.4)],
    "plate": [(math.sin(a) * 0.85, math.cos(a) * 0.85) for a in np.linspace(-math.pi / 2, math.pi / 2, 17)],
    "vase": [(-1, 0.34), (-0.8, 0.24), (-0.5, 0.3), (0, 0.62), (0.35, 0.66), (0.75, 0.45), (1, 0.36)],
}
HANDLES = {"bag": (0.0, -0.5, 0.4), "mug": (0.68, -0.1, 0.36)}  # centre x, centre y, radius
CATEGORIES = tuple(SILHOUETTES)
STYLE_HUES = (0.07, 0.33, 0.6, 0.85)

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

    def __post_init__(self) -> None:
        ranges = {"group_size": (1, 10_000), "image_size": (16, 1024), "seed": (0, 2**32 - 1)}
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), ranges.get(field.name, (1, 1_000_000))
            if not low <= value <= high:
                raise ValueError(f"--{field.name}: {value} is not between {low} and {high}")
        if self.num_files > self.num_train_groups:
            raise ValueError(
                f"--num_files: {self.num_files} is more than --num_train_groups ({self.num_train_groups}); "
                "each file needs a group"
            )


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
    p_true: Floats  # [S], click probability
    p_no_image: Floats  # [S], click probability given everything but the picture


def auc(label: npt.ArrayLike, score: npt.ArrayLike) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties half; nan with one class only."""
    positive = np.asarray(label) > 0
    _, place, count = np.unique(np.asarray(score), return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # mean rank, from 1, of equal scores
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return math.nan
    return float((rank[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def sigmoid(logit: Floats) -> Floats:
    """Logistic function, elementwise."""
    probability: Floats = 1.0 / (1.0 + np.exp(-logit))
    return probability


def p_without_picture(feature_logit: Floats) -> Floats:
    """E[p | features]: the mean of p over a uniform appeal (Gauss-Legendre, exact to rounding) and a uniform style."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    mean = np.zeros_like(feature_logit)
    for share, match in ((1 / len(STYLES), 1.0), (1 - 1 / len(STYLES), 0.0)):
        for node, weight in zip(nodes, weights / 2, strict=True):
            mean += share * weight * sigmoid(feature_logit + APPEAL_WEIGHT * node + TASTE_WEIGHT * match)
    return mean


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
    p_true = sigmoid(feature_logit + APPEAL_WEIGHT * appeal[item] + TASTE_WEIGHT * match)
    click = (rng.random(len(item)) < p_true).astype(np.int64)
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
        p_true=p_true,
        p_no_image=p_without_picture(feature_logit),
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


def _rgb(hue: float, saturation: float, value: float) -> Color:
    """8-bit colour of hue (cyclic), saturation and value (clipped to [0, 1])."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return round(red * 255), round(green * 255), round(blue * 255)


def _grid(size: int) -> tuple[Plane, Plane]:
    """x and y of the pixel centres, each [size, size], in [-1, 1]."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    return np.broadcast_to(line, (size, size)), np.broadcast_to(line[:, None], (size, size))


def _pattern(style: int, u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Share of the accent colour at each place (u, v) of the product: what tells the styles apart without colour."""
    frequency, phase = rng.uniform(9.0, 12.0), rng.uniform(0.0, 6.28)
    wave: Plane
    if STYLES[style] == "retro":  # stripes
        wave = np.sin(frequency * (v + 0.3 * math.sin(phase) * u) + phase)
    elif STYLES[style] == "botanic":  # dots
        wave = np.sin(frequency * u + phase) * np.sin(frequency * v) - 0.35
    elif STYLES[style] == "urban":  # rings
        wave = np.sin(frequency * np.hypot(u - 0.2 * math.sin(phase), v) + phase)
    else:  # pure: one soft sweep
        sweep: Plane = np.clip((u + 0.3 * math.sin(phase)) * 1.2, 0, 1)
        return sweep
    return (wave > 0).astype(np.float32)


def _background(appeal: float, size: int, rng: np.random.Generator) -> Image.Image:
    """A dull gradient; the less appealing, the more clutter lies on it."""
    x, y = _grid(size)
    angle, hue, tint, value = rng.uniform(0, 6.28), rng.random(), rng.uniform(0.02, 0.12), rng.uniform(0.68, 0.95)
    slope = np.float32(rng.uniform(0.04, 0.16))
    light = 1 + slope * (np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y)
    color = np.asarray(_rgb(hue, tint, value), np.float32)
    image = Image.fromarray(np.minimum(light[:, :, None] * color, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.poisson(9 * (1 - appeal))):
        left, top = rng.uniform(0, size, 2)
        width, height = rng.uniform(0.02, 0.08, 2) * size
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((left, top, left + width, top + height), fill=_rgb(rng.random(), 0.12, rng.uniform(0.2, 0.9)))
    return image


def _mask(category: int, size: int, center: Floats, scale: float, tilt: float) -> Image.Image:
    """Where the product is: 255, elsewhere 0. Center and scale are in units of half the picture."""
    name = CATEGORIES[category]
    rotation = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])

    def place(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        placed = (np.asarray(points) @ rotation.T * scale + center + 1) * (size / 2)
        return [(float(x), float(y)) for x, y in placed]

    mask = Image.new("L", (size, size))
    draw = ImageDraw.Draw(mask)
    half = SILHOUETTES[name]
    draw.polygon(place([(width, y) for y, width in half] + [(-width, y) for y, width in reversed(half)]), fill=255)
    if name in HANDLES:
        x, y, radius = HANDLES[name]
        (center_x, center_y), reach = place([(x, y)])[0], radius * scale * size / 2
        box = (center_x - reach, center_y - reach, center_x + reach, center_y + reach)
        draw.ellipse(box, outline=255, width=max(1, round(reach * 0.3)))
    return mask


def render(category: int, style: int, appeal: float, image_size: int, rng: np.random.Generator) -> Image.Image:
    """Draws one product picture, RGB, `image_size` square.

    Args:
        category: index into CATEGORIES; chooses the silhouette.
        style: index into STYLES; chooses the pattern and, loosely, the hue.
        appeal: in [-1, 1]; more of it means more colour, less clutter, a larger and sharper product.
        image_size: width and height in pixels.
        rng: draws what means nothing: place, tilt, light, shades.
    """
    size = 2 * image_size  # drawn at twice the size for smooth edges
    image = _background(appeal, size, rng)
    scale, tilt = 0.58 + 0.07 * appeal + rng.uniform(-0.09, 0.09), rng.uniform(-0.45, 0.45)
    center = rng.uniform(-0.22, 0.22, 2)
    mask = _mask(category, size, center, scale, tilt)

    shadow = mask.reduce(4).filter(ImageFilter.BoxBlur(size / 64)).point([round(i * 0.45) for i in range(256)])
    shift = round(size * 0.03)
    image.paste((40, 38, 42), (round(rng.uniform(-shift, shift)), shift), shadow.resize((size, size)))

    x, y = ((axis - np.float32(middle)) / np.float32(scale) for axis, middle in zip(_grid(size), center, strict=True))
    cos, sin = np.float32(math.cos(tilt)), np.float32(math.sin(tilt))
    u, v = cos * x + sin * y, cos * y - sin * x  # the product's own axes
    hue, saturation = STYLE_HUES[style] + rng.normal(0, 0.07), 0.5 + 0.38 * appeal + rng.normal(0, 0.07)
    main = np.asarray(_rgb(hue, saturation, rng.uniform(0.6, 0.85)), np.float32)
    accent = np.asarray(_rgb(hue + 0.05, saturation * 0.4, 0.97), np.float32)
    light = np.float32(1 + rng.uniform(-0.08, 0.08)) - np.float32(rng.uniform(-0.2, 0.2)) * u - np.float32(0.12) * v
    share = _pattern(style, u, v, rng)[:, :, None]
    product = np.clip((main + share * (accent - main)) * light[:, :, None], 0, 255).astype(np.uint8)
    image.paste(Image.fromarray(product), (0, 0), mask)

    image = image.reduce(2)
    blur = (0.35 - 0.35 * appeal + rng.normal(0, 0.1)) * image_size / 64
    return image.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.15 else image


def render_item(split_name: str, split: Split, item: int, options: DemoOptions) -> Image.Image:
    """The picture of one item; the same whatever else is rendered and in which order."""
    # The last 1 keeps item 0 off the split's own stream: numpy fills short seeds with zeros.
    rng = np.random.default_rng([options.seed, SPLITS.index(split_name), item, 1])
    picture = (int(split.category[item]), int(split.style[item]), float(split.appeal[item]))
    return render(*picture, options.image_size, rng)


def group_lines(world: World, name: str, split: Split) -> Iterator[str]:
    """One line a group, without the line end: group_id|item_id|click|play_time|features|image path|group size."""
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
            values = [*of_user, str(split.hour[sample]), *of_item, str(split.position[sample])]
            features.append(VALUE_SEPARATOR.join(values))
        columns = [split.group_ids[group], split.item_ids[item]]
        columns.append(SAMPLE_SEPARATOR.join(str(split.click[sample]) for sample in samples))
        columns.append(SAMPLE_SEPARATOR.join(f"{split.play_time[sample]:.2f}" for sample in samples))
        columns += [SAMPLE_SEPARATOR.join(features), f"images/{name}/{split.item_ids[item]}.jpg", str(size)]
        yield COLUMN_SEPARATOR.join(columns)


def truth_lines(split: Split) -> Iterator[str]:
    """The truth file's lines, header first; samples in the order of the data lines."""
    yield "group_id,sample,click,p_true,p_no_image"
    row = 0
    for group_id, size in zip(split.group_ids, split.group_size, strict=True):
        for sample in range(size):
            yield f"{group_id},{sample},{split.click[row]},{split.p_true[row]:.8f},{split.p_no_image[row]:.8f}"
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
    settings = " ".join(f"--{field.name} {getattr(options, field.name)}" for field in fields(options))
    return f"""{MARKER}
{settings}

train/ eval/ test/  One line a group: the impressions of one item. No item is in two splits.
  columns, split by "|": group_id, item_id, click, play_time (seconds), features, image path (from this folder), size
  data_config: selected_cols "2,3,4,5,6"  rtp_separator "|"  group_sample_separator "\\001"  separator "\\002"
  features of a sample: {", ".join(FEATURES)}
  item_tags has several values, split by ","; an empty value is missing.
images/             The items' pictures, {options.image_size} x {options.image_size}.
truth_*.csv         In the order of the samples: the click, its true probability p_true, and p_no_image, its
                    probability given all but the picture. No model without pictures can beat the AUC of p_no_image
                    except by chance (the ceiling), and no model at all that of p_true (the oracle).

{summary(splits)}
"""


def check_output(output: Path, overwrite: bool) -> None:
    """Raises ValueError where writing would destroy what this script did not make."""
    if output == Path.cwd() or output in Path.cwd().parents:
        raise ValueError(f"--output: {output} holds the current folder; name a folder of its own")
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
        parser.add_argument(f"--{field.name}", type=int, default=field.default, metavar="N", help=text)
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
