"""What a job's specification says of the part that serves: its group, its task, its resources, its port, its engine. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Body = Mapping[str, Any]
#: Whose metrics page it is, by a word in the task's image, command or arguments; the more telling first.
_ENGINES = (
    ("vllm", "vllm"), ("sglang", "sglang"), ("text-generation-inference", "tgi"), ("text-embeddings-inference", "tei"),
    ("tritonserver", "triton"), ("llama-server", "llamacpp"), ("llama.cpp", "llamacpp"),
)  # fmt: skip
#: Labels that ports of a model's interface have.
_PORTS = ("metrics", "api", "http", "https")


class UnknownPart(ValueError):
    """The job has no such group or task, or several and none is named."""


def group_of(job: Body, name: str | None) -> Body:
    """The group that serves: the named one, or the only one. Raises UnknownPart."""
    return _one([g for g in job.get("TaskGroups") or () if isinstance(g, dict)], name, f"job {job.get('ID')}", "group")


def task_of(group: Body, name: str | None) -> Body:
    """The task that serves: the named one, or the only one beside those that come before or after it. Raises UnknownPart."""
    tasks = [t for t in group.get("Tasks") or () if isinstance(t, dict)]
    main = [t for t in tasks if not t.get("Lifecycle")]
    return _one(tasks if name is not None else main, name, f"group {group.get('Name')}", "task")


def _one(parts: Sequence[Body], name: str | None, of: str, what: str) -> Body:
    found = [p for p in parts if name is None or p.get("Name") == name]
    if len(found) == 1:
        return found[0]
    there = ", ".join(str(p.get("Name")) for p in parts) or "none"
    raise UnknownPart(f"{of}: say which {what} serves; there are: {there}")


def port_of(group: Body, task: Body, ports: Mapping[str, str], label: str | None) -> str | None:
    """The address to read: of the named port, or of the service's, or of a usual label, or of the only one. None: it has no port."""
    if label is not None:
        return ports.get(label)
    services = [*(group.get("Services") or ()), *(task.get("Services") or ())]
    for wanted in (*_PORTS[:1], *(str(s.get("PortLabel")) for s in services), *_PORTS[1:]):
        if wanted in ports:
            return ports[wanted]
    return next(iter(ports.values()), None)


def engine_source(task: Body) -> str | None:
    """Which source reads the engine's own page. None: it is not known by its name."""
    said = json.dumps([task.get("Config"), task.get("Env")])
    return next((source for word, source in _ENGINES if word in said), None)
