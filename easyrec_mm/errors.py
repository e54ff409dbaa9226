"""Errors that a user can cause and correct. The command line prints their messages, never with a stack trace."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from urllib.parse import unquote


class UserError(Exception):
    """A mistake in a config, a file or the data; the message says where, what was given and what to do."""


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

    def unknown(self, place: str, kind: str, name: str, choices: Iterable[str]) -> None:
        """Add a problem about a name that does not exist."""
        self.add(place, f"no {kind} named '{name}'; {did_you_mean(name, choices)}")

    def raise_if_any(self) -> None:
        """Raise ConfigError with every problem, if there is one."""
        if self._messages:
            raise ConfigError("\n".join([*self._earlier, *self._messages]))


class DataError(UserError):
    """Input files that are missing or unreadable, or more bad records than allowed."""


class ExportError(UserError):
    """An export that fails its own verification, or a folder that does not contain what an export wrote."""


class StoreError(UserError):
    """A store of image vectors that cannot be reached, or does not contain what it should."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written, read or matched with the model."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are damaged, or that contains numbers with which no model works; others may be whole."""


def tensorflow_reason(message: str | None) -> str:
    """Return the text of a TensorFlow error message, without the names of graph nodes before and after it."""
    message = re.sub(r"^(\s*\{\{.*?\}\})+", "", message or "")
    return " ".join(message.split("[[")[0].split(" [Op:")[0].split())


# The part of an address before "@". In that of a store, no path has an "@", so that a password may have any character.
_USER_OF_STORE = re.compile(
    r"(?P<scheme>\b(?:rediss?|postgres(?:ql)?)://)(?P<user>[^\s'\"<>?]*|[^\s'\"<>]*)@", re.IGNORECASE
)
_USER = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?P<user>[^\s'\"<>/?#]*)@", re.IGNORECASE)
# A setting of an address or of PostgreSQL's connection strings that is secret.
_SECRET_SETTING = re.compile(
    r"(?P<name>(?:[?&;\s]|^)(?:[\w.-]*(?:passw|secret|token|signature|credential|accesskeyid|accessid|api_?key)[\w.-]*"
    r"|(?:[\w.-]*[-_.])?(?:sig|pwd|pass|auth)|(?<=[?&])key))=(?P<value>[^&#\s'\"<>]+)",
    re.IGNORECASE,
)
HIDDEN = "***"


def hide_secrets(text: str, *uris: str) -> str:
    """Return a text in which the passwords and signatures of all URIs are replaced by ***.

    Whatever shows a URI, or a message that may contain one, passes through here: consoles, logs, manifests.

    Args:
      text: the text.
      uris: URIs whose passwords are hidden wherever they occur: messages of drivers quote them alone.
    """
    for uri in uris:
        for secret in sorted(secrets_of(uri), key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
    if "://" not in text and "=" not in text:
        return text

    def hide_user(match: re.Match[str]) -> str:
        name, colon, _ = match["user"].partition(":")
        if not colon:  # on the web, a name without a password is a token
            name = HIDDEN if match["scheme"].lower().startswith("http") and name else name
        return f"{match['scheme']}{name}{colon and ':' + HIDDEN}@"

    text = _USER.sub(hide_user, _USER_OF_STORE.sub(hide_user, text))
    return _SECRET_SETTING.sub(lambda match: f"{match['name']}={HIDDEN}", text)


def secrets_of(uri: str) -> set[str]:
    """Return the passwords and signatures in a URI, as they are written and as they are meant."""
    users = [match["user"].partition(":")[2] for pattern in (_USER_OF_STORE, _USER) for match in pattern.finditer(uri)]
    written = {*users, *(match["value"] for match in _SECRET_SETTING.finditer(uri))}
    return {secret for text in written for secret in (text, unquote(text)) if len(secret) > 2}


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
