"""Windows in, findings out: what is wrong, what is wasted, and what is not known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from actuators.shape import Shape
from analyzers.finding import Evidence, Finding, Kind, Reason, Severity
from analyzers.money import per_month
from analyzers.objective import Attainment, Objective, attainment, sustained_breach, total
from analyzers.policy import Policy
from analyzers.trend import trend
from collectors.window import Window

#: Significance that a trend needs, and the relative change over the span that is worth a word.
TREND_P, TREND_CHANGE = 0.01, 0.2
#: The share of windows in which a signal of saturation must show.
SUSTAINED = 0.5


@dataclass(frozen=True, slots=True)
class Situation:
    """One endpoint, as it is judged: the windows of its judged source over ``start``..``end``, gaps left out."""

    endpoint: str
    source: str
    windows: Sequence[Window]
    start: float
    end: float
    objective: Objective
    policy: Policy
    shape: Shape
    per_hour: float | None
    """US dollars per hour of the whole endpoint; None: unknown."""
    lag_s: float = 0.0
    """How far behind the source's newest windows are by nature, in seconds: data that comes late is not stale."""
    settling: bool = False
    """Whether the span is cut short by a change that has only just been made."""

    @property
    def evidence(self) -> Evidence:
        span = self.end - self.start
        observed = sum(w.coverage * w.duration_s for w in self.windows)
        return Evidence(
            start=self.start,
            end=self.end,
            windows=len(self.windows),
            coverage=min(1.0, observed / span) if span > 0 else 0.0,
            requests=total(self.windows, "requests"),
            source=self.source,
        )


def missing_evidence(s: Situation) -> list[Reason]:
    """Why no decision can be made; empty where the evidence is whole."""
    evidence, policy = s.evidence, s.policy
    if s.settling:
        text = f"the last change is too recent: {sum(w.duration_s for w in s.windows):.0f} s of evidence since"
        return [Reason("SETTLING", text, {"windows": float(len(s.windows))})]
    if not s.windows or evidence.coverage == 0:
        return [Reason("NO_DATA", f"nothing was read from {s.source} in the last {_span(s)}")]
    reasons: list[Reason] = []
    age = s.end - max(w.end for w in s.windows if w.coverage > 0)
    newest = max(w.duration_s for w in s.windows)
    if age > 3 * newest + s.lag_s:
        text = f"the newest telemetry is {age:.0f} s old" + (f", {s.lag_s:.0f} s is usual" if s.lag_s else "")
        reasons.append(Reason("STALE", text, {"age_s": age, "usual_s": s.lag_s}))
    reasons += _low_coverage(s)
    if evidence.requests is None:
        reasons.append(Reason("UNKNOWN_REQUESTS", f"{s.source} does not tell how many requests were served"))
    elif evidence.requests < policy.min_requests:
        numbers = {"requests": evidence.requests, "needed": float(policy.min_requests)}
        text = f"{evidence.requests:.0f} requests in the last {_span(s)}, {policy.min_requests} are needed"
        reasons.append(Reason("FEW_REQUESTS", text, numbers))
    if not s.objective.targets:
        reasons.append(Reason("NO_OBJECTIVE", "no objective is set, so nothing can be judged"))
    for target in s.objective.targets:
        if not reasons and attainment(s.windows, target).observed is None:
            reasons.append(
                Reason("UNKNOWN_METRIC", f"{s.source} does not tell {target.name}, which the objective names")
            )
    return reasons


def _low_coverage(s: Situation) -> Iterator[Reason]:
    """What the objective needs must have been observed, each metric for itself: a source may lose some and keep the others."""
    span, needed = s.end - s.start, s.policy.min_coverage
    metrics = ["requests", *("errors" if t.metric == "error_rate" else t.metric for t in s.objective.targets)]
    shares = {m: min(1.0, sum(w.coverage_of(m) * w.duration_s for w in s.windows) / span) for m in metrics}
    name, least = min(shares.items(), key=lambda item: item[1])
    if least < needed:
        whole = s.evidence.coverage
        what = "" if least >= whole or whole < needed else f"{name} was told in "
        text = f"{what}{least:.0%} of the last {_span(s)}{'' if what else ' was observed'}, {needed:.0%} is needed"
        yield Reason("LOW_COVERAGE", text, {"coverage": least, "needed": needed})


def analyze(s: Situation) -> list[Finding]:
    """All findings of one endpoint. With evidence missing, that is what is said; saturation and breach need some of it."""
    lacking = missing_evidence(s)
    found = [_finding(s, "insufficient_data", "info" if s.settling else "warning", reason) for reason in lacking]
    if any(r.code in ("NO_DATA", "STALE", "SETTLING") for r in lacking):
        return found
    found += _idle(s)
    if not any(r.code in ("LOW_COVERAGE", "FEW_REQUESTS", "UNKNOWN_REQUESTS") for r in lacking):
        found += [*_breaches(s), *_saturation(s), *_trends(s)]
    return found


def _breaches(s: Situation) -> Iterator[Finding]:
    recent = s.windows[-max(3, len(s.windows) // 12) :]
    for target in s.objective.targets:
        long, short = attainment(s.windows, target), attainment(recent, target)
        if long.observed is None:
            continue
        if long.met is False or sustained_breach(s.windows, target.name, s.objective):
            yield _finding(s, "breach", _severity(long, short), _breach_reason(long, short, s))


def _severity(long: Attainment, short: Attainment) -> Severity:
    burning = [a.burn_rate for a in (long, short) if a.burn_rate is not None]
    return "critical" if burning and min(burning) > 2 else "warning"


def _breach_reason(long: Attainment, short: Attainment, s: Situation) -> Reason:
    target = long.target
    numbers = {"limit": target.limit, "observed": long.observed or 0.0, "samples": long.samples}
    rates = {"burn_rate": long.burn_rate, "recent_burn_rate": short.burn_rate}
    numbers |= {name: rate for name, rate in rates.items() if rate is not None}
    unit = "" if target.metric == "error_rate" else " s"
    text = (
        f"{target.name} is {long.observed:.3g}{unit} over the last {_span(s)}; the objective is {target.limit:g}{unit}"
    )
    return Reason("OBJECTIVE_BREACH_" + target.name.upper(), text, numbers)


def _saturation(s: Situation) -> Iterator[Finding]:
    def share(test: Callable[[Window], bool | None]) -> float | None:
        known = [verdict for w in s.windows if (verdict := test(w)) is not None]
        return sum(known) / len(known) if known else None

    def queued(w: Window) -> bool | None:
        waiting, running = w.mean("waiting"), w.mean("running")
        return None if waiting is None else waiting >= max(1.0, 0.1 * (running or 0.0))

    queue = share(queued)
    if queue is not None and queue >= SUSTAINED:
        numbers = {"waiting_mean": _mean(s, "waiting"), "running_mean": _mean(s, "running"), "share_of_windows": queue}
        text = f"{numbers['waiting_mean']:.1f} requests wait on average while {numbers['running_mean']:.1f} run"
        yield _finding(s, "saturation", "warning", Reason("QUEUE_WAITING", text, numbers))
    full = share(lambda w: None if (g := w.gauges.get("kv_usage")) is None else g.maximum >= 0.95)
    preemptions = total(s.windows, "preemptions")
    if (full is not None and full >= SUSTAINED) or preemptions:
        numbers = {"share_of_windows": full or 0.0, "preemptions": preemptions or 0.0}
        text = f"the KV cache was full in {full or 0:.0%} of the windows, with {preemptions or 0:.0f} preemptions"
        yield _finding(s, "saturation", "warning", Reason("KV_CACHE_FULL", text, numbers))
    slots = s.shape.engine.get("max_num_seqs")
    if isinstance(slots, int) and s.shape.replicas:
        room = slots * s.shape.replicas
        filled = share(lambda w: None if (g := w.gauges.get("running")) is None else g.mean >= 0.95 * room)
        if filled is not None and filled >= SUSTAINED:
            numbers = {"running_mean": _mean(s, "running"), "slots": float(room), "share_of_windows": filled}
            text = f"the batch is full: {numbers['running_mean']:.1f} of {room} sequences run"
            yield _finding(s, "saturation", "warning", Reason("BATCH_FULL", text, numbers))


def _idle(s: Situation) -> Iterator[Finding]:
    requests = total(s.windows, "requests")
    if requests is None or s.evidence.coverage < s.policy.min_coverage:
        return
    monthly = per_month(s.per_hour)
    money = f", at ${monthly:,.0f} a month" if monthly is not None else ""
    numbers = {"requests": requests} | ({"usd_per_month": monthly} if monthly is not None else {})
    if requests == 0:
        yield _finding(s, "idle", "warning", Reason("NO_TRAFFIC", f"no request in the last {_span(s)}{money}", numbers))
        return
    slots = s.shape.engine.get("max_num_seqs")
    running = [g.mean for w in s.windows if (g := w.gauges.get("running")) is not None]
    if isinstance(slots, int) and s.shape.replicas and running:
        peak, room = max(running), slots * s.shape.replicas
        if peak < 0.2 * room and _mean(s, "waiting") < 0.1:
            numbers |= {"running_peak": peak, "slots": float(room)}
            text = f"never more than {peak:.1f} of {room} sequences ran{money}"
            yield _finding(s, "idle", "info", Reason("LOW_OCCUPANCY", text, numbers))


def _trends(s: Situation) -> Iterator[Finding]:
    series: list[tuple[str, str, Callable[[Window], float | None]]] = [
        ("LOAD", "the request rate", lambda w: w.rate("requests")),
        ("TTFT", "the median time to first token", lambda w: w.quantile("ttft_s", 0.5)),
        ("ITL", "the median gap between tokens", lambda w: w.quantile("itl_s", 0.5)),
    ]
    for code, what, value in series:
        points = [(w.start, v) for w in s.windows if w.coverage > 0 and (v := value(w)) is not None]
        line = trend([t for t, _ in points], [v for _, v in points])
        if line is None or line.p_value > TREND_P or abs(line.change) < TREND_CHANGE:
            continue
        rising = line.change > 0
        numbers = {"change": line.change, "p_value": line.p_value, "slope_per_hour": line.slope * 3600}
        text = (
            f"{what} {'rose' if rising else 'fell'} by {abs(line.change):.0%} over {_span(s)} (p = {line.p_value:.2g})"
        )
        severity: Severity = "info" if code == "LOAD" or not rising else "warning"
        yield _finding(s, "trend", severity, Reason(f"{code}_{'RISING' if rising else 'FALLING'}", text, numbers))


def _mean(s: Situation, gauge: str) -> float:
    known = [g.mean for w in s.windows if (g := w.gauges.get(gauge)) is not None]
    return sum(known) / len(known) if known else 0.0


def _span(s: Situation) -> str:
    seconds = s.end - s.start
    return f"{seconds / 3600:.3g} h" if seconds >= 3600 else f"{seconds / 60:.3g} min"


def _finding(s: Situation, kind: Kind, severity: Severity, reason: Reason) -> Finding:
    return Finding(s.endpoint, kind, severity, reason, s.evidence)
