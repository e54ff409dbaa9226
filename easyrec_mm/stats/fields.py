"""Statistics of the fields of samples: counts, limits, frequent values, and a sample of rows for all other figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from easyrec_mm.features.field import Kind
from easyrec_mm.formats.columns import ORDER, ROW_BITS
from easyrec_mm.grouping.column_stats import ColumnStats, RowSample
from easyrec_mm.stable_hash import mix
from easyrec_mm.stats.samples import Fields, Samples

# Rows from which quantiles and correlations are computed: the error of a correlation near 0 is about 0.005.
SAMPLE_ROWS = 1 << 15
# Number of values that are counted for a field with very many values.
_TOP_CAPACITY = 1 << 12


@dataclass
class TopValues:
    """The most frequent of very many values, in bounded memory.

    A value's count is too low by at most `error` (Misra and Gries, 1982, in the variant that adds many values at once:
    Agarwal et al., Mergeable summaries, 2012).
    """

    capacity: int = _TOP_CAPACITY
    counts: dict[Any, int] = field(default_factory=dict)
    error: int = 0

    def add(self, values: pa.Array) -> None:
        """Add values `[N]`; nulls do not count."""
        value_counts = pc.value_counts(values.drop_null())
        for value, count in zip(value_counts.field(0).to_pylist(), value_counts.field(1).to_pylist(), strict=True):
            self.counts[value] = self.counts.get(value, 0) + count
        if len(self.counts) > 2 * self.capacity:
            limit = sorted(self.counts.values(), reverse=True)[self.capacity]
            self.counts = {value: count - limit for value, count in self.counts.items() if count > limit}
            self.error += limit

    def most_common(self, number: int) -> list[tuple[Any, int]]:
        """Return (value, count) of the most frequent values, the most frequent first."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], str(item[0])))[:number]


@dataclass
class Values:
    """Statistics of a column of values: limits, distinct values, the most frequent values."""

    column: ColumnStats
    top: TopValues = field(default_factory=TopValues)

    @staticmethod
    def of(kind: Kind) -> Values:
        """Return the statistics of a column without values."""
        return Values(ColumnStats(kind))

    def add(self, values: pa.Array) -> None:
        """Add values `[N]`, null where one is missing."""
        self.column.add(values)
        self.top.add(values)


@dataclass
class FieldStats:
    """Statistics of a field.

    values     statistics of the field's whole values
    total      sum of the numbers; total_squares is the sum of their squares
    num_zeros  how many numbers are 0
    parts      for a text that holds several values: the statistics of these
    """

    kind: Kind
    values: Values
    total: float = 0.0
    total_squares: float = 0.0
    num_zeros: int = 0
    parts: Values | None = None

    @property
    def is_number(self) -> bool:
        """Return whether the field has a mean."""
        return self.kind != "string"

    @property
    def mean(self) -> float:
        """Return the mean of the values that are not missing; NaN without any."""
        number = self.values.column.num_values
        return self.total / number if number else float("nan")

    @property
    def deviation(self) -> float:
        """Return the standard deviation; NaN without values."""
        number = self.values.column.num_values
        return max(self.total_squares / number - self.mean**2, 0.0) ** 0.5 if number else float("nan")

    def add(self, column: pa.Array, separator: str) -> None:
        """Add values `[S]`."""
        if self.kind == "string":
            column = pc.if_else(pc.equal(column, ""), None, column)  # an empty text counts as missing
        self.values.add(column)
        if self.is_number:
            # Sums are rounded where whole numbers have more than 53 bits; least and greatest value are exact.
            numbers = column.drop_null().cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            self.total += float(numbers.sum())
            self.total_squares += float(np.square(numbers).sum())
            self.num_zeros += int(np.count_nonzero(numbers == 0))
        elif separator:
            parts = pc.split_pattern(column.drop_null(), separator).flatten()
            self.parts = self.parts or Values.of("string")
            self.parts.add(parts.filter(pc.not_equal(parts, "")))


@dataclass
class SampleStats:
    """Statistics of the fields of all samples.

    sizes   group size -> number of groups
    sample  a sample of SAMPLE_ROWS rows, with all fields
    """

    fields: Fields
    of_field: dict[str, FieldStats] = field(init=False)
    sizes: dict[int, int] = field(default_factory=dict)
    sample: RowSample = field(default_factory=lambda: RowSample(SAMPLE_ROWS))

    def __post_init__(self) -> None:
        self.of_field = {name: FieldStats(kind, Values.of(kind)) for name, kind in self.fields.kinds.items()}

    @property
    def num_groups(self) -> int:
        """Return the number of groups added."""
        return sum(self.sizes.values())

    @property
    def num_samples(self) -> int:
        """Return the number of samples added."""
        return sum(size * number for size, number in self.sizes.items())

    def add(self, samples: Samples) -> None:
        """Add samples."""
        first = self.num_samples
        for size, number in zip(*np.unique(samples.size, return_counts=True), strict=True):
            self.sizes[int(size)] = self.sizes.get(int(size), 0) + int(number)
        for name, column in samples.columns.items():
            self.of_field[name].add(column, self.fields.separators.get(name, ""))
        order = np.arange(first, self.num_samples) & ((1 << ROW_BITS) - 1)
        self.sample.add(pa.table({**samples.columns, ORDER: order}), mix(order.astype(np.uint64)))
