"""Errors that a user can cause and correct. The command line prints their messages, never with a stack trace."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable

from easyrec_mm.exit_status import FAILURE, LOST_WORKER
from easyrec_mm.safe_text import hide_secrets


class UserError(Exception):
    """A mistake in a config, a file or the data; the message says where, what was given and what to do."""

    exit_status = FAILURE

    def __str__(self) -> str:
        """Return the message without the passwords and signatures of addresses, as a stack trace shows it."""
        return hide_secrets(super().__str__())


class ConfigError(UserError):
    """A mistake in a pipeline config."""


class Problems:
    """Collects the problems of a config, each with its config path, and remarks that are not errors.

    Args:
      path: path of the config, for messages.
      earlier: problems that did not stop the checks; they are reported together with these.
    """

    def __init__(self, path: str, earlier: Problems | None = None) -> None:
        self._path = path
        self._earlier = [] if earlier is None else earlier._messages
        self._messages: list[str] = []
        self.notes: list[str] = []

    def add(self, place: str, message: str) -> None:
        """Add a problem at a config path such as "data_config.selected_cols"."""
        self._messages.append(f"{self._path}: {place}: {message}")

    def note(self, place: str, message: str) -> None:
        """Add a remark on a config path that is not an error."""
        self.notes.append(f"{place}: {message}")

    def unknown(self, place: str, kind: str, name: str, choices: Iterable[str]) -> None:
        """Add a problem about a name that does not exist."""
        self.add(place, f"no {kind} named '{name}'; {did_you_mean(name, choices)}")

    def raise_if_any(self) -> None:
        """Raise ConfigError with every problem, if there is one."""
        if self._messages:
            raise ConfigError("\n".join([*self._earlier, *self._messages]))


class DataError(UserError):
    """Input files that are missing or unreadable, or more bad records than allowed."""


class LostWorkerError(UserError):
    """Another worker of a training cannot be reached any more; all workers have to be started again."""

    exit_status = LOST_WORKER


class ExportError(UserError):
    """An export that fails its own verification, or a folder that does not contain what an export wrote."""


class StoreError(UserError):
    """A store of image vectors that cannot be reached, or does not contain what it should."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written, read or matched with the model."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are damaged, or that contains numbers with which no model works; others may be whole."""


_PLACE_OF_NODE = re.compile(
    r'Graph execution error:|Detected at node .* defined at .*|[ \t]+File ".*|<stack traces unavailable>'
)


def tensorflow_reason(message: str | None) -> str:
    """Return the text of a TensorFlow error message, without the names and the places of graph nodes around it."""
    message = re.sub(r"^(\s*\{\{.*?\}\})+", "", message or "")
    if message.lstrip().startswith("Graph execution error"):  # as in a loaded model
        message = _PLACE_OF_NODE.sub("", message)
    return " ".join(message.split("[[")[0].split(" [Op:")[0].split())


def out_of_memory(error: Exception) -> str | None:
    """Return what could not be allocated, if memory ran out; otherwise None. TensorFlow is not imported for it."""
    if isinstance(error, MemoryError):
        return str(error) or "an array cannot be allocated"
    found = re.search(r"OOM when allocating tensor with shape\[[^\]]*\]|[Oo]ut of memory[^.\n\[]*", str(error))
    return found[0] if found and type(error).__name__ == "ResourceExhaustedError" else None


def advice_for(error: OSError) -> str:
    """Return what to do about a file or folder that the system lets nobody, or not this user, write; "" otherwise."""
    if error.errno == errno.EROFS:
        return "mount the file system so that it can be written, or choose another place"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"change its owner or rights for this user (number {os.geteuid()}), or choose another place"
    return "make room there, or choose another place" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""


def install_extra(extra: str) -> str:
    """Return the end of a message about a package that is missing because an extra of this one was not installed."""
    return f"install easyrec-mm[{extra}]; in the clone: .venv/bin/python -m pip install -e '.[{extra}]'"


def first_line(error: Exception) -> str:
    """Return the first line of a library's message; the name of the error if it has no message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return the end of a message about an unknown `name`: the most similar choice, or all if none is similar."""
    choices = sorted(set(choices))
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.7)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"choose one of {', '.join(choices)}" if choices else "there is none"
