"""Reads the data sets of a pre-training: columns of contents, and classes of the labels.

Labels that are whole numbers are classes already. Texts are numbered in their order, over all data sets that share a
head, which must have the same ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easyrec_mm.config.pretraining import PLACE, content_fields, head_name
from easyrec_mm.data.packed_pictures import path_in
from easyrec_mm.errors import DataError, did_you_mean
from easyrec_mm.files import join
from easyrec_mm.files.arrow_csv import csv as pa_csv
from easyrec_mm.formats.data_files import DataFiles
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.protos.pretrain_pb2 import PretrainDataSet

_MOST_SHOWN = 3
# Separates the texts of an item; no text contains it.
_SEPARATOR = "\x1d"


@dataclass(frozen=True)
class Items:
    """The items of a data set.

    place      config path of the data set, for messages
    data_set   its settings
    contents   field -> text of each item, string `[N]`; of pictures, where they are
    keys       text by which each item is held out: the path of its picture as the data have it, or its text
    held_out   bool `[N]`, or None if no file says which items are held out
    labels     text of the label of each item, string `[N]`; None without labels
    classes    int64 `[N]`, the class of each item; None without labels
    """

    place: str
    data_set: PretrainDataSet
    contents: dict[str, pa.Array]
    keys: pa.Array
    held_out: NDArray[np.bool_] | None
    labels: pa.Array | None
    classes: NDArray[np.int64] | None = None


def read_data_sets(config: EasyRecConfig) -> tuple[list[Items], dict[str, int]]:
    """Return the items of each data set with their classes, and head -> its number of classes.

    Raises:
      DataError: if files or columns are missing, or labels do not fit.
    """
    data_sets = config.pretrain_config.data_sets
    items = [_read(config, i) for i in range(len(data_sets))]
    by_head: dict[str, list[int]] = {}
    for i, data_set in enumerate(data_sets):
        if data_set.label:
            by_head.setdefault(head_name(data_set), []).append(i)
    num_classes = {}
    for head, members in by_head.items():
        classified, num_classes[head] = _classified([items[i] for i in members])
        for i, own in zip(members, classified, strict=True):
            items[i] = own
    return items, num_classes


def _read(config: EasyRecConfig, number: int) -> Items:
    data_set, place = config.pretrain_config.data_sets[number], f"{PLACE}.data_sets[{number}]"
    kinds = content_fields(config)
    columns = [*kinds, *([data_set.label] if data_set.label else [])]
    separator = config.data_config.separator
    tables = [_table(data_set.input_path, f"{place}.input_path", columns, separator)]
    if data_set.eval_input_path:
        tables.append(_table(data_set.eval_input_path, f"{place}.eval_input_path", columns, separator))
    table = pa.concat_tables(tables)
    held_out = None
    if data_set.eval_input_path:
        held_out = np.arange(len(table)) >= len(tables[0])
    contents = {name: table[name].combine_chunks() for name in kinds}
    image = next((name for name, kind in kinds.items() if kind == "image"), None)
    keys = contents[image] if image else pc.binary_join_element_wise(*contents.values(), _SEPARATOR)
    for name, kind in kinds.items():
        if kind == "image" and data_set.pictures:
            contents[name] = _located(contents[name], data_set.pictures)
    labels = table[data_set.label].combine_chunks() if data_set.label else None
    return Items(place, data_set, contents, keys, held_out, labels)


def _table(path: str, place: str, columns: Sequence[str], separator: str) -> pa.Table:
    """Return the columns, each once, of all files as texts; null and "" become ""."""
    columns = list(dict.fromkeys(columns))
    files = DataFiles(path, place)
    parts = []
    for name in files.names:
        local = files.opened_at(name)
        try:
            if name.endswith(".parquet"):
                _require_columns(pq.read_schema(local).names, columns, name, place)
                part = pq.read_table(local, columns=columns)
            else:
                part = pa_csv.read_csv(
                    local,
                    parse_options=pa_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
                    convert_options=pa_csv.ConvertOptions(
                        column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
                    ),
                )
                _require_columns(part.column_names, columns, name, place)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{place}: {name} cannot be read: {error}") from error
        texts = {c: pc.fill_null(part[c].cast(pa.string()), "") for c in columns}
        parts.append(pa.table(texts))
    table = pa.concat_tables(parts)
    if not len(table):
        raise DataError(f"{place}: '{path}' has no rows; give files with items")
    return table


def _require_columns(present: Sequence[str], columns: Sequence[str], file: str, place: str) -> None:
    for name in columns:
        if name not in present:
            raise DataError(f"{place}: {file} has no column '{name}'; {did_you_mean(name, present)}")


def _located(paths: pa.Array, pictures: str) -> pa.Array:
    """Return the paths of pictures in a tar, or in a folder, so that they are read wherever the table lies."""
    is_tar = pictures.endswith(".tar")
    texts = paths.to_pylist()
    if is_tar:
        return pa.array([os.fsdecode(path_in(pictures, os.fsencode(text))) if text else "" for text in texts])
    return pa.array([join(pictures, text) if text else "" for text in texts])


def _classified(members: Sequence[Items]) -> tuple[list[Items], int]:
    """Return the data sets of a head with their classes, and the number of classes.

    Raises:
      DataError: if a label is missing, out of range, or not one of the label space.
    """
    whole = [_whole_numbers(items) for items in members]
    given = next((items.data_set.num_class for items in members if items.data_set.num_class), 0)
    numbers = [number for number in whole if number is not None]
    if len(numbers) == len(members):
        spaces = [given or int(number.max()) + 1 for number in numbers]
        for items, number in zip(members, numbers, strict=True):
            _require_range(items, number, given or int(number.max()) + 1)
        classes = numbers
    else:
        values = [sorted(set(_labels(items).to_pylist())) for items in members]
        _require_equal(members, values)
        spaces = [len(own) for own in values]
        codes = {text: code for code, text in enumerate(values[0])}
        classes = [np.array([codes[t] for t in _labels(items).to_pylist()], np.int64) for items in members]
        if given and given != spaces[0]:
            advice = "remove num_class, or correct the labels"
            raise DataError(
                f"{members[0].place}.num_class: {given}, but column '{members[0].data_set.label}' has {spaces[0]} "
                f"different texts; {advice}"
            )
    if len(set(spaces)) > 1:
        raise DataError(
            f"{members[1].place}.head: label spaces of different sizes under one head: "
            + ", ".join(f"'{items.data_set.name}' has {n} classes" for items, n in zip(members, spaces, strict=True))
            + "; set num_class, or give each a head of its own"
        )
    result = [replace(items, classes=own) for items, own in zip(members, classes, strict=True)]
    _require_classes(result)
    return result, spaces[0]


def _labels(items: Items) -> pa.Array:
    if items.labels is None:
        raise ValueError(f"{items.place} has no labels")
    return items.labels


def _whole_numbers(items: Items) -> NDArray[np.int64] | None:
    """Return the labels as whole numbers; None if they are texts."""
    labels = _labels(items)
    empty = pc.equal(labels, "").to_numpy(zero_copy_only=False)
    if empty.any():
        row = int(np.argmax(empty))
        column = items.data_set.label
        raise DataError(
            f"{items.place}.label: column '{column}' is empty in {int(empty.sum())} rows, first in row {row + 1} of "
            "the data; give each item a label, or leave these rows out"
        )
    try:
        numbers: NDArray[np.int64] = labels.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    return numbers


def _require_range(items: Items, numbers: NDArray[np.int64], num_class: int) -> None:
    bad = (numbers < 0) | (numbers >= num_class)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"{items.place}.label: column '{items.data_set.label}' is {numbers[row]} in row {row + 1} of the data, "
            f"which is not between 0 and {num_class - 1}; correct the labels, or num_class"
        )


def _require_equal(members: Sequence[Items], values: Sequence[Sequence[str]]) -> None:
    for items, own in zip(members[1:], values[1:], strict=True):
        different = sorted(set(own) ^ set(values[0]))
        if different:
            shown = ", ".join(repr(text) for text in different[:_MOST_SHOWN])
            raise DataError(
                f"{items.place}.head: label spaces of different sizes under one head: '{items.data_set.name}' has "
                f"{len(own)} classes, '{members[0].data_set.name}' {len(values[0])}; only one of them has {shown}; "
                "give each a head of its own"
            )


def _require_classes(members: Sequence[Items]) -> None:
    for items in members:
        if items.classes is not None and len(np.unique(items.classes)) < 2:
            raise DataError(
                f"{items.place}.label: all items have the class '{_labels(items)[0]}' in column "
                f"'{items.data_set.label}', which teaches nothing; name another column"
            )


def single_items(items: Items) -> list[str]:
    """Return the texts of the classes with one item, in their order."""
    if items.classes is None:
        return []
    _, first, counts = np.unique(items.classes, return_index=True, return_counts=True)
    return [str(_labels(items)[int(row)]) for row in first[counts == 1]]
