"""What every registered source must be. A stranger's source is tested by installing it beside this."""

from __future__ import annotations

import asyncio
import sys
import time
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from collectors.base import ScrapeTarget, SourceContext
from collectors.http import Http
from collectors.metrics import METRICS
from collectors.sessions import Sessions
from collectors.window import CollectError, Reading, Span
from tests.collectors.clocks import SetClock
from tests.collectors.servers import answering, serve
from tests.fakes.aws import IDENTITY
from tests.fakes.azure import Cloud
from tests.fakes.azure.cloud import SUBSCRIPTION
from tests.fakes.azure.ml import endpoint_id

DECLARED = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
#: Ours as the project declares them, and those of every installed package.
REGISTERED: dict[str, Any] = {
    entry.name: entry.load()
    for entry in (
        *(EntryPoint(name, where, "flyball.collectors") for name, where in DECLARED["flyball.collectors"].items()),
        *entry_points(group="flyball.collectors"),
    )
}


#: What a source cannot be made without, by its name, for a server at this address.
NEEDED: dict[str, Callable[[str], dict[str, Any]]] = {
    "azure-monitor": lambda url: {
        "resource": endpoint_id(Cloud(time.time), Cloud(time.time).add("chat")),
        "credential": "token",
        "token": "t",
        "arm_url": url,
        "metrics_url": url,
    },
    "cloudwatch": lambda url: {"region": "eu-west-1", "endpoint": "chat", "aws_url": url},
    "nomad": lambda url: {"address": url},
    "azure-vm": lambda url: {
        "resource": f"/subscriptions/{SUBSCRIPTION}/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/m",
        "credential": "token",
        "token": "t",
        "arm_url": url,
        "metrics_url": url,
    },
    "azure-openai": lambda url: {
        "resource": f"/subscriptions/{SUBSCRIPTION}/resourceGroups/g/providers/Microsoft.CognitiveServices/accounts/a/deployments/d",
        "credential": "token",
        "token": "t",
        "arm_url": url,
        "metrics_url": url,
    },
    "oscar": lambda url: {"cluster": url},
    "docker": lambda url: {"host": url},
    "openai-api": lambda url: {"url": url, "key": "k"},
    "anthropic-api": lambda url: {"url": url, "key": "k"},
    "ray-serve": lambda url: {"dashboard": url, "metrics": [url]},
}


def options_of(make: Any) -> type[BaseModel]:
    found = getattr(make, "Options", None) or sys.modules[make.__module__].Options
    assert issubclass(found, BaseModel)
    return found


def test_our_own_are_registered() -> None:
    assert {
        "vllm",
        "llamacpp",
        "sglang",
        "tgi",
        "tei",
        "triton",
        "litellm",
        "haproxy",
        "ray-serve",
        "nomad",
        "oscar",
        "openai-api",
        "anthropic-api",
        "probe",
        "host",
        "prometheus",
        "azure-monitor",
        "cloudwatch",
        "azure-openai",
        "azure-vm",
        "docker",
        "otlp",
    } <= set(REGISTERED)


@pytest.mark.parametrize("name", REGISTERED)
def test_its_options_refuse_what_they_do_not_know_and_explain_each_field(name: str) -> None:
    options = options_of(REGISTERED[name])
    options()
    with pytest.raises(ValidationError):
        options.model_validate({"no_such_option": 1})
    assert options.__doc__


@pytest.mark.parametrize("name", REGISTERED)
def test_it_reads_or_raises_collect_error_and_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in IDENTITY.items():
        monkeypatch.setenv(variable, value)

    async def read(url: str) -> None:
        http = Http()
        try:
            options = NEEDED.get(name, lambda _url: {})(url)
            collector = REGISTERED[name](SourceContext("chat", "m", http, SetClock(), Sessions(), options))
            assert collector.source == name
            assert collector.scope in ("replica", "endpoint")
            assert collector.settles_s >= 0
            assert collector.interval_s is None or collector.interval_s > 0
            assert collector.deadline_s is None or collector.deadline_s > 0
            for _ in range(2):
                try:
                    readings = await collector.read(ScrapeTarget("a", url))
                except CollectError as error:
                    assert error.kind == error.kind.lower()  # noqa: PT017
                    assert error.detail  # noqa: PT017
                else:
                    check(readings)
        finally:
            await http.aclose()

    def check(readings: Any) -> None:
        assert len({r.target for r in readings}) == len(readings) > 0
        for said in readings:
            if isinstance(said, Span):
                told = {
                    "counter": {*said.counts},
                    "distribution": {*said.sketches, *said.quantiles},
                    "gauge": {*said.gauges},
                }
            else:
                assert isinstance(said, Reading)
                assert said.target.startswith("a")
                distributions = {*said.histograms, *said.samples}
                told = {"counter": {*said.counters}, "distribution": distributions, "gauge": {*said.gauges}}
            for kind, names in told.items():
                assert {METRICS[name].kind for name in names if name in METRICS} <= {kind}

    for handler in (
        answering("<html>", kind="text/html"),
        answering("no", "503 Service Unavailable"),
        answering(b"\x00\xff" * 100),
        answering("{}", kind="application/json"),
        answering("", "302 Found", location="/"),
    ):
        with serve(handler) as served:
            asyncio.run(read(served.url))
    asyncio.run(read(served.url))  # and now it is down
