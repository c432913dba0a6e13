"""The allowed shapes of one endpoint, judged as far as a choice needs it, and the choice.

Only what may be chosen is replayed: where a signal forbids a smaller shape, none is; where one meets the objective, none that costs
more; where one does not, none of its kind with fewer replicas. What is chosen is what a replay of all would have chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from actuators.shape import Autoscaling, Purchase, Schedule, Shape
from analyzers.ahead import Ahead, Room
from analyzers.finding import Finding, Reason
from analyzers.money import HOURS_PER_MONTH, Usage, per_1k_tokens, per_request
from analyzers.objective import Target, attainment, total
from analyzers.policy import Catalogue, most_replicas, units_of, violations, with_most
from analyzers.prediction import CannotPredict, Miss, Prediction, Predictor
from analyzers.recommendation import Money, Option
from analyzers.screening import MAX_SATURATION, bar, replayed_targets, worst_of
from analyzers.search import by_kind, key, least_replicas
from analyzers.situation import Situation
from analyzers.words import figure, phrase

#: Where nothing meets the objective, the best that still improves its worst metric by this share is proposed.
WORTHWHILE_RELIEF = 0.2
#: A change that is predicted to better its worst metric by less than this share changes nothing.
LEAST_EFFECT = 0.1
#: What is observed refutes the model where not even so many times the load would explain it: near what a shape can carry, a few
#: per cent of speed or of load make an endless queue of a short one.
EXPLAINED_BY_LOAD = 1.25
#: A queue in so many windows is one that replicas would help.
QUEUED_WINDOWS = 3
#: Where nothing meets it, so many that come nearest by their first replays are replayed whole.
NEAREST = 3

AUTOSCALER_TOO_LAX = Reason(
    "AUTOSCALER_TOO_LAX",
    "its autoscaler runs fewer replicas than its bounds allow: what it goes by tells it too little or too late, and no setting of it is "
    "known to hold; lower its target, or let it go by what waits or runs",
)


@dataclass(frozen=True, slots=True)
class Judgement:
    option: Option
    cost: float | None
    """US dollars per hour; where the current size has no price, replicas of that size instead."""
    worst: float | None
    """Largest of predicted / limit over the objective's targets; 1 is just met. None: cannot be predicted."""
    feasible: bool = False
    roomy: bool = False
    """Feasible also at the grown load, by the high end: what a smaller shape must be."""


@dataclass(frozen=True, slots=True)
class _Queue:
    """While something waited, on average: requests that ran, those that waited, and the replicas that served."""

    running: float
    waiting: float
    replicas: float

    @property
    def share(self) -> float:
        """All of them over those that ran."""
        return (self.running + self.waiting) / self.running


class Choice:
    """The allowed shapes, and what is known of each so far."""

    def __init__(
        self,
        s: Situation,
        catalogue: Catalogue,
        predictor: Predictor,
        current: Judgement,
        ahead: Ahead | None = None,
    ) -> None:
        self.current = current
        self.ahead = ahead
        self._s, self._catalogue, self._predictor = s, catalogue, predictor
        plain = s.shape.with_(schedule=None)
        self._others = [shape for shape in predictor.knobs(plain, s.policy, catalogue) if shape != plain]
        self._costs = {key(shape): cost_of(s, catalogue, shape) for shape in self._others}
        self._judged: dict[str, Judgement] = {}

    # -- growing: the cheapest that meets the objective ------------------------------------------------------------------

    def relief(self) -> tuple[Judgement | None, list[Reason]]:
        """What meets the objective and costs least; else what comes clearly nearer to it than the present shape."""
        priced = [shape for shape in self._relieving() if self._costs[key(shape)] is not None]
        found = self._cheapest(priced, self._relieves)
        if found:
            return min(found, key=lambda j: _preference(j, self.current)), []
        predicted = self.current.option.prediction
        at_present, _ = worst_of(self._s, predicted, "mid") if predicted else (self.current.worst or 1.0, "")
        better = [j for j in self._nearest() if j.worst is not None and j.worst < at_present * (1 - WORTHWHILE_RELIEF)]
        if not better:
            if self._below_bound():
                return self._with_more_at_least()
            text = (
                "no allowed shape is predicted to meet the objective and to be clearly better than the present one; "
                "widen the policy, or ease the objective"
            )
            return None, [Reason("NO_SHAPE_MEETS", text, {"considered": float(len(self._others))})]
        best = min(better, key=lambda j: (j.worst or 0.0, _preference(j, self.current)))
        text = "no allowed shape would meet the objective; this one comes nearest"
        return best, [Reason("BEST_EFFORT", text, {"worst_share_of_limit": best.worst or 0.0})]

    def by_observation(self, doubts: Sequence[Reason]) -> tuple[Judgement | None, list[Reason]]:
        """So many more replicas as would run what waits: all that can be said where the model is refuted, or the settings are wrong."""
        if self._below_bound():
            raised, reasons = self._with_more_at_least()
            return raised, [*doubts, *reasons]
        present = most_replicas(self._s.shape) or 0
        more = [shape for shape in self._others if _is_but_replicas(shape, self._s.shape, least=present + 1)]
        queue = self._queue()
        if queue is None:
            text = "no request waits for a free place, so that more replicas would not help; nothing is proposed on the model's word"
            return None, [*doubts, Reason("NOTHING_BY_OBSERVATION", text)]
        if not more:
            text = "more replicas would help what waits, and the policy allows none; nothing is proposed on the model's word"
            return None, [*doubts, Reason("NOTHING_BY_OBSERVATION", text)]
        needed = present * queue.share
        more.sort(key=lambda shape: most_replicas(shape) or 0)
        shape = next((shape for shape in more if (most_replicas(shape) or 0) >= needed), more[-1])
        return self._by_queue(shape, queue, needed), list(doubts)

    def _with_more_at_least(self) -> tuple[Judgement | None, list[Reason]]:
        """The same autoscaler, with so many replicas at the least as would run what waits while it runs fewer than it may. None: nothing
        waits, or the policy allows no more than it runs anyway."""
        bounds, queue = self._s.shape.autoscaling, self._queue()
        if bounds is None or queue is None or not self._s.policy.tune_autoscaler:
            return None, [AUTOSCALER_TOO_LAX]
        needed = queue.replicas * queue.share
        least = min(math.ceil(needed - 0.01), bounds.least + self._s.policy.max_step_replicas, bounds.most)
        shape = self._s.shape.with_(autoscaling=replace(bounds, least=least))
        if least <= max(bounds.least, queue.replicas) or violations(
            shape, self._s.shape, self._s.policy, self._catalogue
        ):
            return None, [AUTOSCALER_TOO_LAX]
        text = (
            f"its autoscaler runs {queue.replicas:.2g} replicas, fewer than its bounds allow, while {queue.waiting:.0f} requests wait: what it "
            f"goes by tells it too little or too late; no fewer than {least}, until a target is found that holds"
        )
        return self._by_queue(shape, queue, needed), [Reason("MORE_AT_LEAST", text, {"least": float(least)})]

    def _queue(self) -> _Queue | None:
        """What waited, over the windows in which something did. None: in too few to be helped by replicas."""
        queued = [w for w in self._s.windows if (w.mean("waiting") or 0.0) >= 1]
        run, wait = (sum(w.mean(n) or 0.0 for w in queued) for n in ("running", "waiting"))
        if len(queued) < QUEUED_WINDOWS or run <= 0:
            return None
        n = len(queued)
        return _Queue(run / n, wait / n, sum(w.targets for w in queued) / n)

    def _by_queue(self, shape: Shape, queue: _Queue, needed: float) -> Judgement:
        why = (
            f"{queue.waiting:.1f} requests wait while {queue.running:.1f} run: {needed:.1f} replicas would run them all; "
            "by what was observed, not replayed"
        )
        return _as(_unjudged(self._s, shape, self._catalogue), "BY_OBSERVATION", why)

    def _relieving(self) -> list[Shape]:
        """What may be proposed under a breach: not fewer machines of the size that there is, whatever limits a replay would give them."""
        present = units_of(self._s.shape) or 0
        if self._below_bound():  # a wider bound would change nothing
            return [c for c in self._others if not _is_but_replicas(c, self._s.shape, least=0)]
        return [c for c in self._others if c.size != self._s.shape.size or (units_of(c) or 0) >= present]

    def _below_bound(self) -> bool:
        """Whether an autoscaler ran clearly fewer replicas than it might."""
        count = None if self._s.shape.autoscaling is None else self._s.serving(self._s.shape)
        return count is not None and count < (most_replicas(self._s.shape) or 0) - 0.5

    def _nearest(self) -> list[Judgement]:
        """Whole replays of those that come nearest, each the one with the most replicas of its kind."""
        tops: list[Judgement] = []
        for group in by_kind(self._relieving()):
            known = (self._after(shape, self._meets) for shape in reversed(group))
            tops += [j for j in known if j.option.verdict != "CANNOT_PREDICT"][:1]
        tops.sort(key=lambda j: (j.worst is None, j.worst or 0.0))
        nearest = []
        for judged in tops[:NEAREST]:
            shape = judged.option.shape
            if judged.option.prediction is None:
                self._judged[key(shape)] = replayed_whole(self._s, shape, self._catalogue, self._predictor)
            nearest.append(self._judged[key(shape)])
        return nearest

    def _after(self, shape: Shape, suits: Callable[[Shape], bool | None]) -> Judgement:
        suits(shape)
        return self._judged[key(shape)]

    def coming(self) -> tuple[Judgement | None, list[Reason]]:
        """More replicas before the load comes that calls for them."""
        reason = self.ahead.coming() if self.ahead is not None else None
        if self.ahead is None or self.ahead.path is None or reason is None:
            return None, []
        shape = self._s.shape.with_(replicas=self.ahead.path.now)
        if violations(shape, self._s.shape, self._s.policy, self._catalogue):
            return None, []
        return replayed_whole(self._s, shape, self._catalogue, self._predictor), [reason]

    # -- shrinking: the cheapest that meets it with room to grow -----------------------------------------------------------

    def saving(self, findings: Sequence[Finding]) -> tuple[Judgement | None, list[Reason]]:
        """What meets the objective also under more load, and costs so much less that a change is worth it."""
        against = against_shrinking(
            self._s, findings, self.current, seasonal=self.ahead is not None and self.ahead.seasonal
        )
        if against:
            return None, against
        if self.current.cost is None:
            return None, [Reason("PRICE_UNKNOWN", "without a price for this size, no saving can be shown")]
        for better in (self._scheduled(), self.retargeted(cheaper=True)):
            if better is not None:
                return better, []
        cheaper = [c for c in self._others if _less(self._costs[key(c)], self.current.cost) and self._stays_enough(c)]
        found = self._cheapest([shape for shape in cheaper if self._worth_it(shape)], self._roomy)
        if found:
            return min(found, key=lambda j: _preference(j, self.current)), []
        found = self._cheapest([shape for shape in cheaper if not self._worth_it(shape)], self._roomy)
        if found:
            best = min(found, key=lambda j: _preference(j, self.current))
            text = f"{best.option.shape.label()} would do, but saves too little to be worth a change"
            return None, [Reason("SAVING_TOO_SMALL", text)]
        if self.ahead is not None and (waiting := self.ahead.waiting()) is not None:
            return None, [waiting]
        text = "the objective is met, and no cheaper allowed shape would meet it with margin"
        if self.ahead is not None and (unsure := self.ahead.unsure()) is not None:
            text += f"; {unsure}"
        return None, [Reason("RIGHT_SIZE", text)]

    def _scheduled(self) -> Judgement | None:
        """The size and its replicas by the time of day that cost so much less than a course by single changes of the present size, or the
        schedule that is kept, that they are worth keeping."""
        if self.ahead is None:
            return None
        present = self._s.shape.schedule
        before = present.mean if present is not None else self.ahead.mean_replicas()
        if before is None:
            return None
        share = 1 - self._s.policy.min_saving_share
        least = self._s.policy.min_saving_per_month / HOURS_PER_MONTH
        price = self._catalogue.per_replica_hour(self._s.shape)
        found: list[tuple[float, Shape, Schedule]] = []
        for size in (None, *(size for size in self._s.policy.sizes if size != self._s.shape.size)):
            schedule = self.ahead.schedule(size)
            if schedule is None:
                continue
            on = self._catalogue.with_size(self._s.shape, size)
            shape = on.with_(replicas=self._towards(schedule.replicas_at(self._s.end)), schedule=schedule)
            own = price if size is None else self._catalogue.per_replica_hour(shape)
            same = size is None and schedule == present
            if same or violations(shape, self._s.shape, self._s.policy, self._catalogue):
                continue
            if own is None or price is None:
                if size is None and schedule.mean <= before * share:
                    found.append((schedule.mean, shape, schedule))
            elif schedule.mean * own <= before * price * share and before * price - schedule.mean * own >= least:
                found.append((schedule.mean * own, shape, schedule))
        if not found:
            return None
        _, shape, schedule = min(found, key=lambda each: each[0])
        judged = replayed_whole(self._s, shape, self._catalogue, self._predictor)
        other = None if shape.size == self._s.shape.size else shape.size
        return replace(judged, option=replace(judged.option, why=self.ahead.scheduled(schedule, before, other)))

    def _towards(self, replicas: int) -> int:
        """As far as one change may go; the schedule's own steps go on from there."""
        present, most = self._s.shape.replicas or replicas, self._s.policy.max_step_replicas
        return max(present - most, min(present + most, replicas))

    def retargeted(self, *, cheaper: bool) -> Judgement | None:
        """Other targets or another least count for the autoscaler that sets the replicas: cheaper ones where the present ones hold, or
        under a breach the ones that hold where the present ones do not."""
        tuned = self.ahead.targets(late=not cheaper) if self.ahead is not None else None
        if self.ahead is None or tuned is None or tuned.present.held != cheaper:
            return None
        if violations(tuned.shape, self._s.shape, self._s.policy, self._catalogue):
            return None
        now = money_of(self._s, self._catalogue, self._s.shape)
        ratio = tuned.day.replicas_mean / tuned.present.replicas_mean
        if cheaper and ratio > 1 - self._s.policy.min_saving_share:
            return None
        saved = None if now.per_hour is None else now.per_hour * (1 - ratio) * HOURS_PER_MONTH
        if cheaper and saved is not None and saved < self._s.policy.min_saving_per_month:
            return None
        try:
            count = self.ahead.at_load(tuned.shape)
            plain = tuned.shape.with_(replicas=count, autoscaling=None)
            got = self._predictor.predict(plain, 1.0)
        except CannotPredict as error:
            return _as(_unjudged(self._s, tuned.shape, self._catalogue), "CANNOT_PREDICT", error.detail)
        note = f"at the load observed the autoscaler is expected to run {count} replica{'s' * (count != 1)}: replayed with them"
        judged = _by_prediction(_unjudged(self._s, tuned.shape, self._catalogue), got, self._s)
        option = replace(
            judged.option, prediction=replace(got, notes=(*got.notes, note)), money=now.scaled(ratio), why=tuned.why()
        )
        return replace(judged, option=option, cost=None if self.current.cost is None else self.current.cost * ratio)

    def _stays_enough(self, shape: Shape) -> bool:
        """Of shapes that differ in nothing but replicas, the one that the next day's load calls for now."""
        path = self.ahead.path if self.ahead is not None else None
        return path is None or not _is_but_replicas(shape, self._s.shape, least=1) or shape.replicas == path.now

    def _worth_it(self, shape: Shape) -> bool:
        cost = self._costs[key(shape)]
        assert cost is not None
        assert self.current.cost is not None
        if cost > self.current.cost * (1 - self._s.policy.min_saving_share):
            return False
        before, after = (money_of(self._s, self._catalogue, each).per_hour for each in (self._s.shape, shape))
        if before is None or after is None:  # costs are replica counts here: the share above is all that can be said
            return True
        return (before - after) * HOURS_PER_MONTH >= self._s.policy.min_saving_per_month

    # -- judging one -------------------------------------------------------------------------------------------------------

    def _cheapest(self, shapes: Sequence[Shape], suits: Callable[[Shape], bool | None]) -> list[Judgement]:
        """All that suit, cost least, and of those touch least. The cost of each is known."""
        best = (float("inf"), 0, 0)
        found: list[Judgement] = []
        for group in sorted(by_kind(shapes), key=lambda group: self._outlay(group[0])[1]):
            within = [shape for shape in group if self._outlay(shape) <= best]
            shape = least_replicas(within, suits, self._dominated)
            if shape is not None:
                outlay = self._outlay(shape)
                found = [*(found if outlay == best else []), self._judged[key(shape)]]
                best = outlay
        return found

    def _outlay(self, shape: Shape) -> tuple[float, int, int]:
        """The cost, how much a change to it touches, and how much is bought: a rate limit that costs nothing is to be no larger."""
        return self._costs[key(shape)] or 0.0, touched(shape, self._s.shape), bought(shape)

    def _meets(self, shape: Shape) -> bool | None:
        judged = self._known(shape, roomy=False)
        return None if judged.option.verdict == "CANNOT_PREDICT" else judged.feasible

    def _relieves(self, shape: Shape) -> bool | None:
        meets = self._meets(shape)
        return meets and self._helps(self._judged[key(shape)])

    def _helps(self, judged: Judgement) -> bool:
        """Whether it is predicted to be clearly better than the present shape is, by the same model."""
        now, then = self.current.option.prediction, judged.option.prediction
        if now is None or then is None or judged.worst is None or now.saturates > then.saturates + MAX_SATURATION:
            return True
        return judged.worst <= worst_of(self._s, now, "mid")[0] * (1 - LEAST_EFFECT)

    def _roomy(self, shape: Shape) -> bool | None:
        judged = self._known(shape, roomy=True)
        return None if judged.option.verdict == "CANNOT_PREDICT" else judged.roomy

    def _known(self, shape: Shape, *, roomy: bool) -> Judgement:
        known = self._judged.get(key(shape))
        if known is None:
            room = None
            if roomy and self.ahead is not None:
                room = self.ahead.room(shape)
            elif roomy:
                growth = self._s.policy.growth
                room = Room(self._predictor, growth, f"{growth:g} times the load")
            known = self._judged[key(shape)] = _judge(self._s, shape, self._catalogue, self._predictor, room)
        return known

    def _dominated(self, shape: Shape, more: Shape) -> None:
        """``shape`` is ``more`` with fewer replicas, and ``more`` does not suit."""
        known = self._judged[key(more)].option
        why = f"fewer replicas than {more.label()}, which would not do: {known.why}"
        option = Option(shape, money_of(self._s, self._catalogue, shape), None, known.verdict, why)
        self._judged.setdefault(key(shape), Judgement(option, self._costs[key(shape)], None))

    # -- showing all -------------------------------------------------------------------------------------------------------

    def ranked(self, chosen: Judgement | None) -> tuple[Option, ...]:
        """All shapes: the chosen one, the current one, those that would do, and the rest."""
        order = ("MEETS", "MAY_MEET", "COSTS_MORE", "NO_HEADROOM", "MISSES_OBJECTIVE", "SATURATES")
        rank = {verdict: i for i, verdict in enumerate(order)}
        judged = [self._judged.get(key(shape)) or self._not_replayed(shape, chosen) for shape in self._others]
        rest = sorted(
            (j for j in judged if chosen is None or j.option.shape != chosen.option.shape),
            key=lambda j: (rank.get(j.option.verdict, len(rank)), *_preference(j, self.current)),
        )
        first = [replace(chosen.option, verdict="chosen")] if chosen is not None else []
        return (*first, self.current.option, *(j.option for j in rest))

    def _not_replayed(self, shape: Shape, chosen: Judgement | None) -> Judgement:
        cost, money = self._costs[key(shape)], money_of(self._s, self._catalogue, shape)
        if cost is None:
            verdict, why = "PRICE_UNKNOWN", "its price is not known, so it is not compared"
        elif chosen is not None and chosen.feasible and not _less(cost, chosen.cost):
            verdict, why = "COSTS_MORE", f"no cheaper than {chosen.option.shape.label()}, which would do; not replayed"
        elif chosen is not None and _less(cost, self.current.cost):
            verdict, why = "TOO_FEW", "fewer machines than there are now, under a breach"
        elif _less(cost, self.current.cost):
            verdict, why = "NOT_REPLAYED", "no smaller shape is considered now"
        else:
            verdict, why = "COSTS_MORE", "no cheaper than the present shape; not replayed"
        return Judgement(Option(shape, money, None, verdict, why), cost, None)


def _judge(s: Situation, shape: Shape, catalogue: Catalogue, predictor: Predictor, room: Room | None) -> Judgement:
    """Whether it meets the objective with margin, and has this room beside. No further than is needed to deny it."""
    known, targets = _unjudged(s, shape, catalogue), replayed_targets(s)
    try:
        got = predictor.screen(shape, 1.0, bar(s, "mid"))
        if isinstance(got, Miss):
            return _missed(known, got, s)
        judged = _by_prediction(known, got, s)
        if not judged.feasible or room is None:
            return judged
        grown = room.predictor.screen(shape, room.factor, bar(s, "high"))
    except CannotPredict as error:
        return _as(known, "CANNOT_PREDICT", error.detail)
    if isinstance(grown, Prediction):
        if unknown := [t.name for t in targets if t.name not in grown.metrics]:
            return _unknown(judged, unknown)
        if worst_of(s, grown, "high")[0] <= 1 - s.policy.margin and grown.saturates == 0:
            return replace(judged, roomy=True)
    return _as(judged, "NO_HEADROOM", f"{judged.option.why}, and above it at {room.text}")


def replayed_whole(s: Situation, shape: Shape, catalogue: Catalogue, predictor: Predictor) -> Judgement:
    """Its whole prediction at the load observed, whatever it is."""
    known = _unjudged(s, shape, catalogue)
    try:
        return _by_prediction(known, predictor.predict(shape, 1.0), s)
    except CannotPredict as error:
        return _as(known, "CANNOT_PREDICT", error.detail)


def _unjudged(s: Situation, shape: Shape, catalogue: Catalogue) -> Judgement:
    return Judgement(Option(shape, money_of(s, catalogue, shape), None, "", ""), cost_of(s, catalogue, shape), None)


def _by_prediction(known: Judgement, got: Prediction, s: Situation) -> Judgement:
    unknown = [t.name for t in replayed_targets(s) if t.name not in got.metrics]
    known = replace(known, option=replace(known.option, prediction=got))
    if unknown or not replayed_targets(s):
        return _unknown(known, unknown)
    worst, name = worst_of(s, got, "mid")
    known = replace(known, worst=worst)
    if got.saturates > MAX_SATURATION:
        return _as(known, "SATURATES", f"its queue would grow without end in {got.saturates:.0%} of the replays")
    why = f"{phrase(name)} would be at {worst:.0%} of its limit"
    if worst > 1 - s.policy.margin:
        return _as(known, "MISSES_OBJECTIVE", why)
    if (most := worst_of(s, got, "high")[0]) > 1:
        why += f", and may be at {most:.0%}: whether it meets it is not known"
        return replace(_as(known, "MAY_MEET", why), feasible=True)
    return replace(_as(known, "MEETS", why), feasible=True)


def _missed(known: Judgement, miss: Miss, s: Situation) -> Judgement:
    if miss.metric is None and miss.replays == 0:
        return _as(known, "SATURATES", f"the load is {miss.share:.0%} of what it can carry at best")
    if miss.metric is None:
        return _as(known, "SATURATES", "its queue would grow without end in too many of the replays")
    share = miss.share * (1 - s.policy.margin)
    why = f"{phrase(miss.metric)} would be at about {share:.0%} of its limit"
    return replace(_as(known, "MISSES_OBJECTIVE", why), worst=share)


def _unknown(known: Judgement, metrics: Sequence[str]) -> Judgement:
    why = (
        f"the replay does not tell {', '.join(metrics) or 'any target of the objective'}, so nothing is claimed for it"
    )
    return replace(_as(known, "CANNOT_PREDICT", why), worst=None, feasible=False)


def _as(judged: Judgement, verdict: str, why: str) -> Judgement:
    return replace(judged, option=replace(judged.option, verdict=verdict, why=why))


def _less(cost: float | None, than: float | None) -> bool:
    return cost is not None and than is not None and cost < than


def current_of(s: Situation, catalogue: Catalogue, prediction: Prediction | None) -> Judgement:
    observed = [
        (a.observed / t.limit, t) for t in s.objective.targets if (a := attainment(s.windows, t)).observed is not None
    ]
    worst, target = max(observed, key=lambda pair: pair[0], default=(None, None))
    why = f"{phrase(target.name)} is at {worst:.0%} of its limit, as observed" if target is not None else "not judged"
    option = Option(s.shape, money_of(s, catalogue, s.shape), prediction, "current", why)
    return Judgement(option, cost_of(s, catalogue, s.shape), worst, worst is not None and worst <= 1, False)


def against_shrinking(
    s: Situation, findings: Sequence[Finding], current: Judgement, *, seasonal: bool = False
) -> list[Reason]:
    """Every signal that forbids a smaller shape; empty when all agree. A load that rises does not where its season is known."""
    rising = ("TTFT_RISING",) if seasonal else ("LOAD_RISING", "TTFT_RISING")
    against = [f.reason for f in findings if f.kind == "saturation" or f.refutes or f.reason.code in rising]
    return against + refuted(s, current.option.prediction)


def refuted(s: Situation, at_present: Prediction | None, predictor: Predictor | None = None) -> list[Reason]:
    """The targets of which the least that was observed lies above the most that was predicted for the present shape.

    predictor: where given, not those that ``EXPLAINED_BY_LOAD`` times the load would explain.
    """
    found = []
    for target in s.objective.targets:
        interval = at_present.metrics.get(target.name) if at_present else None
        seen = attainment(s.windows, target).at_least
        if interval is None or seen is None or seen <= interval.high:
            continue
        if predictor is not None and _explained(s, target, seen, predictor):
            continue
        numbers = {"observed": seen, "predicted_high": interval.high}
        text = (
            f"the model is too hopeful here: {phrase(target.name)} is at least {figure(target.name, seen)}, and at most "
            f"{figure(target.name, interval.high)} were "
            "predicted for the shape that it has; nothing is proposed on its word"
        )
        found.append(Reason("MODEL_TOO_HOPEFUL", text, numbers))
    return found


def as_served(s: Situation) -> Shape:
    """The present shape as a replay can run it: under an autoscaler that it does not follow, with the replicas that it ran on average."""
    count = None if s.shape.autoscaling is None or s.by_platform else s.serving(s.shape)
    return s.shape if count is None else s.shape.with_(replicas=max(1, round(count)), autoscaling=None)


def _explained(s: Situation, target: Target, seen: float, predictor: Predictor) -> bool:
    try:
        more = predictor.predict(as_served(s), EXPLAINED_BY_LOAD)
    except CannotPredict:
        return False
    interval = more.metrics.get(target.name)
    return more.saturates > MAX_SATURATION or interval is None or interval.high >= seen


def _is_but_replicas(shape: Shape, of: Shape, least: int) -> bool:
    """Whether it is ``of`` with another number of replicas, ``least`` or more."""
    count = most_replicas(shape)
    return count is not None and count >= least and with_most(of, count) == shape


def touched(shape: Shape, current: Shape) -> int:
    """How many kinds of setting a change from ``current`` to ``shape`` touches."""
    return sum(
        (shape.size != current.size, _count(shape) != _count(current), dict(shape.engine) != dict(current.engine))
    )


def bought(shape: Shape) -> int:
    """0: nothing is."""
    return shape.purchase.amount if shape.purchase is not None else 0


def _count(shape: Shape) -> tuple[int | None, Autoscaling | None, Schedule | None, Purchase | None]:
    return shape.replicas, shape.autoscaling, shape.schedule, shape.purchase


def _preference(judged: Judgement, current: Judgement) -> tuple[float, int, int, float]:
    """Cheapest; then the one that touches least; then the one with more room, or that buys less."""
    cost = judged.cost if judged.cost is not None else float("inf")
    shape = judged.option.shape
    return cost, touched(shape, current.option.shape), bought(shape), judged.worst or 0.0


def cost_of(s: Situation, catalogue: Catalogue, shape: Shape) -> float | None:
    """US dollars per hour; where the present size has no price, replicas of that size instead."""
    if money_of(s, catalogue, s.shape).per_hour is not None:
        return money_of(s, catalogue, shape).per_hour
    if shape.purchase is not None:
        return None if catalogue.spill is not None and catalogue.spill(shape) is not None else float(bought(shape))
    return (
        (shape.schedule.mean if shape.schedule is not None else _count_of(s, catalogue, shape))
        if shape.size == s.shape.size
        else None
    )


def _count_of(s: Situation, catalogue: Catalogue, shape: Shape) -> float | None:
    told = catalogue.instances(shape) if catalogue.instances is not None else None
    return s.serving(shape) if told is None else told


def of_platform(s: Situation, catalogue: Catalogue, predictor: Predictor) -> Catalogue:
    """With the instances that a replay has of each shape, where a platform starts and stops them: those are what is paid for."""
    if not s.by_platform:
        return catalogue
    known: dict[str, float | None] = {}

    def instances(shape: Shape) -> float | None:
        if key(shape) not in known:
            try:
                mean = predictor.predict(shape, 1.0).metrics.get("instances_mean")
            except CannotPredict:
                mean = None
            known[key(shape)] = None if mean is None else mean.mid
        return known[key(shape)]

    return replace(catalogue, instances=instances)


def money_of(s: Situation, catalogue: Catalogue, shape: Shape) -> Money:
    """What the shape costs, and what a token and a request cost on it at the load observed: reserved, whether used or not."""
    per_hour = catalogue.per_hour(shape, _count_of(s, catalogue, shape))
    hours = s.evidence.coverage * (s.end - s.start) / 3600
    if per_hour is None or hours <= 0:
        return Money(per_hour, None, None)
    prompt, output = (total(s.windows, name) for name in ("prompt_tokens", "output_tokens"))
    tokens = None if prompt is None or output is None else prompt + output
    spent: float | None = per_hour * hours
    if shape.purchase is not None and shape.purchase.unit != "ptu":  # the tokens are what is paid for
        used = Usage(
            prompt_tokens=prompt, cached_prompt_tokens=total(s.windows, "cached_prompt_tokens"), output_tokens=output
        )
        spent = catalogue.billed(shape).cost(used).usd
    return Money(per_hour, per_1k_tokens(spent, tokens), per_request(spent, s.evidence.requests))
