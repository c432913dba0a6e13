"""The peers: autoscalers as their documents set them, and what a search over their settings may try.

HPA, KEDA and KPA are those of the scorecard (``analyzers.autoscaling.rules``); the percentile recommender is here; Ray Serve and SkyServe
are their own code (``peer_code``). All have the same bounds: one replica at least, the scenario's most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analyzers.autoscaling import case
from analyzers.autoscaling.case import Play
from analyzers.autoscaling.rules import RULES, grid, hpa, slots_of
from analyzers.whatif.scaling import Hpa, ScalingInput, ScalingPolicy
from benchmarks import peer_code
from benchmarks.simulators import NotRun
from benchmarks.world import Scenario

#: A policy's settings by name.
Stated = dict[str, float]
#: The share of earlier requests that a search must keep within the objective: half the misses of 99 %, so that other days hold that too.
SEARCHED_WITHIN = 0.995


@dataclass(frozen=True)
class Peer:
    """One autoscaler."""

    documented: Stated
    """As its documents set it, apart from its own defaults. A ``share`` is one of the engine's slots."""
    tried: Sequence[Stated]
    """What a search may set."""
    policy: Callable[[Scenario, Stated, Path | None], AbstractContextManager[ScalingPolicy]]
    """Where its own code is needed, from the folder that it was installed into."""


def documented(peer: Peer, scenario: Scenario, folder: Path | None) -> Play:
    """Played as its documents set it. Raises NotRun."""
    return _played(peer, scenario, peer.documented, folder)


def tuned(peer: Peer, scenario: Scenario, earlier: Scenario, folder: Path | None) -> tuple[Play, Stated]:
    """Played with the settings that are cheapest on earlier traffic at 99.5 % within the objective, or keep the most within.

    Raises NotRun.
    """

    def rank(stated: Stated) -> tuple[bool, float]:
        played = _played(peer, earlier, stated, folder)
        within = float(case.in_time(earlier, played).mean())
        return (False, played.replica_s) if within >= SEARCHED_WITHIN else (True, -within)

    best = min(peer.tried, key=rank)
    return _played(peer, scenario, best, folder), best


def _played(peer: Peer, scenario: Scenario, stated: Stated, folder: Path | None) -> Play:
    with peer.policy(scenario, stated, folder) as policy:
        return case.play(scenario, lambda _machine: _AsRead(policy, scenario))


class _AsRead:
    """An autoscaler with its metrics as they are read; without them it changes nothing."""

    def __init__(self, policy: ScalingPolicy, scenario: Scenario) -> None:
        self.interval_s = policy.interval_s
        self._policy = policy
        self._scenario = scenario

    def __call__(self, seen: ScalingInput, state: Any) -> tuple[int, Any]:
        if self._scenario.dark(seen.at_s):
            return seen.ready + seen.starting, state
        return self._policy(self._scenario.read(seen), state)


def _rule(name: str) -> Peer:
    """One that a replay runs."""
    rule = RULES[name]
    return Peer(
        rule.documented, rule.tried, lambda scenario, stated, _folder: nullcontext(rule.policy(scenario, stated))
    )


def hpa_concurrency(scenario: Scenario) -> Hpa:
    """As documented."""
    return hpa("in_flight", scenario, RULES["hpa-concurrency"].documented)


# -- VPA and KRR -------------------------------------------------------------------------------------------------------

_RATIO = 1.05
_HALF_LIFE_S = 86_400.0
_LEAST_WEIGHT = 1e-12


def bucket(value: float, first: float) -> int:
    """Of VPA's exponential histogram, each bucket 5 % wider than the one before, the first up to ``first``."""
    return 0 if value < first else math.floor(math.log(value / first * (_RATIO - 1.0) + 1.0) / math.log(_RATIO))


def bucket_start(index: int, first: float) -> float:
    return first * (_RATIO**index - 1.0) / (_RATIO - 1.0)


def confident(value: float, confidence: float, multiplier: float, exponent: float) -> float:
    """A bound that is wide while little was seen. confidence: days seen, or samples over those of a day."""
    return value * (1.0 + multiplier / confidence) ** exponent


@dataclass
class DecayingHistogram:
    """Weights halve in a day. ``first``: the end of the first bucket."""

    first: float
    weights: dict[int, float] = field(default_factory=dict)
    since: float | None = None
    latest: float = 0.0
    samples: int = 0

    def add(self, value: float, at: float) -> None:
        self.since = at if self.since is None else self.since
        self.latest, self.samples = at, self.samples + 1
        index = bucket(value, self.first)
        self.weights[index] = self.weights.get(index, 0.0) + 2.0 ** ((at - self.since) / _HALF_LIFE_S)

    def percentile(self, share: float) -> float:
        """The end of the bucket in which it lies."""
        total, reached = sum(self.weights.values()), 0.0
        for index in sorted(self.weights):
            reached += self.weights[index]
            if reached >= share * total - _LEAST_WEIGHT:
                return bucket_start(index + 1, self.first)
        raise ValueError("a percentile of nothing")

    @property
    def confidence(self) -> float:
        """VPA's: days seen, or samples a minute of them, whichever is less."""
        days = (self.latest - (self.since or 0.0)) / 86_400.0
        return max(min(days, self.samples / 1440.0), 1e-6)


@dataclass(frozen=True)
class Percentile:
    """VPA's recommender, for the number of replicas: a decaying histogram of the requests in flight, sampled once a minute.

    Target: the 90th percentile and 15 % more, in replicas of ``share`` of an engine's slots. It acts where what there is lies outside
    the bounds (50th and 95th percentile, wide while little was seen), or after 12 h where it is 10 % off. KRR is the same idea over a
    fixed history. Source: ``vertical-pod-autoscaler/pkg/recommender``.
    """

    slots: int
    most: int
    share: float = 1.0
    target: float = 0.9
    margin: float = 1.15
    interval_s: float = 60.0

    def __call__(
        self, seen: ScalingInput, state: tuple[DecayingHistogram, float] | None
    ) -> tuple[int, tuple[DecayingHistogram, float]]:
        histogram, changed = state or (DecayingHistogram(0.01), seen.at_s)
        histogram.add(seen.in_flight, seen.at_s)
        now, each = seen.ready + seen.starting, self.share * self.slots
        confidence = histogram.confidence
        low = confident(self.margin * histogram.percentile(0.5), confidence, 0.001, -2.0)
        high = confident(self.margin * histogram.percentile(0.95), confidence, 1.0, 1.0)
        target = min(max(self.margin * histogram.percentile(self.target), low), high)
        wanted = min(max(1, math.ceil(target / each)), self.most)
        outside = not math.ceil(low / each) <= now <= math.ceil(high / each)
        stale = seen.at_s - changed > 12 * 3600.0 and abs(now - target / each) / now >= 0.1
        if wanted == now or not (outside or stale):
            return now, (histogram, changed)
        return wanted, (histogram, seen.at_s)


def _percentile(scenario: Scenario, stated: Stated, _folder: Path | None) -> AbstractContextManager[ScalingPolicy]:
    return nullcontext(
        Percentile(slots_of(scenario), scenario.most, stated.get("share", 1.0), stated.get("percentile", 0.9))
    )


# -- their own code ----------------------------------------------------------------------------------------------------


def _ray_serve(scenario: Scenario, stated: Stated, folder: Path | None) -> AbstractContextManager[ScalingPolicy]:
    rest = {name: value for name, value in stated.items() if name != "share"}
    target = {"target": stated["share"] * slots_of(scenario)} if "share" in stated else {}
    return peer_code.ray_serve(_installed(folder), scenario, rest | target)


def _skyserve(scenario: Scenario, stated: Stated, folder: Path | None) -> AbstractContextManager[ScalingPolicy]:
    return peer_code.skyserve(_installed(folder), scenario, stated)


def _installed(folder: Path | None) -> Path:
    if folder is None:
        raise NotRun("not installed: give --install-peers, or --peers")
    return folder


PEERS: dict[str, Peer] = {
    **{name: _rule(name) for name in ("hpa-concurrency", "hpa-queue", "keda-waiting", "kpa")},
    "ray-serve": Peer({}, RULES["ray-serve"].tried, _ray_serve),
    # 2.5 requests a second a replica is the example of its page on autoscaling; there is no default.
    "skyserve": Peer(
        {"target": 2.5},
        grid(target=(0.75, 1.5, 3.0, 4.5, 6.0, 7.5, 9.0), downscale_delay_seconds=(600,)),
        _skyserve,
    ),
    "percentile": Peer({}, grid(share=(0.55, 0.7, 0.85, 1.0), percentile=(0.9, 0.95)), _percentile),
}
