"""Keyword arguments that are flags of a command, and what they need."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from easyrec_mm.errors import UserError, did_you_mean, install_extra

Options = TypeVar("Options")
# Type of an option -> types of the values that it takes, and these in words.
_TYPES: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
    tuple[str, ...]: ((tuple,), "a text or a list of texts"),
}


def options_from(kind: type[Options], values: Mapping[str, Any], function: str) -> Options:
    """Create a dataclass of options.

    Args:
      kind: the class.
      values: name of a field -> value; other fields have their defaults.
      function: name of the function that takes them as arguments, for messages.

    Raises:
      UserError: if a field does not exist, or a value is of another type, out of the field's range, or not one of a few
        that are possible.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    hints = get_type_hints(kind, include_extras=True)
    converted = {}
    for name, value in values.items():
        if name not in names:
            raise UserError(f"{function}: no option '{name}'; {did_you_mean(name, names)}")
        place = f"{function}: {name}"
        require_choice(value, hints[name], place)
        converted[name] = _converted(value, hints[name], place)
    return kind(**converted)


def _converted(value: Any, hint: Any, place: str) -> Any:
    """Return a value as an option of a type has it: NumPy's scalars and paths become Python's numbers and texts."""
    if get_origin(hint) is Annotated:
        return hint.__metadata__[0].checked(value, place)
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if hint == tuple[str, ...] and isinstance(value, Iterable):
        value = (value,) if isinstance(value, str) else tuple(value)
    if get_origin(hint) is Mapping and not isinstance(value, Mapping):
        raise UserError(f"{place}: is {value!r}; give a dict")
    if hint not in _TYPES:
        return value
    kinds, description = _TYPES[hint]
    is_valid = isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))
    if not is_valid or (hint == tuple[str, ...] and not all(isinstance(name, str) for name in value)):
        raise UserError(f"{place}: is {value!r}; give {description}")
    return value


def names_of(names: str | Iterable[str], place: str) -> tuple[str, ...]:
    """Return names of columns or files; a text is one name, not a sequence of letters.

    Raises:
      UserError: if they are not texts; the message begins with `place`.
    """
    converted: tuple[str, ...] = _converted(names, tuple[str, ...], place)
    return converted


def path_text(path: str | os.PathLike[str], place: str) -> str:
    """Return a path as a text.

    Raises:
      UserError: if it is not a path; the message begins with `place`.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise UserError(f"{place}: is {path!r}; give a path")
    return os.fspath(path)


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
