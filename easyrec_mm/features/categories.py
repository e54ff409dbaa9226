"""Categories: the conversion of values to ids, which are rows of a table."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from easyrec_mm.features.back_end import BackEnd
from easyrec_mm.features.reading import FeatureSettings
from easyrec_mm.features.text_patterns import integer, word
from easyrec_mm.protos.feature_pb2 import FeatureConfig

Encoding = Literal["hash", "identity", "vocabulary"]
_SETTINGS = ("hash_bucket_size", "num_buckets", "vocab_list", "vocab_file")


@dataclass(frozen=True)
class Categories:
    """The conversion of values to ids from 0 to `num_ids` - 1.

    hash        the id is a hash of the value's text
    identity    a whole number is its own id; numbers out of range get id 0, as in EasyRec
    vocabulary  the id is the position in `vocabulary`; unknown values get the last id, which no known value has

    `precision` is the number of digits after the point in the text of a float; -1 stands for 6.
    """

    encoding: Encoding
    num_ids: int
    vocabulary: tuple[str, ...] = ()
    precision: int = -1

    def ids(self, values: Any, feature: str, back_end: BackEnd) -> Any:
        """Convert values to int64 ids of the same shape; `feature` is the name of the feature with these categories."""
        if self.encoding == "identity":
            return back_end.within(back_end.integers(values), self.num_ids)
        texts = back_end.texts(values, self.precision)
        if self.encoding == "hash":
            return back_end.hashes(texts, self.num_ids)
        return back_end.look_up(feature, texts)

    def pattern(self, separators: str) -> str:
        """Return the pattern that a value must match within a text that the characters of `separators` split."""
        return integer(separators) if self.encoding == "identity" else word(separators)


def category_attributes(settings: FeatureSettings) -> dict[str, Any]:
    """Read the attributes of a Feature whose values are ids, and its table."""
    return {
        "name": settings.name,
        "inputs": settings.inputs,
        "width": settings.item.embedding_dim,
        "table": settings.table,
        "categories": read_categories(settings),
    }


def read_categories(settings: FeatureSettings) -> Categories:
    """Read the categories of a feature with a table."""
    item = settings.item
    if not item.embedding_dim:
        settings.add("embedding_dim", f"is 0; give the width of the embedding of '{settings.name}'")
    names = [name for name in _SETTINGS if getattr(item, name)]
    if len(names) != 1:
        is_combo = item.feature_type == FeatureConfig.ComboFeature
        choices = "hash_bucket_size" if is_combo else "hash_bucket_size, num_buckets, vocab_list or vocab_file"
        problem = f"'{settings.name}' has {', '.join(names) or 'no number of ids'}; give one of {choices}"
        settings.problems.add(settings.place, problem)
        return Categories("hash", 1)
    if names[0] == "hash_bucket_size":
        return Categories("hash", item.hash_bucket_size, precision=item.precision)
    if names[0] == "num_buckets":
        return Categories("identity", item.num_buckets, precision=item.precision)
    texts = tuple(item.vocab_list) if names[0] == "vocab_list" else _vocabulary_in_file(settings)
    vocabulary = tuple(_as_values(names[0], texts, settings))
    if len(set(vocabulary)) != len(vocabulary):
        repeated = next(text for i, text in enumerate(vocabulary) if text in vocabulary[:i])
        settings.add(names[0], f"holds '{repeated}' twice; each value has one row")
    return Categories("vocabulary", len(vocabulary) + 1, vocabulary, item.precision)


def check_precision(settings: FeatureSettings, categories: Categories) -> None:
    """Check that the values of FLOAT fields can be converted to ids."""
    for name in (name for name in settings.inputs if settings.fields[name].dtype == "float32"):
        if categories.encoding == "identity":
            settings.add("num_buckets", f"'{name}' is a FLOAT; an id by num_buckets is an integer")
        elif settings.item.precision < 0:
            settings.add("precision", f"'{name}' is a FLOAT; set the digits with which it becomes an id")


def _as_values(setting: str, texts: Sequence[str], settings: FeatureSettings) -> Iterator[str]:
    """Yield the texts of a vocabulary as `BackEnd.texts` writes the values of the feature's field: 7 for 007."""
    field = settings.fields.get(settings.inputs[0]) if settings.inputs else None
    digits = settings.item.precision
    if field is None or field.dtype == "string" or (field.dtype == "float32" and digits < 0):
        yield from texts
        return
    for text in texts:
        try:
            value = field.value(text)
            if isinstance(value, float):
                (value,) = struct.unpack("f", struct.pack("f", value))
            yield f"{value:.{digits}f}" if isinstance(value, float) else f"{int(value)}"
        except (ValueError, OverflowError):
            problem = f"holds '{text}', which no value of '{field.name}' ({field.dtype}) is; correct it, or read STRING"
            settings.add(setting, problem)
            return


def _vocabulary_in_file(settings: FeatureSettings) -> tuple[str, ...]:
    path = settings.item.vocab_file
    try:
        return read_vocabulary(path)
    except (OSError, UnicodeDecodeError) as error:
        settings.add("vocab_file", f"'{path}' cannot be read: {error}")
        return ()


def read_vocabulary(path: str) -> tuple[str, ...]:
    """Return the values in a vocab_file, one a line.

    Raises:
      OSError, UnicodeDecodeError: if it cannot be read.
    """
    lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    return tuple(line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1]))
