"""The rules for valid groups, which are the same for all formats and commands.

A group that breaks a rule is left out as a whole, so that no sample is trained with the picture of another item.
Shape legend: G groups of S samples; the samples of a group are consecutive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easyrec_mm.features.field import A_NUMBER, Dtype, Field
from easyrec_mm.features.text_patterns import VALUE_PATTERNS
from easyrec_mm.formats.columns import is_text, to_kind
from easyrec_mm.schema import Schema

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
_KINDS = {"int64": "a whole number", "bool": "a bool", "float32": "a number", "float64": "a number", "string": "UTF-8"}
# Separates the parts of a problem that is encoded as bytes to pass through a TensorFlow graph.
_PART_END = "\x1f"


class Problem(NamedTuple):
    """The place of a problem in a row, and its description."""

    where: str
    reason: str

    def encode(self) -> bytes:
        """Return the problem as bytes, which can pass through a TensorFlow graph."""
        return _PART_END.join(self).encode()

    @staticmethod
    def decode(data: bytes) -> Problem:
        """Return the problem that `encode` has encoded as `data`."""
        return Problem(*data.decode().split(_PART_END, 1))


class BadGroup(NamedTuple):
    """A group that is left out: its row (from 1), the column or other place of the problem, and the problem."""

    row: int
    where: str
    problem: str


class GroupProblems:
    """Collects the refused groups, each with the first problem that was found in it.

    Args:
      size: int64 [G], number of samples per group.
    """

    def __init__(self, size: Ints) -> None:
        self.size = size
        self.is_bad: Mask = np.zeros(len(size), bool)
        self.by_group: dict[int, Problem] = {}

    @cached_property
    def group(self) -> Ints:
        """Return the index of the group of each sample, [S]."""
        return np.repeat(np.arange(len(self.size)), self.size)

    @cached_property
    def first(self) -> Ints:
        """Return the index of the first sample of each group, [G]."""
        return np.cumsum(self.size) - self.size

    def refuse(self, is_bad: Mask, where: str, reason_of: Callable[[int], str]) -> None:
        """Refuse the groups marked in `is_bad`, bool [G]; `reason_of` gives the problem of the group with an index."""
        for group in np.flatnonzero(is_bad & ~self.is_bad).tolist():
            self.by_group[group] = Problem(where, reason_of(group))
        self.is_bad |= is_bad

    def refuse_samples(self, is_bad: Mask, where: str, reason_of: Callable[[int], str]) -> None:
        """Refuse the groups of the samples marked in `is_bad`, bool [S]; `reason_of` gives the problem of a sample."""
        for sample in np.flatnonzero(is_bad).tolist():
            group = int(self.group[sample])
            if not self.is_bad[group]:
                self.is_bad[group] = True
                place = f"sample {sample - self.first[group]}: " if self.size[group] > 1 else ""
                self.by_group[group] = Problem(where, f"{place}{reason_of(sample)}")

    def at_rows(self, rows: Ints) -> list[BadGroup]:
        """Return the refused groups; `rows` [G] contains the row of each group."""
        return [BadGroup(int(rows[group]), *self.by_group[group]) for group in sorted(self.by_group)]


class SampleChecks:
    """Checks the values of samples, and replaces missing values by the default of their field.

    Args:
      schema: fields, features and tasks.
      labels: label fields that are read.
      fields: other fields that are read.

    Attributes:
      patterns: field -> the patterns that its text must match (features/text_patterns.py).
      aligned: sets of text fields that must contain equally many values, each set as field -> separator.
    """

    def __init__(self, schema: Schema, labels: Iterable[str], fields: Iterable[str]) -> None:
        self._schema = schema
        self._labels = set(labels)
        self._read = [schema.field(name) for name in (*labels, *fields)]
        self._largest = {f.name: schema.largest_number(f.name) for f in self._read if f.dtype == "float32"}
        self.patterns = schema.text_patterns()
        read = {field.name for field in self._read}
        self.aligned = [lists for lists in schema.aligned_lists() if lists.keys() <= read]

    def check(self, columns: dict[str, pa.Array], problems: GroupProblems) -> dict[str, NDArray[np.generic] | pa.Array]:
        """Check the values of samples, and refuse the groups in which a value breaks a rule.

        Args:
          columns: field -> [S], null where a value is missing; numbers, or texts from which numbers are parsed.
          problems: collects the refused groups.

        Returns:
          field -> [S]: int64, float32 (labels as well), or an Arrow array of large_binary.
        """
        values = {field.name: self._values(columns[field.name], field, problems) for field in self._read}
        for name in self._schema.group_fields:
            if name in values:
                require_one_value(name, values[name], problems)
        for lists in self.aligned:
            self._require_equal_lengths(lists, values, problems)
        return values

    def _values(self, values: pa.Array, field: Field, problems: GroupProblems) -> NDArray[np.generic] | pa.Array:
        if field.dtype == "string":
            return self._texts(values, field, problems)
        where = column_place(field.name)
        is_label = field.name in self._labels
        if is_text(values.type):
            # The text of a label may be any number, whatever the type of its field; that of a BOOL may also be a word.
            values = parse(values, "float32" if is_label and field.dtype != "bool" else field.dtype, where, problems)
        if values.null_count:
            if is_label and not field.optional:
                is_missing = values.is_null().to_numpy(zero_copy_only=False)
                reason = "the label is missing, and its field has no default_val"
                # A text that is not a number is null here as well, but its group is already refused.
                problems.refuse_samples(is_missing, where, lambda i: reason)
            values = pc.fill_null(values, pa.scalar(field.default_value).cast(values.type, safe=False))
        array = values.to_numpy(zero_copy_only=False)
        if is_label:
            return self._label(array, field, problems)
        if field.dtype == "float32":
            with np.errstate(over="ignore"):
                numbers = array.astype(np.float32)
            largest, allowed = self._largest[field.name]
            is_bad = ~(np.abs(numbers) <= largest)
            problems.refuse_samples(is_bad, where, lambda i: f"{shown(array[i])} is not {allowed}")
            return numbers
        if field.dtype == "bool":
            problems.refuse_samples((array != 0) & (array != 1), where, lambda i: f"{array[i]} is not a bool")
        return array.astype(np.int64, copy=False)

    def _label(self, array: NDArray[np.generic], field: Field, problems: GroupProblems) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            numbers = array.astype(np.float32)
        low, high, is_class = self._schema.label_range(field.name)
        is_bad = ~((numbers >= low) & (numbers <= high))
        if is_class:
            is_bad |= numbers != np.round(numbers)
        kind = f"{'a class ' if is_class else ''}from {low:g} to {high:g}"
        problems.refuse_samples(is_bad, column_place(field.name), lambda i: f"label {shown(array[i])} is not {kind}")
        return numbers

    def _texts(self, values: pa.Array, field: Field, problems: GroupProblems) -> pa.Array:
        is_empty = pc.fill_null(pc.equal(pc.binary_length(values), 0), True)
        patterns = self.patterns.get(field.name, [])
        refuse_bytes(values, field.name, problems.refuse_samples)
        for pattern in patterns:
            matches = pc.fill_null(pc.match_substring_regex(values, f"^(?:{pattern})$"), True)
            problems.refuse_samples(
                ~pc.or_(matches, is_empty).to_numpy(zero_copy_only=False),
                column_place(field.name),
                lambda i: f"{shown(values[i].as_py())} does not have the form that its feature needs",
            )
        if field.default:
            values = pc.if_else(is_empty, pa.scalar(field.default).cast(values.type), values)
        return pc.fill_null(values.cast(pa.large_binary()), b"")

    def _require_equal_lengths(
        self, lists: dict[str, str], values: dict[str, NDArray[np.generic] | pa.Array], problems: GroupProblems
    ) -> None:
        """Refuse groups in which text fields that belong together contain different numbers of values.

        Args:
          lists: field -> separator of its values.
        """
        counts = {name: _count_tags(as_bytes(values[name]), separator) for name, separator in lists.items()}
        first, *other_names = counts
        for other in other_names:
            problems.refuse_samples(
                counts[first] != counts[other],
                column_place(first),
                lambda i, other=other: f"{counts[first][i]} values, but {other} has {counts[other][i]}",  # type: ignore[misc]
            )


def parse(texts: pa.Array, dtype: Dtype, where: str, problems: GroupProblems) -> pa.Array:
    """Parse texts `[S]` to numbers, int64 or float64 `[S]`, "" to null; refuse groups with any other text."""
    texts = pc.if_else(pc.equal(pc.binary_length(texts), 0), None, texts)
    is_good = pc.fill_null(pc.match_substring_regex(texts, f"^(?:{VALUE_PATTERNS[dtype]})$"), True)
    is_bad = ~is_good.to_numpy(zero_copy_only=False)
    problems.refuse_samples(is_bad, where, lambda i: f"{shown(texts[i].as_py())} is not {_KINDS[dtype]}")
    plain = pc.utf8_trim(pc.if_else(is_good, texts, None).cast(pa.string()), " \t")
    if dtype == "bool":
        return pc.or_(pc.equal(plain, "1"), pc.equal(pc.utf8_lower(plain), "true")).cast(pa.int64())
    plain = pc.replace_substring_regex(plain, r"^\+", "")
    return plain.cast(pa.int64() if dtype == "int64" else pa.float64())


def refuse_kind(
    is_bad: Mask | None,
    values: pa.Array,
    name: str,
    kind: str,
    refuse: Callable[[Mask, str, Callable[[int], str]], None],
) -> None:
    """Refuse values that are not of their kind (formats/columns.py); `refuse` takes a mask of samples or of groups."""
    if is_bad is not None:
        is_infinite = kind.startswith("float") and not is_text(values.type)
        expected_kind = A_NUMBER if is_infinite else _KINDS[kind]

        def describe(i: int) -> str:
            one = values[i : i + 1]
            value = (one.cast(pa.large_binary()) if is_text(one.type) else one)[0].as_py()
            return not_whole(value) if kind == "int64" else f"{shown(value)} is not {expected_kind}"

        refuse(is_bad, column_place(name), describe)


def refuse_bytes(values: pa.Array, name: str, refuse: Callable[[Mask, str, Callable[[int], str]], None]) -> None:
    """Refuse texts that are not UTF-8, which neither a store nor a request could name; see refuse_kind."""
    refuse_kind(to_kind(values, "string").is_bad, values, name, "string", refuse)


def not_whole(value: object) -> str:
    """Describe a value that is not a whole number of 64 bits."""
    if isinstance(value, int):
        return f"{value} is more than 64 bits with a sign can hold; set the field's input_type to STRING"
    return f"{shown(value)} is not a whole number"


def require_one_value(name: str, values: NDArray[np.generic] | pa.Array, problems: GroupProblems) -> None:
    """Refuse groups whose samples have different values `[S]` in a field that must have one value per group."""
    array = as_bytes(values) if isinstance(values, pa.Array) else values
    of_first = array[problems.first[problems.group]]
    problems.refuse_samples(
        array != of_first,
        column_place(name),
        lambda i: f"{shown(array[i])}, but sample 0 has {shown(of_first[i])}; the value must be the same in a group",
    )


def as_bytes(values: pa.Array) -> NDArray[np.object_]:
    """Return texts as bytes objects; b"" for a missing text."""
    texts: NDArray[np.object_] = pc.fill_null(values.cast(pa.large_binary()), b"").to_numpy(zero_copy_only=False)
    return texts


def column_place(name: str) -> str:
    """Return the name of a column as messages show it."""
    return f"column '{name}'"


def shown(value: object) -> str:
    """Return a value as messages show it."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return repr(value)
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _count_tags(values: Iterable[bytes], separator: str) -> Ints:
    part = separator.encode()
    return np.array([sum(map(bool, value.split(part))) for value in values], np.int64)
