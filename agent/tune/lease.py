"""The leases of a tune: while they are held nobody else runs it, and nobody else deploys its endpoint.

A process that stood still for longer than a lease lasts may wake up when another one has gone on with its tune. It then leaves everything
as it is: endpoint and store are the other one's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import SQLAlchemyError

from agent.apply import lease_of
from agent.store import Store, StoreError, control
from agent.store.control import Lead
from collectors.clock import Clock

#: Held for so long at a time: after a kill the next one waits for no longer.
_LEASE_S, _RENEW_S = 20.0, 5.0


class LeaseConflict(Exception):
    """They are somebody else's; the text says what that means."""


class LeaseHolder:
    """Leases that are taken and kept. Every step that changes something asks ``check`` right before."""

    def __init__(self, store: Store, clock: Clock, endpoint: str, tune: str) -> None:
        self._store, self._clock, self._endpoint, self.tune = store, clock, endpoint, tune
        self.holder = f"tune:{tune}"
        """Of the lease on deploying the endpoint."""
        self.lead: Lead | None = None
        """On deploying the endpoint, once it is taken."""
        self.lost = False
        self._me = f"{socket.gethostname()}:{os.getpid()}"
        self._epoch: int | None = None
        self._until = 0.0

    def take(self) -> bool:
        """Take or keep them; whether they are held. Raises StoreError."""
        until = self._clock.monotonic() + _LEASE_S
        with self._store.write() as db:
            mine = control.acquire(db, self.holder, self._me, _LEASE_S)
            if mine is None or (self._epoch is not None and mine.epoch > self._epoch + 1):
                return False  # somebody has it, or had it since it ran out
            deploying = control.acquire(db, lease_of(self._endpoint), self.holder, _LEASE_S)
            if deploying is None:
                return False
        self._epoch, self._until, self.lead = mine.epoch, until, deploying
        return True

    def check(self) -> None:
        """Raises LeaseConflict unless they are held at this moment; StoreError."""
        late = self._clock.monotonic() > self._until - _RENEW_S
        if self.lost or (late and not self.take()):
            self.lost = True
            raise LeaseConflict(
                f"{self._endpoint}: this process stood still, and somebody else has gone on with tune {self.tune} or deploys the endpoint. "
                "Nothing more is done here"
            )

    async def keep(self) -> None:
        """Renew them until they are lost."""
        while not self.lost:
            await self._clock.sleep(_RENEW_S)
            with contextlib.suppress(StoreError, SQLAlchemyError):  # a moment's outage: the next one tries again
                self.lost = not await asyncio.to_thread(self.take) or self.lost

    def release(self) -> None:
        with self._store.write() as db:
            control.release(db, self.holder, self._me)
            if not self.lost:  # whoever goes on with the same tune has it under the same name
                control.release(db, lease_of(self._endpoint), self.holder)


@asynccontextmanager
async def held(store: Store, clock: Clock, endpoint: str, tune: str) -> AsyncIterator[LeaseHolder]:
    """Waits for whoever was killed in the middle. Raises LeaseConflict where somebody else has them for longer."""
    hold = LeaseHolder(store, clock, endpoint, tune)
    until = clock.monotonic() + _LEASE_S + _RENEW_S
    while not hold.take():
        if clock.monotonic() > until:
            raise LeaseConflict(f"{endpoint}: somebody else tunes or deploys it at this moment")
        await clock.sleep(1.0)
    keeping = asyncio.create_task(hold.keep())
    try:
        yield hold
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        hold.release()
