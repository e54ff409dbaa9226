"""One pass of a model over the evaluation data, and all of it that the sections of the report use.

The results are those of `easyrec-mm eval`: the same plan, rows and formulas.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.batch import InputBatch
from easyrec_mm.data.input import Input
from easyrec_mm.errors import DataError
from easyrec_mm.evaluation.evaluator import (
    as_arrays,
    eval_plan,
    evaluation_input,
    is_enough,
    memory_of,
    outputs_of,
    plan_columns,
    prediction_batches,
)
from easyrec_mm.evaluation.plan import EvalPlan, label_column, score_column
from easyrec_mm.evaluation.rows import Rows
from easyrec_mm.evaluation.summary import CLUSTER, EvalResults, Summary, results_of, summarize
from easyrec_mm.evaluation.views import View
from easyrec_mm.report.extremes import Ranking, Sample, rankings_of, score_of
from easyrec_mm.report.run import Run
from easyrec_mm.report.section import Unavailable
from easyrec_mm.schema import Schema, Task

# Columns of Rows beside those of the plan: index of the file, row of the group, index of the sample's first picture.
FILE, ROW, PICTURE = "origin:file", "origin:row", "origin:picture"
NO_PICTURE = -1
Indices = NDArray[np.int64]


@dataclass
class Evaluated:
    """A model's outputs on all evaluation data.

    rows         labels, scores and the columns above of each sample, in the order of the files
    plan         what the evaluation of the config computes
    summary      metrics with their replicates
    results      metrics as `easyrec-mm eval` reports them
    inputs       the data, which may be read again
    pictures     the distinct pictures, in the form that picture readers take; PICTURE of the rows is an index of them
    num_groups   number of groups
    rankings     name of a task -> its best and worst samples
    bad_records  what could not be read
    seconds      seconds of the pass: loading the model, reading, and computing the outputs
    """

    rows: Rows
    plan: EvalPlan
    summary: Summary
    results: EvalResults
    inputs: Input
    pictures: list[bytes]
    num_groups: int
    rankings: dict[str, list[Ranking]]
    bad_records: BadRecords
    seconds: float

    @property
    def files(self) -> list[str]:
        """Return the files of the evaluation data; FILE of the rows is an index of them."""
        return self.inputs.source.files

    def view(self, task: Task) -> View:
        """Return the rows of a task that is not one of classes, without bootstrap replicates.

        Raises:
          Unavailable: if its task is one of classes.
        """
        if task.activation == "multiclass":
            raise Unavailable(
                f"'{task.name}' predicts one of {task.num_class} classes: this needs one score per sample."
            )
        return View(self.rows, label_column(task), score_column(task), CLUSTER)

    def choose(self, num: int, seed: int = 0) -> Indices:
        """Return the numbers of up to `num` samples, ascending: a random choice, which is the same each time."""
        total = len(self.rows)
        return np.sort(np.random.default_rng(seed).choice(total, min(num, total), replace=False)).astype(np.int64)

    def items_of(self, samples: Indices) -> Iterator[tuple[InputBatch, Indices, Indices]]:
        """Read the data again, and yield each batch with some of the samples.

        Args:
          samples: numbers of samples, ascending.

        Yields:
          The batch, the indices of the samples within it, and their numbers.
        """
        first = 0
        for item in self.inputs.batches():
            last = first + item.batch.num_samples
            here = samples[np.searchsorted(samples, first) : np.searchsorted(samples, last)]
            if len(here):
                yield item, here - first, here
            first = last
            if not len(samples) or first > samples[-1]:
                return


def evaluate(run: Run, pipeline: Pipeline, path: str, setting: str) -> Evaluated:
    """Evaluate the model of a run on files, with intervals.

    Args:
      run: the training.
      pipeline: its config, perhaps with other metrics and slices.
      path: the files.
      setting: name of the setting of `path`, for messages.

    Raises:
      DataError: if the files cannot be read, or have no samples.
    """
    started = time.perf_counter()
    config, schema = pipeline.config, pipeline.schema
    plan = eval_plan(config, schema, confidence=True)
    # What cannot be read is shown on the page, however much it is: a page without metrics would help nobody. The lists
    # in model_dir are those of the training and of `eval`.
    bad_records = BadRecords(None, 1.0)
    shown_fields = _shown_fields(schema)
    inputs = evaluation_input(run.model, config, plan, path, setting, bad_records, run.vectors, shown_fields)
    collected = _Collected(plan, schema, inputs, plan_fields=plan.fields)
    rows = Rows(memory_of(config))
    batches = prediction_batches(run.model, inputs)
    for item, outputs in outputs_of(run.model, batches, inputs.spec(), "evaluate"):
        rows.append(collected.columns(item, outputs))
        if is_enough(config, len(rows)):
            break
    seconds = time.perf_counter() - started
    if not len(rows):
        raise DataError(f"{setting} {path}: has no samples to evaluate; give other files")
    summary = summarize(rows, plan.entries, list(plan.slicers.values()), plan.weights)
    results = results_of(summary, plan.weights.num_replicates, plan.bootstrap.level, plan.clusters)
    return Evaluated(
        rows, plan, summary, results, inputs, collected.pictures, collected.num_groups, collected.rankings,
        bad_records, seconds,
    )  # fmt: skip


def _shown_fields(schema: Schema) -> tuple[str, ...]:
    """Return the fields whose values the page shows of a sample."""
    names = {*schema.feature_fields(), *schema.image_fields()} - {schema.image.field, schema.group_size_field}
    return tuple(name for name in schema.layout.sample_fields if name in names)


class _Collected:
    """What is collected while the batches pass by: the columns of each, distinct pictures, and extreme samples."""

    NUM_EXTREMES = 12

    def __init__(self, plan: EvalPlan, schema: Schema, inputs: Input, plan_fields: Sequence[str]) -> None:
        self._plan, self._inputs, self._plan_fields = plan, inputs, plan_fields
        self._shown_fields = _shown_fields(schema)
        self.pictures: list[bytes] = []
        self._number_of_picture: dict[bytes, int] = {}
        self.rankings = {task.name: rankings_of(task) for task in schema.tasks}
        self.num_groups = 0
        self._num_samples = 0

    def columns(self, item: InputBatch, outputs: dict[str, tf.Tensor]) -> dict[str, NDArray[np.generic]]:
        """Return the columns of a batch."""
        batch, fields = item.batch, {name: item.kept_fields[name] for name in self._plan_fields}
        columns = plan_columns(self._plan, batch, fields, outputs)
        file, row, size = item.origin.numpy()
        picture = np.full(batch.num_samples, NO_PICTURE, np.int32)
        if self._plan.uses_image:
            picture = self._picture_of_image(item)[batch.sample_image.numpy()]
        origin = {FILE: np.repeat(file, size).astype(np.int32), ROW: np.repeat(row, size), PICTURE: picture}
        labels = as_arrays(batch.labels)
        for task in self._plan.tasks:
            scores = score_of(task, labels[task.label], outputs[task.score_name].numpy())
            describe = partial(self._samples, item, labels[task.label], scores, origin)
            for ranking in self.rankings[task.name]:
                ranking.add(labels[task.label], scores, describe, self.NUM_EXTREMES)
        self.num_groups += len(size)
        self._num_samples += batch.num_samples
        return {**columns, **origin}

    def _picture_of_image(self, item: InputBatch) -> NDArray[np.int32]:
        """Return the index of the first picture of each image of a batch, int32 `[U]`."""
        images = item.batch.images
        result = np.full(item.batch.num_images, NO_PICTURE, np.int32)
        numbers = np.array([self._number(path) for path in item.picture_path], np.int32)
        image, first = np.unique(images.link_image.numpy(), return_index=True)
        result[image] = numbers[images.link_picture.numpy()[first]]
        return result

    def _number(self, path: bytes) -> int:
        """Return the index of a picture, which is the next one if it is new."""
        if not path:
            return NO_PICTURE
        number = self._number_of_picture.setdefault(path, len(self.pictures))
        if number == len(self.pictures):
            self.pictures.append(path)
        return number

    def _samples(
        self,
        item: InputBatch,
        labels: NDArray[np.float32],
        scores: NDArray[np.float64],
        origin: dict[str, NDArray[np.generic]],
        places: Indices,
    ) -> list[Sample]:
        """Return the samples at some places of a batch."""
        values = {name: tf.gather(item.kept_fields[name], places).numpy() for name in self._shown_fields}
        samples = []
        for i, place in enumerate(places.tolist()):
            picture = int(origin[PICTURE][place])
            samples.append(
                Sample(
                    number=self._num_samples + place,
                    label=float(labels[place]),
                    score=float(scores[place]),
                    file=self._inputs.source.files[int(origin[FILE][place])],
                    row=int(origin[ROW][place]),
                    picture=None if picture == NO_PICTURE else self.pictures[picture],
                    fields={name: _text(of_field[i]) for name, of_field in values.items()},
                )
            )
        return samples


def _text(value: bytes | float) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else f"{value:g}"
