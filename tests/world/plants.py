"""Bugs that are put in on purpose, one for each law: a world that does not find them proves nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import agent.apply
import agent.execution
import agent.uptake
from agent.store import changes, control
from analyzers.verify import Verdict


@contextmanager
def _fence() -> Iterator[None]:
    """A leader's write without its epoch."""
    with mock.patch.object(control, "fence", return_value=None):
        yield


@contextmanager
def _token() -> Iterator[None]:
    """A step that is resumed has another token each time."""
    numbers = itertools.count()
    with mock.patch.object(
        agent.execution, "_token", lambda run, step: f"{run.change}:{run.direction}:{step}:{next(numbers)}"
    ):
        yield


@contextmanager
def _guardrails() -> Iterator[None]:
    """What was approved is begun, whatever the guardrails say of it: without an approval that counts, too late, out of bounds."""
    with (
        mock.patch.object(agent.uptake, "forbidden", return_value=None),
        mock.patch.object(agent.uptake, "obstacle", return_value=None),
        mock.patch.object(agent.apply, "obstacle_of", return_value=None),
        mock.patch("agent.approvals.obstacle", return_value=None),
    ):
        yield


@contextmanager
def _pause() -> Iterator[None]:
    """The pause is not asked for right before a step."""
    with mock.patch.object(agent.execution, "_held_up", return_value=None):
        yield


@contextmanager
def _ledger() -> Iterator[None]:
    """An end without a row in the ledger."""
    with mock.patch.object(changes, "add_ledger", return_value=None):
        yield


@contextmanager
def _end() -> Iterator[None]:
    """A change whose steps are late waits for ever."""

    def never(*_: Any) -> bool:
        return False

    def pending(*_: Any) -> Verdict:
        return Verdict("pending", "", "", None, False)

    applier = agent.apply.Applier
    with mock.patch.object(applier, "_overdue", never), mock.patch.object(applier, "_judge", pending):
        yield


PLANTS: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "fence": _fence,
    "token": _token,
    "guardrails": _guardrails,
    "pause": _pause,
    "ledger": _ledger,
    "end": _end,
}
