"""A real PostgreSQL server for tests: made on the spot, on a free port of 127.0.0.1, and gone at the end."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest


def programs() -> Path:
    """The folder of ``initdb`` and ``pg_ctl``: on the PATH, or the newest that Debian installed. Skips where there is none."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if not versions:
        pytest.skip("PostgreSQL is not installed (on Debian: apt-get install postgresql)")
    return versions[-1].parent


@dataclass
class Server:
    """A running server. Each test gets a database of its own."""

    port: int
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def create(self, template: str = "template0") -> str:
        """A new database, empty or a copy of ``template``; returns its name."""
        name = f"test_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        where = f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(statement.encode())


@contextmanager
def server() -> Iterator[Server]:
    """Start one, and stop it at the end. Root hands it to the user ``postgres``, since PostgreSQL refuses to run as root."""
    folder = programs()
    as_user = _other_user()
    data = Path(tempfile.mkdtemp(prefix="flyball-postgres-"))
    try:
        if as_user:
            shutil.chown(data, as_user)
        _run(as_user, folder / "initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8")
        port = _free_port()
        options = f"-p {port} -k {data} -c listen_addresses=127.0.0.1 -c fsync=off"
        _run(as_user, folder / "pg_ctl", "-D", str(data), "-l", str(data / "log"), "-o", options, "-w", "start")
        try:
            yield Server(port)
        finally:
            _run(as_user, folder / "pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(data, ignore_errors=True)


def _other_user() -> str | None:
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user called postgres")


def _run(user: str | None, program: Path, *arguments: str) -> None:
    command = [str(program), *arguments]
    if user:
        command = ["runuser", "-u", user, "--", *command]
    # pg_ctl leaves the server behind: without files of its own it would hold our pipes open
    with tempfile.TemporaryFile() as out:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", check=False)
        if ended.returncode:
            out.seek(0)
            raise RuntimeError(f"{program.name} failed: {out.read().decode(errors='replace')}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
