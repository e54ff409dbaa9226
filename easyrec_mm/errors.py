"""Errors that a user can cause and mend. The command line prints them in plain words, never with a stack trace."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a config, a file or the data: says where, what was given and what to do."""


class ConfigError(UserError):
    """A mistake in a pipeline config."""


class Problems:
    """Collects what is wrong in a config, each with its config path, and remarks that are no errors.

    Args:
      path: of the config.
      earlier: problems that do not keep the checks from going on; they are reported together with these.
    """

    def __init__(self, path: str, earlier: Problems | None = None) -> None:
        self._path = path
        self._earlier = [] if earlier is None else earlier._messages
        self._messages: list[str] = []
        self.notes: list[str] = []

    def add(self, place: str, message: str) -> None:
        """Add a problem at a config path such as "data_config.selected_cols"."""
        self._messages.append(f"{self._path}: {place}: {message}")

    def unknown(self, place: str, what: str, name: str, choices: Iterable[str]) -> None:
        """Add a problem about a name that nothing has."""
        self.add(place, f"no {what} named '{name}'; {did_you_mean(name, choices)}")

    def raise_if_any(self) -> None:
        """Raise ConfigError with every problem, if there is one."""
        if self._messages:
            raise ConfigError("\n".join([*self._earlier, *self._messages]))


class DataError(UserError):
    """Input files that are missing or unreadable, or more bad records than allowed."""


class ExportError(UserError):
    """An export that fails its own proof, or a folder that does not hold what an export wrote."""


class StoreError(UserError):
    """A store of image vectors that cannot be reached, or does not hold what it should."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written, read or matched with the model."""


def tensorflow_reason(message: str | None) -> str:
    """What TensorFlow's error message says, without the names of graph nodes before and behind it."""
    message = re.sub(r"^(\s*\{\{.*?\}\})+", "", message or "")
    return " ".join(message.split("[[")[0].split(" [Op:")[0].split())


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """The end of a message about an unknown `name`: the nearest choice, or all of them when none is near."""
    choices = sorted(set(choices))
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.7)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"choose one of {', '.join(choices)}" if choices else "there is none"
