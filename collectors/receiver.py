"""Sources that are pushed: what comes in, what is made of it, and what is answered. The web room hands over bounded bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from collectors.base import Collector, FleetMember, Scope, ScrapeTarget, SourceContext
from collectors.flight import FlightRecord
from collectors.window import CollectError, Reading, Span


@dataclass(frozen=True, slots=True)
class Push:
    """One request of a sender."""

    path: str
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes = field(repr=False)
    trusted: bool = False
    """Whether only this host can send at all: then an endpoint without a token takes it."""


@dataclass(frozen=True, slots=True)
class PushAnswer:
    """What the sender is told, in its own protocol."""

    status: int
    body: bytes
    media_type: str
    retry_after_s: float | None = None


class PushError(Exception):
    """A push is not taken. ``status``: the HTTP status. The text never repeats what was sent."""

    def __init__(self, status: int, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Intake:
    """What came of one push, each with its endpoint's name."""

    answer: PushAnswer
    told: Sequence[tuple[str, Reading | Span]] = ()
    records: Sequence[tuple[str, FlightRecord]] = ()


class Receiver(Protocol):
    """One place that senders push to, for all endpoints that name the source. It may keep state between pushes, which come one at a time."""

    paths: ClassVar[Sequence[str]]
    """Where is sent to, such as ``/v1/metrics``."""

    def take(self, push: Push) -> Intake:
        """What was sent. Does no I/O. Raises PushError."""

    def refusal(self, push: Push, error: PushError) -> PushAnswer:
        """The error in the sender's protocol."""


@dataclass(frozen=True, slots=True)
class ReceiverMember:
    """One endpoint's part in a receiver: what ``make`` returns."""

    receiver: Receiver
    source: str
    settles_s: float
    silent_s: float
    """Who said something before and says nothing for so long is missed."""
    open: bool
    """Whether it takes what comes without a token."""
    interval_s: ClassVar[float | None] = None
    deadline_s: ClassVar[float | None] = None
    scope: ClassVar[Scope] = "endpoint"

    async def read(self, target: ScrapeTarget) -> Sequence[Reading | Span]:
        """Raises CollectError: nothing can be fetched from one who pushes."""
        paths = " and ".join(self.receiver.paths)
        raise CollectError("pushed", f"it is not read: its senders push to {paths} of the running daemon")


#: What the entry point must be: called once for each endpoint that names the source.
CollectorFactory = Callable[[SourceContext], Collector | FleetMember | ReceiverMember]
