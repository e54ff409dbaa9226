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
    r"(?P<scheme>\b(?:rediss?|postgres(?:ql)?)://)(?P<user>[^\s'\"<>?]{0,512}|[^\s'\"<>]{0,512})@", re.IGNORECASE
)
_USER = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]{0,30}://)(?P<user>[^\s'\"<>/?#]{0,512})@", re.IGNORECASE)
# A setting of an address or of PostgreSQL's connection strings that is secret.
_SECRET_SETTING = re.compile(
    r"(?P<name>(?:[?&;\s]|^)(?:[\w.-]{0,64}(?:passw|secret|token|signature|credential|accesskeyid|accessid|api_?key)"
    r"[\w.-]{0,64}|(?:[\w.-]{0,64}[-_.])?(?:sig|pwd|pass|auth)|(?<=[?&])key))=(?P<value>(?:(?![,:;](?:\s|$)|,\w+://)[^&#\s'\"<>])+)",
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

    return _SECRET_SETTING.sub(_hide_setting, _USER.sub(_hide_user, _USER_OF_STORE.sub(_hide_user, text)))


def without_secrets(uri: str) -> str:
    """Return a URI for files that others may read: the password is left out, and signatures are replaced by ***."""
    return _SECRET_SETTING.sub(_hide_setting, _USER.sub(_drop_password, _USER_OF_STORE.sub(_drop_password, uri)))


def secrets_of(uri: str) -> set[str]:
    """Return the passwords and signatures in a URI, as they are written and as they are meant."""
    users = [match["user"].partition(":")[2] for pattern in (_USER_OF_STORE, _USER) for match in pattern.finditer(uri)]
    written = {*users, *(match["value"] for match in _SECRET_SETTING.finditer(uri))}
    meant = written | {unquote(text) for text in written}
    # A library may take a part of a password for a port.
    return {secret for text in meant for secret in (text, *re.split("[/?#@:]", text)) if len(secret) > 2}


def _hide_user(match: re.Match[str]) -> str:
    name, colon, _ = match["user"].partition(":")
    if not colon and name and match["scheme"].lower().startswith("http"):
        name = HIDDEN  # on the web, a name without a password is a token
    return f"{match['scheme']}{name}{colon and ':' + HIDDEN}@"


def _drop_password(match: re.Match[str]) -> str:
    name, colon, _ = match["user"].partition(":")
    is_token = not colon and match["scheme"].lower().startswith("http")
    return match["scheme"] + ("" if is_token or not name else f"{name}@")


def _hide_setting(match: re.Match[str]) -> str:
    return f"{match['name']}={HIDDEN}"


def out_of_memory(error: Exception) -> str | None:
    """Return what could not be allocated, if memory ran out; otherwise None. TensorFlow is not imported for it."""
    if isinstance(error, MemoryError):
        return str(error) or "an array cannot be allocated"
    found = re.search(r"OOM when allocating tensor with shape\[[^\]]*\]|[Oo]ut of memory[^.\n\[]*", str(error))
    return found[0] if found and type(error).__name__ == "ResourceExhaustedError" else None


def first_line(error: Exception) -> str:
    """Return the first line of a library's message; the name of the error if it has no message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# Characters that control a terminal or turn the direction of text, and halves of characters, which cannot be written.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return a text that changes nothing on a terminal but its own line: other characters become \\u001b and the like.

    Line ends and tabs stay. A line of JSON stays JSON.
    """
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return the end of a message about an unknown `name`: the most similar choice, or all if none is similar."""
    choices = sorted(set(choices))
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.7)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"choose one of {', '.join(choices)}" if choices else "there is none"
