"""``flyball discover systemd`` and ``flyball permissions systemd``: services of this host that serve models."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support, options_of
from collectors.engines import name_of_engine
from collectors.systemd.client import ServiceUnit, SystemdClient, SystemdSettings

_SOURCES = {"llama.cpp": "llamacpp", "llama-server": "llamacpp", "sglang": "sglang", "text-generation-inference": "tgi"}


class SystemdDiscoveryOptions(SystemdSettings):
    """What ``flyball discover systemd`` takes: how systemd is asked."""


class SystemdSystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "systemd"
    options: ClassVar[type[BaseModel]] = SystemdDiscoveryOptions
    support: ClassVar[Support] = Support(
        title="a service of systemd on this host",
        sees=("whether it runs, how it ended, how often systemd restarted it", "its limits, in its environment file"),
        changes=("an engine's limits, in its environment file, with a restart",),
        verified="specification only",
        how="real files and processes, with a stand-in for systemctl that answers in its form: no systemd runs where the tests do",
    )

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        options = options_of(SystemdDiscoveryOptions, context.options, "systemd")
        for unit in await SystemdClient(options).running():
            engine = name_of_engine(unit.command)
            if engine is not None:
                yield found(unit, engine, options)

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        """Whether a restart is allowed is polkit's to say, when it is asked for."""
        stated: Mapping[str, Any] = context.options
        actuator = (entry or {}).get("actuator") or {}
        held = dict(actuator.get("options") or {}) if actuator.get("system") == self.name else {}
        if entry is not None:
            stated = {k: v for k, v in held.items() if k in SystemdSettings.model_fields and v is not None}
        await SystemdClient(options_of(SystemdDiscoveryOptions, stated, "systemd")).running()
        permissions = [Permission("systemctl show", "see", True)]
        return (
            permissions + _file(str(held["environment_file"]), str(held.get("unit")))
            if held.get("environment_file")
            else permissions
        )

    def permissions(self) -> str:
        return _ROLE


def _file(environment_file: str, unit: str) -> list[Permission]:
    path, who = Path(os.path.realpath(environment_file)), f"as user id {os.geteuid()}"
    return [
        Permission(f"read {path}", "see", os.access(path, os.R_OK), who),
        Permission(f"write {path}", "change", os.access(path, os.W_OK), who),
        Permission(f"write {path.parent}", "change", os.access(path.parent, os.W_OK), "a file is written beside it"),
        Permission(f"restart {unit}", "change", None, "polkit says so when it is asked"),
    ]


def found(unit: ServiceUnit, engine: str, options: SystemdSettings) -> DiscoveredEndpoint:
    """A service as an entry of the settings."""
    words = list(unit.command)
    port = next((words[i + 1] for i, w in enumerate(words[:-1]) if w == "--port" and words[i + 1].isdigit()), None)
    held: dict[str, Any] = {"unit": unit.name}
    if options.systemctl != SystemdSettings().systemctl:
        held["systemctl"] = list(options.systemctl)
    variable = next((v for w in words if (v := re.fullmatch(r"\$\{?([A-Za-z_]\w*)\}?", w))), None)
    notes = [f"{unit.name}, {unit.active}, {unit.fragment}"]
    settings: dict[str, Any] = {
        "name": re.sub(r"[^a-z0-9._-]+", "-", unit.name.removesuffix(".service").lower()).strip("-._")[:60]
        or "service",
        "url": f"http://127.0.0.1:{port or 8000}",
        "sources": {_SOURCES.get(engine, "vllm"): {}},
        "mode": "observe",
    }
    if unit.environment_files and variable is not None:
        held |= {"environment_file": str(unit.environment_files[-1]), "arguments": variable[1]}
        settings["actuator"] = {"system": "systemd", "options": held}
        settings["policy"] = {"min_replicas": 1, "max_replicas": 1}
    else:
        notes.append("to change it, let its unit take its limits from an EnvironmentFile: see docs/systems/systemd.md")
    if port is None:
        notes.append("its port is not in its command: correct the url")
    return DiscoveredEndpoint(settings["name"], settings, "\n".join(notes))


_ROLE = """\
# To see: nothing but systemctl. To change: Flyball's user writes the environment file and its folder, and may restart this one unit.
chgrp flyball /etc/vllm /etc/vllm/chat.env
chmod g+w /etc/vllm /etc/vllm/chat.env
cat > /etc/polkit-1/rules.d/50-flyball-chat.rules <<'END'
polkit.addRule(function(action, subject) {
  if (action.id == "org.freedesktop.systemd1.manage-units" && subject.user == "flyball" &&
      action.lookup("unit") == "chat.service" && action.lookup("verb") == "restart") {
    return polkit.Result.YES;
  }
});
END
"""
