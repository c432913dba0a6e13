"""What can go wrong, and when: an outage of the database, and death at any instant.

An instant is a place in the program where a process may die with consequences: before and after a transaction commits, before and
after a step reaches the system. They are counted, so that a test can die at each of them in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from agent.store import Store


class Death(BaseException):
    """The process of these faults is no more. Not an Exception: nothing may survive it."""

    def __init__(self, name: str, faults: Faults) -> None:
        super().__init__(name)
        self.faults = faults


class Faults:
    """Shared by all of one process's parts."""

    def __init__(self) -> None:
        self.instants: list[str] = []
        """Every instant that was passed, by name."""
        self.die_at: int | None = None
        """The number of the instant to die at; None: live."""
        self.die_when: str | None = None
        """The name of the instant to die at, the next time that it comes."""
        self.during = ""
        """The loop whose cycle runs."""
        self.database_away = False

    def instant(self, name: str) -> None:
        self.instants.append(f"{self.during}: {name}")
        if name == self.die_when or (self.die_at is not None and len(self.instants) > self.die_at):
            self.die_at = self.die_when = None
            raise Death(name, self)

    def database(self) -> None:
        if self.database_away:
            raise OperationalError("connect", None, OSError("the server closed the connection"))


class FaultyStore(Store):
    """The real store, which can be away, and in which the process can die around a commit."""

    def __init__(self, url: str, faults: Faults, now: Callable[[], float]) -> None:
        super().__init__(url, now=now)
        self._faults = faults

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        self._faults.database()
        with super().read() as db:
            yield db

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        self._faults.database()
        with super().write() as db:
            yield db
            self._faults.instant("before a commit")
        self._faults.instant("after a commit")
