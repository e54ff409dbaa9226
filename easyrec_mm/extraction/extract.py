"""Extraction: contents of items -> encoders -> stores and files; embedding/writing.py writes the batches.

An encoder runs once for all of its layers; an item is done when the vectors of all of them are written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TextIO

from numpy.typing import NDArray

from easyrec_mm.embedding.items import Item
from easyrec_mm.embedding.writing import (
    EmbedResult,
    Loaded,
    Refresh,
    Target,
    ToLoad,
    Work,
    Written,
    open_list,
    too_many_bad,
    write_items,
    write_refused,
)
from easyrec_mm.errors import UserError
from easyrec_mm.extraction.contents import CONTENTS, shown_content
from easyrec_mm.extraction.encoders import Encoder, open_encoder
from easyrec_mm.extraction.networks import Kind
from easyrec_mm.extraction.outputs import FileOutput, Output, StoreOutput, Vectors
from easyrec_mm.extraction.plan import Extraction
from easyrec_mm.store.records import NO_CONTENT, content_hash
from easyrec_mm.tasks import Task

_CONTENT_OF: dict[Kind, str] = {"image": "picture", "text": "text", "audio": "sound"}


@dataclass(frozen=True)
class ExtractOptions:
    """How a run extracts.

    bad_items      file for the list of bad items, one JSON line each
    refresh        "new": items that an output lacks; "changed": also items with changed content; "all"
    max_bad_share  share of the items that may have no valid content
    task           the task whose part of the items is encoded, if several divide them
    """

    bad_items: str = "bad_items.jsonl"
    refresh: Refresh = "new"
    max_bad_share: float = 0.1
    task: Task | None = None


class Extracted(NamedTuple):
    """The vectors of a layer: where they are, what they are of, their width, and numbers of items; see EmbedResult."""

    place: str
    kind: Kind
    layer: str
    width: int
    result: EmbedResult


# Writes the vectors of items to the targets of some layers: encoder, extraction, items, layers, targets, list.
Write = Callable[[Encoder, Extraction, Sequence[Item], Sequence[int], Sequence[Target], TextIO], Written]


def extract(
    plan: Sequence[Extraction],
    options: ExtractOptions,
    tell: Callable[[str], None],
    write: Write | None = None,
) -> list[Extracted]:
    """Write the vectors of all extractions of a plan; return what was written for each layer of each.

    Args:
      plan: the extractions.
      options: how they run.
      tell: takes a line about records that are left out.
      write: writes the vectors of items; by default in this process.

    Raises:
      UserError: if an encoder, an input or an output cannot be used, or too many items have no valid content.
    """
    encoders = [open_encoder(extraction) for extraction in plan]
    _require_own_places(plan, encoders)

    def write_here(
        encoder: Encoder,
        extraction: Extraction,
        items: Sequence[Item],
        layers: Sequence[int],
        targets: Sequence[Target],
        bad_list: TextIO,
    ) -> Written:
        return write_part(encoder, extraction, items, layers, targets, bad_list, options.refresh)

    results = []
    with open_list(options.bad_items, (), "--bad_items") as bad_list:
        for extraction, encoder in zip(plan, encoders, strict=True):
            items, refused = CONTENTS[encoder.kind].items(extraction)
            if options.task is not None:
                refused = [refused[i] for i in options.task.part_of(len(refused))]
            if refused:
                tell(f"{len(refused)} records are left out (listed in {options.bad_items}). The first: {refused[0]}")
                write_refused(bad_list, refused)
            results += _extract_one(extraction, encoder, items, options, bad_list, write or write_here)
    return results


def write_part(
    encoder: Encoder,
    extraction: Extraction,
    items: Sequence[Item],
    layers: Sequence[int],
    targets: Sequence[Target],
    bad_list: TextIO,
    refresh: Refresh,
) -> Written:
    """Write the vectors of items to generations.

    Args:
      encoder: the encoder.
      extraction: where the contents of the items are.
      items: the items.
      layers: the places, among the layers of the encoder, of those that are written,
      targets: and where each of them is written.
      bad_list: file to which bad contents are written.
      refresh: see ExtractOptions.

    Raises:
      StoreError: if a store cannot be written.
    """

    def compute(loaded: Loaded) -> list[NDArray[Any]]:
        vectors = encoder(loaded.inputs)
        return [vectors[layer] for layer in layers]

    loader = _Loader(encoder, extraction, refresh)
    batch_size = extraction.batch_size or encoder.batch_size
    work = Work("extract", loader.load, compute, batch_size, refresh, encoder.kind)
    return write_items(work, items, targets, bad_list)


def _extract_one(
    extraction: Extraction,
    encoder: Encoder,
    items: Sequence[Item],
    options: ExtractOptions,
    bad_list: TextIO,
    write: Write,
) -> list[Extracted]:
    task = options.task
    own = [items[i] for i in task.part_of(len(items))] if task else items
    outputs: list[Output] = []
    try:
        for layer in encoder.layers:
            place = extraction.place(layer)
            vectors = Vectors(extraction.encoder_name, encoder.origin(layer), extraction.dtype, items, task)
            is_store = bool(extraction.store)
            outputs.append(StoreOutput(place, vectors) if is_store else FileOutput(place, vectors, options.refresh))
        open_outputs = [(i, o.target) for i, o in enumerate(outputs) if o.target is not None]
        written = Written(EmbedResult(0, len(own), 0, 0, 0.0), "")
        if open_outputs:
            layers, targets = zip(*open_outputs, strict=True)
            written = write(encoder, extraction, own, layers, targets, bad_list)
            _require_valid(written, encoder.kind, outputs, options)
        waits_for = [output.finish() for output in outputs]
    finally:
        for output in outputs:
            output.close()
    results = []
    for i, output in enumerate(outputs):
        number = output.target.generation.number if output.target is not None else 0
        result = replace(written.result, generation=number, waits_for=waits_for[i])
        results.append(Extracted(output.place, encoder.kind, encoder.layers[i], encoder.widths[i], result))
    return results


def _require_valid(written: Written, kind: Kind, outputs: Sequence[Output], options: ExtractOptions) -> None:
    if share := too_many_bad(written.result, options.max_bad_share):
        places = ", ".join(output.place for output in outputs)
        where = "--text_column" if kind == "text" else "--image_root"
        raise UserError(
            f"{share} have no valid {_CONTENT_OF[kind]}, more than --max_bad_share ({options.max_bad_share}); "
            f"{places}: not finished. Check {where} and the list {options.bad_items}. The first: {written.first_bad}"
        )


def _require_own_places(plan: Sequence[Extraction], encoders: Sequence[Encoder]) -> None:
    """Check that no two layers go to one place: vectors of two origins are never mixed."""
    taken: dict[str, str] = {}
    for extraction, encoder in zip(plan, encoders, strict=True):
        for layer in encoder.layers:
            place, name = extraction.place(layer), f"'{layer}' of {extraction.encoder}"
            if place in taken:
                raise UserError(
                    f"{place}: is the place of {taken[place]} and of {name}; write {{layer}} or {{name}} into "
                    f"{'--store' if extraction.store else '--output'}, which stand for these"
                )
            taken[place] = name


class _Loader:
    """Reads the contents of batches, and prepares them for the encoder."""

    def __init__(self, encoder: Encoder, extraction: Extraction, refresh: Refresh) -> None:
        self._prepare, self._kind, self._refresh = encoder.prepare, encoder.kind, refresh
        self._read = CONTENTS[encoder.kind].read(extraction)

    def load(self, batch: ToLoad) -> Loaded:
        """Load items, and select the ones to encode by comparison with their stored hashes."""
        items = batch.items
        contents, problems = self._read(items)
        hashes = [
            NO_CONTENT if row in problems or not content else content_hash(content)
            for row, content in enumerate(contents)
        ]
        chosen = [
            row for row in range(len(items)) if self._refresh != "changed" or hashes[row] != batch.stored_hashes[row]
        ]
        readable = [row for row in chosen if row not in problems]
        prepared, refused = self._prepare([contents[row] for row in readable])
        all_problems = {row: problems[row] for row in chosen if row in problems}
        all_problems |= {readable[at]: problem for at, problem in refused.items()}
        good = [row for row in readable if row not in all_problems]
        return Loaded(
            items=[items[row] for row in good],
            hashes=[hashes[row] for row in good],
            inputs=prepared,
            absent=[(items[row], hashes[row]) for row in sorted(all_problems)],
            bad=[
                (items[row], shown_content(items[row], self._kind), all_problems[row]) for row in sorted(all_problems)
            ],
            num_unchanged=batch.num_done + len(items) - len(chosen),
        )
