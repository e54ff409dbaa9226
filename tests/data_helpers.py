"""Schemas built by hand and lines of text for them, for tests of the data modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from easyrec_mm.features.feature import Feature
from easyrec_mm.features.field import Dtype, Field
from easyrec_mm.schema import Activation, Image, RowLayout, Schema, Task

SAMPLES, VALUES, COLUMNS = "\x01", "\x02", ";"


def image(height: int = 4, width: int = 5) -> Image:
    return Image("img_path", height, width, 3, "BILINEAR", True, 10_000)


def schema(
    labels: Mapping[str, Dtype],
    values: Mapping[str, Dtype],
    features: Iterable[Feature] = (),
    defaults: Mapping[str, str] | None = None,
    tasks: Iterable[tuple[str, Activation, int]] = (),
    sample_weight: str | None = None,
    separators: tuple[str, str, str] = (COLUMNS, SAMPLES, VALUES),
    columns: Sequence[int] | None = None,
    uses_image: bool = True,
) -> Schema:
    """A schema of these label and value fields, name -> dtype.

    Args:
      labels: label fields, in the order of their columns.
      values: fields of a sample, in the order of the row.
      features: what the network takes.
      defaults: field -> text that stands for an empty value.
      tasks: label, activation and number of classes of each task.
      sample_weight: field of the weights.
      separators: of columns, samples and values.
      columns: of the labels, features, picture and group size; unset means 0, 1, 2, ...
      uses_image: whether pictures are loaded.
    """
    dtypes = {**labels, **values, "img_path": "string", "group_size": "int64"}
    texts = {name: "" if dtype == "string" else "0" for name, dtype in dtypes.items()} | dict(defaults or {})
    columns = columns or range(len(labels) + 3)
    return Schema(
        fields=tuple(Field(name, dtype, texts[name], name in (defaults or {})) for name, dtype in dtypes.items()),
        labels=tuple(labels),
        sample_weight=sample_weight,
        features=tuple(features),
        tables=(),
        image=image(),
        uses_image=uses_image,
        group_size_field="group_size",
        layout=RowLayout(
            label_columns=tuple(columns[: len(labels)]),
            features_column=columns[-3],
            image_column=columns[-2],
            size_column=columns[-1],
            sample_fields=tuple(values),
            column_separator=separators[0],
            sample_separator=separators[1],
            value_separator=separators[2],
        ),
        tasks=tuple(Task(label, label, activation, num_class) for label, activation, num_class in tasks),
    )


def group_line(
    labels: Sequence[Sequence[str]],
    samples: Sequence[Sequence[str]],
    img_path: str = "picture",
    group_size: object = None,
) -> bytes:
    """A line of the default separators and columns."""
    size = len(samples) if group_size is None else group_size
    features = SAMPLES.join(VALUES.join(values) for values in samples)
    columns = [*(SAMPLES.join(entries) for entries in labels), features, img_path, str(size)]
    return COLUMNS.join(columns).encode("utf-8", "surrogateescape")
