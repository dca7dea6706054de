"""A real PostgreSQL for tests and benchmarks: a cluster of its own on a free loopback port.

    with Postgres() as server:
        url = server.database()     # an empty database

PostgreSQL does not run as root, so where the tests do, it is started as the user ``postgres``.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from types import TracebackType

import psycopg
from child_process import ChildProcess, free_port

_FOLDERS = ("/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/16/bin")
_START_S = 30.0
_USER = "edgekit"
_names = count(1)


class Postgres(ChildProcess):
    """One cluster, which may be killed and started again on the same port.

    Args:
        flush: Whether commits reach the disk, as in production; tests that never cut the machine's
            power need it not.

    Attributes:
        port: On 127.0.0.1; anyone may connect.
        folder: Of the server's programs.
    """

    # As an operator in a hurry would: it ends connections, then itself.
    STOP = LEAVE = signal.SIGINT

    def __init__(self, *, flush: bool = False) -> None:
        self._flush = flush
        self.folder = _programs()
        self.port = free_port()
        self._home = Path(tempfile.mkdtemp(prefix="edgekit-postgres-"))
        super().__init__(self._home / "log")
        self._data = self._home / "data"
        self._owner = _owner()
        if self._owner is not None:
            shutil.chown(self._home, self._owner)

    def __enter__(self) -> Postgres:  # noqa: PYI034  # Self is of 3.11
        options = ["--auth=trust", f"--username={_USER}", "--no-sync", "--encoding=UTF8"]
        self._run(["initdb", "-D", str(self._data), *options])
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        shutil.rmtree(self._home)

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            RuntimeError: It ended, or does not answer in time; with what it said.
        """
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self._home,
            "fsync": "on" if self._flush else "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [self.folder / "postgres", "-D", self._data, *options]
        self._begin(command, user=self._owner, cwd="/")
        self._wait_for(self._answers, "PostgreSQL does not answer", _START_S)

    def kill(self) -> None:
        """End it at once, without a checkpoint, as a crash would.

        The signal is the server's own for that: after ``kill -9`` its children would linger.
        """
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        """Crash it and start it again on the same port."""
        self.kill()
        self.start()

    def database(self) -> str:
        """Return the URL of a new, empty database."""
        name = f"test_{next(_names)}"
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self._address(name)

    def _address(self, database: str) -> str:
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/{database}"

    def _answers(self) -> bool:
        try:
            psycopg.connect(self._address("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, command: Sequence[str]) -> None:
        subprocess.run(
            [self.folder / command[0], *command[1:]],
            check=True,
            capture_output=True,
            user=self._owner,
            cwd="/",
            timeout=120,
        )


def _programs() -> Path:
    """Return the folder of the server's programs, which Debian puts into no PATH."""
    found = [Path(folder) for folder in _FOLDERS if (Path(folder) / "initdb").exists()]
    beside = shutil.which("initdb")
    assert found or beside, "these tests need PostgreSQL: apt-get install postgresql"
    return found[0] if found else Path(str(beside)).parent


def _owner() -> int | None:
    """Return whom to run as; None for whoever runs the tests."""
    return pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else None
