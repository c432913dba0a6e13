"""The what-if playground: one endpoint's own traffic, at a multiple of it, on a shape that is chosen on the page.

The engine is learned once for a span, and kept while that span is the newest: an answer then takes as long as its replays. One question is
computed at a time, so that a page cannot take the machine from the loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from agent.settings import EndpointSettings, Settings
from agent.store import Store
from analyzers.grammar import BadQuestion
from analyzers.objective import Objective
from analyzers.prediction import CannotPredict
from analyzers.strict import nearest
from collectors.clock import Clock
from collectors.text import clean

if TYPE_CHECKING:
    from agent.whatif.predictions import Question, Telemetry

#: Requests that are replayed for an answer, at most about: of an endpoint with more the newest part of its span.
MOST_REQUESTS = 40_000.0
#: The traffic may be multiplied by so much.
LEAST_TIMES, MOST_TIMES = 0.05, 20.0


@dataclass(frozen=True, slots=True)
class _KnownEngine:
    """What was learned of an endpoint's span."""

    found: Telemetry
    on: Question


class WhatIfQuestion(BaseModel):
    """As the page's form asks it."""

    endpoint: str = ""
    replicas: str = Field("", max_length=12)
    size: str = Field("", max_length=200)
    changes: str = Field("", max_length=500)
    times: float = Field(1.0, ge=LEAST_TIMES, le=MOST_TIMES)

    def candidate(self) -> str:
        """As ``flyball whatif --candidate`` takes it. Empty: the present shape alone."""
        pairs = [
            f"{name}={value}" for name, value in (("replicas", self.replicas.strip()), ("size", self.size)) if value
        ]
        return ",".join([*pairs, *([self.changes.strip()] if self.changes.strip() else [])])


class Playground:
    """Answers for the page. Keeps the newest engine of each endpoint that was asked about."""

    def __init__(self, settings: Settings, store: Store, clock: Clock) -> None:
        self._settings, self._store, self._clock = settings, store, clock
        self._known: dict[str, _KnownEngine] = {}
        self._turn = asyncio.Lock()

    async def ask(self, asked: WhatIfQuestion) -> dict[str, Any]:
        """The present shape and the candidate, as JSON. ``refused`` says why there is no answer."""
        async with self._turn:
            return await asyncio.to_thread(self._answer, asked.endpoint, asked.candidate(), asked.times)

    def form(self, endpoint: str) -> dict[str, Any]:
        """What may be chosen: endpoints, and of the one that is asked about the sizes and the present shape's name."""
        names = [e.name for e in self._settings.endpoints]
        chosen = endpoint if endpoint in names else (names[0] if names else "")
        sizes = list(self._settings.endpoint(chosen).policy.sizes) if chosen else []
        return {"names": names, "endpoint": chosen, "sizes": sizes, "least": LEAST_TIMES, "most": MOST_TIMES}

    def _answer(self, endpoint: str, candidate: str, times: float) -> dict[str, Any]:
        from agent.whatif import predictions  # takes a while to import, and a daemon is asked seldom

        notes: list[str] = []
        try:
            known = self._known.get(endpoint)
            if known is None or self._clock.now() - known.found.end >= 5 * self._settings.collect.window_s:
                known = None
            found = self._evidence(endpoint) if known is None else known.found
            tried = predictions.shapes(found, [candidate] if candidate else [], notes)
            if known is None:
                on = predictions.question(found, self._judged(endpoint), seed=self._settings.decide.seed)
                known = self._known[endpoint] = _KnownEngine(found, on)
            on = known.on
            if times != 1.0:
                on = predictions.faster(found, on, seed=self._settings.decide.seed, speed=times)
            rows = [predictions.predicted(on, named).figures for named in tried]
        except BadQuestion as wrong:
            return {"refused": str(wrong)}
        except CannotPredict as wrong:
            return {"refused": wrong.detail, "code": wrong.code}
        return {
            "refused": None,
            "endpoint": endpoint,
            "times": times,
            "requests": len(on.workload),
            "span_s": found.end - found.start,
            "end": found.end,
            "objective": {t.name: t.limit for t in self._judged(endpoint).targets},
            "not_predicted": [t.name for t in self._chosen(endpoint).wanted().targets if t.quantile is None],
            "candidates": rows,
            "notes": notes,
        }

    def _evidence(self, endpoint: str) -> Telemetry:
        """Raises BadQuestion on an unknown endpoint."""
        from agent.whatif import predictions

        now, width = self._clock.now(), self._settings.collect.window_s
        span_s = max(self._chosen(endpoint).policy.evidence_s, 10 * width)
        found = predictions.evidence(self._store, self._settings, endpoint, span_s, now)
        requests = sum(w.count("requests") or 0.0 for w in found.windows)
        if requests <= MOST_REQUESTS:
            return found
        shorter_s = max(10 * width, span_s * MOST_REQUESTS / requests)
        return predictions.evidence(self._store, self._settings, endpoint, shorter_s, now)

    def _judged(self, endpoint: str) -> Objective:
        """Of its objective what a replay tells: latencies."""
        return Objective(tuple(t for t in self._chosen(endpoint).wanted().targets if t.quantile is not None))

    def _chosen(self, endpoint: str) -> EndpointSettings:
        try:
            return self._settings.endpoint(endpoint)
        except KeyError:
            names = [e.name for e in self._settings.endpoints]
            raise BadQuestion(f"there is no endpoint {clean(endpoint)}; {nearest(endpoint, names)}") from None
