"""Names of processes, by which other processes can find out whether they still run."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def this_process() -> str:
    """Return a name of this process that no other process has, also of another machine or after a restart."""
    return f"{_machine()}:{os.getpid()}:{_start_of(os.getpid())}"


def may_run(name: str) -> bool:
    """Return whether the process of a name may still run; of processes of other machines this is not known."""
    machine, _, process = name.rpartition(":")[0].rpartition(":")
    return machine != _machine() or f"{machine}:{process}:{_start_of(int(process))}" == name


def runs_here(name: str) -> bool | None:
    """Return whether the process of a name runs on this machine; None if it belongs to another one, or to none."""
    machine, _, process = name.rpartition(":")[0].rpartition(":")
    return may_run(name) if machine == _machine() and process.isdecimal() else None


def _machine() -> str:
    """Return a name of this machine since its start, and of its table of processes: each container has its own."""
    started = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{socket.gethostname()}/{started}/{os.stat('/proc/self/ns/pid').st_ino}"


def _start_of(process: int) -> str:
    """Return when a process was started, in ticks since the machine was; "" if there is no such process."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *fields = status.rpartition(")")[2].split()
    return "" if state == "Z" else fields[18]
