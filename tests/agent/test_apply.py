"""Adjusting, where the invariants do not reach: change windows, a person's way back, and one endpoint's trouble staying its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actuators.base import ActuatorError, LiveState, Receipt, Trouble
from actuators.shape import Operation, Plan
from agent.cases import hours_of
from agent.settings import ChangeWindow
from agent.store import audit, changes, control, fleet, outbox, windows
from analyzers.guardrails import may_begin
from tests.agent.records import change_row
from tests.world.endpoint import SimulatedEndpoint, Traffic
from tests.world.laws import assert_lawful
from tests.world.world import NAME, START, World, run, shape

QUIET = ("lead", "collect", "act")
OTHER = "search"


def _at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("now", "timezone", "open_"),
    [
        ("2026-01-05T09:00:00", "UTC", True),  # a Monday
        ("2026-01-05T08:59:59", "UTC", False),
        ("2026-01-05T17:00:00", "UTC", True),
        ("2026-01-05T17:00:00.900", "UTC", True),
        ("2026-01-05T17:00:01", "UTC", False),
        ("2026-01-10T12:00:00", "UTC", False),  # a Saturday
        ("2026-01-05T08:30:00", "Europe/Berlin", True),  # 9:30 there
        ("2026-01-05T16:30:00", "Europe/Berlin", False),
        ("2026-07-06T07:30:00", "Europe/Berlin", True),  # summer time
    ],
)
def test_office_hours(now: str, timezone: str, open_: bool) -> None:
    office = ChangeWindow(days="mon-fri", start=time(9), end=time(17))
    assert may_begin(hours_of([office]), _at(now), timezone) is open_


@pytest.mark.parametrize(
    ("now", "open_"),
    [
        ("2026-01-09T23:00:00", True),  # Friday night
        ("2026-01-10T03:00:00", True),  # which ends on Saturday
        ("2026-01-10T23:00:00", False),
        ("2026-01-09T03:00:00", False),  # Thursday's night is not named
    ],
)
def test_over_midnight_the_day_is_the_one_on_which_it_begins(now: str, open_: bool) -> None:
    assert may_begin(hours_of([ChangeWindow(days="fri", start=time(22), end=time(4))]), _at(now), "UTC") is open_


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(0, 4e9))
def test_without_windows_and_with_the_default_one_any_time_is_right(now: float) -> None:
    assert may_begin([], now, "UTC")
    assert may_begin(hours_of([ChangeWindow()]), now, "America/New_York")


def two() -> dict[str, SimulatedEndpoint]:
    """Two endpoints alike."""
    return {n: SimulatedEndpoint(shape(2), Traffic(3.0), START + 7200, seed=i) for i, n in enumerate((NAME, OTHER))}


def _two(folder: Path, **options: Any) -> World:
    return World(folder, endpoints=two(), loops=QUIET, **options)


def test_one_endpoints_trouble_does_not_keep_another_waiting(tmp_path: Path) -> None:
    """An actuator that breaks its contract raises what nobody foresaw, at every turn."""

    async def scenario() -> None:
        async with _two(tmp_path) as world:
            await world.run(60)

            def broken(_token: str) -> ActuatorError | None:
                raise RuntimeError("a bug in a plugin")

            world.systems[NAME].refuse = broken
            await world.ask_and_approve(NAME, replicas=3)
            await world.ask_and_approve(OTHER, replicas=3)
            assert await world.until_true(lambda: any(c["state"] == "succeeded" for c in world.changes(OTHER)), 900)
            assert world.systems[OTHER].shape == shape(3)
            assert world.systems[NAME].executed == []
            act = next(loop for loop in world.governor.loops if loop.name == "act")
            assert act.status.errors == 0, "its trouble is its own"
            assert await world.until_true(lambda: world.changes(NAME)[0]["finished_at"] is not None, 900)
            assert "BUG: RuntimeError: a bug in a plugin" in world.changes(NAME)[0]["state_reason"]

    run(scenario)


def test_a_collector_with_a_bug_costs_no_other_endpoint_a_window(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with _two(tmp_path) as world:
            await world.run(25)
            broken: Any = world.governor.watched[NAME].collectors["vllm"]

            async def read(_target: Any) -> Any:
                raise ZeroDivisionError

            broken.read = read
            await world.run(120)
            with world.store.read() as db:
                rows = windows.load(db, OTHER, "vllm", 0.0, 4e9, 20.0)
            assert len(rows) >= 6
            health = world.governor.watched[NAME].health["vllm", "http://sim.invalid"]
            assert health.failures > 0
            assert health.last_error == "bug: ZeroDivisionError: "

    run(scenario)


def _undo(world: World, identity: str) -> None:
    with world.store.write() as db:
        assert changes.request_rollback(db, identity, now=world.clock.now(), by="ada")


@pytest.mark.parametrize("when", ["applying", "warming", "verifying", "succeeded"])
def test_a_person_may_have_it_back_at_any_time_and_nothing_is_frozen(when: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, replicas=2, rate=3.0, loops=QUIET) as world:
            await world.run(60)
            await world.ask_and_approve(replicas=3)
            assert await world.until_true(lambda: bool(world.changes()) and world.changes()[0]["state"] == when, 900)
            (change,) = world.changes()
            _undo(world, change["id"])
            assert await world.until_true(lambda: world.changes()[0]["state"] == "rolled_back", 300)
            await world.run(30)
            assert world.system.shape == shape(2)
            assert world.known()["frozen_because"] is None
            assert_lawful(world)

    run(scenario)


def test_a_way_back_is_planned_from_a_shape_completed_by_the_settings_as_the_change_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system does not tell the size, which the settings state."""
    compared: list[tuple[str | None, str | None]] = []

    async def scenario() -> None:
        async with World(tmp_path, replicas=2, rate=3.0, loops=QUIET) as world:
            actuator = world.governor.watched[NAME].actuator
            tells, leads_back = actuator.live, actuator.back

            async def live() -> LiveState:
                told = await tells()
                return replace(told, shape=told.shape.with_(size=None))

            async def back(plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
                compared.append((plan.before.size, live.shape.size))
                return await leads_back(plan, done, live)

            monkeypatch.setattr(actuator, "live", live)
            monkeypatch.setattr(actuator, "back", back)
            await world.run(60)
            await world.ask_and_approve(replicas=3)
            assert await world.until_true(
                lambda: bool(world.changes()) and world.changes()[0]["state"] == "warming", 900
            )
            _undo(world, world.changes()[0]["id"])
            assert await world.until_true(lambda: world.changes()[0]["state"] == "rolled_back", 300)

    run(scenario)
    assert compared == [("vm-small", "vm-small")]


def test_only_the_newest_change_is_taken_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, replicas=2, rate=3.0, loops=QUIET) as world:
            await world.run(60)
            for number, replicas in enumerate((3, 4), 1):
                identity = await world.ask_and_approve(replicas=replicas)
                await world.run(30)
                assert world.recommendation(identity)["state"] == "applying"
                assert await world.until_true(world.ended, 900)
                assert len(world.changes()) == number
            first, second = world.changes()
            _undo(world, first["id"])
            await world.run(60)
            assert [c["state"] for c in world.changes()] == ["succeeded", "succeeded"]
            assert not world.changes()[0]["rollback_requested"]
            _undo(world, second["id"])
            await world.run(60)
            assert [c["state"] for c in world.changes()] == ["succeeded", "rolled_back"]
            assert world.system.shape == shape(3)

    run(scenario)


def test_a_second_approval_waits_until_the_first_change_has_ended(tmp_path: Path) -> None:
    """And is void then, since the endpoint is not what its plan began from."""

    async def scenario() -> None:
        async with World(tmp_path, replicas=2, rate=3.0, loops=QUIET) as world:
            await world.run(60)
            await world.ask_and_approve(replicas=3)
            await world.clock.advance(1.0)
            second = await world.ask_and_approve(replicas=4)
            assert await world.until_true(lambda: len(world.changes()) == 1, 60)
            assert world.recommendation(second)["state"] == "approved"
            assert await world.until_true(world.ended, 900)
            await world.run(30)
            assert world.recommendation(second)["state"] == "superseded"
            assert len(world.changes()) == 1
            assert_lawful(world)

    run(scenario)


def test_an_operation_has_its_whole_time_after_it_was_resumed(tmp_path: Path) -> None:
    """Written down, then the process died, and came back only after the step's deadline: the step is begun now, and awaited."""

    async def scenario() -> None:
        async with World(tmp_path, replicas=2, rate=3.0, loops=QUIET, revive=False) as world:
            await world.run(60)
            world.system.start_delay_s = 60.0
            await world.ask_and_approve(replicas=3)
            world.process.faults.die_when = "before a step"
            await world.until_true(lambda: world.deaths == 1, 60)
            assert world.system.executed == []
            assert [row["state"] for row in world.journal(world.changes()[0]["id"])] == ["intended"]
            await world.clock.advance(1000.0)
            world.start("flyball-2")
            assert await world.until_true(world.ended, 900)
            assert world.changes()[0]["state"] == "succeeded"
            assert len(world.system.executed) == 1

    run(scenario)


def test_a_paused_governor_begins_nothing_and_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, replicas=2, rate=3.0, loops=QUIET) as world:
            with world.store.write() as db:
                control.pause(db, now=world.clock.now(), by="ada", reason="an incident")
            await world.run(60)
            identity = await world.ask_and_approve(replicas=3)
            await world.run(120)
            assert world.changes() == []
            assert world.recommendation(identity)["state"] == "approved"
            assert world.governor.metrics.registry.get_sample_value("flyball_paused") == 1.0

    run(scenario)


@pytest.mark.parametrize(("slow", "state", "revision"), [(1.0, "succeeded", 1), (12.0, "rolled_back", 2)])
def test_people_are_told_how_it_ended_once(slow: float, state: str, revision: int, tmp_path: Path) -> None:
    slack = {"slack": {"webhook_url": "https://hooks.slack.com/services/T/B/x"}}

    async def scenario() -> None:
        async with World(tmp_path, replicas=2, rate=3.0, loops=QUIET, settings=slack) as world:
            await world.run(100)
            world.system.endpoint.slowdown = lambda s: slow if s.replicas == 3 else 1.0
            await world.ask_and_approve(replicas=3)
            assert await world.until_true(world.ended, 900)
            await world.run(60)
            with world.store.read() as db:
                told = [m for m in outbox.due(db, 4e9) if m["kind"] == "change"]
            assert [(m["subject"], m["revision"]) for m in told] == [(world.changes()[0]["id"], revision)]
            assert world.changes()[0]["state"] == state

    run(scenario)


@pytest.mark.parametrize("fault", ["unreadable", "plan"])
def test_a_way_back_that_cannot_be_read_just_now_is_tried_again(fault: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, replicas=2, rate=3.0, loops=QUIET) as world:
            await world.run(60)
            await world.ask_and_approve(replicas=3)
            assert await world.until_true(
                lambda: bool(world.changes()) and world.changes()[0]["state"] == "warming", 300
            )
            _undo(world, world.changes()[0]["id"])
            actuator: Any = world.governor.watched[NAME].actuator
            really: Callable[..., Any] = actuator.plan
            if fault == "unreadable":
                world.system.unreadable = True
            else:

                async def plan(*_args: Any) -> Any:
                    raise ActuatorError("UNREACHABLE", "try again", trouble=Trouble.UNREACHABLE)

                actuator.plan = plan
            await world.run(60)
            assert world.changes()[0]["state"] == "rolling_back"
            world.system.unreadable = False
            actuator.plan = really
            assert await world.until_true(world.ended, 300)
            assert world.changes()[0]["state"] == "rolled_back"
            with world.store.read() as db:
                known = fleet.get(db, NAME)
            assert known is not None
            assert known["frozen_because"] is None

    run(scenario)


async def _rolling_back(world: World) -> None:
    await world.run(60)
    await world.ask_and_approve(replicas=3)
    assert await world.until_true(lambda: bool(world.changes()) and world.changes()[0]["state"] == "warming", 300)
    _undo(world, world.changes()[0]["id"])


def test_a_way_back_that_stays_unknown_ends_and_freezes(tmp_path: Path) -> None:
    """The control plane is away for good: half an hour later a person is told, and not six hours later."""

    async def scenario() -> None:
        async with World(tmp_path, replicas=2, rate=3.0, loops=QUIET) as world:
            await _rolling_back(world)
            world.system.unreadable = True
            await world.run(1700)
            assert world.changes()[0]["state"] == "rolling_back"
            assert await world.until_true(world.ended, 300)
            (change,) = world.changes()
            assert change["state"] == "failed"
            assert "no way back: UNREACHABLE" in change["state_reason"]
            assert "no way back" in world.known()["frozen_because"]
            assert_lawful(world)

    run(scenario)


def test_an_endpoint_that_leaves_the_settings_ends_its_change(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, replicas=2, rate=3.0, loops=QUIET) as world:
            await world.run(60)
            world.system.start_delay_s = 1e9
            await world.ask_and_approve(replicas=3)
            assert await world.until_true(lambda: len(world.system.executed) == 1, 60)
            del world.governor.watched[NAME]
            await world.run(30)
            (change,) = world.changes()
            assert (change["state"], change["finished_at"] is not None) == ("failed", True)
            assert "taken out of the settings" in change["state_reason"]

    run(scenario)


def _finishing(actuator: Any, locks: tuple[str, ...] = ()) -> None:
    """Its plans delete something once they are verified."""
    really = actuator.plan

    async def plan(live: Any, wanted: Any) -> Any:
        made = await really(live, wanted)
        last = Operation("set_engine", {"engine": {**wanted.engine, "cleaned": 1}}, 300.0, "delete the old one")
        return replace(made, finish=(last,), locks=locks) if made.operations else made

    async def back(plan: Any, _done: Any, live: Any) -> Any:
        return await really(live, plan.before)

    actuator.plan, actuator.back = plan, back


@pytest.mark.parametrize(("slow", "state", "finished"), [(1.0, "succeeded", 1), (12.0, "rolled_back", 0)])
def test_what_the_way_back_needs_goes_only_after_the_verdict(
    slow: float, state: str, finished: int, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with World(tmp_path, replicas=2, rate=3.0, loops=QUIET) as world:
            await world.run(100)
            world.system.endpoint.slowdown = lambda s: slow if s.replicas == 3 else 1.0
            _finishing(world.governor.watched[NAME].actuator)
            await world.ask_and_approve(replicas=3)
            assert await world.until_true(lambda: any(c["state"] == "verifying" for c in world.changes()), 300)
            assert len(world.system.executed) == 1
            assert await world.until_true(world.ended, 900)
            (change,) = world.changes()
            assert change["state"] == state
            done = [row for row in world.journal(change["id"]) if row["direction"] == "finish"]
            assert [row["state"] for row in done] == ["done"] * finished

    run(scenario)


def test_what_cannot_be_cleaned_up_is_said_and_makes_the_success_no_failure(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, replicas=2, rate=3.0, loops=QUIET) as world:
            await world.run(100)
            _finishing(world.governor.watched[NAME].actuator)
            world.system.refuse = lambda token: (
                ActuatorError("DENIED", "no delete", trouble=Trouble.DENIED) if ":finish:" in token else None
            )
            await world.ask_and_approve(replicas=3)
            assert await world.until_true(world.ended, 900)
            (change,) = world.changes()
            assert change["state"] == "succeeded"
            assert "not cleaned up: delete the old one: DENIED: no delete" in change["state_reason"]
            assert world.known()["frozen_because"] is None

    run(scenario)


def test_two_endpoints_of_one_account_are_changed_one_after_the_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with _two(tmp_path) as world:
            await world.run(60)
            for name in (NAME, OTHER):
                _finishing(world.governor.watched[name].actuator, locks=("account:a",))
                await world.ask_and_approve(name, replicas=3)
            assert await world.until_true(lambda: len(world.changes()) == 2, 1200)
            first, second = world.changes()
            assert first["finished_at"] is not None
            assert first["finished_at"] <= second["created_at"]
            assert await world.until_true(world.ended, 900)
            assert [c["state"] for c in world.changes()] == ["succeeded", "succeeded"]

    run(scenario)


def test_a_deployment_whose_process_is_gone_ends_and_freezes_nothing(tmp_path: Path) -> None:
    """While somebody holds its lease it is his; a quarter of an hour after that it keeps the endpoint no longer."""

    async def scenario() -> None:
        async with World(tmp_path, replicas=2, rate=3.0, loops=QUIET) as world:
            await world.run(60)
            row = change_row("dddd0001", now=world.clock.now()) | {"purpose": "deploy", "recommendation_id": ""}
            with world.store.write() as db:
                assert changes.start(db, row)
                assert control.acquire(db, "deploy:chat", "ada", 1200.0) is not None
            await world.run(1100)
            assert world.changes()[0]["state"] == "applying"
            await world.run(200)
            assert (world.changes()[0]["state"], world.changes()[0]["finished_at"] is not None) == ("failed", True)
            with world.store.read() as db:
                assert "freeze" not in [entry["action"] for entry in audit.entries(db)]
            assert world.system.executed == [], "the daemon sent nothing for it"

    run(scenario)


# -- after a way back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "code"),
    [("as it was", "AS_BEFORE"), ("still slow", "WORSE"), ("gone", "BLIND"), ("changed again", "NOT_SEEN")],
)
def test_a_way_back_is_judged_by_what_the_endpoint_shows_since(after: str, code: str, tmp_path: Path) -> None:
    """It ends and freezes at once; what it led to is said once it can be, in the outcome, in the audit, and to people."""
    slack = {"slack": {"webhook_url": "https://hooks.slack.com/services/T/B/x"}}

    async def scenario() -> None:
        async with World(tmp_path, replicas=2, rate=3.0, loops=QUIET, settings=slack) as world:
            await world.run(100)
            on_two = 12.0 if after == "still slow" else 1.0
            world.system.endpoint.slowdown = lambda s: 12.0 if s.replicas == 3 else on_two
            await world.ask_and_approve(replicas=3)
            assert await world.until_true(lambda: world.ended() and world.changes()[0]["state"] == "rolled_back", 1200)
            assert "way_back" not in world.changes()[0]["outcome"]
            assert world.known()["frozen_because"] is not None
            if after == "gone":
                world.system.collect_error = "down"
            elif after == "changed again":
                with world.store.write() as db:
                    fleet.unfreeze(db, NAME, now=world.clock.now(), by="ada")
                await world.ask_and_approve(replicas=1)
                assert await world.until_true(lambda: len(world.changes()) == 2, 600)
            (first,) = [c["id"] for c in world.changes() if c["state"] == "rolled_back"]

            def judged() -> bool:
                (change,) = [c for c in world.changes() if c["id"] == first]
                return "way_back" in change["outcome"]

            assert await world.until_true(judged, 7200)
            (change,) = [c for c in world.changes() if c["id"] == first]
            assert change["outcome"]["way_back"]["code"] == code, change["outcome"]["way_back"]
            assert change["state"] == "rolled_back"
            with world.store.read() as db:
                told = [m["revision"] for m in outbox.due(db, 4e9) if m["kind"] == "change" and m["subject"] == first]
                noted = [a["action"] for a in audit.entries(db, first)]
            assert told == ([2] if code == "NOT_SEEN" else [2, 4])
            assert noted.count("way_back_judged") == 1
            if after != "gone":  # whose windows have nothing to tell the laws
                assert_lawful(world)

    run(scenario)
