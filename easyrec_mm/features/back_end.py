"""The operations that feature types are built from, in TensorFlow and in NumPy.

A feature type defines its values once, in terms of these operations. Training and SavedModels run them in TensorFlow,
the inputs of the ONNX models are computed in NumPy, and both give the same values.

Values are columns of N entries: text, int64, float32 or float64. Lists are columns whose entries hold any number of
values: `flat_values` are the values of all entries in sequence, and `with_flat_values` replaces them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from easyrec_mm.features.expression import Expression, Functions


class BackEnd(ABC):
    """Operations on columns `[N]` and on lists."""

    # The operations that expressions need, see expression.BACK_END.
    functions: ClassVar[Functions]

    @abstractmethod
    def texts(self, values: Any, precision: int = -1) -> Any:
        """Return the texts by which values are hashed or looked up; floats get `precision` digits after the point."""

    @abstractmethod
    def filled(self, values: Any, text: str) -> Any:
        """Return the values with `text` in place of empty texts; the elements of a list are never empty."""

    @abstractmethod
    def integers(self, values: Any) -> Any:
        """Return the values as int64; an empty text gives 0."""

    @abstractmethod
    def floats(self, values: Any) -> Any:
        """Return the values as float32; texts must not be empty."""

    @abstractmethod
    def vectors(self, values: Any, separator: str, dim: int) -> Any:
        """Convert texts of `dim` separated numbers, or single numbers, to float32 `[N, dim]`; none is empty."""

    @abstractmethod
    def evaluate(self, expression: Expression, fields: dict[str, Any]) -> Any:
        """Evaluate an expression on fields: float32 `[N]`; a result beyond the range of float32 becomes 0."""

    @abstractmethod
    def scale(self, numbers: Any, least: float, greatest: float) -> Any:
        """Return (x - least) / (greatest - least), float32."""

    @abstractmethod
    def log1p(self, numbers: Any) -> Any:
        """Return sign(x) log(1 + |x|), float32, computed in float64 so that both back ends round to the same values."""

    @abstractmethod
    def buckets(self, numbers: Any, boundaries: tuple[float, ...]) -> Any:
        """Return the number of boundaries that are at most x, for each x of float32 `[N, 1]`: int64 `[N]`."""

    @abstractmethod
    def within(self, ids: Any, num_ids: int) -> Any:
        """Return the ids, replacing ids outside 0 to num_ids - 1 by 0."""

    @abstractmethod
    def hashes(self, texts: Any, num_ids: int) -> Any:
        """Return the FarmHash fingerprint of each text modulo `num_ids`, int64."""

    @abstractmethod
    def look_up(self, feature: str, texts: Any) -> Any:
        """Return the positions of texts in a feature's vocabulary, int64; unknown texts get the vocabulary's length."""

    @abstractmethod
    def join(self, columns: Sequence[Any], separator: str) -> Any:
        """Join the texts of several columns, entry by entry."""

    @abstractmethod
    def cross(self, columns: Sequence[Any], num_ids: int) -> Any:
        """Hash the texts of several columns, entry by entry, to int64 ids as TensorFlow's crossed_column does."""

    @abstractmethod
    def split(self, texts: Any, separator: str) -> Any:
        """Split texts into lists of their parts, dropping empty parts as EasyRec does."""

    @abstractmethod
    def pairs(self, texts: Any, separator: str) -> tuple[Any, Any]:
        """Split texts of two parts each; return the first parts and the second parts."""

    @abstractmethod
    def with_values_of(self, lists: Any, source: Any) -> Any:
        """Return `lists` with the values of `source`, which have equally many values in each entry."""

    @abstractmethod
    def values_for(self, lists: Any, keys: Any, values: Any) -> Any:
        """Return for each entry those `values` whose text in `lists` equals the entry's key.

        Args:
          lists: lists of texts.
          keys: one text per entry.
          values: texts, one per flat value of `lists`.
        """

    @abstractmethod
    def cut(self, lists: Any, length: int, keeps_last: bool) -> Any:
        """Return the first or the last `length` values of each list."""
