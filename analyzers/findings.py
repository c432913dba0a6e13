"""Windows in, findings out: what is wrong, what is wasted, and what is not known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from statistics import median

from analyzers.contradictions import contradictions
from analyzers.finding import Finding, Kind, Reason, Severity
from analyzers.money import per_month
from analyzers.objective import SHARES, Attainment, Target, attainment, sustained_breach, told_s, total
from analyzers.situation import Situation
from analyzers.trend import at_comparable_load, in_one_step, step, trend
from analyzers.words import between, figure, lasting, phrase
from collectors.window import Window

#: Significance that a trend needs, and the relative change over the span that is worth a word.
TREND_P, TREND_CHANGE = 0.01, 0.2
#: An event that was longer ago than this is not named beside a change of figures: seconds.
EVENT_S = 1800.0
#: The share of windows in which a signal of saturation must show, where it does not show in each of the last.
SUSTAINED = 0.5
#: An endpoint without requests is at rest when so long was seen of it: a working day has a morning.
QUIET_S = 86_400.0
#: So many windows in a row are no accident.
LEAST_WINDOWS = 3


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
    needed = s.policy.min_coverage
    metrics = ["requests", *(SHARES.get(t.metric, t.metric) for t in s.objective.targets)]
    shares = {m: s.coverage_of(m) for m in metrics}
    name, least = min(shares.items(), key=lambda item: item[1])
    if least < needed:
        whole = s.evidence.coverage
        what = "" if least >= whole or whole < needed else f"{name} was told in "
        text = f"{what}{least:.0%} of the last {_span(s)}{'' if what else ' was observed'}, {needed:.0%} is needed"
        yield Reason("LOW_COVERAGE", text, {"coverage": least, "needed": needed})


def analyze(s: Situation) -> list[Finding]:
    """All findings of one endpoint. What is missing is said first; what is known is said whatever is missing beside it."""
    lacking = missing_evidence(s)
    found = [_finding(s, "insufficient_data", "info" if s.settling else "warning", reason) for reason in lacking]
    if any(r.code in ("NO_DATA", "STALE", "SETTLING") for r in lacking):
        return found
    found += [_finding(s, "contradiction", severity, reason) for severity, reason in contradictions(s)]
    if any(f.kind == "contradiction" and f.severity == "critical" for f in found):
        return [*found, *_breaches(s)]
    found += [*_breaches(s), *_saturation(s), *_idle(s), *_at_rest(s)]
    if not any(r.code in ("LOW_COVERAGE", "FEW_REQUESTS", "UNKNOWN_REQUESTS") for r in lacking):
        found += _trends(s)
    return found


def _breaches(s: Situation) -> Iterator[Finding]:
    seen = [w for w in s.windows if w.coverage > 0]
    if len(seen) < LEAST_WINDOWS:
        return
    recent = seen[-max(LEAST_WINDOWS, len(seen) // 12) :]
    for target in s.objective.targets:
        long, short = attainment(seen, target), attainment(recent, target)
        over = long.met is False and (long.overdue or long.samples >= _enough(target))
        if over or sustained_breach(seen, target.name, s.objective, LEAST_WINDOWS):
            yield _finding(
                s, "breach", _severity(long, short), _breach_reason(long, short, sum(w.duration_s for w in recent), s)
            )


def _enough(target: Target) -> float:
    """Requests below which a percentile, or a share of errors, is one or two of them."""
    return 20.0 if target.quantile is None else min(100.0, 1.0 / (1.0 - target.quantile))


def _severity(long: Attainment, short: Attainment) -> Severity:
    if long.overdue:
        return "critical"
    burning = [a.burn_rate for a in (long, short) if a.burn_rate is not None]
    return "critical" if burning and min(burning) > 2 else "warning"


def _breach_reason(long: Attainment, short: Attainment, short_s: float, s: Situation) -> Reason:
    target = long.target
    numbers = {"limit": target.limit, "observed": long.observed or 0.0, "samples": long.samples}
    rates = {"burn_rate": long.burn_rate, "recent_burn_rate": short.burn_rate}
    numbers |= {name: rate for name, rate in rates.items() if rate is not None}
    name, limit = phrase(target.name), f"the objective is {figure(target.name, target.limit)}"
    if long.overdue:
        numbers["stalled_s"] = long.stalled_s
        text = f"{name}: requests have been under way for {lasting(long.stalled_s)} without a token; {limit}"
    else:
        # The whole span may be met while its last windows are not: then these are what breaks it.
        judged, over = (short, lasting(short_s)) if long.met is not False else (long, _span(s))
        numbers["observed"] = judged.observed or 0.0
        numbers |= {
            n: v
            for n, v in (("at_least", judged.at_least), ("at_most", judged.at_most))
            if v is not None and math.isfinite(v)
        }
        now = between(target.name, judged.observed, judged.at_least, judged.at_most)
        text = f"{name} is {now} over the last {over}; {limit}"
    return Reason("OBJECTIVE_BREACH_" + target.name.upper(), text, numbers)


def _saturation(s: Situation) -> Iterator[Finding]:
    def showing(test: Callable[[Window], bool | None]) -> tuple[list[Window], float]:
        """The windows in which it shows, where these are enough of the span or all of its last; and their share."""
        known = [(w, verdict) for w in s.windows if (verdict := test(w)) is not None]
        shown = [w for w, verdict in known if verdict]
        last = [verdict for _, verdict in known[-LEAST_WINDOWS:]]
        if len(known) < LEAST_WINDOWS or not (len(shown) >= SUSTAINED * len(known) or all(last)):
            return [], 0.0
        return shown, len(shown) / len(known)

    def queued(w: Window) -> bool | None:
        waiting, running = w.mean("waiting"), w.mean("running")
        return None if waiting is None else waiting >= max(1.0, 0.1 * (running or 0.0))

    queue, share = showing(queued)
    if queue:
        numbers = {"waiting_mean": _mean(queue, "waiting"), "running_mean": _mean(queue, "running")}
        numbers |= {"share_of_windows": share}
        text = f"{numbers['waiting_mean']:.1f} requests wait on average while {numbers['running_mean']:.1f} run"
        yield _finding(s, "saturation", "warning", Reason("QUEUE_WAITING", text, numbers))
    full, share = showing(lambda w: None if (g := w.gauges.get("kv_usage")) is None else g.maximum >= 0.95)
    preemptions = total(s.windows, "preemptions")
    if full or preemptions:
        numbers = {"share_of_windows": share, "preemptions": preemptions or 0.0}
        text = f"the KV cache was full in {share:.0%} of the windows, with {preemptions or 0:.0f} preemptions"
        yield _finding(s, "saturation", "warning", Reason("KV_CACHE_FULL", text, numbers))
    refused, share = showing(
        lambda w: None if (n := w.count("throttled")) is None or not w.count("requests") else n >= 1
    )
    if refused and s.shape.purchase is not None:
        throttled, calls = (total(refused, name) or 0.0 for name in ("throttled", "requests"))
        numbers = {"throttled": throttled, "requests": calls, "share_of_windows": share}
        text = f"{throttled:,.0f} of {calls:,.0f} calls were refused for a rate or quota, in {share:.0%} of the windows"
        yield _finding(s, "saturation", "warning", Reason("RATE_LIMITED", text, numbers))
    used, share = showing(lambda w: None if (g := w.gauges.get("ptu_usage")) is None else g.maximum >= 1.0)
    if used:
        numbers = {"ptu_usage_mean": _mean(used, "ptu_usage"), "share_of_windows": share}
        text = f"the provisioned throughput was all in use in {share:.0%} of the windows"
        yield _finding(s, "saturation", "warning", Reason("PTU_FULL", text, numbers))
    slots = s.shape.engine.get("max_num_seqs")
    if isinstance(slots, int) and s.shape.replicas:
        room = slots * s.shape.replicas
        filled, share = showing(lambda w: None if (g := w.gauges.get("running")) is None else g.mean >= 0.95 * room)
        if filled:
            numbers = {"running_mean": _mean(filled, "running"), "slots": float(room), "share_of_windows": share}
            text = f"the batch is full: {numbers['running_mean']:.1f} of {room} sequences run"
            yield _finding(s, "saturation", "warning", Reason("BATCH_FULL", text, numbers))


def _idle(s: Situation) -> Iterator[Finding]:
    requests = total(s.windows, "requests")
    if requests is None or min(s.evidence.coverage, s.coverage_of("requests")) < s.policy.min_coverage:
        return
    monthly = per_month(s.per_hour)
    money = f", at ${monthly:,.0f} a month" if monthly is not None else ""
    numbers = {"requests": requests} | ({"usd_per_month": monthly} if monthly is not None else {})
    under_way = [g for w in s.windows for n in ("running", "waiting") if (g := w.gauges.get(n)) is not None]
    if requests == 0:
        if not any(g.maximum >= 1 for g in under_way):
            text = f"no request in the last {_span(s)}{money}"
            yield _finding(s, "idle", "warning", Reason("NO_TRAFFIC", text, numbers))
        return
    slots = s.shape.engine.get("max_num_seqs")
    running = [g for w in s.windows if (g := w.gauges.get("running")) is not None]
    if isinstance(slots, int) and s.shape.replicas and running:
        peak, room = max(g.mean for g in running), slots * s.shape.replicas
        if peak < 0.2 * room and _mean(s.windows, "waiting") < 0.1:
            most = max(g.maximum for g in running)
            numbers |= {"running_peak": peak, "running_most": most, "slots": float(room)}
            text = f"{peak:.1f} of {room} sequences ran in the busiest window, at most {most:.0f} at any reading{money}"
            yield _finding(s, "idle", "info", Reason("LOW_OCCUPANCY", text, numbers))


def _at_rest(s: Situation) -> Iterator[Finding]:
    """Next to no requests for a day or more: no hour of it would ever have enough of them to be judged."""
    seen = [w for w in s.longer if w.coverage > 0]
    if not seen:
        return
    seconds, requests = told_s(seen, "requests"), total(seen, "requests")
    since, until = seen[0].start, max(w.end for w in seen)
    if requests is None or seconds < QUIET_S or seconds < s.policy.min_coverage * (until - since):
        return
    per_span = requests / seconds * (s.wanted_s or s.end - s.start)
    most = sum(max((w.gauges[g].maximum for w in seen if g in w.gauges), default=0.0) for g in ("running", "waiting"))
    told = any("running" in w.gauges for w in seen)
    if per_span >= s.policy.min_requests or not (told or requests == 0):
        return
    monthly = per_month(s.per_hour)
    numbers = {"requests": requests, "seconds": seconds, "running_most": most}
    numbers |= {"usd_per_month": monthly} if monthly is not None else {}
    money = f", at ${monthly:,.0f} a month" if monthly is not None else ""
    text = f"{requests:.0f} requests in {lasting(until - since)}{money}"
    yield _finding(s, "idle", "warning", Reason("LITTLE_TRAFFIC", text, numbers))


def _trends(s: Situation) -> Iterator[Finding]:
    seen = [w for w in s.windows if w.coverage > 0]
    rates = [(w, v) for w in seen if (v := w.rate("requests")) is not None]
    yield from _trend(s, "LOAD", "the request rate", [w.start for w, _ in rates], [v for _, v in rates])
    for code, what, metric in (
        ("TTFT", "the median time to first token", "ttft_s"),
        ("ITL", "the median gap between tokens", "itl_s"),
    ):
        points = [(w.start, v, _load(w)) for w in seen if (v := w.quantile(metric, 0.5)) is not None]
        loads = [load for _, _, load in points if load is not None]
        values = [v for _, v, _ in points]
        if len(loads) == len(values):
            values = at_comparable_load(values, loads)
        yield from _trend(s, code, f"{what}, at comparable load,", [t for t, _, _ in points], values)


def _load(w: Window) -> float | None:
    """Tokens a second of one replica, or its requests where the tokens are not told."""
    rate = w.rate("output_tokens")
    rate = w.rate("requests") if rate is None else rate
    return None if rate is None else rate / max(1, w.targets)


def _trend(s: Situation, code: str, what: str, times: Sequence[float], values: Sequence[float]) -> Iterator[Finding]:
    line = trend(times, values)
    if line is None or line.p_value > TREND_P or abs(line.change) < TREND_CHANGE:
        return
    rising = line.change > 0
    now = median(values[-LEAST_WINDOWS:])
    if (now - line.first) * (line.last - line.first) < 0.5 * (line.last - line.first) ** 2:
        return  # it has come back since
    numbers = {"first": line.first, "last": line.last, "p_value": line.p_value, "slope_per_hour": line.slope * 3600}
    by = "from nothing" if math.isinf(line.change) else f"by {abs(line.change):.0%}"
    numbers |= {} if math.isinf(line.change) else {"change": line.change}
    how, since = f"over {_span(s)}", s.start
    found = step(times, values)
    if found is not None and found.p_value <= TREND_P and in_one_step(times, values, line, found):
        numbers |= {"step_at": found.at}
        how, since = f"in one step at {datetime.fromtimestamp(found.at, UTC):%H:%M} UTC", found.at
    text = f"{what} {'rose' if rising else 'fell'} {by} {how} (p = {line.p_value:.2g}){_after_event(s, since)}"
    severity: Severity = "info" if code == "LOAD" or not rising else "warning"
    yield _finding(s, "trend", severity, Reason(f"{code}_{'RISING' if rising else 'FALLING'}", text, numbers))


def _after_event(s: Situation, at: float) -> str:
    """The known event nearest to ``at``, of those that were not long before it, nor after it by more than windows tell apart."""
    width = max((w.duration_s for w in s.windows), default=0.0)
    near = [e for e in s.events if at - EVENT_S <= e.at <= at + 2 * width]
    if not near:
        return ""
    event = min(near, key=lambda e: abs(e.at - at))
    apart = abs(at - event.at)
    return f"; {'at that time' if apart < width else f'{lasting(apart)} before'}: {event.text}"


def _mean(windows: Sequence[Window], gauge: str) -> float:
    known = [g.mean for w in windows if (g := w.gauges.get(gauge)) is not None]
    return sum(known) / len(known) if known else 0.0


def _span(s: Situation) -> str:
    return lasting(s.end - s.start)


def _finding(s: Situation, kind: Kind, severity: Severity, reason: Reason) -> Finding:
    return Finding(s.endpoint, kind, severity, reason, s.evidence)
