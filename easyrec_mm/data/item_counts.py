"""Counts the rows of each item in the training data: exactly, in memory that grows with the items, not the rows."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.formats.source import Files, Order, iterate
from easyrec_mm.formats.sources import Selection, open_source
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.schema import Schema
from easyrec_mm.stable_hash import Hashes, hash_array

Counts = NDArray[np.int64]
FILE = "item_counts.npz"
# Number of hashes that are collected before they are merged into the counts.
_MERGED_ROWS = 1 << 22


def count_items(
    data: DatasetConfig, schema: Schema, path: str, setting: str, field: str, folder: Path | None
) -> tuple[Hashes, Counts]:
    """Return the hash of each item, uint64 `[items]` ascending, and its number of rows, int64 `[items]`.

    Args:
      data: the config's data section.
      schema: meaning of a row.
      path: path of the training data.
      setting: the config path of `path`, for messages.
      field: field that contains the item: a field of samples, or the picture's field.
      folder: folder that keeps the result for the next call, as long as the files do not change; None to keep nothing.

    Raises:
      DataError: if the data cannot be read.
    """
    is_picture = field == schema.image.field
    labels = tuple(name for name in schema.labels if name == field)
    fields = () if is_picture or labels else (field,)
    source, files = open_source(data, schema, path, setting, Selection(labels, fields, Order(False, 0, 1)))
    origin = _origin(field, files)
    cache_file = folder / FILE if folder is not None and folder.is_dir() else None
    if cache_file is not None and cache_file.exists():
        with np.load(cache_file) as cache:
            if int(cache["origin"]) == origin:
                return cache["items"], cache["counts"]
    items, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    held: list[Hashes] = []

    def merge() -> tuple[Hashes, Counts]:
        new_items, number = np.unique(np.concatenate([np.zeros(0, np.uint64), *held]), return_counts=True)
        all_items, place = np.unique(np.concatenate([items, new_items]), return_inverse=True)
        return all_items, np.bincount(place, np.concatenate([counts, number]), len(all_items)).astype(np.int64)

    def read(*element: tf.Tensor) -> tf.Tensor:
        groups = source.parse(*element).groups
        return tf.repeat(groups.image_path, groups.group_size) if is_picture else groups.fields[field]

    dataset = source.records(1, 0, source.chunk_size).map(read, num_parallel_calls=2)
    for values in iterate(dataset, source):
        held.append(hash_array(values.numpy()))
        if sum(map(len, held)) > _MERGED_ROWS:
            items, counts = merge()
            held.clear()
    items, counts = merge()
    if cache_file is not None:
        temporary = cache_file.with_suffix(".tmp.npz")
        np.savez(temporary, origin=origin, items=items, counts=counts)
        os.replace(temporary, cache_file)
    return items, counts


def _origin(field: str, files: Files) -> int:
    """Return a number that changes with the field and with the files."""
    versions = [f"{info.path}:{info.size}:{info.version}" for info in files.infos]
    return zlib.crc32("\n".join([field, *versions]).encode())
