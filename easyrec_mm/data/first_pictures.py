"""Stops a run at once if most of the first groups or pictures of its data cannot be used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import islice

from easyrec_mm.data.bad_records import BadRecord
from easyrec_mm.data.packed_pictures import is_packed, own_path, packed_path
from easyrec_mm.data.picture_reader import picture_reader
from easyrec_mm.errors import DataError
from easyrec_mm.files.first_pictures import NUM_FIRST, are_most, are_relative, find_root, folders_of, shown
from easyrec_mm.formats.checks import Problem
from easyrec_mm.formats.rtp_graph import split_bytes
from easyrec_mm.formats.source import TEXT_GROUPS, Source
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.schema import Schema

# Number of first groups in which the first pictures are looked for.
_NUM_GROUPS = 1000

# Path of a picture -> file and row that name it first.
Pictures = Mapping[bytes, tuple[str, int]]


def paths_of(image: bytes, schema: Schema) -> list[bytes]:
    """Return the paths that an image field contains."""
    paths = split_bytes(image, schema.image_separator) if schema.image_separator else [image]
    return [path for path in paths if path]


def first_pictures(source: Source, schema: Schema) -> Pictures:
    """Return the pictures of the first groups."""
    pictures: dict[bytes, tuple[str, int]] = {}
    for file, row, group in islice(source.texts(), _NUM_GROUPS):
        if not isinstance(group, Problem):
            for path in paths_of(group.image, schema):
                pictures.setdefault(path, (file, row))
        if len(pictures) >= NUM_FIRST:
            break
    return pictures


def require_groups(source: Source, setting: str, data: DatasetConfig) -> None:
    """Check that most of the first groups can be used, unless the config allows that many bad ones.

    Args:
      source: the groups.
      setting: the setting that names their files, for messages.
      data: data section of the config.

    Raises:
      DataError: if they cannot be used; the message names the first one.
    """
    groups = list(islice(source.texts(), TEXT_GROUPS))
    bad = [BadRecord("group", file, row, *group) for file, row, group in groups if isinstance(group, Problem)]
    if are_most(len(bad), len(groups), data.max_bad_record_share):
        raise DataError(f"{setting}: {len(bad)} of the first {len(groups)} groups cannot be used. The first: {bad[0]}")


def require_pictures(config: str, data: DatasetConfig, pictures: Pictures) -> None:
    """Check that most of the first pictures can be read, unless the config allows that many bad ones.

    Args:
      config: name of the config, for messages.
      data: data section of the config.
      pictures: see first_pictures; pictures beyond NUM_FIRST are ignored.

    Raises:
      DataError: if they cannot be read; the message names the first one, and the folder that contains them if found.
    """
    paths = [path for path in pictures if path][:NUM_FIRST]
    reader = picture_reader(data)
    reader_paths = [packed_path(pictures[path][0], path) if data.packed_images else path for path in paths]
    reader.begin(reader_paths, data.max_image_pixels)
    _, problems = reader.read(reader_paths, data.max_image_pixels)
    if not are_most(len(problems), len(paths), data.max_bad_record_share):
        return
    row, problem = next(iter(problems.items()))
    file, number = pictures[paths[row]]
    summary = f"{len(problems)} of the first {len(paths)} pictures cannot be read"
    first = f"the first '{os.fsdecode(paths[row])}' ({file}:{number}): {problem.removeprefix('cannot be read: ')}"
    if data.packed_images:
        todo = "pack them again, by easyrec-mm group --embed_images"
        raise DataError(f"{config}: data_config.packed_images: {summary}, {first}; {todo}")
    if is_packed(paths[row]):
        first = f"the first '{os.fsdecode(own_path(paths[row]))}': {problem.removeprefix('cannot be read: ')}"
        todo = "correct `pictures` of the data set, or the paths in it"
        raise DataError(f"{config}: pretrain_config.data_sets: {summary}, {first}; {todo}")
    root = f"'{data.image_root}':" if data.image_root else "is not set, and"
    texts = [os.fsdecode(path) for path in paths]
    raise DataError(f"{config}: data_config.image_root: {root} {summary}, {first}; {_todo(texts, data, config, file)}")


def _todo(paths: list[str], data: DatasetConfig, config: str, file: str) -> str:
    if not are_relative(paths):
        return "the paths are absolute: correct the data"
    folders = list(dict.fromkeys(["", *folders_of(file), *folders_of(config)[:1]]))
    root = find_root(paths, folders)
    if root:
        return f'they are in {root}: set image_root: "{root}", or --set data_config.image_root={root}'
    if root == "":
        return "they are in the current folder: remove image_root, or --set data_config.image_root="
    looked = ", ".join(map(shown, dict.fromkeys([data.image_root, *folders])))
    return f"looked in {looked}; set the folder in which these paths start"
