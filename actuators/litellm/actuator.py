"""The system ``litellm``: weights, limits and fallbacks of one model group, written into the proxy's file, and a restart.

A proxy without a database takes no change by its API; with one, what stands there is not in the file, and is left to that API. A write
compares first and is one rename. A restart is repeated only where nothing says that it was made: once more leads to the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
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
from actuators.litellm import planning
from actuators.litellm.planning import GroupTerms
from actuators.litellm.proxyfile import ProxyFile, differences, running_engine
from actuators.litellm.yamltext import UneditableYaml
from actuators.shape import EngineValue, Operation, Plan, Shape
from actuators.textfile import read_text, replace_text
from collectors.litellm.client import LiteLLMClient, LiteLLMError, ProxyDeployment, ProxySettings, shared

_TROUBLE = {
    "denied": Trouble.DENIED,
    "throttled": Trouble.THROTTLED,
    "unreachable": Trouble.UNREACHABLE,
}
#: What a restart command gets of Flyball's environment: not its secrets.
_INHERITED = ("PATH", "HOME", "USER", "LANG", "TZ", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
_SOON_S = 1.0


class Options(ProxySettings):
    """Settings of the system ``litellm``."""

    config: Path | None = None
    """The proxy's own file, on this host, a folder that the proxy sees (a file that is mounted alone stays the old one). Default: none, and
    it is only seen."""
    restart: tuple[str, ...] = ()
    """The command that restarts the proxy, word by word: `[systemctl, restart, litellm]`. Default: none, and a plan is a patch to be made
    by hand."""
    restart_s: float = Field(default=120.0, gt=0)
    """Seconds until a restarted proxy runs what its file says. Default 120: it starts in ten, and a busy host takes longer."""
    group: str | None = None
    """The model group. Default: the endpoint's `model`, then its name."""


class LiteLLMGroup:
    """See ``actuators.base.Actuator``."""

    system: ClassVar[str] = planning.SYSTEM
    changes: ClassVar[Sequence[str]] = ("engine.*",)
    poll_s = 15.0

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, "litellm")
        self.group = self.options.group or context.model or context.endpoint

    async def live(self) -> LiveState:
        if self.options.config is None:
            return self._seen(await self._deployments(), await self._router())
        file = self._file()
        shape = Shape(replicas=len(file.deployments(self.group)), engine=file.engine(self.group))
        try:
            outdated = await self._outdated(file)
        except ActuatorError as error:
            if not error.passes:
                raise
            return LiveState(shape, file.version, ready=False, detail=error.detail)
        detail = (
            f"the proxy runs otherwise than {self.options.config} says, until its next restart: {'; '.join(outdated)}"
        )
        return LiveState(shape, file.version, ready=not outdated, detail=detail if outdated else "")

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        if self.options.config is None:
            return self._no_plan(live, wanted)
        file = self._file()
        return planning.plan(self._terms(), file, live, wanted, await self._outdated(file))

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        """The lines before say all. A proxy that no longer answers is brought back by the same two steps."""
        if self.options.config is None:
            return self._no_plan(live, plan.before)
        file = self._file()
        try:
            outdated = await self._outdated(file)
        except ActuatorError as error:
            if not error.passes:
                raise
            outdated = [error.detail]
        return planning.plan(self._terms(), file, live, plan.before, outdated if done else ())

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        _known(operation)
        self._unmoved(operation, self._file(), last)
        if operation.name == "write":
            path = self._path()
            for what in (path, path.parent):
                if not os.access(what, os.W_OK):
                    raise ActuatorError("DENIED", f"{what} may not be written", trouble=Trouble.DENIED)
        if shutil.which(self.options.restart[0] if self.options.restart else "") is None:
            text = (
                f"the command that restarts the proxy cannot be run: {' '.join(self.options.restart) or 'none is set'}"
            )
            raise ActuatorError("DENIED", text, trouble=Trouble.DENIED)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        _known(operation)
        file = self._file()
        if operation.name == "write":
            if not self._is_written(operation, file):
                self._unmoved(operation, file, last)
                self._write(file, operation.args["changes"])
        elif not await self._runs(file):
            self._unmoved(operation, file, last)
            await self._restart(token)
        handle = {"step": operation.name, "token": token}
        return Receipt(handle, leaves=self._file().version)

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        _known(operation)
        file = self._file()
        if operation.name == "write":
            if self._is_written(operation, file):
                return Step(Progress.DONE, "it is written")
            return Step(Progress.FAILED, f"somebody has set {self.options.config} back")
        try:
            outdated = await self._outdated(file)
        except ActuatorError as error:
            if not error.passes:
                return Step(Progress.FAILED, error.detail)
            return Step(Progress.PENDING, error.detail, again_in_s=_SOON_S)
        if outdated:
            return Step(Progress.PENDING, f"it still runs the old settings: {'; '.join(outdated)}", again_in_s=_SOON_S)
        return Step(Progress.DONE, "the proxy runs what its file says")

    # inside

    def _client(self) -> LiteLLMClient:
        context = self.context
        return shared(context.sessions, context.url, self.options, context.headers, context.http)

    async def _deployments(self) -> list[ProxyDeployment]:
        try:
            found = [d for d in await self._client().deployments() if d.group == self.group]
        except LiteLLMError as error:
            self._raise(error)
        if not found:
            raise ActuatorError("NO_GROUP", f"the proxy at {self.context.url} has no model {self.group!r}")
        return found

    async def _router(self) -> Mapping[str, Any]:
        try:
            return await self._client().router()
        except LiteLLMError as error:
            self._raise(error)

    def _seen(self, deployments: Sequence[ProxyDeployment], router: Mapping[str, Any]) -> LiveState:
        """Without the file: what the proxy runs. A hash that LiteLLM made is no name for a person."""
        names = [d.id if len(d.id) < 64 else str(i + 1) for i, d in enumerate(deployments)]
        engine = running_engine(names, deployments, router, self.group)
        text = json.dumps([[d.id for d in deployments], sorted(engine.items())], default=str)
        return LiveState(Shape(replicas=len(deployments), engine=engine), planning.digest(text), ready=True)

    def _no_plan(self, live: LiveState, wanted: Shape) -> Plan:
        if wanted != live.shape:
            text = "name the proxy's file in actuator.options.config: without a database it takes no change by its API"
            raise CannotPlan("NO_FILE", text)
        return planning.nothing(self.context.endpoint, live)

    def _path(self) -> Path:
        """Where the file really is, through links."""
        assert self.options.config is not None
        return Path(os.path.realpath(self.options.config))

    def _file(self) -> ProxyFile:
        path = self._path()
        try:
            stamp = path.stat().st_mtime_ns
            file = ProxyFile.read(read_text(path), stamp)
        except OSError as error:
            raise ActuatorError("DENIED", f"{path} cannot be read: {error}", trouble=Trouble.DENIED) from error
        except ValueError as error:
            raise ActuatorError("BAD_FILE", f"{path}: {error}") from error
        if not file.deployments(self.group):
            text = f"{path} has no model {self.group!r}; there are: {', '.join(file.groups)}"
            text += ". What stands in the proxy's database is changed there"
            raise ActuatorError("NO_GROUP", text)
        return file

    def _terms(self) -> GroupTerms:
        return GroupTerms(
            self.context.endpoint, self.group, str(self._path()), bool(self.options.restart), self.options.restart_s
        )

    async def _outdated(self, file: ProxyFile) -> list[str]:
        """Where the proxy runs otherwise than the file says."""
        deployments = [d for d in await self._deployments() if not d.stored]
        names = [d.name for d in file.deployments(self.group)]
        if len(deployments) != len(names):
            return [f"{len(deployments)} deployments are there and not {len(names)}"]
        running = running_engine(names, deployments, await self._router(), self.group)
        return differences(file.engine(self.group), running)

    async def _runs(self, file: ProxyFile) -> bool:
        try:
            return not await self._outdated(file)
        except ActuatorError as error:
            if not error.passes:
                raise
            return False

    def _unmoved(self, operation: Operation, file: ProxyFile, last: Receipt | None) -> None:
        expected = last.leaves if last is not None else operation.args.get("version")
        if expected is not None and file.version != expected:
            text = f"somebody changed {self.options.config} meanwhile; plan again"
            raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)

    def _is_written(self, operation: Operation, file: ProxyFile) -> bool:
        engine = file.engine(self.group)
        return all(engine.get(name) == value for name, value in operation.args["changes"].items())

    def _write(self, file: ProxyFile, changes: Mapping[str, EngineValue | None]) -> None:
        """In one rename, with the mode and owner that the file has."""
        path = self._path()
        try:
            text = file.with_engine(self.group, changes)
        except (UneditableYaml, KeyError) as error:
            raise ActuatorError("STALE_PLAN", f"{path}: {error}; plan again", trouble=Trouble.DRIFT) from error
        try:
            replace_text(path, text)
        except OSError as error:
            text = f"{path} cannot be written: {error}. Give Flyball the file's owner or group"
            raise ActuatorError("DENIED", text, trouble=Trouble.DENIED) from error

    async def _restart(self, token: str) -> None:
        """Once for a token, as far as a note beside it tells."""
        folder = self.context.state_dir
        note = folder / "litellm-restarted.json"
        if _noted(note) == token:
            return
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "litellm-restart.log"
        env = {name: value for name in _INHERITED if (value := os.environ.get(name)) is not None}
        try:
            with log.open("wb") as said:
                process = await asyncio.create_subprocess_exec(
                    *self.options.restart, env=env, stdin=asyncio.subprocess.DEVNULL, stdout=said, stderr=said,
                    start_new_session=True,
                )  # fmt: skip
            try:
                status = await asyncio.wait_for(process.wait(), self.options.restart_s)
            finally:
                if process.returncode is None:
                    process.kill()
        except TimeoutError as error:
            text = f"{' '.join(self.options.restart)} did not end within {self.options.restart_s:g} s; see {log}"
            raise ActuatorError("RESTART_FAILED", text) from error
        except OSError as error:
            text = f"{' '.join(self.options.restart)} cannot be run: {error}"
            raise ActuatorError("DENIED", text, trouble=Trouble.DENIED) from error
        if status != 0:
            tail = log.read_text(encoding="utf-8", errors="replace")[-300:].strip()
            raise ActuatorError("RESTART_FAILED", f"{' '.join(self.options.restart)} ended with {status}: {tail}")
        note.write_text(json.dumps({"token": token}), encoding="utf-8")

    def _raise(self, error: LiteLLMError) -> NoReturn:
        trouble = _TROUBLE.get(error.kind, Trouble.INVALID)
        raise ActuatorError(error.kind.upper(), error.detail, trouble=trouble) from error


def _noted(note: Path) -> str | None:
    """The token of the last restart."""
    try:
        token = json.loads(note.read_text(encoding="utf-8"))["token"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return token if isinstance(token, str) else None


def _known(operation: Operation) -> None:
    if operation.name not in ("write", "restart"):
        raise ActuatorError("UNKNOWN_OPERATION", f"litellm knows no step {operation.name!r}: plan again")


def make(context: SystemContext) -> Actuator:
    """The entry point. Raises ActuatorError ``BAD_OPTIONS``."""
    return LiteLLMGroup(context)
