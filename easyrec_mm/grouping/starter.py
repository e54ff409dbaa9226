"""The command `init`: a config to start with, from the first rows of data or from a description of its fields."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import DataError, UserError, did_you_mean
from easyrec_mm.features.field import Kind
from easyrec_mm.files import is_remote
from easyrec_mm.files.opening import exists
from easyrec_mm.grouping.column_stats import LogStats
from easyrec_mm.grouping.constancy import ConstantColumns, constant_in
from easyrec_mm.grouping.feature_plans import table_rows
from easyrec_mm.grouping.first_rows import FirstRows
from easyrec_mm.grouping.inference import infer
from easyrec_mm.grouping.options import GroupOptions
from easyrec_mm.grouping.output_folder import written
from easyrec_mm.grouping.pipeline_template import FLAT_INPUT_TYPES, Grouped, template
from easyrec_mm.grouping.plans import FeaturePlan, FieldPlan, Inference, LabelPlan
from easyrec_mm.grouping.trainable import require_trainable

FEATURE_KINDS = ("id", "number", "tags", "text")
# Usual names of the columns of items and users.
_ITEM = re.compile(r"(item|goods|product|video|ad|article|sku|photo)_?(id|no|code)?", re.IGNORECASE)
_USER = re.compile(r"u(ser)?_?id|user", re.IGNORECASE)
_NUM_VALUES = 10_000


@dataclass(frozen=True)
class StarterOptions:
    """The flags of the command; cli/init.py explains them. None of the fields is None."""

    output: str
    input: str
    image_field: str
    group_by: str
    user_field: str
    label_fields: tuple[str, ...]
    features: tuple[str, ...]
    input_type: str
    train_input_path: str
    eval_input_path: str
    model_dir: str
    separator: str
    num_rows: int
    group_size: int
    image_root: str
    image_size: tuple[int, int] | None
    preset: str

    def group_options(self) -> GroupOptions:
        """Return the options of `group` that its writer of configs reads."""
        return GroupOptions(
            input=self.input,
            group_by=self.group_by or self.image_field,
            image_field=self.image_field,
            output="",
            label_fields=self.label_fields,
            user_field=self.user_field,
            separator=self.separator,
            image_root=self.image_root,
            image_size=self.image_size,
            preset=self.preset,
        )


def item_in(names: Iterable[str]) -> str:
    """Return the first name that is one of an item; "" if there is none."""
    return next(filter(_ITEM.fullmatch, names), "")


def user_in(names: Iterable[str]) -> str:
    """Return the first name that is one of a user; "" if there is none."""
    return next(filter(_USER.fullmatch, names), "")


def require_new(path: str, overwrite: bool) -> None:
    """Check that a config may be written.

    Raises:
      UserError: if the file exists and may not be replaced.
    """
    if not overwrite and (os.path.lexists(path) if not is_remote(path) else exists(path)):
        raise UserError(f"--output: {path} exists; name another file, or replace it with --overwrite")


def write_starter(options: StarterOptions, rows: FirstRows | None) -> str:
    """Write the config, and load it as training will; return its text.

    Raises:
      DataError: if a column is missing, or nothing can be trained on the data.
      UserError: if the description of a feature is invalid.
    """
    group_options = options.group_options()
    if rows is not None:
        inference, grouped = _inferred(options, group_options, rows)
    else:
        inference, grouped = _described(options)
    num_read = grouped.num_rows if rows is None else len(rows.table)
    text = template(_head(options, inference, grouped, num_read), group_options, inference, grouped)
    if not is_remote(options.output):
        os.makedirs(os.path.dirname(os.path.abspath(options.output)), exist_ok=True)
    with written(options.output) as here, open(here, "w", encoding="utf-8") as file:
        file.write(text)
    load_pipeline(options.output)
    return text


def _head(options: StarterOptions, inference: Inference, grouped: Grouped, num_read: int) -> list[str]:
    source = f"the first rows of {options.input}" if options.input else "a description of the data"
    lines = [
        f"Written by easyrec-mm init from {source}; batches and epochs suit {grouped.num_rows:,} rows. Next:",
        f"  easyrec-mm check --pipeline_config {options.output}",
        f"  easyrec-mm train --pipeline_config {options.output}",
        "No feature may contain what is known only after the impression, such as the viewing time.",
    ]
    if num_read < grouped.num_rows:
        few = f"Tables of ids are as large as the first {num_read:,} rows need; all rows have more values"
        lines.append(f"{few}: raise hash_bucket_size, or let easyrec-mm stats count them.")
    if inference.are_labels_guessed:
        labels = ", ".join(label.name for label in inference.labels)
        lines.append(f"Labels were guessed from names and values: {labels}. Choose others with --label_fields.")
    return lines


def _inferred(options: StarterOptions, columns: GroupOptions, rows: FirstRows) -> tuple[Inference, Grouped]:
    for flag in ("image_field", "group_by", "user_field", "label_fields"):
        value = getattr(options, flag)
        for name in filter(None, (value,) if isinstance(value, str) else value):
            if name not in rows.kinds:
                raise DataError(f"--{flag}: {rows.path} has no column '{name}'; {did_you_mean(name, rows.kinds)}")
    if not options.image_field:
        raise DataError(f"--image_field: no column of {rows.path} holds paths of pictures; name the column that does")
    stats = LogStats.of(rows.kinds, len(rows.table))
    stats.add(rows.table)
    if rows.input_type in FLAT_INPUT_TYPES:
        constant = constant_in(rows.table, options.group_by or options.image_field)
    else:
        constant = ConstantColumns(set(rows.per_group), len(rows.table) - rows.num_groups_read)
    inference = infer(columns, stats, constant)
    require_trainable(columns, stats, inference)
    pictures = stats.columns[options.image_field]
    grouped = Grouped(
        train_path=options.train_input_path or rows.path,
        eval_path=options.eval_input_path,
        model_dir=options.model_dir,
        input_type=rows.input_type,
        size_field=rows.size_field,
        num_groups=rows.num_groups,
        num_rows=rows.num_rows,
        num_rows_without_picture=pictures.num_missing + (pictures.counts or {}).get("", 0),
    )
    return inference, grouped


def _described(options: StarterOptions) -> tuple[Inference, Grouped]:
    fields = [FieldPlan(label, "int64") for label in options.label_fields]
    fields.append(FieldPlan(options.image_field, "string"))
    features, texts = [], []
    for description in options.features:
        field, feature = _feature(description)
        fields.append(field)
        if feature is None:
            texts.append(field.name)
        else:
            features.append(feature)
    labels = [LabelPlan(name, is_binary=True) for name in options.label_fields]
    names = [field.name for field in fields]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--features, --label_fields, --image_field: '{name}' is named twice; give each field once")
        if not name.isidentifier():
            raise UserError(f"--features: '{name}' is not a name of a field; give letters, digits and _")
    roles = dict.fromkeys(filter(None, (options.group_by, options.user_field)))
    fields += [FieldPlan(name, "string") for name in roles if name not in names]
    is_flat = options.input_type in FLAT_INPUT_TYPES
    grouped = Grouped(
        train_path=options.train_input_path,
        eval_path=options.eval_input_path,
        model_dir=options.model_dir,
        input_type=options.input_type,
        size_field="",  # such files need none
        num_groups=max(1, options.num_rows // (1 if is_flat else options.group_size)),
        num_rows=options.num_rows,
    )
    return Inference(fields, labels, False, features, texts, has_user_ids=bool(options.user_field)), grouped


def _feature(description: str) -> tuple[FieldPlan, FeaturePlan | None]:
    """Return the field and the feature of a description, such as city:id:300; None for a part of the item's text."""
    name, _, kind = description.partition(":")
    kind, _, values = kind.partition(":")
    if (
        not name
        or kind not in FEATURE_KINDS
        or (values and not (values.isdecimal() and int(values) and kind in ("id", "tags")))
    ):
        raise UserError(
            f"--features {description}: write NAME:KIND with a kind of {', '.join(FEATURE_KINDS)}, and for ids and "
            "tags the number of different values, as in city:id:300"
        )
    if kind == "text":
        return FieldPlan(name, "string", per_group=True), None
    rows, table_size = table_rows(int(values or _NUM_VALUES))
    table = {"hash_bucket_size": rows, "embedding_dim": 16 if kind == "id" else 8}
    about = f"{table_size}; give about twice as many as there are values"
    if kind == "id":
        return FieldPlan(name, "string"), FeaturePlan(name, "IdFeature", table, f"an id, {about}")
    if kind == "tags":
        settings = {"separator": "|", **table}
        return FieldPlan(name, "string"), FeaturePlan(name, "TagFeature", settings, f"tags between |, {about}")
    why = (
        "a number as it is; boundaries with embedding_dim divide numbers into buckets, which suits numbers far "
        "from 0 (easyrec-mm stats proposes some)"
    )
    number: Kind = "float64"
    return FieldPlan(name, number), FeaturePlan(name, "RawFeature", {}, why)
