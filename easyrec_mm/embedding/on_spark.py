"""Embedding on Spark: each of its tasks embeds consecutive items, and writes their vectors to the store.

The generation is begun before the tasks and made current after all of them, here and not on the workers: Spark may run
a task twice, and writes the same vectors then.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from io import StringIO
from typing import NamedTuple

from pyspark.sql import SparkSession

from easyrec_mm.data.bad_records import BadRecord
from easyrec_mm.embedding.embed import EmbedOptions, require_valid, write_vectors
from easyrec_mm.embedding.image_model import ImageModel, Runtime
from easyrec_mm.embedding.items import Item
from easyrec_mm.embedding.writing import EmbedResult, Written, open_list
from easyrec_mm.manifest import Manifest
from easyrec_mm.spark import run_tasks
from easyrec_mm.store import Store, open_store
from easyrec_mm.tasks import Task


class TaskReport(NamedTuple):
    """The result of a task, and its lines for the list of bad pictures."""

    written: Written
    bad_lines: str


@dataclass(frozen=True)
class SparkEmbedding:
    """The settings with which a worker embeds its items; they can be pickled.

    img_model_dir  folder of the exported image model
    runtime        what computes
    store          address of the store, with its password
    options        how pictures are embedded
    num_threads    number of threads of a task
    vector_stores  feature -> URI of the store of its vectors, if it differs from that in the config
    """

    img_model_dir: str
    runtime: Runtime
    store: str = field(repr=False)
    options: EmbedOptions
    num_threads: int
    vector_stores: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __call__(self, items: Sequence[Item]) -> TaskReport:
        """Embed items; this runs on a worker."""
        model = ImageModel(self.img_model_dir, self.runtime, self.num_threads, self.vector_stores)
        with closing(open_store(self.store, writable=True)) as store, StringIO() as bad_list:
            _, written = write_vectors(model, items, store, self.options, bad_list)
            return TaskReport(written, bad_list.getvalue())


def embed_on_spark(
    session: SparkSession,
    embedding: SparkEmbedding,
    manifest: Manifest,
    items: Sequence[Item],
    store: Store,
    refused: Sequence[BadRecord],
    num_tasks: int,
) -> EmbedResult:
    """Embed all items on the workers of Spark, and make their vectors current; see embed.

    Args:
      session: where the workers run.
      embedding: how a worker embeds.
      manifest: that of the image model.
      items: the items, each key once.
      store: the store, open for writing.
      refused: groups that were left out.
      num_tasks: number of tasks.

    Raises:
      DataError: if a worker cannot read the model or write the store.
      UserError: if too many items have no valid picture, or the list of bad pictures cannot be written.
    """
    options, started = embedding.options, time.perf_counter()
    with open_list(options.bad_pictures, refused) as bad_list:
        generation = store.begin(manifest.image_tower_fingerprint, manifest.image_width, options.dtype)
        tasks = (Task(index, num_tasks).part_of(len(items)) for index in range(num_tasks))
        stores = [embedding.store, *embedding.vector_stores.values()]
        parts = [items[own.start : own.stop] for own in tasks]
        reports = run_tasks(session, embedding, parts, stores)
        bad_list.writelines(report.bad_lines for report in reports)
    written = [report.written for report in reports]
    embedded, unchanged, bad = (
        sum(getattr(result, name) for result, _ in written) for name in ("embedded", "unchanged", "bad")
    )
    per_s = (embedded + bad) / (time.perf_counter() - started)
    result = EmbedResult(embedded, unchanged, bad, generation.number, per_s)
    first_bad = next((first for _, first in written if first), "")
    require_valid(Written(result, first_bad), options, store.uri)
    return replace(result, waits_for=store.complete(generation))
