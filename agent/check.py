"""What `flyball check` finds beyond the file itself: plugins that are missing, options that they refuse, names that nothing has,
things that do not answer; and notes of what is not judged without a setting that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping

from actuators.base import ActuatorError
from actuators.shape import Shape
from agent import plugins
from agent.clock import WallClock
from agent.configfile import Loc, Problem, SettingsFile, field_name, nearest, without
from agent.discover import lacking_of
from agent.plugins import PluginError
from agent.settings import EndpointSettings
from agent.snapshots import EndpointSnapshot, listed_models, snapshot_of
from agent.watch import WatchedEndpoint
from agent.wiring import Environment, catalogue_of, watched_of
from analyzers import shapes, vllm_arguments
from analyzers.grammar import BadQuestion
from analyzers.hardware import ACCELERATORS, Hardware, find
from collectors.http import Http
from collectors.receiver import ReceiverMember
from collectors.window import CollectError, Reading, Span

_CORRECT = "Correct the settings, or start the server as they say: everything is predicted from them"


def check_file(loaded: SettingsFile) -> list[Problem]:
    """All that can be said without reaching anything."""
    return without([*check_plugins(loaded), *check_shapes(loaded)], loaded.resolved)


def check_plugins(loaded: SettingsFile) -> list[Problem]:
    """Sources and systems that are not there, and options that they do not know. Offline."""
    problems: list[Problem] = []
    for i, endpoint in enumerate(loaded.settings.endpoints):
        at: Loc = ("endpoints", i)
        for name, options in endpoint.sources.items():
            source: Loc = (*at, "sources", name)
            problems += _options(loaded, source, source, plugins.COLLECTORS, name, options)
            if name == "otlp" and options.get("token") is None and not loaded.settings.web.on_loopback:
                what = f"has no token, and web.host {loaded.settings.web.host} can be reached from elsewhere: nobody could send"
                problems.append(_problem(loaded, (*source, "token"), what, "Set it to what senders show, by reference"))
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


def check_shapes(loaded: SettingsFile) -> list[Problem]:
    """Sizes, accelerators and engine arguments that are slips of the pen: nothing would ever come of them. Offline."""
    settings = loaded.settings
    problems: list[Problem] = []
    for name, size in settings.sizes.items():
        if size.bandwidth_gb_s is None or size.tflops_bf16 is None or size.memory_gb is None:
            problems += _accelerator(loaded, ("sizes", name, "accelerator"), size.accelerator, ACCELERATORS)
    for i, endpoint in enumerate(settings.endpoints):
        at: Loc = ("endpoints", i)
        shape, hardware = endpoint.shape, catalogue_of(settings, endpoint).hardware
        problems += _accelerator(loaded, (*at, "shape", "accelerator"), shape.accelerator, hardware)
        if shape.size is not None and (meant := shapes.slip(shape.size, settings.sizes)) is not None:
            what = f"{shape.size!r} is not among `sizes`"
            problems.append(_problem(loaded, (*at, "shape", "size"), what, f"Did you mean {meant!r}?"))
        for name in endpoint.policy.engine:
            if (meant := shapes.slip(name, _ARGUMENTS)) is not None:
                where: Loc = (*at, "policy", "engine", name)
                problems.append(_problem(loaded, where, "is no argument of the engine", f"Did you mean {meant!r}?"))
        for name in shape.engine:
            try:
                shapes.check_names([name], {*shapes.ENGINE_ARGUMENTS, *endpoint.policy.engine})
            except BadQuestion as error:
                where = (*at, "shape", "engine", name)
                problems.append(
                    _problem(loaded, where, "is no argument of the engine", _sentence(str(error).partition("; ")[2]))
                )
    return problems


_ARGUMENTS = {*shapes.ENGINE_ARGUMENTS, *vllm_arguments.ARGUMENTS}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _accelerator(loaded: SettingsFile, loc: Loc, name: str | None, hardware: Mapping[str, Hardware]) -> list[Problem]:
    if name is None or find(name, hardware) is not None:
        return []
    meant = shapes.slip(name, hardware)
    return [_problem(loaded, loc, f"{name!r} is not known", f"Did you mean {meant!r}?")] if meant is not None else []


def notes_of(loaded: SettingsFile) -> list[Problem]:
    """What is right, and will not do what one may expect: an endpoint without an objective, price or shape, a name without effect."""
    notes: list[Problem] = []
    for i, endpoint in enumerate(loaded.settings.endpoints):
        notes += _lacking(loaded, ("endpoints", i), endpoint)
        notes += _without_effect(loaded, ("endpoints", i), endpoint)
    return notes


def _lacking(loaded: SettingsFile, at: Loc, endpoint: EndpointSettings) -> list[Problem]:
    shape, notes = endpoint.shape, []
    catalogue = catalogue_of(loaded.settings, endpoint)
    if not endpoint.objective:
        what = "no objective: whether it is fast enough is not judged"
        notes.append(_problem(loaded, (*at, "objective"), what, "Set for instance objective: {ttft_p95_s: 1.0}"))
    sizes = catalogue.prices if shape.size is None else {shape.size}
    unpriced = endpoint.usd_per_replica_hour is None and all(catalogue.prices.get(name) is None for name in sizes)
    if unpriced and not catalogue.by_token:
        what = "no price: neither cost nor saving is told"
        notes.append(
            _problem(
                loaded, (*at, "usd_per_replica_hour"), what, "Set usd_per_replica_hour, or its size's under `sizes`"
            )
        )
    if endpoint.actuator.system == "none" and shape.shape() == Shape():
        what = "no shape: what it runs on is not known, so other shapes are not predicted"
        notes.append(_problem(loaded, (*at, "shape"), what, "Set replicas, size or accelerator, and engine limits"))
    return notes


def _without_effect(loaded: SettingsFile, at: Loc, endpoint: EndpointSettings) -> list[Problem]:
    stated = {("shape", "engine", name): name for name in endpoint.shape.engine}
    stated |= {("policy", "engine", name): name for name in endpoint.policy.engine}
    do = "Whatever it does to the speed is learned from the telemetry only"
    return [
        _problem(loaded, (*at, *where), "no effect of it on a prediction is known", do)
        for where, name in stated.items()
        if name not in shapes.ENGINE_ARGUMENTS
    ] + [
        _problem(
            loaded, (*at, *where), f"{name!r} is not in the table of accelerators", "Other hardware is not predicted"
        )
        for where, name in ((("shape", "accelerator"), endpoint.shape.accelerator),)
        if name is not None and find(name, catalogue_of(loaded.settings, endpoint).hardware) is None
    ]


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
        if isinstance(collector, ReceiverMember):  # it is pushed: `flyball status` says when something came last
            continue
        for target in watched.targets_of(name):
            try:
                read.setdefault(name, []).extend(await collector.read(target))
            except CollectError as error:
                where = (*at, "sources", name)
                problems.append(_problem(loaded, where, f"{target.url} cannot be read: {error.kind}", error.detail))
    return problems, {name: said for name, said in read.items() if said}
