"""What every source is: the protocol, and what it is made from. Registered in the entry-point group ``flyball.collectors``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from collectors.clock import Clock
from collectors.http import Http
from collectors.sessions import Sessions
from collectors.window import Reading


@dataclass(frozen=True, slots=True)
class Target:
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


class Collector(Protocol):
    """One source of one endpoint. It may keep state between reads; it must not raise anything but ``CollectError``."""

    source: ClassVar[str]
    """The name in ``Window.source`` and in the settings."""

    interval_s: float | None
    """Least seconds between two reads of one target; None: as often as the settings' ``collect.interval_s`` says."""

    deadline_s: float | None
    """Most seconds that one read may take; whoever takes longer is broken off. None: the settings' ``collect.timeout_s``."""

    async def read(self, target: Target) -> Sequence[Reading]:
        """Read one target once: one Reading for each engine behind it, each with its own ``target``.

        Raises ``CollectError`` with a stable ``kind`` when it cannot be read, is not what it should be, or holds values
        that cannot be true (negative counters, for instance). Partial truth is left out, not guessed.
        """


#: What the entry point must be: called once for each endpoint that names the source.
CollectorFactory = Callable[[SourceContext], Collector]
