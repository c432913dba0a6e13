"""Files that a question names: engine files and fleet files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent import silicon
from analyzers.grammar import BadQuestion
from analyzers.hardware import ACCELERATORS
from analyzers.kinds.engine import fleets
from analyzers.kinds.engine.engines import Engines
from analyzers.kinds.registry import system_of
from analyzers.kinds.system import ReplaySystem
from analyzers.prediction import CannotPredict


def engine_file(path: Path) -> ReplaySystem:
    """Of whichever kind it is, with all that is known here of accelerators. Raises BadQuestion that names file and field."""
    data = _json_object(path, "an engine file, as `flyball calibrate` writes it")
    try:
        system = system_of(data)
    except (ValueError, CannotPredict) as error:
        raise BadQuestion(f"{path}: {error}") from error
    return replace(system, hardware=silicon.equipped(ACCELERATORS)) if isinstance(system, Engines) else system


def fleet_file(path: Path) -> fleets.FleetForm:
    """Raises BadQuestion that names file and field."""
    data = _json_object(path, "a fleet file: replicas, cold_start_s, schedule, failures, autoscaler")
    try:
        return fleets.checked(data)
    except ValueError as error:
        raise BadQuestion(f"{path}: {error}") from error


def _json_object(path: Path, what: str) -> Mapping[str, Any]:
    """The JSON object in a file. Raises BadQuestion; ``what`` is what the file should be."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadQuestion(f"{path}: cannot be read ({error.strerror}); name {what}") from error
    except (ValueError, RecursionError) as error:
        raise BadQuestion(f"{path}: is no JSON ({error}); name {what}") from error
    if not isinstance(data, dict):
        raise BadQuestion(f"{path}: expected a JSON object; name {what}")
    return data
