"""Which kinds there are, and how an engine file says which one it is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyzers.kinds.base import Kind
from analyzers.kinds.engine.engines import Engines
from analyzers.kinds.engine.kind import EngineKind
from analyzers.kinds.ptu.deployment import PtuDeployment
from analyzers.kinds.ptu.kind import PtuKind
from analyzers.kinds.quota.deployment import QuotaDeployment
from analyzers.kinds.quota.kind import QuotaKind
from analyzers.kinds.serverless.function import ServerlessFunction
from analyzers.kinds.serverless.kind import ServerlessKind
from analyzers.kinds.system import DescribedSystem, ReplaySystem, check_version
from analyzers.kinds.vm.kind import VmKind
from analyzers.kinds.vm.machines import Machines
from analyzers.strict import nearest

SYSTEMS: dict[str, type[DescribedSystem]] = {
    kind.kind: kind for kind in (Machines, QuotaDeployment, ServerlessFunction, PtuDeployment)
}
#: How endpoints are predicted from their own telemetry, by the settings' ``kind``.
KINDS: Mapping[str, Kind[Any]] = {
    kind.name: kind for kind in (EngineKind(), VmKind(), QuotaKind(), PtuKind(), ServerlessKind())
}
#: What engine files of an earlier Flyball say.
_RENAMED = {"usl": Machines.kind, "vllm": Engines.kind}


def system_of(data: Mapping[str, Any]) -> ReplaySystem:
    """An engine file's JSON, of whichever kind it is. Raises ValueError that names the field, CannotPredict."""
    kind = data.get("kind", Engines.kind)
    rest = {name: value for name, value in data.items() if name != "kind"}
    if kind == Engines.kind:
        return Engines.read(rest)
    if kind in _RENAMED:
        raise ValueError(f"kind: {kind!r} is called {_RENAMED[kind]!r} now; write that")
    if kind not in SYSTEMS:
        raise ValueError(f"kind: {kind!r} is not known; {nearest(str(kind), [Engines.kind, *SYSTEMS])}")
    check_version(rest)
    return SYSTEMS[kind].read({name: value for name, value in rest.items() if name != "schema_version"})
