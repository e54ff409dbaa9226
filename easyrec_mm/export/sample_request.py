"""Makes a request from samples of the data, which is written beside the rec model as an example for its clients."""

from __future__ import annotations

from itertools import islice
from typing import Any

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.formats.typed_groups import TextGroup
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.schema import Schema
from easyrec_mm.store.feature_vectors import VectorStores

_NUM_INSTANCES = 3


def sample_request(data: DatasetConfig, schema: Schema, path: str, vectors: VectorStores) -> dict[str, Any]:
    """Return a request of the V1 protocol with the first sample of each of the first valid groups.

    Args:
      data: the config's data section.
      schema: fields and features.
      path: files of samples.
      vectors: the stored vectors that the model was trained with.

    Raises:
      DataError: if the data cannot be read.
    """
    fields = tuple(dict.fromkeys([*schema.request_fields(), *_of_contents(schema)]))
    inputs = Input(data, schema, path, "eval_input_path", BadRecords(None, 1.0), kept_fields=fields, vectors=vectors)
    groups = (group for _, _, group in inputs.source.texts() if isinstance(group, TextGroup) and group.size)
    return {"instances": [_instance(schema, group) for group in islice(groups, _NUM_INSTANCES)]}


def _instance(schema: Schema, group: TextGroup) -> dict[str, Any]:
    """Return the values of the first sample of a group, as JSON has them, and the key of its picture."""
    names = dict.fromkeys([*schema.request_fields(), *_of_contents(schema)])
    values: dict[str, Any] = {name: schema.field(name).value(group.values[name][0]) for name in names}
    return {**values, schema.image.field: group.image.decode()} if schema.image.field else values


def _of_contents(schema: Schema) -> tuple[str, ...]:
    """Return the fields of the item's contents: a server that computes missing vectors takes them, others do not."""
    return tuple(name for feature in schema.contents.values() for name in feature.inputs)
