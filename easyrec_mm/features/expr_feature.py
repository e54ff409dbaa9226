"""ExprFeature: a number that an expression computes from other numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from easyrec_mm.features.back_end import BackEnd
from easyrec_mm.features.expression import Expression, ExpressionError, parse_expression
from easyrec_mm.features.feature import Feature
from easyrec_mm.features.numbers import Numbers, number_attributes
from easyrec_mm.features.reading import FeatureSettings
from easyrec_mm.features.text_patterns import number
from easyrec_mm.features.times import TIME_PATTERN


@dataclass(frozen=True, kw_only=True)
class ExprFeature(Feature):
    """The number that `expression` computes from the inputs, treated like a RawFeature of one number."""

    numbers: Numbers = field()
    expression: str

    @classmethod
    def of_config(cls, settings: FeatureSettings) -> ExprFeature:
        return cls(**number_attributes(settings), expression=_read_expression(settings))

    def patterns(self) -> list[tuple[str, str]]:
        times = _parsed(self.expression).text_fields()
        return [(name, TIME_PATTERN if name in times else number()) for name in self.inputs]

    def values(self, fields: Mapping[str, Any], back_end: BackEnd) -> dict[str, Any]:
        result = back_end.evaluate(_parsed(self.expression), {name: fields[name] for name in self.inputs})
        return {self.name: self.numbers.values(result[:, None], back_end)}


# Cached because the server evaluates the same expressions for every request.
_parsed = lru_cache(maxsize=1024)(parse_expression)


def _read_expression(settings: FeatureSettings) -> str:
    """Return the text of the checked expression with all its parentheses; "" if it is invalid."""
    if not settings.item.expression.strip():
        settings.add("expression", 'is empty; give one over input_names, as in "log1p(clicks) - log1p(shows)"')
        return ""
    try:
        expression = parse_expression(settings.item.expression)
        bool_fields = frozenset(name for name in settings.inputs if settings.fields[name].dtype == "bool")
        expression.require_truths(bool_fields)
    except ExpressionError as error:
        settings.add("expression", str(error))
        return ""
    _check_fields(settings, expression)
    return str(expression)


def _check_fields(settings: FeatureSettings, expression: Expression) -> None:
    """Check that the expression reads all inputs and nothing else."""
    read = expression.fields()
    unknown = [name for name in read if name not in settings.inputs]
    for name in unknown:
        if name in settings.fields:
            settings.add("expression", f"reads '{name}', which is not among input_names; add it there")
        else:
            settings.problems.unknown(f"{settings.place}.expression", "input name", name, settings.inputs)
    for name in settings.inputs:
        if name not in read and not unknown:
            settings.add("expression", f"does not read '{name}'; use it, or remove it from input_names")
    if not unknown:
        _check_times(settings, expression)


def _check_times(settings: FeatureSettings, expression: Expression) -> None:
    """Check that the fields of times contain texts where they are read as texts, and whole numbers elsewhere."""
    texts = expression.text_fields()
    for name in texts:
        settings.require_string(name, "the text of a time, for from_text")
        if name in expression.number_fields():
            settings.add("expression", f"reads '{name}' as the text of a time and as a number; read it in one way")
    for name in expression.exact_fields():
        dtype = settings.fields[name].dtype
        if dtype == "string" and name not in texts:
            settings.add("expression", f"'{name}' is text, which is a time only in from_text({name})")
        elif dtype == "float32":
            problem = f"'{name}' is a FLOAT or DOUBLE, which is read with 32 bits: too few for the seconds of a time"
            settings.add("expression", f"{problem}; read it as INT64")
