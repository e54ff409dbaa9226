"""The GroupRTP text format: parses lines into checked, typed values of samples. See docs/data_format.md.

This module owns the format only; files, shuffling and pictures are handled elsewhere. Every column and every sample is
checked group by group, never in a flattened batch, where mistakes can cancel out (15 and 17 samples instead of 16 and
16) and samples would silently be trained with wrong pictures. A group that fails a check is left out as a whole and
reported; `explain` then determines in plain Python what is wrong with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from easyrec_mm.errors import DataError
from easyrec_mm.features.field import Dtype, Field
from easyrec_mm.features.tensorflow_back_end import DTYPES, split_texts
from easyrec_mm.features.text_patterns import VALUE_PATTERNS
from easyrec_mm.formats.checks import Problem
from easyrec_mm.formats.data_files import DataFiles
from easyrec_mm.formats.grouped_table import batched
from easyrec_mm.formats.record_files import RecordFiles
from easyrec_mm.formats.rtp import BOM, NUM_PROBE_LINES, count_columns, read_lines
from easyrec_mm.formats.source import TEXT_GROUPS, Chunk, GroupRows, Order
from easyrec_mm.formats.typed_groups import TextGroup, TypedGroups, TypedRows, text_groups
from easyrec_mm.schema import RowLayout, Schema

# Joins the values of a column so that one match checks all of them; a line of text cannot contain it.
_LINE_END = "\n"
# Bytes that a text may be padded by.
_FEW_BYTES = 32
# RE2's pattern of a text that is UTF-8.
_UTF8 = r"(?s:[\x00-\x{D7FF}\x{E000}-\x{10FFFF}]*)"


class _Parts(NamedTuple):
    """Split texts: all parts in order, string [P], and the number of parts per text, int64 [N]."""

    values: tf.Tensor
    lengths: tf.Tensor


class _Texts(NamedTuple):
    """The split lines, before their values are parsed."""

    labels: dict[str, tf.Tensor]  # [S]
    values: tf.Tensor  # [S * number of sample fields]
    image_path: tf.Tensor  # [G]
    group_size: tf.Tensor  # [G]


class GroupRtpSource(RecordFiles):
    """A Source of the groups in GroupRTP files.

    Args:
      files: text files, with or without gzip.
      schema, labels, fields: as for GroupRtpParser.
      order: order of the lines in an epoch.

    Raises:
      DataError: if a file cannot be read, no file contains a line, or lines have too few columns.
    """

    def __init__(
        self, files: DataFiles, schema: Schema, labels: tuple[str, ...], fields: tuple[str, ...], order: Order
    ) -> None:
        super().__init__(files, tf.data.TextLineDataset, order)
        self._parser = shared_parser(schema, labels, fields, self._count_columns(schema.layout))

    def parse(self, epoch: tf.Tensor, file: tf.Tensor, row: tf.Tensor, lines: tf.Tensor) -> Chunk:
        """See Source.parse."""
        is_first = tf.equal(row, 1)
        lines = tf.cond(
            tf.reduce_any(is_first),
            lambda: tf.where(is_first, tf.strings.regex_replace(lines, f"^{BOM.decode()}", ""), lines),
            lambda: lines,
        )
        return Chunk(epoch, file, row, self._parser.compiled(lines))

    def read(self) -> Iterator[tuple[str, int, bytes]]:
        """See RecordFiles.read; the first line of a file is without a BOM, as in `parse`."""
        for file, row, line in super().read():
            yield file, row, line.removeprefix(BOM) if row == 1 else line

    def explain(self, evidence: bytes) -> Problem | None:
        """See Source.explain; the evidence is the line."""
        if not evidence:
            return None
        return self._parser.explain(evidence) or Problem("line", "malformed")

    def texts(self) -> Iterator[tuple[str, int, TextGroup | Problem]]:
        """See Source.texts."""
        lines = (record for record in self.read() if record[2])
        for portion in batched(lines, TEXT_GROUPS):
            groups = self._parser.texts([line for *_, line in portion])
            yield from ((file, row, group) for (file, row, _), group in zip(portion, groups, strict=True))

    def _count_columns(self, layout: RowLayout) -> int:
        """Return the number of columns that most of the first lines have; every line must have as many."""
        probe = [line for _, _, line in islice(self.read(), NUM_PROBE_LINES)]
        if not probe:
            raise DataError(f"{', '.join(self._read_names[:3])}: no line of data; give files that hold groups")
        return count_columns(self._read_names[0], probe, layout)


@functools.lru_cache(maxsize=16)
def shared_parser(schema: Schema, labels: tuple[str, ...], fields: tuple[str, ...], num_columns: int) -> GroupRtpParser:
    """Return the parser of these arguments.

    All sources of a process share it: compiling takes a second, and each evaluation of a training opens a source.
    """
    return GroupRtpParser(schema, labels, fields, num_columns)


class GroupRtpParser:
    """Parses lines of text within a TensorFlow graph.

    Args:
      schema: fields, layout and tasks.
      labels: label fields to read; empty for prediction, where label columns may contain anything.
      fields: fields of a sample to read.
      num_columns: number of columns that every line must have.
    """

    def __init__(self, schema: Schema, labels: tuple[str, ...], fields: tuple[str, ...], num_columns: int) -> None:
        self._schema = schema
        self._layout = schema.layout
        self._labels = [(schema.field(name), schema.layout.label_columns[schema.labels.index(name)]) for name in labels]
        self._num_columns = num_columns
        self._groups = TypedGroups(schema, labels, fields)
        self._checks = self._groups.checks
        # Fields that are read alike are read together: the time to compile, and to begin, grows with the operations.
        self._kinds: dict[tuple[Dtype, tuple[str, ...]], list[tuple[Field, int]]] = {}
        for name in fields:
            field = schema.field(name)
            kind = field.dtype, tuple(self._checks.patterns.get(name, ()))
            self._kinds.setdefault(kind, []).append((field, schema.layout.sample_fields.index(name)))
        read = {*labels, *fields}
        self._group_fields = [name for name in schema.group_fields if name in read]

    @functools.cached_property
    def compiled(self) -> Callable[[tf.Tensor], GroupRows]:
        """Return the parser as a tf.function."""
        function: Callable[[tf.Tensor], GroupRows] = tf.function(
            self.__call__, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
        )
        return function

    def __call__(self, lines: tf.Tensor) -> GroupRows:
        """Parse lines, string `[G]`, and return the valid groups among them."""
        texts, is_whole = self._split(lines)
        texts = tf.cond(
            tf.reduce_all(is_whole), lambda: texts, lambda: self._split(tf.boolean_mask(lines, is_whole))[0]
        )
        whole_lines = tf.where(is_whole)[:, 0]
        values = tf.reshape(texts.values, [-1, len(self._layout.sample_fields)])
        is_ascii = are_ascii(lines)
        fields, is_good_sample = self._read(texts.labels, values, is_ascii)

        sample_group = tf.repeat(tf.range(tf.size(whole_lines)), texts.group_size)  # [S]
        first_sample = tf.cast(tf.cumsum(texts.group_size, exclusive=True), tf.int32)  # [G]
        for name in self._group_fields:
            of_first = tf.gather(tf.gather(fields[name], first_sample), sample_group)
            is_good_sample &= tf.equal(fields[name], of_first)
        num_bad = tf.math.unsorted_segment_sum(tf.cast(~is_good_sample, tf.int32), sample_group, tf.size(whole_lines))
        # One per group in `whole_lines`.
        is_good = tf.equal(num_bad, 0) & are_utf8(texts.image_path, is_ascii)
        groups = (texts.image_path, texts.group_size, whole_lines)

        def only_good() -> tuple[dict[str, tf.Tensor], tuple[tf.Tensor, ...]]:
            of_good_group = tf.gather(is_good, sample_group)
            return (
                {dtype: tf.boolean_mask(stack, of_good_group, axis=1) for dtype, stack in stacks.items()},
                tuple(tf.boolean_mask(value, is_good) for value in groups),
            )

        names, stacks = _stacked(fields)
        stacks, groups = tf.cond(tf.reduce_all(is_good), lambda: (stacks, groups), only_good)
        fields = {
            name: value
            for dtype, stack in stacks.items()
            for name, value in zip(names[dtype], tf.unstack(stack, len(names[dtype])), strict=True)
        }
        refused = tf.sort(tf.concat([tf.where(~is_whole)[:, 0], tf.boolean_mask(whole_lines, ~is_good)], 0))
        image_path, group_size, kept_lines = groups
        return GroupRows(fields, image_path, group_size, kept_lines, refused, evidence=tf.gather(lines, refused))

    def _split(self, lines: tf.Tensor) -> tuple[_Texts, tf.Tensor]:
        """Split lines into values; also return which lines are whole, bool [G]."""
        layout = self._layout
        columns = _split(lines, layout.column_separator)
        is_whole = tf.equal(columns.lengths, self._num_columns)
        starts = tf.cumsum(columns.lengths, exclusive=True)
        last = starts + columns.lengths - 1

        def column(index: int) -> tf.Tensor:
            # A line with too few columns is refused, so it does not matter what is read here for it.
            return tf.gather(columns.values, tf.minimum(starts + index, last))

        group_size, has_size = _read_numbers(column(layout.size_column), [VALUE_PATTERNS["int64"]], "0", tf.int64)
        is_whole &= has_size & (group_size > 0)
        labels = {}
        for field, index in self._labels:
            entries = _split(column(index), layout.sample_separator)
            is_whole &= tf.equal(entries.lengths, group_size)
            labels[field.name] = entries.values
        samples = _split(column(layout.features_column), layout.sample_separator)
        is_whole &= tf.equal(samples.lengths, group_size)
        values = _split(samples.values, layout.value_separator)
        is_ragged = tf.not_equal(values.lengths, len(layout.sample_fields))  # [S]
        sample_line = tf.repeat(tf.range(tf.size(lines)), samples.lengths)  # [S]
        num_ragged = tf.math.unsorted_segment_sum(tf.cast(is_ragged, tf.int32), sample_line, tf.size(lines))
        is_whole &= tf.equal(num_ragged, 0)
        image_path = column(layout.image_column) if layout.image_column >= 0 else tf.fill(tf.shape(lines), "")
        return _Texts(labels, values.values, image_path, group_size), is_whole

    def _read(
        self, label_texts: dict[str, tf.Tensor], values: tf.Tensor, is_ascii: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Parse texts to typed values; also return which samples have only valid values, bool [S]."""
        fields: dict[str, tf.Tensor] = {}
        is_good = tf.ones(tf.shape(values)[:1], tf.bool)
        columns = tf.unstack(values, len(self._layout.sample_fields), axis=1)
        for field, _ in self._labels:
            dtype = _label_dtype(field)
            # Without a default, a missing label stays "", which is not a valid number.
            default = field.default if field.optional else ""
            numbers, ok = _read_numbers(label_texts[field.name], [VALUE_PATTERNS[dtype]], default, DTYPES[dtype])
            numbers = tf.cast(numbers, tf.float32)
            low, high, is_class = self._schema.label_range(field.name)
            ok &= (numbers >= low) & (numbers <= high)
            if is_class:
                ok &= tf.equal(numbers, tf.round(numbers))
            fields[field.name] = numbers
            is_good &= ok
        for kind, members in self._kinds.items():
            texts = tf.stack([columns[index] for _, index in members])  # [fields, S]
            values_of_kind, ok = self._read_kind(*kind, [field for field, _ in members], texts, is_ascii)
            fields |= zip([field.name for field, _ in members], tf.unstack(values_of_kind, len(members)), strict=True)
            is_good &= tf.reduce_all(ok, axis=0)
        for lists in self._checks.aligned:
            first, *other_lengths = [
                split_texts(fields[name], separator).row_lengths() for name, separator in lists.items()
            ]
            for other in other_lengths:
                is_good &= tf.equal(first, other)
        return fields, is_good

    def _read_kind(
        self, dtype: Dtype, patterns: tuple[str, ...], members: Sequence[Field], texts: tf.Tensor, is_ascii: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Parse the texts `[fields, S]` of fields of a kind; also return which are valid."""
        defaults = [field.default for field in members]
        if dtype != "string":
            numbers, ok = _read_numbers(texts, patterns, tf.constant(defaults)[:, None], DTYPES[dtype])
            if dtype == "float32":
                largest = [self._schema.largest_number(field.name)[0] for field in members]
                ok &= tf.abs(numbers) <= tf.constant(largest)[:, None]
            return numbers, ok
        is_empty = tf.equal(texts, "")
        ok = is_empty | matches(texts, patterns) if patterns else are_utf8(texts, is_ascii)
        return (tf.where(is_empty, tf.constant(defaults)[:, None], texts) if any(defaults) else texts), ok

    def explain(self, line: bytes) -> Problem | None:
        """Return what is wrong with a line, found by the checks that all formats share; None for a valid line."""
        return self._read_lines([line]).problems.get(0)

    def texts(self, lines: Sequence[bytes]) -> Iterator[TextGroup | Problem]:
        """Yield the values of each line as texts, or what is wrong with it."""
        return text_groups(self._read_lines(lines))

    def _read_lines(self, lines: Sequence[bytes]) -> TypedRows:
        return read_lines(lines, self._num_columns, self._groups)


def _split(text: tf.Tensor, separator: str) -> _Parts:
    """Split texts `[N]`; the empty separator splits into single bytes, as in EasyRec."""
    if not separator:
        parts = tf.strings.bytes_split(text)
        return _Parts(parts.flat_values, parts.row_lengths())
    # tf.strings.split takes twice as long, because it creates a RaggedTensor, which is not needed here.
    pieces = tf.raw_ops.StringSplitV2(input=text, sep=separator)
    no_weights = tf.zeros([0], tf.int64)
    size = tf.size(text, tf.int64)
    return _Parts(pieces.values, tf.raw_ops.DenseBincount(input=pieces.indices[:, 0], size=size, weights=no_weights))


def _stacked(fields: dict[str, tf.Tensor]) -> tuple[dict[str, list[str]], dict[str, tf.Tensor]]:
    """Return the names of the fields of each dtype, and their values as one tensor `[fields, S]`."""
    names: dict[str, list[str]] = {}
    for name, values in fields.items():
        names.setdefault(values.dtype.name, []).append(name)
    return names, {dtype: tf.stack([fields[name] for name in members]) for dtype, members in names.items()}


def _read_numbers(
    text: tf.Tensor, patterns: Sequence[str], default: str | tf.Tensor, dtype: tf.DType
) -> tuple[tf.Tensor, tf.Tensor]:
    """Parse texts, "" as `default`, to numbers (bool as int64); also return which are valid; all `[N]` or `[F, N]`."""
    text = tf.where(tf.equal(text, ""), default, text)
    ok = matches(text, patterns)
    if dtype == tf.bool:
        return tf.cast(tf.strings.regex_full_match(text, "(?i:true)|1"), tf.int64), ok
    return tf.strings.to_number(tf.where(ok, text, "0"), dtype), ok


def matches(text: tf.Tensor, patterns: Sequence[str]) -> tf.Tensor:
    """Return which texts, `[N]` or `[F, N]`, match every pattern: bool of the same shape.

    One match of all texts of a row joined costs a fraction of N matches, and is nearly always sufficient. Texts that
    contain line ends, as those of a TFRecord may, are matched one by one.
    """
    rows = text if text.shape.rank == 2 else text[None]
    joined = tf.strings.reduce_join(rows, axis=1, separator=_LINE_END)  # [F]
    all_match = tf.reduce_all(
        [tf.strings.regex_full_match(joined, f"(?:{p})(?:{_LINE_END}(?:{p}))*") for p in patterns], axis=0
    )
    all_joined = tf.strings.reduce_join(joined, separator=_LINE_END)
    num_line_ends = tf.math.count_nonzero(tf.equal(tf.io.decode_raw(all_joined, tf.uint8), ord("\n")), dtype=tf.int32)
    all_match &= tf.equal(num_line_ends, tf.size(rows) - 1)

    def one_by_one() -> tf.Tensor:
        unclear = tf.where(~all_match)
        some = tf.gather_nd(rows, unclear)
        ok = tf.reduce_all([tf.strings.regex_full_match(some, p) for p in patterns], axis=0)
        return tf.tensor_scatter_nd_update(tf.ones(tf.shape(rows), tf.bool), unclear, ok)

    is_clear = tf.reduce_all(all_match) | tf.equal(tf.size(rows), 0)
    ok = tf.cond(is_clear, lambda: tf.ones(tf.shape(rows), tf.bool), one_by_one)
    return ok if text.shape.rank == 2 else ok[0]


def are_ascii(texts: tf.Tensor) -> tf.Tensor:
    """Return whether all texts `[N]` are ASCII, which takes much less time than finding which are UTF-8."""
    lengths = tf.strings.length(texts)
    longest = tf.maximum(tf.reduce_max(lengths), 1)

    def padded() -> tf.Tensor:
        return tf.io.decode_raw(texts, tf.uint8, fixed_length=longest)

    def joined() -> tf.Tensor:
        return tf.io.decode_raw(tf.strings.reduce_join(texts), tf.uint8)[None]

    # Texts of similar lengths need not be joined first, which takes a third of the time.
    are_similar = tf.cast(longest, tf.int64) * tf.size(texts, tf.int64) <= tf.reduce_sum(
        tf.cast(2 * lengths + _FEW_BYTES, tf.int64)
    )
    return tf.reduce_all(tf.cond(are_similar, padded, joined) < 128)


def are_utf8(texts: tf.Tensor, is_ascii: tf.Tensor) -> tf.Tensor:
    """Return which texts, as for `matches`, are UTF-8; all of them if it is known that they are ASCII."""
    return tf.cond(is_ascii, lambda: tf.ones(tf.shape(texts), tf.bool), lambda: matches(texts, [_UTF8]))


def _label_dtype(field: Field) -> Dtype:
    """Return the dtype to parse a label's text as: any number as float32; a BOOL, which may be a word, as bool."""
    return "bool" if field.dtype == "bool" else "float32"


def label_value(text: str, field: Field) -> float:
    """Return the value of a valid label's text; an empty text has the default of its field."""
    text = text or field.default
    return float(text.lower() in ("true", "1")) if field.dtype == "bool" else float(_as_float32(text))


def split_bytes(data: bytes, separator: str) -> list[bytes]:
    """Split bytes in plain Python as `_split` does in a graph."""
    return data.split(separator.encode()) if separator else [data[i : i + 1] for i in range(len(data))]


def _as_float32(text: str) -> np.float32:
    """Return the value of a number's text as the graph computes it; infinite if it is too large."""
    with np.errstate(over="ignore"):
        return np.float32(text)
