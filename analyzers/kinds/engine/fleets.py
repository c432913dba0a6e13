"""Fleets that change during a replay, as a person writes them: a fleet file, or an autoscaler's short form.

A fleet that is asked for is a fleet file's JSON: ``analyzers.whatif.fleet.Fleet`` by its fields' names, with ``autoscaler`` for the policy.
The short form ``hpa:in_flight=8,min=1,max=10`` writes that ``autoscaler``: a metric's name is what one replica should bear of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, get_args

from analyzers import strict
from analyzers.grammar import Value, scalar
from analyzers.kinds.system import check_version
from analyzers.whatif.fleet import ReplicaFleet
from analyzers.whatif.model import EngineLimits
from analyzers.whatif.scaling import GovernorPolicy, Hpa, Keda, Kpa, Metric, ScalingPolicy
from collectors.durations import seconds_of

FleetForm = Mapping[str, Any]
POLICIES: dict[str, type[Hpa | Keda | Kpa | GovernorPolicy]] = {
    "hpa": Hpa,
    "keda": Keda,
    "kpa": Kpa,
    "flyball": GovernorPolicy,
}
_METRICS = get_args(Metric)
_BOUNDS = {"min": "least", "max": "most"}
#: What the engine and the fleet tell Flyball's own governor.
_TOLD = ("max_num_seqs", "cold_start_s")


def checked(data: Mapping[str, Any]) -> FleetForm:
    """A fleet file's JSON. Raises ValueError that names the field."""
    check_version(data)
    form = {name: value for name, value in data.items() if name != "schema_version"}
    built(form, EngineLimits(1, 1))
    return form


def built(form: FleetForm, limits: EngineLimits) -> ReplicaFleet:
    """For replicas that have ``limits``. Raises ValueError that names the field."""
    scaler = form.get("autoscaler")
    rest = {name: value for name, value in form.items() if name != "autoscaler"}
    policy = None if scaler is None else _policy(scaler, form, limits)
    return replace(strict.read(ReplicaFleet, rest, also=("autoscaler",)), policy=policy)


def _policy(scaler: Any, form: FleetForm, limits: EngineLimits) -> ScalingPolicy:
    if not isinstance(scaler, Mapping):
        raise ValueError(f"autoscaler: expected an object with its kind, not {scaler!r}")
    kind = _kind(scaler.get("kind"))
    settings = {name: value for name, value in scaler.items() if name != "kind"}
    bounds = {own: form[name] for own, name in (("least", "min_replicas"), ("most", "max_replicas")) if name in form}
    if kind == "keda" and isinstance(settings.get("hpa"), Mapping):
        settings["hpa"] = {**{k: v for k, v in bounds.items() if k == "most"}, **settings["hpa"]}
        bounds.pop("most", None)
    if kind == "flyball":
        bounds |= {"max_num_seqs": limits.max_num_seqs, "cold_start_s": form.get("cold_start_s", 0.0)}
    return strict.read(POLICIES[kind], {**bounds, **settings}, "autoscaler", also=("kind",))


def _kind(name: object) -> str:
    if name not in POLICIES:
        raise ValueError(f"autoscaler.kind: {name!r} is not known; {strict.nearest(str(name), POLICIES)}")
    return str(name)


# -- short form ---------------------------------------------------------------------------------------------------------


def changed(form: FleetForm | None, changes: dict[str, Any], replicas: int) -> FleetForm | None:
    """``form`` with what ``changes`` say of fleets, which is taken out of them. None: replicas that stay.

    changes: ``fleet`` (a fleet file's JSON, or none), ``autoscale`` (``hpa``, or ``hpa:in_flight=8``; none), ``cold_start``, and the
    autoscaler's own settings. replicas: how many an autoscaler starts with, where no fleet says so. Raises ValueError, BadQuestion.
    """
    if "fleet" in changes:
        form = changes.pop("fleet")
    cold = next((changes.pop(name) for name in ("cold_start", "cold_start_s") if name in changes), None)
    fresh = "autoscale" in changes
    if fresh:
        form = _autoscaled(form, changes.pop("autoscale"))
    if form is None:
        if cold is not None:
            raise ValueError(f"cold_start={cold}: says nothing of replicas that stay; give autoscale= or fleet= too")
        return None
    form = form if cold is None else {**form, "cold_start_s": seconds_of(cold)}
    scaler = form.get("autoscaler")
    if isinstance(scaler, Mapping):
        own = settings_of(str(scaler["kind"])) & set(changes)
        if own or fresh:
            form = _set({"replicas": replicas, **form}, {name: changes.pop(name) for name in sorted(own)})
        if "cold_start_s" not in form:
            raise ValueError(
                "autoscale: give cold_start=DURATION too, from the wish for a replica to its first request"
            )
    return form


def _set(form: FleetForm, settings: Mapping[str, Value]) -> FleetForm:
    """With the autoscaler's settings of the short form; the fleet's own bounds, and what it starts with, follow them."""
    scaler = form["autoscaler"]
    for name, value in settings.items():
        scaler = _with(scaler, name, value)
    _check_whole(scaler, form)
    least, most = scaler.get("least"), scaler.get("hpa", scaler).get("most")
    bounds = {own: n for own, n in (("min_replicas", least), ("max_replicas", most)) if own in form and n is not None}
    start: Any = form["replicas"]
    if all(isinstance(n, int) for n in (least or 0, most or 0, start)):
        start = min(max(start, least or 0), start if most is None else most)
    return {**form, **bounds, "replicas": start, "autoscaler": scaler}


def _check_whole(scaler: FleetForm, form: FleetForm) -> None:
    """Raises ValueError where a short form leaves out what no autoscaler does without."""
    kind, of_hpa = scaler["kind"], scaler.get("hpa", {}) if scaler["kind"] == "keda" else scaler
    if kind != "flyball" and not of_hpa.get("target" if kind == "kpa" else "targets"):
        raise ValueError(
            f"autoscale={kind}: say what one replica should bear of {', '.join(_METRICS)}, such as in_flight=8"
        )
    if "most" not in of_hpa and "max_replicas" not in form:
        raise ValueError(f"autoscale={kind}: give max=N, the most replicas")


def _autoscaled(form: FleetForm | None, text: Value) -> FleetForm | None:
    """With an autoscaler instead of the one, or of the schedule, that was there; with ``none``, without one."""
    kept = {name: value for name, value in (form or {}).items() if name not in ("autoscaler", "schedule")}
    if text is None:
        return {name: v for name, v in form.items() if name != "autoscaler"} if form is not None else None
    kind, separator, first = str(text).partition(":")
    scaler: FleetForm = {"kind": _kind(kind)}
    if separator:
        name, equals, value = (part.strip() for part in first.partition("="))
        if not equals or not value:
            raise ValueError(f"autoscale={text}: write for instance hpa:in_flight=8,min=1,max=10")
        check_settings(kind, (name,))
        scaler = _with(scaler, name, scalar(value))
    return {**kept, "autoscaler": scaler}


def settings_of(kind: str) -> set[str]:
    """Names that the short form of this autoscaler knows."""
    names = {*_BOUNDS, *strict.settable(POLICIES[kind])} - set(_TOLD)
    if kind == "keda":
        names |= set(strict.settable(Hpa)) - {"external"}
    return {n for n in names if "." not in n} | (set() if kind == "flyball" else set(_METRICS))


def check_settings(kind: str, names: Iterable[str]) -> None:
    """Raises ValueError on an autoscaler that there is not, and on a name that its short form does not know."""
    known = settings_of(_kind(kind))
    for name in names:
        if name not in known:
            raise ValueError(f"{name}: {kind} has no such setting; {strict.nearest(name, known)}")


def _with(scaler: FleetForm, given: str, value: Value) -> FleetForm:
    """With one setting of the short form."""
    kind, name = scaler["kind"], _BOUNDS.get(given, given)
    if kind == "keda" and name not in {f.name for f in fields(Keda)}:
        return {**scaler, "hpa": _without_kind(_with({"kind": "hpa", **scaler.get("hpa", {})}, given, value))}
    if name not in _METRICS:
        return {**scaler, name: value}
    target = {"metric": name, "value": value}
    if kind == "kpa":
        return {**scaler, "target": target}
    others = [t for t in scaler.get("targets", []) if t["metric"] != name]
    return {**scaler, "targets": [*others, target]}


def _without_kind(scaler: FleetForm) -> FleetForm:
    return {name: value for name, value in scaler.items() if name != "kind"}
