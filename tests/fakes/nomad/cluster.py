"""The servers' state: jobs with their versions, allocations on one node with so much room, and deployments that take their time."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]
#: What a server makes of a service job's group without an update block.
UPDATE = {"MaxParallel": 1, "MinHealthyTime": 10_000_000_000, "AutoRevert": False, "Canary": 0}
#: Versions of a job that are kept.
KEPT = 6
#: What says nothing of what is to run.
_STATUS = ("Version", "CreateIndex", "ModifyIndex", "JobModifyIndex", "Status", "Stable", "SubmitTime")


class Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


def service_job(name: str = "chat", count: int = 1, group: str = "web", **resources: Any) -> Body:
    """A service job as a client registers it."""
    return {
        "ID": name,
        "Name": name,
        "Type": "service",
        "Datacenters": ["dc1"],
        "TaskGroups": [
            {
                "Name": group,
                "Count": count,
                "Networks": [{"DynamicPorts": [{"Label": "api", "To": 8000}]}],
                "Tasks": [
                    {
                        "Name": "server",
                        "Driver": "docker",
                        "Config": {"image": "vllm/vllm-openai:v0.11.0"},
                        "Resources": {"CPU": 500, "MemoryMB": 1024, **resources},
                    }
                ],
            }
        ],
    }


@dataclass
class Allocation:
    id: str
    name: str
    group: str
    version: int
    task: Body
    due: float
    """When it runs, or began to be watched by the newest deployment: it is healthy some time later."""
    port: int
    status: str = "pending"
    desired: str = "run"
    ended: float | None = None
    """Of a batch job: when its task ended."""


@dataclass
class Job:
    body: Body
    versions: list[Body] = field(default_factory=list)
    allocations: list[Allocation] = field(default_factory=list)
    deployment: Body | None = None
    events: dict[str, list[Body]] = field(default_factory=dict)


class NomadCluster:
    """``start_s``: until an allocation runs; ``healthy_s``: from there until it counts as healthy."""

    def __init__(
        self,
        now: Callable[[], float],
        *,
        start_s: float = 0.05,
        healthy_s: float = 0.05,
        mhz: int = 8000,
        mib: int = 32_000,
        gpus: int = 4,
    ) -> None:
        self.now = now
        self.start_s, self.healthy_s = start_s, healthy_s
        self.room = {"cpu": mhz, "memory": mib, "devices": gpus}
        self.index = 8
        self.jobs: dict[str, Job] = {}
        self.evaluations: dict[str, Body] = {}
        self.fails = ""
        """Why new versions' allocations never become healthy."""
        self._number = 0

    # -- what clients ask ----------------------------------------------------------------------------------------------

    def register(self, sent: Body, enforce: int | None = None) -> Body:
        job = self.jobs.get(sent["ID"])
        if enforce is not None:
            there = None if job is None else job.body["JobModifyIndex"]
            if there is None:
                raise Refused(500, f"Enforcing job modify index {enforce}: job does not exist")
            if there != enforce:
                text = f"Enforcing job modify index {enforce}: job exists with conflicting job modify index: {there}"
                raise Refused(500, text)
        body = _canonical(sent)
        _check(body)
        return self._taken(body)

    def scale(self, name: str, sent: Body) -> Body:
        job = self._job(name, f'job "{name}" not found')
        group = next((g for g in job.body["TaskGroups"] if g["Name"] == sent["Target"]["Group"]), None)
        if group is None:
            raise Refused(400, f'task group "{sent["Target"]["Group"]}" specified for scaling does not exist in job')
        count, previous = sent["Count"], group["Count"]
        if not isinstance(count, int) or count < 0:
            raise Refused(400, "scaling action count can't be negative")
        scaling = group.get("Scaling")
        if scaling is not None and count > scaling["Max"]:
            raise Refused(400, f"group count was greater than scaling policy maximum: {count} > {scaling['Max']}")
        if scaling is not None and count < scaling["Min"]:
            raise Refused(400, f"group count was less than scaling policy minimum: {count} < {scaling['Min']}")
        events = job.events.setdefault(group["Name"], [])
        if job.deployment is not None and job.deployment["Status"] == "running":
            blocked = "job scaling blocked due to active deployment"
            self.index += 1
            meta = {"OriginalCount": count, "OriginalMessage": sent.get("Message"), "OriginalMeta": sent.get("Meta")}
            events.insert(0, self._event(None, True, None, blocked, meta, previous))
            raise Refused(400, blocked)
        body = copy.deepcopy(job.body)
        next(g for g in body["TaskGroups"] if g["Name"] == group["Name"])["Count"] = count
        answer = self._taken(body)
        events.insert(0, self._event(count, False, answer["EvalID"], sent.get("Message"), sent.get("Meta"), previous))
        return {**answer, "KnownLeader": True}

    def plan(self, sent: Body) -> Body:
        body = _canonical(sent)
        _check(body)
        job = self.jobs.get(body["ID"])
        updates: Body = {}
        for group in body["TaskGroups"]:
            there = [a for a in (job.allocations if job else ()) if a.group == group["Name"] and a.desired == "run"]
            kept = min(len(there), group["Count"])
            destroys = sum(a.task != group["Tasks"] for a in there[:kept])
            same = job is not None and _spec(job.body) == _spec(body)
            updates[group["Name"]] = {
                "Canary": 0,
                "DestructiveUpdate": destroys,
                "Ignore": kept - destroys if same else 0,
                "InPlaceUpdate": 0 if same else kept - destroys,
                "Migrate": 0,
                "Place": max(0, group["Count"] - len(there)),
                "Preemptions": 0,
                "Stop": max(0, len(there) - group["Count"]),
            }
        lacking = self._lacking(body)
        return {
            "Annotations": {"DesiredTGUpdates": updates, "PreemptedAllocs": None},
            "CreatedEvals": None,
            "FailedTGAllocs": lacking or None,
            "JobModifyIndex": 0 if job is None else job.body["JobModifyIndex"],
            "Warnings": "",
        }

    def revert(self, name: str, sent: Body) -> Body:
        job = self._job(name, f'job "{name}" not found', 500)
        now, prior = job.body["Version"], sent.get("EnforcePriorVersion")
        if sent["JobVersion"] == now:
            raise Refused(500, "can't revert to current version")
        wanted = next((v for v in job.versions if v["Version"] == sent["JobVersion"]), None)
        if wanted is None:
            raise Refused(500, f'job "{name}" in namespace "default" at version {sent["JobVersion"]} not found')
        if prior is not None and prior != now:
            raise Refused(500, f"Current job has version {now}; enforcing version {prior}")
        return self._taken(copy.deepcopy(wanted))

    def scale_status(self, name: str) -> Body:
        job = self._job(name, "job not found")
        groups = {}
        for group in job.body["TaskGroups"]:
            of = [a for a in job.allocations if a.group == group["Name"] and a.desired == "run"]
            healthy = sum(self._healthy(a) for a in of) if job.deployment is not None else 0
            groups[group["Name"]] = {
                "Desired": group["Count"],
                "Placed": len(of),
                "Running": sum(a.status == "running" for a in of),
                "Healthy": healthy,
                "Unhealthy": 0,
                "Events": job.events.get(group["Name"]) or None,
            }
        return {
            "JobID": name,
            "Namespace": "default",
            "JobCreateIndex": job.body["CreateIndex"],
            "JobModifyIndex": job.body["ModifyIndex"],
            "JobStopped": False,
            "TaskGroups": groups,
        }

    def summary(self, name: str) -> Body:
        job = self._job(name, "job not found")
        groups = {}
        for group in job.body["TaskGroups"]:
            of = [a for a in job.allocations if a.group == group["Name"]]
            groups[group["Name"]] = {
                "Running": sum(a.status == "running" for a in of),
                "Starting": sum(a.status == "pending" for a in of),
                "Complete": sum(a.status == "complete" for a in of),
                "Queued": max(0, group["Count"] - sum(a.desired == "run" for a in of)),
                "Failed": 0,
                "Lost": 0,
                "Unknown": 0,
            }
        return {"JobID": name, "Namespace": "default", "Summary": groups, "Children": {}}

    # -- time ------------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """What came to pass until now."""
        now = self.now()
        for job in self.jobs.values():
            for allocation in job.allocations:
                if allocation.status == "pending" and now >= allocation.due:
                    allocation.status = "running"
                    self.index += 1
                    job.body["ModifyIndex"] = self.index
            self._roll(job)

    def _roll(self, job: Job) -> None:
        """One batch after the other, each when the one before is healthy."""
        while True:
            self._place(job)
            of = [a for a in job.allocations if a.desired == "run"]
            if job.deployment is None or job.deployment["Status"] != "running":
                return
            if self.fails and any(a.version == job.body["Version"] and a.status == "running" for a in of):
                self._failed(job)
                return
            if any(not self._healthy(a) for a in of):
                return
            old = [a for a in of if self._outdated(job, a)]
            if not old:
                if all(len([a for a in of if a.group == g["Name"]]) == g["Count"] for g in job.body["TaskGroups"]):
                    job.deployment |= {"Status": "successful", "StatusDescription": "Deployment completed successfully"}
                return
            for allocation in old[: _group(job.body, old[0].group)["Update"]["MaxParallel"]]:
                allocation.desired, allocation.status = "stop", "complete"

    def _failed(self, job: Job) -> None:
        assert job.deployment is not None
        text = "Failed due to unhealthy allocations"
        reverts = job.body["TaskGroups"][0]["Update"].get("AutoRevert") and len(job.versions) > 1
        job.deployment |= {"Status": "failed", "StatusDescription": text + (" - rolling back" if reverts else "")}
        self.fails = ""
        if reverts:
            self._taken(copy.deepcopy(job.versions[1]))

    def _healthy(self, allocation: Allocation) -> bool:
        return allocation.status == "running" and self.now() >= allocation.due + self.healthy_s

    # -- inside ----------------------------------------------------------------------------------------------------------

    def _job(self, name: str, text: str, status: int = 404) -> Job:
        if name not in self.jobs:
            raise Refused(status, text)
        return self.jobs[name]

    def _taken(self, body: Body) -> Body:
        self.index += 1
        known = self.jobs.get(body["ID"])
        if known is None:
            body |= {"Version": 0, "CreateIndex": self.index}
            known = self.jobs[body["ID"]] = Job(body)
        elif _spec(known.body) == _spec(body):
            return self._evaluated(known, self.index)
        else:
            body |= {"Version": known.body["Version"] + 1, "CreateIndex": known.body["CreateIndex"]}
        body |= {"JobModifyIndex": self.index, "ModifyIndex": self.index, "Status": "running"}
        body["SubmitTime"] = int(self.now() * 1e9)
        known.body = body
        known.versions = [copy.deepcopy(body), *known.versions][:KEPT]
        if any(g["Update"]["MaxParallel"] for g in body["TaskGroups"]):
            if known.deployment is not None and known.deployment["Status"] == "running":
                known.deployment |= {
                    "Status": "cancelled",
                    "StatusDescription": "Cancelled due to newer version of job",
                }
            known.deployment = {
                "ID": str(uuid.uuid4()), "JobID": body["ID"], "JobVersion": body["Version"], "Status": "running",
                "StatusDescription": "Deployment is running",
            }  # fmt: skip
        at = self.index
        for allocation in known.allocations:  # what stays as it is is updated in place
            if allocation.desired == "run" and allocation.task == _group(body, allocation.group)["Tasks"]:
                allocation.version = body["Version"]
                allocation.due = max(allocation.due, self.now())
        answer = self._evaluated(known, at)
        self._roll(known)
        if known.deployment is None:  # without an update block everything is replaced at once
            for allocation in known.allocations:
                if allocation.desired == "run" and self._outdated(known, allocation):
                    allocation.desired, allocation.status = "stop", "complete"
            self._place(known)
        return answer

    def _outdated(self, job: Job, allocation: Allocation) -> bool:
        return bool(allocation.task != _group(job.body, allocation.group)["Tasks"])

    def _evaluated(self, job: Job, at: int) -> Body:
        name = str(uuid.uuid4())
        lacking = self._lacking(job.body)
        self.evaluations[name] = {
            "ID": name,
            "JobID": job.body["ID"],
            "Status": "complete",
            "FailedTGAllocs": lacking or None,
            "BlockedEval": str(uuid.uuid4()) if lacking else "",
        }
        return {
            "EvalCreateIndex": at,
            "EvalID": name,
            "Index": at,
            "JobModifyIndex": job.body["JobModifyIndex"],
            "KnownLeader": False,
            "LastContact": 0,
            "Warnings": "",
        }

    def _place(self, job: Job) -> None:
        for group in job.body["TaskGroups"]:
            of = [a for a in job.allocations if a.group == group["Name"] and a.desired == "run"]
            for allocation in of[group["Count"] :]:
                allocation.desired, allocation.status = "stop", "complete"
            for _ in range(group["Count"] - len(of)):
                if any(n > self._free()[d] for d, n in _needs(group["Tasks"]).items()):
                    break
                self._number += 1
                name = f"{job.body['ID']}.{group['Name']}[{self._number}]"
                made = Allocation(
                    str(uuid.uuid4()), name, group["Name"], job.body["Version"], copy.deepcopy(group["Tasks"]),
                    self.now() + self.start_s, 20_000 + self._number,
                )  # fmt: skip
                job.allocations.append(made)

    def _free(self) -> dict[str, int]:
        free = dict(self.room)
        for job in self.jobs.values():
            for allocation in job.allocations:
                if allocation.desired == "run":
                    for dimension, number in _needs(allocation.task).items():
                        free[dimension] -= number
        return free

    def _lacking(self, body: Body) -> Body:
        """By group: what one node has too little of for what would be placed."""
        free, found = self._free(), Body()
        job = self.jobs.get(body["ID"])
        for group in body["TaskGroups"]:
            of = [a for a in (job.allocations if job else ()) if a.group == group["Name"] and a.desired == "run"]
            stays = [a for a in of if a.task == group["Tasks"]]
            for allocation in of:
                if allocation not in stays:
                    free = {d: free[d] + n for d, n in _needs(allocation.task).items()}
            needs = {d: n * (group["Count"] - len(stays)) for d, n in _needs(group["Tasks"]).items()}
            short = {d: 1 for d, n in needs.items() if n > max(0, free[d])}
            if short:
                found[group["Name"]] = {"NodesEvaluated": 1, "DimensionExhausted": short, "ConstraintFiltered": None}
        return found

    def _event(
        self, count: int | None, error: bool, evaluation: str | None, message: Any, meta: Any, previous: int
    ) -> Body:
        return {
            "Count": count,
            "CreateIndex": self.index,
            "Error": error,
            "EvalID": evaluation,
            "Message": message,
            "Meta": meta,
            "PreviousCount": previous,
            "Time": int(self.now() * 1e9),
        }


def _group(body: Body, name: str) -> Body:
    found: Body = next(g for g in body["TaskGroups"] if g["Name"] == name)
    return found


def _needs(tasks: list[Body]) -> dict[str, int]:
    resources = [t["Resources"] for t in tasks]
    devices = sum(d["Count"] for r in resources for d in r.get("Devices") or ())
    return {
        "cpu": sum(r["CPU"] for r in resources),
        "memory": sum(r["MemoryMB"] for r in resources),
        "devices": devices,
    }


def _spec(body: Body) -> Body:
    return {k: v for k, v in body.items() if k not in _STATUS}


def _canonical(sent: Body) -> Body:
    """With the defaults that a server writes into a job."""
    body = copy.deepcopy(sent)
    body.setdefault("Namespace", "default")
    body.setdefault("Stop", False)
    for group in body["TaskGroups"]:
        group["Update"] = {**UPDATE, **(group.get("Update") or {})}
        for task in group["Tasks"]:
            task["Resources"] = {"CPU": 100, "MemoryMB": 300, "Devices": None, **(task.get("Resources") or {})}
    return body


def _check(body: Body) -> None:
    """What a server's validation refuses."""
    for group in body["TaskGroups"]:
        scaling = group.get("Scaling")
        if not isinstance(group["Count"], int) or group["Count"] < 0:
            raise Refused(500, "1 error occurred:\n\t* Task group count can't be negative")
        if scaling is not None and scaling["Max"] < scaling["Min"]:
            raise Refused(
                500, "1 error occurred:\n\t* Scaling policy invalid: maximum count must not be less than minimum count"
            )
        if scaling is not None and not scaling["Min"] <= group["Count"] <= scaling["Max"]:
            word = (
                "greater than scaling policy maximum"
                if group["Count"] > scaling["Max"]
                else "less than scaling policy minimum"
            )
            raise Refused(500, f"1 error occurred:\n\t* group count was {word}")
        for task in group["Tasks"]:
            if task["Resources"]["CPU"] < 1 or task["Resources"]["MemoryMB"] < 10:
                raise Refused(500, "1 error occurred:\n\t* minimum CPU value is 1; minimum MemoryMB value is 10")
