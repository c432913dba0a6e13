"""What the actuator tests share: an HTTP caller on the standard library, a driver of plans, and the stand-in vLLM server."""

from __future__ import annotations

import asyncio
import http.client
import inspect
import json as jsonlib
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from actuators.base import Actuator, ActuatorError, LiveState, Progress, Receipt, Step, SystemContext
from actuators.shape import Operation, Plan, Shape
from agent.clock import WallClock
from collectors.http import HttpAnswer
from collectors.sessions import Sessions
from tests.actuators.git_parts import reviewed

STANDIN = Path(__file__).with_name("standin")
"""A folder for PYTHONPATH: its package ``vllm`` is a stand-in server, not vLLM."""


class Caller:
    """An ``HttpCall`` that keeps a list of what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    async def __call__(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        content: bytes | None = None,
        timeout_s: float = 10.0,
        max_bytes: int | None = None,
    ) -> HttpAnswer:
        self.sent.append((method, url))
        return await asyncio.to_thread(call, method, url, headers, json, timeout_s, content)


def call(
    method: str,
    url: str,
    headers: Mapping[str, str] | None = None,
    json: Any = None,
    timeout_s: float = 10.0,
    content: bytes | None = None,
) -> HttpAnswer:
    """One request, blocking."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        body = content if json is None else jsonlib.dumps(json).encode()
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request(method, path, body, {"content-type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return HttpAnswer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read(), 0.0, url)
    except http.client.HTTPException as error:
        raise ValueError(str(error)) from error
    finally:
        connection.close()


async def until_done(
    make: Callable[[], Actuator], operation: Operation, receipt: Receipt, limit_s: float = 30.0
) -> Step:
    """Poll ``done`` with a new actuator each time, as a Flyball that restarts all the time would."""
    end = time.monotonic() + limit_s
    while True:
        step = await make().done(operation, receipt)
        if step.progress is not Progress.PENDING or time.monotonic() > end:
            return step
        await asyncio.sleep(0.02)


async def eventually(condition: Callable[[], Any], limit_s: float = 15.0) -> None:
    """Wait until ``condition`` is true; it may be async. Fails after ``limit_s``."""
    end = time.monotonic() + limit_s
    while True:
        answer = condition()
        if await answer if inspect.isawaitable(answer) else answer:
            return
        assert time.monotonic() < end, "it did not come true"
        await asyncio.sleep(0.01)


async def carry_out(make: Callable[[], Actuator], plan: Plan, change: str = "c", limit_s: float = 30.0) -> list[Step]:
    """Every step of a plan, each done twice with one token, each by a new actuator. Stops at the first that fails."""
    await reviewed(make(), plan)
    steps: list[Step] = []
    last: Receipt | None = None
    for number, operation in enumerate(plan.operations):
        token = f"{change}/{number}"
        await make().clear(operation, last)
        receipt = await make().do(operation, token, last)
        assert receipt.handle["token"] == token
        receipt = await _again(make, operation, token, last)
        steps.append(await until_done(make, operation, receipt, limit_s))
        last = steps[-1].receipt or receipt
        assert steps[-1].progress is not Progress.PENDING, f"{operation.name} hangs: {steps[-1].detail}"
        if steps[-1].progress is Progress.FAILED:
            break
    return steps


async def _again(make: Callable[[], Actuator], operation: Operation, token: str, last: Receipt | None) -> Receipt:
    """The same step under the same token, as after a restart; a system that is at it may ask to come back."""
    end = time.monotonic() + operation.deadline_s
    while True:
        try:
            return await make().do(operation, token, last)
        except ActuatorError as error:
            if not error.passes or time.monotonic() > end:
                raise
            await asyncio.sleep(0.02)


async def reach(make: Callable[[], Actuator], wanted: Shape, change: str = "c", limit_s: float = 30.0) -> LiveState:
    """Plan to a shape, carry it out, and give what is live then."""
    actuator = make()
    plan = await actuator.plan(await actuator.live(), wanted)
    steps = await carry_out(make, plan, change, limit_s)
    assert [s.progress for s in steps] == [Progress.DONE] * len(plan.operations), steps
    return await make().live()


def context(
    state_dir: Path, url: str, shape: Shape, options: Mapping[str, Any], caller: Caller | None = None
) -> SystemContext:
    return SystemContext(
        endpoint="chat",
        url=url,
        model="tiny",
        shape=shape,
        state_dir=state_dir,
        http=caller or Caller(),
        clock=WallClock(),
        sessions=Sessions(),
        options=options,
    )


def free_port() -> int:
    """A port of the loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
