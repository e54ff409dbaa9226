"""The GPUs of this machine, without TensorFlow, which would take hold of them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping

VISIBLE = "CUDA_VISIBLE_DEVICES"
_COMMAND = ("nvidia-smi", "-L")
# A driver that has to be loaded first takes some seconds.
_LIMIT_S = 60.0
# "GPU 0: NVIDIA H100 (UUID: GPU-5d...)", and below it "  MIG 1g.10gb  Device  0: (UUID: MIG-3f...)" for each part.
_LINE = re.compile(r"\s*(GPU|MIG) .*\(UUID: ([^)]+)\)\s*")


def visible_gpus(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    They are those of CUDA_VISIBLE_DEVICES, if it is set, up to the first that does not exist, as CUDA reads it;
    otherwise those that `nvidia-smi -L` lists. A machine without that program has no GPUs.
    """
    if VISIBLE in environment:
        names = [name.strip() for name in environment[VISIBLE].split(",")]
        end = next((i for i, name in enumerate(names) if not name or name.startswith("-")), len(names))
        return tuple(names[:end])
    try:
        listed = subprocess.run(_COMMAND, capture_output=True, text=True, timeout=_LIMIT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return gpus_in(listed)


def gpus_in(listed: str) -> tuple[str, ...]:
    """Return the GPUs in what `nvidia-smi -L` prints; of one that is divided, its parts."""
    gpus: list[list[str]] = []
    for line in listed.splitlines():
        match = _LINE.fullmatch(line)
        if match and match[1] == "GPU":
            gpus.append([match[2]])
        elif match and gpus:
            gpus[-1].append(match[2])
    return tuple(name for whole, *parts in gpus for name in (parts or [whole]))
