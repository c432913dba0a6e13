"""Asks a system what is there and what Flyball may do, for the command line and for `flyball check --live`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from agent import plugins
from agent.clock import WallClock
from agent.plugins import PluginError
from agent.wiring import Environment
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, System
from collectors.http import Http
from collectors.jobs import BatchJob, JobPlatform
from collectors.window import CollectError


def system_of(name: str) -> System:
    """By the name in the entry-point group ``flyball.systems``. Raises ``PluginError``."""
    made: System = plugins.load(plugins.SYSTEMS, name)()
    return made


async def found_by(name: str, options: Mapping[str, Any]) -> tuple[list[DiscoveredEndpoint], list[Permission]]:
    """Every endpoint that can be seen, and the permissions that lack. Raises ``PluginError``, which says why not."""
    system = system_of(name)
    clock = WallClock()
    http = Http(monotonic=clock.monotonic)
    environment = Environment(http, clock)
    context = DiscoveryContext(http.call, clock, environment.sessions, dict(options))
    try:
        lacking = [p for p in await system.permitted(context, None) if p.granted is False]
        return [found async for found in system.discover(context)], lacking
    except CollectError as error:
        raise PluginError(f"{name}: {error}") from error
    finally:
        await environment.sessions.aclose()
        await http.aclose()


async def jobs_of(name: str, options: Mapping[str, Any], of: str) -> list[BatchJob]:
    """The jobs that a system still knows of. Raises ``PluginError``, which says why not."""
    system = system_of(name)
    if not isinstance(system, JobPlatform):
        able = [n for n in plugins.names(plugins.SYSTEMS) if isinstance(system_of(n), JobPlatform)]
        raise PluginError(f"{name} tells of no jobs; these do: {', '.join(able)}")
    clock = WallClock()
    http = Http(monotonic=clock.monotonic)
    environment = Environment(http, clock)
    try:
        return await system.jobs(DiscoveryContext(http.call, clock, environment.sessions, dict(options)), of)
    except CollectError as error:
        raise PluginError(f"{name}: {error}") from error
    finally:
        await environment.sessions.aclose()
        await http.aclose()


async def lacking_of(entry: Mapping[str, Any], environment: Environment) -> list[Permission]:
    """What an endpoint's systems do not allow Flyball to do. ``entry``: its settings as plain data. Raises CollectError."""
    lacking: list[Permission] = []
    named = {entry["actuator"]["system"], *entry["sources"]}
    for name in sorted(named & set(plugins.names(plugins.SYSTEMS))):
        context = DiscoveryContext(environment.http.call, environment.clock, environment.sessions)
        lacking += [p for p in await system_of(name).permitted(context, entry) if p.granted is False]
    return lacking


def as_yaml(found: Sequence[DiscoveredEndpoint]) -> str:
    """Entries of `endpoints`, each under what is to be known of it."""
    parts = ["endpoints:\n"]
    for one in found:
        note = "".join(f"  # {line}\n" for line in one.note.splitlines())
        lines = yaml.safe_dump([dict(one.settings)], sort_keys=False, allow_unicode=True, width=120).splitlines()
        parts.append(note + "".join(f"  {line}\n" for line in lines))
    return "".join(parts)
