"""The decision: which shape, if any, is worth changing to; and why not the others.

A chain that can be read from top to bottom: evidence, candidates, replay, objective with margin, hysteresis, cost, disruption.
"Any signal may grow, all must agree to shrink": to grow, a shape must meet the objective with margin at the load observed, by the
middle of its prediction; to shrink, at that load times ``policy.growth``, by the *high* end. What lies between changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from actuators.shape import Shape, difference
from analyzers.ahead import Ahead
from analyzers.choice import (
    Choice,
    Judgement,
    as_served,
    bought,
    cost_of,
    current_of,
    money_of,
    of_platform,
    refuted,
    replayed_whole,
)
from analyzers.finding import Finding, Reason
from analyzers.findings import missing_evidence
from analyzers.money import per_month
from analyzers.objective import attainment, mean_rate, total
from analyzers.path import Capacities
from analyzers.policy import Catalogue, candidates, most_replicas, units_of, violations, with_most
from analyzers.prediction import CannotPredict, Prediction, Predictor
from analyzers.premortem import Premortem, premortem
from analyzers.recommendation import Direction, ObservedTarget, Option, Recommendation, Risk
from analyzers.screening import worst_of
from analyzers.situation import Situation
from analyzers.words import lasting, phrase

#: How an endpoint stands.
Standing = Literal["fine", "too_small", "too_large", "gathering", "stuck", "contradiction", "not_known"]
#: What holds a decision back where the size was judged, and nothing lacks.
JUDGED = frozenset(
    (
        "RIGHT_SIZE",
        "CHANGES_SPENT",
        "SAVING_TOO_SMALL",
        "PRICE_UNKNOWN",
        "SMALLEST_ALREADY",
        "LOAD_RISING",
        "TTFT_RISING",
        "QUEUE_WAITING",
        "KV_CACHE_FULL",
        "BATCH_FULL",
        "MODEL_TOO_HOPEFUL",
    )
)
#: What lacks where nobody knows what comes: a schedule is held at its most until somebody does.
BLIND = frozenset(("NO_DATA", "STALE"))
#: What lacks where an endpoint is quiet, and nothing else.
QUIET = frozenset(("FEW_REQUESTS", "UNKNOWN_METRIC"))
#: The interval of a provisional prediction is at most so many times as wide, as a power.
MOST_WIDENING = 2.0


@dataclass(frozen=True, slots=True)
class ScheduleHold:
    """Never fewer replicas than these for a while, where a schedule sets them: within what was approved with it."""

    replicas: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Decision:
    """A recommendation, or why there is none."""

    recommendation: Recommendation | None
    hold: tuple[Reason, ...] = ()
    options: tuple[Option, ...] = ()
    schedule_hold: ScheduleHold | None = None
    """Where a schedule sets the replicas and has, or is about to have, fewer than are called for."""

    def standing(self, findings: Sequence[Finding]) -> tuple[Standing, str]:
        """How the endpoint stands, in one word and in one sentence: what is known, and why nothing is proposed where nothing is."""
        text = self.hold[0].text if self.hold else ""
        codes = {reason.code for reason in self.hold}
        advice = self.recommendation
        proposed = None if advice is None else f"proposed: {difference(advice.current.shape, advice.proposed.shape)}"
        contradicted = next((f.reason for f in findings if f.refutes), None)
        if contradicted is not None:
            state: Standing = "stuck" if contradicted.code == "ENGINE_STUCK" else "contradiction"
            return state, contradicted.text if proposed is None else f"{contradicted.text}; {proposed}"
        breach = next((f.reason for f in findings if f.kind == "breach"), None)
        if proposed is not None:
            small = breach is not None or (advice is not None and advice.direction == "grow")
            return ("too_small" if small else "too_large"), proposed
        if breach is not None:
            return "too_small", breach.text if not text else f"{breach.text}; {text}"
        if "GATHERING" in codes:
            return "gathering", text
        if any(f.kind == "insufficient_data" for f in findings) or not codes & JUDGED:
            return "not_known", text
        return "fine", text


def recommend(
    s: Situation,
    findings: Sequence[Finding],
    catalogue: Catalogue,
    predictor: Predictor,
    capacities: Capacities | None = None,
) -> Decision:
    """Choose among the allowed shapes. Pure: the same values in, the same decision out.

    capacities: what replicas of this calibration and traffic are known to carry, where it was asked before.
    """
    lacking = missing_evidence(s)
    if units_of(s.shape) is None:
        text = "neither replicas nor what is bought are known; set shape.replicas, shape.autoscaling or shape.purchase, or an actuator"
        lacking.append(Reason("UNKNOWN_SHAPE", text))
    lacking += [f.reason for f in findings if f.kind == "contradiction" and f.severity == "critical"]
    if lacking:
        return Decision(None, tuple(lacking))
    try:
        at_present = predictor.predict(as_served(s), 1.0)
    except CannotPredict as error:
        return Decision(None, (Reason(error.code, error.detail),))
    catalogue = of_platform(s, catalogue, predictor)
    ahead = Ahead.of(s, catalogue, predictor, Capacities() if capacities is None else capacities)
    choice = Choice(s, catalogue, predictor, current_of(s, catalogue, at_present), ahead)
    grow = _grow_signals(findings)
    held = _schedule_hold(s, grow, ahead)
    if held is not None and _raises(s, held):
        return Decision(None, (held.reason,), schedule_hold=held)
    decision = _choose(s, findings, grow, choice, ahead, predictor, at_present, catalogue)
    return replace(decision, schedule_hold=held)


def _choose(
    s: Situation,
    findings: Sequence[Finding],
    grow: Sequence[Finding],
    choice: Choice,
    ahead: Ahead | None,
    predictor: Predictor,
    at_present: Prediction,
    catalogue: Catalogue,
) -> Decision:
    coming = None
    if grow:
        chosen, hold = _relief(s, findings, choice, predictor, at_present)
    else:
        chosen, hold = (None, []) if _doubts(s, findings, at_present, predictor) else choice.coming()
        coming = chosen
        if chosen is None:
            chosen, hold = choice.saving(findings)
    options = choice.ranked(chosen)
    if not grow and coming is None and s.provisional:
        return Decision(None, (_gathering(s, chosen), *hold), options)
    if chosen is None:
        return Decision(None, tuple(hold), options)
    reasons = [f.reason for f in (grow or findings) if f.kind in ("breach", "saturation", "idle")] + hold
    if (why := _why(s, chosen, ahead, told=bool(grow or coming), alone=not reasons)) is not None:
        reasons.append(why)
    advice = _recommendation(s, choice.current.option, options[0], options, reasons, catalogue)
    unsure = ahead.unsure() if ahead is not None and advice.direction == "shrink" else None
    if unsure is not None:
        advice = replace(advice, risk="high", risk_reasons=(*advice.risk_reasons, unsure))
    return Decision(advice, (), options)


def _why(s: Situation, chosen: Judgement, ahead: Ahead | None, *, told: bool, alone: bool) -> Reason | None:
    """Why that shape. told: the signals say it already. alone: there are none."""
    schedule = chosen.option.shape.schedule
    tuned = ahead.targets_found if ahead is not None else None
    if tuned is not None and chosen.option.shape == tuned.shape:
        return Reason("TARGETS_WOULD_DO", tuned.why(), {"replicas_mean": tuned.day.replicas_mean})
    if told:
        return None
    if schedule is not None:
        return Reason("SCHEDULE_WOULD_DO", chosen.option.why, {"replicas_mean": schedule.mean})
    if ahead is not None:
        return ahead.smaller(chosen.option.shape)
    return _enough_capacity(s, chosen) if alone else None


def _schedule_hold(s: Situation, grow: Sequence[Finding], ahead: Ahead | None) -> ScheduleHold | None:
    """At most what was approved: the most of the schedule after a breach, else what may come before more could serve and the clock has
    fewer for. None: no schedule, or no call for it."""
    schedule, present = s.shape.schedule, s.shape.replicas
    if schedule is None or present is None:
        return None
    if grow:
        if schedule.least == schedule.most:
            return None
        code, count, why = "SCHEDULE_TOO_SMALL", schedule.most, grow[0].reason.text
    else:
        short = ahead.above(schedule) if ahead is not None else None
        if short is None:
            return None
        code, count = "SCHEDULE_RAISED", short.needed
        why = f"{short.by_clock} replicas, as the clock has it, may not carry what comes until more of them could serve"
    text = f"{why}: the schedule is held at {count} replicas, as was approved with it"
    return ScheduleHold(count, Reason(code, text, {"replicas": float(count)}))


def _raises(s: Situation, held: ScheduleHold) -> bool:
    """Whether more replicas are to come than there are."""
    return held.replicas > (s.shape.replicas or 0)


def before_the_load(
    s: Situation,
    findings: Sequence[Finding],
    catalogue: Catalogue,
    predictor: Predictor,
    capacities: Capacities | None = None,
) -> Decision | None:
    """More replicas before a load that comes by its season, where the quiet hours before it hold too few requests to be judged by.
    None: nothing is called for, or more lacks than requests."""
    if {reason.code for reason in missing_evidence(s)} - QUIET or any(f.refutes for f in findings):
        return None
    ahead = Ahead.of(s, catalogue, predictor, Capacities() if capacities is None else capacities)
    held = _schedule_hold(s, (), ahead)
    if held is not None:
        return Decision(None, (held.reason,), schedule_hold=held)
    if ahead is None or ahead.path is None or (reason := ahead.coming()) is None:
        return None
    shape = s.shape.with_(replicas=ahead.path.now)
    if violations(shape, s.shape, s.policy, catalogue):
        return None
    room = ahead.room(shape)
    current = current_of(s, catalogue, None).option
    proposed = replace(replayed_whole(s, shape, catalogue, room.predictor).option, verdict="chosen")
    advice = _recommendation(s, current, proposed, (proposed, current), (reason,), catalogue)
    return Decision(advice, (), (proposed, current))


def premortem_of(
    advice: Recommendation,
    s: Situation,
    catalogue: Catalogue,
    predictor: Predictor,
    capacities: Capacities | None = None,
) -> Premortem:
    """What the proposed shape would survive, of the load that it must carry: the one to come where a season is known or it is smaller."""
    shape = advice.proposed.shape
    if shape.schedule is not None:  # at its most, which carries the day's peak
        shape = shape.with_(replicas=shape.schedule.most, schedule=None)
    ahead = Ahead.of(s, catalogue, predictor, Capacities() if capacities is None else capacities)
    if ahead is None or not (ahead.seasonal or advice.direction == "shrink"):
        return premortem(s, shape, predictor, 1.0)
    room = ahead.room(shape)
    return premortem(s, shape, room.predictor, room.factor, delayed=ahead.delayed() if ahead.seasonal else None)


def _relief(
    s: Situation, findings: Sequence[Finding], choice: Choice, predictor: Predictor, at_present: Prediction
) -> tuple[Judgement | None, list[Reason]]:
    """By the model's word, where neither the settings nor the model are refuted by what the server shows. An autoscaler that comes too
    late is no doubt of the engine's model."""
    tuned = None if any(f.refutes for f in findings) else choice.retargeted(cheaper=False)
    if tuned is not None:
        return tuned, []
    doubts = _doubts(s, findings, at_present, predictor)
    return choice.by_observation(doubts) if doubts else choice.relief()


def _doubts(s: Situation, findings: Sequence[Finding], at_present: Prediction, predictor: Predictor) -> list[Reason]:
    """Why the model's word is not taken: what the server shows refutes its settings, or the model."""
    return [f.reason for f in findings if f.refutes] or refuted(s, at_present, predictor)


def _gathering(s: Situation, chosen: Judgement | None) -> Reason:
    """Not enough was seen to go smaller: how it looks so far, and when it will be enough."""
    at = s.whole_at or s.end
    when = datetime.fromtimestamp(at, UTC).strftime("%H:%M UTC")
    so_far = f"; so far {chosen.option.shape.label()} would do" if chosen is not None else ""
    text = (
        f"{lasting(s.end - s.start)} of {lasting(s.wanted_s or 0.0)} were seen, so all of this is provisional{so_far}; "
        f"a smaller shape may be proposed from about {when}"
    )
    return Reason("GATHERING", text, {"seen_s": s.end - s.start, "wanted_s": s.wanted_s or 0.0, "whole_at": at})


def _enough_capacity(s: Situation, chosen: Judgement) -> Reason:
    """Why a smaller shape, where no single signal calls for it."""
    numbers = {"growth": s.policy.growth}
    text = (
        f"{chosen.option.shape.label()} would meet the objective at {s.policy.growth:g} times the load, and costs less"
    )
    return Reason("LESS_WOULD_DO", text, numbers)


def at_rest(s: Situation, findings: Sequence[Finding], catalogue: Catalogue) -> Decision | None:
    """The decision for an endpoint that has had next to no requests for days: the fewest replicas that the policy allows and that
    would have held what was under way at the busiest moment. None: this is no such endpoint.

    Nothing is replayed: there is no load to replay.
    """
    quiet = next((f.reason for f in findings if f.reason.code == "LITTLE_TRAFFIC"), None)
    plain, present = s.shape.with_(schedule=None), most_replicas(s.shape)
    if quiet is None or present is None or any(f.refutes for f in findings):
        return None
    slots = s.shape.engine.get("max_num_seqs")
    each = 0.5 * slots if isinstance(slots, int) else 1.0
    fewer = sorted(
        (c for c in candidates(plain, s.policy, catalogue) if c == with_most(plain, most_replicas(c) or 0)),
        key=lambda c: most_replicas(c) or 0,
    )
    peak = quiet.numbers["running_most"]
    found = next((c for c in fewer if (most_replicas(c) or 0) * each >= peak), plain)
    if (most_replicas(found) or 0) >= present:
        text = f"it is as small as the policy allows; pay by token, or scale to zero, for {quiet.numbers['requests']:.0f} requests in so long"
        return Decision(None, (quiet, Reason("SMALLEST_ALREADY", text)))
    current = current_of(s, catalogue, None)
    why = f"at most {peak:.0f} requests were under way at once; by what was observed, not replayed"
    option = Option(found, money_of(s, catalogue, found), None, "chosen", why)
    advice = _recommendation(s, current.option, option, (option, current.option), (quiet,), catalogue)
    advice = replace(
        advice, risk="medium", risk_reasons=("it is sized by what was observed; there is no load to replay",)
    )
    return Decision(advice, (), (option, current.option))


def request(s: Situation, wanted: Shape, catalogue: Catalogue, predictor: Predictor, by: str) -> Recommendation:
    """A change that a person asks for: the same replay and figures, within the same guardrails, and no judgement withheld.

    Raises ValueError with every guardrail that it breaks, or where it changes nothing.
    """
    broken = violations(wanted, s.shape, s.policy, catalogue)
    if wanted == s.shape:
        broken = ["this is the shape that it has already"]
    if broken:
        raise ValueError("; ".join(broken))
    catalogue = of_platform(s, catalogue, predictor)
    judged = replayed_whole(s, wanted, catalogue, predictor)
    try:
        at_present: Prediction | None = predictor.predict(s.shape, 1.0)
    except CannotPredict:
        at_present = None
    current = current_of(s, catalogue, at_present)
    proposed = replace(judged.option, verdict="chosen", why=f"asked for by {by}; {judged.option.why}")
    reasons = (Reason("REQUESTED", f"asked for by {by}"),)
    return _recommendation(s, current.option, proposed, (proposed, current.option), reasons, catalogue)


def _grow_signals(findings: Sequence[Finding]) -> list[Finding]:
    """A breach is what hurts; what saturates beside it says why."""
    if not any(f.kind == "breach" for f in findings):
        return []
    return [f for f in findings if f.kind in ("breach", "saturation")]


def _recommendation(
    s: Situation,
    current: Option,
    proposed: Option,
    options: Sequence[Option],
    reasons: Sequence[Reason],
    catalogue: Catalogue,
) -> Recommendation:
    before, after = current.money.per_hour, proposed.money.per_hour
    if before is None or after is None:
        before, after = cost_of(s, catalogue, current.shape), cost_of(s, catalogue, proposed.shape)
    direction: Direction = "reshape"
    if before == after:  # a rate limit costs nothing, whatever it is
        before, after = (float(bought(option.shape)) for option in (current, proposed))
    if before is not None and after is not None and before != after:
        direction = "grow" if after > before else "shrink"
    hourly = (current.money.per_hour, proposed.money.per_hour)
    saving = per_month(hourly[0] - hourly[1]) if hourly[0] is not None and hourly[1] is not None else None
    if s.provisional:
        current, proposed = (_wider(option, s) for option in (current, proposed))
        options = [proposed if o.verdict == "chosen" else current if o.verdict == "current" else o for o in options]
    risk, risk_reasons = _risk(s, direction, proposed)
    return Recommendation(
        endpoint=s.endpoint,
        direction=direction,
        current=current,
        proposed=proposed,
        reasons=tuple(reasons),
        options=tuple(options),
        saving_per_month=saving,
        risk=risk,
        risk_reasons=tuple(risk_reasons),
        workload=_workload(s),
        evidence=s.evidence,
        observed=tuple(ObservedTarget.of(attainment(s.windows, target)) for target in s.objective.targets),
    )


def _wider(option: Option, s: Situation) -> Option:
    """An option of which less was seen than is wanted: the sampling error goes by the square root of what was seen."""
    if option.prediction is None or not s.wanted_s:
        return option
    by = min(MOST_WIDENING, math.sqrt(s.wanted_s / (s.end - s.start)))
    metrics = {name: interval.wider(by) for name, interval in option.prediction.metrics.items()}
    return replace(option, prediction=replace(option.prediction, metrics=metrics))


def _risk(s: Situation, direction: Direction, proposed: Option) -> tuple[Risk, list[str]]:
    prediction = proposed.prediction
    if prediction is None:
        return "high", ["nothing supports a prediction for this shape"]
    reasons: list[str] = []
    risk: Risk = "medium" if direction == "shrink" or s.provisional else "low"
    if s.provisional:
        seen = f"{lasting(s.end - s.start)} of {lasting(s.wanted_s or 0.0)}"
        reasons.append(f"provisional: {seen} were seen, and the intervals are wider for it")
    worst, name = worst_of(s, prediction, "high")
    if worst > 1:
        reasons.append(f"at the high end of its prediction, the {phrase(name)} is at {worst:.0%} of its limit")
        risk = "high" if worst_of(s, prediction, "mid")[0] > 1 else "medium"
    if prediction.saturates > 0:
        reasons.append(f"it saturates in {prediction.saturates:.0%} of the replays")
        risk = "high"
    if prediction.extrapolates:
        reasons.append("the load on each replica, or its hardware, is beyond what the calibration has seen")
        risk = "high" if direction == "shrink" else "medium" if risk == "low" else risk
    if direction == "shrink" and (never := _never_seen(s, proposed)):
        reasons.append(never)
        risk = "high"
    if proposed.shape.schedule is not None:
        steps = len(proposed.shape.schedule.changes()) / 7
        reasons.append(
            f"Flyball must be running when its steps are due, {steps:.0f} a day: without it the replicas stay what they are"
        )
    unmeasured = [
        phrase(t.name)
        for t in s.objective.targets
        if prediction.error.get(t.name) is None and t.name in prediction.metrics
    ]
    if unmeasured:
        reasons.append(
            f"the error of the prediction of {' and of '.join(unmeasured)} is not measured here yet: a prior is used"
        )
    reasons += prediction.notes
    return risk, reasons


def _never_seen(s: Situation, proposed: Option) -> str | None:
    """That a smaller shape rests on a limit which is only stated, and was never reached. None: it does not."""
    before, after = s.serving(s.shape), s.serving(proposed.shape)
    running = proposed.prediction.metrics.get("running_mean") if proposed.prediction is not None else None
    slots = s.shape.engine.get("max_num_seqs")
    if not (s.stated and before and after and running) or proposed.shape.engine.get("max_num_seqs") != slots:
        return None
    seen = max((w.gauges["running"].maximum for w in s.windows if "running" in w.gauges), default=0.0) / before
    busy = running.mid / after
    busy += 2 * math.sqrt(busy)  # of a Poisson number, one in forty is above it
    if busy <= seen:
        return None
    return (
        f"up to {busy:.0f} sequences would run on a replica, and more than {seen:.0f} were never seen to: that it can is only "
        f"stated (max_num_seqs {slots})"
    )


def _workload(s: Situation) -> dict[str, float]:
    rates = [r for w in s.windows if (r := w.rate("requests")) is not None]
    load: dict[str, float] = {}
    mean = mean_rate(s.windows, "requests")
    if mean is not None:
        load["requests_per_s"] = mean
        if load["requests_per_s"] > 0:
            load["peak_factor"] = max(rates) / load["requests_per_s"]
    requests = total(s.windows, "requests")
    for name, counter in (("prompt_tokens_mean", "prompt_tokens"), ("output_tokens_mean", "output_tokens")):
        tokens = total(s.windows, counter)
        if tokens is not None and requests:
            load[name] = tokens / requests
    prompt, cached = total(s.windows, "prompt_tokens"), total(s.windows, "cached_prompt_tokens")
    if prompt and cached is not None:
        load["cached_share"] = cached / prompt
    return load
