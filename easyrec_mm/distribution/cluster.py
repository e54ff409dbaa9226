"""The workers of a training: who they are, as TF_CONFIG or flags say, and whether all of them train the same."""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from easyrec_mm.errors import ConfigError, UserError

VARIABLE, FLAG, INDEX_FLAG = "TF_CONFIG", "--workers", "--worker_index"
# Set in TF_CONFIG if its addresses are those of processes, which start no further ones.
IS_EXPANDED = "is_expanded"
# Kinds of tasks that train, in the order of their numbers; the first worker of all is the chief.
_KINDS = ("chief", "master", "worker")
_EXAMPLE = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
_RETRY_S = 0.5
# One attempt to connect. A name may still have the address of a machine that has gone, which answers nothing.
_CONNECT_S = 5.0
# A worker that connects sends its facts at once, and the first answers soon after the end of its time.
_MESSAGE_S = 5.0
_MOST_BYTES = 16 << 20
_MOST_SHOWN_LINES = 12


@dataclass(frozen=True)
class Cluster:
    """The workers of a training.

    workers      the addresses of all, host:port, in the order of their numbers
    number       number of this one
    is_expanded  whether each address is certainly that of one process, not of a machine with several
    source       what names them, for messages
    """

    workers: tuple[str, ...]
    number: int
    is_expanded: bool = False
    source: str = field(default=VARIABLE, compare=False)

    @property
    def others(self) -> tuple[int, ...]:
        """Return the numbers of the other workers."""
        return tuple(number for number in range(len(self.workers)) if number != self.number)

    def name(self, number: int) -> str:
        """Return what messages call a worker."""
        return f"worker {number} ({self.workers[number]})"


def read_cluster(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """Return the cluster that TF_CONFIG describes; None if it is not set.

    Raises:
      ConfigError: if it is malformed, or describes tasks that do not exist here.
    """
    text = environment.get(VARIABLE, "").strip()
    if not text:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{VARIABLE} is not JSON: {error}; give it as {_EXAMPLE}") from error
    cluster, task = (value.get(name) if isinstance(value, dict) else None for name in ("cluster", "task"))
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise ConfigError(f"{VARIABLE} has no 'cluster' and 'task'; give it as {_EXAMPLE}")
    if cluster.get("ps") or task.get("type") == "ps":
        raise ConfigError(
            f"{VARIABLE}: parameter servers are not used; list all machines as workers, which exchange gradients and "
            "rows of tables directly"
        )
    if task.get("type") == "evaluator":
        raise ConfigError(f"{VARIABLE}: this task is an evaluator; run easyrec-mm eval --watch there instead of train")
    places = [(kind, index) for kind in _KINDS for index in range(len(_addresses(cluster, kind)))]
    workers = tuple(address for kind in _KINDS for address in _addresses(cluster, kind))
    _require_addresses(workers, VARIABLE)
    index = task.get("index")
    place = (task.get("type"), int(index) if isinstance(index, str) and index.isdecimal() else index)
    if place not in places or type(place[1]) is not int:
        known = ", ".join(f"{kind} {index}" for kind, index in places) or "none"
        given = f"the task is '{place[0]} {place[1]}'" if "index" in task else f"task {json.dumps(task)} has no 'index'"
        raise ConfigError(
            f"{VARIABLE}: {given}, but the cluster has {known}; give each worker the type and index of its own "
            f"address, as in {_EXAMPLE}"
        )
    return Cluster(workers, places.index(place), value.get(IS_EXPANDED) is True)


def cluster_of_flags(workers: Sequence[str], index: int | None) -> Cluster | None:
    """Return the cluster that --workers and --worker_index describe; None without them.

    Raises:
      ConfigError: if only one of them is given, an address is invalid, or the index is out of range.
    """
    if not workers and index is None:
        return None
    if not workers:
        raise ConfigError(f"{INDEX_FLAG} {index}: is without {FLAG}; give the addresses of all workers as well")
    if index is None:
        given, last = ",".join(workers), len(workers) - 1
        raise ConfigError(f"{FLAG} {given}: is without {INDEX_FLAG}; give each worker its own, from 0 to {last}")
    _require_addresses(workers, FLAG)
    if index >= len(workers):
        raise ConfigError(
            f"{INDEX_FLAG} {index}: is out of range; the numbers of {len(workers)} workers are 0 to {len(workers) - 1}"
        )
    return Cluster(tuple(workers), index, source=FLAG)


def agreed_cluster(by_variable: Cluster | None, by_flags: Cluster | None) -> Cluster | None:
    """Return the cluster that TF_CONFIG and flags describe, or one of them; None without both.

    Raises:
      ConfigError: if they contradict each other.
    """
    if by_variable is None or by_flags is None:
        return by_variable or by_flags
    if by_variable.is_expanded:
        # These are processes that a worker of the flags has started, one on each GPU; its own address is the first.
        is_same = set(by_flags.workers) <= set(by_variable.workers)
    else:
        is_same = by_variable == by_flags
    if not is_same:
        raise ConfigError(
            f"{FLAG} names {by_flags.name(by_flags.number)} of {len(by_flags.workers)}, but {VARIABLE} names "
            f"{by_variable.name(by_variable.number)} of {len(by_variable.workers)}; give only one of them"
        )
    return replace(by_variable, source=by_flags.source)


def _require_addresses(workers: Sequence[str], source: str) -> None:
    for address in workers:
        host_and_port(address, source)
        if workers.count(address) > 1:
            raise ConfigError(f"{source}: two workers have the address {address}; give each a port of its own")


def expanded(machines: tuple[str, ...], num: int, source: str = VARIABLE) -> tuple[str, ...]:
    """Return the addresses of `num` processes on each machine: its own port and those that follow.

    `source` is what names the machines, for messages.

    Raises:
      ConfigError: if two processes would have the same address, or a port would be larger than 65535.
    """
    addresses: list[str] = []
    for machine in machines:
        host, _, port = machine.rpartition(":")
        for address in (f"{host}:{int(port) + i}" for i in range(num)):
            if address in addresses or int(port) + num > 1 << 16:
                raise ConfigError(
                    f"{source}: '{machine}': its {num} processes have the ports {port} to {int(port) + num - 1}, of "
                    "which one is taken by another worker or too large; choose another port"
                )
            addresses.append(address)
    return tuple(addresses)


def _addresses(cluster: dict[str, Any], kind: str) -> list[str]:
    addresses = cluster.get(kind, [])
    if not isinstance(addresses, list) or not all(isinstance(address, str) for address in addresses):
        raise ConfigError(f"{VARIABLE}: cluster.{kind} is not a list of addresses; give it as {_EXAMPLE}")
    return addresses


def host_and_port(address: str, source: str = VARIABLE) -> tuple[str, int]:
    """Return the parts of an address; `source` is what names it, for the message.

    Raises:
      ConfigError: if it is invalid.
    """
    host, _, port = address.rpartition(":")
    is_port = port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16
    if not is_port or not _is_name(host):
        raise ConfigError(f"{source}: '{address}' is not an address; give host:port, such as host0:2222")
    return host.strip("[]"), int(port)


def _is_name(host: str) -> bool:
    """Return whether the network may know a host by this name."""
    try:
        return bool(host.encode("idna")) and not re.search(r"[\s/@]", host)
    except UnicodeError:  # such as an empty part between two dots
        return False


def meet(cluster: Cluster, facts: Mapping[str, str], limit_s: float) -> None:
    """Wait until all workers are there, and check that they train the same.

    Args:
      cluster: the workers.
      facts: what must be equal on all workers, by name, such as the versions of programs and the config.
      limit_s: seconds to wait for the others.

    Raises:
      UserError: if a worker does not arrive in time, or differs from the first; all workers raise it.
    """
    deadline_s = time.monotonic() + limit_s
    _wait_for_names(cluster, deadline_s, limit_s)
    if cluster.number:
        _report(cluster, facts, deadline_s, limit_s)
        return
    with _listening(cluster) as listener, ExitStack() as connections:
        arrived: dict[int, tuple[socket.socket, dict[str, str]]] = {}
        while len(arrived) < len(cluster.workers) - 1:
            listener.settimeout(max(0.01, deadline_s - time.monotonic()))
            try:
                connection = connections.enter_context(closing(listener.accept()[0]))
                connection.settimeout(_MESSAGE_S)
                message = _received_soon(connection)
                arrived[int(message["number"])] = connection, dict(message["facts"])
            except TimeoutError:
                missing = [number for number in range(1, len(cluster.workers)) if number not in arrived]
                names = ", ".join(map(cluster.name, missing))
                problem = f"{names} did not arrive within {limit_s:g} s; look at its log, and start all workers again"
                _answer(arrived.values(), problem)
                raise UserError(problem) from None
            except (OSError, ValueError, KeyError, TypeError):
                continue  # somebody else's connection
        differences = (_difference(cluster, number, facts, own) for number, (_, own) in sorted(arrived.items()))
        unreachable = (_unreachable(cluster, number, deadline_s, limit_s) for number in sorted(arrived))
        problem = next(filter(None, itertools.chain(differences, unreachable)), "")
        _answer(arrived.values(), problem)
        if problem:
            raise UserError(problem)


def _wait_for_names(cluster: Cluster, deadline_s: float, limit_s: float) -> None:
    """Wait until the names of all workers have addresses, which a cluster gives them a moment after they start."""
    for number, worker in enumerate(cluster.workers):
        host, port = host_and_port(worker)
        while True:
            try:
                socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                break
            except socket.gaierror as error:
                if time.monotonic() + _RETRY_S > deadline_s:
                    reason = error.strerror or error
                    raise UserError(
                        f"{cluster.name(number)}: its name has no address within {limit_s:g} s: {reason}; look whether "
                        f"it has started, and at the names in {cluster.source}"
                    ) from error
            time.sleep(_RETRY_S)


@contextmanager
def _listening(cluster: Cluster) -> Iterator[socket.socket]:
    """Listen at the address of this worker, so that nobody else has it."""
    host, port = host_and_port(cluster.workers[cluster.number])
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server(("", port), family=family) as listener:
            yield listener
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{cluster.name(cluster.number)}: its port cannot be opened: {reason}; choose another in {cluster.source}"
        ) from error


def _report(cluster: Cluster, facts: Mapping[str, str], deadline_s: float, limit_s: float) -> None:
    """Tell the first worker what this one trains, and wait for its consent; it also calls this one at its address."""
    with _listening(cluster) as listener, _answering(listener, cluster.number):
        problem = _consent(cluster, facts, deadline_s, limit_s)
    if problem:
        raise UserError(problem)


def _consent(cluster: Cluster, facts: Mapping[str, str], deadline_s: float, limit_s: float) -> str:
    """Return what the first worker answers: a problem, or ""."""
    address = host_and_port(cluster.workers[0])
    while True:
        try:
            left_s = max(0.01, deadline_s - time.monotonic())
            with socket.create_connection(address, timeout=min(_CONNECT_S, left_s)) as connection:
                _send(connection, {"number": cluster.number, "facts": dict(facts)})
                # The first worker may call an address until the end of its time.
                connection.settimeout(max(0.0, deadline_s - time.monotonic()) + _CONNECT_S + _MESSAGE_S)
                message = _received(connection)
            if "problem" not in message:
                raise ValueError("another worker answers there")
            return str(message["problem"])
        except (OSError, ValueError) as error:
            if time.monotonic() + _RETRY_S > deadline_s:
                raise UserError(
                    f"{cluster.name(0)} cannot be reached within {limit_s:g} s: {error}; look at its log, and at the "
                    f"addresses in {cluster.source}"
                ) from error
        time.sleep(_RETRY_S)


@contextmanager
def _answering(listener: socket.socket, number: int) -> Iterator[None]:
    """Tell whoever calls the number of this worker, so that the first one knows that the address leads here."""
    ended = threading.Event()
    listener.settimeout(_RETRY_S)

    def answer() -> None:
        while not ended.is_set():
            try:
                with closing(listener.accept()[0]) as connection:
                    _send(connection, {"number": number})
            except OSError:
                continue  # nobody has called, or the caller has gone

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _unreachable(cluster: Cluster, number: int, deadline_s: float, limit_s: float) -> str:
    """Return why a worker cannot be reached at its address, though it has called; "" if it can be."""
    address = host_and_port(cluster.workers[number])
    while True:
        try:
            with socket.create_connection(address, timeout=_CONNECT_S) as connection:
                if _received(connection).get("number") == number:
                    return ""
                reason = "another worker answers there"
        except (OSError, ValueError) as error:
            reason = f"{error}"
        if time.monotonic() + _RETRY_S > deadline_s:
            return (
                f"{cluster.name(number)} has called worker 0, which cannot reach it at this address within {limit_s:g} "
                f"s: {reason}; look at the addresses in {cluster.source}, and for a firewall"
            )
        time.sleep(_RETRY_S)


def _difference(cluster: Cluster, number: int, facts: Mapping[str, str], others: Mapping[str, str]) -> str:
    """Return how what a worker trains differs from what the first one does; "" if it does not."""
    for name, value in facts.items():
        other = others.get(name, "")
        if other == value:
            continue
        lines = list(difflib.unified_diff(value.splitlines(), other.splitlines(), lineterm="", n=0))[2:]
        shown = "\n  ".join(line for line in lines if not line.startswith("@@"))
        if len(lines) > _MOST_SHOWN_LINES:
            shown = "\n  ".join(lines[:_MOST_SHOWN_LINES]) + "\n  ..."
        signs = f"-: worker 0, +: worker {number}"
        return f"{cluster.name(number)} differs from worker 0 in {name}; start all with the same ({signs}):\n  {shown}"
    return ""


def _answer(arrived: Any, problem: str) -> None:
    for connection, _ in arrived:
        try:
            _send(connection, {"problem": problem})
        except OSError:
            continue  # it has gone, which its own log explains


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _received_soon(connection: socket.socket) -> dict[str, Any]:
    """Return a message; a connection that sends none in time is somebody else's."""
    try:
        return _received(connection)
    except TimeoutError as error:
        raise ValueError("no message in time") from error


def _received(connection: socket.socket) -> dict[str, Any]:
    """Return a message, a line of JSON."""
    content = b""
    while not content.endswith(b"\n"):
        part = connection.recv(1 << 16)
        if not part or len(content) > _MOST_BYTES:
            raise ValueError("the connection has ended")
        content += part
    try:
        message = json.loads(content)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise ValueError("another program answers there")
    return message
