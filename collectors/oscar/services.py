"""How a service's definition says that it serves, and which of its fields hold scale and resources. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Body = Mapping[str, Any]
#: ``exposed``: a Deployment with an HPA. ``kserve``: an InferenceService. ``function``: Knative for calls, a job for each file or event.
Mode = Literal["exposed", "kserve", "function"]
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def mode_of(service: Body) -> Mode:
    if (service.get("kserve") or {}).get("storage_uri"):
        return "kserve"
    ports = (service.get("expose") or {}).get("api_port")
    ports = ports if isinstance(ports, list) else [ports]
    return "exposed" if any(ports) else "function"


def section_of(mode: Mode) -> str:
    """Which part of the definition holds ``min_scale`` and ``max_scale``."""
    return {"exposed": "expose", "kserve": "kserve", "function": "synchronous"}[mode]


def resources_of(service: Body) -> Body:
    """What holds ``cpu``, ``memory`` and ``enable_gpu``."""
    found: Body = (service.get("kserve") or {}) if mode_of(service) == "kserve" else service
    return found


def cpus_of(text: Any) -> float | None:
    """``0.5``, ``500m``. None: not stated. Raises ValueError."""
    said = str(text or "").strip()
    if not said:
        return None
    return float(said[:-1]) / 1000 if said.endswith("m") else float(said)


def bytes_of(text: Any) -> float | None:
    """``256Mi``, ``1G``. None: not stated. Raises ValueError."""
    said = str(text or "").strip()
    if not said:
        return None
    number = said.rstrip("kKMGTi")
    unit = said[len(number) :]
    if unit not in _UNITS:
        raise ValueError(f"{said!r} is no amount of memory")
    return float(number) * _UNITS[unit]
