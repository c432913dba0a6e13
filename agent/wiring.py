"""Makes the parts from the settings: collectors and actuators by name, policies and catalogues for the analyzers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from actuators.base import Actuator, SystemContext
from agent import plugins, silicon
from agent.settings import EndpointSettings, Settings, SizeSettings
from agent.watch import WatchedEndpoint
from analyzers.hardware import ACCELERATORS, Hardware
from analyzers.money import Unit
from analyzers.policy import Catalogue, Policy
from analyzers.shapes import Vocabulary
from collectors.base import Collector, SourceContext
from collectors.clock import Clock
from collectors.http import Http
from collectors.sessions import Sessions


@dataclass(frozen=True, slots=True)
class Environment:
    """How the parts reach the outside."""

    http: Http
    clock: Clock
    sessions: Sessions = field(default_factory=Sessions)


def policy_of(endpoint: EndpointSettings) -> Policy:
    p = endpoint.policy
    return Policy(
        min_replicas=p.min_replicas,
        max_replicas=p.max_replicas,
        sizes=tuple(p.sizes),
        engine={name: tuple(values) for name, values in p.engine.items()},
        purchase=tuple(p.purchase),
        max_step_replicas=p.max_step_replicas,
        budget_per_month=p.budget_per_month,
        budget_per_hour=p.budget_per_hour,
        margin=p.margin,
        growth=p.growth,
        max_changes_per_day=p.max_changes_per_day,
        scheduled_steps_per_day=p.scheduled_steps_per_day,
        tune_autoscaler=p.tune_autoscaler,
        min_saving_per_month=p.min_saving_per_month,
        min_saving_share=p.min_saving_share,
        min_coverage=p.min_coverage,
        min_requests=p.min_requests,
    )


def _own_hardware(name: str, size: SizeSettings) -> Hardware | None:
    """A size's own figures over the built-in table's. None where it states none, or not enough of them."""
    if size.bandwidth_gb_s is None and size.tflops_bf16 is None and size.memory_gb is None:
        return None
    known = ACCELERATORS.get(size.accelerator) if size.accelerator else None
    bandwidth = size.bandwidth_gb_s or (known.bandwidth_gb_s if known else None)
    tflops = size.tflops_bf16 or (known.tflops_bf16 if known else None)
    memory = size.memory_gb or (known.memory_gb if known else None)
    if bandwidth is None or tflops is None or memory is None:
        return None
    return Hardware(name, bandwidth, tflops, memory, "settings", "")


def token_prices(endpoint: EndpointSettings) -> dict[Unit, float]:
    """US dollars per 1,000 tokens, of those kinds that have a price."""
    stated = {
        Unit.INPUT_1K: endpoint.usd_per_1k_input_tokens,
        Unit.CACHED_INPUT_1K: endpoint.usd_per_1k_cached_input_tokens,
        Unit.OUTPUT_1K: endpoint.usd_per_1k_output_tokens,
    }
    return {unit: usd for unit, usd in stated.items() if usd is not None}


def catalogue_of(settings: Settings, endpoint: EndpointSettings) -> Catalogue:
    """Prices and hardware of all sizes, as this endpoint sees them."""
    own = {name: h for name, size in settings.sizes.items() if (h := _own_hardware(name, size)) is not None}
    built = {
        name: (name if name in own else size.accelerator, size.accelerator_count)
        for name, size in settings.sizes.items()
        if name in own or size.accelerator is not None
    }
    return Catalogue(
        prices={name: size.usd_per_replica_hour for name, size in settings.sizes.items()},
        built={name: (accelerator, count) for name, (accelerator, count) in built.items() if accelerator is not None},
        cpus={name: size.cpus for name, size in settings.sizes.items() if size.cpus is not None},
        hardware={**silicon.equipped(ACCELERATORS), **own},
        own_size=endpoint.shape.size,
        own_price=endpoint.usd_per_replica_hour,
        by_token=token_prices(endpoint),
        per_ptu_hour=endpoint.usd_per_ptu_hour,
    )


def vocabulary_of(settings: Settings, endpoint: EndpointSettings) -> Vocabulary:
    """What may be written of the endpoint's shape."""
    return Vocabulary(catalogue_of(settings, endpoint), tuple(endpoint.policy.engine))


def watched_of(settings: Settings, endpoint: EndpointSettings, environment: Environment) -> WatchedEndpoint:
    """One endpoint with its sources and its system. Raises ``PluginError``."""
    return WatchedEndpoint(
        settings=endpoint,
        catalogue=catalogue_of(settings, endpoint),
        collectors={
            name: _collector(settings, endpoint, name, options, environment)
            for name, options in endpoint.sources.items()
        },
        actuator=actuator_of(settings, endpoint, environment),
    )


def _collector(
    settings: Settings,
    endpoint: EndpointSettings,
    name: str,
    options: Mapping[str, Any],
    environment: Environment,
) -> Collector:
    context = SourceContext(
        endpoint=endpoint.name,
        model=endpoint.model,
        http=environment.http,
        clock=environment.clock,
        sessions=environment.sessions,
        options={**_with_timeout(name, options, settings.collect.timeout_s)},
    )
    made: Collector = plugins.load(plugins.COLLECTORS, name)(context)
    return made


def _with_timeout(name: str, options: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
    """The settings' own timeout, for a source that has one and was not given another."""
    model = plugins.options_of(plugins.load(plugins.COLLECTORS, name))
    if model is not None and "timeout_s" in model.model_fields and "timeout_s" not in options:
        return {**options, "timeout_s": timeout_s}
    return options


def actuator_of(settings: Settings, endpoint: EndpointSettings, environment: Environment) -> Actuator:
    key = endpoint.api_key
    context = SystemContext(
        endpoint=endpoint.name,
        url=endpoint.url,
        model=endpoint.model,
        shape=endpoint.shape.shape(),
        state_dir=settings.state_dir / "endpoints" / endpoint.name,
        http=environment.http.call,
        clock=environment.clock,
        sessions=environment.sessions,
        headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else {},
        options=dict(endpoint.actuator.options),
    )
    made: Actuator = plugins.load(plugins.ACTUATORS, endpoint.actuator.system)(context)
    return made
