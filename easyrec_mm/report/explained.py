"""What the sections that explain the model share: samples, the vectors of their items, and the rec network.

All of it is made once, when a section first needs it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.data.packed_pictures import own_path
from easyrec_mm.data.picture_reader import picture_reader
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.evaluation.plan import label_column
from easyrec_mm.explain.ablation import most_samples
from easyrec_mm.explain.pictures import ItemPictures, embed_items
from easyrec_mm.explain.rec_part import RecPart
from easyrec_mm.explain.samples import Item, Limits, ReadSamples, explained_plan, read_samples
from easyrec_mm.explain.untrained import NoUntrainedModelError, untrained_model
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.report.extremes import Sample, in_words
from easyrec_mm.report.section import Part, Text
from easyrec_mm.safe_text import printable
from easyrec_mm.schema import Schema, Task

if TYPE_CHECKING:
    from easyrec_mm.report.context import Context

MOST_SAMPLES = 20_000
# Tasks whose predictions are explained one by one, the samples of each ranking, and those chosen at random.
MOST_TASKS = 4
_NUM_EXTREME, _NUM_RANDOM = 2, 4
_NUM_NAMED = 5
_MAX_TEXT = 60
# Names of fields that hold the category of an item, the first ones before the others.
_CATEGORY = [
    re.compile(rf"(^|_)({names})(_?(id|name|code|l?\d+))?$", re.I)
    for names in ("cate|category|categories", "cat|class|genre|department|kind", "brand|shop|seller")
]


@dataclass(frozen=True)
class ChosenSample:
    """A sample whose prediction is explained: why it was chosen, its row in `ReadSamples.asked`, and its label."""

    title: str
    row: int
    label: float


class Explained:
    """Samples and pictures of the evaluation data, and what computes with them.

    Args:
      context: what all sections share.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._run = context.run
        self.model_seconds = 0.0  # of the image towers

    @property
    def model(self) -> MultimodalModel:
        """Return the trained model."""
        return self._run.model

    @property
    def schema(self) -> Schema:
        """Return the schema of its config."""
        return self._run.pipeline.schema

    @property
    def tasks(self) -> list[Task]:
        """Return the tasks whose predictions are explained."""
        return list(self.schema.tasks[:MOST_TASKS])

    @cached_property
    def category_field(self) -> str:
        """The field that says of which kind an item is: that of the image tower, or one of a usual name; "" without."""
        if self.schema.category is not None:
            return self.schema.category.inputs[0]
        names = [
            name
            for name in self.schema.layout.sample_fields
            if name not in self.schema.labels and not name.startswith("user")
        ]
        return next((name for pattern in _CATEGORY for name in names if pattern.search(name)), "")

    @cached_property
    def inputs(self) -> Input:
        """The evaluation data, which are read another time."""
        plan = explained_plan(self._run.pipeline.config, self.schema)
        category = [self.category_field] if self.category_field else []
        fields = dict.fromkeys([*plan.fields, *self.schema.feature_fields(), *category])
        return Input(
            self._run.pipeline.config.data_config,
            self.schema,
            self._context.eval_path,
            self._context.eval_setting,
            BadRecords(None, 1.0),
            kept_fields=tuple(fields),
            vectors=self._run.vectors,
        )

    @cached_property
    def read(self) -> ReadSamples:
        """The samples, and the items of which pictures are shown."""
        plan = explained_plan(self._run.pipeline.config, self.schema)
        limits = Limits(min(MOST_SAMPLES, most_samples(plan, self.schema)), self._context.num_pictures)
        asked = {number for of_task in self._asked.values() for _, number, _ in of_task}
        num_read = len(self._context.evaluated.rows)
        return read_samples(self.inputs, self.schema, plan, limits, self.category_field, asked, num_read)

    @cached_property
    def loader(self) -> PictureLoader:
        """The loader of the items' pictures."""
        data = self._run.pipeline.config.data_config
        return PictureLoader(self.schema.image, picture_reader(data, tars=self.inputs.tars))

    @cached_property
    def untrained(self) -> tuple[MultimodalModel, str] | str:
        """The model before its training, and where its weights come from; or why it cannot be made."""
        try:
            return untrained_model(self._run.pipeline.config, self.schema)
        except NoUntrainedModelError as error:
            return str(error)

    @cached_property
    def pictures(self) -> ItemPictures:
        """The pictures of the items: vectors of the trained model, and, if it can be made, of the untrained one."""
        self._context.require_items()
        models = [self.model]
        if not isinstance(self.untrained, str):
            models.append(self.untrained[0])
        of_items = "pictures" if self.schema.uses_image else "texts"
        self._context.say(f"encoding the {of_items} of {len(self.read.items):,} items, before and after training")
        with self._timed():
            return embed_items(self.read.items, models, self.loader)

    @cached_property
    def rec(self) -> RecPart:
        """The rec network of the model."""
        return RecPart(self.model, self.inputs.spec())

    @property
    def vectors(self) -> np.ndarray | None:
        """Return the trained vectors of the items, float32 `[I, D]`; None for a model without pictures and texts."""
        return self.pictures.vectors[0] if self.schema.has_item_vector else None

    def chosen(self, task: Task) -> list[ChosenSample]:
        """Return the samples of a task whose predictions are explained: extreme ones, and some at random."""
        row_of = {number: row for row, number in enumerate(self.read.asked.number.tolist())}
        return [
            ChosenSample(title, row_of[number], label)
            for title, number, label in self._asked[task.name]
            if number in row_of
        ]

    @cached_property
    def _asked_outputs(self) -> dict[str, np.ndarray]:
        asked = self.read.asked
        return self.rec.outputs(asked.features, self.vectors, asked.item)

    def class_of(self, task: Task, sample: ChosenSample) -> int:
        """Return the most probable class of a sample, whose logit is explained; 0 for a task without classes."""
        return int(self._asked_outputs[f"y_{task.name}"][sample.row]) if task.activation == "multiclass" else 0

    def notes(self) -> list[Part]:
        """Return what readers should know of the pictures: which are left out, by the limit or because they are bad."""
        parts: list[Part] = []
        read, pictures = self.read, self.pictures
        if len(read.items) < read.num_items:
            text = (
                f"Of {read.num_items:,} items, {len(read.items):,} are shown: a choice by hash. --num_pictures sets it."
            )
            parts.append(Text(text, "note"))
        if pictures.problems:
            named = [
                f"{picture_name(path)} ({problem})" for path, problem in list(pictures.problems.items())[:_NUM_NAMED]
            ]
            more = f", and {len(pictures.problems) - _NUM_NAMED:,} more" if len(pictures.problems) > _NUM_NAMED else ""
            text = (
                f"{len(pictures.problems):,} of {pictures.num_pictures:,} pictures cannot be loaded and are left out: "
            )
            parts.append(Text(f"{text}{', '.join(named)}{more}.", "warning"))
        return parts

    def name_of(self, item: Item) -> str:
        """Return the name of an item for readers: the path of its first picture, and its text."""
        texts = [short_text(item.text)] if item.text else []
        paths = [picture_name(path) for path in item.paths[:1]]
        return ", ".join([*paths, *texts]) or ("no picture" if self.schema.uses_image else "no text")

    @cached_property
    def _asked(self) -> dict[str, list[tuple[str, int, float]]]:
        """For each task the samples to explain: why it was chosen, its number and its label."""
        evaluated = self._context.evaluated
        at_random = evaluated.choose(_NUM_RANDOM).tolist()
        asked = {}
        for task in self.tasks:
            of_task = [
                (ranking.title, sample.number, sample.label)
                for ranking in evaluated.rankings[task.name]
                for sample in _of_different_pictures(in_words(ranking.samples))
            ]
            labels = evaluated.rows.column(label_column(task))
            asked[task.name] = [*of_task, *[("at random", number, float(labels[number])) for number in at_random]]
        return asked

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Count the seconds of the context as those of models."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.model_seconds += time.perf_counter() - started


def _of_different_pictures(samples: Sequence[Sample]) -> list[Sample]:
    """Return the first samples of a ranking, of different pictures where there are enough of them."""
    first: dict[bytes | None, Sample] = {}
    for sample in samples:
        first.setdefault(sample.picture, sample)
    others = [sample for sample in samples if all(sample is not other for other in first.values())]
    return [*first.values(), *others][:_NUM_EXTREME]


def short_text(text: str) -> str:
    """Return the text of an item for readers, without its end if it is long."""
    shown = printable(text)
    return f"\u201c{shown if len(shown) <= _MAX_TEXT else f'{shown[:_MAX_TEXT]}...'}\u201d"


def picture_name(path: bytes) -> str:
    """Return the path of a picture for readers, without that of the tar that contains it."""
    return own_path(path).decode("utf-8", "replace")
