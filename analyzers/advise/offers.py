"""What can be had: an option, the model of how it responds, and prices, each with whose they are and as of when.

An offer is written like an engine file (``kinds.registry``), with ``option`` and what is said of its price beside. Where there is no model
of how it responds, ``kind: tokens`` or ``kind: machine`` says prices alone, and latencies stay unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from analyzers import grammar, strict
from analyzers.advise.options import DeploymentOption
from analyzers.grammar import BadQuestion
from analyzers.kinds.engine.engines import Engines
from analyzers.kinds.ptu.deployment import PtuDeployment
from analyzers.kinds.registry import SYSTEMS, system_of
from analyzers.kinds.serverless.function import ServerlessFunction
from analyzers.kinds.system import SCHEMA_VERSION, ReplaySystem
from analyzers.kinds.vm.machines import Machines
from analyzers.money import Price, Tariff, Unit
from analyzers.prediction import CannotPredict

#: A price's name, and what it is of.
UNITS = {
    "usd_per_replica_hour": Unit.REPLICA_HOUR,
    "usd_per_ptu_hour": Unit.PTU_HOUR,
    "usd_per_1k_input_tokens": Unit.INPUT_1K,
    "usd_per_1k_cached_input_tokens": Unit.CACHED_INPUT_1K,
    "usd_per_1k_output_tokens": Unit.OUTPUT_1K,
}
TOKEN_PRICES = tuple(name for name in UNITS if "tokens" in name)
_D = DeploymentOption
#: Which kinds of model an option can have.
_PRICED_BY_TOKEN, _ON_MACHINES = ("quota", "tokens"), ("engine", "vm", "machine")
KINDS_OF: Mapping[DeploymentOption, tuple[str, ...]] = {
    _D.PER_TOKEN: _PRICED_BY_TOKEN,
    _D.MODEL_SERVICE: _PRICED_BY_TOKEN,
    _D.PROVISIONED: ("ptu",),
    _D.MANAGED: _ON_MACHINES,
    _D.SERVERLESS: ("serverless",),
    _D.DEDICATED: _ON_MACHINES,
    _D.SELF_HOSTED: _ON_MACHINES,
    _D.DISTRIBUTED: _ON_MACHINES,
    _D.BATCH: _PRICED_BY_TOKEN,
}


@dataclass(frozen=True, slots=True)
class OfferTerms:
    """What an offer says beside its model, by its own names."""

    option: str
    source: str = ""
    as_of: str = ""
    min_units: int | None = None
    """Machines, or PTUs. None: 1; of the distributed option 2, since one machine is not distributed."""
    max_units: int | None = None
    unit_step: int = 1
    """PTUs are bought by so many."""
    carries_per_s: float | None = None
    """Of ``kind: machine``: requests per second that one is known to carry."""
    deadline_s: float | None = None
    """Of a batch: when its answers are there at the latest."""
    note: str | None = None


@dataclass(frozen=True)
class DeploymentOffer:
    name: str
    option: DeploymentOption
    terms: OfferTerms
    system: ReplaySystem | None = None
    """None: prices alone."""
    prices: Mapping[str, float] = field(default_factory=dict)
    """US dollars by name, where there is no system to hold them."""

    @property
    def by_name(self) -> Mapping[str, float]:
        return self.prices if self.system is None else self.system.prices()

    @property
    def tariff(self) -> Tariff:
        """Its prices that are of a unit that can be counted without a replay."""
        return Tariff(
            tuple(
                Price(usd, UNITS[name], self.terms.source or "offer", self.terms.as_of)
                for name, usd in self.by_name.items()
                if name in UNITS
            )
        )

    @property
    def by_token(self) -> bool:
        return self.option in (_D.PER_TOKEN, _D.MODEL_SERVICE, _D.BATCH)

    @property
    def on_machines(self) -> bool:
        return self.option in (_D.MANAGED, _D.DEDICATED, _D.SELF_HOSTED, _D.DISTRIBUTED)

    @property
    def least(self) -> int:
        if self.terms.min_units is not None:
            return self.terms.min_units
        return 2 if self.option is _D.DISTRIBUTED else 1

    @property
    def most(self) -> int | None:
        return 1 if self.option is _D.SELF_HOSTED else self.terms.max_units

    def sized(self, count: int) -> ReplaySystem:
        """Its model with so many machines, or PTUs. Only of one that has a model."""
        assert self.system is not None
        return self.system.changed({"ptus" if isinstance(self.system, PtuDeployment) else "replicas": count})

    @property
    def scales(self) -> bool:
        """Whether its model says how more of it would do."""
        return isinstance(self.system, Engines | Machines | PtuDeployment)

    def priced(self, name: str, usd: float) -> DeploymentOffer:
        """With one price stated by a person. Raises ValueError on one that it does not have."""
        known = {*UNITS, "usd_per_billed_hour"} if self.system is None else set(_price_names(self.system))
        if name not in known:
            raise ValueError(f"{name}: {self.name} has no such price; {strict.nearest(name, known)}")
        terms = replace(self.terms, source="--price", as_of="")
        if self.system is None:
            return replace(self, prices={**self.prices, name: usd}, terms=terms)
        return replace(self, system=self.system.changed({name: usd}), terms=terms)


def _price_names(system: ReplaySystem) -> tuple[str, ...]:
    if isinstance(system, Engines | Machines):
        return ("usd_per_replica_hour",)
    if isinstance(system, ServerlessFunction):
        return ("usd_per_billed_hour",)
    return (*TOKEN_PRICES, "usd_per_ptu_hour") if isinstance(system, PtuDeployment) else TOKEN_PRICES


_TERMS = tuple(strict.settable(OfferTerms))


def offer_of(name: str, data: Mapping[str, Any], engine: ReplaySystem | None = None) -> DeploymentOffer:
    """From an offer's JSON. ``engine``: what the file that it names under ``engine`` describes.

    Raises BadQuestion that names the offer and the field.
    """
    with grammar.place(f"offers.{name}"):
        try:
            terms = strict.read(OfferTerms, {k: v for k, v in data.items() if k in _TERMS})
            option = _option(terms.option)
            rest = {k: v for k, v in data.items() if k not in (*_TERMS, "engine")}
            made = _made(name, option, terms, rest, engine)
        except BadQuestion:
            raise
        except (ValueError, CannotPredict) as error:
            raise BadQuestion(str(error)) from error
        _check_terms(terms)
    return made


def _option(name: str) -> DeploymentOption:
    try:
        option = DeploymentOption(name)
    except ValueError:
        raise ValueError(f"option: {name!r} is not known; {strict.nearest(name, KINDS_OF)}") from None
    if option not in KINDS_OF:
        raise ValueError("option: hybrid is made of the other offers; give those")
    return option


def _made(
    name: str, option: DeploymentOption, terms: OfferTerms, rest: Mapping[str, Any], engine: ReplaySystem | None
) -> DeploymentOffer:
    if engine is not None:
        system = engine.changed({k: v for k, v in rest.items() if k != "kind"})
        kind = system.kind
    else:
        kind = str(rest.get("kind", "engine"))
        if kind in ("tokens", "machine"):
            return _of_prices(name, option, terms, kind, {k: v for k, v in rest.items() if k != "kind"})
        if kind not in ("engine", *SYSTEMS):
            raise ValueError(
                f"kind: {kind!r} is not known; {strict.nearest(kind, ('engine', 'tokens', 'machine', *SYSTEMS))}"
            )
        system = system_of({"schema_version": SCHEMA_VERSION, **rest})
    _check_kind(option, kind)
    return DeploymentOffer(name, option, terms, system)


def _of_prices(
    name: str, option: DeploymentOption, terms: OfferTerms, kind: str, prices: Mapping[str, Any]
) -> DeploymentOffer:
    _check_kind(option, kind)
    known = TOKEN_PRICES if kind == "tokens" else ("usd_per_replica_hour",)
    for field_name in prices:
        if field_name not in known:
            raise ValueError(f"{field_name}: unknown field; {strict.nearest(field_name, (*known, *_TERMS))}")
    found = {k: usd for k, v in prices.items() if (usd := grammar.price(v, k)) is not None}
    if kind == "tokens" and len(found.keys() & {"usd_per_1k_input_tokens", "usd_per_1k_output_tokens"}) == 1:
        raise ValueError("usd_per_1k_input_tokens and usd_per_1k_output_tokens: give both, or neither; 0 is free")
    return DeploymentOffer(name, option, terms, None, found)


def _check_kind(option: DeploymentOption, kind: str) -> None:
    if kind not in KINDS_OF[option]:
        raise ValueError(f"kind: {option} is none of the kind {kind}; known: {', '.join(KINDS_OF[option])}")


def _check_terms(terms: OfferTerms) -> None:
    for name in ("min_units", "max_units", "unit_step", "carries_per_s", "deadline_s"):
        value = getattr(terms, name)
        if value is not None and not value > 0:
            raise BadQuestion(f"{name} must be above 0, not {value:g}")
    if terms.as_of:
        try:
            date.fromisoformat(terms.as_of)
        except ValueError:
            raise BadQuestion(f"as_of: write a date such as 2026-11-01, not {terms.as_of!r}") from None
