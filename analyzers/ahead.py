"""The load to come, as a choice among shapes needs it: what a smaller shape must carry, and when more replicas must be asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from actuators.shape import Autoscaling, Schedule, Shape
from analyzers.autoscaling.targets import SEASONAL, TunedTargets, tuned_targets
from analyzers.finding import Reason
from analyzers.forecast.history import DAY_S, STEP_S
from analyzers.forecast.horizon import Horizon, busiest_rate
from analyzers.money import HOURS_PER_MONTH
from analyzers.objective import mean_rate
from analyzers.path import Capacities, Carries, ReplicaPath, TargetSearch, replica_path
from analyzers.policy import Catalogue, most_replicas, with_most
from analyzers.prediction import AutoscaledDay, CannotPredict, LoadCourse, Predictor
from analyzers.schedule import daily_course, least_counts, schedule_of
from analyzers.screening import carries
from analyzers.situation import Situation
from analyzers.words import lasting
from collectors.workload import Floats

#: Days are replayed again for an autoscaler's settings after so long; the load of the last hours, under a breach, after a quarter of an hour.
RESEARCH_S, RESEARCH_LATE_S = 6 * 3600.0, 900.0
#: Without a season a breach is searched under so many quarters of an hour of the busiest one seen, each third of them grown.
UNDER_BREACH_SLOTS = 8


@dataclass(frozen=True, slots=True)
class ClockShortfall:
    """Fewer replicas by the clock than are called for, the most of its schedule at most."""

    by_clock: int
    needed: int


@dataclass(frozen=True, slots=True)
class Room:
    """What a smaller shape must carry: ``factor`` times the load of ``predictor``."""

    predictor: Predictor
    factor: float
    text: str


class Ahead:
    """One endpoint's next day: its load, and the replicas that it takes."""

    def __init__(
        self,
        s: Situation,
        horizon: Horizon,
        demand: Floats,
        now: Predictor,
        predictor: Predictor,
        enough: Carries,
        path: ReplicaPath | None,
        later: int | None,
        capacities: Capacities,
        other_sizes: Mapping[str, Carries],
    ) -> None:
        self._s, self._horizon, self._demand = s, horizon, demand
        self._capacities = capacities
        self._now, self._predictor = now, predictor
        self._enough = enough
        self._other_sizes = other_sizes
        self.path = path
        """None: an autoscaler or a schedule sets the replicas, or they are not known."""
        self._later = later
        """Fewer replicas that would do now, had the last day's changes not been all that the policy allows. None: it does not lie in that."""

    @classmethod
    def of(cls, s: Situation, catalogue: Catalogue, predictor: Predictor, capacities: Capacities) -> Ahead | None:
        """None: too little is known of the load to come; then a choice rests on the load that was."""
        demand = s.horizon.demand() if s.horizon is not None else None
        if s.horizon is None or demand is None:
            return None
        demand = demand * s.horizon.beyond(s.windows, s.end)
        coming = predictor.under(s.horizon.windows)
        present = s.shape.replicas
        plain = s.shape.with_(schedule=None)

        def of(shape: Shape, known: Capacities) -> Carries:
            def ask(count: int, load: float, surely: bool) -> bool:
                answer = carries(s, coming, shape.with_(replicas=count), load, "high" if surely else "mid")
                return not surely if answer is None else answer  # what cannot be told is no reason to change anything

            return lambda count, load, surely: known.carries(count, load, surely, ask)

        enough = of(plain, capacities)
        others = {
            size: of(catalogue.with_size(plain, size), capacities.of(size))
            for size in s.policy.sizes
            if size != plain.size
        }
        path = later = None
        if s.shape.autoscaling is None and s.shape.schedule is None and present:
            worth = _worth(s, catalogue, present, len(demand))
            path = replica_path(s.horizon, demand, present, _counts(s), s.policy, enough, worth)
            if path.now == present and s.horizon.recent_changes >= s.policy.max_changes_per_day:
                rested = replace(s.horizon, recent_changes=0)
                free = replica_path(rested, demand, present, _counts(s), s.policy, enough, worth).now
                later = free if free < present else None
        return cls(s, s.horizon, demand, predictor, coming, enough, path, later, capacities, others)

    @property
    def seasonal(self) -> bool:
        """Whether a season is known, and not only the largest load seen."""
        return self._horizon.forecast.season_s is not None

    def room(self, shape: Shape) -> Room:
        """What ``shape`` must carry, where it is smaller: one that differs in nothing but replicas, or what is bought, until the next change
        could be made, any other the whole day."""
        slots, present = len(self._demand), self._s.shape
        counted = self.path is not None and with_most(present, most_replicas(shape) or 0) == shape
        if counted or (shape.purchase is not None and shape.with_(purchase=present.purchase) == present):
            slots = min(slots, self._horizon.slots(self._horizon.cooldown_s + self._horizon.lead_s))
        factor = float(self._demand[:slots].max())
        return Room(self._predictor, factor, f"{self._load(factor)}, {self._until(slots)}")

    def schedule(self, size: str | None = None) -> Schedule | None:
        """The fewest replicas by the time of day that carry what each kind of day brings. None: no season is known, or a schedule
        may not be kept here: an autoscaler sets the replicas, changes are bound to windows, or the policy wants none.

        size: another one that the policy allows. It was never seen at work: its replicas must carry it by the high end of what is predicted;
        None where not even the most do.
        """
        enough, surely = (self._enough, False) if size is None else (self._other_sizes[size], True)
        steps = self._s.policy.scheduled_steps_per_day
        if self._s.shape.autoscaling is not None or not self._s.shape.replicas or self._horizon.may_change or steps < 2:
            return None
        courses = []
        for day in self._horizon.days:
            demand = self._horizon.multiple(day.upper)
            if demand is None:
                return None
            counts = _counts(self._s)
            if surely and not enough(counts[-1], float(demand.max()), surely):
                return None
            needed = least_counts(demand.tolist(), counts, lambda count, load: enough(count, load, surely))
            courses.append((day.days, daily_course(needed, counts, steps, self._s.policy.max_step_replicas)))
        return schedule_of(courses, self._horizon.days[0].zone, self._horizon.start_s) if courses else None

    def targets(self, *, late: bool) -> TunedTargets | None:
        """The cheapest targets and least count of the endpoint's own autoscaler that hold the objective in each hour of each kind of day, at
        the most to expect. None: the present ones are they, none do, or no replay tells what it goes by; or no season is known.

        late: under a breach, where without a season the busiest quarter of an hour seen, and its growth, stand for the days.
        Days are replayed for it, so that what was found serves for ``RESEARCH_S``.
        """
        bounds = self._s.shape.autoscaling
        if bounds is None or not self._s.policy.tune_autoscaler or not (self._horizon.days or late):
            return None
        lasts_s = RESEARCH_S if self._horizon.days else RESEARCH_LATE_S
        known = self._capacities.targets
        if known is None or self._s.end - known.at >= lasts_s:
            known = self._capacities.targets = TargetSearch(self._s.end, self._searched(bounds))
        return known.found

    @property
    def targets_found(self) -> TunedTargets | None:
        """By the last search."""
        return None if self._capacities.targets is None else self._capacities.targets.found

    def _searched(self, bounds: Autoscaling) -> TunedTargets | None:
        days: list[tuple[LoadCourse, int]] = []
        busiest, mean = (of(self._horizon.windows, "requests") for of in (busiest_rate, mean_rate))
        above = busiest / mean if busiest and mean else 1.0  # a course is of the windows' own mean rate
        if not self._horizon.days:
            grown = self._s.policy.growth
            factors = (above * (grown if slot % 3 == 2 else 1.0) for slot in range(UNDER_BREACH_SLOTS))
            days.append((LoadCourse(STEP_S, tuple(factors)), 1))
        for day in self._horizon.days:
            demand = self._horizon.multiple(day.upper)
            if demand is None:
                return None
            days.append((LoadCourse(STEP_S, tuple((above * demand).tolist())), len(day.days)))

        def follow(shape: Shape) -> AutoscaledDay:
            start_s, room = self._horizon.start_s, 1 - self._s.policy.margin
            return AutoscaledDay.mean_of(
                [(self._predictor.follow(shape, course, start_s, room), count) for course, count in days]
            )

        step = self._s.policy.max_step_replicas
        fewest = max(self._s.policy.min_replicas, min(1, bounds.least), bounds.least - step)
        served = math.floor(
            self._s.serving(self._s.shape) or 0.0
        )  # a least count up to those that there are moves no machine
        counts = sorted({bounds.least, *range(fewest, min(max(bounds.least, served) + step, bounds.most) + 1)})
        course = (
            SEASONAL
            if self._horizon.days
            else f"two hours of the busiest load seen, and of {self._s.policy.growth:g} times it"
        )
        try:
            return tuned_targets(self._s.shape, counts, follow, course, laxer=bool(self._horizon.days))
        except CannotPredict:
            return None

    def at_load(self, shape: Shape) -> int:
        """Replicas that the shape's autoscaler is expected to run at the load observed. Raises CannotPredict."""
        course = LoadCourse(STEP_S, (1.0,) * 8)
        got = self._now.follow(shape, course, self._horizon.start_s, 1.0)
        return max(1, round(got.replicas_mean))

    def above(self, schedule: Schedule) -> ClockShortfall | None:
        """Where the clock has fewer replicas than carry what may come, until more of them could serve: a schedule waits for nobody.
        Compared slot by slot, so that a step down is not held up by the load before it. None: nowhere."""
        found: ClockShortfall | None = None
        for slot in range(self._horizon.slots(self._horizon.start_s)):
            at = max(self._s.end, self._horizon.forecast.start + slot * STEP_S)
            by_clock, load = schedule.replicas_at(at), float(self._demand[slot])
            needed = next((count for count in _counts(self._s) if self._enough(count, load, False)), schedule.most)
            needed = min(needed, schedule.most)
            if needed > by_clock and (found is None or needed > found.needed):
                found = ClockShortfall(by_clock, needed)
        return found

    def mean_replicas(self) -> float | None:
        """On average over the next day, as changes by hand would have it. None: no path is known."""
        return None if self.path is None else sum(self.path.counts) / len(self.path.counts)

    def scheduled(self, schedule: Schedule, before: float, size: str | None = None) -> str:
        """Why a schedule would do; ``before``: replicas on average without it; ``size``: where it is another than there is."""
        on = "" if size is None else f" of {size}"
        apart = ", working days and weekends apart," if len(self._horizon.days) > 1 else ""
        return (
            f"the most to expect at each time of day{apart} is carried by {schedule.label()}{on}: {schedule.mean:.2g} replicas on average, "
            f"{before:.2g} without; approved once, kept each day, and held at more (up to {schedule.most}) where more comes"
        )

    def delayed(self) -> float:
        """The most that may come, as ``Room.factor``, where more replicas serve three times as late as they do."""
        slots = self._horizon.slots(self._horizon.cooldown_s + 3 * self._horizon.lead_s)
        return float(self._demand[:slots].max())

    def coming(self) -> Reason | None:
        """Why more replicas are wanted before there is a breach. None: they are not."""
        path, present = self.path, self._s.shape.replicas
        if path is None or present is None or path.now <= present or not self.seasonal:
            return None
        slots = self._horizon.slots(self._horizon.lead_s)
        factor = float(self._demand[:slots].max())
        numbers = {"factor": factor, "lead_s": self._horizon.lead_s} | self._rate(factor)
        text = (
            f"{self._load(factor)} may come {self._until(slots)}, which {present} replicas would not carry; "
            f"until more could serve it takes {lasting(self._horizon.lead_s)}"
        )
        return Reason("LOAD_COMING", text, numbers)

    def smaller(self, shape: Shape) -> Reason:
        """Why a smaller shape would do."""
        room = self.room(shape)
        numbers = {"factor": room.factor} | self._rate(room.factor)
        back = self.path.next_change() if self.path is not None and self.path.now == shape.replicas else None
        then = f"; {back[1]} replicas again from about {self._clock(back[0])}" if back is not None else ""
        text = f"{shape.label()} would meet the objective at {room.text}, and costs less{then}"
        return Reason("LESS_WOULD_DO", text, numbers)

    def waiting(self) -> Reason | None:
        """Why fewer replicas, which would do, are not proposed yet. None: it does not lie in the changes of the last day."""
        if self._later is None:
            return None
        made = self._horizon.recent_changes
        text = (
            f"{self._later} replicas would carry what comes, but {made} changes were made within the last day, and the policy allows "
            f"{self._s.policy.max_changes_per_day} (max_changes_per_day): fewer are proposed once one of them is a day ago"
        )
        return Reason("CHANGES_SPENT", text, {"replicas": float(self._later), "changes": float(made)})

    def unsure(self) -> str | None:
        """What is not known of the load to come. None: a whole day was seen."""
        if self.seasonal:
            return None
        seen = self._horizon.forecast.seen_s
        return f"no season is known: only {lasting(seen)} of the load were seen, and the largest load seen, grown, stands for what may come"

    def _rate(self, factor: float) -> dict[str, float]:
        rate = busiest_rate(self._horizon.windows, "requests")
        return {} if rate is None else {"requests_per_s": factor * rate}

    def _load(self, factor: float) -> str:
        rate = self._rate(factor).get("requests_per_s")
        return f"{factor:.2g} times the busiest quarter of an hour" if rate is None else f"up to {rate:.3g} requests/s"

    def _until(self, slots: int) -> str:
        model = self._horizon.forecast.model
        return f"the most to expect until {self._clock(slots)} ({model})"

    def _clock(self, slot: int) -> str:
        at = self._horizon.forecast.start + slot * STEP_S
        return datetime.fromtimestamp(at, UTC).strftime("%H:%M UTC")


def _counts(s: Situation) -> range:
    """What is allowed, fewest first."""
    present = most_replicas(s.shape) or 1
    top = s.policy.max_replicas if s.policy.max_replicas is not None else present
    return range(max(1, s.policy.min_replicas), max(top, present) + 1)


def _worth(s: Situation, catalogue: Catalogue, present: int, slots: int) -> float:
    """Replica-slots to be saved in a day for a change to be worth it: the policy's least saving, by share and by money."""
    share = s.policy.min_saving_share * present * slots
    price = catalogue.per_replica_hour(s.shape)
    if not price:
        return share
    per_day = s.policy.min_saving_per_month / (HOURS_PER_MONTH / 24)
    return max(share, per_day / price * (3600 / STEP_S) * (slots * STEP_S / DAY_S))
