"""The emulated endpoint: which replicas serve, and how a change of shape goes. Keeps generation and shape in a file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actuators.emulated.engine import REFERENCE, Limits, Size, Timing
from actuators.emulated.replica import Config, Faults, Replica
from actuators.shape import Shape

ENGINE_LIMITS = ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size")
CACHING = "enable_prefix_caching"
MAX_REPLICAS = 64


class BadShape(ValueError):
    """The shape cannot be emulated; the text says why."""


@dataclass(frozen=True, slots=True)
class Sabotage:
    """Any shape that has these fields runs slower than its timing says: an emulated noisy neighbour."""

    when: Mapping[str, Any]
    slowdown: float

    def matches(self, shape: Shape) -> bool:
        return _within(self.when, shape.as_dict())


@dataclass(frozen=True, slots=True)
class Emulation:
    """What the emulated endpoint is like."""

    model: str
    sizes: Mapping[str, Size] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)
    cold_start_s: float = 1.0
    noise: float = 0.03
    seed: int = 0
    sabotage: Sabotage | None = None
    overhead_s: float = 0.0
    """Between client and engine: a request reaches the engine so late."""
    lag: float = 0.0
    """Iterations that a first token is late by, as where an engine schedules ahead."""

    def config(self, shape: Shape) -> Config:
        """What a replica of this shape is. Raises ``BadShape``."""
        replicas = shape.replicas
        if replicas is None or not 0 <= replicas <= MAX_REPLICAS:
            raise BadShape(f"replicas must be 0 to {MAX_REPLICAS}, not {replicas}")
        if shape.size is not None and shape.size not in self.sizes:
            known = ", ".join(sorted(self.sizes)) or "none"
            raise BadShape(f"size {shape.size!r} is not one of the emulated sizes ({known})")
        caching = shape.engine.get(CACHING, True)
        if not isinstance(caching, bool):
            raise BadShape(f"{CACHING} must be true or false, not {caching!r}")
        unknown = sorted(set(shape.engine) - {*ENGINE_LIMITS, CACHING})
        if unknown:
            raise BadShape(f"the emulation has no engine limit {', '.join(unknown)}; it has {', '.join(ENGINE_LIMITS)}")
        limits: dict[str, int] = {}
        for name, value in ((n, v) for n, v in shape.engine.items() if n != CACHING):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadShape(f"{name} must be a whole number above 0, not {value!r}")
            limits[name] = value
        size = self.sizes[shape.size] if shape.size is not None else REFERENCE
        slow = self.sabotage.slowdown if self.sabotage is not None and self.sabotage.matches(shape) else 1.0
        return Config(
            self.timing.on(size), Limits(kv_tokens=size.kv_tokens, prefix_caching=caching, **limits), slow, self.noise
        )


class Endpoint:
    """Replicas that serve, start and drain. Must be made inside a running event loop."""

    def __init__(self, emulation: Emulation, shape: Shape, state: Path) -> None:
        self.emulation = emulation
        self.generation, self.shape, self.token = 1, shape, ""
        self.faults = Faults()
        self._state = state
        if state.exists():
            data = json.loads(state.read_text())
            self.generation, self.shape, self.token = data["generation"], Shape.from_dict(data["shape"]), data["token"]
        self._made = 0
        self._turns = 0
        self._switching: asyncio.Task[None] | None = None
        self._drains: set[asyncio.Task[None]] = set()
        self.draining: list[Replica] = []
        config = emulation.config(self.shape)
        self.serving = [self._new(config) for _ in range(self.shape.replicas or 0)]
        self._save()

    @property
    def ready(self) -> bool:
        """Whether what was asked for serves, and what was there before has gone."""
        return self._switching is None and not self.draining

    @property
    def replicas(self) -> list[Replica]:
        return [*self.serving, *self.draining]

    def choose(self) -> Replica | None:
        """The serving replica with the fewest requests; among equals, the one that waited longest for its turn."""
        if not self.serving:
            return None
        self._turns += 1
        chosen = min(self.serving, key=lambda r: (r.scheduler.outstanding, r.turn))
        chosen.turn = self._turns
        return chosen

    def put(self, shape: Shape, token: str) -> None:
        """Accept a new shape. It serves after the cold start; what no longer fits is drained. Raises ``BadShape``."""
        config = self.emulation.config(shape)
        self.generation, self.shape, self.token = self.generation + 1, shape, token
        self._save()
        if self._switching is not None:
            self._switching.cancel()  # overtaken before it served
        self._switching = asyncio.create_task(self._switch(config, shape.replicas or 0))

    def status(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "emulated": True,
            "model": self.emulation.model,
            "shape": self.shape.as_dict(),
            "generation": self.generation,
            "token": self.token,
            "ready": self.ready,
            "ready_replicas": len(self.serving),
            "draining_replicas": len(self.draining),
            "running": sum(len(r.scheduler.running) for r in self.replicas),
            "waiting": sum(len(r.scheduler.waiting) for r in self.replicas),
        }

    def close(self) -> None:
        for task in (self._switching, *self._drains):
            if task is not None:
                task.cancel()
        for replica in self.replicas:
            replica.close()

    async def _switch(self, config: Config, count: int) -> None:
        kept = [r for r in self.serving if _interchangeable(r.config, config)][:count]
        if len(kept) < count:
            await asyncio.sleep(self.emulation.cold_start_s)
        for replica in kept:
            replica.config = config  # only the slowdown can differ
        old = [r for r in self.serving if r not in kept]
        self.serving = kept + [self._new(config) for _ in range(count - len(kept))]
        for replica in old:
            self.draining.append(replica)
            task = asyncio.create_task(self._drain(replica))
            self._drains.add(task)
            task.add_done_callback(self._drains.discard)
        self._switching = None

    async def _drain(self, replica: Replica) -> None:
        await replica.drain()
        self.draining.remove(replica)

    def _new(self, config: Config) -> Replica:
        self._made += 1
        return Replica(self._made - 1, config, self.emulation.seed, self.faults)

    def _save(self) -> None:
        fresh = self._state.with_name(self._state.name + ".new")
        fresh.write_text(
            json.dumps({"generation": self.generation, "shape": self.shape.as_dict(), "token": self.token})
        )
        fresh.replace(self._state)


def _interchangeable(one: Config, other: Config) -> bool:
    return (one.timing, one.limits) == (other.timing, other.limits)


def _within(part: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    for key, value in part.items():
        found = whole.get(key)
        if isinstance(value, Mapping):
            if not isinstance(found, Mapping) or not _within(value, found):
                return False
        elif found != value:
            return False
    return True
