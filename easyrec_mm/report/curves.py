"""Learning curves, and the speed of the training, from the lines of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from easyrec_mm.config.best import criterion_of
from easyrec_mm.config.evaluation import evaluation_metrics
from easyrec_mm.report.context import Context
from easyrec_mm.report.figures import Floats, add_line, means_of_bins, new_figure, thinned
from easyrec_mm.report.run import Run
from easyrec_mm.report.section import Heading, Part, Plot, Text, Unavailable
from easyrec_mm.runs.evaluations import EVAL, METRICS, read_evaluations, standing_of

TRAIN = "train"
# Values of training lines that are no losses.
_RATES = ("samples_per_second", "images_per_second", "encoded_per_second", "input_wait_share", "samples_per_image")
_FEW_POINTS = 40


def learning(context: Context) -> Sequence[Part]:
    """Return the losses of the training, and the metrics of its evaluations, by step."""
    losses = _names(context, TRAIN, lambda name: name == "loss" or name.startswith(("loss_", "image_loss")))
    metrics = _names(context, EVAL, lambda name: "/" not in name and name != "num_samples")
    if not losses and not metrics:
        raise Unavailable(f"{METRICS} of the training has no losses and no evaluations.")
    parts: list[Part] = []
    if losses:
        about = "Mean of the steps between two lines of metrics.jsonl. The pale line is what was measured."
        parts += [Heading("Losses of the training")]
        parts += [_curve(context, TRAIN, name, name, about if name == losses[0] else "", True) for name in losses]
    if metrics:
        parts += [Heading("Metrics of its evaluations"), *_best(context.run)]
        parts += [_curve(context, EVAL, name, name, "", False) for name in metrics]
    else:
        parts.append(Text("The training has not evaluated: its config has no eval_input_path.", "note"))
    return parts


def speed(context: Context) -> Sequence[Part]:
    """Return the throughput of the training and the share of its time that it waited for input."""
    names = _names(context, TRAIN, lambda name: name in _RATES and name != "samples_per_image")
    others = _names(context, TRAIN, lambda name: name in ("tflops_per_second", "gpu_memory_gib", "memory_gib"))
    if not names:
        raise Unavailable(f"{METRICS} of the training has no speeds.")
    titles = {
        "samples_per_second": ("Samples per second", "Samples trained per second, of all workers together."),
        "images_per_second": ("Images per second", "Distinct images of the batches per second."),
        "encoded_per_second": ("Encoded pictures per second", "Pictures that went through the image tower."),
        "input_wait_share": (
            "Share of time waiting for input",
            "Above a few percent, reading and decoding limit the training; see docs/scaling.md.",
        ),
    }
    parts: list[Part] = []
    for name in [*names, *others]:
        title, about = titles.get(name, (name, ""))
        if any(_series(run, TRAIN, name)[1].any() for run in context.runs):
            parts.append(_curve(context, TRAIN, name, title, about, True))
    return parts


def _names(context: Context, kind: str, is_meant: Callable[[str], bool]) -> list[str]:
    """Return the names of numbers in the lines of a kind, of all runs, in their order."""
    names = {
        name: None
        for run in context.runs
        for line in run.lines
        if line["kind"] == kind
        for name, value in line.items()
        if name not in ("kind", "step", "time") and type(value) in (int, float) and is_meant(name)
    }
    return list(names)


def _series(run: Run, kind: str, name: str) -> tuple[Floats, Floats]:
    """Return the steps and values of a name, in the order of the steps; of several at a step the last."""
    values = {
        int(line["step"]): float(line[name])
        for line in run.lines
        if line["kind"] == kind and type(line.get(name)) in (int, float)
    }
    steps = sorted(values)
    return np.array(steps, np.float64), np.array([values[step] for step in steps], np.float64)


def _curve(context: Context, kind: str, name: str, title: str, about: str, smooths: bool) -> Plot:
    figure = new_figure("step", "", 300)
    for number, run in enumerate(context.runs):
        # Values of training lines scatter; each evaluation is a result of its own.
        thin = means_of_bins if kind == TRAIN else thinned
        steps, values = thin(*_series(run, kind, name))
        mode = "lines+markers" if len(steps) <= _FEW_POINTS and not smooths else "lines"
        add_line(figure, steps, values, run.name, number, mode=mode, meta={"smooth": smooths})
    figure.update_layout(showlegend=len(context.runs) > 1)
    if name == "input_wait_share":
        figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return Plot(figure, title, about, smooths)


def _best(run: Run) -> list[Part]:
    """Return a sentence on the best evaluation, if the config says what is best."""
    config, schema = run.pipeline.config, run.pipeline.schema
    criterion = criterion_of(config, evaluation_metrics(config, schema))
    if criterion is None:
        return []
    standing = standing_of(read_evaluations(run.folder.local / METRICS, criterion.metric), criterion)
    if standing.best is None:
        return []
    text = f"Best by {criterion.metric}: {standing.best.value:.6g} at step {standing.best.step:,}"
    since = f", not improved in the {standing.num_since} evaluation(s) since" if standing.num_since else ""
    return [Text(f"{text}{since}. The report shows step {run.step:,}.", "note")]
