"""The decision: which shape, if any, is worth changing to; and why not the others.

A chain that can be read from top to bottom: evidence, candidates, replay, objective with margin, hysteresis, cost, disruption.
"Any signal may grow, all must agree to shrink": to grow, a shape must meet the objective with margin at the load observed, by the
middle of its prediction; to shrink, at that load times ``policy.growth``, by the *high* end. What lies between changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from actuators.shape import Shape
from analyzers.choice import Choice, cost_of, current_of, replayed_whole, worst_of
from analyzers.finding import Finding, Reason
from analyzers.findings import Situation, missing_evidence
from analyzers.money import per_month
from analyzers.objective import total
from analyzers.policy import Catalogue, most_replicas, violations
from analyzers.prediction import CannotPredict, Prediction, Predictor
from analyzers.recommendation import Direction, Option, Recommendation, Risk


@dataclass(frozen=True, slots=True)
class Decision:
    """A recommendation, or why there is none."""

    recommendation: Recommendation | None
    hold: tuple[Reason, ...] = ()
    options: tuple[Option, ...] = ()


def recommend(s: Situation, findings: Sequence[Finding], catalogue: Catalogue, predictor: Predictor) -> Decision:
    """Choose among the allowed shapes. Pure: the same values in, the same decision out."""
    lacking = missing_evidence(s)
    if most_replicas(s.shape) is None:
        text = "the replica count is not known; set shape.replicas or shape.autoscaling, or an actuator"
        lacking.append(Reason("UNKNOWN_SHAPE", text))
    if lacking:
        return Decision(None, tuple(lacking))
    try:
        at_present = predictor.predict(s.shape, 1.0)
    except CannotPredict as error:
        return Decision(None, (Reason(error.code, error.detail),))
    choice = Choice(s, catalogue, predictor, current_of(s, catalogue, at_present))
    grow = _grow_signals(findings)
    chosen, hold = choice.relief() if grow else choice.saving(findings)
    options = choice.ranked(chosen)
    if chosen is None:
        return Decision(None, tuple(hold), options)
    reasons = tuple(f.reason for f in (grow or findings) if f.kind in ("breach", "saturation", "idle")) + tuple(hold)
    return Decision(_recommendation(s, choice.current.option, options[0], options, reasons, catalogue), (), options)


def request(s: Situation, wanted: Shape, catalogue: Catalogue, predictor: Predictor, by: str) -> Recommendation:
    """A change that a person asks for: the same replay and figures, within the same guardrails, and no judgement withheld.

    Raises ValueError with every guardrail that it breaks, or where it changes nothing.
    """
    broken = violations(wanted, s.shape, s.policy, catalogue)
    if wanted == s.shape:
        broken = ["this is the shape that it has already"]
    if broken:
        raise ValueError("; ".join(broken))
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
    before, after = cost_of(s, catalogue, current.shape), cost_of(s, catalogue, proposed.shape)
    direction: Direction = "reshape"
    if before is not None and after is not None and before != after:
        direction = "grow" if after > before else "shrink"
    hourly = (current.money.per_hour, proposed.money.per_hour)
    saving = per_month(hourly[0] - hourly[1]) if hourly[0] is not None and hourly[1] is not None else None
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
    worst, name = worst_of(s, prediction, "high")
    if worst > 1:
        reasons.append(f"at the high end of its prediction, {name} is at {worst:.0%} of its limit")
        risk = "high" if worst_of(s, prediction, "mid")[0] > 1 else "medium"
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
