"""LiteLLM's configuration file as nouns: which deployments a model group has, and what is stated of them. Pure: a text in, values out.

Limits stand in ``Shape.engine`` by LiteLLM's own names, those of one deployment with its name behind a dot: ``weight.own``, ``rpm.2``.
A deployment's name is its ``model_info.id``; of one without, its place in the group: LiteLLM's own id of it changes with its limits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from actuators.litellm.yamltext import UneditableYaml, with_value
from actuators.shape import EngineValue
from collectors.litellm.client import ProxyDeployment

#: Of one deployment, under `litellm_params`.
LIMITS = ("weight", "rpm", "tpm", "max_parallel_requests", "order")
#: Of the whole proxy, under `router_settings`.
ROUTER = ("routing_strategy", "num_retries", "allowed_fails", "cooldown_time")
FALLBACKS = "fallbacks"
STRATEGIES = (
    "simple-shuffle", "least-busy", "latency-based-routing", "cost-based-routing", "usage-based-routing",
    "usage-based-routing-v2",
)  # fmt: skip
#: Between the names of several fallbacks.
AND = "+"


@dataclass(frozen=True, slots=True)
class FileDeployment:
    """One deployment of the group, as the file has it."""

    name: str
    place: int
    """Its index in ``model_list``."""
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ProxyFile:
    """One reading of the file. Holds secrets, perhaps: only hashes and single values of it go anywhere."""

    text: str
    data: Mapping[str, Any]
    stamp: int
    """When it was written, in ns: the same text written again is another version."""

    @classmethod
    def read(cls, text: str, stamp: int) -> ProxyFile:
        """Raises ValueError where it is no LiteLLM configuration."""
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            place = getattr(error, "problem_mark", None)  # the message itself would quote the line
            raise ValueError(f"it is no YAML{f' (line {place.line + 1})' if place else ''}") from None
        if not isinstance(data, dict) or not isinstance(data.get("model_list"), list):
            raise ValueError("it has no model_list")
        return cls(text, data, stamp)

    @property
    def version(self) -> str:
        return hashlib.sha256(f"{self.stamp} {self.text}".encode()).hexdigest()[:16]

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(str(e.get("model_name")) for e in self.data["model_list"] if isinstance(e, dict)))

    def deployments(self, group: str) -> list[FileDeployment]:
        found: list[FileDeployment] = []
        for place, entry in enumerate(self.data["model_list"]):
            if isinstance(entry, dict) and entry.get("model_name") == group:
                info, params = entry.get("model_info") or {}, entry.get("litellm_params") or {}
                name = str(info.get("id") or len(found) + 1)
                found.append(FileDeployment(name, place, params))
        return found

    def engine(self, group: str) -> dict[str, EngineValue]:
        """What is stated; a default is not."""
        stated: dict[str, EngineValue] = {}
        for one in self.deployments(group):
            stated |= limits_of(one.name, one.params)
        router = self._section("router_settings")
        stated |= {name: router[name] for name in ROUTER if isinstance(router.get(name), int | float | str)}
        fallbacks = fallbacks_of(self._section(self._fallback_section).get(FALLBACKS), group)
        return {**stated, FALLBACKS: fallbacks} if fallbacks else stated

    def with_engine(self, group: str, changes: Mapping[str, EngineValue | None]) -> str:
        """The text with these limits set, or taken away where None. Raises UneditableYaml, KeyError on an unknown deployment."""
        text, places = self.text, {d.name: d.place for d in self.deployments(group)}
        for name, value in sorted(changes.items()):
            limit, _, deployment = name.partition(".")
            if name == FALLBACKS:
                text = self._with_fallbacks(text, group, value)
            elif name in ROUTER:
                text = with_value(text, ("router_settings", name), value)
            else:
                text = with_value(text, ("model_list", places[deployment], "litellm_params", limit), value)
        return text

    def _section(self, name: str) -> Mapping[str, Any]:
        found = self.data.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def _fallback_section(self) -> str:
        """LiteLLM takes them from either."""
        return "litellm_settings" if FALLBACKS in self._section("litellm_settings") else "router_settings"

    def _with_fallbacks(self, text: str, group: str, value: EngineValue | None) -> str:
        there = self._section(self._fallback_section).get(FALLBACKS) or []
        if not isinstance(there, list):
            raise UneditableYaml(f"{FALLBACKS} is no list")
        mine = [] if value is None else [{group: str(value).split(AND)}]
        old = next((i for i, each in enumerate(there) if isinstance(each, dict) and group in each), len(there))
        several = [*there[:old], *mine, *there[old + 1 :]]
        return with_value(text, (self._fallback_section, FALLBACKS), several or None)


def limits_of(name: str, params: Mapping[str, Any]) -> dict[str, EngineValue]:
    """A deployment's limits, by their names in a Shape."""
    return {f"{limit}.{name}": v for limit in LIMITS if isinstance(v := params.get(limit), int | float)}


def fallbacks_of(value: Any, group: str) -> str:
    """``spare+mini``; empty: none."""
    for each in value if isinstance(value, list) else ():
        if isinstance(each, dict) and group in each:
            return AND.join(str(name) for name in each[group] or ())
    return ""


def running_engine(
    names: Sequence[str], deployments: Sequence[ProxyDeployment], router: Mapping[str, Any], group: str
) -> dict[str, EngineValue]:
    """What the proxy runs: the group's deployments in the file's order, by the file's ``names`` of them."""
    running: dict[str, EngineValue] = {}
    for name, one in zip(names, deployments, strict=False):
        running |= limits_of(name, one.params)
    running |= {name: router[name] for name in ROUTER if isinstance(router.get(name), int | float | str)}
    fallbacks = fallbacks_of(router.get(FALLBACKS), group)
    return {**running, FALLBACKS: fallbacks} if fallbacks else running


def differences(stated: Mapping[str, EngineValue], running: Mapping[str, EngineValue]) -> list[str]:
    """Where the proxy runs otherwise than its file says. Of the router's settings a default runs where none is stated."""
    names = {*stated, *(n for n in running if n not in ROUTER)}
    return sorted(
        f"{name} is {running.get(name, 'not set')} and not {stated.get(name, 'not set')}"
        for name in names
        if stated.get(name) != running.get(name)
    )
