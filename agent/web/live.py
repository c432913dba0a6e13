"""Live updates: a stream of server-sent events that says when there is something new to show. What is new, the page itself says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from sqlalchemy.exc import SQLAlchemyError

from agent.store import Store, schema
from collectors.clock import Clock

#: Seconds between two looks at the database, however many pages are open.
LOOK_S = 2.0
#: A stream ends after so long, and the browser asks again: by then a login may have ended.
STREAM_S = 60.0
#: Streams at once; whoever comes later reloads by himself.
MOST_STREAMS = 64


class Pulse:
    """What the database was last changed to, asked for once for all who listen."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._known = ""
        self._looked_at = float("-inf")
        self._lock = asyncio.Lock()
        self.listening = 0

    async def state(self) -> str:
        """A text that differs once something was written that pages show; the last one while the database is away."""
        async with self._lock:
            if self._clock.monotonic() - self._looked_at >= LOOK_S:
                self._looked_at = self._clock.monotonic()
                with contextlib.suppress(SQLAlchemyError):  # the pages say so themselves
                    self._known = await asyncio.to_thread(self._look)
            return self._known

    def _look(self) -> str:
        newest = [
            sa.select(sa.func.max(column)).scalar_subquery()
            for column in (schema.windows.c.id, schema.audit.c.id, schema.recommendations.c.refreshed_at)
        ]
        with self._store.read() as db:
            return "/".join(str(value) for value in db.execute(sa.select(*newest)).one())

    async def events(self) -> AsyncIterator[str]:
        """One event now, and one for each change, for as long as a stream lasts."""
        ends_at = self._clock.monotonic() + STREAM_S
        self.listening += 1
        try:
            seen = await self.state()
            yield "retry: 3000\n\n"
            while self._clock.monotonic() < ends_at:
                await self._clock.sleep(LOOK_S)
                state = await self.state()
                if state != seen:
                    seen = state
                    yield "data: changed\n\n"
                else:
                    yield ": nothing new\n\n"  # finds out that the browser has left
        finally:
            self.listening -= 1


def add(app: FastAPI, store: Store, clock: Clock) -> None:
    pulse = Pulse(store, clock)

    @app.get("/events")
    async def events() -> Response:
        """Server-sent events: `changed` whenever pages have something new to show."""
        if pulse.listening >= MOST_STREAMS:
            return PlainTextResponse("too many pages listen; reload instead\n", 503, headers={"Retry-After": "60"})
        return StreamingResponse(pulse.events(), media_type="text/event-stream")
