"""Groups of samples as plain values, and what plain readers of each format say of a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from data_helpers import schema
from hypothesis import strategies as st

from easyrec_mm.formats.columns import ARROW_TYPES
from easyrec_mm.formats.grouped_table import GroupFields, Groups
from easyrec_mm.formats.rtp import written_layout
from easyrec_mm.formats.tfrecord import MISSING
from easyrec_mm.formats.typed_groups import TypedGroups
from easyrec_mm.grouping.shards import FORMATS
from easyrec_mm.schema import RowLayout

KINDS = {
    "click": "int64",
    "user": "string",
    "age": "int64",
    "img": "string",
    "weight": "float64",
    "seconds": "float32",
    "vip": "bool",
    "cate": "string",
    "price": "float32",
    "new": "bool",
}
DEFAULTS = {"age": 7, "weight": 0.5, "vip": True, "price": -1.0}
FIELDS = GroupFields(
    KINDS, ("click", "seconds"), "img", "group_size", frozenset({"img", "cate", "price", "new"}), DEFAULTS
)


def typed(fields: GroupFields, layout: RowLayout | None = None) -> TypedGroups:
    """The same fields as training reads them, in lines of this layout."""
    dtypes = {name: "float32" if kind == "float64" else kind for name, kind in fields.kinds.items()}
    plain = schema(
        {name: dtypes[name] for name in fields.labels},
        {name: dtypes[name] for name in fields.sample_fields},
        defaults={name: str(value) for name, value in fields.defaults.items()},
    )
    layout = layout or written_layout(len(fields.labels), fields.column_separator)
    whole = replace(
        plain,
        image=replace(plain.image, field=fields.image),
        group_size_field=fields.size,
        group_fields=tuple(fields.per_group - {fields.image}),
        layout=replace(layout, sample_fields=fields.sample_fields),
    )
    return TypedGroups(whole, fields.labels, fields.sample_fields, is_exact=True)


# A group: field -> list of values, or one value of a group-level field; None is missing.
Group = dict[str, Any]

_TEXT = st.text(st.characters(exclude_characters="|\x01\x02\n\r", exclude_categories=["Cs"]), min_size=1, max_size=6)
_FLOAT = st.floats(-(2.0**63), 2.0**63, width=32)
_WHOLE = st.integers(-(10**18) + 1, 10**18 - 1)
VALUES = {"int64": _WHOLE, "string": _TEXT, "float64": _FLOAT, "float32": _FLOAT, "bool": st.booleans()}


@st.composite
def groups(draw) -> list[Group]:
    """Some groups; labels are there, everything else may be missing."""
    drawn_groups = []
    for _ in range(draw(st.integers(0, 6))):
        size = draw(st.integers(1, 4))
        group = {}
        for name, kind in KINDS.items():
            value = VALUES[kind] if name in FIELDS.labels else st.none() | VALUES[kind]
            group[name] = draw(value if name in FIELDS.per_group else st.lists(value, min_size=size, max_size=size))
        group["img"] = group["img"] or ""
        drawn_groups.append(group)
    return drawn_groups


def to_table(plain_groups: list[Group]) -> Groups:
    """As the formats take them."""
    size = np.array([len(group["click"]) for group in plain_groups], np.int64)
    columns = {}
    for name, kind in KINDS.items():
        values = [group[name] for group in plain_groups]
        values = values if name in FIELDS.per_group else [value for group_values in values for value in group_values]
        columns[name] = pa.array(values, ARROW_TYPES[kind])
    return Groups(size, columns)


def from_table(table: Groups) -> list[Group]:
    """What `to_table` was given; a text that is empty is missing."""
    starts = np.cumsum(table.size) - table.size
    plain_groups = []
    for i, (start, size) in enumerate(zip(starts.tolist(), table.size.tolist(), strict=True)):
        group = {}
        for name in KINDS:
            column = table.columns[name]
            values = [column[i].as_py()] if name in FIELDS.per_group else column.slice(start, size).to_pylist()
            values = [None if value == "" and name != "img" else value for value in values]
            group[name] = values[0] if name in FIELDS.per_group else values
        plain_groups.append(group)
    return plain_groups


def plain_parquet(path: Path) -> list[Group]:
    rows = pq.read_table(path).to_pylist()
    assert [row.pop("group_size") for row in rows] == [len(row["click"]) for row in rows]
    return rows


def plain_tfrecord(path: Path) -> list[Group]:
    """By TensorFlow; the places of MISSING become None, and must hold the defaults."""
    plain_groups = []
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        feature = tf.train.Example.FromString(record).features.feature
        group = {}
        for name, kind in KINDS.items():
            if kind == "string":
                values: list[Any] = [value.decode() or None for value in feature[name].bytes_list.value]
            elif kind in ("int64", "bool"):
                values = [bool(v) if kind == "bool" else v for v in feature[name].int64_list.value]
            else:
                values = list(feature[name].float_list.value)
            group[name] = values
        for text in feature[MISSING].bytes_list.value:
            places, _, name = text.decode().partition(" ")
            for place in places.split(","):
                assert group[name][int(place)] == DEFAULTS.get(name, 0)
                group[name][int(place)] = None
        assert list(feature["group_size"].int64_list.value) == [len(group["click"])]
        group = {name: values[0] if name in FIELDS.per_group else values for name, values in group.items()}
        plain_groups.append({**group, "img": group["img"] or ""})
    return plain_groups


def plain_rtp(path: Path) -> list[Group]:
    readers = {
        "int64": int,
        "float64": float,
        "float32": lambda text: float(np.float32(text)),
        "bool": lambda text: {"0": False, "1": True}[text],
        "string": str,
    }
    order = [name for name in KINDS if name not in (*FIELDS.labels, "img")]
    plain_groups = []
    for line in path.read_bytes().decode().split("\n")[:-1]:
        *labels, features, img, size = line.split("|")
        group: Group = {"img": img}
        for name, text in zip(FIELDS.labels, labels, strict=True):
            group[name] = [readers[KINDS[name]](entry) for entry in text.split("\x01")]
        samples = [sample.split("\x02") for sample in features.split("\x01")]
        assert len(samples) == int(size) == len(group["click"])
        for name, texts in zip(order, zip(*samples, strict=True), strict=True):
            values = [readers[KINDS[name]](text) if text else None for text in texts]
            if name in FIELDS.per_group:
                assert len(set(values)) == 1
            group[name] = values[0] if name in FIELDS.per_group else values
        plain_groups.append(group)
    return plain_groups


def write(path, table, kind, portions=(), fields=FIELDS):
    writer = FORMATS[kind].writer(str(path), fields)
    start = 0
    for end in (*sorted(min(p, len(table.size)) for p in portions), len(table.size)):
        writer.write(table.slice(start, end, fields))
        start = end
    writer.close()


def numbered(count, size=3):
    """Groups whose values tell their place."""
    samples = count * size
    columns = {
        "click": pa.array(np.arange(samples) % 2),
        "user": pa.array([f"u{i}" for i in range(samples)]),
        "age": pa.array(np.arange(samples)),
        "img": pa.array([f"{i}.jpg" for i in range(count)]),
        "weight": pa.array(np.arange(samples) / 4),
        "seconds": pa.array(np.arange(samples) / 2, pa.float32()),
        "vip": pa.array(np.arange(samples) % 3 == 0),
        "cate": pa.array([f"c{i}" for i in range(count)]),
        "price": pa.array(np.arange(count), pa.float32()),
        "new": pa.array(np.arange(count) % 2 == 0),
    }
    return Groups(np.full(count, size), columns)
