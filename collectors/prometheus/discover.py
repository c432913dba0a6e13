"""What a store knows of model servers: an endpoint for each set of labels that tells deployments apart."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support
from collectors.prometheus.client import Labels, PrometheusAccount, PrometheusClient
from collectors.prometheus.fleet import Options, PresetName, account_of
from collectors.prometheus.presets import PRESETS
from collectors.window import CollectError

#: Labels that name a deployment and not one of its replicas, the widest first.
_TELLING = ("cluster", "namespace", "job", "service", "app", "deployment", "inferenceservice", "model_name")
#: Presets of engines, whose series are an endpoint each. The others say something of hosts.
_ENGINES: Sequence[PresetName] = tuple(name for name in get_args(PresetName) if name not in ("cadvisor", "dcgm"))
_LOOKED_S = 3600.0


class DiscoverOptions(BaseModel):
    """What ``flyball discover prometheus`` takes."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(default="http://127.0.0.1:9090", pattern=r"^https?://[^/]")
    """Base address of the store. Default: a Prometheus on this host."""
    match: str = ""
    """More matchers, as in PromQL: ``namespace="prod"``. Default: all that is there."""
    token: SecretStr | None = None
    """Sent as a bearer token. Default none."""
    tenant: str | None = None
    """Sent as X-Scope-OrgID. Default none."""
    timeout_s: float = Field(default=30.0, gt=0, le=300)
    """Seconds for one query. Default 30."""


class PrometheusSystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "prometheus"
    options: ClassVar[type[BaseModel]] = DiscoverOptions
    support: ClassVar[Support] = Support(
        title="a Prometheus-compatible store: Prometheus, VictoriaMetrics, Mimir, Thanos",
        sees=(
            "whole fleets by one query a metric: requests, errors, tokens, latencies, queue, batch, KV cache of vLLM, SGLang, TGI, llama.cpp",
            "CPU and memory by cAdvisor, GPUs by DCGM",
            "whatever PromQL says",
        ),
        changes=(),
        verified="real part",
        how="the real Prometheus 2.42 and VictoriaMetrics 1.79 scraping vLLM's metrics; other engines' names by their source code",
    )

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        """An endpoint for each deployment that has an engine's series. Raises CollectError."""
        options = _options(context.options)
        client = PrometheusClient(_account(options), context.http, options.timeout_s)
        now = context.clock.now()
        names: set[str] = set()
        for preset in _ENGINES:
            selector = f"{PRESETS[preset].alive}{{{options.match}}}"
            for labels, replicas in _deployments(await client.series(selector, now - _LOOKED_S, now)):
                name = _named(labels, names)
                names.add(name)
                yield _found(name, preset, labels, replicas, options.url)

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        """Whether queries and series may be asked for. Raises CollectError where nobody answers."""
        if entry is None:
            options = _options(context.options)
            account, timeout_s = _account(options), options.timeout_s
        else:
            source = Options.model_validate(entry["sources"]["prometheus"] or {})
            account, timeout_s = account_of(source), source.timeout_s
        client, now = PrometheusClient(account, context.http, timeout_s), context.clock.now()
        queries = await _allowed("POST /api/v1/query_range", client.range("vector(1)", now, now, 60.0))
        series = await _allowed("POST /api/v1/series", client.series("up", now - 60, now))
        return [queries, series]

    def permissions(self) -> str:
        """What a proxy in front of the store must let through."""
        return (
            "# Flyball only reads: let these through, with the credentials that its settings name.\n"
            "POST /api/v1/query_range\n"
            "POST /api/v1/series        # for `flyball discover prometheus` alone\n"
        )


async def _allowed(name: str, asked: Any) -> Permission:
    try:
        await asked
    except CollectError as error:
        if error.kind in ("http_401", "http_403"):
            return Permission(name, "see", False, error.detail)
        raise
    return Permission(name, "see", True)


def _options(given: Mapping[str, Any]) -> DiscoverOptions:
    try:
        options = DiscoverOptions.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CollectError("options", f"--option {where}: {first['msg']}") from error
    return options.model_copy(update={"url": options.url.rstrip("/")})


def _account(options: DiscoverOptions) -> PrometheusAccount:
    token = options.token.get_secret_value() if options.token else None
    return PrometheusAccount(options.url, token, tenant=options.tenant)


def _deployments(series: Sequence[Labels]) -> list[tuple[dict[str, str], list[str]]]:
    """The labels that tell each deployment from the others, and its replicas' addresses."""
    replicas: dict[tuple[tuple[str, str], ...], set[str]] = defaultdict(set)
    for labels in series:
        key = tuple((name, labels[name]) for name in _TELLING if labels.get(name))
        if key:
            replicas[key].add(labels.get("instance", ""))
    return [(dict(key), sorted(replicas[key])) for key in sorted(replicas)]


def _named(labels: Mapping[str, str], taken: set[str]) -> str:
    """A name that a person recognizes: the model or the job, with as much before it as makes it the only one."""
    parts = [re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-") or "x" for value in labels.values()]
    for n in range(1, len(parts) + 1):
        name = "-".join(parts[-n:])[:60].strip("-")
        if name not in taken:
            return name
    number = 2
    while f"{name}-{number}" in taken:
        number += 1
    return f"{name}-{number}"


def _found(
    name: str, preset: str, labels: Mapping[str, str], replicas: Sequence[str], store: str
) -> DiscoveredEndpoint:
    address = replicas[0] if replicas and replicas[0] else "127.0.0.1:8000"
    source: dict[str, Any] = {"url": store, "labels": dict(labels)}
    if preset != "vllm":
        source["preset"] = [preset]
    settings: dict[str, Any] = {"name": name, "url": f"http://{address}"}
    if "model_name" in labels:
        settings["model"] = labels["model_name"]
    settings["sources"] = {"prometheus": source}
    note = f"{preset}: {len(replicas)} replica{'s' if len(replicas) != 1 else ''}; url is the first one's: put the address that clients use"
    return DiscoveredEndpoint(name, settings, note)
