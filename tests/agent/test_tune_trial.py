"""The search of one trial, by loads whose outcome is known: no server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from actuators.shape import Shape
from agent.tune import trial as tried
from analyzers.tuning.choose import Trial

CARRIES_PER_S = 5.0  # of the server


def searched(monkeypatch: pytest.MonkeyPatch, late: Callable[[float, int], bool]) -> Trial:
    """A trial of a server that carries 5/s; ``late(rate, n)``: whether the client is too late for the n-th load at this rate."""
    trial = Trial(0, "one", Shape(replicas=1), 0.5)
    trial.promised = 4.0
    effort = SimpleNamespace(precision=0.15, most_steps=8)
    context: Any = SimpleNamespace(asked=SimpleNamespace(effort=effort), check=lambda: None)

    async def single(*_: Any) -> dict[str, Any]:
        return {"verdict": "met", "figures": {"e2e_s": {"mean": 0.5}}}

    async def load(_context: Any, of: Trial, _note: Any, rate: float, _alone: float) -> dict[str, Any]:
        before = sum(step["rate"] == rate for step in of.steps)
        met = rate <= CARRIES_PER_S
        step = {
            "kind": "rate",
            "rate": rate,
            "invalid": "the client was late" if late(rate, before) else None,
            "verdict": "met" if met else "missed",
            "likely": met,
            "figures": {"completed": 10, "output_length": {"mean": 16.0}},
        }
        of.steps.append(step)
        return step

    monkeypatch.setattr(tried, "_single", single)
    monkeypatch.setattr(tried, "_rate", load)
    asyncio.run(tried._measure(context, trial, lambda: None))
    return trial


def test_a_client_that_was_late_for_a_moment_sends_the_same_rate_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = searched(monkeypatch, lambda _, n: n == 0)
    assert trial.limit is not None
    assert trial.limit.sure
    assert trial.limit.low is not None
    assert trial.limit.high is not None
    assert trial.limit.low <= CARRIES_PER_S <= trial.limit.high <= trial.limit.low * 1.16
    assert trial.why == ""


def test_what_this_client_can_never_send_bounds_the_search_and_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = searched(monkeypatch, lambda rate, _: rate > 3.0)
    assert trial.limit is not None
    assert trial.limit.low is not None
    assert trial.limit.low <= 3.0
    assert trial.why.startswith("this client sends no ")
    rates = [step["rate"] for step in trial.steps if step["invalid"]]
    assert rates.count(rates[0]) == 2, "it may have been a moment of something else"
    assert all(rates.count(rate) == 1 for rate in rates[2:])


def test_a_shape_that_keeps_no_rate_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.CARRIES_PER_S", 0.0)
    trial = searched(monkeypatch, lambda *_: False)
    assert trial.limit is not None
    assert trial.limit.low is None
    assert trial.why.startswith("missed at every rate that was sent, ")
