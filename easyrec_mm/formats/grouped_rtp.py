"""Grouped samples as GroupRTP text, one line a group; see docs/data_format.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from easyrec_mm.errors import DataError
from easyrec_mm.files.opening import open_binary
from easyrec_mm.formats.columns import ARROW_TYPES, Kind, Typed, to_kind
from easyrec_mm.formats.grouped_table import (
    READ_GROUPS,
    BadGroup,
    GroupFields,
    Groups,
    GroupsPiece,
    Ints,
    Mask,
    Problems,
    empty_groups,
    offsets,
    one_a_group,
    pieces,
)

# Lines from which the number of columns is taken, as training does.
_NUM_PROBE_LINES = 100
# Numbers so near to 0 that 32 bits do not tell them from it; with three digits of an exponent, they could not be read.
_TINY = 1e-99


HOLDS_SEPARATOR = "contains a separator of lines; choose another --rtp_separator or --format"


@dataclass(frozen=True)
class RtpLayout:
    """Where the parts of a line stand, as schema.RowLayout: column indices and separators."""

    label_columns: tuple[int, ...]
    features_column: int
    image_column: int
    size_column: int
    column_separator: str = "|"
    sample_separator: str = "\x01"
    value_separator: str = "\x02"

    @staticmethod
    def of(num_labels: int, column_separator: str = "|") -> RtpLayout:
        """Labels, features, image path, group size, and nothing else."""
        return RtpLayout(tuple(range(num_labels)), num_labels, num_labels + 1, num_labels + 2, column_separator)


def forbidden(column_separator: str) -> str:
    """What no text may contain that becomes part of a line, as a regular expression."""
    return rf"[\x01\x02\n\r]|{re.escape(column_separator)}"  # a carriage return would be lost


class RtpWriter:
    """A GroupWriter of lines with labels, features, image path and group size."""

    def __init__(self, path: str, fields: GroupFields) -> None:
        self._fields = fields
        self._file = open(path, "wb")  # noqa: SIM115

    def write(self, groups: Groups) -> None:
        """See GroupWriter.write."""
        for start, end in pieces(len(groups.size)):
            lines = encode(groups.slice(start, end, self._fields), self._fields)
            self._file.write(b"".join(part + b"\n" for part in lines.cast(pa.binary()).to_pylist()))

    def close(self) -> None:
        """See GroupWriter.close."""
        self._file.close()


def encode(groups: Groups, fields: GroupFields) -> pa.Array:
    """Lines without their ends, text [G].

    Raises:
      DataError: if a text contains a separator; `find_forbidden` tells which groups are so.
    """
    layout = RtpLayout.of(len(fields.labels), fields.column_separator)
    problems = find_forbidden(groups, fields)
    if problems.is_bad.any():
        bad = problems.bad_groups(np.arange(1, len(groups.size) + 1))[0]
        raise DataError(f"{bad.where}: {bad.problem}")
    of_lists = offsets(groups.size)
    texts = {name: _texts(groups.columns[name]) for name in fields.kinds}
    group_of_samples = groups.group_of_samples
    for name in fields.per_group - {fields.image}:
        texts[name] = texts[name].take(group_of_samples)
    columns = [_joined(texts[name], of_lists, layout) for name in fields.labels]
    values = [texts[name] for name in fields.sample_fields]
    if values:
        samples = pc.binary_join_element_wise(*values, layout.value_separator)
    else:
        samples = pa.array([""] * len(group_of_samples))
    columns += [_joined(samples, of_lists, layout), texts[fields.image], pa.array(groups.size).cast(pa.string())]
    return pc.binary_join_element_wise(*columns, layout.column_separator)


def _texts(column: pa.Array) -> pa.Array:
    if pa.types.is_floating(column.type):
        is_tiny = pc.and_(pc.less(pc.abs(column), _TINY), pc.not_equal(column, 0))  # -0.0 stays
        column = pc.if_else(is_tiny, pa.scalar(0, column.type), column)
    elif pa.types.is_boolean(column.type):
        column = column.cast(pa.int64())
    return pc.fill_null(column.cast(pa.string()), "")


def _joined(texts: pa.Array, of_lists: pa.Array, layout: RtpLayout) -> pa.Array:
    return pc.binary_join(pa.ListArray.from_arrays(of_lists, texts), layout.sample_separator)


def find_forbidden(groups: Groups, fields: GroupFields) -> Problems:
    """Groups with a text that contains a separator, or a line end."""
    problems = Problems(groups.size)
    for name, kind in fields.kinds.items():
        if kind == "string":
            column = groups.columns[name]
            is_bad = contains(column, forbidden(fields.column_separator))
            refuse = problems.refuse if name in fields.per_group else problems.refuse_samples
            refuse(is_bad, f"column '{name}'", lambda i, c=column: f"{c[i].as_py()!r} {HOLDS_SEPARATOR}")
    return problems


def contains(column: pa.Array, pattern: str) -> Mask:
    """Which texts a pattern is found in; bool [N]."""
    found = pc.fill_null(pc.match_substring_regex(column, pattern), False)
    return found.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


# --- Reading


def read_rtp(path: str, fields: GroupFields, layout: RtpLayout) -> Iterator[GroupsPiece]:
    """The groups of a file.

    Raises:
      DataError: if it cannot be read, or lines have too few columns.
    """
    try:
        with open_binary(path) as stream:
            probe = [line for _, line in zip(range(_NUM_PROBE_LINES), stream, strict=False)]
            num_columns = _num_columns(path, probe, layout)
            lines: list[bytes] = []
            first = 1
            for line in chain(probe, stream):
                lines.append(line.rstrip(b"\n").replace(b"\r", b""))
                if len(lines) == READ_GROUPS:
                    yield decode(lines, first, fields, layout, num_columns)
                    first += len(lines)
                    lines = []
            if lines:
                yield decode(lines, first, fields, layout, num_columns)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _num_columns(path: str, lines: list[bytes], layout: RtpLayout) -> int:
    counts = Counter(line.count(layout.column_separator.encode()) + 1 for line in lines)
    num_columns = counts.most_common(1)[0][0] if counts else 0
    needed = max(*layout.label_columns, layout.features_column, layout.image_column, layout.size_column) + 1
    if lines and num_columns < needed:
        raise DataError(
            f"{path}: lines have {num_columns} column(s), and data_config.selected_cols reads column {needed - 1}; "
            f"check selected_cols and rtp_separator {layout.column_separator!r}"
        )
    return num_columns


def decode(lines: list[bytes], first_row: int, fields: GroupFields, layout: RtpLayout, num_columns: int) -> GroupsPiece:
    """Lines -> groups; `first_row` is the row of the first."""
    rows: Ints = np.arange(first_row, first_row + len(lines))
    columns = _split(pa.array(lines, pa.binary()), layout.column_separator)
    refused: list[BadGroup] = []
    is_good = np.ones(len(lines), bool)

    def refuse(is_bad: Mask, where: str, what: object) -> None:
        nonlocal is_good
        for i in np.flatnonzero(is_good & is_bad).tolist():
            refused.append(BadGroup(int(rows[i]), where, what(i)))  # type: ignore[operator]
        is_good = is_good & ~is_bad

    num_found = _lengths(columns)
    refuse(num_found != num_columns, "line", lambda i: f"{num_found[i]} columns, not {num_columns}")
    place = np.minimum(np.arange(num_columns)[:, None], np.maximum(num_found - 1, 0)) + _first(
        columns
    )  # [column, line]

    def column(index: int) -> pa.Array:
        return columns.values.take(pa.array(place[index]))

    size_text = column(layout.size_column)
    typed = to_kind(size_text, "int64", strict=True)
    size = pc.fill_null(typed.values, 0).to_numpy(zero_copy_only=False)
    where = f"column {layout.size_column} ({fields.size})"
    refuse(size <= 0, where, lambda i: f"group size '{_shown(size_text[i])}', not 1 or more")
    parts: dict[str, pa.ListArray] = {}
    for name, index in (*zip(fields.labels, layout.label_columns, strict=True), ("features", layout.features_column)):
        parts[name] = _split(column(index), layout.sample_separator)
        length = _lengths(parts[name])
        told = "samples" if name == "features" else "entries"
        where = f"column {index} ({name})"
        refuse(length != size, where, lambda i, n=length, t=told: f"{n[i]} {t}, group size {size[i]}")
    good = pa.array(is_good)
    rows, size = rows[is_good], size[is_good]
    if not len(rows):
        return GroupsPiece(empty_groups(fields), rows, sorted(refused))
    image = column(layout.image_column).filter(good)
    texts = {name: part.filter(good).flatten() for name, part in parts.items()}
    piece = _typed(texts, image, size, rows, fields, layout)
    return GroupsPiece(piece.groups, piece.rows, sorted(refused + piece.refused))


def _typed(
    texts: dict[str, pa.Array], image: pa.Array, size: Ints, rows: Ints, fields: GroupFields, layout: RtpLayout
) -> GroupsPiece:
    """Texts of samples -> groups."""
    values = _split(texts.pop("features"), layout.value_separator)
    num_values = len(fields.sample_fields)
    problems = Problems(size)
    lengths = _lengths(values)
    is_ragged = lengths != num_values
    problems.refuse_samples(is_ragged, "features", lambda i: f"{lengths[i]} values, not {num_values}")
    starts = _first(values)
    for i, name in enumerate(fields.sample_fields):
        place = np.where(is_ragged, 0, starts + i)
        texts[name] = values.values.take(pa.array(place))
    columns: dict[str, pa.Array] = {}
    for name, kind in fields.kinds.items():
        if name == fields.image:
            typed = to_kind(image, "string")
            columns[name] = pc.fill_null(typed.values, "")
            refuse = problems.refuse
        else:
            typed = _label(texts[name], kind) if name in fields.labels else to_kind(texts[name], kind, strict=True)
            refuse = problems.refuse_samples
            if kind == "string":
                typed = Typed(pc.if_else(pc.equal(typed.values, ""), None, typed.values), typed.is_bad)
        if typed.is_bad is not None:
            source = image if name == fields.image else texts[name]
            refuse(typed.is_bad, f"column '{name}'", lambda i, t=source, k=kind: f"'{_shown(t[i])}' is no {k}")
        if name != fields.image:
            column = typed.values
            columns[name] = one_a_group(name, column, size, problems) if name in fields.per_group else column
    good = ~problems.is_bad
    return GroupsPiece(Groups(size, columns).select(good, fields), rows[good], problems.bad_groups(rows))


def _label(texts: pa.Array, kind: Kind) -> Typed:
    """A label may be written as a number with a fraction of zero, whatever its field says."""
    typed = to_kind(texts, kind, strict=True)
    if kind != "int64" or typed.is_bad is None:
        return typed
    numbers = to_kind(texts, "float64", strict=True)
    whole = to_kind(numbers.values, "int64")
    is_bad = [one.is_bad for one in (numbers, whole) if one.is_bad is not None]
    return Typed(whole.values.cast(ARROW_TYPES[kind]), np.any(is_bad, axis=0) if is_bad else None)


def _split(texts: pa.Array, separator: str) -> pa.ListArray:
    if separator:
        return pc.split_pattern(texts, separator)
    # Single bytes, as in EasyRec.
    data = b"".join(texts.to_pylist())
    single = pa.array([data[i : i + 1] for i in range(len(data))], pa.binary())
    return pa.ListArray.from_arrays(offsets(pc.binary_length(texts).to_numpy().astype(np.int64)), single)


def _lengths(lists: pa.ListArray) -> Ints:
    return pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]


def _first(lists: pa.ListArray) -> Ints:
    """Where each list begins in lists.values."""
    return lists.offsets.to_numpy()[:-1].astype(np.int64)  # type: ignore[no-any-return]


def _shown(value: pa.Scalar) -> str:
    return (value.as_py() or b"").decode("utf-8", "replace")


def count_rtp(path: str, fields: GroupFields) -> tuple[int, int]:
    """Groups and samples of a file that RtpWriter wrote: by its separators of samples."""
    num_lines = num_separators = 0
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            num_lines += block.count(b"\n")
            num_separators += block.count(b"\x01")
    # Each label column and the features column have one less than samples.
    return num_lines, num_lines + num_separators // (len(fields.labels) + 1)
