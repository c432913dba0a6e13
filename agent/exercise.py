"""Sends a reference traffic of Flyball's own from time to time, where the settings ask for it: a yardstick that idles is learned from nothing.

Whether it is due stands in the database, so that a restart or another leader does not send it again. Nothing is sent while Flyball is
paused. What is sent is bounded by the settings, and cut off when Flyball ends.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from agent.settings import EndpointSettings, ExerciseSettings, Settings
from agent.store import Store, audit, control
from agent.store.control import Lead
from collectors.base import ScrapeTarget
from collectors.clock import Clock
from collectors.plan import Lengths, TrafficPlan
from collectors.traffic.thread import simulate
from collectors.window import CollectError

log = structlog.get_logger()

#: The rate rises in steps, each for an equal part of the time: one load alone does not tell what each further request costs.
STEPS = (0.25, 0.5, 1.0)
#: A request that takes longer is given up.
TIMEOUT_S = 120.0


class Exercise:
    """Of all references that the settings exercise."""

    def __init__(self, settings: Settings, store: Store, clock: Clock) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._running: dict[str, asyncio.Task[None]] = {}
        self.wanted = [(e, e.exercise) for e in settings.endpoints if e.exercise is not None]

    async def cycle(self, lead: Lead) -> None:
        """Begin what is due. Raises LostLease where ``lead`` is no longer the truth."""
        for endpoint, how in self.wanted:
            task = self._running.get(endpoint.name)
            if (task is None or task.done()) and await asyncio.to_thread(self._take, endpoint, how, lead):
                self._running[endpoint.name] = asyncio.create_task(self._send(endpoint, how))

    def _take(self, endpoint: EndpointSettings, how: ExerciseSettings, lead: Lead) -> bool:
        """Whether it is due; it is due no more then."""
        now, key = self._clock.now(), f"exercise/{endpoint.name}"
        with control.leading(self._store, lead) as db:
            last = control.get(db, key)
            if control.paused(db) is not None or (last is not None and now - last["at"] < how.every_s):
                return False
            control.put(db, key, how.model_dump(), now, "flyball")
            audit.append(db, at=now, actor="flyball", action="exercise", subject=endpoint.name, body=how.model_dump())
        return True

    async def _send(self, endpoint: EndpointSettings, how: ExerciseSettings) -> None:
        key = endpoint.api_key
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key is not None else {}
        target = ScrapeTarget(endpoint.name, endpoint.url, headers)
        sent = failed = 0
        try:
            for i, share in enumerate(STEPS):
                plan = TrafficPlan(
                    rate=share * how.rate,
                    duration_s=how.duration_s / len(STEPS),
                    prompt_tokens=Lengths.parse(how.prompt_tokens),
                    output_tokens=Lengths.parse(how.output_tokens),
                    seed=self._settings.decide.seed + i,
                    model=endpoint.model or "",
                    timeout_s=TIMEOUT_S,
                )
                done = await simulate(plan, target, self._clock, ca_file=self._settings.tls_ca_file)
                sent, failed = sent + done.sent, failed + done.tally.errors.total()
                if done.cancelled:
                    raise asyncio.CancelledError
        except (CollectError, OSError, ValueError) as error:
            log.warning("exercise_failed", endpoint=endpoint.name, why=str(error))
        log.info("exercised", endpoint=endpoint.name, sent=sent, failed=failed)

    async def close(self) -> None:
        """Send nothing more."""
        for task in self._running.values():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
