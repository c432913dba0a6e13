"""The system ``systemd``: an engine's limits in its unit's environment file, and a restart.

A write is one rename, and the text of before is kept in Flyball's own folder until the verdict, so that the way back is to the byte. A restart
is made where the process is older than the file: once more does nothing, also after a kill.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from pydantic import Field

from actuators.base import (
    Actuator,
    ActuatorError,
    CannotPlan,
    LiveState,
    Progress,
    Receipt,
    Step,
    SystemContext,
    Trouble,
    options_of,
)
from actuators.commandline import ENGINE_LIMITS
from actuators.shape import EngineValue, Operation, Plan, Shape
from actuators.systemd.environment import EnvironmentFile
from actuators.textfile import read_text, replace_text
from collectors.systemd.client import ServiceUnit, SystemdClient, SystemdError, SystemdSettings

_TROUBLE = {"denied": Trouble.DENIED, "missing": Trouble.DRIFT, "unreachable": Trouble.UNREACHABLE}
_STEPS = ("write", "restore", "restart", "forget")
_SOON_S = 1.0


class Options(SystemdSettings):
    """Settings of the system ``systemd``."""

    unit: str = Field(default="", pattern=r"^([A-Za-z0-9:_.\\@-]+\.service)?$")
    """The unit, with `.service`. Default: the endpoint's name."""
    environment_file: Path | None = None
    """The file that the unit names in `EnvironmentFile=` and that holds its limits. Default: none, and it is only seen."""
    arguments: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The variable of that file that holds the engine's arguments, as in `ExecStart=/usr/bin/vllm serve model $ARGS`. Default: none."""
    variables: dict[str, str] = Field(default_factory=dict)
    """Variables that hold one limit each, by the limit: `{max_num_seqs: MAX_NUM_SEQS}`. Default: none."""
    health: str | None = Field(default="/health", pattern=r"^/")
    """The page under the endpoint's `url` that answers 200 once it serves. Null: it counts as healthy as soon as systemd has it running."""
    restart_s: float = Field(default=900.0, gt=0)
    """Seconds until a restarted service must be healthy: weights are loaded."""


class SystemdService:
    """See ``actuators.base.Actuator``."""

    system: ClassVar[str] = "systemd"
    changes: ClassVar[Sequence[str]] = ("engine.*",)
    poll_s = 15.0

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, "systemd")
        self.unit = self.options.unit or f"{context.endpoint}.service"

    async def live(self) -> LiveState:
        unit = await self._unit()
        text, stamp = self._read()
        version = _version(text, stamp)
        shape = Shape(replicas=1, engine=self._file(text).engine)
        problems = [] if unit.active == "active" else [f"{self.unit} is {unit.active} ({unit.sub}, {unit.result})"]
        if not problems and self._outdated(unit):
            problems.append(f"{self.unit} runs otherwise than its file says, until its next restart")
        return LiveState(
            shape, version, ready=not problems, serving=int(unit.active == "active"), detail="; ".join(problems)
        )

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        unit = await self._unit()
        text, stamp = self._read()
        if _version(text, stamp) != live.version:
            raise CannotPlan("STALE_LIVE", f"{self._shown} was changed since it was read", trouble=Trouble.DRIFT)
        _check(live.shape, wanted)
        changes: dict[str, EngineValue | None] = {
            k: v for k, v in wanted.engine.items() if live.shape.engine.get(k) != v
        }
        changes |= dict.fromkeys(live.shape.engine.keys() - wanted.engine.keys())
        steps: list[Operation] = []
        after = text
        if changes:
            if self.options.environment_file is None:
                raise CannotPlan("NO_FILE", "name the unit's environment file: actuator.options.environment_file")
            try:
                after = self._file(text).with_engine(changes)
            except ValueError as error:
                raise CannotPlan("BY_HAND", f"{self._shown}: {error}") from error
            said = ", ".join(f"{k}={v}" if v is not None else f"no {k}" for k, v in sorted(changes.items()))
            args = {"changes": changes, "before": _digest(text), "after": _digest(after), "version": live.version}
            steps.append(Operation("write", args, 30.0, f"write {said} into {self._shown}"))
        if changes or self._outdated(unit):
            steps.append(self._restart_step())
        finish = (self._forget_step(_digest(text)),) if changes else ()
        undo = {"before": _digest(text), "after": _digest(after)} if changes else {}
        way_back = "the file as it was, to the byte; a restart"
        return self._plan(live, wanted, tuple(steps), way_back, finish=finish, undo=undo)

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        """The file of before, where it is still what the change made of it; else by the limits alone."""
        text, _ = self._read()
        undo = plan.undo
        if (
            "before" not in undo
            or _digest(text) not in (undo["after"], undo["before"])
            or undo["after"] == undo["before"]
        ):
            return await self.plan(live, plan.before)
        if _digest(text) == undo["before"] and not self._outdated(await self._unit()):
            return self._plan(live, plan.before, (), "none: this is the way back")
        steps = [self._restart_step()]
        if _digest(text) == undo["after"]:
            if not self._kept(str(undo["before"])).exists():
                return await self.plan(live, plan.before)
            args = {"before": undo["before"], "after": undo["after"]}
            steps.insert(0, Operation("restore", args, 30.0, f"write {self._shown} as it was before"))
        steps.append(self._forget_step(str(undo["before"])))
        return self._plan(live, plan.before, tuple(steps), "none: this is the way back")

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        _known(operation)
        text, stamp = self._read()
        if operation.name == "write":
            self._unmoved(operation, text, stamp, last)
        if operation.name in ("write", "restore"):
            path = self._path()
            for what in (path, path.parent):
                if not os.access(what, os.W_OK):
                    raise ActuatorError("DENIED", f"{what} may not be written", trouble=Trouble.DENIED)
        elif operation.name == "restart":
            await self._unit()

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        _known(operation)
        text, stamp = self._read()
        args = operation.args
        match operation.name:
            case "write":
                if _digest(text) != args["after"]:
                    self._unmoved(operation, text, stamp, last)
                    self._keep(text)
                    self._replace(self._file(text).with_engine(args["changes"]))
            case "restore":
                if _digest(text) != args["before"]:
                    if _digest(text) != args["after"]:
                        text = f"somebody changed {self._shown} meanwhile: it is not put back as it was"
                        raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)
                    self._replace(read_text(self._kept(str(args["before"]))))
            case "restart":
                unit = await self._unit()
                if self._outdated(unit, _since(last)) or unit.active not in ("active", "activating", "reloading"):
                    try:
                        await self._client().restart(self.unit)
                    except SystemdError as error:
                        self._raise(error)
            case "forget":
                self._kept(str(args["before"])).unlink(missing_ok=True)
        at = _since(last) if operation.name == "restart" else self.context.clock.monotonic()
        return Receipt({"step": operation.name, "token": token, "at": at}, leaves=_version(*self._read()))

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        _known(operation)
        if operation.name == "forget":
            return Step(Progress.DONE, "")
        if operation.name in ("write", "restore"):
            wanted = operation.args["after" if operation.name == "write" else "before"]
            if _digest(self._read()[0]) == wanted:
                return Step(Progress.DONE, "it is written")
            return Step(Progress.FAILED, f"somebody has changed {self._shown}")
        unit = await self._unit()
        if unit.active == "failed":
            return Step(Progress.FAILED, f"{self.unit} has failed ({unit.result}): journalctl -u {self.unit} says why")
        if unit.active != "active" or self._outdated(unit, _since(receipt)):
            return Step(Progress.PENDING, f"{self.unit} is {unit.active} ({unit.sub})", again_in_s=_SOON_S)
        return await self._healthy()

    # inside

    def _client(self) -> SystemdClient:
        return SystemdClient(SystemdSettings(systemctl=self.options.systemctl))

    async def _unit(self) -> ServiceUnit:
        try:
            return await self._client().unit(self.unit)
        except SystemdError as error:
            self._raise(error)

    async def _healthy(self) -> Step:
        if self.options.health is None:
            return Step(Progress.DONE, f"{self.unit} runs")
        url = self.context.url.rstrip("/") + self.options.health
        try:
            answer = await self.context.http("GET", url, headers=self.context.headers, timeout_s=5.0)
        except (OSError, ValueError) as error:
            return Step(Progress.PENDING, f"{url}: {error}", again_in_s=_SOON_S)
        if answer.status >= 300:
            return Step(Progress.PENDING, f"{url} answers {answer.status}", again_in_s=_SOON_S)
        return Step(Progress.DONE, f"{self.unit} serves")

    @property
    def _shown(self) -> str:
        return str(self.options.environment_file)

    def _path(self) -> Path:
        """Where the file really is, through links."""
        assert self.options.environment_file is not None
        return Path(os.path.realpath(self.options.environment_file))

    def _read(self) -> tuple[str, int]:
        """The text, and when it was written, in nanoseconds. Empty without a file."""
        if self.options.environment_file is None:
            return "", 0
        path = self._path()
        try:
            return read_text(path), path.stat().st_mtime_ns
        except (OSError, ValueError) as error:
            raise ActuatorError("DENIED", f"{path} cannot be read: {error}", trouble=Trouble.DENIED) from error

    def _file(self, text: str) -> EnvironmentFile:
        return EnvironmentFile(text, self.options.arguments, self.options.variables)

    def _outdated(self, unit: ServiceUnit, written: float | None = None) -> bool:
        """Whether its process is older than the file. Both are on this machine: its clocks tell. ``written``: when Flyball itself wrote it,
        by the monotonic clock, which nobody sets."""
        _, stamp = self._read()
        if not stamp or unit.started is None:
            return False
        if written is not None:
            return unit.started < written
        clock = self.context.clock
        return unit.started < clock.monotonic() - (clock.now() - stamp / 1e9)

    def _unmoved(self, operation: Operation, text: str, stamp: int, last: Receipt | None) -> None:
        expected = last.leaves if last is not None else operation.args["version"]
        if _version(text, stamp) != expected:
            raise ActuatorError(
                "STALE_PLAN", f"somebody changed {self._shown} meanwhile; plan again", trouble=Trouble.DRIFT
            )

    def _kept(self, digest: str) -> Path:
        return self.context.state_dir / f"systemd-{digest}.env"

    def _keep(self, text: str) -> None:
        """For Flyball alone: it may hold keys."""
        kept = self._kept(_digest(text))
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.touch(0o600)
        kept.write_bytes(text.encode())

    def _replace(self, text: str) -> None:
        try:
            replace_text(self._path(), text)
        except OSError as error:
            text = f"{self._shown} cannot be written: {error}. Give Flyball the file's owner or group"
            raise ActuatorError("DENIED", text, trouble=Trouble.DENIED) from error

    def _restart_step(self) -> Operation:
        return Operation(
            "restart", {"unit": self.unit}, self.options.restart_s, f"systemctl restart {self.unit}, until it serves"
        )

    def _forget_step(self, digest: str) -> Operation:
        return Operation("forget", {"before": digest}, 30.0, "forget the file of before")

    def _plan(
        self,
        live: LiveState,
        wanted: Shape,
        steps: tuple[Operation, ...],
        way_back: str,
        *,
        finish: tuple[Operation, ...] = (),
        undo: Mapping[str, Any] | None = None,
    ) -> Plan:
        return Plan(
            endpoint=self.context.endpoint,
            system=self.system,
            before=live.shape,
            after=wanted,
            version=live.version,
            operations=steps,
            restarts=bool(steps),
            downtime_s=self.options.restart_s if steps else 0.0,
            way_back=way_back if steps else "nothing is done",
            finish=finish,
            undo=undo or {},
            locks=(f"systemd:{self.unit}",) if steps else (),
        )

    def _raise(self, error: SystemdError) -> NoReturn:
        trouble = _TROUBLE.get(error.kind, Trouble.INVALID)
        raise ActuatorError(error.kind.upper(), error.detail, trouble=trouble) from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _version(text: str, stamp: int) -> str:
    """Of the file's text and when it was written: there and back again is another one."""
    return hashlib.sha256(f"{stamp}\n{text}".encode()).hexdigest()[:16]


def _check(now: Shape, wanted: Shape) -> None:
    other = [k for k in Shape.__slots__ if k != "engine" and getattr(wanted, k) != getattr(now, k)]
    if other:
        text = f"a service has no {', '.join(other)} to change here: only limits in its environment file"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    for name, value in wanted.engine.items():
        if value != now.engine.get(name) and (
            name not in ENGINE_LIMITS or isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            text = f"{name}={value}: known are {', '.join(ENGINE_LIMITS)}, whole numbers above 0"
            raise CannotPlan("BAD_ENGINE_LIMIT", text)


def _since(receipt: Receipt | None) -> float | None:
    """When the step before wrote the file."""
    return None if receipt is None else receipt.handle.get("at")


def _known(operation: Operation) -> None:
    if operation.name not in _STEPS:
        raise ActuatorError("UNKNOWN_OPERATION", f"systemd knows no step {operation.name!r}: plan again")


def make(context: SystemContext) -> Actuator:
    """The entry point. Raises ActuatorError ``BAD_OPTIONS``."""
    return SystemdService(context)
