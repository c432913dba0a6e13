"""The steps from one set of limits to another, and what LiteLLM would make of them. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff

from actuators.base import CannotPlan, LiveState
from actuators.litellm.proxyfile import AND, FALLBACKS, LIMITS, ROUTER, STRATEGIES, ProxyFile
from actuators.litellm.yamltext import UneditableYaml
from actuators.shape import EngineValue, Operation, Plan, Shape

SYSTEM = "litellm"
#: A write is one rename.
_WRITE_S = 60.0
_LEAST: Mapping[str, float] = {
    "weight": 0, "rpm": 1, "tpm": 1, "max_parallel_requests": 1, "order": 1, "num_retries": 0, "allowed_fails": 0,
    "cooldown_time": 0,
}  # fmt: skip
_FRACTIONS = ("weight", "cooldown_time")


@dataclass(frozen=True, slots=True)
class GroupTerms:
    """What the settings say of how a change goes."""

    endpoint: str
    group: str
    path: str
    restarts: bool
    """Whether Flyball may restart the proxy."""
    restart_s: float


def plan(terms: GroupTerms, file: ProxyFile, live: LiveState, wanted: Shape, outdated: Sequence[str]) -> Plan:
    """``outdated``: where the running proxy differs from its file. Raises ``CannotPlan``."""
    _check(terms, file, live.shape, wanted)
    changes = changes_of(live.shape, wanted)
    steps: list[Operation] = []
    by_hand = None
    if changes:
        said = ", ".join(f"{name}={'none' if value is None else value}" for name, value in sorted(changes.items()))
        args = {"changes": changes, "version": live.version}
        steps.append(Operation("write", args, _WRITE_S, f"write {said} into {terms.path}"))
        by_hand = None if terms.restarts else _patch(terms, file, changes)
        _try(terms, file, changes)
    if (changes or outdated) and terms.restarts:
        text = "restart the proxy, with all of its models, and wait until it runs what its file says"
        steps.append(Operation("restart", {"version": live.version}, terms.restart_s, text))
    if by_hand is not None:
        steps = []
    return Plan(
        endpoint=terms.endpoint,
        system=SYSTEM,
        before=live.shape,
        after=wanted,
        version=live.version,
        operations=tuple(steps),
        restarts=bool(steps),
        downtime_s=terms.restart_s if steps else 0.0,
        way_back="the same lines as they were, and another restart",
        locks=(f"litellm:{terms.path}",),
        by_hand=by_hand,
    )


def nothing(endpoint: str, live: LiveState) -> Plan:
    """From where it is to where it is."""
    return Plan(endpoint, SYSTEM, live.shape, live.shape, live.version, (), False, 0.0, "nothing was changed")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changes_of(now: Shape, wanted: Shape) -> dict[str, EngineValue | None]:
    """None: taken away."""
    changes: dict[str, EngineValue | None] = {k: v for k, v in wanted.engine.items() if now.engine.get(k) != v}
    return changes | dict.fromkeys(now.engine.keys() - wanted.engine.keys())


def _try(terms: GroupTerms, file: ProxyFile, changes: Mapping[str, EngineValue | None]) -> str:
    try:
        return file.with_engine(terms.group, changes)
    except UneditableYaml as error:
        raise CannotPlan("BY_HAND", f"{terms.path}: {error}; change it by hand") from error


def _patch(terms: GroupTerms, file: ProxyFile, changes: Mapping[str, EngineValue | None]) -> str:
    """The changed lines for whoever restarts the proxy. Others may hold keys."""
    old, new = file.text.splitlines(), _try(terms, file, changes).splitlines()
    head = f"# No `restart` is set, so nothing is written. In {terms.path}, and then restart the proxy:\n"
    return head + "".join(f"{_shown(line)}\n" for line in list(unified_diff(old, new, lineterm="", n=0))[2:])


def _shown(line: str) -> str:
    """A deployment on one line may hold its key."""
    return line if "key" not in line.lower() else f"{line.partition('{')[0]}{{ … }}  (this line holds a key)"


def _check(terms: GroupTerms, file: ProxyFile, now: Shape, wanted: Shape) -> None:
    other = [k for k in Shape.__slots__ if k not in ("engine", "replicas") and getattr(wanted, k) != getattr(now, k)]
    if other:
        text = f"a LiteLLM proxy has no {', '.join(other)}: it belongs to the deployments behind it"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    if wanted.replicas != now.replicas:
        text = f"the group has {now.replicas} deployments: another one needs its address and key, so add it to the file by hand"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    names = [d.name for d in file.deployments(terms.group)]
    for name, value in changes_of(now, wanted).items():
        _check_limit(terms, file, names, name, value)
    _check_weights(names, now, wanted)


def _check_limit(
    terms: GroupTerms, file: ProxyFile, names: Sequence[str], name: str, value: EngineValue | None
) -> None:
    limit, _, deployment = name.partition(".")
    if name == FALLBACKS:
        strange = [n for n in ("" if value is None else str(value)).split(AND) if n and n not in file.groups]
        if strange or (value is not None and terms.group in str(value).split(AND)):
            text = (
                f"{name}={value}: {AND.join(strange) or terms.group} cannot be one; there are: {', '.join(file.groups)}"
            )
            raise CannotPlan("BAD_LIMIT", text)
        return
    if name == "routing_strategy":
        if value not in (None, *STRATEGIES):
            raise CannotPlan("BAD_LIMIT", f"routing_strategy={value}: there are {', '.join(STRATEGIES)}")
        return
    if name not in ROUTER and (limit not in LIMITS or deployment not in names):
        known = ", ".join(f"{each}.NAME" for each in LIMITS)
        text = f"{name}: known are {known} with NAME one of {', '.join(names)}, and {', '.join((*ROUTER, FALLBACKS))}"
        raise CannotPlan("BAD_LIMIT", text)
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = number and (limit in _FRACTIONS or float(value) == int(float(value)))
    if not (number and whole and _LEAST[limit] <= float(value) < 1e12):
        kind = "a number" if limit in _FRACTIONS else "a whole number"
        raise CannotPlan("BAD_LIMIT", f"{name}={value}: {kind} of {_LEAST[limit]:g} or more is needed")


def _check_weights(names: Sequence[str], now: Shape, wanted: Shape) -> None:
    """Once one deployment has a weight, LiteLLM gives nothing to those without; where none has any, it goes by `rpm`, then by `tpm`."""
    weights = {name: wanted.engine.get(f"weight.{name}") for name in names}
    if weights == {name: now.engine.get(f"weight.{name}") for name in names}:
        return
    strategy = wanted.engine.get("routing_strategy", "simple-shuffle")
    if strategy != "simple-shuffle":
        raise CannotPlan("NO_WEIGHTS", f"under {strategy} LiteLLM looks at no weight; only simple-shuffle does")
    stated = {name: float(w) for name, w in weights.items() if isinstance(w, int | float)}
    if stated and len(stated) < len(names):
        lacking = ", ".join(f"weight.{name}" for name in names if name not in stated)
        text = f"a deployment without a weight gets nothing once another one has some: give {lacking} too"
        raise CannotPlan("UNSTATED_WEIGHT", text)
    if stated and sum(stated.values()) <= 0:
        raise CannotPlan("BAD_LIMIT", "with every weight 0 LiteLLM goes by rpm, tpm or chance: leave one above 0")
