"""The edge of each loop: it goes on after what nobody foresaw, says so, and stops when it is told."""

from __future__ import annotations

import asyncio

import pytest

from agent.clock import VirtualClock, WallClock
from agent.loops import Loop
from agent.metrics import Metrics


class _Died(BaseException):
    pass


def _value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_cycle_that_ends_well_beats() -> None:
    clock, metrics, ran = VirtualClock(1000.0), Metrics(), []

    async def cycle() -> None:
        ran.append(clock.now())

    loop = Loop("collect", 15.0, cycle, clock, metrics)
    assert not loop.alive(1000.0)
    assert asyncio.run(loop.once()) is True
    assert ran == [1000.0]
    assert (loop.status.last_ok_at, loop.status.errors, loop.status.last_error) == (1000.0, 0, None)
    assert _value(metrics, "flyball_cycle_last_timestamp_seconds", loop="collect") == 1000.0
    assert loop.alive(1000.0 + 3 * 15 + 60)
    assert not loop.alive(1000.0 + 3 * 15 + 61)


def test_a_cycle_of_many_parts_is_alive_as_long_as_they_get_done() -> None:
    clock = VirtualClock(1000.0)
    loop = Loop("decide", 15.0, asyncio.Event().wait, clock, Metrics())
    loop.moved()
    assert loop.alive(1000.0 + 3 * 15 + 60)
    assert not loop.alive(1000.0 + 3 * 15 + 61)
    assert loop.status.last_ok_at is None, "no cycle has ended"


@pytest.mark.parametrize(
    ("error", "text"), [(ValueError("first\nsecond"), "ValueError: first"), (KeyError(), "KeyError: ")]
)
def test_an_error_that_nobody_foresaw_is_counted_and_shown_and_the_next_cycle_comes(
    error: Exception, text: str
) -> None:
    clock, metrics, left = VirtualClock(), Metrics(), [error]

    async def cycle() -> None:
        if left:
            raise left.pop()

    loop = Loop("decide", 60.0, cycle, clock, metrics)
    assert asyncio.run(loop.once()) is False
    assert (loop.status.last_ok_at, loop.status.errors, loop.status.last_error) == (None, 1, text)
    assert _value(metrics, "flyball_cycle_errors_total", loop="decide", error=type(error).__name__) == 1.0
    assert asyncio.run(loop.once()) is True
    assert loop.status.last_ok_at == clock.now()
    assert loop.status.errors == 1


def test_what_ends_a_process_is_not_survived() -> None:
    async def cycle() -> None:
        raise _Died

    loop = Loop("act", 1.0, cycle, VirtualClock(), Metrics())
    with pytest.raises(_Died):
        asyncio.run(loop.once())


def test_it_runs_until_it_is_stopped_and_errors_do_not_end_it() -> None:
    async def scenario() -> None:
        stop, runs = asyncio.Event(), 0

        async def cycle() -> None:
            nonlocal runs
            runs += 1
            if runs == 5:
                stop.set()
            if runs % 2:
                raise RuntimeError("odd")

        loop = Loop("act", 0.001, cycle, WallClock(), Metrics())
        await asyncio.wait_for(loop.run(stop), 30)
        assert runs == 5
        assert loop.status.errors == 3

    asyncio.run(scenario())


def test_a_stop_ends_the_wait_for_the_next_cycle() -> None:
    async def scenario() -> None:
        stop = asyncio.Event()

        async def cycle() -> None:
            asyncio.get_running_loop().call_soon(stop.set)

        loop = Loop("collect", 86_400.0, cycle, WallClock(), Metrics())
        await asyncio.wait_for(loop.run(stop), 30)
        assert loop.status.errors == 0

    asyncio.run(scenario())


def test_late_cycles_are_not_made_up_for() -> None:
    """A cycle that takes ten intervals is followed by one, not by ten at once."""

    async def scenario() -> None:
        clock, stop = VirtualClock(), asyncio.Event()
        started: list[float] = []

        async def cycle() -> None:
            started.append(clock.monotonic())
            if len(started) == 1:
                clock.set(clock.now() + 10.0)
            elif len(started) == 3:
                stop.set()
            else:
                clock.set(clock.now() + 1.0)

        await asyncio.wait_for(Loop("collect", 1.0, cycle, clock, Metrics()).run(stop), 30)
        assert started == [0.0, 10.0, 11.0]

    asyncio.run(scenario())
