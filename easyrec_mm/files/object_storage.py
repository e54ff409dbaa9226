"""Buckets, accessed by obstore: S3 and services with its protocol, including Alibaba's OSS, and Google Cloud Storage.

obstore needs little processor time per small object (tools/bench/pictures.py). It is set up here as boto3 would be, so
that profiles, roles and endpoints of the AWS command line take effect.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, cast

from easyrec_mm.files.daemon_pool import DaemonPool
from easyrec_mm.files.paths import inside, place_name
from easyrec_mm.files.storage import Content, Failure, FileInfo, StorageError

_CLIENT = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=60)}
_RETRY = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(seconds=2), "base": 2},
}
# A file is downloaded in parts of this size, and this many parts at a time.
_PART_BYTES, _PARTS_AT_A_TIME = 8 << 20, 4
_CHUNK_BYTES = 1 << 20
# Statuses of a storage that does not know the headers by which a file is written under a condition.
_NO_CONDITIONS = (400, 405, 501)
_CREDENTIALS_LAST = timedelta(minutes=5)
_WRONG_CREDENTIALS = (
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired",
    "AuthorizationHeaderMalformed", "RequestTimeTooSkewed", "InvalidSecurity",
)  # fmt: skip
_NO_CREDENTIALS = (
    "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or AWS_SKIP_SIGNATURE=true where "
    "none are needed"
)
_NO_OSS_SETTINGS = (
    "is not set up; set OSS_ENDPOINT (https://oss-cn-hangzhou.aliyuncs.com), OSS_ACCESS_KEY_ID and "
    "OSS_ACCESS_KEY_SECRET"
)
_ANONYMOUS = ("AWS_SKIP_SIGNATURE", "AWS_NO_SIGN_REQUEST")


class ObjectStorage:
    """A bucket; a Storage."""

    def __init__(self, path: str) -> None:
        self._place = place_name(path)
        scheme, _, bucket = self._place.partition("://")
        with _translated(self._place):
            self.store = STORES[scheme](bucket)

    def find(self, pattern: str) -> list[FileInfo]:
        """See Storage.find."""
        parts = inside(pattern).split("/")
        with _translated(pattern):
            return sorted(self._expand([], parts))

    def below(self, folder: str) -> list[FileInfo]:
        """See Storage.below."""
        import obstore

        with _translated(folder):
            batches = obstore.list(self.store, inside(folder).rstrip("/"), chunk_size=1000)
            return [self._info(meta) for batch in batches for meta in batch]

    def stat(self, path: str) -> FileInfo:
        """See Storage.stat."""
        import obstore

        with _translated(path):
            try:
                return self._info(obstore.head(self.store, inside(path)))
            except (FileNotFoundError, PermissionError, obstore.exceptions.BaseError):
                # Only the response to a GET contains the reason.
                return self._info(obstore.get(self.store, inside(path)).meta)

    def read(self, path: str, known_version: str | None = None, max_bytes: int | None = None) -> Content | None:
        """See Storage.read."""
        import obstore

        with _translated(path):
            try:
                result = obstore.get(
                    self.store, inside(path), options={"if_none_match": known_version} if known_version else None
                )
            except obstore.exceptions.NotModifiedError:
                return None
            if max_bytes is None or result.meta["size"] <= max_bytes:
                return Content(bytes(result.bytes()), _version(result.meta))
            begun = bytearray()
            for chunk in result.stream(min_chunk_size=_CHUNK_BYTES):
                begun += bytes(chunk)
                if len(begun) >= max_bytes:
                    break
            return Content(bytes(begun[:max_bytes]), _version(result.meta))

    def start(self, path: str, size: int) -> bytes:
        """See Storage.start."""
        import obstore

        if not self.stat(path).size:
            return b""  # no range of an empty file can be read
        with _translated(path):
            return bytes(obstore.get_range(self.store, inside(path), start=0, length=size))

    def download(self, info: FileInfo, local: Path) -> None:
        """See Storage.download; downloads parts in parallel, of the version that `info` names."""
        import obstore

        def fetch(start: int) -> None:
            end = min(start + _PART_BYTES, info.size)
            with _translated(info.path):
                options: Any = {"range": (start, end)}
                if info.version.startswith('"'):
                    options["if_match"] = info.version
                data = bytes(obstore.get(self.store, inside(info.path), options=options).bytes())
            os.pwrite(file.fileno(), data, start)

        pool = DaemonPool(_PARTS_AT_A_TIME, "parts of a file")
        with local.open("wb") as file:
            parts = [pool.submit(fetch, start) for start in range(0, info.size, _PART_BYTES)]
            pool.close()
            ended, others = wait(parts, return_when=FIRST_EXCEPTION)
            for part in others:
                part.cancel()
            wait(parts)  # those under way write to the file
        for part in ended:
            part.result()

    def upload(self, local: Path, path: str) -> None:
        """See Storage.upload."""
        import obstore

        with _translated(path):
            obstore.put(self.store, inside(path), local)

    def put(self, path: str, data: bytes, version: str) -> bool:
        """See Storage.put."""
        import obstore

        with _translated(path):
            mode: Any = "create"
            try:
                if version:
                    meta = obstore.head(self.store, inside(path))
                    if _version(meta) != version:
                        return False
                    mode = {name: meta[name] for name in ("e_tag", "version") if meta[name]}
                obstore.put(self.store, inside(path), data, mode=mode)
            except (FileNotFoundError, obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
                return False
            except (NotImplementedError, obstore.exceptions.BaseError) as error:
                if not _has_no_conditions(error):
                    raise
                obstore.put(self.store, inside(path), data)
        return True

    def remove(self, path: str) -> None:
        """See Storage.remove."""
        import obstore

        with _translated(path), suppress(FileNotFoundError):
            obstore.delete(self.store, inside(path))

    def _info(self, meta: Any) -> FileInfo:
        return FileInfo(f"{self._place}/{meta['path']}", int(meta["size"]), _version(meta))

    def _expand(self, fixed: list[str], parts: list[str]) -> Iterator[FileInfo]:
        """Yield the files and folders whose path begins with `fixed` and continues with the patterns `parts`."""
        import obstore

        plain = next((i for i, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts))
        if plain == len(parts):
            yield from self._at("/".join([*fixed, *parts]))
            return
        fixed, part, later_parts = [*fixed, *parts[:plain]], parts[plain], parts[plain + 1 :]
        matches = re.compile(fnmatch.translate(part)).match
        listed = obstore.list_with_delimiter(self.store, "/".join(fixed))
        folders = [name for path in listed["common_prefixes"] if matches(name := path.rstrip("/").rpartition("/")[2])]
        if later_parts:
            for name in folders:
                yield from self._expand([*fixed, name], later_parts)
            return
        yield from (FileInfo(f"{self._place}/{'/'.join([*fixed, name])}", 0, "", is_folder=True) for name in folders)
        yield from (self._info(meta) for meta in listed["objects"] if matches(meta["path"].rpartition("/")[2]))

    def _at(self, key: str) -> Iterator[FileInfo]:
        """Yield the file or the folder of that name."""
        import obstore

        path = f"{self._place}/{key}"
        try:
            if key and not key.endswith("/"):
                yield self.stat(path)
                return
        except StorageError as error:
            if error.failure != Failure.MISSING:
                raise
        if next(iter(obstore.list(self.store, key.rstrip("/"), chunk_size=1)), None):
            yield FileInfo(path, 0, "", is_folder=True)


def _has_no_conditions(error: Exception) -> bool:
    """Return whether a storage answers that it cannot compare the version of a file when it writes it."""
    import obstore

    if isinstance(error, (NotImplementedError, obstore.exceptions.NotSupportedError)):
        return True
    return any(f"status code: {status}" in str(error) for status in _NO_CONDITIONS)


def _version(meta: Any) -> str:
    return str(meta["e_tag"] or meta["last_modified"])


def _s3(bucket: str) -> Any:
    import boto3
    import botocore.exceptions

    try:
        session = boto3.Session()
        region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
        endpoint = session.client("s3", region_name=region).meta.endpoint_url
        credentials = session.get_credentials()
    except botocore.exceptions.BotoCoreError as error:
        raise StorageError(f"s3://{bucket}", str(error), Failure.PLACE) from error
    config: dict[str, Any] = {"region": region}
    if not endpoint.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        config["endpoint"] = endpoint

    def current() -> dict[str, Any]:
        frozen = credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(timezone.utc) + _CREDENTIALS_LAST,
        }

    is_anonymous = any(os.environ.get(name, "").lower() in ("1", "true", "yes") for name in _ANONYMOUS)
    if is_anonymous:
        config["skip_signature"] = True
    elif credentials is None:
        raise StorageError(f"s3://{bucket}", _NO_CREDENTIALS, Failure.PLACE)
    return _s3_store(bucket, config, None if is_anonymous else current)


def _oss(bucket: str) -> Any:
    """Open a bucket as in Alibaba's "Accessing OSS with the AWS SDK", which requires the bucket in the host name."""
    endpoint = os.environ.get("OSS_ENDPOINT", "")
    key, secret = os.environ.get("OSS_ACCESS_KEY_ID"), os.environ.get("OSS_ACCESS_KEY_SECRET")
    if not (endpoint and key and secret):
        raise StorageError(f"oss://{bucket}", _NO_OSS_SETTINGS, Failure.PLACE)
    scheme, _, host = endpoint.rpartition("://")
    region = match[1] if (match := re.match(r"(?:s3\.)?oss-(.+?)(?:-internal)?\.aliyuncs", host)) else ""
    config = {
        "region": os.environ.get("OSS_REGION") or region or "us-east-1",
        "endpoint": f"{scheme or 'https'}://{host}",
    }
    # Not given as settings, because the AWS settings of the environment would then take effect as well.
    credentials = {
        "access_key_id": key,
        "secret_access_key": secret,
        "token": os.environ.get("OSS_SESSION_TOKEN"),
        "expires_at": None,
    }
    if region:
        config["endpoint"] = f"{scheme or 'https'}://{bucket}.s3.{host.removeprefix('s3.')}"
        config["virtual_hosted_style_request"] = "true"
    return _s3_store(bucket, config, lambda: credentials)


def _s3_store(bucket: str, config: dict[str, Any], credentials: Callable[[], dict[str, Any]] | None) -> Any:
    from obstore.store import S3Store

    return S3Store(
        bucket,
        config=cast(Any, config),
        client_options=cast(Any, {**_CLIENT, "allow_http": config.get("endpoint", "").startswith("http://")}),
        retry_config=cast(Any, _RETRY),
        credential_provider=cast(Any, credentials),
    )


def _gcs(bucket: str) -> Any:
    """Open a bucket with the application's default credentials, or one of the emulator that Google's clients use."""
    from obstore.store import GCSStore

    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    return GCSStore(
        bucket,
        config=cast(Any, {"base_url": emulator, "bearer_token": "emulator"} if emulator else None),
        client_options=cast(Any, {**_CLIENT, "allow_http": emulator.startswith("http://")}),
        retry_config=cast(Any, _RETRY),
    )


# Scheme -> function that opens a bucket.
STORES: dict[str, Callable[[str], Any]] = {"s3": _s3, "s3a": _s3, "oss": _oss, "gs": _gcs, "gcs": _gcs}


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """Raise obstore's errors as StorageErrors."""
    import obstore

    try:
        yield
    except StorageError:
        raise
    except ValueError as error:  # no object can have that name
        raise StorageError(path, str(error), Failure.REFUSED) from error
    except (FileNotFoundError, PermissionError, NotImplementedError, obstore.exceptions.BaseError) as error:
        failure, reason = _understood(str(error))
        place = place_name(path) if failure == Failure.PLACE else path
        raise StorageError(place, reason, failure) from error


def _understood(message: str) -> tuple[Failure, str]:
    """Return what obstore's message means, and the part of it that a user needs."""
    text = message.partition("\n\nDebug source")[0]
    status = int(match[1]) if (match := re.search(r"status code: (\d{3})", text)) else 0
    code, detail = _element(text, "Code"), _element(text, "Message").strip()
    reason = f"{code}: {detail}" if code else f"the storage answers {status}" if status else _shortened(text)
    if code == "NoSuchBucket":
        return Failure.PLACE, "there is no such bucket; check its name"
    if code in _WRONG_CREDENTIALS or status == 401:
        return Failure.PLACE, f"the credentials are refused ({reason}); check them, the region and the endpoint"
    if status == 403:
        return Failure.DENIED, f"access is denied ({reason})" if code else "access is denied"
    if status == 404:
        return Failure.MISSING, "no such file"
    if status == 412:
        return Failure.CHANGED, "has changed while it was read"
    if status in (0, 408, 429) or status >= 500:
        return Failure.PASSING, reason
    hint = "; set AWS_REGION to that of the bucket" if status in (301, 307) else ""
    return Failure.REFUSED, reason + hint


def _element(text: str, name: str) -> str:
    """Return the content of the first XML element of that name; "" if there is none."""
    content, end, _ = text.partition(f"<{name}>")[2].partition(f"</{name}>")
    return content if end else ""


def _shortened(text: str) -> str:
    """Return a message without the history of its retries."""
    text = re.sub(r" in [\d.]+[mµn]?s(, after \d+ retries, max_retries: \d+, retry_timeout: \w+ *)?( ?- )?", ": ", text)
    return " ".join(text.split()).removeprefix("Generic S3 error: ").removeprefix("Generic GCS error: ")[:300]
