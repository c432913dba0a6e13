"""Flyball's own actuator deploys a real vLLM server (CPU), changes it under a running stream, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from pathlib import Path

import pytest

from actuators.shape import Shape
from actuators.vllm_local.actuator import VllmLocal, teardown
from actuators.vllm_local.processes import Processes
from tests.actuators.support import call, carry_out, context, free_port
from tests.real.vllm_parts import MODEL_NAME, vllm_options

pytestmark = [pytest.mark.real, pytest.mark.alone, pytest.mark.timeout(900)]


class _Stream(threading.Thread):
    """One streamed completion; ``started`` is set by its first token."""

    def __init__(self, port: int, tokens: int) -> None:
        super().__init__()
        self.port, self.tokens = port, tokens
        self.started = threading.Event()
        self.events: list[str] = []
        self.start()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body = {
            "model": MODEL_NAME,
            "prompt": "the valve",
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "stream": True,
        }
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        while line := answer.readline():
            if line.strip():
                self.events.append(line.decode().strip())
                self.started.set()
        connection.close()


def test_deploy_change_under_a_stream_and_leave_nothing(tmp_path: Path) -> None:
    options = vllm_options(tmp_path, drain_timeout_s=600.0, grace_s=30.0)
    port = free_port()
    state_dir = tmp_path / "state"

    def make() -> VllmLocal:
        return VllmLocal(context(state_dir, f"http://127.0.0.1:{port}", Shape(replicas=1), options))

    async def story() -> None:
        actuator = make()
        plan = await actuator.plan(await actuator.live(), Shape(replicas=1, engine={"max_num_seqs": 2}))
        steps = await carry_out(make, plan, "deploy", limit_s=600)
        before = await make().live()
        assert (before.ready, before.shape.engine, list(before.targets)) == (True, {"max_num_seqs": 2}, ["g1-0"]), steps
        metrics = call("GET", before.targets["g1-0"] + "/metrics").body.decode()
        assert f'vllm:num_requests_running{{engine="0",model_name="{MODEL_NAME}"}} 0.0' in metrics

        stream = _Stream(port, tokens=1800)
        assert await asyncio.to_thread(stream.started.wait, 120)
        plan = await make().plan(before, Shape(replicas=1, engine={"max_num_seqs": 8}))
        assert [o.name for o in plan.operations] == [
            "start_replicas",
            "switch",
            "drain",
            "stop_replicas",
            "kill_replicas",
        ]
        await carry_out(make, plan, "change", limit_s=600)
        await asyncio.to_thread(stream.join, 600)
        assert stream.events[-1] == "data: [DONE]"
        assert json.loads(stream.events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"

        live = await make().live()
        assert (live.ready, live.shape.engine, list(live.targets)) == (True, {"max_num_seqs": 8}, ["g2-0"])
        assert {p.name for p in Processes(state_dir).scan()} == {"g2-0", "router"}
        assert "Application startup complete" in (state_dir / "logs" / "g1-0.log").read_text()
        with pytest.raises(OSError, match="refused"):
            call("GET", before.targets["g1-0"] + "/health")

    try:
        asyncio.run(story())
    finally:
        processes = Processes(state_dir)
        before = processes.scan()
        teardown(state_dir, grace_s=20.0)
    assert len([p for p in before if p.name == "g2-0"]) > 1, "vLLM's engine process carries the marker too"
    assert processes.scan() == []
