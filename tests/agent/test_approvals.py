"""The one place where a recommendation is decided, as the page and the command line meet it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.approvals import ACTIONS, SNOOZE_S, ApprovalOutcome, ApprovalService
from agent.cases import guardrails_of
from agent.clock import VirtualClock
from agent.settings import Settings
from agent.store import Store, audit, recommendations
from tests.agent.records import T0, recommendation_row

HASH = recommendation_row("x")["plan_hash"]
SETTINGS = Settings(endpoints=[{"name": "chat", "url": "http://chat.invalid", "mode": "approve"}])


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(T0)


@pytest.fixture
def heard() -> list[tuple[ApprovalOutcome, str, str]]:
    return []


@pytest.fixture
def service(store: Store, clock: VirtualClock, heard: list[tuple[ApprovalOutcome, str, str]]) -> ApprovalService:
    return ApprovalService(SETTINGS, store, clock, lambda *ruling: heard.append(ruling))


def _insert(store: Store, identity: str = "aaaa0001", **values: Any) -> None:
    with store.write() as db:
        recommendations.insert(db, recommendation_row(identity, **values))


def _row(store: Store, identity: str = "aaaa0001") -> dict[str, Any]:
    with store.read() as db:
        row = recommendations.get(db, identity)
    assert row is not None
    return row


def _decide(
    service: ApprovalService, action: Any = "approve", identity: str = "aaaa0001", plan: str = HASH
) -> ApprovalOutcome:
    return service.decide(identity, action=action, actor="cli:ada", channel="cli", plan_hash=plan)


@pytest.mark.parametrize(("action", "after"), [("approve", "approved"), ("reject", "rejected"), ("snooze", "snoozed")])
def test_a_decision_moves_it_and_says_who(
    action: str, after: str, service: ApprovalService, store: Store, heard: list[tuple[ApprovalOutcome, str, str]]
) -> None:
    _insert(store)
    ruling = _decide(service, action)
    assert (ruling.accepted, ruling.code, ruling.recommendation_id) == (True, "accepted", "aaaa0001")
    row = _row(store)
    assert (row["state"], row["state_by"], row["decided_at"]) == (after, "cli:ada", T0)
    assert row["snoozed_until"] == (T0 + SNOOZE_S if action == "snooze" else None)
    assert [(r.code, a, c) for r, a, c in heard] == [("accepted", action, "cli")]


def test_the_beginning_of_an_id_is_enough_while_it_is_the_only_one(service: ApprovalService, store: Store) -> None:
    _insert(store, "aaaa0001")
    _insert(store, "aaab0002")
    assert _decide(service, identity="aaa").code == "unknown"
    assert _decide(service, identity="aaaa").recommendation_id == "aaaa0001"


@pytest.mark.parametrize(
    ("values", "plan", "action", "code"),
    [
        ({}, "sha256:other", "approve", "superseded"),
        ({}, "", "approve", "superseded"),
        ({}, "sha256:other", "reject", "superseded"),
        ({"plan_hash": ""}, "", "approve", "no_plan"),
        ({"expires_at": T0}, HASH, "approve", "expired"),
        ({"expires_at": T0}, HASH, "snooze", "expired"),
        ({"state": "approved"}, HASH, "reject", "decided"),
        ({"state": "expired"}, HASH, "approve", "decided"),
        ({"state": "superseded"}, HASH, "approve", "decided"),
        ({"state": "applying"}, HASH, "approve", "decided"),
    ],
)
def test_what_cannot_be_decided_stays_as_it_is_and_the_attempt_is_kept(
    values: dict[str, Any], plan: str, action: str, code: str, service: ApprovalService, store: Store
) -> None:
    _insert(store, **values)
    before = _row(store)
    ruling = _decide(service, action, plan=plan)
    assert (ruling.accepted, ruling.code) == (False, code)
    assert _row(store) == before
    with store.read() as db:
        assert [(d["action"], d["accepted"], d["reason"]) for d in recommendations.decisions(db, "aaaa0001")] == [
            (action, False, code)
        ]
        assert audit.verify(db) is None
        assert audit.entries(db)[0]["action"] == action


def test_what_has_no_plan_can_still_be_rejected(service: ApprovalService, store: Store) -> None:
    _insert(store, plan_hash="", plan={})
    assert _decide(service, "reject", plan="").accepted


def test_a_snoozed_one_can_be_decided_and_wakes_by_itself(
    service: ApprovalService, store: Store, clock: VirtualClock
) -> None:
    _insert(store, expires_at=T0 + 7 * 86_400)
    assert _decide(service, "snooze").accepted
    clock.set(T0 + SNOOZE_S - 1)
    with store.write() as db:
        assert recommendations.expire(db, clock.now()) == []
    assert _row(store)["state"] == "snoozed"
    clock.set(T0 + SNOOZE_S)
    with store.write() as db:
        recommendations.expire(db, clock.now())
    assert _row(store)["state"] == "proposed"
    assert _decide(service).accepted


def test_a_token_of_one_recommendation_decides_no_other(service: ApprovalService, store: Store) -> None:
    _insert(store, "aaaa0001")
    _insert(store, "bbbb0002")
    with store.write() as db:
        tokens = service.issue_tokens(db, _row(store, "aaaa0001"))
    ruling = service.redeem(tokens["approve"], action="approve", actor="slack:U0ADA", allowed=True)
    assert ruling.recommendation_id == "aaaa0001"
    assert _row(store, "bbbb0002")["state"] == "proposed"


def test_a_refused_click_does_not_spend_the_button(service: ApprovalService, store: Store) -> None:
    _insert(store)
    with store.write() as db:
        token = service.issue_tokens(db, _row(store))["approve"]

    def press(allowed: bool) -> str:
        return service.redeem(token, action="approve", actor="slack:U", allowed=allowed).code

    assert [press(False), press(True), press(True)] == ["not_allowed", "accepted", "used"]


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tries=st.lists(
        st.tuples(st.sampled_from(ACTIONS), st.sampled_from([HASH, "sha256:x"]), st.integers(0, 4)), max_size=8
    )
)
def test_whatever_is_tried_one_decision_stands(
    tries: list[tuple[Any, str, int]], store: Store, service: ApprovalService
) -> None:
    """Approved and rejected are final; a snooze may be followed by one of them; every attempt is on record."""
    with store.write() as db:
        number = len(recommendations.listed(db, limit=10_000))
    identity = f"{number:08x}"
    _insert(store, identity)
    accepted = [a for a, plan, _ in tries if _decide(service, a, identity, plan).accepted]
    final = [a for a in accepted if a != "snooze"]
    assert len(final) <= 1
    assert not final or accepted[-1] == final[0]
    with store.read() as db:
        assert len(recommendations.decisions(db, identity)) == len(tries)
        assert audit.verify(db) is None


# -- who may ----------------------------------------------------------------------------------------------------------


def _people(tmp: Store, clock: VirtualClock, **policy: Any) -> tuple[ApprovalService, str]:
    people = [
        {"name": "ada", "slack": "U0ADA"},
        {"name": "bob", "slack": "U0BOB", "login": "robert"},
        {"name": "eve", "slack": "U0EVE"},
    ]
    endpoint = {"name": "chat", "url": "http://chat.invalid", "mode": "approve"}
    made = Settings(people=people, endpoints=[endpoint | {"policy": {"approvers": ["ada", "bob"], **policy}}])
    return ApprovalService(made, tmp, clock), guardrails_of(made, "chat").hash


@pytest.mark.parametrize("actor", ["slack:U0EVE", "cli:root", "page:127.0.0.1", "ada2", "policy"])
def test_who_is_not_among_an_endpoints_approvers_decides_nothing(actor: str, store: Store, clock: VirtualClock) -> None:
    service, policy = _people(store, clock)
    _insert(store, policy_hash=policy)
    for action in ACTIONS:
        ruling = service.decide("aaaa0001", action=action, actor=actor, channel="page", plan_hash=HASH)
        assert ruling.code == "not_allowed"
    assert _row(store)["state"] == "proposed"


def test_one_person_is_the_same_at_every_door_and_counts_once(store: Store, clock: VirtualClock) -> None:
    service, policy = _people(store, clock, quorum=2)
    _insert(store, policy_hash=policy)
    with store.write() as db:
        button = service.issue_tokens(db, _row(store))["approve"]

    def in_slack(user: str) -> str:
        return service.redeem(button, action="approve", actor=f"slack:{user}", allowed=True).code

    def at(channel: Any, actor: str) -> str:
        return service.decide("aaaa0001", action="approve", actor=actor, channel=channel, plan_hash=HASH).code

    assert [in_slack("U0BOB"), in_slack("U0BOB"), at("cli", "cli:robert"), at("page", "bob")] == [
        "counted",
        "counted_before",
        "counted_before",
        "counted_before",
    ]
    assert _row(store)["state"] == "proposed"
    assert at("cli", "cli:ada") == "accepted"
    assert _row(store)["state_by"] == "ada"
    with store.read() as db:
        assert recommendations.approvers(db, _row(store)) == {"ada", "bob"}


def test_an_approval_of_an_earlier_revision_counts_no_more(store: Store, clock: VirtualClock) -> None:
    service, policy = _people(store, clock, quorum=2)
    _insert(store, policy_hash=policy)

    def approve(actor: str) -> str:
        return service.decide("aaaa0001", action="approve", actor=actor, channel="page", plan_hash=HASH).code

    assert approve("ada") == "counted"
    with store.write() as db:
        assert recommendations.refresh(db, "aaaa0001", revision=1, now=T0, values={"saving_per_month": 1.0})
    assert approve("bob") == "counted"
    assert approve("ada") == "accepted"


def test_who_asked_for_it_approves_it_at_no_door(store: Store, clock: VirtualClock) -> None:
    service, policy = _people(store, clock)
    _insert(store, policy_hash=policy, requested_by="bob")
    for actor in ("bob", "cli:robert", "slack:U0BOB"):
        ruling = service.decide("aaaa0001", action="approve", actor=actor, channel="page", plan_hash=HASH)
        assert ruling.code == "four_eyes"
    assert service.decide("aaaa0001", action="approve", actor="ada", channel="page", plan_hash=HASH).accepted


def test_a_high_risk_is_not_taken_in_slack(store: Store, clock: VirtualClock) -> None:
    service, policy = _people(store, clock)
    row = recommendation_row("aaaa0001", policy_hash=policy)
    row["body"]["risk"] = "high"
    with store.write() as db:
        recommendations.insert(db, row)
        tokens = service.issue_tokens(db, row)  # type: ignore[arg-type]
    assert service.redeem(tokens["approve"], action="approve", actor="slack:U0ADA", allowed=True).code == "wrong_door"
    assert service.decide("aaaa0001", action="approve", actor="ada", channel="page", plan_hash=HASH).accepted


def test_an_approval_is_given_under_the_policy_that_was_shown(store: Store, clock: VirtualClock) -> None:
    _, policy = _people(store, clock)
    _insert(store, policy_hash=policy)
    service, other = _people(store, clock, max_step_replicas=1)
    assert other != policy
    ruling = service.decide("aaaa0001", action="approve", actor="ada", channel="page", plan_hash=HASH)
    assert (ruling.code, "policy was changed" in ruling.text) == ("superseded", True)


def test_what_a_guardrail_forbids_cannot_be_approved(store: Store, clock: VirtualClock) -> None:
    service, policy = _people(store, clock, min_replicas=2)
    _insert(store, policy_hash=policy)
    ruling = service.decide("aaaa0001", action="approve", actor="ada", channel="page", plan_hash=HASH)
    assert (ruling.code, ruling.text) == ("forbidden", "1 replicas are fewer than min_replicas 2")
    assert service.decide("aaaa0001", action="reject", actor="ada", channel="page", plan_hash=HASH).accepted
