"""The decision: which shape, if any, is worth changing to; and why not the others.

A chain that can be read from top to bottom: evidence, candidates, replay, objective with margin, hysteresis, cost, disruption.
"Any signal may grow, all must agree to shrink": to grow, a shape must meet the objective with margin at the load observed, by the
middle of its prediction; to shrink, at that load times ``policy.growth``, by the *high* end. What lies between changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from actuators.shape import Shape
from analyzers.finding import Finding, Reason
from analyzers.findings import Situation, missing_evidence
from analyzers.objective import Target, attainment, total
from analyzers.policy import HOURS_PER_MONTH, Catalogue, candidates, violations
from analyzers.prediction import CannotPredict, Prediction
from analyzers.recommendation import Direction, Money, Option, Recommendation, Risk

#: (shape, load factor) -> Prediction, at the observed workload times the factor. Raises CannotPredict.
Predict = Callable[[Shape, float], Prediction]

#: A shape that saturates in more than this share of the draws is not proposed.
MAX_SATURATION = 0.1
#: Where nothing meets the objective, the best that still improves its worst metric by this share is proposed.
WORTHWHILE_RELIEF = 0.2


@dataclass(frozen=True, slots=True)
class Decision:
    """A recommendation, or why there is none."""

    recommendation: Recommendation | None
    hold: tuple[Reason, ...] = ()
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True)
class _Judged:
    option: Option
    cost: float | None
    """US dollars per hour; where the current size has no price, replicas of that size instead."""
    worst: float | None
    """Largest of predicted / limit over the objective's targets; 1 is just met. None: cannot be predicted."""
    feasible: bool
    roomy: bool
    """Feasible also at the grown load, by the high end: what a smaller shape must be."""


def recommend(s: Situation, findings: Sequence[Finding], catalogue: Catalogue, predict: Predict) -> Decision:
    """Judge every allowed shape and choose. Pure: the same values in, the same decision out."""
    lacking = missing_evidence(s)
    if s.shape.replicas is None:
        lacking.append(Reason("UNKNOWN_SHAPE", "the replica count is not known; set shape.replicas or an actuator"))
    if lacking:
        return Decision(None, tuple(lacking))
    try:
        at_present = predict(s.shape, 1.0)
    except CannotPredict as error:
        return Decision(None, (Reason(error.code, error.detail),))
    others = [shape for shape in candidates(s.shape, s.policy, catalogue) if shape != s.shape]
    judged = [_judge(s, shape, catalogue, predict) for shape in others]
    current = _current(s, catalogue, at_present)
    grow = _grow_signals(findings)
    chosen, hold = _relief(s, judged, current) if grow else _saving(s, findings, judged, current)
    options = _ranked(current, chosen, judged)
    if chosen is None:
        return Decision(None, tuple(hold), options)
    reasons = tuple(f.reason for f in (grow or findings) if f.kind in ("breach", "saturation", "idle")) + tuple(hold)
    return Decision(_recommendation(s, current.option, options[0], options, reasons, catalogue), (), options)


def request(s: Situation, wanted: Shape, catalogue: Catalogue, predict: Predict, by: str) -> Recommendation:
    """A change that a person asks for: the same replay and figures, within the same guardrails, and no judgement withheld.

    Raises ValueError with every guardrail that it breaks, or where it changes nothing.
    """
    broken = violations(wanted, s.shape, s.policy, catalogue)
    if wanted == s.shape:
        broken = ["this is the shape that it has already"]
    if broken:
        raise ValueError("; ".join(broken))
    judged = _judge(s, wanted, catalogue, predict)
    try:
        at_present: Prediction | None = predict(s.shape, 1.0)
    except CannotPredict:
        at_present = None
    current = _current(s, catalogue, at_present)
    proposed = replace(judged.option, verdict="chosen", why=f"asked for by {by}; {judged.option.why}")
    reasons = (Reason("REQUESTED", f"asked for by {by}"),)
    return _recommendation(s, current.option, proposed, (proposed, current.option), reasons, catalogue)


def _grow_signals(findings: Sequence[Finding]) -> list[Finding]:
    """A breach is what hurts; what saturates beside it says why."""
    if not any(f.kind == "breach" for f in findings):
        return []
    return [f for f in findings if f.kind in ("breach", "saturation")]


def _judge(s: Situation, shape: Shape, catalogue: Catalogue, predict: Predict) -> _Judged:
    money = money_of(s, catalogue, shape)
    cost = _cost(s, catalogue, shape)
    try:
        prediction, grown = predict(shape, 1.0), predict(shape, s.policy.growth)
    except CannotPredict as error:
        return _Judged(Option(shape, money, None, "CANNOT_PREDICT", error.detail), cost, None, False, False)
    unknown = [t.name for t in latency_targets(s) if t.name not in prediction.metrics or t.name not in grown.metrics]
    if unknown or not latency_targets(s):
        why = f"the replay does not tell {', '.join(unknown) or 'any target of the objective'}, so nothing is claimed for it"
        return _Judged(Option(shape, money, prediction, "CANNOT_PREDICT", why), cost, None, False, False)
    worst, name = _worst(s, prediction, "mid")
    meets = worst <= 1 - s.policy.margin and prediction.saturates <= MAX_SATURATION
    grown_worst, _ = _worst(s, grown, "high")
    roomy = meets and grown_worst <= 1 - s.policy.margin and grown.saturates == 0
    if prediction.saturates > MAX_SATURATION:
        verdict, why = "SATURATES", f"its queue would grow without end in {prediction.saturates:.0%} of the replays"
    elif not meets:
        verdict, why = "MISSES_OBJECTIVE", f"{name} would be at {worst:.0%} of its limit"
    elif not roomy:
        verdict = "NO_HEADROOM"
        why = f"{name} would be at {worst:.0%} of its limit, and above it at {s.policy.growth:g} times the load"
    else:
        verdict, why = "MEETS", f"{name} would be at {worst:.0%} of its limit"
    return _Judged(Option(shape, money, prediction, verdict, why), cost, worst, meets, roomy)


def _current(s: Situation, catalogue: Catalogue, prediction: Prediction | None) -> _Judged:
    observed = [
        (a.observed / t.limit, t) for t in s.objective.targets if (a := attainment(s.windows, t)).observed is not None
    ]
    worst, target = max(observed, key=lambda pair: pair[0], default=(None, None))
    why = f"{target.name} is at {worst:.0%} of its limit, as observed" if target is not None else "not judged"
    option = Option(s.shape, money_of(s, catalogue, s.shape), prediction, "current", why)
    return _Judged(option, _cost(s, catalogue, s.shape), worst, worst is not None and worst <= 1, False)


def _relief(s: Situation, judged: Sequence[_Judged], current: _Judged) -> tuple[_Judged | None, list[Reason]]:
    feasible = [j for j in judged if j.feasible and j.cost is not None]
    if feasible:
        return min(feasible, key=lambda j: _preference(j, current)), []
    predicted = current.option.prediction
    at_present, _ = _worst(s, predicted, "mid") if predicted else (current.worst or 1.0, "")
    better = [j for j in judged if j.worst is not None and j.worst < at_present * (1 - WORTHWHILE_RELIEF)]
    if not better:
        text = (
            "no allowed shape would meet the objective, or come clearly nearer; widen the policy, or ease the objective"
        )
        return None, [Reason("NO_SHAPE_MEETS", text, {"considered": float(len(judged))})]
    best = min(better, key=lambda j: (j.worst or 0.0, _preference(j, current)))
    text = "no allowed shape would meet the objective; this one comes nearest"
    return best, [Reason("BEST_EFFORT", text, {"worst_share_of_limit": best.worst or 0.0})]


def _saving(
    s: Situation, findings: Sequence[Finding], judged: Sequence[_Judged], current: _Judged
) -> tuple[_Judged | None, list[Reason]]:
    against = _against_shrinking(s, findings, current)
    if against:
        return None, against
    if current.cost is None:
        return None, [Reason("PRICE_UNKNOWN", "without a price for this size, no saving can be shown")]
    cheaper = [j for j in judged if j.roomy and j.cost is not None and j.cost < current.cost]
    worth = [j for j in cheaper if _worth_it(s, j, current)]
    if worth:
        return min(worth, key=lambda j: _preference(j, current)), []
    if cheaper:
        best = min(cheaper, key=lambda j: _preference(j, current))
        text = f"{best.option.shape.label()} would do, but saves too little to be worth a change"
        return None, [Reason("SAVING_TOO_SMALL", text)]
    return None, [Reason("RIGHT_SIZE", "the objective is met, and no cheaper allowed shape would meet it with margin")]


def _against_shrinking(s: Situation, findings: Sequence[Finding], current: _Judged) -> list[Reason]:
    """Every signal that forbids a smaller shape; empty when all agree."""
    against = [f.reason for f in findings if f.kind == "saturation" or f.reason.code in ("LOAD_RISING", "TTFT_RISING")]
    prediction = current.option.prediction
    for target in s.objective.targets:
        interval = prediction.metrics.get(target.name) if prediction else None
        seen = attainment(s.windows, target).at_least
        if interval is not None and seen is not None and seen > interval.high:
            numbers = {"observed": seen, "predicted_high": interval.high}
            text = (
                f"the model is too hopeful here: {target.name} is at least {seen:.3g} s, at most {interval.high:.3g} s were "
                "predicted for the shape that it has; a smaller one is not proposed on its word"
            )
            against.append(Reason("MODEL_TOO_HOPEFUL", text, numbers))
    return against


def _worth_it(s: Situation, judged: _Judged, current: _Judged) -> bool:
    assert judged.cost is not None
    assert current.cost is not None
    if judged.cost > current.cost * (1 - s.policy.min_saving_share):
        return False
    before, after = current.option.money.per_hour, judged.option.money.per_hour
    if before is None or after is None:  # costs are replica counts here: the share above is all that can be said
        return True
    return (before - after) * HOURS_PER_MONTH >= s.policy.min_saving_per_month


def _preference(judged: _Judged, current: _Judged) -> tuple[float, int, float]:
    """Cheapest; then the one that touches least; then the one with more room."""
    a, b = judged.option.shape, current.option.shape
    touched = sum((a.size != b.size, a.replicas != b.replicas, dict(a.engine) != dict(b.engine)))
    return (judged.cost if judged.cost is not None else float("inf"), touched, judged.worst or 0.0)


def _cost(s: Situation, catalogue: Catalogue, shape: Shape) -> float | None:
    if catalogue.per_hour(s.shape) is not None:
        return catalogue.per_hour(shape)
    return float(shape.replicas) if shape.size == s.shape.size and shape.replicas is not None else None


def _worst(s: Situation, prediction: Prediction, end: str) -> tuple[float, str]:
    """The largest share of its limit that any predicted target takes, and that target's name."""
    shares = [
        (getattr(interval, end) / target.limit, target.name)
        for target in s.objective.targets
        if (interval := prediction.metrics.get(target.name)) is not None
    ]
    return max(shares, default=(0.0, "nothing that is predicted"))


def money_of(s: Situation, catalogue: Catalogue, shape: Shape) -> Money:
    """What the shape costs, and what a token and a request cost on it at the load observed: reserved, whether used or not."""
    per_hour = catalogue.per_hour(shape)
    hours = s.evidence.coverage * (s.end - s.start) / 3600
    tokens = [t for name in ("prompt_tokens", "output_tokens") if (t := total(s.windows, name)) is not None]
    requests = s.evidence.requests
    if per_hour is None or hours <= 0:
        return Money(per_hour, None, None)
    spent = per_hour * hours
    per_1k = 1000 * spent / sum(tokens) if len(tokens) == 2 and sum(tokens) > 0 else None
    return Money(per_hour, per_1k, spent / requests if requests else None)


def _ranked(current: _Judged, chosen: _Judged | None, judged: Sequence[_Judged]) -> tuple[Option, ...]:
    rank: Mapping[str, int] = {"MEETS": 0, "NO_HEADROOM": 1, "MISSES_OBJECTIVE": 2, "SATURATES": 3, "CANNOT_PREDICT": 4}
    rest = sorted(
        (j for j in judged if j is not chosen), key=lambda j: (rank[j.option.verdict], *_preference(j, current))
    )
    first = [replace(chosen.option, verdict="chosen")] if chosen is not None else []
    return (*first, current.option, *(j.option for j in rest))


def _recommendation(
    s: Situation,
    current: Option,
    proposed: Option,
    options: Sequence[Option],
    reasons: Sequence[Reason],
    catalogue: Catalogue,
) -> Recommendation:
    before, after = _cost(s, catalogue, current.shape), _cost(s, catalogue, proposed.shape)
    direction: Direction = "reshape"
    if before is not None and after is not None and before != after:
        direction = "grow" if after > before else "shrink"
    hourly = (current.money.per_hour, proposed.money.per_hour)
    saving = (hourly[0] - hourly[1]) * HOURS_PER_MONTH if hourly[0] is not None and hourly[1] is not None else None
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
    )


def _risk(s: Situation, direction: Direction, proposed: Option) -> tuple[Risk, list[str]]:
    prediction = proposed.prediction
    if prediction is None:
        return "high", ["nothing supports a prediction for this shape"]
    reasons: list[str] = []
    risk: Risk = "medium" if direction == "shrink" else "low"
    worst, name = _worst(s, prediction, "high")
    if worst > 1:
        reasons.append(f"at the high end of its prediction, {name} is at {worst:.0%} of its limit")
        risk = "high" if _worst(s, prediction, "mid")[0] > 1 else "medium"
    if prediction.saturates > 0:
        reasons.append(f"it saturates in {prediction.saturates:.0%} of the replays")
        risk = "high"
    if prediction.extrapolates:
        reasons.append("the load on each replica, or its hardware, is beyond what the calibration has seen")
        risk = "high" if direction == "shrink" else "medium" if risk == "low" else risk
    unmeasured = [
        t.name for t in s.objective.targets if prediction.error.get(t.name) is None and t.name in prediction.metrics
    ]
    if unmeasured:
        reasons.append(
            f"the error of the prediction of {', '.join(unmeasured)} is not measured here yet: a prior is used"
        )
    reasons += prediction.notes
    return risk, reasons


def _workload(s: Situation) -> dict[str, float]:
    rates = [r for w in s.windows if (r := w.rate("requests")) is not None]
    load: dict[str, float] = {}
    if rates:
        load["requests_per_s"] = sum(rates) / len(rates)
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


def latency_targets(s: Situation) -> list[Target]:
    """The objective's targets that a replay can predict."""
    return [t for t in s.objective.targets if t.quantile is not None]
