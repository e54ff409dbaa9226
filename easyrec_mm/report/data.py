"""What the report is about: data, tasks, features and the config, and how the configs of other trainings differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from google.protobuf import text_format

from easyrec_mm.config.changes import changes_since, leave_out_secrets, record_of
from easyrec_mm.errors import UserError
from easyrec_mm.evaluation.plan import label_column
from easyrec_mm.files.folders import shown
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.report.context import Context
from easyrec_mm.report.evaluated import PICTURE
from easyrec_mm.report.run import Run
from easyrec_mm.report.section import Cell, Code, Details, Heading, Part, Table, Text, Unavailable


def data(context: Context) -> Sequence[Part]:
    """Return tables of data, tasks and features, and the config."""
    run = context.run
    parts: list[Part] = [_runs(context), *_evaluated(context), Heading("Tasks"), _tasks(context)]
    parts += [Heading("Features"), _features(context)]
    for other in context.runs[1:]:
        parts += [Heading(f"Settings of {run.name} that differ from {other.name}"), _differences(run, other)]
    return [*parts, Details("pipeline.config", [Code(_text(run.pipeline.config))])]


def _runs(context: Context) -> Part:
    rows = []
    for run in context.runs:
        config = run.pipeline.config
        train = [line for line in run.lines if line["kind"] == "train"]
        epochs = f"{train[-1]['epoch'] + 1:,}" if train and "epoch" in train[-1] else ""
        groups = train[-1].get("groups") if train else None
        rows.append(
            [
                Cell(run.name), Cell(shown(run.path), None, "code"), Cell(f"{run.step:,}", run.step, "number"),
                Cell(epochs, None, "number"), Cell(f"{groups:,}" if groups else "", groups, "number"),
                Cell(shown(config.train_input_path), None, "code"), Cell(shown(config.eval_input_path), None, "code"),
            ]
        )  # fmt: skip
    columns = ["training", "model_dir", "step", "epochs begun", "groups read", "train_input_path", "eval_input_path"]
    return Table(columns, rows)


def _evaluated(context: Context) -> list[Part]:
    """Return what the evaluation data hold."""
    try:
        evaluated = context.evaluated
    except (Unavailable, UserError) as error:
        return [Text(str(error), "note")]
    num = len(evaluated.rows)
    text = (
        f"Evaluated: {len(evaluated.files):,} file(s) of {context.eval_path}, {evaluated.num_groups:,} groups, {num:,} "
        f"samples ({num / max(evaluated.num_groups, 1):.3g} a group)"
    )
    if context.schema.uses_image:
        without = int((evaluated.rows.column(PICTURE) < 0).sum())
        text += f", {len(evaluated.pictures):,} pictures; {without / num:.2%} of the samples have none"
    parts: list[Part] = [Text(f"{shown(text)}.")]
    others = {run.pipeline.config.train_input_path for run in context.runs}
    if len(others) > 1:
        text = "The trainings have read different data: differences are not due to the models alone."
        parts.append(Text(text, "warning"))
    return parts


def _tasks(context: Context) -> Part:
    losses = context.run.pipeline.config.model_config.e2e_mm_dbmtl.task_towers
    try:
        rows_of_data = context.evaluated.rows
    except (Unavailable, UserError):
        rows_of_data = None
    rows = []
    for task, tower in zip(context.schema.tasks, losses, strict=True):
        mean = ""
        if rows_of_data is not None:
            mean = f"{float(np.mean(rows_of_data.column(label_column(task)), dtype=np.float64)):.4g}"
        rows.append([Cell(task.name), Cell(task.label), Cell(task.activation), Cell(f"{tower.weight:g}"), Cell(mean)])
    return Table(["task", "label", "output", "weight of its loss", "mean label"], rows)


def _features(context: Context) -> Part:
    schema = context.schema
    tables = {table.name: table for table in schema.tables}
    rows = []
    for feature in dict.fromkeys([*schema.features, *schema.image_features]):
        table = tables.get(feature.table or "")
        size = Cell(f"{table.rows:,}", table.rows, "number") if table else Cell("", None)
        rows.append(
            [Cell(feature.name), Cell(type(feature).__name__), Cell(", ".join(feature.inputs)), size,
             Cell(f"{feature.width:,}", feature.width, "number")]
        )  # fmt: skip
    if schema.text is not None:
        fields = Cell(", ".join(schema.text.inputs))
        rows.append([Cell(schema.text.name), Cell("text"), fields, Cell("", None), Cell("", None)])
    if schema.uses_image:
        image = schema.image
        pixels = Cell(f"{image.width} x {image.height} pixels")
        rows.append([Cell(image.field), Cell("image"), Cell(image.field), Cell("", None), pixels])
    return Table(["feature", "type", "fields", "rows of its table", "width"], rows)


def _differences(run: Run, other: Run) -> Part:
    changes = changes_since(record_of(other.pipeline.config), run.pipeline.config)
    rows = [
        [Cell(c.place, None, "code"), Cell(c.now or "not set", None, "code"), Cell(c.before or "not set", None, "code")]
        for c in changes
        if c.place != "model_dir"
    ]
    if not rows:
        return Text("None: they differ by chance, or by their data alone.", "note")
    return Table(["setting", run.name, other.name], rows)


def _text(config: EasyRecConfig) -> str:
    written = EasyRecConfig()
    written.CopyFrom(config)
    leave_out_secrets(written)
    return str(text_format.MessageToString(written, as_utf8=True))
