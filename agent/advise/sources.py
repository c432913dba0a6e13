"""Where offers and prices come from: files of the user's, LiteLLM's price list where one is there, and an endpoint's own telemetry."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from actuators.shape import Shape
from agent.settings import EndpointSettings, Settings
from agent.whatif.files import engine_file
from agent.whatif.predictions import Telemetry
from analyzers import grammar
from analyzers.advise.offers import DeploymentOffer, OfferTerms, offer_of
from analyzers.advise.options import DeploymentOption
from analyzers.grammar import BadQuestion
from analyzers.hardware import find
from analyzers.kinds.engine.engines import Engines
from analyzers.kinds.ptu.deployment import PtuDeployment
from analyzers.kinds.ptu.kind import SPILLOVER, CalibratedPtu
from analyzers.kinds.quota.deployment import QuotaDeployment
from analyzers.kinds.quota.kind import CalibratedQuota, quota_of
from analyzers.kinds.serverless.function import ServerlessFunction
from analyzers.kinds.serverless.kind import IDLE_S, CalibratedFunction
from analyzers.kinds.service import Speed
from analyzers.kinds.system import SCHEMA_VERSION, ReplaySystem
from analyzers.kinds.vm.kind import CalibratedMachine
from analyzers.kinds.vm.machines import Machines
from analyzers.prediction import CannotPredict
from analyzers.strict import nearest
from analyzers.whatif.calibrate import CalibratedEngine

_FILE = ("schema_version", "source", "as_of", "offers")
#: LiteLLM's names for US dollars per token, and ours per 1,000.
_LITELLM = {
    "input_cost_per_token": "usd_per_1k_input_tokens",
    "cache_read_input_token_cost": "usd_per_1k_cached_input_tokens",
    "output_cost_per_token": "usd_per_1k_output_tokens",
}
#: What LiteLLM's list puts behind a price's name, by the tier of service that a call asks for.
_TIERS = {"default": "", "flex": "_flex", "priority": "_priority", "batch": "_batches"}
#: What an endpoint is an instance of, by the system that runs it.
_OPTION_OF = {
    "azure-maas": DeploymentOption.MODEL_SERVICE,
    "azure-ml": DeploymentOption.MANAGED,
    "azure-vm": DeploymentOption.SELF_HOSTED,
    "haproxy": DeploymentOption.DISTRIBUTED,
    "kubernetes": DeploymentOption.DISTRIBUTED,
    "nomad": DeploymentOption.DEDICATED,
    "oscar": DeploymentOption.SERVERLESS,
    "ray-serve": DeploymentOption.DISTRIBUTED,
    "vllm-local": DeploymentOption.SELF_HOSTED,
}


# -- files --------------------------------------------------------------------------------------------------------------


def offers(files: Sequence[Path], token_prices: Path | None, notes: list[str]) -> list[DeploymentOffer]:
    """Of all files, in order. ``token_prices``: LiteLLM's list; None: that of an installed LiteLLM. Raises BadQuestion."""
    found: dict[str, DeploymentOffer] = {}
    for path in files:
        data = _read(path)
        common = {name: str(data[name]) for name in ("source", "as_of") if name in data}
        for name, written in data["offers"].items():
            if name in found:
                raise BadQuestion(f"{path}: offers.{name}: the name is given twice; keep one")
            with grammar.place(str(path)):
                found[name] = _offer(str(name), written, common, path.parent, token_prices, notes)
    return list(found.values())


def _read(path: Path) -> Mapping[str, Any]:
    """Raises BadQuestion."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadQuestion(f"--offers {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, TypeError, ValueError) as error:
        raise BadQuestion(f"--offers {path}: is no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict) or not isinstance(data.get("offers"), dict):
        raise BadQuestion(f"{path}: expected `schema_version: {SCHEMA_VERSION}` and `offers:` with a name for each")
    for name in data:
        if name not in _FILE:
            raise BadQuestion(f"{path}: {name}: unknown field; {nearest(str(name), _FILE)}")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise BadQuestion(
            f"{path}: schema_version: {data.get('schema_version')!r} is not known; write {SCHEMA_VERSION}"
        )
    return data


def _offer(
    name: str, written: Any, common: Mapping[str, str], folder: Path, token_prices: Path | None, notes: list[str]
) -> DeploymentOffer:
    if not isinstance(written, dict):
        raise BadQuestion(f"offers.{name} must be an object, not {written!r}")
    data = {k: str(v) if k == "as_of" else v for k, v in {**common, **written}.items()}
    model, engine, tier = (data.pop(key, None) for key in ("model", "engine", "service_tier"))
    if tier is not None and (model is None or tier not in _TIERS):
        what = "is of a model of the price list; give model too" if tier in _TIERS else nearest(str(tier), _TIERS)
        raise BadQuestion(f"offers.{name}.service_tier: {tier!r}: {what}")
    if model is not None:
        prices = _token_prices(str(model), str(tier or "default"), token_prices, f"offers.{name}")
        if deprecated := prices.pop("deprecated", None):
            notes.append(f"{name}: {model} is deprecated from {deprecated} on")
        data = {**data, **prices, **{k: v for k, v in written.items() if k not in ("model", "service_tier")}}
    system: ReplaySystem | None = None
    if engine is not None:
        system = engine_file(folder / str(engine))
    return offer_of(name, data, system)


# -- LiteLLM's list -----------------------------------------------------------------------------------------------------


def _token_prices(model: str, tier: str, path: Path | None, place: str) -> dict[str, Any]:
    """What LiteLLM's list has of a model in a tier of service, with its source. A price that it does not have is absent.

    Raises BadQuestion.
    """
    rows, source = _litellm(path)
    if model not in rows:
        raise BadQuestion(f"{place}.model: {model!r} is not in {source}; {nearest(model, _alike(model, rows))}")
    row = rows[model]
    named = {theirs + _TIERS[tier]: ours for theirs, ours in _LITELLM.items()}
    found: dict[str, Any] = {
        ours: 1000.0 * row[theirs] for theirs, ours in named.items() if row.get(theirs) is not None
    }
    of = model if tier == "default" else f"{model}, {tier}"
    if not found:
        raise BadQuestion(f"{place}.model: {of} has no price by the token in {source}")
    return {**found, "source": f"{source}, {of}", "deprecated": row.get("deprecation_date")}


def _alike(model: str, rows: Mapping[str, Any]) -> list[str]:
    """Few enough to compare with."""
    wanted = model.rpartition("/")[2][:4]
    return [name for name in rows if wanted in name] or list(rows)[:20]


@cache
def _litellm(path: Path | None) -> tuple[Mapping[str, Any], str]:
    """The list and where it is from. Raises BadQuestion."""
    source = None if path is None else path.name
    if path is None:
        spec = importlib.util.find_spec("litellm")  # which does not import it
        places = [] if spec is None else list(spec.submodule_search_locations or ())
        if not places:
            raise BadQuestion(
                "model: no price list is there; give --token-prices FILE (LiteLLM's JSON), or pip install litellm"
            )
        path = Path(places[0]) / "model_prices_and_context_window_backup.json"
        source = f"litellm {importlib.metadata.version('litellm')}"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadQuestion(f"--token-prices {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise BadQuestion(f"--token-prices {path}: is no JSON ({error})") from error
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise BadQuestion(f"--token-prices {path}: expected an object for each model, as LiteLLM's list has it")
    return rows, str(source)


# -- prices of one's own ------------------------------------------------------------------------------------------------


def priced(found: Sequence[DeploymentOffer], texts: Sequence[str]) -> list[DeploymentOffer]:
    """With each ``NAME.usd_per_replica_hour=2.5`` in the place of what the offer says. Raises BadQuestion."""
    by_name = {offer.name: offer for offer in found}
    for text in texts:
        left, equals, value = text.partition("=")
        name, dot, price = left.strip().rpartition(".")
        if not equals or not dot or not price:
            raise BadQuestion(f"--price {text}: write OFFER.PRICE=USD, such as gpu.usd_per_replica_hour=2.5")
        if name not in by_name:
            raise BadQuestion(f"--price {text}: {nearest(name, by_name)}")
        try:
            usd = float(value)
            by_name[name] = by_name[name].priced(price, usd)
        except ValueError as error:
            raise BadQuestion(f"--price {text}: {error}") from error
        if not 0 <= usd < float("inf"):
            raise BadQuestion(f"--price {text}: write US dollars, 0 or more")
    return list(by_name.values())


# -- an endpoint --------------------------------------------------------------------------------------------------------


def present(found: Telemetry, settings: Settings, notes: list[str]) -> DeploymentOffer | None:
    """What the endpoint is now, as an offer. None, with a note, where its telemetry supports no model of it."""
    chosen, shape = settings.endpoint(found.endpoint), found.shape
    hardware = None if shape.accelerator is None else find(shape.accelerator, found.catalogue.hardware)
    try:
        learned = found.kind.calibrate(found.since_change, shape, hardware)
    except CannotPredict as refused:
        notes.append(f"{found.endpoint} itself is not among the options: {refused.detail}")
        return None
    hour = found.catalogue.per_hour(shape)
    price = None if hour is None or not shape.replicas else hour / shape.replicas
    if isinstance(learned, CalibratedQuota | CalibratedPtu):
        system: ReplaySystem | None = _bought(learned, shape, chosen)
        if system is None:
            notes.append(
                f"{found.endpoint} itself is not among the options: its source tells no distribution of whole calls"
            )
    elif isinstance(learned, CalibratedFunction):
        system = function_of(learned, shape, found.catalogue.per_replica_hour(shape))
    else:
        system = _system(learned, price)
    if system is None:
        return None
    what = "the reference server" if chosen.role == "reference" else "as it is now"
    terms = OfferTerms(option="", source="settings", min_units=1, note=f"{what}: {shape.label()}")
    option = _OPTION_OF.get(chosen.actuator.system, DeploymentOption.DEDICATED)
    if shape.purchase is not None:
        option = DeploymentOption.PROVISIONED if shape.purchase.unit == "ptu" else DeploymentOption.MODEL_SERVICE
    if option is DeploymentOption.SELF_HOSTED and (shape.replicas or 1) > 1:
        option = DeploymentOption.DISTRIBUTED
    return DeploymentOffer(found.endpoint, option, replace(terms, option=option.value), system)


def _bought(learned: CalibratedQuota | CalibratedPtu, shape: Shape, chosen: EndpointSettings) -> ReplaySystem | None:
    """What is bought, as the nearest of its callers' habits has it. None: how long an answered call takes is only known as a mean."""
    spread = learned.habits.latency.get("e2e_s")
    if spread is None:
        return None
    speed, client = Speed(np.array(spread), 0.0), learned.habits.habits[0].client
    tokens: dict[str, Any] = {
        "usd_per_1k_input_tokens": chosen.usd_per_1k_input_tokens,
        "usd_per_1k_cached_input_tokens": chosen.usd_per_1k_cached_input_tokens,
        "usd_per_1k_output_tokens": chosen.usd_per_1k_output_tokens,
    }
    if isinstance(learned, CalibratedQuota):
        limits = quota_of(shape)
        return QuotaDeployment(tokens=limits.tokens, requests=limits.requests, speed=speed, retries=client, **tokens)
    return PtuDeployment(
        ptus=float(shape.purchase.amount) if shape.purchase is not None else 1.0,
        input_tokens_per_minute_per_ptu=learned.toll.per_unit,
        output_weight=learned.toll.weight,
        speed=speed,
        spill=speed if shape.engine.get(SPILLOVER) else None,
        retries=client,
        usd_per_ptu_hour=chosen.usd_per_ptu_hour,
        **tokens,
    )


def function_of(learned: CalibratedFunction, shape: Shape, usd_per_hour: float | None) -> ServerlessFunction | None:
    """A call's times as they were; a job's instance goes with it."""
    bounds = shape.autoscaling
    if bounds is None or bounds.most < 1:
        return None
    return ServerlessFunction(
        concurrency=1,
        cold_start_s=learned.cold_s.mid,
        most=bounds.most,
        least=0 if learned.jobs else bounds.least,
        idle_s=0.0 if learned.jobs else IDLE_S,
        speed=Speed(np.array(learned.run_s), 0.0),
        usd_per_billed_hour=usd_per_hour,
    )


def _system(learned: object, usd_per_replica_hour: float | None) -> ReplaySystem | None:
    if isinstance(learned, CalibratedEngine):
        return Engines(engine=learned.engine, calibration=learned, usd_per_replica_hour=usd_per_replica_hour)
    if isinstance(learned, CalibratedMachine):
        law = learned.fit.best
        return Machines(
            rate_per_s=law.rate_per_s, sigma=law.sigma, kappa=law.kappa, usd_per_replica_hour=usd_per_replica_hour
        )
    return None
