"""Autoscalers scored against the clairvoyant on what really came, and the settings that would have done best.

Pure: cases in, scores out. What is tuned is tuned on some days and reported on the others, so that no score is that of hindsight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from analyzers.autoscaling.case import HOUR, Action, FleetCase, Play, breached_steps, in_time, play, play_static
from analyzers.autoscaling.clairvoyant import clairvoyant_and_bound
from analyzers.autoscaling.rules import RULES, RuleSettings
from analyzers.whatif.scaling import ScalingPolicy

#: A minute in which too few were in time is missed; hardly any request in it, and it is not judged.
MINUTE = 60.0
#: A move that is taken back within so many cold starts, or so many seconds, is a flap.
FLAP_COLD_STARTS, FLAP_S = 5.0, 900.0
#: The share of requests that a search must keep within the objective, where the objective asks for less.
LEAST_WITHIN = 0.99


@dataclass(frozen=True, slots=True)
class AutoscalerScore:
    """What a policy did with the traffic of some days, summed."""

    name: str
    usd: float
    wasted_usd: float
    """Above what the clairvoyant needed for the same days."""
    within: float
    """Share of the requests in time."""
    minutes_missed: int
    """Minutes in which a smaller share of the requests than the objective asks for was in time."""
    moves: int
    flaps: int
    """Moves that were taken back at once."""
    hours: float

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in AutoscalerScore.__slots__}


@dataclass(frozen=True, slots=True)
class TunedRule:
    """An autoscaler as documented, and as it would have done best."""

    rule: str
    settings: RuleSettings
    """Found on some days."""
    documented: AutoscalerScore
    tuned: AutoscalerScore
    """Both on the other days."""


#: The policy that is played on a case; a number: so many replicas that never change.
PolicyOf = Callable[[FleetCase], ScalingPolicy | int]


class Scorecard:
    """The same days for all, and the clairvoyant's need of each."""

    def __init__(self, cases: Sequence[FleetCase], within: float = LEAST_WITHIN) -> None:
        """cases: a day each, or a part of one. within: what the clairvoyant keeps, and a search must."""
        if not cases:
            raise ValueError("no day to score")
        self.cases = tuple(cases)
        self.within = within
        self._needed: dict[int, tuple[Play, float]] = {}

    def needed(self, day: int) -> tuple[float, float]:
        """(replica-seconds of the clairvoyant, and the bound that nobody can go below)."""
        played, least = self._need(day)
        return played.replica_s, least

    def _need(self, day: int) -> tuple[Play, float]:
        if day not in self._needed:
            self._needed[day] = clairvoyant_and_bound(self.cases[day], self.within)
        return self._needed[day]

    def clairvoyant(self, days: Sequence[int]) -> AutoscalerScore:
        plays = [(self.cases[day], self._need(day)[0]) for day in days]
        return _summed("clairvoyant", plays, sum(self.needed(day)[0] for day in days))

    def score(self, name: str, policy: PolicyOf, days: Sequence[int]) -> AutoscalerScore:
        plays = []
        for day in days:
            case = self.cases[day]
            made = policy(case)
            plays.append((case, play_static(case, made) if isinstance(made, int) else _play(case, made)))
        return _summed(name, plays, sum(self.needed(day)[0] for day in days))

    def tuned(self, rule: str, learned: Sequence[int], reported: Sequence[int]) -> TunedRule:
        """The settings that were cheapest on ``learned`` with the share in time, or kept the most in time; on ``reported``."""
        one = RULES[rule]
        best = min(one.tried, key=lambda settings: self._rank(rule, settings, learned))
        return TunedRule(
            rule,
            best,
            self.score(f"{rule}, as documented", lambda case: one.policy(case, one.documented), reported),
            self.score(f"{rule}, tuned", lambda case: one.policy(case, best), reported),
        )

    def _rank(self, rule: str, settings: RuleSettings, days: Sequence[int]) -> tuple[bool, float]:
        """Half of what may be late, so that other days hold as well."""
        score = self.score(rule, lambda case: RULES[rule].policy(case, settings), days)
        held = score.within >= 1.0 - (1.0 - self.within) / 2
        return (False, score.usd) if held else (True, -score.within)


def _play(case: FleetCase, policy: ScalingPolicy) -> Play:
    """From as many replicas as the first hour needs: nobody is scored by what he did not choose."""
    return play(case, lambda _machine: policy)


def _summed(name: str, plays: Sequence[tuple[FleetCase, Play]], needed_s: float) -> AutoscalerScore:
    replica_s = usd = late = 0.0
    asked = missed = moves = flaps = 0
    price = plays[0][0].usd_per_replica_hour
    for case, played in plays:
        good = in_time(case, played)
        asked, late = asked + len(good), late + float((~good).sum())
        replica_s += played.replica_s
        usd += played.replica_s / HOUR * case.usd_per_replica_hour
        missed += len(breached_steps(case, good, 0.0, case.duration_s, MINUTE))
        moves += len(played.actions)
        flaps += _flaps(played.actions, max(FLAP_S, FLAP_COLD_STARTS * case.cold_start_s))
    return AutoscalerScore(
        name,
        usd,
        usd - needed_s / HOUR * price,
        1.0 - late / asked if asked else 1.0,
        missed,
        moves,
        flaps,
        sum(case.duration_s for case, _ in plays) / HOUR,
    )


def _flaps(actions: Sequence[Action], within_s: float) -> int:
    found = 0
    for first, second in pairwise(actions):
        turned = (first.after - first.before) * (second.after - second.before) < 0
        found += turned and second.at_s - first.at_s < within_s
    return found


def by_halves(days: int) -> tuple[list[int], list[int]]:
    """Every other day to learn on, and the rest to report on. Raises ValueError with fewer than two."""
    if days < 2:
        raise ValueError("two days, or parts of a day, are needed: one to learn on and one to report on")
    return list(range(0, days, 2)), list(range(1, days, 2))


def manifest_of(rule: str, name: str, case: FleetCase, settings: RuleSettings) -> Mapping[str, Any]:
    """What to apply so that the autoscaler is set so."""
    return RULES[rule].manifest(name, case, settings)
