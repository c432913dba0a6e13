"""An endpoint's half hour of telemetry, as an engine of known speed makes it: for what learns and predicts from the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from actuators.shape import Shape
from agent.clock import WallClock
from agent.store import Store, fleet, windows
from analyzers.money import Tariff, Unit
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from tests.analyzers.whatif.reference_server import poisson
from tests.analyzers.whatif.reference_server import windows as served

MODEL = EngineModel(IterationCost(0.0085, 3e-5, 3e-8, 5e-5, 2e-9), EngineLimits(128, 4096, 200_000))
SETTINGS = """
sizes:
  a100: {usd_per_replica_hour: 3.5, accelerator: A100-80GB}
  a100x2: {usd_per_replica_hour: 7.0, accelerator: A100-80GB, accelerator_count: 2}
  l40s: {usd_per_replica_hour: 1.5, accelerator: L40S}
  h100: {accelerator: H100}
endpoints:
  - name: chat
    url: http://127.0.0.1:1
    objective: {ttft_p95_s: 1.0}
    shape: {replicas: 1, size: a100}
"""
SHAPE = Shape(
    replicas=1, size="a100", accelerator="A100-80GB", accelerator_count=1,
    engine={"max_num_seqs": 128, "max_num_batched_tokens": 4096},
)  # fmt: skip


def write(folder: Path, template: Path, *, first: EngineModel = MODEL) -> Path:
    """The settings' path, in ``folder`` beside its database: a copy of ``template`` with the last half hour of one endpoint, which did
    half as much in its first ten minutes. first: what served those."""
    (folder / "flyball.yaml").write_text(SETTINGS)
    (folder / "flyball.db").write_bytes(template.read_bytes())
    store = Store(f"sqlite:///{folder}/flyball.db")
    now = WallClock().now() // 60 * 60
    quiet, busy = served(first, poisson(2.0, 600.0, 3)), served(MODEL, poisson(4.0, 1200.0, 4))
    rows = [replace(w, start=now - 1800 + w.start) for w in quiet] + [
        replace(w, start=now - 1200 + w.start) for w in busy
    ]
    with store.write() as db:
        windows.save(db, rows, {"chat": Tariff.of({Unit.HOUR: 3.5})})
        fleet.saw_shape(
            db, "chat",
            {"shape": SHAPE.as_dict(), "shape_version": "v", "ready": True, "detail": "", "seen_at": now, "price_per_hour": 3.5},
        )  # fmt: skip
    store.close()
    return folder / "flyball.yaml"
