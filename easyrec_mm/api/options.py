"""Keyword arguments that are flags of a command, and what they need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from easyrec_mm.errors import UserError, did_you_mean, install_extra

Options = TypeVar("Options")


def options_from(kind: type[Options], values: Mapping[str, Any], function: str) -> Options:
    """Create a dataclass of options.

    Args:
      kind: the class.
      values: name of a field -> value; other fields have their defaults.
      function: name of the function that takes them as arguments, for messages.

    Raises:
      UserError: if a field does not exist, or has a few possible values and not this one.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    converted = {}
    for name, value in values.items():
        if name not in names:
            raise UserError(f"{function}: no option '{name}'; {did_you_mean(name, names)}")
        converted[name] = names_of(value) if hints[name] == tuple[str, ...] else value
        require_choice(value, hints[name], f"{function}: {name}")
    return kind(**converted)


def names_of(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return names of columns or files; a text is one name, not a sequence of letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def require_choice(value: object, kind: Any, place: str) -> None:
    """Check that a value is one of those of a Literal type; every value is right for other types.

    Raises:
      UserError: if it is not.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    choices = [choice for one in kinds if get_origin(one) is Literal for choice in get_args(one)]
    if choices and value not in choices and not (value is None and type(None) in kinds):
        raise UserError(f"{place}: is {value!r}; choose one of {', '.join(choices)}")


def require_spark() -> None:
    """Check that Spark is installed.

    Raises:
      UserError: if it is not.
    """
    try:
        import pyspark  # noqa: F401
    except ImportError as error:
        raise UserError(f"--engine spark: {error}; {install_extra('spark')}") from error
