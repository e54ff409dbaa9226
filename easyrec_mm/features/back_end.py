"""The operations that feature types are made of, in TensorFlow and in NumPy.

A feature type says once, by these operations, what it makes of its fields. Training and SavedModels run them in
TensorFlow, the inputs of the ONNX models come from NumPy, and both give the same values.

Values are columns of N entries: text, int64, float32 or float64. Lists are columns whose entries hold any number of
values: `flat_values` are those of all entries behind each other, `with_flat_values` puts other values in their places.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from easyrec_mm.features.expression import Expression, Functions


class BackEnd(ABC):
    """Operations on columns `[N]` and on lists. An empty text stands for 0 where a number is read."""

    # Those of expressions, see expression.BACK_END.
    functions: ClassVar[Functions]

    @abstractmethod
    def texts(self, values: Any, precision: int = -1) -> Any:
        """The texts by which values are hashed or looked up; of floats with `precision` digits behind the point."""

    @abstractmethod
    def integers(self, values: Any) -> Any:
        """Int64."""

    @abstractmethod
    def floats(self, values: Any) -> Any:
        """Float32."""

    @abstractmethod
    def vectors(self, values: Any, separator: str, dim: int) -> Any:
        """Texts of `dim` numbers between separators, or one number each -> float32 `[N, dim]`; zeros for no text."""

    @abstractmethod
    def evaluate(self, expression: Expression, fields: dict[str, Any]) -> Any:
        """What an expression makes of fields, float32 `[N]`; 0 where that is beyond float32."""

    @abstractmethod
    def scale(self, numbers: Any, least: float, greatest: float) -> Any:
        """(x - least) / (greatest - least), float32."""

    @abstractmethod
    def log1p(self, numbers: Any) -> Any:
        """sign(x) log(1 + |x|), float32. Computed in float64, so that rounding gives the same in both back ends."""

    @abstractmethod
    def buckets(self, numbers: Any, boundaries: Sequence[float]) -> Any:
        """How many of the boundaries are not above each number of float32 `[N, 1]`: int64 `[N]`."""

    @abstractmethod
    def within(self, ids: Any, num_ids: int) -> Any:
        """The ids, with 0 in place of those that are not from 0 to num_ids - 1."""

    @abstractmethod
    def hashes(self, texts: Any, num_ids: int) -> Any:
        """FarmHash fingerprint of each text modulo `num_ids`, int64."""

    @abstractmethod
    def look_up(self, feature: str, texts: Any) -> Any:
        """Places of texts in a feature's vocabulary, int64; for an unknown one the length of the vocabulary."""

    @abstractmethod
    def join(self, columns: Sequence[Any], separator: str) -> Any:
        """The texts of several columns, entry by entry."""

    @abstractmethod
    def split(self, texts: Any, separator: str) -> Any:
        """Texts -> lists of their parts. Empty parts are dropped, as in EasyRec."""

    @abstractmethod
    def pairs(self, texts: Any, separator: str) -> tuple[Any, Any]:
        """Texts of two parts -> the first and the second parts."""

    @abstractmethod
    def with_values_of(self, lists: Any, others: Any) -> Any:
        """Lists with the values of others, which have as many in each entry."""

    @abstractmethod
    def values_for(self, lists: Any, keys: Any, values: Any) -> Any:
        """Of each entry's list the `values` whose text equals the entry's key.

        Args:
          lists: texts.
          keys: a text for each entry.
          values: texts, one for each flat value of `lists`.
        """

    @abstractmethod
    def cut(self, lists: Any, length: int, keeps_last: bool) -> Any:
        """The first or last `length` values of each list."""
