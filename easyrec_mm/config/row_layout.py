"""Checks the positions of the parts of a row, and derives the RowLayout. Never imports TensorFlow."""

from __future__ import annotations

import re

from easyrec_mm.errors import Problems
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.schema import RowLayout

# Input types whose rows are GroupRTP lines.
GROUP_RTP = (DatasetConfig.GroupRTPInput, DatasetConfig.OdpsGroupRTPInput)
# Separates the columns of a line that is made from a row of a table; does not occur in texts that people write.
_ODPS_SEPARATOR = "\x1f\x1e\x1f"


def row_layout(
    data: DatasetConfig, labels: tuple[str, ...], sample_fields: tuple[str, ...], has_image: bool, problems: Problems
) -> RowLayout:
    """Return the positions of the parts of a line; for inputs other than GroupRTP only the fields of a sample."""
    if data.with_header and data.input_type != DatasetConfig.CSVInput:
        problems.add("data_config.with_header", "has an effect only with input_type CSVInput; remove it")
    if data.input_type in GROUP_RTP:
        return _line_layout(data, labels, sample_fields, has_image, problems)
    kind = DatasetConfig.InputType.Name(data.input_type)
    if data.input_type == DatasetConfig.CSVInput and len(data.separator) != 1:
        problems.add("data_config.separator", f"{data.separator!r} is not one character; CSV files need one")
    for setting in ("rtp_separator", "group_sample_separator", "selected_cols", "separator"):
        if data.HasField(setting) and not (setting == "separator" and data.input_type == DatasetConfig.CSVInput):
            problems.add(f"data_config.{setting}", f"has no effect with input_type {kind}; remove it")
    return RowLayout((), -1, -1, -1, sample_fields, "", "", "")


def _line_layout(
    data: DatasetConfig, labels: tuple[str, ...], sample_fields: tuple[str, ...], has_image: bool, problems: Problems
) -> RowLayout:
    columns = _selected_columns(data, labels, has_image, problems)
    num_labels = len(labels)
    is_table = data.input_type == DatasetConfig.OdpsGroupRTPInput
    if is_table and data.HasField("rtp_separator"):
        problems.add("data_config.rtp_separator", "has no effect with input_type OdpsGroupRTPInput; remove it")
    separators = {
        "rtp_separator": _ODPS_SEPARATOR if is_table else data.rtp_separator,
        "group_sample_separator": data.group_sample_separator,
        "separator": data.separator,
    }
    for i, (name, value) in enumerate(separators.items()):
        if not value and name != "separator":
            hint = 'if a control character was lost in copying, write it as "\\001"'
            problems.add(f"data_config.{name}", f"is empty; give the character between the parts ({hint})")
        for other, other_value in list(separators.items())[:i]:
            if value and value == other_value:
                problems.add(f"data_config.{name}", f"{value!r} is also used as {other}; use different separators")
    return RowLayout(
        label_columns=tuple(columns[:num_labels]),
        features_column=columns[num_labels],
        image_column=columns[num_labels + 1] if has_image else -1,
        size_column=columns[-1],
        sample_fields=sample_fields,
        column_separator=separators["rtp_separator"],
        sample_separator=data.group_sample_separator,
        value_separator=data.separator,
    )


def _selected_columns(data: DatasetConfig, labels: tuple[str, ...], has_image: bool, problems: Problems) -> list[int]:
    """Return the indices of the columns that are read; a line made from a table has no other columns."""
    place = "data_config.selected_cols"
    num_columns = len(labels) + 2 + has_image
    image = "image path, " if has_image else ""
    parts = f"{len(labels)} label column(s) ({', '.join(labels) or 'none'}), features, {image}group size"
    texts = [text.strip() for text in data.selected_cols.split(",")]
    is_table = data.input_type == DatasetConfig.OdpsGroupRTPInput
    if not (all(texts) if is_table else all(re.fullmatch("[0-9]+", text) for text in texts)):
        entries = "names of columns" if is_table else "column indices from 0"
        problems.add(place, f"'{data.selected_cols}' is not a list of {entries}; give {parts}")
    elif len(texts) != num_columns:
        problems.add(place, f"'{data.selected_cols}' has {len(texts)} columns, not {num_columns}; give {parts}")
    elif len(set(texts if is_table else map(int, texts))) != num_columns:
        problems.add(place, f"'{data.selected_cols}' names a column twice; give each part its own column")
    elif not is_table:
        return [int(text) for text in texts]
    # The columns of a table are numbered in order; after a problem, the following checks still need a layout.
    return list(range(num_columns))
