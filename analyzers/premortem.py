"""What would break the proposed shape: the traffic that it must carry, replayed under a dozen adversities.

An adversity changes the requests, their rate, or the shape. The shape survives it where it still meets each limit, by the middle of its
prediction and without margin; what cannot be told counts for neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from actuators.shape import Shape
from analyzers.policy import most_replicas, with_most
from analyzers.prediction import Predictor
from analyzers.screening import carries
from analyzers.situation import Situation
from collectors.workload import Floats, Ints, Workload

#: So many requests tell whether a shape survives: a dozen questions are asked, and none of them to a per cent.
ENOUGH = 5_000
#: A burst lasts so long, and callers by a timer come at its ticks: seconds.
BURST_S, TICK_S = 600.0, 10.0
#: Of the answers that grow, this share.
TAIL_SHARE = 10

Change = Callable[[Workload], Workload]


@dataclass(frozen=True, slots=True)
class Adversity:
    code: str
    text: str
    """Completes "breaks when ..."."""
    factor: float = 1.0
    """So many times the load."""
    lost: int = 0
    """Replicas fewer."""
    change: Change | None = None
    """Of the requests."""


@dataclass(frozen=True, slots=True)
class Premortem:
    """What the proposed shape survived, of what was tried."""

    survived: tuple[Adversity, ...]
    broke: tuple[Adversity, ...]
    unknown: tuple[Adversity, ...] = ()

    @property
    def text(self) -> str:
        """``survives 11 of 12; breaks when a replica is lost``."""
        tried = len(self.survived) + len(self.broke)
        if not tried:
            return "nothing could be tried: no replay supports it"
        said = f"survives {len(self.survived)} of {tried}"
        return f"{said}; breaks when {', when '.join(a.text for a in self.broke)}" if self.broke else said

    def as_dict(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "survived": [a.code for a in self.survived],
            "broke": [a.code for a in self.broke],
            "unknown": [a.code for a in self.unknown],
            "texts": {a.code: a.text for a in (*self.survived, *self.broke, *self.unknown)},
        }


def premortem(
    s: Situation, shape: Shape, predictor: Predictor, factor: float, *, delayed: float | None = None
) -> Premortem:
    """``shape`` at ``factor`` times the predictor's load, under each adversity.

    delayed: how many times the load there may be where more replicas come three times as late as they do; None: not known.
    """
    late = (
        ()
        if delayed is None
        else (Adversity("COLD_START_X3", "a new replica takes three times as long", delayed / factor),)
    )
    outcomes: dict[bool | None, list[Adversity]] = {True: [], False: [], None: []}
    for adversity in (*ADVERSITIES, *late):
        outcomes[_survives(s, shape, predictor, factor, adversity)].append(adversity)
    return Premortem(tuple(outcomes[True]), tuple(outcomes[False]), tuple(outcomes[None]))


def _survives(s: Situation, shape: Shape, predictor: Predictor, factor: float, adversity: Adversity) -> bool | None:
    if adversity.lost:
        left = (most_replicas(shape) or 0) - adversity.lost
        if left < 1:
            return False if most_replicas(shape) else None
        shape = with_most(shape, left)
    predictor = predictor.changed(lambda workload: (adversity.change or _same)(_piece(workload)))
    return carries(s, predictor, shape, factor * adversity.factor, "mid", margin=0.0)


# -- what changes in the requests -----------------------------------------------------------------------------------------------------


def _with(workload: Workload, **columns: Floats | Ints) -> Workload:
    """With other columns; a prefix stays shorter than its prompt."""
    made: Mapping[str, Any] = {name: getattr(workload, name) for name in Workload.__slots__} | columns
    return Workload(**{**made, "prefix_tokens": np.minimum(made["prefix_tokens"], made["prompt_tokens"] - 1)})


def _piece(workload: Workload) -> Workload:
    """The first of them."""
    return workload.take(slice(ENOUGH))


def _same(workload: Workload) -> Workload:
    return workload


def _longer(values: Ints, by: float) -> Ints:
    longer: Ints = np.maximum(1, np.rint(values * by)).astype(np.int64)
    return longer


def _no_prefix(workload: Workload) -> Workload:
    return _with(workload, prefix_tokens=np.zeros_like(workload.prefix_tokens))


def _long_answers(workload: Workload) -> Workload:
    return _with(workload, output_tokens=_longer(workload.output_tokens, 1.5))


def _long_prompts(workload: Workload) -> Workload:
    return _with(workload, prompt_tokens=_longer(workload.prompt_tokens, 1.5))


def _long_tail(workload: Workload) -> Workload:
    output = workload.output_tokens.copy()
    output[::TAIL_SHARE] = _longer(output[::TAIL_SHARE], 3.0)
    return _with(workload, output_tokens=output)


def _burst(workload: Workload) -> Workload:
    """The requests of ten minutes in the middle come twice."""
    middle = 0.5 * (workload.arrival_s[-1] - BURST_S) if len(workload) else 0.0
    again = (workload.arrival_s >= middle) & (workload.arrival_s < middle + BURST_S)
    index = np.concatenate([np.arange(len(workload)), np.flatnonzero(again)])
    return workload.take(index[np.argsort(workload.arrival_s[index], kind="stable")])


def _ticks(workload: Workload) -> Workload:
    """Half of the callers come by a timer: at the tick after they would have come."""
    arrival = workload.arrival_s.copy()
    arrival[::2] = np.ceil(arrival[::2] / TICK_S) * TICK_S
    order = np.argsort(arrival, kind="stable")
    return workload.take(order, arrival_s=arrival[order])


ADVERSITIES: tuple[Adversity, ...] = (
    Adversity("LOAD_25", "the load is a quarter higher", 1.25),
    Adversity("LOAD_50", "the load is half as high again", 1.5),
    Adversity("LOAD_100", "the load is twice as high", 2.0),
    Adversity("BURST", "twice the load comes for ten minutes", change=_burst),
    Adversity("IN_STEP", "half of the callers come by a timer, all at once", change=_ticks),
    Adversity("REPLICA_LOST", "a replica is lost", lost=1),
    Adversity("NO_PREFIX_HITS", "no prompt is found in the prefix cache", change=_no_prefix),
    Adversity("LONG_PROMPTS", "prompts are half as long again", change=_long_prompts),
    Adversity("LONG_ANSWERS", "answers are half as long again", change=_long_answers),
    Adversity("LONG_TAIL", "one answer in ten is three times as long", change=_long_tail),
    Adversity(
        "LOAD_AND_ANSWERS", "the load is a quarter higher and answers half as long again", 1.25, change=_long_answers
    ),
)
