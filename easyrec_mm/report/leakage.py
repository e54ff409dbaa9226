"""Pictures that stand in both training and evaluation data, under the same path or under others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import tensorflow as tf

from easyrec_mm.data.packed_pictures import own_path, packed_path
from easyrec_mm.formats.source import Order, iterate
from easyrec_mm.formats.sources import Selection, open_source
from easyrec_mm.report.context import Context
from easyrec_mm.report.evaluated import PICTURE
from easyrec_mm.report.explained import picture_name
from easyrec_mm.report.run import Run
from easyrec_mm.report.section import Heading, Part, Pictures, Text, Tile, Tiles, Unavailable
from easyrec_mm.report.section import Picture as Shown
from easyrec_mm.stable_hash import hash_array
from easyrec_mm.stats.pictures import MAX_DISTANCE, PathStats, Picture, PictureStats, groups_alike, open_pictures

# With more groups of training data, only the first of them are searched for pictures.
MAX_GROUPS = 2_000_000
_NUM_SHOWN, _NUM_OF_SIDE = 12, 3


@dataclass(frozen=True)
class Pairing:
    """Pictures of the evaluation data, and those of the training data that are the same or look alike.

    evaluation, training  pictures of both kinds of data
    """

    evaluation: list[Picture]
    training: list[Picture]


def leakage(context: Context) -> Sequence[Part]:
    """Return how many pictures of the evaluation data the training has seen under other paths, and some of them."""
    context.require_pictures()
    path = context.run.pipeline.config.train_input_path
    evaluated = context.evaluated
    if not path:
        raise Unavailable("The config has no train_input_path: there is nothing to compare with.")
    if not evaluated.pictures:
        raise Unavailable("No group of the evaluation data has a picture.")
    training, num_groups = training_pictures(context.run, path, context.num_pictures)
    hashes = hash_array(np.array([own_path(path) for path in evaluated.pictures], object))
    is_same_path = np.isin(hashes, training.hashes)
    opened_training = _open(context, _reader_paths(context, training))
    opened = _open(context, context.choose_pictures(evaluated.pictures, context.num_pictures))
    copies, similar = pairings(opened.pictures, opened_training.pictures)
    tiles = _tiles(context, int(is_same_path.sum()), copies, similar)
    return [Tiles(tiles), *_about(context, training, num_groups, opened, opened_training), *_shown(copies, similar)]


def training_pictures(run: Run, path: str, num: int) -> tuple[PathStats, int]:
    """Return the pictures that the groups of training data name, and the number of groups that were read.

    Raises:
      DataError: if the data cannot be read.
    """
    data, schema = run.pipeline.config.data_config, run.pipeline.schema
    source, _ = open_source(data, schema, path, "train_input_path", Selection((), (), Order(False, 0, 1)))
    paths, num_groups = PathStats(num, schema.image_separator), 0

    def read(*element: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        chunk = source.parse(*element)
        return chunk.groups.image_path, tf.gather(chunk.file, chunk.groups.kept_groups)

    for image_path, file in iterate(source.records(1, 0, source.chunk_size).map(read, num_parallel_calls=2), source):
        file, image_path = file.numpy(), image_path.numpy()
        for number in np.unique(file).tolist():
            texts = [text.decode("utf-8", "replace") for text in image_path[file == number].tolist()]
            paths.add(pa.array(texts, pa.string()), source.files[number])
        num_groups += len(file)
        if num_groups >= MAX_GROUPS:
            break
    return paths, num_groups


def pairings(evaluation: Sequence[Picture], training: Sequence[Picture]) -> tuple[list[Pairing], list[Pairing]]:
    """Return the pictures with the same content under other paths, and then those that only look alike."""
    of_content: dict[bytes, Pairing] = {}
    for picture in training:
        of_content.setdefault(picture.content, Pairing([], [])).training.append(picture)
    known = {content: {picture.path for picture in pairing.training} for content, pairing in of_content.items()}
    for picture in evaluation:
        if picture.path not in known.get(picture.content, {picture.path}):
            of_content[picture.content].evaluation.append(picture)
    same = [pairing for pairing in of_content.values() if pairing.evaluation]
    everything = [*evaluation, *training]
    hashes = np.array([picture.alike for picture in everything], np.uint64)
    similar: list[Pairing] = []
    if not everything:
        return same, similar
    for group in groups_alike(hashes, np.stack([picture.colours for picture in everything])):
        own = [everything[i] for i in group if i < len(evaluation) and everything[i].content not in known]
        others = [everything[i] for i in group if i >= len(evaluation)]
        others = [picture for picture in others if picture.path not in {p.path for p in own}]
        if own and others:
            similar.append(Pairing(own, others))
    return same, similar


def _open(context: Context, paths: list[bytes]) -> PictureStats:
    return open_pictures(paths, context.reader, context.schema.image)


def _reader_paths(context: Context, paths: PathStats) -> list[bytes]:
    """Return the chosen pictures in the form that picture readers take."""
    chosen = [(path.encode("utf-8", "surrogateescape"), file) for path, file in paths.sample]
    if context.run.pipeline.config.data_config.packed_images:
        return [packed_path(file, path) for path, file in chosen]
    return [path for path, _ in chosen]


def _tiles(context: Context, num_same: int, copies: list[Pairing], similar: list[Pairing]) -> list[Tile]:
    total = len(context.evaluated.pictures)
    tiles = [Tile("pictures of both under the same path", f"{num_same:,}", f"of {total:,} in the evaluation data")]
    for label, pairs in (("same content, another path", copies), ("looks alike, another path", similar)):
        names = {picture.path for pairing in pairs for picture in pairing.evaluation}
        samples = f"in {_num_samples(context, names):,} evaluation samples" if names else "none among those opened"
        tiles.append(Tile(label, f"{len(names):,}", samples))
    return tiles


def _num_samples(context: Context, names: set[str]) -> int:
    """Return the number of evaluation samples that have one of the pictures."""
    evaluated = context.evaluated
    counts = np.bincount(evaluated.rows.column(PICTURE) + 1, minlength=len(evaluated.pictures) + 1)[1:]
    return sum(int(n) for n, path in zip(counts, evaluated.pictures, strict=True) if picture_name(path) in names)


def _about(
    context: Context, training: PathStats, num_groups: int, opened: PictureStats, opened_training: PictureStats
) -> list[Part]:
    num_pictures = len(context.evaluated.pictures)
    first = f" in the first {num_groups:,} groups" if num_groups >= MAX_GROUPS else ""
    text = (
        f"Opened: {_opened(opened)} of {num_pictures:,} pictures of the evaluation data, and "
        f"{_opened(opened_training)} of {training.num_distinct:,} of the training data{first}; more with "
        f"--num_pictures. Looks alike: perceptual hashes that differ in at most {MAX_DISTANCE} of 64 bits, with "
        "similar colours."
    )
    meaning = (
        "The same path in both is normal where an item is shown on several days. The same picture under another path "
        "means that an item counts as new although the model knows it: metrics of unseen items are then too good."
    )
    return [Text(meaning, "note"), Text(text, "note")]


def _opened(stats: PictureStats) -> str:
    bad = f" ({len(stats.problems):,} cannot be read)" if stats.problems else ""
    return f"{len(stats.pictures) + len(stats.problems):,}{bad}"


def _shown(copies: list[Pairing], similar: list[Pairing]) -> list[Part]:
    parts: list[Part] = []
    for title, pairs in (("Same content under other paths", copies), ("Looks alike", similar)):
        if not pairs:
            continue
        more = f", {_NUM_SHOWN} of {len(pairs):,}" if len(pairs) > _NUM_SHOWN else ""
        parts.append(Heading(f"{title}{more}"))
        pictures = []
        for pairing in pairs[:_NUM_SHOWN]:
            for side, of_side in (("evaluation", pairing.evaluation), ("training", pairing.training)):
                pictures += [Shown(p.thumbnail, (side, p.path)) for p in of_side[:_NUM_OF_SIDE]]
        parts.append(Pictures(pictures, side=112))
    return parts
