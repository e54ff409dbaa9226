"""Writes the file of shuffled pictures, which replaces every picture of the data by another one."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.data.first_pictures import paths_of
from easyrec_mm.data.packed_pictures import packed_path
from easyrec_mm.data.shuffled_pictures import write_shuffled
from easyrec_mm.errors import UserError
from easyrec_mm.formats.source import Order, iterate
from easyrec_mm.formats.sources import Selection, open_source


def shuffle_pictures(pipeline: Pipeline, file: Path) -> int:
    """Write data_config.shuffled_pictures for a config's training and evaluation data; return the number of pictures.

    Raises:
      UserError: if the data have fewer than two pictures, or cannot be read.
    """
    config = pipeline.config
    loaded = _pictures(pipeline, config.train_input_path, "train_input_path")
    loaded = _pictures(pipeline, config.eval_input_path, "eval_input_path") | loaded
    if len(loaded) < 2:
        raise UserError(f"{pipeline.path}: the data have {len(loaded)} picture(s), and shuffling needs at least 2")
    paths = sorted(loaded)
    write_shuffled(paths, [loaded[path] for path in paths], config.data_config.seed, file)
    return len(paths)


def _pictures(pipeline: Pipeline, path: str, setting: str) -> dict[bytes, bytes]:
    """Return for each picture of the files: path as in the data -> path as PictureLoader takes it."""
    data, schema = pipeline.config.data_config, pipeline.schema
    source, _ = open_source(data, schema, path, setting, Selection((), (), Order(False, 0, 1)))

    def read(*element: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        chunk = source.parse(*element)
        return chunk.groups.image_path, tf.gather(chunk.file, chunk.groups.kept_groups)

    pictures: dict[bytes, bytes] = {}
    for images, files in iterate(source.records(1, 0, source.chunk_size).map(read, num_parallel_calls=2), source):
        for image, number in zip(images.numpy().tolist(), files.numpy().tolist(), strict=True):
            for picture in paths_of(image, schema):
                pictures.setdefault(
                    picture, packed_path(source.files[number], picture) if data.packed_images else picture
                )
    return pictures
