"""Two governors on one database, interleaving at every await; what one of them must never do to the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actuators.base import ActuatorError, Trouble
from agent.store import control
from tests.world.laws import assert_lawful
from tests.world.together import Together, run_virtually
from tests.world.world import shape

QUIET = ("lead", "collect", "act")
SEEDS = range(8)


async def _deposed(world: Together) -> None:
    """A's step takes most of a minute to be refused. Meanwhile A's database is away, B takes over, and carries the change to its end."""
    first = world.process
    await world.run(100)
    assert first.governor.lead is not None
    second = world.start("flyball-2")
    answers: list[ActuatorError | None] = [
        ActuatorError("STALE_PLAN", "409: it was done already", trouble=Trouble.DRIFT)
    ]
    delays = [55.0]
    world.system.refuse = lambda _token: answers.pop() if answers else None
    world.system.delay = lambda _token: delays.pop() if delays else 0.0
    await world.ask_and_approve(replicas=3)
    assert await world.until_true(lambda: not answers, 60), "A began"
    first.faults.database_away = True
    assert await world.until_true(lambda: second.governor.lead is not None, 60), "B leads"
    first.faults.database_away = False
    await world.run(120)
    assert await world.until_true(world.ended, 900)


def _deposed_leader(folder: Path, seed: int) -> None:
    async def scenario() -> None:
        async with Together(folder, replicas=2, rate=3.0, loops=QUIET) as world:
            await _deposed(world)
            (change,) = world.changes()
            assert (change["state"], world.system.shape) == ("succeeded", shape(3)), change["state_reason"]
            assert_lawful(world)

    run_virtually(scenario, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_deposed_leaders_late_answer_changes_nothing(seed: int, tmp_path: Path) -> None:
    _deposed_leader(tmp_path, seed)


def test_the_world_finds_it_when_the_fence_is_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "fence", lambda *_: None)
    for seed in SEEDS:
        try:
            _deposed_leader(tmp_path / str(seed), seed)
        except AssertionError:
            return
    pytest.fail("a world that cannot find this proves nothing")


def test_a_host_whose_clock_is_ahead_takes_over_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Together(tmp_path, replicas=2, rate=3.0, loops=("lead",)) as world:
            await world.run(5)
            fast = world.start("flyball-2", skew_s=40.0)
            for _ in range(60):
                await world.run(5)
                assert fast.governor.lead is None
                assert world.processes[0].governor.lead is not None
            await world.kill(world.processes[0])
            assert await world.until_true(lambda: fast.governor.lead is not None, 45)

    run_virtually(scenario)


def test_a_system_that_hangs_delays_no_other(tmp_path: Path) -> None:
    from tests.agent.test_apply import NAME, OTHER, two

    async def scenario() -> None:
        endpoints: Any = two()
        async with Together(tmp_path, endpoints=endpoints, loops=QUIET) as world:
            await world.run(60)
            world.systems[NAME].hangs = True
            await world.ask_and_approve(NAME, replicas=3)
            await world.run(30)
            await world.ask_and_approve(OTHER, replicas=3)
            assert await world.until_true(lambda: world.systems[OTHER].shape == shape(3), 30)
            assert await world.until_true(lambda: world.changes(NAME)[0]["finished_at"] is not None, 3600)
            assert "no answer within 60 s" in world.changes(NAME)[0]["state_reason"]

    run_virtually(scenario)
