"""The settings of one server, written from what it tells of itself, for ``flyball init --url``. Sends nothing but reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import SecretStr, ValidationError

from agent.clock import WallClock
from agent.settings import EndpointSettings, Settings
from agent.snapshots import EndpointSnapshot, listed_models, snapshot_of
from agent.wiring import Environment, watched_of
from analyzers.hardware import find
from analyzers.words import figure, wording
from collectors.base import ScrapeTarget, SourceContext
from collectors.host import HostCollector
from collectors.http import Http
from collectors.pagesigns import sign_of
from collectors.window import CollectError, Histogram, Reading

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_MAX_PAGE = 32 << 20
#: Limits to begin with; the averages since the server's start stand beside them.
_OBJECTIVE = {"ttft_p95_s": ("1.0", "ttft_s"), "itl_p95_s": ("0.05", "itl_s")}


class UnknownServer(Exception):
    """Nothing there tells anything that settings could be written from. The text says what to do."""


@dataclass(frozen=True, slots=True)
class ServerDescription:
    """What one server told."""

    name: str
    """For the endpoint: of its model, else of its host."""
    source: str
    """The collector that reads it; ``probe`` where only its API answers."""
    snapshot: EndpointSnapshot
    means: Mapping[str, float]
    """Seconds since the server's start, by metric."""
    accelerator: str | None
    """Of this host, where the server is on it: as the driver names it."""
    accelerators: int = 0


async def describe(url: str, api_key: str | None) -> ServerDescription:
    """Read its metrics page and its list of models once. Raises UnknownServer."""
    clock = WallClock()
    http = Http(monotonic=clock.monotonic)
    environment = Environment(http, clock)
    try:
        endpoint = _endpoint(url, api_key)
        source = await _source(http, endpoint)
        endpoint = endpoint.model_copy(update={"sources": {source: {}}})
        settings = Settings(endpoints=[endpoint])
        watched = watched_of(settings, endpoint, environment)
        target = watched.targets()[0]
        said: list[Reading] = []
        if source != "probe":
            try:
                said = [one for one in await watched.collectors[source].read(target) if isinstance(one, Reading)]
            except CollectError as error:
                raise UnknownServer(f"{url} cannot be read as {source}: {error}") from error
        models = await listed_models(http, target, settings.collect.timeout_s)
        if not said and not models:
            raise UnknownServer(f"{url} lists no model and has no metrics of an engine: is it the server's root?")
        snapshot = snapshot_of(watched, {source: said}, models)
        here = (urlsplit(url).hostname or "") in _LOOPBACK
        card, cards = await _cards(environment) if here else (None, 0)
        return ServerDescription(_name(snapshot, url), source, snapshot, _means(said), card, cards)
    finally:
        await environment.sessions.aclose()
        await http.aclose()


def written(
    known: ServerDescription,
    *,
    name: str | None = None,
    api_key: str | None = None,
    accelerator: str | None = None,
    usd_per_replica_hour: float | None = None,
) -> str:
    """The file's text. api_key: a reference, as it is to be written. The others are what the server cannot tell, or is to be told."""
    snapshot, longest = known.snapshot, known.snapshot.max_model_len
    told = snapshot.lines()
    card = accelerator or (known.accelerator if known.accelerator and find(known.accelerator) else None)
    shape = ["replicas: 1"]
    if card is not None:
        shape += [f"accelerator: {_plain(card)}"] + [f"accelerator_count: {known.accelerators}"] * (
            known.accelerators > 1 and accelerator is None
        )
    lines = [
        f"# Written by `flyball init --url {snapshot.url}`, from what the server told:",
        *(f"#   {line.strip()}" for line in told[1:]),
        "# Every field is described in docs/settings.md. Secrets are never written here: ${NAME} or file:PATH.",
        "",
        "endpoints:",
        f"  - name: {name or known.name}",
        f"    url: {snapshot.url}",
        *([f"    model: {_plain(snapshot.models[0])}"] if len(snapshot.models) > 1 else []),
        *([f"    api_key: {api_key}"] if api_key else []),
        "    mode: observe                         # says what it would do, and sends nothing but reads | approve | auto",
        f"    sources: {{{known.source}: {{}}}}"
        + ("    # a small request now and then: it has no metrics page" * (known.source == "probe")),
        "    objective:                            # what must hold: set your own",
        *(_limit(name, limit, known.means.get(metric)) for name, (limit, metric) in _OBJECTIVE.items()),
        f"    usd_per_replica_hour: {usd_per_replica_hour:g}"
        if usd_per_replica_hour is not None
        else "    # usd_per_replica_hour: 3.67          # no server tells its price: without it neither cost nor saving is told",
        "    shape:                                # what it runs on",
        *(f"      {line}" for line in shape),
        *(
            ["      # accelerator: H100                 # not told: other hardware is predicted once it is stated"]
            * (card is None)
        ),
        *([f"      engine: {{max_model_len: {longest}}}"] if longest else ["      engine: {}"]),
        "      # add to engine max_num_seqs, as the server was started: it does not tell it, and 256 is assumed",
        "    policy:                               # what may be proposed",
        "      max_replicas: 4",
        "",
    ]
    return "\n".join(lines)


def _endpoint(url: str, api_key: str | None) -> EndpointSettings:
    try:
        return EndpointSettings(name="new", url=url, api_key=None if api_key is None else SecretStr(api_key))
    except ValidationError as error:
        why = error.errors(include_url=False, include_input=False)[0]["msg"].removeprefix("Value error, ")
        raise UnknownServer(f"{url} is no address of a server: {why}. Write http://HOST:PORT") from error


async def _source(http: Http, endpoint: EndpointSettings) -> str:
    """The collector for its metrics page. Raises UnknownServer where nothing answers, or where the page is of something else."""
    key = endpoint.api_key
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key is not None else {}
    try:
        page = await http.get(f"{endpoint.url}/metrics", headers=headers, timeout_s=10.0, max_bytes=_MAX_PAGE)
    except CollectError as error:
        if error.kind == "http_404":
            return "probe"
        raise UnknownServer(
            f"{endpoint.url} cannot be read: {error}. Start the server, or correct the address"
        ) from error
    sign = sign_of(page.body)
    if sign is None:
        return "probe"
    if sign.source is None:
        raise UnknownServer(f"the page at {endpoint.url}/metrics is {sign.what}. {sign.do}")
    return sign.source


def _means(said: Sequence[Reading]) -> dict[str, float]:
    """Over all engines, since they started. Only what was counted."""
    found: dict[str, float] = {}
    for metric in ("ttft_s", "itl_s"):
        parts: list[Histogram] = [one.histograms[metric] for one in said if metric in one.histograms]
        count = sum(part.counts[-1] for part in parts)
        if count > 0:
            found[metric] = sum(part.total for part in parts) / count
    return found


async def _cards(environment: Environment) -> tuple[str | None, int]:
    """The accelerator of this host by its driver's name, and how many there are. None: none, or several kinds."""
    context = SourceContext("host", None, environment.http, environment.clock, environment.sessions, {})
    (reading,) = await HostCollector(context).read(ScrapeTarget("host", ""))
    return reading.facts.get("gpu"), int(reading.facts.get("gpus", "0"))


def _name(snapshot: EndpointSnapshot, url: str) -> str:
    """As an endpoint may be called."""
    of = snapshot.models[0].rstrip("/").rpartition("/")[2] if snapshot.models else urlsplit(url).hostname or "server"
    return re.sub(r"[^a-z0-9._-]+", "-", of.lower()).strip("-._")[:40] or "server"


def _limit(name: str, limit: str, mean_s: float | None) -> str:
    what = wording(name).partition(", p")[0]
    note = "" if mean_s is None else f"# {what} has been {figure(name, mean_s)} on average since its start"
    return f"      {name + ': ' + limit:<34}{note}".rstrip()


def _plain(value: Any) -> str:
    """As a YAML scalar."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1 << 20)
    return text.partition("\n")[0]
