"""Real Redis and PostgreSQL servers for tests, on loopback, each with a folder of its own."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def free_ports(num: int) -> list[int]:
    """Return `num` ports that follow one another, of those that no system hands out by itself (from 32768)."""
    while True:
        first = random.SystemRandom().randrange(10000, 32768 - num)
        with ExitStack() as stack:
            try:
                for port in range(first, first + num):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return list(range(first, first + num))


class Server:
    """A server that can be stopped and started again on the same port and data."""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="easyrec_mm_server_"))
        self._log = self.folder.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self.uri = ""

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """As a crash would: at once."""
        if self._process is not None:
            for process in self._processes():
                os.kill(process, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """All its processes stand still; connections stay open."""
        processes = self._processes()
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                os.kill(process, signal.SIGCONT)

    def _processes(self) -> list[int]:
        """The server's process and those that it has started."""
        assert self._process is not None
        parent = self._process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [parent, *map(int, children)]

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._log.unlink(missing_ok=True)

    def _run(self, command: list[str], is_up: Callable[[], bool]) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(200):
            if is_up():
                return
            time.sleep(0.05)
        raise RuntimeError(f"{command[0]} did not start; see {self._log}")


class RedisServer(Server):
    """Writes every change to disk before it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.uri = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        import redis

        client = redis.Redis(port=self.port)

        def is_up() -> bool:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

        flags = ["--port", str(self.port), "--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", "always"]
        self._run([find("redis-server"), "--bind", "127.0.0.1", "--save", "", *flags], is_up)


class PostgresServer(Server):
    """Runs as the user postgres where the tests run as root, which PostgreSQL refuses."""

    def __init__(self) -> None:
        super().__init__()
        self._as_user: list[str] = []
        user = pwd.getpwuid(os.getuid()).pw_name
        if os.getuid() == 0:
            user = "postgres"
            account = pwd.getpwnam(user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._as_user = ["setpriv", f"--reuid={user}", f"--regid={account.pw_gid}", "--clear-groups"]
        self.uri = f"postgresql://{user}@127.0.0.1:{self.port}/postgres"
        initialise = [find("initdb"), "--pgdata", str(self.folder / "data"), "--auth", "trust", "--no-sync"]
        subprocess.run([*self._as_user, *initialise], check=True, capture_output=True)
        self.start()

    def start(self) -> None:
        import psycopg

        def is_up() -> bool:
            try:
                psycopg.connect(self.uri, connect_timeout=1).close()
            except psycopg.Error:
                return False
            return True

        flags = ["-D", str(self.folder / "data"), "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder)]
        self._run([*self._as_user, find("postgres"), *flags], is_up)


def find(program: str) -> str:
    """Path of a server's program, also where Debian keeps PostgreSQL's."""
    places = [
        *os.environ.get("PATH", "").split(os.pathsep),
        *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"))),
    ]
    path = shutil.which(program, path=os.pathsep.join(places))
    if path is None:
        raise FileNotFoundError(f"{program} is not installed; scripts/services installs it (Debian, as root)")
    return path
