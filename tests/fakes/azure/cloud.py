"""What is there: a subscription with workspaces, online endpoints, deployments, quotas, autoscale settings, and traffic.

All of it in memory, with a clock that is handed in. Rules of the service live in ``ml.py`` and ``monitor.py``; this holds the nouns.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SUBSCRIPTION = "5ab3c2d1-0000-4000-8000-00000000f1b0"
GROUP, WORKSPACE, REGION = "rg-chat", "ws-chat", "westeurope"
ML = "Microsoft.MachineLearningServices"
#: All that an owner may do; a test takes away from it.
EVERYTHING = ("*",)


class Refusal(Exception):
    """An answer that is an error, in ARM's envelope."""

    def __init__(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.body = {"error": {"code": code, "message": message, **more}}
        self.headers = headers or {}


@dataclass(frozen=True)
class VmSize:
    """A row of ``locations/{region}/vmSizes``."""

    name: str
    family: str
    cores: int
    memory_gb: float
    gpus: int = 0
    usd_per_hour: float | None = None

    def body(self) -> dict[str, Any]:
        prices = (
            []
            if self.usd_per_hour is None
            else [
                {"retailPrice": self.usd_per_hour, "osType": "Linux", "vmTier": "Standard"},
                {"retailPrice": self.usd_per_hour * 1.7, "osType": "Windows", "vmTier": "Standard"},
                {"retailPrice": self.usd_per_hour * 0.2, "osType": "Linux", "vmTier": "Spot"},
            ]
        )
        return {
            "name": self.name,
            "family": self.family,
            "vCPUs": self.cores,
            "gpus": self.gpus,
            "osVhdSizeMB": 1047552,
            "maxResourceVolumeMB": 16384 * self.cores,
            "memoryGB": self.memory_gb,
            "lowPriorityCapable": True,
            "premiumIO": True,
            "estimatedVMPrices": {"billingCurrency": "USD", "unitOfMeasure": "OneHour", "values": prices},
            "supportedComputeTypes": ["AmlCompute", "ComputeInstance"],
        }  # fmt: skip


SIZES = (
    VmSize("Standard_F2s_v2", "standardFSv2Family", 2, 4, usd_per_hour=0.097),
    VmSize("Standard_F4s_v2", "standardFSv2Family", 4, 8, usd_per_hour=0.194),
    VmSize("Standard_F8s_v2", "standardFSv2Family", 8, 16, usd_per_hour=0.388),
    VmSize("Standard_NC24ads_A100_v4", "StandardNCADSA100v4Family", 24, 220, gpus=1, usd_per_hour=4.775),
    VmSize("Standard_DS3_v2", "standardDSv2Family", 4, 14),
)


@dataclass(frozen=True)
class Law:
    """How a deployment responds: the universal scalability law of one instance of 2 cores, and how its latency spreads."""

    rate_per_s: float = 8.0
    """Requests per second of one instance with one request in it."""
    sigma: float = 0.06
    kappa: float = 0.0004
    spread: float = 0.5
    """Standard deviation of the latency's logarithm."""
    gain: float = 1.0
    """Rate grows as (cores / 2) ** gain."""
    slowdown: Callable[[str], float] = lambda _size: 1.0
    """By size: the truth's own secret."""

    def latency_s(self, rate: float, size: VmSize) -> tuple[float, float]:
        """Mean latency, and requests in the machine, at ``rate`` requests per second of one instance."""
        unit = self.rate_per_s * (size.cores / 2) ** self.gain / self.slowdown(size.name)
        held = 0.01
        for held in (0.01 * 1.05**k for k in range(170)):
            done = (
                unit * held / (1 + self.sigma * (held - 1) + self.kappa * held * (held - 1))
                if held > 1
                else unit * held
            )
            if done >= rate:
                return held / rate if rate > 0 else 1 / unit, held
        return 40 / unit, held

    def quantile(self, mean: float, q: float) -> float:
        """Of a log-normal latency."""
        z = {0.5: 0.0, 0.9: 1.2816, 0.95: 1.6449, 0.99: 2.3263}[q]
        return mean * math.exp(-(self.spread**2) / 2 + self.spread * z)


@dataclass
class Deployment:
    name: str
    body: dict[str, Any]
    """As it was put: location, tags, identity, kind, sku, properties."""
    state: str = "Creating"
    serving: int = 0
    since: float = 0.0
    """When it began to serve on what it is now."""
    operation_uri: str = ""
    changed: float = 0.0

    @property
    def size(self) -> str:
        return str(self.body["properties"]["instanceType"])

    @property
    def count(self) -> int:
        return int(self.body["sku"]["capacity"])


@dataclass
class Endpoint:
    group: str
    workspace: str
    name: str
    body: dict[str, Any]
    state: str = "Creating"
    deployments: dict[str, Deployment] = field(default_factory=dict)
    changed: float = 0.0
    history: list[tuple[float, dict[str, tuple[int, str, int]]]] = field(default_factory=list)
    """From when on, which deployments took traffic: share in percent, size, instances."""

    @property
    def traffic(self) -> dict[str, int]:
        return dict(self.body["properties"].get("traffic") or {})


@dataclass
class Operation:
    """Something that takes time. ``done`` changes the world; ``error`` is (code, message) where it fails."""

    name: str
    target: str
    """The endpoint's key: one at a time on each."""
    deployment: str | None
    kind: str
    started: float
    due: float
    done: Callable[[], None]
    failed: Callable[[], None]
    error: tuple[str, str] | None = None
    status: str = "InProgress"


@dataclass
class Fault:
    """What goes wrong, the next ``times`` that a request matches."""

    method: str
    path: str
    """A regular expression."""
    status: int = 500
    code: str = "InternalServerError"
    message: str = "Something went wrong."
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    after: bool = False
    """Do what was asked, and cut the connection instead of answering."""

    def hits(self, method: str, path: str) -> bool:
        return self.times > 0 and method == self.method and re.search(self.path, path) is not None


class Cloud:
    """The state, and the time that passes in it. All access under ``lock``."""

    def __init__(self, clock: Callable[[], float], *, subscription: str = SUBSCRIPTION) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self.subscription = subscription
        self.workspaces: dict[tuple[str, str], str] = {(GROUP, WORKSPACE): REGION}
        self.endpoints: dict[str, Endpoint] = {}
        self.autoscale: dict[str, dict[str, Any]] = {}
        self.operations: dict[str, Operation] = {}
        self.sizes = {size.name: size for size in SIZES}
        self.unavailable: set[str] = set()
        """Sizes for which there is no capacity in the region now."""
        self.quota: dict[str, int] = {
            "standardFSv2Family": 100,
            "StandardNCADSA100v4Family": 0,
            "standardDSv2Family": 6,
        }
        self.machines: dict[str, Any] = {}
        """Virtual machines, scale sets and node pools (``compute.Machine``), by their path in lower case."""
        self.forbidden: set[str] = set()
        """Sizes that this subscription may not have."""
        self.serverless: dict[str, dict[str, Any]] = {}
        """Serverless endpoints, as ARM shows them, by group, workspace and name in lower case."""
        self.accounts: dict[str, Any] = {}
        """Of Cognitive Services, with their model deployments (``openai.Account``)."""
        self.model_quota: dict[str, int] = {}
        """Units by the name of their usage."""
        self.model_capacity: dict[tuple[str, str], int] = {}
        """What Azure itself has left, by region and sku. Without an entry: plenty."""
        self.create_s, self.scale_s, self.update_s, self.delete_s = 480.0, 240.0, 30.0, 120.0
        self.retry_after_s = 10
        self.lag_s = 150.0
        """How late platform metrics come."""
        self.page = 50
        self.actions: tuple[str, ...] = EVERYTHING
        self.not_actions: tuple[str, ...] = ()
        self.tokens = {
            "arm-token": "https://management.azure.com",
            "metrics-token": "https://metrics.monitor.azure.com",
        }
        self.keys = ("primary-key", "secondary-key")
        self.faults: list[Fault] = []
        self.operation_errors: dict[tuple[str, str], tuple[str, str]] = {}
        """By kind (create, scale, traffic, delete) and deployment or endpoint: how the next such operation fails."""
        self.law = Law()
        self.rate: Callable[[float], float] = lambda _at: 0.0
        """Requests per second of each endpoint, by time."""
        self.broken: set[str] = set()
        """Deployments whose scoring answers 500."""
        self.error_share: Callable[[str], float] = lambda _size: 0.0
        self.silent: set[str] = set()
        """Metrics that have no data: null."""
        self.requests: list[tuple[str, str]] = []
        self.scored: list[str] = []
        self._counter = 0

    def new_id(self, prefix: str) -> str:
        self._counter += 1
        digest = hashlib.sha256(f"{prefix}{self._counter}".encode()).hexdigest()
        return f"{prefix}:{digest[:8]}-{digest[8:12]}-{digest[12:16]}:{self._counter}"

    # -- time ----------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """End every operation that is due."""
        now = self.clock()
        for operation in sorted(self.operations.values(), key=lambda o: o.due):
            if operation.status == "InProgress" and operation.due <= now:
                if operation.error is None:
                    operation.done()
                    operation.status = "Succeeded"
                else:
                    operation.failed()
                    operation.status = "Failed"
                self.touch(operation)
                self.record(self.endpoints.get(operation.target), operation.due)

    def touch(self, operation: Operation) -> None:
        """Note when its target was changed."""
        endpoint = self.endpoints.get(operation.target)
        if endpoint is not None and operation.deployment is None:
            endpoint.changed = self.clock()
        elif endpoint is not None and operation.deployment in endpoint.deployments:
            endpoint.deployments[operation.deployment].changed = self.clock()

    def record(self, endpoint: Endpoint | None, at: float) -> None:
        """Keep who takes traffic from now on."""
        if endpoint is None:
            return
        now = {
            name: (share, endpoint.deployments[name].size, endpoint.deployments[name].serving)
            for name, share in endpoint.traffic.items()
            if share and name in endpoint.deployments
        }
        if not endpoint.history or endpoint.history[-1][1] != now:
            endpoint.history.append((at, now))

    def running(self, target: str) -> Operation | None:
        return next((o for o in self.operations.values() if o.target == target and o.status == "InProgress"), None)

    # -- quota ---------------------------------------------------------------------------------------------------------

    def cores_used(self, family: str) -> int:
        return sum(
            self.cores_needed(d.size, d.count)
            for e in self.endpoints.values()
            for d in e.deployments.values()
            if self.sizes[d.size].family == family
        )

    def cores_needed(self, size: str, count: int) -> int:
        """A fifth more than runs, for upgrades."""
        return math.ceil(1.2 * count) * self.sizes[size].cores

    # -- setting the stage ---------------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        size: str = "Standard_F2s_v2",
        count: int = 2,
        *,
        deployment: str = "blue",
        tags: dict[str, str] | None = None,
        group: str = GROUP,
        workspace: str = WORKSPACE,
        region: str = REGION,
    ) -> Endpoint:
        """An endpoint with one deployment that has been there for long."""
        self.workspaces[group, workspace] = region
        properties = {
            "authMode": "Key",
            "publicNetworkAccess": "Enabled",
            "traffic": {deployment: 100},
            "mirrorTraffic": {},
        }
        body = {"location": region, "tags": dict(tags or {}), "kind": "Managed", "properties": properties,
                "identity": {"type": "SystemAssigned"}}  # fmt: skip
        endpoint = Endpoint(group, workspace, name, body, "Succeeded")
        model = f"/subscriptions/{self.subscription}/resourceGroups/{group}/providers/{ML}/workspaces/{workspace}/models/{name}/versions/3"
        deployed = {
            "location": region,
            "tags": {"team": "search"},
            "kind": "Managed",
            "sku": {"name": "Default", "capacity": count},
            "properties": {
                "endpointComputeType": "Managed",
                "instanceType": size,
                "model": model,
                "environmentId": f"{model.rpartition('/models/')[0]}/environments/serve/versions/7",
                "environmentVariables": {"WORKER_COUNT": "2"},
                "appInsightsEnabled": False,
                "requestSettings": {
                    "maxConcurrentRequestsPerInstance": 8,
                    "requestTimeout": "PT5S",
                    "maxQueueWait": "PT1S",
                },
                "scaleSettings": {"scaleType": "Default"},
            },
        }
        endpoint.deployments[deployment] = Deployment(deployment, deployed, "Succeeded", count, self.clock() - 86_400)
        self.endpoints[f"{group}/{workspace}/{name}".lower()] = endpoint
        self.record(endpoint, self.clock() - 86_400)
        return endpoint

    def add_autoscale(
        self, name: str, target: str, least: int, most: int, cpu: float = 70.0, *, group: str = GROUP
    ) -> None:
        """An autoscale setting as the portal makes it: out above ``cpu`` percent, in below half of it."""

        def rule(operator: str, threshold: float, direction: str) -> dict[str, Any]:
            return {
                "metricTrigger": {
                    "metricName": "CpuUtilizationPercentage", "metricResourceUri": target, "timeGrain": "PT1M", "statistic": "Average",
                    "timeWindow": "PT5M", "timeAggregation": "Average", "operator": operator, "threshold": threshold,
                },
                "scaleAction": {"direction": direction, "type": "ChangeCount", "value": "1", "cooldown": "PT5M"},
            }  # fmt: skip

        self.autoscale[f"{group}/{name}".lower()] = {
            "name": name,
            "group": group,
            "location": REGION,
            "tags": {},
            "properties": {
                "name": name,
                "enabled": True,
                "targetResourceUri": target,
                "profiles": [
                    {
                        "name": "default",
                        "capacity": {"minimum": str(least), "maximum": str(most), "default": str(least)},
                        "rules": [rule("GreaterThan", cpu, "Increase"), rule("LessThan", cpu / 2, "Decrease")],
                    }
                ],
                "notifications": [],
            },
        }
