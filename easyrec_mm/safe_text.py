"""Texts that may be shown: without passwords and signatures, and without characters that control a terminal."""

from __future__ import annotations

import re
from urllib.parse import unquote

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


# Characters that control a terminal or turn the direction of text, and halves of characters, which cannot be written.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return a text that changes nothing on a terminal but its own line: other characters become \\u001b and the like.

    Line ends and tabs stay. A line of JSON stays JSON.
    """
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
