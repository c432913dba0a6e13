"""Every rule, each verdict of it, and which stage heeds it: one pure function is asked by all."""

from __future__ import annotations

from dataclasses import replace
from datetime import time
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actuators.shape import Autoscaling, Need, Shape
from analyzers.guardrails import (
    STAGES,
    ChangeCase,
    ChangeHours,
    Guardrails,
    PlanFacts,
    Stage,
    forbidden,
    obstacle,
    rule_verdicts,
)
from analyzers.policy import Catalogue, Policy

NOW = 1_767_603_600.0  # a Monday, 9:00 UTC
TWO = Shape(replicas=2, size="small", engine={"max_num_seqs": 8})
PRICED = Catalogue(prices={"small": 1.0})
RAILS = Guardrails(
    mode="approve",
    policy=Policy(max_replicas=4, budget_per_month=2200.0, budget_per_hour=3.0, engine={"max_num_seqs": (16,)}),
    catalogue=PRICED,
    cooldown_s=600.0,
    hours=(),
    timezone="UTC",
    auto=frozenset(("grow",)),
    approvers=frozenset(("ada", "bob")),
    quorum=1,
    four_eyes=True,
    fleet_changes_per_day=5,
)
PLAN = PlanFacts(
    hash="sha256:a",
    shown_hash="sha256:a",
    version="v1",
    live_version="v1",
    expires_at=NOW + 60,
    policy_hash=RAILS.hash,
    needs=(),
    by_hand=False,
    by_merge=False,
    direction="grow",
    risk="low",
    approvers=frozenset(("ada",)),
)
CASE = ChangeCase(
    before=TWO,
    after=TWO.with_(replicas=3),
    now=NOW,
    requested_by="flyball",
    paused=None,
    frozen=None,
    under_way=None,
    last_change_at=None,
    fleet_changes=0,
    plan=PLAN,
    approver="ada",
    door="page",
)


def verdict(rule: str, case: ChangeCase = CASE, rails: Guardrails = RAILS) -> str:
    (found,) = [v for v in rule_verdicts(case, rails) if v.rule == rule]
    return found.verdict


def planned(**changed: Any) -> ChangeCase:
    return replace(CASE, plan=replace(PLAN, **changed))


def to(**changed: Any) -> ChangeCase:
    return replace(CASE, after=TWO.with_(**changed))


def test_a_change_that_breaks_no_rule_may_be_made_at_every_stage() -> None:
    verdicts = rule_verdicts(CASE, RAILS)
    assert {v.verdict for v in verdicts} == {"yes"}
    assert all(obstacle(verdicts, stage) is None for stage in get_args(Stage))
    assert {v.rule for v in verdicts} >= set().union(*STAGES.values()), "a stage that heeds a rule that nobody asks"


@pytest.mark.parametrize(
    ("rule", "case", "rails", "word"),
    [
        ("MODE", CASE, replace(RAILS, mode="observe"), "no"),
        ("PAUSE", replace(CASE, paused="by ada"), RAILS, "wait"),
        ("FREEZE", replace(CASE, frozen="it failed"), RAILS, "no"),
        ("FREEZE", replace(CASE, frozen="it failed", requested_by="bob"), RAILS, "yes"),
        ("ONE_AT_A_TIME", replace(CASE, under_way="a change"), RAILS, "wait"),
        ("COOLDOWN", replace(CASE, last_change_at=NOW - 599), RAILS, "wait"),
        ("COOLDOWN", replace(CASE, last_change_at=NOW - 600), RAILS, "yes"),
        ("COOLDOWN", replace(CASE, last_change_at=NOW - 1, requested_by="bob"), RAILS, "yes"),
        ("FLEET_DAY", replace(CASE, fleet_changes=5), RAILS, "wait"),
        ("FLEET_DAY", replace(CASE, fleet_changes=4), RAILS, "yes"),
        ("REPLICAS", replace(CASE, after=Shape()), RAILS, "no"),
        ("MIN_REPLICAS", to(replicas=0), RAILS, "no"),
        ("MAX_REPLICAS", to(replicas=5), RAILS, "no"),
        ("STEP", to(replicas=5), RAILS, "no"),
        ("SIZE", to(size="huge"), RAILS, "no"),
        ("ENGINE", to(engine={"max_num_seqs": 17}), RAILS, "no"),
        ("ENGINE", to(engine={"max_num_seqs": 16}), RAILS, "yes"),
        ("AUTOSCALER", to(autoscaling=Autoscaling(1, 3, {})), RAILS, "no"),
        ("BUDGET_MONTH", to(replicas=4), RAILS, "no"),
        ("BUDGET_HOUR", to(replicas=4), RAILS, "no"),
        ("BUDGET_HOUR", CASE, replace(RAILS, catalogue=Catalogue()), "no"),
        ("CHANGE_WINDOW", CASE, replace(RAILS, hours=(ChangeHours(frozenset((0,)), time(9), time(17)),)), "yes"),
        ("CHANGE_WINDOW", CASE, replace(RAILS, hours=(ChangeHours(frozenset((0,)), time(10), time(17)),)), "wait"),
        ("EXPIRY", planned(expires_at=NOW), RAILS, "no"),
        ("PLAN", planned(hash="sha256:b"), RAILS, "no"),
        ("POLICY", CASE, replace(RAILS, cooldown_s=1.0), "no"),
        ("LIVE", planned(live_version=None), RAILS, "wait"),
        ("LIVE", planned(live_version="v2"), RAILS, "no"),
        ("OWNER", planned(by_hand=True), RAILS, "no"),
        ("QUOTA", planned(needs=(Need("cores", 8.0, 4.0),)), RAILS, "no"),
        ("QUOTA", planned(needs=(Need("cores", 8.0, None),)), RAILS, "yes"),
        ("APPROVAL", planned(approvers=frozenset()), RAILS, "wait"),
        ("APPROVAL", CASE, replace(RAILS, quorum=2), "wait"),
        ("APPROVAL", planned(approvers=frozenset(("ada", "bob"))), replace(RAILS, quorum=2), "yes"),
        ("APPROVAL", planned(approvers=frozenset(("policy",))), RAILS, "no"),
        ("APPROVAL", planned(approvers=frozenset(("policy",))), replace(RAILS, mode="auto"), "yes"),
        ("APPROVAL", planned(approvers=frozenset(("policy",)), risk="high"), replace(RAILS, mode="auto"), "no"),
        ("APPROVAL", planned(approvers=frozenset(("policy",)), direction="shrink"), replace(RAILS, mode="auto"), "no"),
        (
            "APPROVAL",
            planned(approvers=frozenset(("policy",)), needs=(Need("cores", 8.0, None),)),
            replace(RAILS, mode="auto"),
            "no",
        ),
        ("APPROVER", replace(CASE, approver="eve"), RAILS, "no"),
        ("APPROVER", replace(CASE, approver="eve"), replace(RAILS, approvers=frozenset()), "yes"),
        ("FOUR_EYES", replace(CASE, requested_by="ada"), RAILS, "no"),
        ("FOUR_EYES", replace(CASE, requested_by="ada"), replace(RAILS, four_eyes=False), "yes"),
        ("DOOR", replace(planned(risk="high"), door="slack"), RAILS, "no"),
        ("DOOR", replace(planned(risk="high"), door="cli"), RAILS, "yes"),
    ],
)
def test_each_rule(rule: str, case: ChangeCase, rails: Guardrails, word: str) -> None:
    assert verdict(rule, case, rails) == word


def test_what_forbids_comes_before_what_makes_wait() -> None:
    verdicts = rule_verdicts(replace(CASE, paused="by ada", frozen="it failed"), RAILS)
    first = obstacle(verdicts, "begin")
    assert first is not None
    assert (first.rule, first.verdict) == ("FREEZE", "no")
    assert forbidden(verdicts, "begin") == "frozen: it failed"
    assert forbidden(verdicts, "operation") is None
    second = obstacle(verdicts, "operation")
    assert second is not None
    assert second.rule == "PAUSE"


def test_the_way_back_heeds_no_bound() -> None:
    verdicts = rule_verdicts(replace(CASE, after=TWO.with_(replicas=9, size="huge"), frozen="it failed"), RAILS)
    assert obstacle(verdicts, "operation") is not None
    assert obstacle(verdicts, "undo") is None


@given(st.sampled_from([f for f in Guardrails.__dataclass_fields__ if f != "catalogue"]))
def test_the_policys_hash_is_of_all_that_it_says(field: str) -> None:
    other: dict[str, Any] = {
        "mode": "auto",
        "policy": replace(RAILS.policy, max_step_replicas=9),
        "cooldown_s": 1.0,
        "timezone": "Europe/Berlin",
        "auto": frozenset(("shrink",)),
        "approvers": frozenset(("ada",)),
        "quorum": 2,
        "four_eyes": False,
        "fleet_changes_per_day": 6,
        "hours": (ChangeHours(frozenset((0,)), time(9), time(17)),),
    }
    assert replace(RAILS, **{field: other[field]}).hash != RAILS.hash
    assert replace(RAILS, catalogue=Catalogue()).hash == RAILS.hash
