"""Takes in what senders push: decoded on a thread, one at a time; acknowledged once it is kept.

A push that cannot be taken now is refused with a time to try again: nothing piles up, and neither the pages nor the loop wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError

from agent.metrics import Metrics
from agent.settings import RetentionSettings
from agent.store import Store, control, flights
from agent.store.control import Lead, LostLease
from agent.watch import WatchedEndpoint, Watcher
from collectors.clock import Clock
from collectors.receiver import Intake, Push, PushAnswer, PushError, Receiver, ReceiverMember

log = structlog.get_logger()

#: Pushes that wait for their turn; each holds its body.
MOST_WAITING = 16
#: Seconds until a sender may try again.
BUSY_S, AWAY_S = 1.0, 5.0
#: After so many requests the recorder is brought within its bounds, not only when the house is kept.
_TRIM_AFTER = 50_000


class PushService:
    """The receivers of one governor, by the paths that are sent to."""

    def __init__(
        self,
        watched: Mapping[str, WatchedEndpoint],
        watcher: Watcher,
        store: Store,
        keep: RetentionSettings,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self.receivers: dict[str, Receiver] = {}
        for endpoint in watched.values():
            for source in endpoint.collectors.values():
                if isinstance(source, ReceiverMember):
                    self.receivers |= dict.fromkeys(source.receiver.paths, source.receiver)
        self._watcher = watcher
        self._store = store
        self._keep = keep
        self._clock = clock
        self._metrics = metrics
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._kept = 0
        """Requests since the recorder was brought within its bounds."""

    async def take(self, push: Push, lead: Lead | None) -> PushAnswer:
        """What the sender is told. Raises KeyError where nothing is received at this path."""
        receiver = self.receivers[push.path]
        try:
            return (await self._taken(receiver, push, lead)).answer
        except PushError as error:
            refused = error
        except Exception as error:  # its text may hold what was sent
            log.error("push_failed", path=push.path, error=type(error).__name__)
            refused = PushError(500, "an error of Flyball's own; see its log")
        self._metrics.pushes.labels(push.path, str(refused.status)).inc()
        return receiver.refusal(push, refused)

    async def _taken(self, receiver: Receiver, push: Push, lead: Lead | None) -> Intake:
        if lead is None:
            raise PushError(503, "this Flyball stands by; the one that leads takes it", AWAY_S)
        if self._waiting >= MOST_WAITING:
            raise PushError(429, "more comes than can be taken in", BUSY_S)
        self._waiting += 1
        try:
            async with self._turn:
                intake = await asyncio.to_thread(receiver.take, push)
                if intake.records:
                    await asyncio.to_thread(self._save, intake, lead)
        finally:
            self._waiting -= 1
        for endpoint, said in intake.told:
            self._watcher.take(endpoint, receiver, said)
        for endpoint in {name for name, _ in intake.records}:
            self._watcher.heard(endpoint, receiver)
        self._metrics.pushes.labels(push.path, "200").inc()
        return intake

    def _save(self, intake: Intake, lead: Lead) -> None:
        """Raises PushError 503 while they cannot be kept."""
        try:
            with control.leading(self._store, lead) as db:
                self._kept += flights.keep(db, intake.records)
                if self._kept >= _TRIM_AFTER:
                    self.trim(db, self._clock.now())
        except (SQLAlchemyError, LostLease) as error:
            log.warning("requests_not_kept", error=type(error).__name__)
            raise PushError(503, "it cannot be kept just now", AWAY_S) from error

    def trim(self, db: sa.Connection, now: float) -> None:
        """Bring the recorder within its bounds."""
        self._kept = 0
        flights.age_out(db, now - self._keep.requests_days * 86_400, self._keep.requests_rows)
