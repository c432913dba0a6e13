"""What one endpoint says of itself at one moment, for `flyball check --live`: a few facts, and where the settings state something else.

Owns no I/O but one read of the server's list of models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from agent.watch import WatchedEndpoint
from collectors.base import ScrapeTarget
from collectors.http import Http
from collectors.text import clean
from collectors.window import CollectError, Reading, Span

#: Engine arguments that a server tells, and by what fact.
_TOLD: Mapping[str, str] = {
    "block_size": "block_size",
    "enable_prefix_caching": "prefix_caching",
    "gpu_memory_utilization": "gpu_memory_utilization",
    "kv_tokens": "kv_tokens",
    "max_model_len": "max_model_len",
    "num_gpu_blocks_override": "num_gpu_blocks",
    "data_parallel_size": "engines",
}
_MAX_MODELS = 1 << 20
#: Of a limit that is stated, so little is in use while requests wait and no more of the KV cache than this: it may be another.
_SLOTS_USED, _CACHE_FREE = 0.9, 0.9


@dataclass(frozen=True, slots=True)
class Contradiction:
    """One setting that the endpoint refutes."""

    field: tuple[str, ...]
    """Within the endpoint's entry: ``("shape", "engine", "block_size")``."""
    stated: str
    told: str

    def __str__(self) -> str:
        return f"{'.'.join(self.field)} is {self.stated}, and the server says {self.told}"


@dataclass(frozen=True, slots=True)
class ListedModel:
    """An entry of the server's ``/v1/models``."""

    name: str
    max_model_len: int | None


@dataclass(frozen=True, slots=True)
class EndpointSnapshot:
    """What was seen of one endpoint. None or empty: not told."""

    endpoint: str
    url: str
    sources: tuple[str, ...] = ()
    """Those that answered."""
    models: tuple[str, ...] = ()
    version: str | None = None
    engines: int | None = None
    """Over all targets that were read."""
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    max_model_len: int | None = None
    kv_tokens: str | None = None
    """Of one engine."""
    block_size: str | None = None
    accelerator: str | None = None
    """As the endpoint's system tells, never as the settings do."""
    contradictions: tuple[Contradiction, ...] = field(default=())
    doubts: tuple[str, ...] = field(default=())
    """What one moment makes doubtful of the settings, and cannot refute: questions."""

    def lines(self) -> list[str]:
        """For people, about five."""
        if not self.sources and not self.models:
            return [f"{self.endpoint}: {self.url}", "  told nothing"]
        lines = [f"{self.endpoint}: {self.url}, read by {', '.join(self.sources) or 'no source'}"]
        engines = f"{self.engines} engine{'s' if self.engines != 1 else ''}" if self.engines else None
        serves = f"serves {', '.join(self.models[:4])}" if self.models else "tells no model"
        lines.append("  " + ", ".join(x for x in (serves, self.version and f"version {self.version}", engines) if x))
        now = [
            None if self.running is None else f"{self.running:g} running",
            None if self.waiting is None else f"{self.waiting:g} waiting",
            None if self.kv_usage is None else f"KV cache {self.kv_usage:.0%} used",
        ]
        lines.append("  now: " + (", ".join(x for x in now if x) or "tells no load"))
        limits = [
            self.max_model_len and f"max_model_len {self.max_model_len:,}",
            self.kv_tokens and f"KV cache {_grouped(self.kv_tokens)} tokens{' an engine' if self.engines != 1 else ''}",
            self.block_size and f"blocks of {self.block_size}",
            self.accelerator and f"on {self.accelerator}",
        ]
        if any(limits):
            lines.append("  limits: " + ", ".join(x for x in limits if x))
        lines += [f"  contradicts the settings: {each}" for each in self.contradictions]
        return lines + [f"  doubtful: {each}" for each in self.doubts]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; None where it was not told."""
        return asdict(self) | {"contradictions": [str(each) for each in self.contradictions]}


async def listed_models(http: Http, target: ScrapeTarget, timeout_s: float) -> tuple[ListedModel, ...]:
    """What ``/v1/models`` lists; nothing of a server that has no such list."""
    try:
        answer = await http.get(
            target.url + "/v1/models", headers=target.headers, timeout_s=timeout_s, max_bytes=_MAX_MODELS
        )
        entries = json.loads(answer.body)["data"]
        return tuple(_listed(entry) for entry in entries if isinstance(entry, dict) and isinstance(entry["id"], str))
    except (CollectError, ValueError, KeyError, TypeError, RecursionError):
        return ()


def _listed(entry: Mapping[str, Any]) -> ListedModel:
    longest = entry.get("max_model_len")
    return ListedModel(clean(entry["id"]), longest if type(longest) is int and longest > 0 else None)


def snapshot_of(
    watched: WatchedEndpoint, read: Mapping[str, Sequence[Reading | Span]], models: Sequence[ListedModel]
) -> EndpointSnapshot:
    """read: what each source that answered told, of all its targets."""
    settings = watched.settings
    said = [one for several in read.values() for one in several]
    pages = [one for one in said if isinstance(one, Reading) and "running" in one.gauges]
    served = [m for m in models if settings.model in (None, m.name)]
    max_model_len = served[0].max_model_len if served else None
    told = dict.fromkeys(one.facts["model"] for one in said if one.facts.get("model"))
    system, live = settings.actuator.system, watched.live
    snapshot = EndpointSnapshot(
        endpoint=settings.name,
        url=settings.url,
        sources=tuple(read),
        models=tuple(told) or tuple(m.name for m in models),
        version=_fact(said, "engine_version"),
        engines=len({one.target for one in pages}) or None,
        running=_now(read, "running"),
        waiting=_now(read, "waiting"),
        kv_usage=_most(read, "kv_usage"),
        max_model_len=max_model_len,
        kv_tokens=_fact(said, "kv_tokens"),
        block_size=_fact(said, "block_size"),
        accelerator=live.shape.accelerator if live is not None and system != "none" else None,
    )
    known = {fact: {one.facts[fact] for one in said if one.facts.get(fact)} for fact in _TOLD.values()}
    known["max_model_len"] = set() if max_model_len is None else {str(max_model_len)}
    targets = len({one.target.partition("#")[0] for one in pages})
    known["engines"] = {f"{len(pages) / targets:g}"} if targets else set()
    names = {*told, *(m.name for m in models)}
    return _with_contradictions(snapshot, watched, known, names, len(pages))


def _with_contradictions(
    snapshot: EndpointSnapshot, watched: WatchedEndpoint, known: Mapping[str, set[str]], names: set[str], engines: int
) -> EndpointSnapshot:
    settings = watched.settings
    stated = settings.shape.shape().engine
    found = []
    if settings.model is not None and names and settings.model not in names:
        found.append(Contradiction(("model",), settings.model, ", ".join(sorted(names)[:8])))
    for argument, fact in _TOLD.items():
        others = sorted(text for text in known[fact] if argument in stated and not _same(stated[argument], text))
        if others:
            found.append(Contradiction(("shape", "engine", argument), str(stated[argument]), ", ".join(others[:8])))
    slots = stated.get("max_num_seqs")
    if isinstance(slots, int) and engines and snapshot.running is not None and snapshot.running > slots * engines:
        told = f"that {snapshot.running:g} run at once on {engines} engine{'s' if engines != 1 else ''}"
        found.append(Contradiction(("shape", "engine", "max_num_seqs"), str(slots), told))
    doubts = _doubts(snapshot, slots * engines, slots) if isinstance(slots, int) and engines else ()
    values = {name: getattr(snapshot, name) for name in EndpointSnapshot.__slots__}
    return EndpointSnapshot(**values | {"contradictions": tuple(found), "doubts": doubts})


def _doubts(snapshot: EndpointSnapshot, room: int, slots: int) -> tuple[str, ...]:
    """Requests wait, and neither the batch, as stated, nor the cache is full. For a moment that can be; if it stays, the limit is another."""
    running, waiting = snapshot.running, snapshot.waiting
    if running is None or not waiting or running >= _SLOTS_USED * room or (snapshot.kv_usage or 0.0) >= _CACHE_FREE:
        return ()
    text = f"{waiting:g} wait while no more than {running:g} run: is shape.engine.max_num_seqs really {slots}? See whether it stays so"
    return (text,)


def _same(stated: object, told: str) -> bool:
    """As text, as a number, or as yes and no."""
    text = str(stated).lower()
    try:
        return abs(float(text) - float(told)) <= 1e-6 * abs(float(told))
    except ValueError:
        return text == told.lower()


def _fact(said: Sequence[Reading | Span], name: str) -> str | None:
    """One text where all agree, else each one's."""
    texts = sorted({one.facts[name] for one in said if one.facts.get(name)})
    return ", ".join(texts[:4]) or None


def _values(read: Mapping[str, Sequence[Reading | Span]], gauge: str) -> list[float]:
    """By target, from the first source that tells it."""
    for said in read.values():
        values = {
            one.target: one.gauges[gauge] if isinstance(one, Reading) else one.gauges[gauge].last
            for one in said
            if gauge in one.gauges
        }
        if values:
            return list(values.values())
    return []


def _now(read: Mapping[str, Sequence[Reading | Span]], gauge: str) -> float | None:
    values = _values(read, gauge)
    return sum(values) if values else None


def _most(read: Mapping[str, Sequence[Reading | Span]], gauge: str) -> float | None:
    return max(_values(read, gauge), default=None)


def _grouped(text: str) -> str:
    return f"{int(text):,}" if text.isdigit() else text
