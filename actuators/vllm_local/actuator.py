"""The system ``vllm-local``: reads, plans and steps for vLLM replicas on this host behind one address.

vLLM takes its limits at start alone, so a change starts new replicas, switches the router, drains and stops the old ones; or,
where there is no room for both, drains and stops first. What serves stands in ``serving.json``, replaced in one step by each
switch; it is the router's list of backends and this actuator's memory at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from actuators.base import Actuator, ActuatorError, LiveState, Progress, Receipt, Step, SystemContext, Trouble
from actuators.shape import Operation, Plan, Shape
from actuators.vllm_local import planning, settings
from actuators.vllm_local.planning import ROUTER, SYSTEM, Serving
from actuators.vllm_local.processes import MarkedProcess, Processes, ProcessRecord, read_json, write_json
from actuators.vllm_local.settings import Options as Options  # what the entry point's module exposes
from collectors.discovery import Support
from collectors.http import HttpAnswer

SUPPORT = Support(
    title="vLLM replicas on this host, behind Flyball's own router",
    sees=("which replicas serve", "why one has died"),
    changes=("replicas", "engine limits, by new replicas and a switch"),
    verified="real part",
    how="a real vLLM server (CPU), deployed, changed under load and rolled back",
)


class VllmLocal:
    """See ``actuators.base.Actuator``. ``monotonic`` counts the grace between SIGTERM and SIGKILL."""

    system: ClassVar[str] = SYSTEM
    changes: ClassVar[Sequence[str]] = ("replicas", "engine.*")
    poll_s = 15.0

    def __init__(self, context: SystemContext, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.context = context
        self.options = settings.parse(context)
        self.host, self.port = settings.listen_address(self.options, context)
        self.served_name = self.options.served_model_name or context.model or self.options.model
        self.processes = Processes(context.state_dir)
        self._serving_path = context.state_dir / "serving.json"
        self._monotonic = monotonic
        self._do: dict[str, Callable[[Mapping[str, Any], str], None]] = {
            "start_replicas": self._do_start,
            "switch": self._do_switch,
            "drain": self._do_drain,
            "stop_replicas": self._do_stop,
            "kill_replicas": self._do_kill,
        }

    # what is there

    async def live(self) -> LiveState:
        serving = await asyncio.to_thread(self._serving)
        records, running = await asyncio.to_thread(self._there)
        alive = [n for n in serving.backends if n in records and self.processes.alive(records[n])]
        healthy = await asyncio.gather(*(self._healthy(serving.backends[n]) for n in alive))
        problems = [
            f"{name} has died; the end of its log:\n{self.processes.log_tail(name)}"
            for name in serving.backends
            if name not in alive
        ]
        problems += [
            f"{name} runs and does not answer /health" for name, well in zip(alive, healthy, strict=True) if not well
        ]
        if serving.backends and await self._router_report() is None:
            problems.append(f"the router does not answer; the end of its log:\n{self.processes.log_tail(ROUTER)}")
        ready = not problems
        if strays := sorted(set(running) - set(serving.backends) - {ROUTER}):
            problems.append(f"{', '.join(strays)} run and serve nobody: the next plan stops them")
        if not serving.generation:
            problems.append("nothing is deployed yet: a plan to the wanted shape deploys it")
        digests = sorted(f"{n}={records[n].digest}" for n in serving.backends if n in records)
        live_hash = hashlib.sha256(json.dumps([digests, serving.shape.as_dict()]).encode()).hexdigest()[:8]
        version = f"{serving.generation}-{live_hash}"
        targets, detail = dict(serving.backends), "; ".join(problems)
        return LiveState(
            self._stated(serving.shape), version, ready, serving=sum(healthy), targets=targets, detail=detail
        )

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        serving = await asyncio.to_thread(self._serving)
        records, running = await asyncio.to_thread(self._there)
        plan_context = planning.PlanContext(
            endpoint=self.context.endpoint,
            served_name=self.served_name,
            options=self.options,
            serving=serving,
            records=records,
            running=running.keys(),
        )
        return planning.plan(plan_context, live, wanted)

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        return await self.plan(live, plan.before)

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        """Nothing beforehand: each step compares the generation itself."""
        self._step(operation)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        try:
            await asyncio.to_thread(self._step(operation), operation.args, token)
        except OSError as error:
            text = f"{self.context.state_dir}: {error}"
            raise ActuatorError("STATE_UNWRITABLE", text, trouble=Trouble.UNREACHABLE) from None
        return Receipt({"token": token})

    def _step(self, operation: Operation) -> Callable[[Mapping[str, Any], str], None]:
        step = self._do.get(operation.name)
        if step is None:
            raise ActuatorError("UNKNOWN_OPERATION", f"vllm-local knows no step {operation.name!r}: plan again")
        return step

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        args, token = operation.args, receipt.handle["token"]
        match operation.name:
            case "start_replicas":
                return await self._started(list(args["replicas"]), token)
            case "switch":
                return await self._switched(args["generation"])
            case "drain":
                return await self._drained(args["replicas"], args["timeout_s"])
            case "stop_replicas" | "kill_replicas":
                return await asyncio.to_thread(self._gone, args["replicas"], args.get("grace_s"))
        raise ActuatorError("UNKNOWN_OPERATION", f"vllm-local knows no step {operation.name!r}: plan again")

    async def remove(self) -> None:
        """See ``actuators.base.RemovableActuator``: the router goes."""
        await asyncio.to_thread(teardown, self.context.state_dir)

    # doing

    def _do_start(self, args: Mapping[str, Any], token: str) -> None:
        digest = settings.digest(self.options, self.served_name, args["engine"])
        if digest != args["command"]:
            raise ActuatorError(
                "SETTINGS_CHANGED", "the settings are not those that the plan was made with: plan again"
            )
        serving, records = self._serving(), self.processes.records()
        if serving.generation != args["generation"]:
            if all(n in records and records[n].token == token for n in args["replicas"]):
                return  # this very step was done long ago
            text = (
                f"generation {serving.generation} serves, not {args['generation']}: somebody else switched; plan again"
            )
            raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)
        self.processes.forget_dead([*serving.backends, *args["replicas"], ROUTER])
        for name, device in args["replicas"].items():
            env = dict(self.options.env) if device is None else {**self.options.env, "CUDA_VISIBLE_DEVICES": device}
            port = self.processes.free_port()
            command = settings.command(self.options, self.served_name, args["engine"], port)
            self.processes.start(name, command, digest=digest, port=port, token=token, env=env, device=device)

    def _do_switch(self, args: Mapping[str, Any], token: str) -> None:
        serving = self._serving()
        if (serving.token, serving.generation) != (token, args["generation"]):
            if serving.generation != args["from_generation"]:
                text = f"generation {serving.generation} serves, not {args['from_generation']}: somebody else switched"
                raise ActuatorError("STALE_PLAN", f"{text}; plan again", trouble=Trouble.DRIFT)
            records = self.processes.records()
            dead = [n for n in args["replicas"] if n not in records or not self.processes.alive(records[n])]
            if dead:
                raise ActuatorError("REPLICA_DIED", f"{dead[0]} has died:\n{self.processes.log_tail(dead[0])}")
            write_json(
                self._serving_path,
                {
                    "schema_version": 1,
                    "generation": args["generation"],
                    "shape": args["shape"],
                    "backends": {n: records[n].url for n in args["replicas"]},
                    "token": token,
                },
            )
        self._ensure_router(token)

    def _ensure_router(self, token: str) -> None:
        listen = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        command = [sys.executable, "-m", "actuators.vllm_local.router", "--listen", listen]
        command += ["--serving", str(self._serving_path.resolve())]
        digest = hashlib.sha256(json.dumps(command).encode()).hexdigest()[:16]
        record = self.processes.records().get(ROUTER)
        if record is not None and self.processes.alive(record) and record.digest != digest:
            self.processes.kill(ROUTER)  # it listens where the settings no longer say
        elif record is not None and self.processes.alive(record):
            return
        if record is not None and record.pid is not None:
            self.processes.forget_dead([*self.processes.records().keys() - {ROUTER}])
        env = {"PYTHONPATH": str(Path(__file__).parents[2])}
        self.processes.start(ROUTER, command, digest=digest, port=self.port, token=token, env=env)

    def _do_drain(self, args: Mapping[str, Any], token: str) -> None:
        """Nothing to send: the switch took them out, and the router counts what is left."""
        if still := [n for n in args["replicas"] if n in self._serving().backends]:
            text = f"{', '.join(still)} serve: {token} must not stop them; plan again"
            raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)

    def _do_stop(self, args: Mapping[str, Any], token: str) -> None:
        self._do_drain(args, token)
        for name in args["replicas"]:
            self.processes.terminate(name, token, self._monotonic())

    def _do_kill(self, args: Mapping[str, Any], token: str) -> None:
        self._do_drain(args, token)
        for name in args["replicas"]:
            self.processes.kill(name)
        self.processes.forget_dead([*self._serving().backends, ROUTER])

    # how far it is

    async def _started(self, names: Sequence[str], token: str) -> Step:
        records = self.processes.records()
        for name in names:
            record = records.get(name)
            if record is None or record.token != token:
                return Step(Progress.PENDING, f"{name} is not started yet")
            if not self.processes.alive(record):
                return Step(
                    Progress.FAILED, f"{name} died at start; the end of its log:\n{self.processes.log_tail(name)}"
                )
        ready = await asyncio.gather(*(self._serves_model(records[n]) for n in names))
        waiting = [n for n, well in zip(names, ready, strict=True) if not well]
        if waiting:
            return Step(Progress.PENDING, f"waiting for {', '.join(waiting)}")
        return Step(Progress.DONE, f"{', '.join(names)} serve {self.served_name}")

    async def _switched(self, generation: int) -> Step:
        report = await self._router_report()
        if report is not None and (report.get("generation") or 0) >= generation:
            return Step(Progress.DONE, f"generation {report['generation']} serves")
        record = self.processes.records().get(ROUTER)
        if record is not None and record.pid is not None and not self.processes.alive(record):
            return Step(Progress.FAILED, f"the router died; the end of its log:\n{self.processes.log_tail(ROUTER)}")
        return Step(Progress.PENDING, "waiting for the router")

    async def _drained(self, names: Sequence[str], timeout_s: float) -> Step:
        report = await self._router_report()
        if report is None:
            record = self.processes.records().get(ROUTER)
            if record is not None and self.processes.alive(record):
                return Step(Progress.PENDING, "the router does not answer")
            return Step(Progress.DONE, "the router is gone, and with it every request through it")
        left = {n: b for n, b in report.get("backends", {}).items() if n in names and b["in_flight"]}
        count = sum(b["in_flight"] for b in left.values())
        if not left:
            return Step(Progress.DONE, "no request is left")
        if all((b["draining_s"] or 0.0) >= timeout_s for b in left.values()):
            return Step(
                Progress.DONE,
                f"{count} requests were still running after {timeout_s:g} s: they are cut",
            )
        return Step(Progress.PENDING, f"{count} requests are still running")

    def _gone(self, names: Sequence[str], grace_s: float | None) -> Step:
        records, running = self.processes.records(), self.processes.running()
        for record in records.values():
            self.processes.alive(record)  # collects what ended as a child of ours
        left = [n for n in names if n in running]
        if not left:
            return Step(Progress.DONE, "gone")
        told = [r.stopped_at for n in left if (r := records.get(n)) and r.stopped_at is not None]
        if grace_s is not None and told and self._monotonic() - max(told) >= grace_s:
            return Step(Progress.DONE, f"{', '.join(left)} did not end within {grace_s:g} s: the next step kills")
        return Step(Progress.PENDING, f"waiting for {', '.join(left)}")

    # inside

    def _there(self) -> tuple[dict[str, ProcessRecord], dict[str, list[MarkedProcess]]]:
        """All that is recorded, and what of it runs: a look at files and at /proc, so never on the event loop's thread."""
        return self.processes.records(), self.processes.running()

    def _serving(self) -> Serving:
        data = read_json(self._serving_path)
        if data is None:
            return Serving()
        try:
            return Serving(
                int(data["generation"]), Shape.from_dict(data["shape"]), dict(data["backends"]), data["token"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ActuatorError(
                "STATE_UNREADABLE", f"{self._serving_path}: {error!r}; see what runs, then move it away"
            ) from None

    def _stated(self, shape: Shape) -> Shape:
        """With what only the settings know: the machine that this host is."""
        return replace(self.context.shape, replicas=shape.replicas, engine=dict(shape.engine))

    async def _healthy(self, url: str) -> bool:
        answer = await self._get(f"{url}/health")
        return answer is not None and answer.status == 200

    async def _serves_model(self, record: ProcessRecord) -> bool:
        if not await self._healthy(record.url):
            return False
        answer = await self._get(f"{record.url}/v1/models")
        try:
            return answer is not None and self.served_name in [m["id"] for m in json.loads(answer.body)["data"]]
        except (ValueError, KeyError, TypeError):
            return False

    async def _router_report(self) -> dict[str, Any] | None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        host = f"[{host}]" if ":" in host else host
        answer = await self._get(f"http://{host}:{self.port}/.flyball/router")
        try:
            report = json.loads(answer.body) if answer is not None and answer.status == 200 else None
        except ValueError:
            return None
        return report if isinstance(report, dict) else None

    async def _get(self, url: str) -> HttpAnswer | None:
        try:
            return await self.context.http("GET", url, timeout_s=3.0)
        except (OSError, ValueError):
            return None


def make(context: SystemContext) -> Actuator:
    """The entry point."""
    return VllmLocal(context)


def teardown(state_dir: Path, grace_s: float = 10.0) -> None:
    """Stop all that was ever started from ``state_dir``, the router too, and forget it. Waits for it. Logs stay."""
    processes = Processes(state_dir)
    (state_dir / "serving.json").unlink(missing_ok=True)
    for name in processes.running():
        processes.terminate(name, "teardown", time.monotonic())
    deadline = time.monotonic() + grace_s
    while (left := processes.running()) and time.monotonic() < deadline:
        for record in processes.records().values():
            processes.alive(record)  # collects zombies of ours
        time.sleep(0.05)
    for name in left:
        processes.kill(name)
    processes.forget_dead([])
