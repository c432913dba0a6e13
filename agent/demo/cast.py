"""Who plays: the emulated endpoints, their traffic, and the settings that the daemon is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from actuators.emulated.engine import Size
from actuators.emulated.fleet import EmulatedSpec
from actuators.shape import Shape
from collectors.plan import Lengths, TrafficPlan

#: Two sizes of machine. Figures of emulated machines: made up, and fed both to the emulation and to Flyball's settings.
SIZES = {
    "emu-small": (Size(bandwidth_gb_s=680.0, tflops=104.0, kv_tokens=40_000), 1.10),
    "emu-large": (Size(bandwidth_gb_s=1360.0, tflops=208.0, kv_tokens=120_000), 2.60),
}
MEMORY_GB = {"emu-small": 24.0, "emu-large": 48.0}
MODEL = "demo-8b"
SLACK_USER = "U0DEMO123"
#: Beside the settings, so that every command can read them.
SECRET_FILE, WEBHOOK_FILE = "slack-signing-secret", "slack-webhook"


@dataclass(frozen=True, slots=True)
class Role:
    """One emulated endpoint, and what the story expects of it."""

    name: str
    shape: Shape
    rate: float
    expected: str
    """``grow``, ``shrink``, ``right``, ``rollback`` or ``open``: its proposal is left for the one who watches."""
    sabotage: dict[str, Any] | None = None
    harm: str = ""
    """What the sabotage is, in words."""
    policy: dict[str, Any] = field(default_factory=dict)

    def spec(self, seed: int) -> EmulatedSpec:
        sizes = {name: size for name, (size, _) in SIZES.items()}
        return EmulatedSpec(self.name, MODEL, self.shape, sizes, cold_start_s=2.0, seed=seed, sabotage=self.sabotage)

    def traffic(self, seed: int, duration_s: float) -> TrafficPlan:
        return TrafficPlan(
            rate=self.rate,
            duration_s=duration_s,
            prompt_tokens=Lengths.parse("lognormal:180:0.5"),
            output_tokens=Lengths.parse("lognormal:40:0.5"),
            seed=seed,
            model=MODEL,
            exact_output=True,
            timeout_s=60.0,
        )


def _shape(replicas: int, seqs: int = 16) -> Shape:
    return Shape(replicas=replicas, size="emu-small", engine={"max_num_seqs": seqs})


ROLES = (
    Role(
        "support-chat",
        _shape(1, 8),
        6.0,
        "grow",
        policy={"max_replicas": 3, "sizes": ["emu-large"], "engine": {"max_num_seqs": [8, 16]}},
    ),
    Role("summaries", _shape(4), 4.0, "shrink", policy={"max_replicas": 4, "max_step_replicas": 2}),
    Role("search", _shape(2), 8.5, "right", policy={"max_replicas": 4}),
    Role(
        "tickets",
        _shape(3),
        4.0,
        "rollback",
        sabotage={"when": {"replicas": 2}, "slowdown": 5.0},
        harm="the demo made its machines five times slower once there were 2, as beside a noisy neighbour",
        policy={"min_replicas": 2, "max_replicas": 3, "max_step_replicas": 1},
    ),
    Role("drafts", _shape(2), 2.0, "open", policy={"max_replicas": 2}),
)


def settings(urls: dict[str, str], slack_host: str, port: int) -> str:
    """The demo's flyball.yaml: the product's own settings, with everything that takes an hour taking seconds."""
    sizes = {
        name: {
            "usd_per_replica_hour": price,
            "bandwidth_gb_s": size.bandwidth_gb_s,
            "tflops_bf16": size.tflops,
            "memory_gb": MEMORY_GB[name],
        }
        for name, (size, price) in SIZES.items()
    }
    data = {
        "database": "sqlite:///flyball.db",
        "collect": {"interval_s": 1, "window_s": 2, "timeout_s": 5},
        "decide": {"interval_s": 3, "act_interval_s": 0.5},
        "web": {"port": port},
        "slack": {
            "webhook_url": f"file:{WEBHOOK_FILE}",
            "signing_secret": f"file:{SECRET_FILE}",
            "approvers": [SLACK_USER],
            "allow_hosts": [slack_host],
        },
        "sizes": sizes,
        "endpoints": [_endpoint(role, urls[role.name]) for role in ROLES],
    }
    head = "# The demo's settings. The endpoints are emulated, on this machine; what takes an hour elsewhere takes seconds here.\n"
    return head + yaml.safe_dump(data, sort_keys=False)


def _endpoint(role: Role, url: str) -> dict[str, Any]:
    policy = {
        "evidence_s": 24,
        "min_requests": 30,
        "stable_cycles": 2,
        "cooldown_s": 600,
        "expires_s": 900,
        **role.policy,
    }
    return {
        "name": role.name,
        "url": url,
        "model": MODEL,
        "mode": "approve",
        "objective": {"ttft_p95_s": 0.9, "itl_p95_s": 0.15, "error_rate": 0.02},
        "actuator": {"system": "emulated"},
        "policy": policy,
        "verify": {"warmup_s": 4, "windows": 6, "deadline_s": 30, "load_tolerance": 0.25},
    }
