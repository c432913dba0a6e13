"""A pull request from discovery to the ledger: the product's own governor and system, the real git, in virtual time. Telemetry is simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actuators.shape import Shape
from agent.store import control, recommendations
from tests.actuators.git_parts import TeamRepository
from tests.world.git import CHANGING, GitWorld
from tests.world.wire import Snapshot
from tests.world.world import run

WATCH_S, CHANGE_S = 1800.0, 3600.0
Watched = tuple[Snapshot, TeamRepository]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Two replicas that get more than they carry, until more of them are proposed; nothing was shown in the repository yet."""
    kept: list[Watched] = []

    async def scenario() -> None:
        async with GitWorld(tmp_path_factory.mktemp("watched"), loops=("lead", "collect", "decide", "act")) as world:
            assert await world.until(lambda: bool(world.recommendations("proposed")), WATCH_S), "nothing was proposed"
            assert world.team.branches() == [], "watching pushes nothing"
            kept.append((await world.snapshot(), world.team))

    run(scenario)
    return kept[0]


async def proposed(world: GitWorld) -> tuple[dict[str, Any], str]:
    """The open proposal, and its branch."""
    assert await world.until(lambda: bool(world.recommendations("proposed")) and bool(world.team.branches()), WATCH_S)
    (row,) = world.recommendations("proposed")
    (branch,) = world.team.branches()
    return row, branch


def test_from_discovery_to_the_ledger(watched: Watched, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with GitWorld(tmp_path, snapshot=watched) as world:
            row, branch = await proposed(world)
            assert world.replicas == 2, "nothing is deployed that nobody merged"
            assert world.team.patch(branch) == [
                "-  replicas: 2   # by the load of March",
                "+  replicas: 3   # by the load of March",
            ]
            text = world.team.message(branch)
            assert f"Flyball-Plan: {row['plan_hash']}" in text
            assert "Why:\n- " in text
            assert "Promised: TTFT p95" in text
            assert not await world.until(lambda: bool(world.changes()), 120.0), "it waits for the merge"
            world.team.merge(branch)
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", change["state_reason"]
            assert (change["approved_by"], change["plan_hash"]) == ("ada", row["plan_hash"])
            score = {s["metric"]: s for s in world.ledger(change["id"])}["ttft_p95_s"]
            assert score["before"] > score["observed"]
            assert await world.until(lambda: not world.team.branches(), 60.0), "its branch is taken away"

    run(scenario)


def test_one_that_makes_it_worse_is_taken_back_by_a_branch_that_a_person_merges(
    watched: Watched, tmp_path: Path
) -> None:
    def slowdown(shape: Shape) -> float:
        return 4.0 if shape.replicas == 3 else 1.0

    async def scenario() -> None:
        async with GitWorld(tmp_path, slowdown=slowdown, snapshot=watched) as world:
            row, branch = await proposed(world)
            world.team.merge(branch, "squash")

            def reverting() -> list[str]:
                return [b for b in world.team.branches() if "/revert-" in b]

            assert await world.until(lambda: bool(reverting()), CHANGE_S)
            (back,) = reverting()
            assert f"Flyball-Reverts: {row['plan_hash']}" in world.team.message(back)
            assert world.replicas == 3, "Flyball does not write to main, on the way back either"
            assert not await world.until(world.ended, 300.0)
            world.team.merge(back)
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "rolled_back", change["state_reason"]
            assert world.replicas == 2
            assert world.ledger(change["id"])
            assert world.known()["frozen_because"]

    run(scenario)


def test_a_branch_that_somebody_takes_away_is_not_shown_again(watched: Watched, tmp_path: Path) -> None:
    """It is a no where anybody may decide. Here only one may, and nobody knows who it was."""

    async def scenario() -> None:
        async with GitWorld(tmp_path, snapshot=watched) as world:
            row, branch = await proposed(world)
            world.team.take_away(branch)
            assert not await world.until(lambda: bool(world.team.branches()), 300.0)
            with world.store.read() as db:
                (attempt,) = recommendations.decisions(db, row["id"])
            assert (attempt["action"], attempt["actor"], attempt["reason"]) == ("reject", "git:unknown", "not_allowed")
            assert world.recommendations("proposed"), "who may decide still can"

    run(scenario)


def test_a_merge_by_one_who_may_not_decide_is_no_approval(watched: Watched, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with GitWorld(tmp_path, snapshot=watched) as world:
            row, branch = await proposed(world)
            world.team.merge(branch, by="bob@example.org")
            assert await world.until(lambda: not world.recommendations("proposed"), 120.0)
            (void,) = [r for r in world.recommendations() if r["id"] == row["id"]]
            assert void["state"] == "superseded"
            assert "merged by bob@example.org, and not approved: bob is not among the approvers" in void["state_reason"]
            assert not await world.until(lambda: bool(world.changes()), 120.0)

    run(scenario)


def test_no_other_door_approves_it_and_the_policy_does_not(watched: Watched, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with GitWorld(tmp_path, snapshot=watched) as world:
            row, branch = await proposed(world)
            assert row["state"] == "proposed", "in the mode auto"

            def decided(action: str, channel: str) -> str:
                approvals = world.governor.approvals
                return approvals.decide(
                    row["id"], action=action, actor="cli:ada", channel=channel, plan_hash=row["plan_hash"]
                ).code  # type: ignore[arg-type]

            assert [decided("approve", door) for door in ("page", "cli", "slack")] == ["wrong_door"] * 3
            assert not await world.until(lambda: bool(world.changes()), 120.0)
            assert decided("reject", "cli") == "accepted"
            assert await world.until(lambda: branch not in world.team.branches(), 60.0)

    run(scenario)


def test_in_mode_observe_and_while_paused_nothing_is_pushed(watched: Watched, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with GitWorld(tmp_path / "observe", mode="observe", snapshot=watched) as world:
            assert not world.governor.reviewer.wanted
            assert not await world.until(lambda: bool(world.team.branches()), 300.0)
        async with GitWorld(tmp_path / "paused", snapshot=watched) as world:
            with world.store.write() as db:
                control.pause(db, now=world.clock.now(), by="ada", reason="a holiday")
            assert not await world.until(lambda: bool(world.team.branches()), 120.0)
            with world.store.write() as db:
                control.resume(db, now=world.clock.now(), by="ada")
            assert await world.until(lambda: bool(world.team.branches()), 120.0)

    run(scenario)


def test_what_somebody_else_changes_meanwhile_makes_the_plan_void(watched: Watched, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with GitWorld(tmp_path, snapshot=watched, loops=(*CHANGING, "decide")) as world:
            row, branch = await proposed(world)
            world.team.write({"deploy/chat.yaml": world.team.text().replace("replicas: 2", "replicas: 5")}, "by hand")

            def moved_on() -> bool:
                (now,) = [r for r in world.recommendations() if r["id"] == row["id"]]
                return now["state"] == "superseded" or now["plan_hash"] != row["plan_hash"]

            assert await world.until(moved_on, WATCH_S)
            assert await world.until(lambda: branch not in world.team.branches(), 120.0)
            assert not world.changes()

    run(scenario)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_kill_at_any_instant_is_no_second_change(watched: Watched, tmp_path: Path, share: float) -> None:
    """Before and after commits, from the proposal to the ledger."""

    async def instants(at: int | None, folder: Path) -> list[str]:
        async with GitWorld(folder, snapshot=watched) as world:
            _, branch = await proposed(world)
            faults = world.process.faults
            faults.instants.clear()
            faults.die_at = at
            world.team.merge(branch)
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", (at, change["state_reason"])
            assert world.replicas == 3
            assert world.deaths == (at is not None)
            return faults.instants

    async def scenario() -> None:
        passed = await instants(None, tmp_path / "whole")
        acting = [i for i, name in enumerate(passed) if name.startswith(("act:", "review:"))]
        assert len(acting) > 20
        await instants(acting[int(share * len(acting))], tmp_path / "killed")

    run(scenario)
