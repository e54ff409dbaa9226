"""The best and the worst predictions, with their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from easyrec_mm.report.context import Context, short_place
from easyrec_mm.report.explained import picture_name, short_text
from easyrec_mm.report.extremes import Ranking, Sample, in_words
from easyrec_mm.report.section import Cell, Details, Heading, Part, Picture, Pictures, Table, Text, by_task
from easyrec_mm.schema import Task

_NO_PICTURE = Picture(None, problem="no picture")


def examples(context: Context) -> Sequence[Part]:
    """Return the best and the worst predictions of each task."""
    evaluated = context.evaluated
    options = {
        task.name: [part for ranking in evaluated.rankings[task.name] for part in _of_ranking(context, task, ranking)]
        for task in evaluated.plan.tasks
    }
    about = (
        "A few extreme samples of the whole evaluation data. Labels that seem wrong here are often wrong in the data; "
        "pictures that cannot be read are shown with the reason."
    )
    return [Text(about, "note"), *by_task(options)]


def _of_ranking(context: Context, task: Task, ranking: Ranking) -> list[Part]:
    samples = in_words(ranking.samples)
    if not samples:
        return []
    parts: list[Part] = [Heading(ranking.title)]
    if context.schema.uses_image:
        parts.append(Pictures(_pictures(context, samples)))
    table = _table(context, task, samples)
    return [*parts, Details("their values", [table]) if context.schema.uses_image else table]


def _pictures(context: Context, samples: Sequence[Sample]) -> list[Picture]:
    thumbnails = iter(context.thumbnails([sample.picture for sample in samples if sample.picture is not None]))
    return [
        replace(
            _NO_PICTURE if sample.picture is None else next(thumbnails),
            lines=(
                f"{sample.score:.4g}, label {sample.label:g}",
                picture_name(sample.picture or b""),
                *_text_of(context, sample),
                short_place(sample.file, sample.row),
            ),
        )
        for sample in samples
    ]


def _text_of(context: Context, sample: Sample) -> list[str]:
    """Return the text of a sample's item, if the model takes one."""
    text = context.schema.text
    return [] if text is None else [short_text(" ".join(sample.fields[name] for name in text.inputs))]


def _table(context: Context, task: Task, samples: Sequence[Sample]) -> Table:
    fields = list(samples[0].fields)
    has_picture = context.schema.uses_image
    columns = ["prediction", task.label, *fields, *(["picture"] if has_picture else []), "file and row of the group"]
    rows = []
    for sample in samples:
        row = [Cell(f"{sample.score:.4g}", sample.score, "number"), Cell(f"{sample.label:g}", sample.label, "number")]
        row += [Cell(value, value) for value in sample.fields.values()]
        if has_picture:
            row.append(Cell(picture_name(sample.picture or b"")))
        rows.append([*row, Cell(f"{sample.file}:{sample.row}", sample.row, "code")])
    return Table(columns, rows)
