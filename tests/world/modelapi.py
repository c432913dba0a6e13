"""A project of the stand-in for OpenAI in virtual time, with the product's own governor and system on it, over real HTTP.

What a gateway before it counts is simulated: calls that come steadily, served as far as the project's tokens a minute go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from agent.settings import EndpointSettings, Settings
from agent.watch import WatchedEndpoint
from agent.wiring import Environment, actuator_of, catalogue_of
from collectors.base import Scope, ScrapeTarget
from collectors.discovery import DiscoveryContext
from collectors.http import Http
from collectors.modelapis.discover import OpenAIApiSystem
from collectors.sessions import Sessions
from collectors.window import Reading
from tests.fakes.modelapis import ADMIN_KEY, FakeOpenAI
from tests.world.openai import POLICY, SETTINGS, VERIFY
from tests.world.wire import LOOPS, Snapshot, WireWorld

PROMPT, ANSWER = 400, 100
MODEL = "small"


class GatewayTelemetry:
    """See ``collectors.base.Collector``. Simulated: a minute's calls at a time."""

    source: ClassVar[str] = "litellm"
    interval_s: float | None = None
    deadline_s: float | None = None
    settles_s: float = 0.0
    scope: Scope = "endpoint"

    def __init__(self, openai: FakeOpenAI, now: Callable[[], float], really: Callable[[int], float]) -> None:
        self._openai, self._now, self._really = openai, now, really
        self._minute = math.floor(now() / 60.0)
        self._counters = dict.fromkeys(("requests", "errors", "throttled", "prompt_tokens", "output_tokens"), 0.0)

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        now = self._now()
        limit = self._openai.limits["proj_a"][f"rl-{MODEL}"]["max_tokens_per_1_minute"]
        for minute in range(self._minute, math.floor(now / 60.0)):
            calls = 125 + minute % 2 * 10
            served = min(calls, math.ceil(self._really(limit) / (PROMPT + ANSWER)))
            more = (calls, 0, calls - served, PROMPT * served, ANSWER * served)
            for name, value in zip(self._counters, more, strict=True):
                self._counters[name] += value
        self._minute = math.floor(now / 60.0)
        return [Reading(target.name, now, dict(self._counters), facts={"model": MODEL})]


class ModelApiWorld(WireWorld):
    """See ``WireWorld``. ``really``: what OpenAI serves of a limit that it grants."""

    def __init__(
        self,
        folder: Path,
        amounts: list[int],
        *,
        really: Callable[[int], float] = float,
        snapshot: Snapshot | None = None,
        loops: tuple[str, ...] = LOOPS,
    ) -> None:
        super().__init__(folder, snapshot=snapshot, loops=loops)
        self.amounts = amounts
        self.name = f"a-{MODEL}"
        self.server = FakeOpenAI({"proj_a": {MODEL: (50_000, 10_000)}})
        self.server.use("proj_a", MODEL, int(self.clock.now()) - 86_400, 1, 1, 0, 1)
        self._telemetry = GatewayTelemetry(self.server, self.clock.now, really)

    def open(self) -> None:
        self.server.__enter__()

    def close(self) -> None:
        self.server.__exit__()

    async def stated(self) -> Mapping[str, Any]:
        more = {
            "mode": "approve",
            "objective": {"throttle_rate": 0.01},
            "policy": {**POLICY, "purchase": self.amounts},
            "verify": VERIFY,
        }
        return {**SETTINGS, "endpoints": [{**await self.discovered(), **more}]}

    def make_watched(self, settings: Settings, endpoint: EndpointSettings, environment: Environment) -> WatchedEndpoint:
        return WatchedEndpoint(
            endpoint,
            {"litellm": self._telemetry},
            actuator_of(settings, endpoint, environment),
            catalogue_of(settings, endpoint),
        )

    async def discovered(self) -> dict[str, Any]:
        """What ``flyball discover openai-api`` writes, with the reference to the key replaced by the key."""
        http = Http()
        stated = {"url": self.server.url, "key": ADMIN_KEY}
        try:
            context = DiscoveryContext(http.call, self.clock, Sessions(), stated)
            (found,) = [f async for f in OpenAIApiSystem().discover(context)]
        finally:
            await http.aclose()
        options = {**found.settings["actuator"]["options"], "key": ADMIN_KEY}
        rest = {k: v for k, v in found.settings.items() if k != "bill"}
        return {**rest, "sources": {"litellm": {}}, "actuator": {"system": "openai-api", "options": options}}

    @property
    def granted(self) -> int:
        """Tokens a minute."""
        tokens: int = self.server.limits["proj_a"][f"rl-{MODEL}"]["max_tokens_per_1_minute"]
        return tokens
