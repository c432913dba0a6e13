"""What a trace can be replayed on: a vLLM server, a VM endpoint, a pay-per-token API, a serverless function, provisioned throughput.

One file a kind. Each reads its own engine file, says what a candidate may change of it, replays, and counts what is paid for. The
simulations are ``analyzers.whatif.engine`` and ``analyzers.whatif.kinds``.
"""

from __future__ import annotations

from pathlib import Path

from agent.whatif.asked import BadQuestion, nearest
from agent.whatif.files import check_version, json_object
from agent.whatif.kinds.base import Described, System
from agent.whatif.kinds.ptu import PtuDeployment
from agent.whatif.kinds.quota import QuotaDeployment
from agent.whatif.kinds.serverless import ServerlessFunction
from agent.whatif.kinds.usl import Machines
from agent.whatif.kinds.vllm import Vllm
from analyzers.prediction import CannotPredict

DESCRIBED: dict[str, type[Described]] = {
    kind.kind: kind for kind in (Machines, QuotaDeployment, ServerlessFunction, PtuDeployment)
}


def read(path: Path) -> System:
    """The engine file at ``path``, of whichever kind it is. Raises BadQuestion that names file and field."""
    data = json_object(path, "an engine file, as `flyball calibrate` writes it")
    kind = data.get("kind", Vllm.kind)
    rest = {name: value for name, value in data.items() if name != "kind"}
    try:
        if kind == Vllm.kind:
            return Vllm.read(rest)
        if kind not in DESCRIBED:
            raise ValueError(f"kind: {kind!r} is not known; {nearest(str(kind), [Vllm.kind, *DESCRIBED])}")
        check_version(rest)
        return DESCRIBED[kind].read({name: value for name, value in rest.items() if name != "schema_version"})
    except (ValueError, CannotPredict) as error:
        raise BadQuestion(f"{path}: {error}") from error
