"""The options of `easyrec-mm group`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from easyrec_mm.errors import UserError
from easyrec_mm.features.field import KINDS, Kind
from easyrec_mm.ranges import NotNegative, Positive, RtpSeparator, Separator, Share

GROUP_SIZE = "group_size"


@dataclass(frozen=True)
class SplitBy:
    """How rows are divided into train and eval; `column` and `cut` are for time only, cut "" means by eval_share."""

    by: Literal["item", "user", "time"]
    column: str = ""
    cut: str = ""


@dataclass(frozen=True)
class GroupOptions:
    """The flags of the command; cli/group.py explains them."""

    input: str
    group_by: str
    image_field: str
    output: str
    format: Literal["parquet", "tfrecord", "rtp"] = "parquet"
    max_group_size: Positive = 16
    label_fields: tuple[str, ...] = ()
    group_fields: tuple[str, ...] = ()
    user_field: str = ""
    time_field: str = ""
    columns: tuple[str, ...] = ()
    only_columns: bool = False
    types: Mapping[str, Kind] = field(default_factory=dict)
    separator: Separator = ","
    split_by: SplitBy | None = None
    eval_share: Share = 0.1
    num_shards: NotNegative = 0
    seed: NotNegative = 2020
    max_bad_share: Share = 0.01
    embed_images: bool = False
    image_root: str = ""
    allow_missing_pictures: bool = False
    image_size: tuple[int, int] | None = None
    preset: str = ""
    pipeline_config_template: str = ""
    rtp_separator: RtpSeparator = "|"
    overwrite: bool = False


def parse_split_by(text: str) -> SplitBy | None:
    """Parse the value of --split_by: "item", "user", "time:column" or "time:column:cut"; None for "".

    Raises:
      UserError: if it has another form.
    """
    if not text:
        return None
    by, _, argument = text.partition(":")
    if by in ("item", "user") and not argument:
        return SplitBy("item" if by == "item" else "user")
    column, _, cut = argument.partition(":")
    if by == "time" and column:
        return SplitBy("time", column, cut)
    raise UserError(
        f"--split_by {text}: write item, user, time:<column> (the last --eval_share of the rows evaluate) or "
        "time:<column>:<first time that evaluates>"
    )


def parse_columns(text: str) -> tuple[tuple[str, ...], bool]:
    """Parse --columns: the names, and whether only these are used; "+a,+b" means a and b in addition to all others."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    only = any(not name.startswith("+") for name in names)
    return tuple(name.removeprefix("+") for name in names), only


def parse_types(text: str) -> dict[str, Kind]:
    """Parse the value of --types: "column=TYPE,column=TYPE".

    Raises:
      UserError: if a type is unknown.
    """
    kinds: dict[str, Kind] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, kind = part.partition("=")
        if kind not in KINDS:
            raise UserError(f"--types {part}: write column=TYPE with a type of {', '.join(KINDS)}")
        kinds[name] = KINDS[kind]
    return kinds


def parse_image_size(text: str) -> tuple[int, int] | None:
    """Parse the value of --image_size, width x height: "224x224"; None for "".

    Raises:
      UserError: if it is not a size.
    """
    if not text:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f"--image_size {text}: write width x height in pixels, as in 224x224")
    return int(width), int(height)
