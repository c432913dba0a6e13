"""From the command line's options, the settings and the store to a TrafficRequest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.simulate.request import (
    MOST_REPLAYED,
    Caps,
    LoadOptions,
    Prices,
    TrafficRequest,
    TrafficTarget,
    headers_of,
    loaded,
    warmup_of,
)
from analyzers.grammar import BadQuestion, objective, positive, span
from analyzers.strict import nearest
from collectors.openai import Api
from collectors.traffic.cluster import Cluster
from collectors.traffic.connection import resolve
from collectors.window import CollectError
from collectors.workload import Workload

if TYPE_CHECKING:
    from actuators.shape import Shape as PaidShape
    from agent.settings import EndpointSettings, Settings


@dataclass(frozen=True, slots=True)
class TrafficOptions:
    """What was given, but for the load."""

    url: str | None = None
    model: str | None = None
    api: str = "chat"
    endpoint: str | None = None
    config: Path | None = None
    """None: not asked for; the default file counts where it is there."""
    headers: list[str] = field(default_factory=list)
    api_key_env: str | None = None
    ca_file: Path | None = None
    trace: Path | None = None
    trace_format: str | None = None
    time_unit: str | None = None
    like: str | None = None
    since: str = "7d"
    max_concurrency: int | None = None
    timeout_s: float = 120.0
    exact_output: bool = False
    extra: str | None = None
    objective: list[str] = field(default_factory=list)
    prices: Prices = field(default_factory=Prices)
    caps: Caps = field(default_factory=Caps)
    workers: int | None = None
    ray: str | None = None
    """The cluster that sends it; None: this machine does."""
    allow_production: bool = False


DEFAULT = Path("flyball.yaml")


def settings_of(given: TrafficOptions) -> Settings | None:
    """Where they are needed, or there: to know which addresses are production."""
    wanted = given.config is not None or given.endpoint is not None or given.like is not None
    path = given.config or DEFAULT
    if not wanted and not path.exists():
        return None
    from agent.configfile import load

    return load(path).settings


def cluster_of(address: str, target: TrafficTarget, notes: list[str]) -> Cluster:
    """The cluster that sends it. Raises BadQuestion where Ray is not installed, CollectError where it does not answer."""
    if find_spec("ray") is None:
        raise BadQuestion(f"--ray {address}: Ray is not installed here; pip install 'flyball[ray]'")
    found = Cluster(address)
    host = resolve(target.url).address[0]
    if isinstance(host, str) and ip_address(host.partition("%")[0]).is_loopback:
        notes.append(f"{target.url} is each node's own address: every worker sends to its own machine")
    return found


def traffic_of(
    given: TrafficOptions, options: LoadOptions, settings: Settings | None, notes: list[str]
) -> TrafficRequest:
    """Raises BadQuestion."""
    endpoint = _endpoint(given.endpoint, settings, "--endpoint") if given.endpoint is not None else None
    target = _target(given, settings, endpoint)
    if given.trace is not None:
        options = replace(options, workload=lambda: _trace(given, notes), of={"trace": given.trace.name})
    elif given.like is not None:
        like = _endpoint(given.like, settings, "--like")
        options = replace(options, workload=lambda: _observed(given, options, settings, like), of={"like": given.like})
    if given.trace is not None and given.like is not None:
        raise BadQuestion("give either --trace or --like")
    found = loaded(options)
    wanted = (
        objective(given.objective) if given.objective else endpoint.wanted() if endpoint is not None else objective([])
    )
    if given.max_concurrency is not None and given.max_concurrency < 1:
        raise BadQuestion(f"--max-concurrency {given.max_concurrency}: give 1 or more")
    timeout_s = positive(given.timeout_s, "--timeout")
    assert timeout_s is not None
    return TrafficRequest(
        target=target,
        load=found.load,
        about=found.about,
        duration_s=found.duration_s,
        warmup_s=warmup_of(options, found.duration_s),
        peak_rate=found.peak_rate,
        mean_prompt=found.mean_prompt,
        mean_output=found.mean_output,
        most_in_flight=given.max_concurrency,
        timeout_s=timeout_s,
        exact_output=given.exact_output,
        extra=_extra(given.extra),
        seed=options.seed,
        objective=wanted,
        prices=_prices(given.prices, settings, endpoint),
        caps=given.caps,
        workers=given.workers,
    )


def _endpoint(name: str, settings: Settings | None, option: str) -> EndpointSettings:
    names = [e.name for e in settings.endpoints] if settings is not None else []
    if settings is None or name not in names:
        raise BadQuestion(f"{option} {name}: {nearest(name, names)}")
    return settings.endpoint(name)


def _target(given: TrafficOptions, settings: Settings | None, endpoint: EndpointSettings | None) -> TrafficTarget:
    url = given.url or (endpoint.url if endpoint is not None else None)
    if url is None:
        raise BadQuestion("give --url URL, or --endpoint NAME of the settings")
    api: Api | None = {"chat": "chat", "completions": "completions"}.get(given.api)  # type: ignore[assignment]
    if api is None:
        raise BadQuestion(f"--api {given.api}: known are chat and completions")
    headers = headers_of(given.headers, given.api_key_env)
    ca_file = given.ca_file
    if endpoint is not None and settings is not None:
        key = endpoint.api_key
        if key is not None and "authorization" not in {name.lower() for name in headers}:
            headers["authorization"] = f"Bearer {key.get_secret_value()}"
        ca_file = ca_file or settings.tls_ca_file
    production = _production(url, settings, endpoint)
    if production is not None and not given.allow_production:
        raise BadQuestion(
            f"{production} is a production endpoint: traffic would slow down its users. Send to a reference endpoint or a copy, or give "
            "--allow-production"
        )
    model = given.model or (endpoint.model if endpoint is not None else None)
    name = endpoint.name if endpoint is not None else None
    return TrafficTarget(url.rstrip("/"), model, api, headers, ca_file, name, production is not None)


def _production(url: str, settings: Settings | None, endpoint: EndpointSettings | None) -> str | None:
    """Whose production address this is, if it is one, under whatever name."""
    if endpoint is not None and endpoint.role == "production":
        return endpoint.name
    for other in settings.endpoints if settings is not None else ():
        if other.role == "production" and _same(other.url, url):
            return other.name
    return None


def _same(one: str, other: str) -> bool:
    try:
        a, b = resolve(one), resolve(other)
    except CollectError:
        return one.rstrip("/") == other.rstrip("/")
    return (a.host, a.port) == (b.host, b.port) or a.address == b.address


def _trace(given: TrafficOptions, notes: list[str]) -> Workload:
    from collectors.traces import BadTrace, read_trace

    assert given.trace is not None
    try:
        return read_trace(given.trace, given.trace_format, notes, given.time_unit)
    except BadTrace as error:
        raise BadQuestion(str(error)) from error


def _observed(
    given: TrafficOptions, options: LoadOptions, settings: Settings | None, like: EndpointSettings
) -> Workload:
    """What the store saw of an endpoint, drawn again request by request."""
    from agent.clock import WallClock
    from agent.store import Store
    from agent.store.evidence import judged
    from analyzers.prediction import CannotPredict
    from analyzers.whatif.traffic import workload_from_windows

    assert settings is not None
    store = Store(settings.database)
    try:
        store.check()
        now, width = WallClock().now(), settings.collect.window_s
        end = now // width * width
        with store.read() as db:
            found = judged(db, like.name, like.sources, end - span(given.since), end, width)
    finally:
        store.close()
    try:
        return workload_from_windows(found, seed=options.seed, max_requests=MOST_REPLAYED)
    except CannotPredict as error:
        raise BadQuestion(f"--like {like.name}: {error.detail}") from error


def _prices(given: Prices, settings: Settings | None, endpoint: EndpointSettings | None) -> Prices:
    """As given, else what the settings say of the endpoint's hour."""
    for name in ("usd_per_hour", "usd_per_1k_input_tokens", "usd_per_1k_output_tokens"):
        positive(getattr(given, name), f"--{name.replace('_', '-')}", zero=True)
    if given != Prices() or settings is None or endpoint is None:
        return given
    from agent.wiring import catalogue_of

    return Prices(usd_per_hour=catalogue_of(settings, endpoint).per_hour(_shape(settings, endpoint)))


def _shape(settings: Settings, endpoint: EndpointSettings) -> PaidShape:
    """What runs now, where the store knows it; else what the settings state."""
    from actuators.shape import Shape
    from agent.store import Store, fleet

    store = Store(settings.database)
    try:
        known = None
        if store.current() == store.head():
            with store.read() as db:
                known = fleet.get(db, endpoint.name)
        return Shape.from_dict(known["shape"]) if known is not None and known["shape"] else endpoint.shape.shape()
    finally:
        store.close()


def _extra(text: str | None) -> Mapping[str, Any]:
    import json

    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadQuestion(
            f"--extra {text[:60]}: is not JSON ({error}); write for instance '{{\"top_p\": 0.9}}'"
        ) from error
    if not isinstance(found, dict):
        raise BadQuestion(f"--extra {text[:60]}: give a JSON object, such as '{{\"top_p\": 0.9}}'")
    return found
