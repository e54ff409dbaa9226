"""Extraction on Spark: each of its tasks encodes consecutive items, and writes their vectors to the stores.

The generations are begun before the tasks and made current after all of them, here and not on the workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from io import StringIO
from typing import NamedTuple, TextIO

from pyspark.sql import SparkSession

from easyrec_mm.embedding.items import Item
from easyrec_mm.embedding.writing import EmbedResult, Refresh, Target, Written
from easyrec_mm.errors import UserError
from easyrec_mm.extraction.encoders import Encoder, open_encoder
from easyrec_mm.extraction.extract import Extracted, ExtractOptions, extract, write_part
from easyrec_mm.extraction.plan import Extraction
from easyrec_mm.spark import run_tasks
from easyrec_mm.store import Generation, open_store
from easyrec_mm.tasks import Task


class TaskReport(NamedTuple):
    """The result of a task, and its lines for the list of bad items."""

    written: Written
    bad_lines: str


@dataclass(frozen=True)
class SparkExtraction:
    """The settings with which a worker encodes its items; they can be pickled.

    extraction   the encoder and where the contents are
    layers       the places of the layers that are written, among those of the encoder
    stores       addresses of their stores, with passwords
    generations  the generations that are written
    refresh      see ExtractOptions
    num_threads  number of threads of a task
    """

    extraction: Extraction = field(repr=False)
    layers: Sequence[int]
    stores: Sequence[str] = field(repr=False)
    generations: Sequence[Generation]
    refresh: Refresh
    num_threads: int

    def __call__(self, items: Sequence[Item]) -> TaskReport:
        """Encode items; this runs on a worker."""
        encoder = open_encoder(self.extraction, self.num_threads)
        with ExitStack() as stack, StringIO() as bad_list:
            stores = [stack.enter_context(closing(open_store(uri, writable=True))) for uri in self.stores]
            targets = [Target(*pair) for pair in zip(stores, self.generations, strict=True)]
            written = write_part(encoder, self.extraction, items, self.layers, targets, bad_list, self.refresh)
            return TaskReport(written, bad_list.getvalue())


def extract_on_spark(
    session: SparkSession,
    plan: Sequence[Extraction],
    options: ExtractOptions,
    num_tasks: int,
    tell: Callable[[str], None],
) -> list[Extracted]:
    """Extract on the workers of Spark; see extract.

    Args:
      session: where the workers run.
      plan: the extractions; they write to stores.
      options: how they run.
      num_tasks: number of tasks; 0 for as many as Spark runs at a time.
      tell: see extract.

    Raises:
      DataError: if a worker cannot read the encoder or write a store.
      UserError: see extract; or if files are to be written.
    """
    for extraction in plan:
        if extraction.output:
            raise UserError(f"--output {extraction.output}: workers of Spark write to a store; give --store")
    context = session.sparkContext
    num_threads = int(context.getConf().get("spark.task.cpus") or 1)

    def write(
        encoder: Encoder,
        extraction: Extraction,
        items: Sequence[Item],
        layers: Sequence[int],
        targets: Sequence[Target],
        bad_list: TextIO,
    ) -> Written:
        stores = [extraction.place(encoder.layers[layer]) for layer in layers]
        generations = [target.generation for target in targets]
        work = SparkExtraction(extraction, layers, stores, generations, options.refresh, num_threads)
        return _write(session, work, items, num_tasks or context.defaultParallelism, bad_list)

    return extract(plan, options, tell, write)


def _write(
    session: SparkSession, work: SparkExtraction, items: Sequence[Item], num_tasks: int, bad_list: TextIO
) -> Written:
    """Divide items among tasks; return their common result."""
    started = time.perf_counter()
    tasks = (Task(index, num_tasks).part_of(len(items)) for index in range(num_tasks))
    reports = run_tasks(session, work, [items[own.start : own.stop] for own in tasks], list(work.stores))
    bad_list.writelines(report.bad_lines for report in reports)
    results = [report.written for report in reports]
    embedded, unchanged, bad = (
        sum(getattr(result, name) for result, _ in results) for name in ("embedded", "unchanged", "bad")
    )
    per_s = (embedded + bad) / (time.perf_counter() - started)
    result = EmbedResult(embedded, unchanged, bad, work.generations[0].number, per_s)
    return Written(result, next((first for _, first in results if first), ""))
