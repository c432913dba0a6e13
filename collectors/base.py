"""What every source is: the protocol, and what it is made from. Registered in the entry-point group ``flyball.collectors``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from collectors.clock import Clock
from collectors.http import Http
from collectors.sessions import Sessions
from collectors.window import CollectError, Reading, Span


@dataclass(frozen=True, slots=True)
class ScrapeTarget:
    """One address to read: a replica of an endpoint."""

    name: str
    url: str
    """Base address, without a trailing slash."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with each request. May hold a secret: never logged."""


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What a collector is given when it is made."""

    endpoint: str
    model: str | None
    http: Http
    clock: Clock
    sessions: Sessions
    """Where a client of an account, a cluster or a store is kept, one for all endpoints of it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The source's own settings, validated by its ``Options`` model."""


Scope = Literal["replica", "endpoint"]


class Collector(Protocol):
    """One source of one endpoint. It may keep state between reads; it must not raise anything but ``CollectError``."""

    source: ClassVar[str]
    """The name in ``Window.source`` and in the settings."""

    interval_s: float | None
    """Least seconds between two reads of one target; None: as often as the settings' ``collect.interval_s`` says."""

    deadline_s: float | None
    """Most seconds that one read may take; whoever takes longer is broken off. None: the settings' ``collect.timeout_s``."""

    settles_s: float
    """How late its data may come, in seconds: windows stay open for so long. 0: a reading is of this moment."""

    scope: Scope
    """Whether each replica is read, or the endpoint as a whole, once."""

    async def read(self, target: ScrapeTarget) -> Sequence[Reading | Span]:
        """Read one target once: one Reading for each engine behind it, each with its own ``target``, or Spans of what has passed.

        Raises ``CollectError`` with a stable ``kind`` when it cannot be read, is not what it should be, or holds values
        that cannot be true (negative counters, for instance). Partial truth is left out, not guessed.
        """


@dataclass(frozen=True, slots=True)
class FleetQuery:
    """What a fleet collector is asked of one endpoint."""

    endpoint: str
    model: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    """The source's settings of this endpoint."""


class FleetCollector(Protocol):
    """One source of many endpoints: a store that answers for all of them in one query a metric. Shared by them through ``Sessions``."""

    source: ClassVar[str]
    interval_s: float | None
    deadline_s: float | None
    settles_s: float

    def read_all(
        self, wanted: Sequence[FleetQuery], since: float | None
    ) -> AsyncIterator[tuple[str, Reading | Span | CollectError]]:
        """What came of each endpoint since a moment (Unix seconds; None: just the newest), by the endpoint's name; its error where
        there is none.

        One endpoint may come several times. Raises CollectError where none of them can be read.
        """


NO_SERIES = "the source says nothing of this endpoint: see its selector or its labels"


@dataclass(frozen=True, slots=True)
class FleetMember:
    """One endpoint's part in a fleet: what ``make`` returns. Members of one fleet are read together; one alone is a Collector too."""

    fleet: FleetCollector
    wanted: FleetQuery
    scope: ClassVar[Scope] = "endpoint"

    @property
    def source(self) -> str:
        return self.fleet.source

    @property
    def interval_s(self) -> float | None:
        return self.fleet.interval_s

    @property
    def deadline_s(self) -> float | None:
        return self.fleet.deadline_s

    @property
    def settles_s(self) -> float:
        return self.fleet.settles_s

    async def read(self, target: ScrapeTarget) -> Sequence[Reading | Span]:
        """This endpoint alone, to see whether it can be read. ``target`` is not used: the store is asked."""
        said = [said async for name, said in self.fleet.read_all([self.wanted], None) if name == self.wanted.endpoint]
        for one in said:
            if isinstance(one, CollectError):
                raise one
        if not said:
            raise CollectError("no_series", NO_SERIES)
        return [one for one in said if not isinstance(one, CollectError)]
