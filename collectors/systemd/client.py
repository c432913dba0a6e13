"""What ``systemctl`` tells of a unit, and its restart. One short process for each question; no word of Flyball's secrets reaches it."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from collectors.window import CollectError

_TIMEOUT_S = 15.0
#: What a command gets of Flyball's environment: not its secrets.
_INHERITED = ("PATH", "HOME", "USER", "LANG", "TZ", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
_PROPERTIES = (
    "Id", "LoadState", "ActiveState", "SubState", "Result", "NRestarts", "MainPID", "ExecMainStartTimestampMonotonic",
    "ExecStart", "EnvironmentFiles", "FragmentPath",
)  # fmt: skip
UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.service")


class SystemdError(CollectError):
    """What systemd refused, or that it could not be asked: denied, missing, invalid, unreachable."""


class SystemdSettings(BaseModel):
    """How systemd is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    systemctl: tuple[str, ...] = Field(default=("systemctl",), min_length=1)
    """The command, word by word: `[systemctl, --user]` for a user's own services. Default: the system's."""


@dataclass(frozen=True, slots=True)
class ServiceUnit:
    """One service, as systemd has it."""

    name: str
    active: str
    """``active``, ``activating``, ``deactivating``, ``inactive``, ``failed``."""
    sub: str
    """``running``, ``start-pre``, ``auto-restart``, ``dead`` ..."""
    result: str
    """``success``, ``exit-code``, ``oom-kill`` ..."""
    restarts: int
    """How often systemd itself has restarted it."""
    started: float | None
    """When its main process started, in seconds of this machine's monotonic clock. None: it did not."""
    command: tuple[str, ...]
    """As the unit states it: variables of its environment are not put in."""
    environment_files: tuple[Path, ...]
    fragment: str


class SystemdClient:
    """Raises ``SystemdError`` and nothing else."""

    def __init__(self, settings: SystemdSettings) -> None:
        self._command = settings.systemctl

    async def unit(self, name: str) -> ServiceUnit:
        """Raises ``missing`` where no such unit is loaded."""
        said = await self._run("show", name, "--property", ",".join(_PROPERTIES))
        found = _unit(said)
        if found is None:
            raise SystemdError("missing", f"systemd has no unit {name}")
        return found

    async def running(self) -> list[ServiceUnit]:
        """Every service that runs."""
        words = ("list-units", "--type=service", "--state=running", "--plain", "--no-legend", "--no-pager")
        names = [line.split()[0] for line in (await self._run(*words)).splitlines() if line.strip()]
        if not names:
            return []
        said = await self._run("show", *names, "--property", ",".join(_PROPERTIES))
        return [unit for part in said.split("\n\n") if (unit := _unit(part)) is not None]

    async def restart(self, name: str) -> None:
        """Queued, and not waited for: what comes of it is read."""
        await self._run("restart", "--no-block", name)

    async def _run(self, *words: str) -> str:
        line = [*self._command, *words]
        shown = " ".join(line[:4])
        env = {name: value for name in _INHERITED if (value := os.environ.get(name)) is not None}
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(*line, env=env, stdin=null, stdout=pipe, stderr=pipe)
            try:
                said, problem = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        except TimeoutError as error:
            raise SystemdError("unreachable", f"{shown} did not end within {_TIMEOUT_S:g} s") from error
        except OSError as error:
            raise SystemdError("denied", f"{shown} cannot be run: {error}") from error
        if process.returncode != 0:
            text = " ".join(problem.decode("utf-8", "replace").split())[-400:]
            raise SystemdError(_kind(text), f"{shown} ended with {process.returncode}: {text}")
        return said.decode("utf-8", "replace")


def _kind(text: str) -> str:
    low = text.lower()
    if "not been booted" in low or "failed to connect" in low:
        return "unreachable"
    if "access denied" in low or "authentication" in low or "permission denied" in low:
        return "denied"
    return "missing" if "not found" in low or "not loaded" in low else "invalid"


def _unit(text: str) -> ServiceUnit | None:
    """Of ``systemctl show``: a property on each line. None: it is not loaded."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            found.setdefault(name, []).append(value)

    def one(name: str) -> str:
        return found.get(name, [""])[0]

    if one("LoadState") != "loaded":
        return None
    started = one("ExecMainStartTimestampMonotonic")
    files = tuple(Path(v.partition(" (")[0].removeprefix("-")) for v in found.get("EnvironmentFiles", ()) if v)
    return ServiceUnit(
        one("Id"),
        one("ActiveState"),
        one("SubState"),
        one("Result"),
        int(one("NRestarts") or 0),
        int(started) / 1e6 if started.isdigit() and int(started) else None,
        _command(one("ExecStart")),
        files,
        one("FragmentPath"),
    )


def _command(text: str) -> tuple[str, ...]:
    """Of ``{ path=/usr/bin/x ; argv[]=/usr/bin/x --port 1 ; ignore_errors=no ; … }``."""
    found = re.search(r"argv\[\]=(.*?) ; ", text)
    if found is None:
        return ()
    try:
        words: Sequence[str] = shlex.split(found[1])
    except ValueError:
        words = found[1].split()
    return tuple(words)
