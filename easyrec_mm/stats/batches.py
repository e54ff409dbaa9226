"""How much the samples of a batch differ, as training draws it: distinct pictures, items and users.

Groups that are sorted by item make a batch alike. Batch normalisation then takes its statistics from few items, and a
step follows few of them. What is usual for the data is told by batches of the same groups in random order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.features.id_feature import IdFeature
from easyrec_mm.formats.source import iterate
from easyrec_mm.schema import Schema

_FEWEST_BATCHES, _MOST_BATCHES = 4, 50
# Keys that are listed: those with the most distinct values.
_NUM_SHOWN = 5
# A batch with less than this share of the distinct values of a random one is alike.
_ALIKE = 0.5


class Variety(NamedTuple):
    """Distinct values of a key in the batches of a training.

    name      what the key is: a field, or the pictures
    kind      what has one value each: "group" or "sample"
    total     number of distinct values in all batches
    drawn     mean number of distinct values in a batch
    shuffled  the same for batches of the same groups in random order
    units     mean number of groups or samples in a batch
    """

    name: str
    kind: str
    total: int
    drawn: float
    shuffled: float
    units: float

    @property
    def is_alike(self) -> bool:
        """Return whether batches hold far fewer distinct values than the order of the data would have to cost."""
        return self.drawn < _ALIKE * self.shuffled


def variety_lines(pipeline: Pipeline, num_groups: int) -> list[str]:
    """Return lines about the batches that training would draw first, of about this number of groups."""
    varieties = batch_varieties(pipeline, num_groups)
    if not varieties:
        return ["  too few groups for several batches"]
    most = sorted(varieties, key=lambda variety: variety.total, reverse=True)[:_NUM_SHOWN]
    shown = [variety for variety in varieties if variety in most or variety.is_alike]
    lines = [
        f"  {v.name}: {v.drawn:.1f} distinct in {v.units:.1f} {v.kind}s of a batch ({v.drawn / v.units:.0%}); "
        f"{v.shuffled:.1f} in random order"
        for v in shown
    ]
    alike = [v.name for v in varieties if v.is_alike]
    if alike:
        data = pipeline.config.data_config
        order = f"shuffle_buffer_size is {data.shuffle_buffer_size}" if data.shuffle else "shuffle is false"
        lines.append(
            f"  warning: the data are sorted by {', '.join(alike)}, which makes the samples of a batch alike "
            f"(data_config.{order}): batch norm has the statistics of few of them. Shuffle the groups once, or set "
            "shuffle: true with a larger shuffle_buffer_size; with several workers, sync_batch_norm helps as well"
        )
    return lines


def batch_varieties(pipeline: Pipeline, num_groups: int) -> list[Variety]:
    """Return the variety of each key in the first batches of a training; [] if the data have too few batches."""
    config, schema = pipeline.config, pipeline.schema
    records = BadRecords(None, 1.0)
    inputs = Input(config.data_config, schema, config.train_input_path, "train_input_path", records, training=True)
    size = inputs.batch_size
    dataset = inputs.source.records(1, 0, size).map(inputs.source.parse)
    num_batches = min(max(num_groups // size, _FEWEST_BATCHES), _MOST_BATCHES)
    # Of each batch the values of a key, one after the other, and the sizes of its groups.
    values: dict[str, list[NDArray[np.generic]]] = {name: [] for name in _keys(schema)}
    sizes: list[NDArray[np.int64]] = []
    for chunk in islice(iterate(dataset, inputs.source), num_batches):
        groups = chunk.groups
        if not len(groups.group_size):
            continue  # all of them are bad
        sizes.append(groups.group_size.numpy().astype(np.int64))
        for name, parts in values.items():
            is_picture = name == schema.image.field and schema.uses_image
            own = np.repeat(groups.image_path.numpy(), sizes[-1]) if is_picture else groups.fields[name].numpy()
            parts.append(own)
    if len(sizes) < _FEWEST_BATCHES:
        return []
    return [_variety(name, parts, sizes) for name, parts in values.items()]


def _keys(schema: Schema) -> list[str]:
    """Return the fields that may say which item or user a sample is about: that of pictures, and those of ids."""
    ids = [feature.inputs[0] for feature in schema.features if type(feature) is IdFeature]
    texts = schema.text.inputs if schema.text is not None else ()
    return list(dict.fromkeys([*([schema.image.field] if schema.uses_image else []), *texts, *ids]))


def _variety(name: str, batches: Sequence[NDArray[np.generic]], sizes: Sequence[NDArray[np.int64]]) -> Variety:
    """Return the variety of a key.

    Args:
      name: name of the key.
      batches: of each batch the values of its samples.
      sizes: of each batch the sizes of its groups.
    """
    _, ids = np.unique(np.concatenate(batches), return_inverse=True)
    of_groups = np.split(ids, np.cumsum(np.concatenate(sizes))[:-1])
    is_of_groups = all((group == group[:1]).all() for group in of_groups)
    if is_of_groups:
        of_groups = [group[:1] for group in of_groups]
    nums = [len(part) for part in sizes]
    shuffled = [of_groups[i] for i in np.random.default_rng(0).permutation(len(of_groups))]
    return Variety(
        name,
        "group" if is_of_groups else "sample",
        total=int(ids.max(initial=-1)) + 1,
        drawn=_distinct(of_groups, nums),
        shuffled=_distinct(shuffled, nums),
        units=sum(map(len, of_groups)) / len(nums),
    )


def _distinct(of_groups: Sequence[NDArray[np.int64]], nums: Sequence[int]) -> float:
    """Return the mean number of distinct values in batches of so many groups."""
    limits = np.cumsum([0, *nums])
    batches = [of_groups[start:end] for start, end in pairwise(limits)]
    return float(np.mean([len(np.unique(np.concatenate(batch))) if batch else 0 for batch in batches]))
