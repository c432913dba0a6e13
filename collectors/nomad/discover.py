"""``flyball discover nomad`` and ``flyball permissions nomad``: each service job that serves a model, as an endpoint."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support, options_of
from collectors.jobs import BatchJob
from collectors.nomad.client import NomadClient, NomadError, NomadSettings, shared
from collectors.nomad.jobs import UnknownPart, engine_source, port_of, task_of

#: What each capability of a namespace is for.
_NEEDS = (("list-jobs", "see"), ("read-job", "see"), ("scale-job", "change"), ("submit-job", "change"))


class JobDiscoveryOptions(NomadSettings):
    """What ``flyball discover nomad`` takes: an agent, its namespace, its token."""


class NomadSystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "nomad"
    options: ClassVar[type[BaseModel]] = JobDiscoveryOptions
    support: ClassVar[Support] = Support(
        title="a service job of Nomad (AI4OS dedicated)",
        sees=(
            "allocations that run, start, wait for room",
            "each allocation's own metrics, at its own address",
            "their CPU and memory, of what they were given; evaluations that are blocked",
        ),
        changes=(
            "the count of a group",
            "the bounds of a group that Nomad's autoscaler scales",
            "CPU, cores, memory and GPUs of the task that serves, by a rolling deployment",
        ),
        verified="recorded answers",
        how="answers of a real Nomad 1.1.2 (scale, plan, register, errors, metrics), which the stand-in of the tests gives alike",
    )

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        options = options_of(JobDiscoveryOptions, context.options, "nomad")
        client = _client(context, options)
        taken: set[str] = set()
        for stub in await client.jobs():
            if stub.get("Type") != "service" or stub.get("Status") == "dead" or stub.get("Stop"):
                continue
            for entry in await _entries(client, str(stub["ID"]), options, taken):
                taken.add(entry.name)
                yield entry

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        """By the rules of the token's policies, where Nomad tells them."""
        stated: Mapping[str, Any] = context.options
        held = entry is None
        if entry is not None:
            actuator = entry.get("actuator") or {}
            held = actuator.get("system") == self.name
            of = actuator.get("options") if held else None
            stated = dict(of or (entry.get("sources") or {}).get(self.name) or {})
            stated = {k: v for k, v in stated.items() if k in NomadSettings.model_fields and v is not None}
        options = options_of(JobDiscoveryOptions, stated, "nomad")
        may = await _client(context, options).capabilities()
        detail = f"in namespace {options.namespace}"
        return [
            Permission(
                name, "see" if what_for == "see" else "change", None if may is None else bool({name, "*"} & may), detail
            )
            for name, what_for in _NEEDS
            if what_for == "see" or held
        ]

    async def jobs(self, context: DiscoveryContext, of: str) -> list[BatchJob]:
        """See ``collectors.jobs.JobPlatform``: a batch job's, those that were dispatched from it, and its periodic ones."""
        client = _client(context, options_of(JobDiscoveryOptions, context.options, "nomad"))
        stubs = [s for s in await client.jobs() if s.get("ID") == of or str(s.get("ID")).startswith(f"{of}/")]
        if not stubs:
            raise NomadError("missing", f"{client.url} has no job {of!r} in namespace {self._space(context)}")
        return [run for stub in stubs if stub.get("Type") in ("batch", "sysbatch") for run in await client.runs(stub)]

    def _space(self, context: DiscoveryContext) -> str:
        return str(context.options.get("namespace") or "default")

    def permissions(self) -> str:
        return _ROLE


async def _entries(
    client: NomadClient, name: str, options: JobDiscoveryOptions, taken: set[str]
) -> list[DiscoveredEndpoint]:
    """One for each group of a job."""
    job = await client.job(name)
    groups = [g for g in job.get("TaskGroups") or () if isinstance(g, dict)]
    found = []
    for group in groups:
        own = name if len(groups) == 1 else f"{name}-{group['Name']}"
        running = [a for a in await client.allocations(name) if a.running and a.group == group["Name"]]
        address = None
        if running:
            ports = await client.ports(running[0].id)
            address = port_of(group, _task(group), ports, None)
        found.append(entry_of(own, job, group, address, len(running), options, taken))
    return found


def entry_of(
    own: str,
    job: Mapping[str, Any],
    group: Mapping[str, Any],
    address: str | None,
    running: int,
    options: JobDiscoveryOptions,
    taken: set[str],
) -> DiscoveredEndpoint:
    """A group as an entry of the settings. Secrets stand in it by reference only."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", own.lower()).strip("-")[:60] or "job"
    name = plain if plain not in taken else next(n for i in range(2, 10_000) if (n := f"{plain}-{i}") not in taken)
    cluster: dict[str, Any] = {"address": options.address, "namespace": options.namespace}
    cluster |= {} if options.region is None else {"region": options.region}
    if options.token_file is not None:
        cluster["token_file"] = str(options.token_file)
    elif options.token is not None:
        cluster["token"] = "${NOMAD_TOKEN}"  # noqa: S105
    which = {"job": str(job.get("ID")), "group": str(group.get("Name"))}
    engine = engine_source(_task(group))
    settings: dict[str, Any] = {
        "name": name,
        "url": f"http://{address or '127.0.0.1:8000'}",
        "sources": {**({engine: {}} if engine else {}), "nomad": {**cluster, **which}},
        "actuator": {"system": "nomad", "options": {**cluster, **which}},
        "mode": "observe",
    }
    if engine is None:
        settings["kind"] = "vm"
    scaling = group.get("Scaling") or {}
    if scaling.get("Max"):
        settings["policy"] = {"min_replicas": max(1, int(scaling.get("Min") or 0)), "max_replicas": int(scaling["Max"])}
    notes = [f"{running} of {group.get('Count')} allocations run"]
    notes.append(
        f"url is one allocation's address ({address}): put what stands in front of all of them"
        if address
        else "no allocation tells an address: correct the url"
    )
    if engine is None:
        notes.append("its engine is not known by its image: Nomad tells nothing of requests, so add a source, or probe")
    try:
        task_of(group, None)
    except UnknownPart as error:
        notes.append(f"{error}: set actuator.options.task")
    return DiscoveredEndpoint(name, settings, "\n".join(notes))


def _task(group: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one that serves; the first, where nobody can tell."""
    try:
        return task_of(group, None)
    except UnknownPart:
        return next(iter(group.get("Tasks") or ()), {})


def _client(context: DiscoveryContext, options: JobDiscoveryOptions) -> NomadClient:
    return shared(context.sessions, options, context.http)


_ROLE = """\
# flyball.policy.hcl: nomad acl policy apply flyball flyball.policy.hcl
#                     nomad acl token create -name=flyball -policy=flyball     (its secret id: option token_file)
namespace "default" {
  capabilities = [
    "list-jobs", "read-job",
    # To change. Leave it out for mode observe; scale-job alone is enough where only the count is to be changed.
    "scale-job", "submit-job",
  ]
}
# In the agents' configuration, for the CPU and memory of allocations:
#   telemetry { prometheus_metrics = true  publish_allocation_metrics = true  publish_node_metrics = true }
"""
