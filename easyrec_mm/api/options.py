"""Keyword arguments that are flags of a command, and what they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from easyrec_mm.errors import UserError, did_you_mean

Options = TypeVar("Options")


def options_from(kind: type[Options], values: Mapping[str, Any], function: str) -> Options:
    """Create a dataclass of options.

    Args:
      kind: the class.
      values: name of a field -> value; other fields have their defaults.
      function: name of the function that takes them as arguments, for messages.

    Raises:
      UserError: if a field does not exist.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise UserError(f"{function}: no option '{name}'; {did_you_mean(name, names)}")
    return kind(**values)


def require_spark() -> None:
    """Check that Spark is installed.

    Raises:
      UserError: if it is not.
    """
    try:
        import pyspark  # noqa: F401
    except ImportError as error:
        install = "install it in the clone: .venv/bin/python -m pip install -e '.[spark]'"
        raise UserError(f"--engine spark: {error}; {install}") from error
