"""Rows as the daemon would have written them, with figures that a person can check by head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actuators.shape import Operation, Plan, Shape
from agent.cases import guardrails_of
from agent.settings import Settings
from agent.store import Store, changes, control, fleet, outbox, recommendations, savings, tunes, windows
from agent.store import audit as audit_table
from agent.tune.request import Budget, Effort, Load, TuneRequest
from analyzers.finding import Evidence, Finding, Reason, Severity
from analyzers.finding import Kind as FindingKind
from analyzers.money import Tariff, Unit
from analyzers.objective import Objective
from analyzers.prediction import Interval, Prediction
from analyzers.premortem import ADVERSITIES, Premortem
from analyzers.recommendation import Money, ObservedTarget, Option, Recommendation
from collectors.sketch import Sketch
from collectors.window import Gauge, Window

#: A whole hour, so that roll-ups begin with it.
T0 = 1_800_000_000.0
#: Of an endpoint in the mode approve whose settings say nothing more of its policy.
POLICY = guardrails_of(
    Settings(endpoints=[{"name": "chat", "url": "http://chat.invalid", "mode": "approve"}]), "chat"
).hash
NASTY = "<script>alert(1)</script>"


def window(
    start: float,
    *,
    endpoint: str = "chat",
    source: str = "vllm",
    duration_s: float = 60.0,
    coverage: float = 1.0,
    counts: Mapping[str, float] | None = None,
    ttft: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4),
    running: float | None = 4.0,
    waiting: float | None = 0.0,
    errors: Mapping[str, int] | None = None,
) -> Window:
    """By default 120 requests of 100 prompt and 50 output tokens in a minute, without errors."""
    whole = {"requests": 120.0, "errors": 0.0, "prompt_tokens": 12_000.0, "output_tokens": 6_000.0}
    gauges = {
        name: Gauge(value, value + 1.0, value)
        for name, value in (("running", running), ("waiting", waiting))
        if value is not None
    }
    return Window(
        endpoint=endpoint,
        source=source,
        start=start,
        duration_s=duration_s,
        coverage=coverage,
        targets=1,
        counts=(whole if counts is None else counts) if coverage > 0 else {},
        sketches={"ttft_s": Sketch.from_values(ttft)} if ttft and coverage > 0 else {},
        gauges=gauges if coverage > 0 else {},
        errors=errors or {},
        facts={"model": "tiny"},
    )


BEFORE = Shape(replicas=2, size="small", engine={"max_num_seqs": 64})
AFTER = Shape(replicas=1, size="small", engine={"max_num_seqs": 64})


def plan(endpoint: str = "chat", before: Shape = BEFORE, after: Shape = AFTER, version: str = "v1") -> Plan:
    steps = (Operation("scale", {"replicas": after.replicas}, 60.0, f"scale to {after.replicas}"),)
    return Plan(endpoint, "emulated", before, after, version, steps, False, 0.0, "scale back")


def prediction(mid: float = 0.4) -> Prediction:
    interval = Interval(mid * 0.8, mid, mid * 1.2)
    return Prediction({"ttft_p95_s": interval}, 0.0, "simulation", {"ttft_p95_s": 0.1})


def advice(
    endpoint: str = "chat", *, text: str = "half of it idles", before: Shape = BEFORE, after: Shape = AFTER
) -> Recommendation:
    """Two replicas at a dollar an hour become one: 730 dollars a month less."""
    current = Option(before, Money(2.0, 0.02, 0.001), prediction(0.3), "current", "ttft_p95_s is at 40% of its limit")
    chosen = Option(
        after, Money(1.0, 0.01, 0.0005), prediction(0.4), "chosen", "ttft_p95_s would be at 40% of its limit"
    )
    other = Option(after.with_(size="big"), Money(None, None, None), None, "CANNOT_PREDICT", "never measured")
    return Recommendation(
        endpoint=endpoint,
        direction="shrink",
        current=current,
        proposed=chosen,
        reasons=(Reason("LOW_OCCUPANCY", text, {"running_peak": 4.0}),),
        options=(chosen, current, other),
        saving_per_month=730.0,
        risk="medium",
        risk_reasons=("its error is not measured yet",),
        premortem=Premortem((ADVERSITIES[0],), (ADVERSITIES[5],)),
        workload={"requests_per_s": 2.0},
        evidence=Evidence(T0, T0 + 3600, 60, 1.0, 7200.0, "vllm"),
        observed=(ObservedTarget("ttft_p95_s", 1.0, 0.36, 0.25, 0.5, True),),
    )


def recommendation_row(
    identity: str, endpoint: str = "chat", *, now: float = T0, state: str = "proposed", **values: Any
) -> dict[str, Any]:
    body, steps = advice(endpoint, text=values.pop("text", "half of it idles")), plan(endpoint)
    return {
        "id": identity,
        "endpoint": endpoint,
        "fingerprint": body.fingerprint,
        "revision": 1,
        "state": state,
        "state_reason": "",
        "state_by": "flyball",
        "requested_by": "flyball",
        "plan_hash": steps.hash,
        "plan": steps.as_dict(),
        "policy_hash": POLICY,
        "body": body.as_dict(),
        "saving_per_month": 730.0,
        "created_at": now,
        "refreshed_at": now,
        "expires_at": now + 86_400,
        "snoozed_until": None,
        "decided_at": None,
    } | values


def change_row(
    identity: str, endpoint: str = "chat", *, now: float = T0, state: str = "applying", **values: Any
) -> dict[str, Any]:
    steps = plan(endpoint)
    return {
        "id": identity,
        "recommendation_id": f"r-{identity}",
        "endpoint": endpoint,
        "state": state,
        "state_reason": "",
        "approved_by": "cli:ann",
        "plan_hash": steps.hash,
        "plan": steps.as_dict(),
        "prediction": prediction().as_dict(),
        "epoch": 1,
        "created_at": now,
    } | values


def ledger_row(change_id: str, metric: str = "ttft_p95_s", endpoint: str = "chat", **values: Any) -> dict[str, Any]:
    return {
        "change_id": change_id, "endpoint": endpoint, "metric": metric, "method": "simulation", "low": 0.32,
        "predicted": 0.4, "high": 0.48, "before": 0.3, "observed": 0.44, "observed_low": 0.25, "observed_high": 0.5,
        "inside": True, "error": 0.0,
        "comparable": True, "at": T0,
    } | values  # fmt: skip


def shape_row(now: float = T0, **values: Any) -> dict[str, Any]:
    return {
        "shape": BEFORE.as_dict(), "shape_version": "v1", "ready": True, "detail": "", "seen_at": now, "price_per_hour": 2.0,
    } | values  # fmt: skip


def finding(
    endpoint: str = "chat",
    code: str = "LOW_OCCUPANCY",
    text: str = "half of it idles",
    *,
    kind: FindingKind = "idle",
    severity: Severity = "info",
) -> Finding:
    evidence = Evidence(T0, T0 + 3600, 60, 1.0, 7200.0, "vllm")
    return Finding(endpoint, kind, severity, Reason(code, text, {"running_peak": 4.0}), evidence)


def fill(store: Store, *, now: float = T0 + 3600, text: str = "half of it idles") -> None:
    """The hour before ``now``: telemetry with a gap of ten minutes, one open recommendation, one succeeded and one rolled-back change."""
    start = now // 60 * 60 - 3600
    minutes = [window(start + 60 * i, coverage=0.0 if 20 <= i < 30 else 1.0) for i in range(60)]
    with store.write() as db:
        windows.save(db, minutes, {"chat": Tariff.of({Unit.HOUR: 2.0})})
        fleet.saw_shape(db, "chat", shape_row(now))
        fleet.found(db, "chat", [finding(text=text)], now)
        fleet.source_health(db, [_source("chat", "vllm", now)])
        recommendations.insert(db, recommendation_row("aaaa0001", now=now, text=text))
        _ended(db, "cccc0001", "succeeded", start + 600, text, {"per_hour_before": 2.0, "per_hour_after": 1.0})
        _ended(db, "cccc0002", "rolled_back", start + 1800, text, {"per_hour_before": 2.0, "per_hour_after": 1.0})
        changes.add_ledger(db, [ledger_row("cccc0001", at=start + 900)])
        changes.add_ledger(db, [ledger_row("cccc0002", observed=0.8, inside=False, error=1.0, at=start + 2100)])
        savings.append(db, saving_body("cccc0001", start=start - 3600, unknown=[text]), now)
        control.acquire(db, "leader", "host:1", 3600.0)
        control.put(db, "heartbeat", {"collect": {"last_ok_at": now, "errors": 0}}, now, "host:1")
        audit_table.append(db, at=now, actor="cli:ann", action="look", subject="flyball")
        outbox.put(db, channel="slack", kind="recommendation", subject="aaaa0001", revision=1, now=now)


def saving_body(change_id: str, endpoint: str = "chat", *, start: float = T0 - 3600, **values: Any) -> dict[str, Any]:
    """Two hours' worth of replicas for the price of one."""
    return {
        "endpoint": endpoint, "change_id": change_id, "changes": [change_id], "period_start": start, "period_end": start + 3600,
        "since": start, "given_up": BEFORE.as_dict(), "serves": AFTER.as_dict(), "method": "m", "objective": {}, "error": {},
        "cold_start_s": 300.0, "seed": 7, "prices": [], "evidence": "e", "ours": True, "spent_usd": 1.0,
        "would_cost_usd": {"low": 1.8, "mid": 2.0, "high": 2.3}, "saved_usd": {"low": 0.8, "mid": 1.0, "high": 1.3},
        "hours_compared": 1.0, "hours_unknown": 0.0, "missed_s": 60.0, "missed_unknown_s": 0.0,
        "would_miss_s": {"low": 0.0, "mid": 120.0, "high": 240.0}, "would_miss_unknown_s": 0.0, "requests": 3600, "replays": 16,
        "notes": [], "unknown": [],
    } | values  # fmt: skip


def _ended(db: Any, identity: str, state: str, at: float, text: str, outcome: Mapping[str, Any]) -> None:
    changes.start(db, change_row(identity, now=at))
    steps = plan()
    operation = {"name": "scale", "args": {}, "deadline_s": 60.0, "summary": steps.operations[0].summary}
    changes.intend(
        db,
        {"change_id": identity, "direction": "apply", "step": 0, "token": f"{identity}/apply/0", "operation": operation,
         "epoch": 1, "intent_at": at},
    )  # fmt: skip
    changes.settle(db, identity, "apply", 0, state="done", detail=text, epoch=1, done_at=at + 5)
    changes.move(
        db, identity, from_states=["applying"], to=state, now=at + 300, reason=text, applied_at=at + 10,
        finished_at=at + 300, outcome=dict(outcome),
    )  # fmt: skip


def _source(endpoint: str, source: str, now: float) -> dict[str, Any]:
    return {
        "endpoint": endpoint, "source": source, "last_ok_at": now, "last_error_at": None, "last_error": None,
        "failures": 0, "failures_in_a_row": 0, "next_try_at": None,
    }  # fmt: skip


def tune_load(kind: str, rate: float | None, e2e_s: float) -> dict[str, Any]:
    """One load of a trial, as far as an answer looks at it."""
    return {
        "kind": kind, "rate": rate, "figures": {"e2e_s": {"mean": e2e_s}}, "server": {}, "verdict": "met", "invalid": None,
        "targets": [{"target": "ttft_p95_s", "limit": 0.5, "observed": 0.25, "low": None, "high": None}],
    }  # fmt: skip


def tune_of_two(store: Store, identity: str, *, now: float = T0, text: str = "replicas=2") -> None:
    """One under way: its first shape is measured, the second one failed for the reason ``text``, which is its name too."""
    two = ((BEFORE.label(), BEFORE), (text, AFTER))
    asked = TuneRequest(
        "chat", BEFORE, two, Objective.from_mapping({"ttft_p95_s": 0.5}), None, Load(), Effort(), Budget()
    )
    row = {
        "id": identity, "endpoint": "chat", "question": asked.as_dict(), "digest": asked.digest, "original": BEFORE.as_dict(),
        "started_by": f"cli:{text}", "started_at": now,
    }  # fmt: skip
    steps = [tune_load("single", None, 2.0), tune_load("rate", 4.0, 5.0)]
    body = {"usd_per_hour": 3.6, "promised": None, "output_tokens": 50.0, "sure": True, "steps": steps}
    with store.write() as db:
        planned = [{"number": i, "name": name, "shape": shape.as_dict()} for i, (name, shape) in enumerate(two)]
        assert tunes.start(db, row, planned)
        tunes.keep(db, identity, 0, state="done", body=body, limit_low=4.0, limit_high=4.4, busy_s=60.0, spent_usd=0.06)
        tunes.keep(db, identity, 1, state="failed", why=text, busy_s=6.0)
