"""An endpoint beside the reference server: its own traffic, replayed on both engines at equal load. Pure values in and out.

Equal load is the same requests on as many replicas: engine against engine. What it costs is another question: the fewest whole replicas
of the reference that carry the same traffic within the endpoint's objective, against what the endpoint really reserves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from analyzers.finding import Cause, Finding, Reason
from analyzers.kinds.base import Basis, Calibration, Kind
from analyzers.kinds.engine.kind import EngineKind
from analyzers.money import Tariff, Unit, Usage, per_1k_tokens, per_month
from analyzers.objective import mean_rate, told_s, total
from analyzers.prediction import CannotPredict, Interval, Prediction
from analyzers.situation import Situation
from collectors.window import Window
from collectors.workload import Workload

#: So many requests tell it: a limit is sought by a dozen replays on each side.
ENOUGH = 1_000
#: And so many what a rise of the load alone does: it takes two replays, and the batch must have filled.
_ENOUGH_OF_RISE = 2_000
#: What is compared at equal load, where both kinds predict it.
METRICS = ("ttft_p50_s", "ttft_p95_s", "itl_p50_s", "itl_p95_s", "e2e_p50_s")
#: The multiple of the load that is carried is known to within this, and sought between so many steps down and up.
_STEP, _STEPS = 1.05, 80
#: Slower than the reference is who is so by this share by the middle, and at all by the low end of the interval.
SLOWER = 0.1
#: A rise is the traffic's where the same traffic makes the reference rise by this share of it (in logarithms).
_SHARED = 0.5
#: So many windows at either end of a span show what a rise led from and to.
_LEAST_WINDOWS = 3

End = Literal["low", "mid", "high"]
_SATURATES: Mapping[End, float] = {"low": 0.9, "mid": 0.5, "high": 0.1}


@dataclass(frozen=True, slots=True)
class CalibratedEndpoint:
    """An endpoint whose engine is known: whatever traffic can be replayed on it."""

    name: str
    kind: Kind[Any]
    calibrated: Calibration
    basis: Basis
    per_replica_hour: float | None
    """US dollars. None: not known."""

    def predict(self, workload: Workload, replicas: int) -> Prediction:
        """On so many replicas of its present shape. Raises CannotPredict."""
        shape = self.basis.present.with_(replicas=replicas, autoscaling=None)
        return self.kind.predict(shape, workload, self.calibrated, self.basis)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure of the endpoint's, the reference's, and the one over the other with its 80 % interval."""

    own: Interval
    reference: Interval

    @property
    def ratio(self) -> Interval:
        """Errors of two engines that know nothing of each other: in logarithms, their squares add."""
        a, b = self.own, self.reference
        mid = a.mid / b.mid
        down = math.hypot(_log(a.mid, a.low), _log(b.high, b.mid))
        up = math.hypot(_log(a.high, a.mid), _log(b.mid, b.low))
        return Interval(mid * math.exp(-down), mid, mid * math.exp(up))

    def as_dict(self) -> dict[str, Any]:
        each = (("own", self.own), ("reference", self.reference), ("ratio", self.ratio))
        return {name: {"low": i.low, "mid": i.mid, "high": i.high} for name, i in each}


def _log(above: float, below: float) -> float:
    return min(50.0, math.log(above / below)) if above > 0 and below > 0 else 0.0


@dataclass(frozen=True, slots=True)
class ReferenceComparison:
    """One endpoint beside its reference."""

    reference: str
    replicas: int
    """Of each, in the replay at equal load."""
    requests_per_s: float | None
    """Of the traffic that was replayed."""
    ratios: Mapping[str, Ratio]
    """By metric: ``ttft_p95_s`` ..., ``requests_per_s`` (what one replica carries within the objective), ``usd_per_1k_tokens``."""
    reference_replicas: Interval | None
    """Whole replicas of the reference that carry this traffic within the objective. None: no number of them."""
    missing: tuple[str, ...] = ()
    """What could not be compared, and what would make it so: sentences."""

    @property
    def text(self) -> str:
        """``costs 1.7 times h100 for the same traffic, and answers 0.6 times as fast``."""
        said = []
        if (cost := self.ratios.get("usd_per_1k_tokens")) is not None:
            said.append(f"costs {cost.ratio.mid:.2g} times {self.reference} for the same traffic")
        if (pace := self.ratios.get("e2e_p50_s")) is not None:
            said.append(f"answers {1 / pace.ratio.mid:.2g} times as fast" + ("" if said else f" as {self.reference}"))
        return ", and ".join(said) if said else f"not compared with {self.reference}: {'; '.join(self.missing)}"

    def as_dict(self) -> dict[str, Any]:
        n = self.reference_replicas
        return {
            "reference": self.reference,
            "text": self.text,
            "replicas": self.replicas,
            "requests_per_s": self.requests_per_s,
            "ratios": {name: ratio.as_dict() for name, ratio in self.ratios.items()},
            "reference_replicas": None if n is None else {"low": n.low, "mid": n.mid, "high": n.high},
            "missing": list(self.missing),
        }


def compare(
    own: CalibratedEndpoint, reference: CalibratedEndpoint, s: Situation, replicas: int, seed: int
) -> ReferenceComparison:
    """The traffic of ``s`` on both. replicas: how many of its own served it.

    Raises CannotPredict where neither engine can replay it.
    """
    windows = piece(s.windows)
    # Where one of them is a plain machine, the other one's requests have lengths, and its own have none.
    told = own if own.kind.name == reference.kind.name or own.kind.name == EngineKind.name else reference
    work = told.kind.workload(windows, seed=seed)
    here, there = own.predict(work, replicas), reference.predict(work, replicas)
    ratios = {
        name: Ratio(here.metrics[name], there.metrics[name])
        for name in METRICS
        if name in here.metrics and name in there.metrics and min(here.metrics[name].mid, there.metrics[name].mid) > 0
    }
    rate = mean_rate(s.windows, "requests")
    missing: list[str] = []
    one = [_carried(side, windows, replicas, s, seed) for side in (own, reference)]
    for side, factor in zip((own, reference), one, strict=True):
        if factor is None:
            missing.append(f"no number of replicas of {side.name} meets the objective with these requests")
    mine, theirs = one
    if mine is not None and theirs is not None and rate:
        ratios["requests_per_s"] = Ratio(mine.scaled(rate / replicas), theirs.scaled(rate / replicas))
    needed = None if theirs is None else _needed(theirs, replicas)
    cost = _cost(s, reference, needed, missing)
    if cost is not None:
        ratios["usd_per_1k_tokens"] = cost
    return ReferenceComparison(reference.name, replicas, rate, ratios, needed, tuple(missing))


def piece(windows: Sequence[Window], most: int = ENOUGH) -> list[Window]:
    """Windows taken evenly over the span that hold about ``most`` requests, whole and in order."""
    known = [w for w in windows if w.coverage > 0 and w.count("requests") is not None]
    requests = total(known, "requests") or 0.0
    keep = len(known) if requests <= most else max(1, int(len(known) * most / requests))
    return [known[int((i + 0.5) * len(known) / keep)] for i in range(keep)] if known else []


def _carried(
    side: CalibratedEndpoint, windows: Sequence[Window], replicas: int, s: Situation, seed: int
) -> Interval | None:
    """The multiple of this traffic that so many replicas carry within the objective. None: not even a fiftieth.

    Its low end is the one at which the high end of every prediction still holds. Bisection on a grid; each point is replayed once.
    """
    known: dict[int, Prediction | None] = {}

    def holds(step: int, end: End) -> bool:
        if step not in known:
            try:
                work = side.kind.workload(windows, seed=seed, scale=_STEP**step)
                known[step] = side.predict(work, replicas)
            except CannotPredict:
                known[step] = None
        found = known[step]
        if found is None or found.saturates > _SATURATES[end]:
            return False
        limits = {t.name: t.limit for t in s.objective.targets}
        return all(
            getattr(found.metrics[name], end) <= limit for name, limit in limits.items() if name in found.metrics
        )

    def most(end: End) -> float | None:
        low, high = -_STEPS, _STEPS
        if not holds(low, end):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if holds(middle, end) else (low, middle)
        return _STEP**low

    mid = most("mid")
    if mid is None:
        return None
    return Interval(min(mid, most("high") or _STEP**-_STEPS), mid, max(mid, most("low") or mid))


def _needed(factor: Interval, replicas: int) -> Interval:
    return Interval(*(float(max(1, math.ceil(replicas / f - 1e-9))) for f in (factor.high, factor.mid, factor.low)))


def _cost(s: Situation, reference: CalibratedEndpoint, needed: Interval | None, missing: list[str]) -> Ratio | None:
    if s.per_hour is None:
        missing.append(f"the price of {s.endpoint} is not known; set `usd_per_replica_hour` or its size's")
    if reference.per_replica_hour is None:
        missing.append(f"the price of {reference.name} is not known; set `usd_per_replica_hour` or its size's")
    prompt, output = (mean_rate(s.windows, name) for name in ("prompt_tokens", "output_tokens"))
    if prompt is None or output is None:
        missing.append(f"{s.source} does not tell the tokens of {s.endpoint}")
    if not s.per_hour or not reference.per_replica_hour or needed is None or not prompt or not output:
        return None
    tokens = (prompt + output) * 3600.0
    own = per_1k_tokens(s.per_hour, tokens)
    tariff = Tariff.of({Unit.REPLICA_HOUR: reference.per_replica_hour})
    ends = (needed.low, needed.mid, needed.high)
    low, mid, high = (per_1k_tokens(tariff.cost(Usage(replica_hours=n)).usd, tokens) or 0.0 for n in ends)
    return None if own is None else Ratio(Interval(own, own, own), Interval(low, mid, high))


# -- what comes of it -------------------------------------------------------------------------------------------------------------------


def slower(s: Situation, found: ReferenceComparison) -> Finding | None:
    """Whether the same traffic takes this endpoint surely longer than the reference."""
    over = {name: r for name, r in found.ratios.items() if name.endswith("_s") and name in METRICS}
    sure = {name: r.ratio for name, r in over.items() if r.ratio.low > 1 and r.ratio.mid > 1 + SLOWER}
    if not sure:
        return None
    name = max(sure, key=lambda n: sure[n].low)
    times, own, there = sure[name], over[name].own, over[name].reference
    text = (
        f"{name} of the same traffic is {times.mid:.2g} times that of {found.reference} (80 %: {times.low:.2g} to {times.high:.2g}): "
        f"{own.mid:.3g} s here, {there.mid:.3g} s there, on {found.replicas} replica{'s' if found.replicas > 1 else ''} each"
    )
    numbers = {f"{n}_{end}": getattr(r.ratio, end) for n, r in over.items() for end in ("low", "mid", "high")}
    cause = Cause("OWN", f"the same traffic is faster on {found.reference}")
    return Finding(s.endpoint, "reference", "info", Reason("SLOWER_THAN_REFERENCE", text, numbers), s.evidence, cause)


def cause_of(
    finding: Finding,
    s: Situation,
    reference: CalibratedEndpoint,
    found: ReferenceComparison,
    codes_there: frozenset[str],
    seed: int,
) -> Cause | None:
    """Whose a breach or a rise is: what rises on both is the traffic's or the model's, what rises on one is its own.

    codes_there: of the reference's own findings. None: nothing can be said.
    """
    code, name = finding.reason.code, reference.name
    if finding.kind == "breach":
        target = next((t for t in s.objective.targets if code.endswith(t.name.upper())), None)
        ratio = found.ratios.get(target.name) if target is not None else None
        if target is None or ratio is None:
            return None
        met, there = ratio.reference.within(target.limit), ratio.reference
        text = f"{there.mid:.3g} s (80 %: {there.low:.3g} to {there.high:.3g}) on as many replicas of {name}"
        if met is None:
            return None
        return (
            Cause("OWN", f"the same traffic would meet it: {text}")
            if met
            else Cause("TRAFFIC", f"the same traffic would miss it there too: {text}")
        )
    if code not in ("TTFT_RISING", "ITL_RISING"):
        return None
    if code in codes_there:
        return Cause("TRAFFIC_OR_MODEL", f"it rises on {name} as well")
    metric = f"{code.removesuffix('_RISING').lower()}_p50_s"
    first, last = finding.reason.numbers.get("first"), finding.reason.numbers.get("last")
    rise = _rise(s.windows, metric, reference, found.replicas, seed)
    if rise is None or not first or not last or last <= first:
        return None
    shared = math.log(rise) / math.log(last / first)
    text = f"the same traffic makes that of {name} {rise:.2g} times as long; here it became {last / first:.2g} times"
    return Cause("TRAFFIC", text) if shared >= _SHARED else Cause("OWN", text)


def _rise(
    windows: Sequence[Window], metric: str, reference: CalibratedEndpoint, replicas: int, seed: int
) -> float | None:
    """How many times as long the last third's traffic takes the reference as the first third's."""
    third = len(windows) // 3
    if third < _LEAST_WINDOWS:
        return None
    try:
        first, last = (
            reference.predict(reference.kind.workload(piece(part, _ENOUGH_OF_RISE), seed=seed), replicas).metrics.get(
                metric
            )
            for part in (windows[:third], windows[-third:])
        )
    except CannotPredict:
        return None
    return last.mid / first.mid if first is not None and last is not None and first.mid > 0 else None


@dataclass(frozen=True, slots=True)
class ReferenceUse:
    """What a reference costs, and how much of it is used: one that idles costs money too."""

    idle_share: float | None
    """Of the observed time, that in which no request ended and none was under way."""
    occupancy: float | None
    """Of its slots, those in use on average. None: its slots are not known."""
    gpu_usage: float | None
    """Mean share of the time in which its accelerators worked, as they say themselves."""
    usd_per_month: float | None
    idle_usd_per_month: float | None

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ReferenceUse.__slots__}

    @classmethod
    def of(cls, windows: Sequence[Window], slots: float | None, per_hour: float | None) -> ReferenceUse:
        """slots: of all its replicas together. per_hour: US dollars of the whole endpoint."""
        known = [w for w in windows if w.coverage > 0 and w.count("requests") is not None]
        seconds = told_s(known, "requests")
        quiet = told_s([w for w in known if not w.count("requests") and not _under_way(w)], "requests")
        idle = quiet / seconds if seconds > 0 else None
        running = [g.mean for w in known if (g := w.gauges.get("running")) is not None]
        occupancy = sum(running) / len(running) / slots if running and slots else None
        busy = [g.mean for w in windows if (g := w.gauges.get("gpu_usage")) is not None]
        monthly = per_month(per_hour)
        idle_usd = None if monthly is None or idle is None else monthly * idle
        return cls(idle, occupancy, sum(busy) / len(busy) if busy else None, monthly, idle_usd)


def _under_way(window: Window) -> bool:
    return any(window.gauges[name].maximum > 0 for name in ("running", "waiting") if name in window.gauges)


def with_causes(
    findings: Sequence[Finding],
    s: Situation,
    reference: CalibratedEndpoint,
    found: ReferenceComparison,
    codes_there: frozenset[str],
    seed: int,
) -> list[Finding]:
    """The findings, each with whose it is where the reference tells that, and that the endpoint is slower where it surely is."""
    told = []
    for finding in findings:
        cause = finding.cause or cause_of(finding, s, reference, found, codes_there, seed)
        told.append(replace(finding, cause=cause))
    own = slower(s, found)
    return told if own is None else [*told, own]
