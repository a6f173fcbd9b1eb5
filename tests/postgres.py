"""A real PostgreSQL for tests: a cluster of its own in a folder of its own, with fsync on."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import psycopg
import pytest

from bridge.config import Database

#: Seconds until a wait is given up.
PATIENCE = 40.0


def binaries() -> Path | None:
    """Where Debian (or whoever else) has put the server's programs; None: there are none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    program = shutil.which("initdb")
    return Path(program).resolve().parent if program else None


class Server:
    """A PostgreSQL that this test started; opened and closed by `with`.

    Args:
        programs: The folder of `initdb` and `postgres`.
        settings: Of postgresql.conf, e.g. `fsync=off`.
    """

    def __init__(self, programs: Path, *settings: str) -> None:
        self._programs = programs
        self._settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def __enter__(self) -> Self:
        # The server refuses to run as root.
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        subprocess.run(
            self._as_user("initdb", "-D", self._data, "-U", "tests", "--encoding=UTF8", "--locale=C", "--no-sync"),
            check=True,
            capture_output=True,
            cwd="/",
        )
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def path(self) -> str:
        """For programs that come with the server."""
        return f"{self._programs}:/usr/bin:/bin"

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _as_user(self, program: str, *arguments: str) -> list[str]:
        command = [str(self._programs / program), *arguments]
        if os.geteuid() != 0:
            return command
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--", *command]

    def start(self) -> None:
        """Run, and answer."""
        settings = (
            "shared_buffers=64MB",
            "max_connections=100",
            "autovacuum_naptime=5s",
            "max_wal_size=512MB",
            f"unix_socket_directories={self.folder}",
            "listen_addresses=127.0.0.1",
            f"port={self.port}",
            *self._settings,
        )
        with (self.folder / "log").open("ab") as output:
            self._process = subprocess.Popen(
                self._as_user("postgres", "-D", self._data, *(word for one in settings for word in ("-c", one))),
                stdout=output,
                stderr=output,
                cwd="/",
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                assert self._process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.02)

    def stop(self, by: signal.Signals = signal.SIGINT) -> None:
        """Stop: SIGINT cuts the connections, SIGQUIT is a crash of the server (what is not on disk is lost)."""
        if self._process is not None:
            self._process.send_signal(by)
            self._process.wait(PATIENCE)
            self._process = None

    def url(self, database: str) -> str:
        return f"postgresql://tests@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: Database | None = None) -> list[tuple[object, ...]]:
        """Run a statement as the owner of everything."""
        with psycopg.connect(database.url if database else self.url("postgres"), autocommit=True) as db:
            if database is not None:
                db.execute(f"SET search_path = {database.schema}".encode())
            cursor = db.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def show(self, certificate: Path, key: Path) -> None:
        """Take connections with TLS, too, with this certificate (PEM)."""
        for name, file in (("server.crt", certificate), ("server.key", key)):
            kept = Path(self._data) / name
            kept.write_bytes(file.read_bytes())
            kept.chmod(0o600)
            if os.geteuid() == 0:
                shutil.chown(kept, "postgres", "postgres")
        self.execute("ALTER SYSTEM SET ssl = on")
        self.execute("SELECT pg_reload_conf()")

    def ask_password_of(self, role: str) -> None:
        """Let this role in only with its password; all others come in without."""
        rules = Path(self._data) / "pg_hba.conf"
        rules.write_text(f"host all {role} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        self.execute("SELECT pg_reload_conf()")

    def new_database(self) -> Database:
        """An empty database."""
        name = f"home{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return Database(self.url(name))

    def new_schema(self) -> Database:
        """A place for a journal beside others in one database, which is quicker to have than a database."""
        if not self.execute("SELECT 1 FROM pg_database WHERE datname = 'shared'"):
            self.execute("CREATE DATABASE shared")
        return Database(self.url("shared"), schema=f"home{next(self._numbers)}")


@contextlib.contextmanager
def running(*settings: str) -> Iterator[Server]:
    """A server; without one installed, the test is skipped, or fails where everything has to be tested."""
    programs = binaries()
    if programs is None:
        words = "postgresql is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(words)
        pytest.skip(words)
    with Server(programs, *settings) as server:
        yield server
