"""What is tried: the first candidate as the options say, and each other one as changes to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.whatif.files import engine_file, fleet_file
from analyzers import grammar
from analyzers.grammar import BadQuestion, Value
from analyzers.kinds.engine import fleets
from analyzers.kinds.engine.engines import Engines
from analyzers.kinds.system import ReplaySystem
from analyzers.shapes import with_effect


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is replayed."""

    name: str
    """As it was asked for."""
    system: ReplaySystem


def candidates(
    engine: Path,
    *,
    replicas: int | None = None,
    router: str | None = None,
    settings: Mapping[str, Value] | None = None,
    usd_per_replica_hour: float | None = None,
    fleet: Path | None = None,
    autoscale: str | None = None,
    cold_start: float | None = None,
    others: Sequence[str] = (),
    timeout_s: float | None = None,
    notes: list[str],
) -> list[Candidate]:
    """The engine file's system with the options, then each of ``others``: ``replicas=2,max_num_seqs=64``, changes to the first.

    timeout_s: of the traffic; a system that does not simulate it is refused. notes: takes what a reader must know. Raises BadQuestion.
    """
    scaler = {} if autoscale is None else _scaler(autoscale, notes)
    options = {
        "replicas": replicas,
        "router": router,
        "usd_per_replica_hour": grammar.positive(usd_per_replica_hour, "--usd-per-replica-hour", zero=True),
        "fleet": None if fleet is None else str(fleet),
        "cold_start": grammar.positive(cold_start, "--cold-start", zero=True),
    }
    options = {name: value for name, value in options.items() if value is not None}
    system = engine_file(engine)
    place = "" if isinstance(system, Engines) else f"{engine}: "
    name = _name(system, engine, options, settings or {}, autoscale)
    first = Candidate(name, _changed(system, {**options, **scaler, **(settings or {})}, place, notes))
    tried = [first, *(_other(first, text, notes) for text in others)]
    if timeout_s is not None and (deaf := next((c for c in tried if not c.system.heeds_timeout), None)):
        raise BadQuestion(
            f"--timeout: clients that give up are not simulated on the kind {deaf.system.kind} ({deaf.name}); leave one of the two out"
        )
    return tried


def _scaler(text: str, notes: list[str]) -> dict[str, Value]:
    """``hpa:in_flight=8,min=1`` as changes to a system. Raises BadQuestion on what is no setting of this autoscaler."""
    with grammar.place(f"--autoscale {text}"):
        changes = grammar.pairs(f"autoscale={text}", notes)
    kind = str(changes["autoscale"]).partition(":")[0]
    try:
        fleets.check_settings(kind, [name for name in changes if name != "autoscale"])
    except ValueError as error:
        raise BadQuestion(f"--autoscale {text}: {error}") from error
    return changes


def _name(
    system: ReplaySystem,
    engine: Path,
    options: Mapping[str, Value],
    settings: Mapping[str, Value],
    autoscale: str | None,
) -> str:
    """``2 replicas, max_num_seqs=32``."""
    replicas, hidden = options.get("replicas", 1), {"router", "usd_per_replica_hour", "fleet"}
    if not isinstance(system, Engines):
        parts = [engine.stem]
    elif autoscale is None and "fleet" not in options:
        parts = [f"{replicas} replica{'s' * (replicas != 1)}"]
        hidden.add("replicas")
    else:
        parts = [f"fleet={file}"] if (file := options.get("fleet")) else []
        parts += [f"autoscale={autoscale}"] if autoscale is not None else []
    shown = {**{name: value for name, value in options.items() if name not in hidden}, **settings}
    return ", ".join([*parts, *(f"{name}={value}" for name, value in shown.items())])


def _other(first: Candidate, text: str, notes: list[str]) -> Candidate:
    with grammar.place(f"--candidate {text}"):
        changes = grammar.pairs(text, notes)
    file = changes.pop("engine", None)
    system = first.system if file is None else engine_file(Path(str(file)))
    if file is not None and isinstance(system, Engines) and isinstance(first.system, Engines):
        system = system.in_place_of(first.system)
    return Candidate(text, _changed(system, changes, f"--candidate {text}: ", notes))


def _changed(system: ReplaySystem, changes: Mapping[str, Any], place: str, notes: list[str]) -> ReplaySystem:
    if isinstance(system, Engines):
        changes = with_effect(changes, grammar.engine_settings(system.engine), notes)
    if isinstance(file := changes.get("fleet"), str):
        changes = {**changes, "fleet": fleet_file(Path(file))}
    try:
        return system.changed(changes)
    except ValueError as error:
        raise BadQuestion(f"{place}{error}") from error
