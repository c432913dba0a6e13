"""A schedule that was approved once is kept: by the clock, at more where more is called for, and by nobody's hand beside it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from actuators.shape import Plan, Schedule, ScheduleStep
from agent.schedules import AGAIN_S
from agent.store import audit, changes, control, fleet, schedules
from tests.world.laws import assert_lawful
from tests.world.world import NAME, World, run

QUIET = ("lead", "collect", "act")
ALL = ("lead", "collect", "decide", "act")


def in_minutes(world: World, *steps: tuple[float, int]) -> Schedule:
    """So many replicas from so many minutes on."""

    def clock(minutes: float) -> str:
        return datetime.fromtimestamp(world.clock.now() + 60 * minutes, UTC).strftime("%H:%M")

    return Schedule(tuple(ScheduleStep(clock(minutes), count) for minutes, count in steps))


async def keeps(world: World, *steps: tuple[float, int]) -> schedules.StandingSchedule:
    """Approved, verified, in force."""
    await world.run(400)
    await world.ask_and_approve(schedule=in_minutes(world, *steps))
    assert await world.until_true(lambda: standing(world) is not None, 1200)
    found = standing(world)
    assert found is not None
    return found


def standing(world: World) -> schedules.StandingSchedule | None:
    with world.store.read() as db:
        return schedules.of(db, NAME)


def restart_with(world: World, **changed: Any) -> None:
    """As a daemon whose settings were changed would have them."""
    watched = world.governor.watched[NAME]
    watched.settings = watched.settings.model_copy(update=changed)
    world.settings.endpoints[:] = [watched.settings if e.name == NAME else e for e in world.settings.endpoints]


def steps_of(world: World) -> list[tuple[int | None, int | None]]:
    plans = [Plan.from_dict(c["plan"]) for c in world.changes(NAME) if c["purpose"] == "schedule"]
    return [(plan.before.replicas, plan.after.replicas) for plan in plans]


def test_it_is_approved_once_and_its_steps_come_when_their_time_has_come(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, replicas=2, duration_s=30_000.0, loops=QUIET) as world:
            found = await keeps(world, (-600, 2), (40, 3), (70, 2))
            assert found.approved_by == "ada"
            due = world.clock.now()
            assert await world.until_true(lambda: world.system.shape.replicas == 3, 3600)
            assert datetime.fromtimestamp(world.clock.now(), UTC).strftime("%H:%M") >= found.schedule.steps[1].at
            assert world.clock.now() > due
            assert await world.until_true(lambda: world.system.shape.replicas == 2 and world.ended(), 3600)
            assert steps_of(world) == [(2, 3), (3, 2)]
            step = world.changes(NAME)[1]
            assert (step["state"], step["approved_by"], step["state_reason"]) == (
                "succeeded",
                "ada, by schedule",
                "its time has come",
            )
            assert_lawful(world)

    run(scenario)


def test_a_change_without_it_and_its_undoing_end_it_and_bring_it_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, replicas=2, duration_s=30_000.0, loops=QUIET) as world:
            first = await keeps(world, (-600, 2))
            identity = await world.ask_and_approve(replicas=3)
            assert await world.until_true(lambda: standing(world) is None, 2400)
            change = next(c["id"] for c in world.changes(NAME) if c["recommendation_id"] == identity)
            with world.store.write() as db:
                assert changes.request_rollback(db, change, now=world.clock.now(), by="ada")
            assert await world.until_true(lambda: standing(world) is not None, 1200)
            again = standing(world)
            assert again is not None
            assert again.schedule == first.schedule
            assert_lawful(world)

    run(scenario)


@pytest.mark.parametrize("stop", ["pause", "freeze", "end", "observe"])
def test_whoever_stops_it_stops_the_next_step(stop: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, replicas=2, duration_s=30_000.0, loops=QUIET) as world:
            await keeps(world, (-600, 2), (40, 3))
            now = world.clock.now()
            with world.store.write() as db:
                if stop == "pause":
                    control.pause(db, now=now, by="ada", reason="test")
                elif stop == "freeze":
                    fleet.freeze(db, NAME, reason="test", now=now, by="ada")
                elif stop == "end":
                    assert schedules.end(db, NAME, now=now, by="ada", reason="test")
            if stop == "observe":
                restart_with(world, mode="observe")
            await world.run(3600)
            assert world.system.shape.replicas == 2
            assert steps_of(world) == []

    run(scenario)


def test_another_hand_on_the_replicas_freezes_it_until_a_person_has_looked(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, replicas=2, duration_s=30_000.0, loops=QUIET) as world:
            await keeps(world, (-600, 2), (40, 3))
            world.system.change(world.system.shape.with_(replicas=5))
            assert await world.until_true(lambda: world.known()["frozen_because"] is not None, 3600)
            assert "somebody set 5 replicas beside the schedule" in world.known()["frozen_because"]
            assert world.system.shape.replicas == 5
            with world.store.write() as db:
                assert fleet.unfreeze(db, NAME, now=world.clock.now(), by="ada")
            assert await world.until_true(lambda: world.system.shape.replicas == 3 and world.ended(), 3600)

    run(scenario)


def test_a_step_that_fails_turns_back_and_freezes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, replicas=2, duration_s=30_000.0, loops=QUIET) as world:
            await keeps(world, (-600, 2), (40, 3))
            world.system.start_delay_s = 10_000.0
            assert await world.until_true(lambda: world.known()["frozen_because"] is not None, 7200)
            assert steps_of(world) == [(2, 3)]
            assert world.changes(NAME)[-1]["state"] in ("rolled_back", "failed")

    run(scenario)


def test_what_is_called_for_is_met_at_once_within_what_was_approved(tmp_path: Path) -> None:
    """A breach at the schedule's small hours: its most, without anybody's word, and back to the clock's count afterwards."""

    async def scenario() -> None:
        async with World(tmp_path, replicas=2, duration_s=30_000.0, loops=ALL) as world:
            await keeps(world, (-600, 1), (-602, 2), (600, 3))
            assert await world.until_true(lambda: world.system.shape.replicas == 1 and world.ended(), 3600)
            world.system.endpoint.traffic = replace(world.system.endpoint.traffic, rate=9.0)
            world.system.endpoint.become(world.system.shape, world.clock.now())
            assert await world.until_true(lambda: world.system.shape.replicas == 3, 3600)
            found = standing(world)
            assert found is not None
            assert found.held == 3
            assert found.held_until > world.clock.now()
            assert not [r for r in world.recommendations() if "/grow/" in r["fingerprint"]], "nobody had to be asked"
            with world.store.read() as db:
                assert audit.verify(db) is None

    run(scenario)


def test_blind_it_is_held_at_its_most(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, replicas=2, duration_s=30_000.0, loops=ALL) as world:
            await keeps(world, (-600, 1), (-602, 2), (600, 3))
            assert await world.until_true(lambda: world.system.shape.replicas == 1 and world.ended(), 3600)
            world.system.collect_error = "timeout"
            assert await world.until_true(lambda: world.system.shape.replicas == 3, 3600)

    run(scenario)


def test_when_its_time_is_over_the_most_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        policy: dict[str, Any] = {"policy": {"schedule_days": 0.05}}
        async with World(tmp_path, replicas=2, duration_s=30_000.0, loops=QUIET, endpoint=policy) as world:
            await keeps(world, (-600, 1), (-602, 2), (600, 3))
            assert await world.until_true(lambda: world.system.shape.replicas == 1, 3600)
            assert await world.until_true(lambda: standing(world) is None, 7200)
            assert world.system.shape.replicas == 3

    run(scenario)


def test_a_step_that_is_forbidden_is_told_once_and_tried_again_in_a_while(tmp_path: Path) -> None:
    """The settings allow fewer replicas than they did when the schedule was approved."""

    async def scenario() -> None:
        async with World(tmp_path, replicas=2, duration_s=30_000.0, loops=QUIET) as world:
            await keeps(world, (-600, 2), (40, 3))
            watched = world.governor.watched[NAME]
            policy = watched.settings.policy
            restart_with(world, policy=policy.model_copy(update={"max_replicas": 2}))
            asked = []
            plan = watched.actuator.plan

            async def counted(*args: Any) -> Plan:
                asked.append(world.clock.now())
                return await plan(*args)

            watched.actuator.plan = counted  # type: ignore[method-assign]
            await world.run(4000)
            assert (world.system.shape.replicas, steps_of(world), asked) == (2, [], [])
            restart_with(world, policy=policy)
            assert await world.until_true(lambda: world.system.shape.replicas == 3, 10 * AGAIN_S)

    run(scenario)
