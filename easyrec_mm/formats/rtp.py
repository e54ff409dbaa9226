"""Grouped samples as GroupRTP text, one line per group; see docs/data_format.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from easyrec_mm.errors import DataError
from easyrec_mm.features.text_patterns import VALUE_PATTERNS
from easyrec_mm.files.opening import open_binary
from easyrec_mm.formats.checks import GroupProblems, Ints, Mask, as_bytes, column_place, refuse_bytes, shown
from easyrec_mm.formats.grouped_table import (
    GroupFields,
    Groups,
    GroupsPiece,
    numbered,
    offsets,
    piece_of,
    pieces,
)
from easyrec_mm.formats.typed_groups import TypedGroups, TypedRows, valid_rows
from easyrec_mm.schema import RowLayout

# Number of first lines that determine the number of columns.
NUM_PROBE_LINES = 100
# The mark of the byte order with which some programs begin a file of UTF-8.
BOM = b"\xef\xbb\xbf"
# Numbers below this are written as 0: 32 bits cannot represent them, and exponents of three digits cannot be read.
_TINY = 1e-99


HOLDS_SEPARATOR = "contains a line break or a separator; choose another --rtp_separator or --format"


def written_layout(num_labels: int, column_separator: str = "|", has_image: bool = True) -> RowLayout:
    """Return the layout of the lines that are written: labels, features, image path if the data have it, group size."""
    image_column = num_labels + 1 if has_image else -1
    columns = (tuple(range(num_labels)), num_labels, image_column, num_labels + 1 + has_image)
    return RowLayout(*columns, (), column_separator, "\x01", "\x02")


def selected_columns(layout: RowLayout) -> str:
    """Return data_config.selected_cols for lines with this layout."""
    columns = (*layout.label_columns, layout.features_column, layout.image_column, layout.size_column)
    return ",".join(str(column) for column in columns if column >= 0)


def forbidden(column_separator: str) -> str:
    """Return a regular expression for what a text in a line must not contain."""
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
    """Return the groups as lines without line ends, text [G].

    Raises:
      DataError: if a text contains a separator; `find_forbidden` finds these groups.
    """
    layout = written_layout(len(fields.labels), fields.column_separator, bool(fields.image))
    problems = find_forbidden(groups, fields)
    if problems.is_bad.any():
        bad = problems.at_rows(np.arange(1, len(groups.size) + 1))[0]
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
    image = [texts[fields.image]] if fields.image else []
    columns += [_joined(samples, of_lists, layout), *image, pa.array(groups.size).cast(pa.string())]
    return pc.binary_join_element_wise(*columns, layout.column_separator)


def _texts(column: pa.Array) -> pa.Array:
    if pa.types.is_floating(column.type):
        is_tiny = pc.and_(pc.less(pc.abs(column), _TINY), pc.not_equal(column, 0))  # -0.0 stays
        column = pc.if_else(is_tiny, pa.scalar(0, column.type), column)
    elif pa.types.is_boolean(column.type):
        column = column.cast(pa.int64())
    return pc.fill_null(column.cast(pa.string()), "")


def _joined(texts: pa.Array, of_lists: pa.Array, layout: RowLayout) -> pa.Array:
    return pc.binary_join(pa.ListArray.from_arrays(of_lists, texts), layout.sample_separator)


def find_forbidden(groups: Groups, fields: GroupFields) -> GroupProblems:
    """Return the groups with a text that contains a separator or a line end."""
    problems = GroupProblems(groups.size)
    for name, kind in fields.kinds.items():
        if kind == "string":
            column = groups.columns[name]
            is_bad = contains(column, forbidden(fields.column_separator))
            refuse = problems.refuse if name in fields.per_group else problems.refuse_samples
            refuse(is_bad, column_place(name), lambda i, c=column: f"{c[i].as_py()!r} {HOLDS_SEPARATOR}")  # type: ignore[misc]
    return problems


def contains(column: pa.Array, pattern: str) -> Mask:
    """Return which texts contain a match of a pattern, bool [N]."""
    is_match = pc.fill_null(pc.match_substring_regex(column, pattern), False)
    return is_match.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


# --- Reading


def read_rtp(path: str, fields: GroupFields, groups: TypedGroups) -> Iterator[GroupsPiece]:
    """Yield the groups of a file.

    Args:
      path: path of the file, gzip or not.
      fields: fields of the groups.
      groups: the same fields as training reads them; it checks the values.

    Raises:
      DataError: if the file cannot be read, or lines have too few columns.
    """
    try:
        with open_binary(path) as stream:
            lines = text_lines(stream)
            probe = list(islice(lines, NUM_PROBE_LINES))
            num_columns = count_columns(path, probe, groups.schema.layout)
            for rows, portion in numbered(chain(probe, lines)):
                yield piece_of(read_lines(portion, num_columns, groups), fields, rows)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def text_lines(stream: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file without line ends, as TensorFlow's TextLineDataset does, and without a first BOM."""
    for number, line in enumerate(stream):
        text = line.rstrip(b"\n").replace(b"\r", b"")
        yield text if number else text.removeprefix(BOM)


def count_columns(path: str, lines: list[bytes], layout: RowLayout) -> int:
    """Return the number of columns that most of a file's first lines have; 0 if there are no lines.

    Raises:
      DataError: if the lines have fewer columns than the layout reads.
    """
    num_columns = most_columns(lines, layout)
    needed = max(*layout.label_columns, layout.features_column, layout.image_column, layout.size_column) + 1
    if lines and num_columns < needed:
        raise DataError(
            f"{path}: lines have {num_columns} column(s), and data_config.selected_cols reads column {needed - 1}; "
            f"check selected_cols and rtp_separator {layout.column_separator!r}"
        )
    return num_columns


def most_columns(lines: list[bytes], layout: RowLayout) -> int:
    """Return the number of columns that most lines have; 0 if there are no lines."""
    counts = Counter(line.count(layout.column_separator.encode()) + 1 for line in lines if line)
    return counts.most_common(1)[0][0] if counts else 0


def read_lines(lines: Sequence[bytes], num_columns: int, groups: TypedGroups) -> TypedRows:
    """Split lines [N] into the texts of samples, and return the valid groups; `columns` has all fields of a sample.

    An empty line is no group, valid or not: editors and other programs leave one at the end of a file.

    Args:
      lines: lines without line ends.
      num_columns: number of columns that every line must have.
      groups: determines the labels that are read, and checks the values.
    """
    schema, layout = groups.schema, groups.schema.layout
    columns = _split(pa.array(lines, pa.binary()), layout.column_separator)
    num_found = _lengths(columns)
    line_problems = GroupProblems(np.ones(len(lines), np.int64))
    line_problems.refuse(num_found != num_columns, "line", lambda i: f"{num_found[i]} columns, not {num_columns}")
    last = np.maximum(num_found - 1, 0)

    def column(index: int) -> pa.Array:
        # A line with too few columns is refused, so it does not matter what is read here for it.
        return columns.values.take(pa.array(_first(columns) + np.minimum(index, last)))

    size = _read_sizes(column(layout.size_column), schema.group_size_field, line_problems)
    places = zip(schema.labels, layout.label_columns, strict=True)
    parts: dict[str, pa.ListArray] = {}
    for name, index in (*((name, i) for name, i in places if name in groups.labels), ("", layout.features_column)):
        parts[name] = _split(column(index), layout.sample_separator)
        length = _lengths(parts[name])
        where = column_place(name) if name else "features"
        line_problems.refuse(length != size, where, lambda i, n=length: f"{n[i]} entries, group size {size[i]}")  # type: ignore[misc]
    good = pa.array(~line_problems.is_bad)
    problems = GroupProblems(size[~line_problems.is_bad])
    texts = {name: part.filter(good).flatten() for name, part in parts.items()}
    texts |= _split_samples(texts.pop(""), layout, problems)
    image = column(layout.image_column) if layout.image_column >= 0 else pa.nulls(len(lines), pa.binary())
    fields = groups.checks.check(texts, problems)
    paths = image.filter(good)
    refuse_bytes(paths, schema.image.field, problems.refuse)
    rows = valid_rows(fields, texts, as_bytes(paths), problems)
    kept_lines = np.flatnonzero(~line_problems.is_bad)
    refused = line_problems.by_group | {int(kept_lines[group]): problem for group, problem in rows.problems.items()}
    problems_of_groups = {line: problem for line, problem in refused.items() if lines[line]}
    return replace(rows, kept_groups=kept_lines[rows.kept_groups], problems=problems_of_groups)


def _split_samples(samples: pa.Array, layout: RowLayout, problems: GroupProblems) -> dict[str, pa.Array]:
    """Split samples [S] into the texts of their fields; groups whose samples have too few or too many are refused."""
    values = _split(samples, layout.value_separator)
    lengths, names = _lengths(values), layout.sample_fields
    is_ragged = lengths != len(names)
    problems.refuse_samples(is_ragged, "features", lambda i: f"{lengths[i]} values, not {len(names)}")
    # Samples with a wrong number of values are refused; they get empty values here.
    pool = pa.concat_arrays([values.values, pa.array([b""])]) if is_ragged.any() else values.values
    places = (np.where(is_ragged, len(pool) - 1, _first(values) + i) for i in range(len(names)))
    return {name: pool.take(pa.array(place)) for name, place in zip(names, places, strict=True)}


def _read_sizes(texts: pa.Array, size_name: str, problems: GroupProblems) -> Ints:
    """Return the group sizes of lines, 0 for a text that is not a number; lines with a size below 1 are refused."""
    matches = pc.match_substring_regex(texts, f"^(?:{VALUE_PATTERNS['int64']})$")
    digits = pc.replace_substring_regex(pc.if_else(matches, texts, b"0").cast(pa.string()), r"[+ \t]", "")
    size: Ints = digits.cast(pa.int64()).to_numpy(zero_copy_only=False)

    def shown_size(line: int) -> str:
        return str(size[line]) if matches[line].as_py() else shown(texts[line].as_py())

    problems.refuse(size <= 0, column_place(size_name), lambda i: f"group size {shown_size(i)} is not 1 or more")
    return size


def _split(texts: pa.Array, separator: str) -> pa.ListArray:
    if separator:
        return pc.split_pattern(texts, separator)
    # The empty separator splits into single bytes, as in EasyRec.
    data = b"".join(texts.to_pylist())
    single = pa.array([data[i : i + 1] for i in range(len(data))], pa.binary())
    return pa.ListArray.from_arrays(offsets(pc.binary_length(texts).to_numpy().astype(np.int64)), single)


def _lengths(lists: pa.ListArray) -> Ints:
    return pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]


def _first(lists: pa.ListArray) -> Ints:
    """Return the position in lists.values at which each list begins."""
    return lists.offsets.to_numpy()[:-1].astype(np.int64)  # type: ignore[no-any-return]


def count_rtp(path: str, fields: GroupFields) -> tuple[int, int]:
    """Return the number of groups and samples of an RtpWriter's file, from the number of sample separators."""
    num_lines = num_separators = 0
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            num_lines += block.count(b"\n")
            num_separators += block.count(b"\x01")
    # Each label column and the features column contain one separator less than they have samples.
    return num_lines, num_lines + num_separators // (len(fields.labels) + 1)
