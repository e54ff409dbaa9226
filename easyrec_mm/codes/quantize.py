"""Gives codes to the vectors of a store (`easyrec-mm quantize`): keeps or makes codebooks, then codes item by item.

Nothing that is half done becomes current: new codebooks do when all are written, and codes of new codebooks when all
items have theirs. A run that was killed goes on where it stopped when it is started again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.codes.codebooks import Codebooks, Codes, Floats, read_codebooks, write_codebooks
from easyrec_mm.codes.fitting import Sample, fit
from easyrec_mm.codes.renaming import renamed
from easyrec_mm.codes.report import Changes, Report, Variance, collisions
from easyrec_mm.codes.table import CodesTable, codes_table, require_table_name
from easyrec_mm.errors import StoreError
from easyrec_mm.store import Generation, Record, Store, open_store
from easyrec_mm.store.base import records_of
from easyrec_mm.store.codes import MAX_CODES, MAX_LEVELS, Shape, codebooks_uri, codes_uri, parse_origin
from easyrec_mm.store.generations import require_generation

DEFAULT_SHAPE = Shape(4, 256)
RECORDS_AT_A_TIME = 5_000


@dataclass(frozen=True)
class QuantizeOptions:
    """What to do.

    shape   levels and codes; None for those of the codebooks that exist, or DEFAULT_SHAPE
    refit   whether to make new codebooks where some exist
    seed    of new codebooks
    sample  most vectors of which codebooks are made
    output  file of the codes, .parquet or .csv; "" for none
    """

    shape: Shape | None = None
    refit: bool = False
    seed: int = 0
    sample: int = 1 << 18
    output: str = ""


class Stores(NamedTuple):
    """The stores of vectors, codebooks and codes."""

    vectors: Store
    codebooks: Store
    codes: Store


class Portion(NamedTuple):
    """Some records: those with a vector, their vectors `[N, D]`, and those that are marked absent."""

    records: list[Record]
    vectors: Floats
    absent: list[Record]


@dataclass
class _Totals:
    """What is counted over all portions."""

    variance: Variance
    codes: list[NDArray[np.uint16]] = field(default_factory=list)
    num_absent: int = 0
    num_written: int = 0
    num_compared: int = 0
    num_changed: int = 0
    num_changed_first: int = 0


def parse_shape(text: str) -> Shape:
    """Return the shape that a text names, as in 4x256.

    Raises:
      ValueError: if it is not such a text.
    """
    levels, _, codes = text.partition("x")
    if levels.isdecimal() and codes.isdecimal():
        shape = Shape(int(levels), int(codes))
        if 1 <= shape.levels <= MAX_LEVELS and 1 <= shape.codes <= MAX_CODES:
            return shape
    limits = f"1 to {MAX_LEVELS} levels of 1 to {MAX_CODES} codes"
    raise ValueError(f"{text!r} is not a number of levels and one of codes, as in 4x256: {limits}")


def quantize(uri: str, options: QuantizeOptions) -> Report:
    """Give codes to all current vectors of a store, and make them current beside it.

    Raises:
      StoreError: if a store cannot be used, holds no vectors, or codebooks that are not for these vectors.
      UserError: if the output cannot be written.
    """
    if options.output:
        require_table_name(options.output)
    with ExitStack() as stack:
        source = open_store(uri)
        stack.callback(source.close)
        generation = require_generation(source.meta(), None, source.uri)
        if parse_origin(generation.fingerprint) is not None:
            raise StoreError(f"--store {source.uri}: holds codes, not vectors; give the store that they are beside")
        source.keep(generation)
        opened = []
        for beside in (codebooks_uri(uri), codes_uri(uri)):
            opened.append(open_store(beside, writable=True))
            stack.callback(opened[-1].close)
        stores = Stores(source, *opened)
        codebooks, num_fitted = _codebooks(stores, generation, options)
        table = stack.enter_context(codes_table(options.output, codebooks.shape)) if options.output else None
        return _assign_all(stores, generation, codebooks, num_fitted, table)


def _codebooks(stores: Stores, generation: Generation, options: QuantizeOptions) -> tuple[Codebooks, int]:
    """Return the codebooks to use, and of how many vectors they have just been made, 0 for those that are kept."""
    existing = _existing(stores.codebooks, options.refit)
    if existing is not None and not options.refit:
        _require_fitting(existing, generation, options, stores.codebooks.uri)
        return existing, 0
    coded = _shape_of(stores.codes)  # which are there, too, where codebooks are damaged
    shape = options.shape or (existing.shape if existing else coded) or DEFAULT_SHAPE
    before = _codes_before(stores.codes, shape)
    sample = Sample(options.sample, options.seed)
    for portion in _portions(stores.vectors, generation):
        if portion.records:
            keys = [record.key for record in portion.records]
            sample.add(keys, portion.vectors, _old_codes(stores.codes, before, keys, shape))
    vectors, old_codes = sample.drawn()
    if not len(vectors):
        raise StoreError(f"{stores.vectors.uri}: generation {generation.number} holds no vector to code")
    codebooks = fit(vectors, old_codes, shape, options.seed, generation.fingerprint)
    if before is not None:
        old_codes, new_codes = _common_codes(stores, generation, codebooks, before)
        is_comparable = existing is not None and (existing.shape, existing.vectors) == (shape, codebooks.vectors)
        codebooks = renamed(codebooks, old_codes, new_codes, existing if is_comparable else None)
    write_codebooks(stores.codebooks, codebooks)
    return codebooks, len(vectors)


def _existing(store: Store, refit: bool) -> Codebooks | None:
    """Return the current codebooks, if there are any; those that are damaged can be made anew."""
    try:
        return read_codebooks(store)
    except StoreError:
        if not refit:
            raise
        return None


def _require_fitting(existing: Codebooks, generation: Generation, options: QuantizeOptions, uri: str) -> None:
    """Require that codebooks are for the vectors of a generation, and of the shape that is asked for."""
    advice = (
        "add --refit, which makes new codebooks and keeps the names of codes for as many items as possible; models "
        "keep the codes that they were trained with"
    )
    if existing.vectors != generation.fingerprint:
        raise StoreError(
            f"{uri}: the codebooks are for vectors of '{existing.vectors[:40]}', but generation {generation.number} "
            f"holds those of '{generation.fingerprint[:40]}', for which they mean nothing; {advice}"
        )
    if options.shape not in (None, existing.shape):
        raise StoreError(
            f"--codes {options.shape}: the codebooks of {uri} are {existing.shape}; leave it out, or {advice}"
        )


def _shape_of(store: Store) -> Shape | None:
    """Return the shape of the current codes; None if there are none yet."""
    current = store.meta().current_generation
    origin = parse_origin(current.fingerprint) if current else None
    return origin.shape if origin else None


def _codes_before(store: Store, shape: Shape) -> Generation | None:
    """Return the current generation of codes, if it can be compared with codes of a shape."""
    return store.meta().current_generation if _shape_of(store) == shape else None


def _old_codes(store: Store, before: Generation | None, keys: list[str], shape: Shape) -> Codes:
    """Return the codes of keys in a generation, `[N, L]`; 0 for keys without codes, or if there is no generation."""
    if before is None:
        return np.zeros((len(keys), shape.levels), np.int32)
    return store.get_many(keys, before).vectors.astype(np.int32)


def _common_codes(
    stores: Stores, generation: Generation, codebooks: Codebooks, before: Generation
) -> tuple[Codes, Codes]:
    """Return the codes before and by new codebooks of the items that have both, `[N, L]` each."""
    pairs: list[tuple[Codes, Codes]] = []
    for portion in _portions(stores.vectors, generation):
        if not portion.records:
            continue
        old = _old_codes(stores.codes, before, [record.key for record in portion.records], codebooks.shape)
        has_code = old[:, 0] > 0
        pairs.append((old[has_code], codebooks.assign(portion.vectors).codes[has_code]))
    old_codes, new_codes = (np.concatenate(codes) for codes in zip(*pairs, strict=True))
    return old_codes, new_codes


def _assign_all(
    stores: Stores, generation: Generation, codebooks: Codebooks, num_fitted: int, table: CodesTable | None
) -> Report:
    """Code all items; those that have their code by these codebooks, and are unchanged, keep it."""
    before = _codes_before(stores.codes, codebooks.shape)
    target = stores.codes.begin(codebooks.origin, codebooks.shape.levels, "float32")
    totals = _Totals(Variance(codebooks.width, codebooks.shape.levels))
    for portion in _portions(stores.vectors, generation):
        codes = _assign(stores.codes, portion, codebooks, target, before, totals)
        totals.num_absent += len(portion.absent)
        if table is not None:
            keys = [record.key for record in (*portion.records, *portion.absent)]
            table.write(keys, np.concatenate([codes, np.zeros((len(portion.absent), codes.shape[1]), np.int32)]))
    if not totals.codes:
        raise StoreError(f"{stores.vectors.uri}: generation {generation.number} holds no vector to code")
    waits_for = stores.codes.complete(target)
    all_codes = np.concatenate(totals.codes).astype(np.int32) + 1
    return Report(
        codebooks.shape,
        stores.codes.uri,
        target.number,
        num_fitted > 0,
        num_fitted,
        len(all_codes),
        totals.num_absent,
        totals.num_written,
        collisions(all_codes),
        tuple(len(np.unique(column)) for column in all_codes.T),
        totals.variance.explained(),
        totals.variance.error(),
        Changes(totals.num_compared, totals.num_changed, totals.num_changed_first),
        tuple(table.left_out) if table is not None else (),
        waits_for,
    )


def _assign(
    store: Store,
    portion: Portion,
    codebooks: Codebooks,
    target: Generation,
    before: Generation | None,
    totals: _Totals,
) -> Codes:
    """Write the codes of a portion as far as they are new, count, and return them, `[N, L]`."""
    keys = [record.key for record in portion.records]
    written_s = int(time.time())
    records = []
    codes = np.zeros((len(keys), codebooks.shape.levels), np.int32)
    if keys:
        assigned = codebooks.assign(portion.vectors)
        codes = assigned.codes
        own = records_of(store, target, keys)
        for row, (record, has) in enumerate(zip(portion.records, own, strict=True)):
            if has is not None and has.vector is not None and has.content_hash == record.content_hash:
                codes[row] = has.vector.astype(np.int32)  # also where another rounding of distances would change it
            else:
                records.append(Record(record.key, codes[row].astype(np.float32), record.content_hash, written_s))
        totals.variance.add(portion.vectors, assigned.square_errors)
        totals.codes.append((codes - 1).astype(np.uint16))
        if before is not None:
            old = own if before.number == target.number else records_of(store, before, keys)
            _count_changes(old, codes, totals)
    own = records_of(store, target, [record.key for record in portion.absent])
    for record, has in zip(portion.absent, own, strict=True):
        if has is None or has.vector is not None or has.content_hash != record.content_hash:
            records.append(Record(record.key, None, record.content_hash, written_s))
    if records:
        store.put_many(target, records)
    totals.num_written += len(records)
    return codes


def _count_changes(old: list[Record | None], codes: Codes, totals: _Totals) -> None:
    rows = [row for row, record in enumerate(old) if record is not None and record.vector is not None]
    if rows:
        differs = np.stack([record.vector for record in old if record and record.vector is not None]) != codes[rows]
        totals.num_compared += len(rows)
        totals.num_changed += int(differs.any(axis=1).sum())
        totals.num_changed_first += int(differs[:, 0].sum())


def _portions(store: Store, generation: Generation) -> Iterator[Portion]:
    """Yield the records of a generation, few at a time, which is kept from `prune` meanwhile."""
    records = store.scan(generation)
    while some := list(islice(records, RECORDS_AT_A_TIME)):
        store.keep(generation)
        present = [record for record in some if record.vector is not None]
        vectors = np.stack([record.vector for record in present if record.vector is not None]) if present else None
        absent = [record for record in some if record.vector is None]
        nothing = np.zeros((0, generation.width), np.float32)
        yield Portion(present, nothing if vectors is None else vectors.astype(np.float32, copy=False), absent)
