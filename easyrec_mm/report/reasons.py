"""Joint attributions: for some predictions, what picture, ids and numbers add to the logit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from easyrec_mm.explain.ablation import mean_vector
from easyrec_mm.explain.attribution import MAX_ERROR_SHARE, Attributions, Logit, attribute, item_part
from easyrec_mm.explain.path import Baseline, VectorPath, mean_baseline
from easyrec_mm.explain.rec_part import feature_sets
from easyrec_mm.explain.samples import as_text
from easyrec_mm.report.context import Context
from easyrec_mm.report.explained import ChosenSample, Explained
from easyrec_mm.report.figures import QUIET, colour, new_figure
from easyrec_mm.report.section import Cell, Choice, Part, Picture, Pictures, Plot, Table, Text, by_task
from easyrec_mm.schema import Schema, Task

# Parts of the input in a plot; the others are added up.
_MOST_SHOWN = 14
_SIDE = 160
_MAX_TEXT = 60


def reasons(context: Context) -> Sequence[Part]:
    """Return what each part of the input adds to the logits of some samples of each task."""
    explained = context.explained
    samples = explained.read.samples
    baseline = mean_baseline(explained.model, samples.features, len(samples))
    options = {task.name: _of_task(context, explained, task, baseline) for task in explained.tasks}
    picture, means = "", "mean embeddings and mean numbers"
    if context.schema.has_item_vector:
        picture = f"the vector of the {item_part(context.schema)}, "
        kind = "item" if context.schema.text is not None else "image"
        means = f"the mean {kind} vector, {means}"
    about = (
        f"Integrated gradients over {picture}the embeddings of ids and the numbers together: all move at once, on one "
        f"straight line, from a baseline ({means} of {len(samples):,} samples) to the sample. The bars add up from the "
        "logit of the baseline to that of the sample. Lists keep their lengths and weights. A feature that is like the "
        "mean adds nothing, whatever the model makes of it elsewhere."
    )
    parts: list[Part] = [Text(about, "note")]
    if len(explained.tasks) < len(context.schema.tasks):
        parts.append(Text(f"The first {len(explained.tasks)} of {len(context.schema.tasks)} tasks are shown.", "note"))
    return [*parts, *by_task(options)]


def _of_task(context: Context, explained: Explained, task: Task, baseline: Baseline) -> list[Part]:
    chosen = explained.chosen(task)
    if not chosen:
        return [Text("There are no samples.", "note")]
    rows = np.array([sample.row for sample in chosen])
    asked = explained.read.asked
    image = None
    if explained.vectors is not None:
        samples = explained.read.samples
        mean = mean_vector(explained.vectors, samples.item, explained.pictures.has_content)
        image = VectorPath(explained.vectors[asked.item[rows]], mean)
    logit = Logit(task.name, [explained.class_of(task, sample) for sample in chosen])
    result = attribute(explained.model, asked.rows(rows), image, baseline, logit)
    counts: dict[str, int] = {}
    options: dict[str, Sequence[Part]] = {}
    for number, sample in enumerate(chosen):
        counts[sample.title] = counts.get(sample.title, 0) + 1
        options[f"{sample.title} ({counts[sample.title]})"] = _of_sample(context, explained, sample, result, number)
    return [Choice(f"sample of {task.name}", options), _table(result, list(options), task)]


def _of_sample(
    context: Context, explained: Explained, sample: ChosenSample, result: Attributions, number: int
) -> list[Part]:
    asked = explained.read.asked
    parts: list[Part] = []
    item = explained.read.items[int(asked.item[sample.row])] if context.schema.has_item_vector else None
    if item is not None and not context.schema.uses_image:
        parts.append(Text(explained.name_of(item), "note"))
    elif item is not None:
        shown = context.thumbnails(item.paths[:3]) or [Picture(None, problem="no picture")]
        parts.append(Pictures(shown, explained.name_of(item), _SIDE))
    texts = _texts(context.schema, {name: values[sample.row] for name, values in asked.fields.items()})
    parts.append(_plot(result, number, texts, sample))
    error, difference = result.errors[number], abs(result.logits[number] - result.baselines[number])
    share = f" ({error / difference:.2%} of the difference)" if difference > 0 else ""
    steps = result.num_steps[number]
    text = f"The parts add up to the difference of the logits but for {error:.2g}{share}, by {steps} steps."
    if result.is_exact[number]:
        return [*parts, Text(text, "note")]
    return [*parts, Text(f"{text} More than {MAX_ERROR_SHARE:.0%}: take the bars as rough.", "warning")]


def _plot(result: Attributions, number: int, texts: dict[str, str], sample: ChosenSample) -> Plot:
    values = result.values[number]
    order = np.argsort(-np.abs(values))
    shown, others = order[:_MOST_SHOWN], order[_MOST_SHOWN:]
    names = [_label(result.names[part], texts) for part in shown]
    lengths = [float(values[part]) for part in shown]
    if len(others):
        names.append(f"{len(others)} others")
        lengths.append(float(values[others].sum()))
    starts = result.baselines[number] + np.cumsum([0.0, *lengths[:-1]])
    figure = new_figure("logit", "", 110 + 26 * len(names))
    figure.add_bar(
        x=lengths,
        y=names,
        base=starts.tolist(),
        orientation="h",
        marker={"color": [colour(0) if length >= 0 else colour(1) for length in lengths]},
        text=[f"{length:+.3g}" for length in lengths],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{text}<extra></extra>",
        showlegend=False,
    )
    start, end = float(result.baselines[number]), float(result.logits[number])
    for value in (start, end):
        figure.add_vline(value, line={"color": QUIET, "width": 1, "dash": "dot"})
    margin = 0.18 * max(np.ptp([*starts, end]), 1e-6)  # for the figures beside the bars
    figure.update_layout(margin={"r": 44})
    figure.update_xaxes(range=[min(*starts, end) - margin, max(*starts, end) + margin])
    figure.update_yaxes(autorange="reversed", type="category")
    title = f"From {start:.3g}, the logit of the baseline, to {end:.3g}, that of the sample with label {sample.label:g}"
    return Plot(figure, title, "Blue bars raise the logit, orange bars lower it.", wide=True)


def _table(result: Attributions, names: list[str], task: Task) -> Table:
    columns = ["sample", "baseline", "logit", *result.names]
    rows = []
    for number, name in enumerate(names):
        figures = [result.baselines[number], result.logits[number], *result.values[number]]
        rows.append([Cell(name, name, "number"), *[_cell(float(value)) for value in figures]])
    return Table(columns, rows, f"All parts, of the logit of {task.name}")


def _cell(value: float) -> Cell:
    return Cell(f"{value:+.3g}", value, "number")


def _texts(schema: Schema, fields: dict[str, bytes | float]) -> dict[str, str]:
    """Return name of an attributed part -> the values of its fields, as text."""
    inputs = {feature.name: feature.inputs for feature in schema.features}
    texts = {}
    for name, members in feature_sets(schema).items():
        names = dict.fromkeys(field for member in members for field in inputs[member] if field in fields)
        texts[name] = ", ".join(_text(fields[field]) for field in names)
    return texts


def _text(value: bytes | float) -> str:
    text = "".join(character if character.isprintable() else "|" for character in as_text(value))
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."


def _label(name: str, texts: dict[str, str]) -> str:
    """Return the label of a bar: a name, and the values of its fields."""
    return name if not texts.get(name) else f"{name} = {texts[name]}"
