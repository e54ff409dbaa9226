"""Decides what the texts of a column are: one value each, several tags, a vector of numbers, or nothing to learn from.

The decision depends on the values alone, so that a list in Parquet and the same list as text in CSV become the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from easyrec_mm.formats.columns import LIST_SEPARATOR, NUMBER

# Separators of several values in a text. The first one is that of lists in Parquet, and stands in no other text.
_SEPARATORS = (LIST_SEPARATOR, ",", ";", " ")
# A text of several tags, if at least this share of the texts contains the separator; other separators than that of
# lists stand in names, too: "Dresses, Shoes, Hats".
_LIST_SHARE, _OTHER_SHARE = 0.1, 0.5
# Share of texts of numbers from which on a column is doubtful that also has other texts.
_NUMBERS_SHARE = 0.5

_NUMBER = re.compile(NUMBER)
_WITH_UNIT = re.compile(rf"[$€£¥₹] ?{NUMBER}|{NUMBER} ?[%$€£¥₹]")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]{1,3}(\.?[0-9]{3})*(,[0-9]+)?|[+-]?[0-9]+(,[0-9]+)?")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?|[+-]?[0-9]{1,3}(\.[0-9]+)?")
_SHORT_THOUSANDS = re.compile(r"[+-]?[0-9]{1,2},[0-9]{3}.*|.*\..*")


@dataclass(frozen=True)
class Texts:
    """The meaning of the texts of a column.

    settings   of the feature: separators and the number of numbers; none for one value in each text
    tags       distinct tags, of texts of several values
    share      share of the texts that hold several tags
    left_out   why no feature can be made of them; "" if one can
    doubt      why the meaning is not certain; "" if it is
    """

    settings: dict[str, Any]
    tags: frozenset[str] = frozenset()
    share: float = 0.0
    left_out: str = ""
    doubt: str = ""


def read_texts(values: pa.Array, max_vocabulary: int) -> Texts:
    """Decide what texts are.

    Args:
      values: texts of the rows of a sample, without missing ones.
      max_vocabulary: number of distinct texts up to which each is a word of a vocabulary, unless they are lists.
    """
    counted = pc.value_counts(values)
    counts: dict[str, int] = dict(zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True))
    texts = counts.keys()
    if not texts:
        return Texts({})
    number_form = _number_form(texts)
    if number_form:
        return Texts({}, doubt=number_form) if len(texts) <= max_vocabulary else Texts({}, left_out=number_form)
    if all(text[:1] == "[" and text[-1:] == "]" for text in texts):
        return Texts(
            {}, left_out=f"holds lists in brackets, such as {_shown(texts)}; write them as 1|2|3, or as Parquet"
        )
    for separator in _SEPARATORS:
        vector = _vector(texts, separator)
        if vector:
            return vector
    for separator in _SEPARATORS[:-1]:
        tags = _tags(counts, separator, max_vocabulary)
        if tags:
            return tags
    return Texts({}, doubt=_doubt(counts))


def _number_form(texts: Iterable[str]) -> str:
    """Return why texts cannot be used that are numbers with other points and commas than this program reads."""
    if all(map(_WITH_UNIT.fullmatch, texts)):
        return f"looks like numbers with a unit, such as {_shown(texts)}; write them without it"
    commas = [text.count(",") for text in texts]
    if not any(commas):
        return ""
    if all(_THOUSANDS.fullmatch(text) for text in texts) and any(map(_SHORT_THOUSANDS.fullmatch, texts)):
        return f"looks like numbers with a comma between thousands, such as {_shown(texts, ',')}; write them without it"
    if max(commas) == 1 and all(map(_DECIMAL_COMMA.fullmatch, texts)):
        return (
            f"looks like numbers with a decimal comma, such as {_shown(texts, ',')}; write them with a point, or two "
            "ids with | between them"
        )
    return ""


def _vector(texts: Iterable[str], separator: str) -> Texts | None:
    """Return the meaning of texts that hold the same number of numbers each."""
    if not any(separator in text for text in texts):
        return None
    lists = [text.split(separator) for text in texts]
    lengths = {len(parts) for parts in lists}
    if not all(map(_NUMBER.fullmatch, (part for parts in lists for part in parts))):
        return None
    has_fractions = any("." in text for text in texts)
    if len(lengths) == 1 and (separator != " " or has_fractions):
        return Texts({"raw_input_dim": lengths.pop(), "separator": separator})
    if len(lengths) > 1 and separator != " " and has_fractions:
        numbers = f"holds {min(lengths)} to {max(lengths)} numbers in a text"
        return Texts({}, left_out=f"{numbers}; add a SequenceFeature with sub_feature_type: RawFeature to read them")
    return None


def _tags(counts: dict[str, int], separator: str, max_vocabulary: int) -> Texts | None:
    """Return the meaning of texts that hold several tags each."""
    num_texts = sum(counts.values())
    having = sum(rows for text, rows in counts.items() if separator in text)
    if not having:
        return None
    parts = {text: [part for part in text.split(separator) if part] for text in counts}
    tags = {part for of_text in parts.values() for part in of_text}
    settings = {"separator": separator}
    pairs = [tag.rsplit(":", 1) for tag in tags]
    if all(len(pair) == 2 and _NUMBER.fullmatch(pair[1]) for pair in pairs):
        settings["kv_separator"] = ":"
        tags = {pair[0] for pair in pairs}
    have_spaces = any(tag != tag.strip() for tag in tags)
    if separator == LIST_SEPARATOR:
        num_tags = sum(rows * len(parts[text]) for text, rows in counts.items())
        are_tags = having >= _LIST_SHARE * num_texts and (not have_spaces or 2 * len(tags) <= num_tags)
    else:
        # Few texts are words of a vocabulary. Names have spaces behind their commas, and their parts are no names.
        are_names = len(counts) <= max_vocabulary or 2 * len(tags) > len(counts) or have_spaces
        are_tags = having >= _OTHER_SHARE * num_texts and not are_names
    return Texts(settings, frozenset(tags), having / num_texts) if are_tags else None


def _doubt(counts: dict[str, int]) -> str:
    """Return why texts may mean something else than one value each."""
    num_texts = sum(counts.values())
    numbers = sum(rows for text, rows in counts.items() if _NUMBER.fullmatch(text.strip()))
    if _NUMBERS_SHARE * num_texts <= numbers < num_texts:
        other = min(text for text in counts if not _NUMBER.fullmatch(text.strip()))
        return (
            f"{_percent(numbers, num_texts)} of the texts are numbers, and others, such as {other!r}, are not; "
            "as a FLOAT by --types, it would be a number, and the rows of the others refused"
        )
    for separator in (",", ";"):
        having = sum(rows for text, rows in counts.items() if separator in text)
        if having >= _LIST_SHARE * num_texts:
            example = _shown(counts, separator)
            return (
                f"{_percent(having, num_texts)} of the texts hold '{separator}', such as {example}, and are read as "
                "one value each; if they are lists, write them with | between the values"
            )
    return ""


def _percent(part: int, total: int) -> str:
    return f"{100 * part / total:.0f} %"


def _shown(texts: Iterable[str], part: str = "") -> str:
    """Return the first text, in alphabetical order, that holds a part."""
    text = min(text for text in texts if part in text)
    return repr(text if len(text) <= 40 else text[:37] + "...")
