"""SequenceFeature: any number of ids, numbers, vectors or keys of vectors, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from easyrec_mm.features.back_end import BackEnd
from easyrec_mm.features.categories import Categories, read_categories
from easyrec_mm.features.feature import Feature, StoredVectors
from easyrec_mm.features.numbers import Numbers, read_numbers
from easyrec_mm.features.reading import FeatureSettings
from easyrec_mm.features.text_patterns import few_digits, list_of, vector
from easyrec_mm.features.vector_feature import read_stored_vectors
from easyrec_mm.protos.feature_pb2 import FeatureConfig

POOLINGS = ("mean", "sum", "max")


@dataclass(frozen=True, kw_only=True)
class SequenceFeature(Feature):
    """The elements of a text -> their vectors, pooled by `combiner` or read by attentions.

    An element is like the value of an IdFeature, a RawFeature or a VectorFeature with a store: accordingly a sequence
    has `categories`, `numbers` or `stored`.

    separator         between the elements
    number_separator  between the numbers of an element; "" for one number
    max_length        most elements that are kept; 0 for all
    keeps_last        whether the last elements are kept instead of the first
    """

    is_list: ClassVar[bool] = True
    combiner: str = field()
    separator: str
    number_separator: str = ""
    max_length: int = 0
    keeps_last: bool = False

    @classmethod
    def of_config(cls, settings: FeatureSettings) -> SequenceFeature:
        item = settings.item
        if settings.require_inputs(1, 1):
            settings.require_string(settings.inputs[0], "a sequence")
        settings.require_separator("separator")
        settings.require_combiner(POOLINGS)
        categories, numbers, stored = _read_elements(settings)
        has_table = item.embedding_dim > 0 and stored is None
        width = (numbers.num_buckets or numbers.dim) if numbers else stored.dim if stored else 0
        return cls(
            name=settings.name,
            inputs=settings.inputs,
            width=item.embedding_dim if has_table else width,
            table=settings.table if has_table or categories else None,
            categories=categories,
            numbers=numbers,
            stored=stored,
            combiner=item.combiner,
            separator=item.separator,
            number_separator=item.seq_multi_sep if item.raw_input_dim > 1 else "",
            max_length=item.max_seq_len,
            keeps_last=item.kept_end == FeatureConfig.LAST,
        )

    @property
    def separators(self) -> tuple[str, ...]:
        return (self.separator, self.number_separator) if self.number_separator else (self.separator,)

    def patterns(self) -> list[tuple[str, str]]:
        separators = "".join(self.separators)
        patterns: list[str] = []
        if self.numbers is not None:
            element = vector(separators, self.number_separator, self.numbers.dim)
            patterns = [list_of(element, self.separator), few_digits(separators)]
        elif self.categories is not None and self.categories.encoding == "identity":
            patterns = [list_of(self.categories.pattern(separators), self.separator)]
        return [(self.inputs[0], pattern) for pattern in patterns]

    def keys(self, fields: Mapping[str, Any], back_end: BackEnd) -> Any:
        elements = back_end.split(fields[self.inputs[0]], self.separator)
        return back_end.cut(elements, self.max_length, self.keeps_last) if self.max_length else elements

    def values(self, fields: Mapping[str, Any], back_end: BackEnd) -> dict[str, Any]:
        elements = self.keys(fields, back_end)
        flat = elements.flat_values
        if self.categories is not None:
            values = self.categories.ids(flat, self.name, back_end)
        else:
            numbers = self.numbers or Numbers()
            values = numbers.values(back_end.vectors(flat, self.number_separator, numbers.dim), back_end)
        return {self.name: elements.with_flat_values(values)}


def _read_elements(settings: FeatureSettings) -> tuple[Categories | None, Numbers | None, StoredVectors | None]:
    """Read the kind of the elements; return numbers if it is not set correctly."""
    kind = settings.item.sub_feature_type
    if kind == FeatureConfig.IdFeature:
        if settings.item.HasField("seq_multi_sep"):
            problem = "several ids in an element of a sequence are not supported"
            settings.add("seq_multi_sep", f"{problem}; join them to one id, or make a sequence of each")
        return read_categories(settings), None, None
    if kind == FeatureConfig.VectorFeature:
        return None, None, _read_keys(settings)
    if kind == FeatureConfig.RawFeature:
        _check_number_separator(settings)
        return None, read_numbers(settings), None
    name = FeatureConfig.FeatureType.Name(kind)
    choices = "choose IdFeature, RawFeature or VectorFeature"
    settings.add("sub_feature_type", f"a sequence has no elements of {name}; {choices}")
    return None, Numbers(), None


def _read_keys(settings: FeatureSettings) -> StoredVectors:
    item = settings.item
    if not item.vector_dim:
        settings.add("vector_dim", "is 0; give the number of elements of a vector")
    if item.embedding_dim:
        settings.add("embedding_dim", "has no effect on vectors, which stay as they are; remove it")
    if item.HasField("vector_store"):
        return read_stored_vectors(settings)
    other = "for vectors in the row choose RawFeature with raw_input_dim"
    settings.add("vector_store", f"is missing; name the store of the vectors, or {other}")
    return StoredVectors("", item.vector_dim)


def _check_number_separator(settings: FeatureSettings) -> None:
    """Check the separator between the numbers of an element."""
    item = settings.item
    if item.raw_input_dim <= 1:
        if item.HasField("seq_multi_sep"):
            settings.add("seq_multi_sep", "has no effect on elements of one number; set raw_input_dim or remove this")
        return
    if not item.HasField("seq_multi_sep"):
        settings.add("seq_multi_sep", 'is missing; give the character between the numbers of an element, such as ","')
        return
    settings.require_separator("seq_multi_sep")
    if item.seq_multi_sep == item.separator:
        settings.add("seq_multi_sep", f"{item.seq_multi_sep!r} is also used as separator; change one of them")
