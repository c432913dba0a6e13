"""A reference that nobody uses is exercised when it is due, once whoever restarts, and never where nothing may be sent."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actuators.emulated.fleet import EmulatedFleet, EmulatedSpec
from actuators.shape import Shape
from agent.apply import LEASE
from agent.clock import VirtualClock
from agent.exercise import Exercise
from agent.governor import Governor
from agent.settings import Settings
from agent.store import Store, audit, control
from agent.store.control import Lead, LostLease
from collectors.http import Http
from tests.actuators.support import call
from tests.agent.records import T0

HOW = {"every_s": 3600, "duration_s": 0.9, "rate": 40, "prompt_tokens": "8", "output_tokens": "2"}


def settings(url: str = "http://127.0.0.1:1", **more: Any) -> Settings:
    gpu = {"name": "gpu", "url": url, "model": "m", "role": "reference", "mode": "approve", "exercise": HOW, **more}
    return Settings.model_validate({"endpoints": [gpu]})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmulatedFleet(tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet.start(EmulatedSpec("gpu", "m", Shape(replicas=1), iteration={"base_s": 0.001}))


def served(url: str) -> float:
    text = call("GET", url + "/metrics").body.decode()
    return sum(float(m[1]) for m in re.finditer(r"^vllm:request_success_total\{.*\} (\S+)$", text, re.MULTILINE))


def leads(store: Store, holder: str = "here") -> Lead:
    with store.write() as db:
        lead = control.acquire(db, LEASE, holder, 1e9)
    assert lead is not None
    return lead


async def sent(exercise: Exercise, lead: Lead) -> None:
    """A cycle, and what it began to its end."""
    await exercise.cycle(lead)
    await asyncio.gather(*exercise._running.values())


def test_it_is_sent_when_it_is_due_and_once_whoever_restarts(store: Store, server: str) -> None:
    made, clock, lead = settings(server), VirtualClock(T0), leads(store)
    before = served(server)
    asyncio.run(sent(Exercise(made, store, clock), lead))
    first = served(server)
    assert first - before >= 10, "about twenty requests were due"
    asyncio.run(sent(Exercise(made, store, clock), lead))
    assert served(server) == first
    asyncio.run(clock.advance(3601))
    asyncio.run(sent(Exercise(made, store, clock), lead))
    assert served(server) > first
    with store.read() as db:
        assert [e["action"] for e in audit.entries(db, "gpu")] == ["exercise", "exercise"]


def test_nothing_is_sent_while_paused_nor_by_one_who_was_deposed(store: Store, server: str) -> None:
    made, clock, lead = settings(server), VirtualClock(T0), leads(store)
    with store.write() as db:
        control.pause(db, now=T0, by="cli:ann", reason="look")
    before = served(server)
    asyncio.run(sent(Exercise(made, store, clock), lead))
    with store.write() as db:
        control.resume(db, now=T0, by="cli:ann")
        control.release(db, LEASE, "here")
    leads(store, "there")
    with pytest.raises(LostLease):
        asyncio.run(sent(Exercise(made, store, clock), lead))
    assert served(server) == before


def test_one_that_does_not_answer_costs_nothing_but_a_line_in_the_log(store: Store) -> None:
    asyncio.run(sent(Exercise(settings(), store, VirtualClock(T0)), leads(store)))


def test_the_end_of_flyball_cuts_it_off(store: Store, server: str) -> None:
    made = settings(server, exercise={**HOW, "duration_s": 900, "rate": 5})
    exercise, lead = Exercise(made, store, VirtualClock(T0)), leads(store)

    async def begin_and_end() -> None:
        await exercise.cycle(lead)
        (task,) = exercise._running.values()
        await asyncio.sleep(0)
        await asyncio.wait_for(exercise.close(), 10)
        assert task.done()

    asyncio.run(begin_and_end())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"role": "production"}, "only a `role: reference` is exercised"),
        ({"mode": "observe"}, "the mode observe, which sends nothing but reads"),
        ({"model": None}, "name the `model`"),
        ({"exercise": {**HOW, "prompt_tokens": "many"}}, "expected 100, uniform:50:200"),
        ({"exercise": {**HOW, "duration_s": "2h"}}, "less than or equal to 1800"),
    ],
)
def test_what_must_not_be_exercised_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        settings(**more)


@pytest.mark.parametrize("exercised", [True, False])
def test_there_is_a_loop_for_it_only_where_it_is_asked_for(store: Store, tmp_path: Path, exercised: bool) -> None:
    made = settings(**({} if exercised else {"exercise": None})).model_copy(update={"state_dir": tmp_path})
    governor = Governor(made, store, VirtualClock(T0), holder="test", http=Http())
    assert ("exercise" in [loop.name for loop in governor.loops]) == exercised
    governor.tracing.close()
