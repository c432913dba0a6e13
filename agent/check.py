"""What `flyball check` finds beyond the file itself: plugins that are missing, options that they refuse, things that do not answer."""

from __future__ import annotations

from actuators.base import ActuatorError
from agent import plugins
from agent.clock import WallClock
from agent.configfile import Loc, Problem, SettingsFile, field_name, nearest
from agent.discover import lacking_of
from agent.plugins import PluginError
from agent.snapshots import EndpointSnapshot, listed_models, snapshot_of
from agent.watch import WatchedEndpoint
from agent.wiring import Environment, watched_of
from collectors.http import Http
from collectors.window import CollectError, Reading, Span

_CORRECT = "Correct the settings, or start the server as they say: everything is predicted from them"


def check_plugins(loaded: SettingsFile) -> list[Problem]:
    """Sources and systems that are not there, and options that they do not know. Offline."""
    problems: list[Problem] = []
    for i, endpoint in enumerate(loaded.settings.endpoints):
        at: Loc = ("endpoints", i)
        for name, options in endpoint.sources.items():
            source: Loc = (*at, "sources", name)
            problems += _options(loaded, source, source, plugins.COLLECTORS, name, options)
        actuator = endpoint.actuator
        system: Loc = (*at, "actuator")
        problems += _options(
            loaded, (*system, "system"), (*system, "options"), plugins.ACTUATORS, actuator.system, actuator.options
        )
        if endpoint.mode != "observe" and actuator.system == "none":
            what = f"mode is {endpoint.mode}, but no system can change this endpoint"
            problems.append(_problem(loaded, (*at, "mode"), what, "Set actuator.system, or mode: observe"))
    return problems


def _options(
    loaded: SettingsFile, named: Loc, loc: Loc, group: str, name: str, options: dict[str, object]
) -> list[Problem]:
    """Of the plugin that is named at ``named`` and has its options at ``loc``."""
    try:
        wrong = plugins.check_options(group, name, options)
    except PluginError as error:
        return [_problem(loaded, named, str(error), "Correct the name, or install the package that has it")]
    return [
        _problem(loaded, (*loc, *bad.loc), f"is not an option of {name}", nearest(str(bad.loc[-1]), bad.known))
        if bad.unknown
        else _problem(loaded, (*loc, *bad.loc), bad.what, f"See the options of {name} in docs/settings.md")
        for bad in wrong
    ]


def _problem(loaded: SettingsFile, loc: Loc, what: str, do: str) -> Problem:
    return Problem(str(loaded.path), loaded.line(loc), field_name(loc), what, do)


async def check_live(loaded: SettingsFile) -> tuple[list[Problem], list[EndpointSnapshot]]:
    """Reach every source and system once, and tell what was seen; sends nothing but reads."""
    clock = WallClock()
    http = Http(ca_file=loaded.settings.tls_ca_file, monotonic=clock.monotonic)
    environment = Environment(http, clock)
    problems: list[Problem] = []
    snapshots: list[EndpointSnapshot] = []
    try:
        for i, endpoint in enumerate(loaded.settings.endpoints):
            watched = watched_of(loaded.settings, endpoint, environment)
            found, read = await _reach(loaded, ("endpoints", i), watched)
            answers = bool(read) or (watched.live is not None and watched.live.ready)
            timeout_s = loaded.settings.collect.timeout_s
            models = await listed_models(http, watched.targets()[0], timeout_s) if answers else ()
            snapshots.append(snapshot_of(watched, read, models))
            problems += found
            problems += [
                _problem(loaded, ("endpoints", i, *c.field), f"is {c.stated}, and the server says {c.told}", _CORRECT)
                for c in snapshots[-1].contradictions
            ]
            problems += await _allowed(loaded, ("endpoints", i), watched, environment)
    finally:
        await environment.sessions.aclose()
        await http.aclose()
    return problems, snapshots


async def _allowed(loaded: SettingsFile, at: Loc, watched: WatchedEndpoint, environment: Environment) -> list[Problem]:
    """Each permission that its systems do not grant, by the vendor's own name of it."""
    entry = watched.settings.model_dump(mode="python")
    try:
        lacking = await lacking_of(entry, environment)
    except CollectError as error:
        return [_problem(loaded, (*at, "actuator"), f"permissions cannot be asked for: {error.kind}", error.detail)]
    system = watched.settings.actuator.system
    do = f"Grant it; `flyball permissions {system}` prints the least role"
    return [
        _problem(loaded, (*at, "actuator"), f"lacks {p.name}, needed to {p.what_for}: {p.detail or 'not granted'}", do)
        for p in lacking
        if p.what_for == "see" or watched.settings.mode != "observe"
    ]


async def _reach(
    loaded: SettingsFile, at: Loc, watched: WatchedEndpoint
) -> tuple[list[Problem], dict[str, list[Reading | Span]]]:
    """What does not answer, and what each source told that does."""
    problems: list[Problem] = []
    read: dict[str, list[Reading | Span]] = {}
    try:
        watched.live = await watched.actuator.live()
        if not watched.live.ready:
            what = f"is not ready: {watched.live.detail or 'it does not answer'}"
            problems.append(_problem(loaded, (*at, "actuator"), what, "Start it, or correct the url"))
    except ActuatorError as error:
        problems.append(_problem(loaded, (*at, "actuator"), str(error), "Correct the address or the credentials"))
    for name, collector in watched.collectors.items():
        for target in watched.targets_of(name):
            try:
                read.setdefault(name, []).extend(await collector.read(target))
            except CollectError as error:
                where = (*at, "sources", name)
                problems.append(_problem(loaded, where, f"{target.url} cannot be read: {error.kind}", error.detail))
    return problems, {name: said for name, said in read.items() if said}
