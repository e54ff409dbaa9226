"""Numbers: the transformation of numbers before they enter the network."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from easyrec_mm.features.back_end import BackEnd
from easyrec_mm.features.reading import FeatureSettings
from easyrec_mm.protos.feature_pb2 import FeatureConfig

# Buckets into which num_buckets may divide a number: each of them is a boundary in the exported models.
_MOST_BUCKETS = 100_000
# When log1p applies: never, before scaling or after scaling.
Log1p = Literal["", "before", "after"]
# Accepted values of normalizer_fn.
_LOG1P_NAMES = ("tf.math.log1p", "tf.log1p", "log1p")


@dataclass(frozen=True)
class Numbers:
    """`dim` numbers, scaled from `min_value` .. `max_value` to 0 .. 1 if these differ, or the bucket of one number."""

    dim: int = 1
    boundaries: tuple[float, ...] = ()
    min_value: float = 0.0
    max_value: float = 0.0
    log1p: Log1p = ""

    def values(self, numbers: Any, back_end: BackEnd) -> Any:
        """Transform numbers: float32 `[N, dim]` -> the same shape, or buckets int64 `[N]`."""
        if self.log1p == "before":
            numbers = back_end.log1p(numbers)
        if self.max_value > self.min_value:
            numbers = back_end.scale(numbers, self.min_value, self.max_value)
        if self.log1p == "after":
            numbers = back_end.log1p(numbers)
        return back_end.buckets(numbers, self.boundaries) if self.boundaries else numbers

    @property
    def num_buckets(self) -> int:
        """Return the number of buckets; 0 if the numbers are not bucketed."""
        return len(self.boundaries) + 1 if self.boundaries else 0


def read_vectors(values: Any, separator: str, dim: int, back_end: BackEnd) -> Any:
    """Convert a field with `dim` separated numbers, or one number, to float32 `[N, dim]`; no text gives zeros."""
    return back_end.vectors(back_end.filled(values, separator.join(["0"] * dim)), separator, dim)


def number_attributes(settings: FeatureSettings) -> dict[str, Any]:
    """Read the attributes of a Feature whose values are numbers, with a table if embedding_dim is set."""
    numbers, dim = read_numbers(settings), settings.item.embedding_dim
    return {
        "name": settings.name,
        "inputs": settings.inputs,
        "width": dim or numbers.num_buckets or numbers.dim,
        "table": settings.table if dim else None,
        "numbers": numbers,
    }


def read_numbers(settings: FeatureSettings) -> Numbers:
    """Read the settings of numbers."""
    item = settings.item
    limits = tuple(item.boundaries) or _equal_parts(settings)
    if item.boundaries and item.num_buckets:
        settings.add("num_buckets", "has no effect beside boundaries; keep one of the two")
    if any(a >= b for a, b in pairwise(limits)):
        settings.add("boundaries", f"{list(limits)} is not in ascending order; sort it and remove repeats")
    if item.raw_input_dim > 1 and limits:
        setting, verb = ("boundaries", "apply") if item.boundaries else ("num_buckets", "applies")
        problem = f"{verb} to one number, but raw_input_dim is {item.raw_input_dim}"
        settings.add(setting, f"{problem}; split the vector into several features")
    if (item.HasField("min_val") or item.HasField("max_val")) and item.max_val <= item.min_val:
        settings.add("max_val", f"{item.max_val} is not above min_val {item.min_val}; swap or remove them")
    if (item.embedding_name or item.HasField("initializer")) and not item.embedding_dim:
        settings.add("embedding_dim", "is 0, so the feature has no table; set it, or remove embedding_name")
    return Numbers(item.raw_input_dim, limits, item.min_val, item.max_val, _log1p(settings))


def _equal_parts(settings: FeatureSettings) -> tuple[float, ...]:
    """Return the boundaries that num_buckets means for numbers scaled to 0 .. 1; () without it.

    They begin with 0 as in EasyRec, so that there is one bucket more than num_buckets says: that of numbers below 0.
    """
    item = settings.item
    if not item.num_buckets:
        return ()
    if item.num_buckets < 2:
        settings.add("num_buckets", f"{item.num_buckets} bucket does not divide numbers; give 2 or more, or remove it")
    elif not (item.HasField("min_val") or item.HasField("max_val")):
        settings.add("num_buckets", "needs min_val and max_val, between which it divides the numbers; set them")
    elif item.num_buckets > _MOST_BUCKETS:
        settings.add(
            "num_buckets", f"{item.num_buckets} buckets of a number are too many; give {_MOST_BUCKETS} or fewer"
        )
    elif item.max_val > item.min_val:
        return tuple(i / item.num_buckets for i in range(item.num_buckets))
    return ()


def _log1p(settings: FeatureSettings) -> Log1p:
    item = settings.item
    if not item.HasField("normalizer_fn"):
        return "before" if item.numeric_transform == FeatureConfig.LOG1P else ""
    if item.normalizer_fn not in _LOG1P_NAMES:
        choice = f"choose {_LOG1P_NAMES[0]}, or write an ExprFeature"
        settings.add("normalizer_fn", f"'{item.normalizer_fn}' is not supported; {choice}")
    if item.numeric_transform:
        settings.add("normalizer_fn", "numeric_transform is set too; keep one of the two")
    return "after"
