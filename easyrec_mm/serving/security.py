"""TLS and bearer tokens from files, which are read again when they change: no restart is needed to renew them."""

from __future__ import annotations

import hmac
import logging
import os
import re
import ssl
from pathlib import Path

import grpc

from easyrec_mm.errors import UserError

_LOG = logging.getLogger("easyrec_mm.serving")
_TOKEN = re.compile(rb"[\x21-\x7e]+")
_BEARER = b"bearer "


class _Files:
    """Files that change together."""

    def __init__(self, *paths: str) -> None:
        self._paths = paths
        self._status = self._now()

    def have_changed(self) -> bool:
        """Return whether a file has changed since the last call."""
        status = self._now()
        is_changed, self._status = status != self._status, status
        return is_changed

    def _now(self) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for path in self._paths:
            try:
                status = os.stat(path)
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
            except OSError:
                found.append(())
        return found


class Certificate:
    """A certificate and its key, for REST and gRPC.

    Args:
      certificate: file of the certificate chain, PEM.
      key: file of its private key, PEM, without a passphrase.

    Raises:
      UserError: if they cannot be read, or do not belong together.
    """

    def __init__(self, certificate: str, key: str) -> None:
        self._certificate, self._key = certificate, key
        self._for_rest, self._for_grpc = _Files(certificate, key), _Files(certificate, key)
        self.context = self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        self.context.set_alpn_protocols(["http/1.1"])

    def renew(self) -> None:
        """Take changed files for new connections of REST; invalid ones are logged, and the old ones stay."""
        if not self._for_rest.have_changed():
            return
        try:
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # a context that failed to load might be in between
            self._load(self.context)
        except UserError as error:
            _LOG.error("the old certificate stays: %s", error)
        else:
            _LOG.info("the new certificate is used")

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Return credentials for gRPC, which take changed files by themselves."""

        def newer() -> grpc.ServerCertificateConfiguration | None:
            if not self._for_grpc.have_changed():
                return None
            try:
                self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
                return self._grpc_configuration()
            except (UserError, OSError):
                return None  # `renew` logs it

        return grpc.dynamic_ssl_server_credentials(self._grpc_configuration(), newer)

    def _grpc_configuration(self) -> grpc.ServerCertificateConfiguration:
        pair = Path(self._key).read_bytes(), Path(self._certificate).read_bytes()
        return grpc.ssl_server_certificate_configuration([pair])

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        try:
            # Without a function for the passphrase, OpenSSL would ask for it on the terminal.
            context.load_cert_chain(self._certificate, self._key, password=lambda: "")
        except (OSError, ValueError) as error:
            for flag, path in (("--tls_cert", self._certificate), ("--tls_key", self._key)):
                _require_readable(flag, path)
            reason = getattr(error, "reason", None) or str(error)
            raise UserError(
                f"--tls_cert {self._certificate}, --tls_key {self._key}: cannot be used ({reason}); give a certificate "
                "chain and its private key, both PEM, the key without a passphrase"
            ) from error
        return context


class Tokens:
    """The tokens of which a client needs one.

    Args:
      path: file with one token a line. Of several, each is valid, so that a token can be replaced without a gap.

    Raises:
      UserError: if the file cannot be read, or holds no token or an invalid one.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._files = _Files(path)
        self._tokens = self._read()

    def renew(self) -> None:
        """Take a changed file; an invalid one is logged, and the old tokens stay."""
        if not self._files.have_changed():
            return
        try:
            self._tokens = self._read()
        except UserError as error:
            _LOG.error("the old tokens stay: %s", error)
        else:
            _LOG.info("the new tokens are used")

    def allow(self, authorization: bytes | None) -> bool:
        """Return whether the value of an `authorization` header has a valid token, in time that does not tell which."""
        if authorization is None or authorization[: len(_BEARER)].lower() != _BEARER:
            return False
        given = authorization[len(_BEARER) :].strip()
        matches = [hmac.compare_digest(given, token) for token in self._tokens]  # all are compared
        return any(matches)

    def _read(self) -> list[bytes]:
        _require_readable("--token_file", self._path)
        lines = Path(self._path).read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
        tokens = [line.strip() for line in lines if line.strip()]
        if not tokens:
            raise UserError(
                f"--token_file {self._path}: holds no token; write one into it, as openssl rand -hex 32 does"
            )
        if any(not _TOKEN.fullmatch(token) for token in tokens):
            raise UserError(
                f"--token_file {self._path}: holds a token with spaces or other characters that are not "
                "printable ASCII; write one token a line"
            )
        return tokens


def _require_readable(flag: str, path: str) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read: {error.strerror}") from error
