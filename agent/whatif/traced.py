"""A request trace on an engine file: candidates, their replays side by side, and the answer as plain JSON.

Every candidate sees the same requests. The first is replayed alone, which also compiles the engine; the others over the cores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agent.clock import WallClock
from agent.whatif import asked
from agent.whatif.asked import BadQuestion, Value
from agent.whatif.parallel import each
from analyzers.objective import Objective
from analyzers.whatif.distribution import Distribution
from analyzers.whatif.engine import ROUTERS, PerRequest, Replay, Router, replay
from analyzers.whatif.model import EngineModel
from collectors.traces import read_trace
from collectors.workload import Floats, Workload

SCHEMA_VERSION = 1
METRICS = ("ttft_s", "itl_s", "tpot_s", "e2e_s", "queue_s")
#: Where a distribution is read for a chart: every percent, and the last ones more closely.
_CURVE = (*(i / 100 for i in range(1, 100)), 0.995, 0.999)

Curves = dict[str, list[tuple[float, float]]]
"""By metric: (share of the values, seconds that they lie below)."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is replayed."""

    name: str
    """As it was asked for."""
    engine: EngineModel
    replicas: int
    router: Router
    price_per_hour: float | None
    """US dollars, of one replica."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: figures as plain JSON, and distributions to draw."""

    figures: dict[str, Any]
    curves: Curves


@dataclass(frozen=True, slots=True)
class Traffic:
    """What all candidates have in common."""

    workload: Workload
    objective: Objective
    timeout_s: float | None = None
    """Clients give up after so long."""


# -- asking -------------------------------------------------------------------------------------------------------------


def read(path: Path, format_name: str | None, speed: float | None, notes: list[str]) -> Workload:
    """The trace, arriving ``speed`` times as fast. Raises BadTrace, BadQuestion."""
    factor = asked.positive(speed, "--speed") or 1.0
    found = read_trace(path, format_name, notes)
    if factor != 1.0:
        notes.append(f"arrivals {factor:g} times as fast as in the trace")
    return replace(found, arrival_s=found.arrival_s / factor)


def candidates(
    base: EngineModel,
    *,
    replicas: int = 1,
    router: str = "round_robin",
    settings: Mapping[str, Value] | None = None,
    price_per_hour: float | None = None,
    others: Sequence[str] = (),
) -> list[Candidate]:
    """The engine as given (with ``settings``), then each of ``others``: ``replicas=2,max_num_seqs=64``, changes to the first."""
    first = Candidate(
        name=", ".join(
            [f"{replicas} replica{'s' * (replicas != 1)}", *(f"{k}={v}" for k, v in (settings or {}).items())]
        ),
        engine=asked.with_settings(base, settings or {}),
        replicas=asked.whole(replicas, "--replicas"),
        router=router_named(router),
        price_per_hour=asked.positive(price_per_hour, "--price-per-hour", zero=True),
    )
    return [first, *(_changed(first, text) for text in others)]


def _changed(base: Candidate, text: str) -> Candidate:
    changes = asked.pairs(text, "--candidate")
    hardware = [f"{name}={changes[name]}" for name in ("gpu", "gpus", "sku") if name in changes]
    if hardware:  # scaling by the roofline takes a whole calibration; a bare engine file is one shape's
        raise BadQuestion(
            f"--candidate {text}: an engine file alone does not tell how {', '.join(hardware)} would do. Calibrate on that "
            "hardware and give engine=FILE, or ask an endpoint's own telemetry: flyball whatif --endpoint NAME --candidate ..."
        )
    file = changes.pop("engine", None)
    engine = base.engine if file is None else asked.engine(Path(str(file)))
    price = changes.pop("price_per_hour", base.price_per_hour)
    if not isinstance(price, int | float | None) or isinstance(price, bool):
        raise BadQuestion(f"--candidate {text}: price_per_hour={price}: write US dollars per replica-hour")
    return Candidate(
        name=text,
        replicas=asked.whole(changes.pop("replicas", base.replicas), "replicas"),
        router=router_named(str(changes.pop("router", base.router))),
        price_per_hour=asked.positive(price, "price_per_hour", zero=True),
        engine=asked.with_settings(engine, changes),
    )


def router_named(name: str) -> Router:
    """Raises BadQuestion on one that there is not."""
    for known in ROUTERS:
        if name == known:
            return known
    raise BadQuestion(f"router {name}: {asked.nearest(name, ROUTERS)}")


# -- replaying ----------------------------------------------------------------------------------------------------------


def replayed(traffic: Traffic, candidate: Candidate, requests_out: Path | None = None) -> Outcome:
    """One candidate's replay. ``requests_out``: also write each request's own times there."""
    clock, objective = WallClock(), traffic.objective
    times = [clock.monotonic()]
    _replay(replace(traffic, workload=_first(traffic.workload)), candidate)  # compiles the engine, or loads it
    times.append(clock.monotonic())
    got = _replay(traffic, candidate)
    times.append(clock.monotonic())
    if requests_out is not None:
        write_requests(requests_out, traffic.workload, got.per_request)
    figures = {
        "candidate": candidate.name,
        "shape": _shape(candidate),
        **_counts(got),
        **{metric: _summary(got.distribution(metric)) for metric in METRICS},
        **_rates(got, candidate, objective),
        **_judged(got, objective),
        "wall_s": times[2] - times[1],
        "compile_s": times[1] - times[0],
    }
    return Outcome(figures, {m: curve(got.distribution(m)) for m in ("ttft_s", "itl_s")})


def _replay(traffic: Traffic, candidate: Candidate) -> Replay:
    return replay(
        traffic.workload,
        candidate.engine,
        replicas=candidate.replicas,
        router=candidate.router,
        timeout_s=traffic.timeout_s,
    )


def _first(workload: Workload) -> Workload:
    """Its first request alone."""
    one = (workload.arrival_s[:1], workload.prompt_tokens[:1], workload.output_tokens[:1], workload.prefix_tokens[:1])
    return Workload(*one, None if workload.session is None else workload.session[:1])


def all_replayed(
    traffic: Traffic,
    tried: Sequence[Candidate],
    *,
    requests_out: Path | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """All candidates, in order. ``advance`` is called as each is done; ``requests_out`` is the first one's."""
    first = replayed(traffic, tried[0], requests_out)
    advance()
    return [first, *each(partial(replayed, traffic), tried[1:], advance)]


# -- answering ----------------------------------------------------------------------------------------------------------


def answer(
    traffic: Traffic, outcomes: Sequence[Outcome], *, trace: Path, engine: Path, notes: Sequence[str]
) -> dict[str, Any]:
    """The whole as JSON: the first candidate's figures, and all of them under ``candidates``."""
    work = traffic.workload
    return {
        "schema_version": SCHEMA_VERSION,
        **outcomes[0].figures,
        "trace": {"file": str(trace), "requests": len(work), "duration_s": work.duration_s},
        "engine": str(engine),
        "timeout_s": traffic.timeout_s,
        "notes": list(notes),
        "candidates": [outcome.figures for outcome in outcomes],
    }


def _shape(candidate: Candidate) -> dict[str, Any]:
    return {
        "replicas": candidate.replicas,
        "router": candidate.router,
        **{k: v for k, v in candidate.engine.to_dict().items() if k not in ("schema_version", "source")},
    }


def _counts(got: Replay) -> dict[str, Any]:
    return {
        "requests": got.requests,
        "completed": got.completed,
        "rejected": got.rejected,
        "timed_out": got.timed_out,
        "failed": got.failed,
        "preemptions": got.preemptions,
    }


def _rates(got: Replay, candidate: Candidate, objective: Objective) -> dict[str, Any]:
    span = got.simulated_s
    replica_hours = got.replica_s / 3600
    price = candidate.price_per_hour
    return {
        "requests_per_s": _per(got.completed, span),
        "output_tokens_per_s": _per(got.output_tokens, span),
        "goodput_per_s": _goodput(got, objective),
        "running_mean": got.running_mean,
        "waiting_mean": got.waiting_mean,
        "kv_usage_max": got.kv_usage_max,
        "replica_hours": replica_hours,
        "cost_usd": None if price is None else price * replica_hours,
        "cost_per_hour": None if price is None else price * candidate.replicas,
        "simulated_s": span,
        "saturated": got.saturated,
    }


def _per(count: float, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def _summary(d: Distribution) -> dict[str, float | None]:
    return {"mean": d.mean, **{f"p{q}": d.quantile(q / 100) for q in (50, 90, 95, 99)}}


def curve(d: Distribution) -> list[tuple[float, float]]:
    return [(q, value) for q in _CURVE if (value := d.quantile(q)) is not None]


def _judged(got: Replay, objective: Objective) -> dict[str, Any]:
    """Each target with what came, and whether all hold on a shape that carries the traffic. None: nothing to tell by."""
    rows: list[dict[str, Any]] = []
    for target in objective.targets:
        if target.quantile is None:  # error_rate
            value = _per(got.requests - got.completed, got.requests)
        else:
            value = got.distribution(target.metric).quantile(target.quantile)
        met = None if value is None else value <= target.limit
        rows.append({"target": target.name, "limit": target.limit, "value": value, "met": met})
    return {"objective": rows, "meets_objective": meets([row["met"] for row in rows], got.saturated)}


def meets(met: Sequence[bool | None], saturated: bool) -> bool | None:
    """Whether the whole objective is met; a queue that grows without end meets none for long."""
    if not met:
        return None
    if saturated or False in met:
        return False
    return None if None in met else True


def _goodput(got: Replay, objective: Objective) -> float | None:
    """Requests per second that met every latency limit, each by its own times; of two limits on a metric, the wider."""
    limits: dict[str, float] = {}
    for target in objective.targets:
        if target.quantile is not None:
            limits[target.metric] = max(target.limit, limits.get(target.metric, 0.0))
    return got.goodput_per_s(limits) if got.simulated_s > 0 else None


def write_requests(path: Path, workload: Workload, requests: PerRequest) -> None:
    """One row a request, in the workload's order, as CSV. A time that never came is an empty cell. Raises BadQuestion."""
    import pyarrow as pa
    import pyarrow.csv

    def came(values: Floats) -> pa.Array:
        return pa.array(values, mask=values < 0)

    states = ["completed", "rejected", "timed_out", "failed", "unfinished"]
    state = np.select([requests.e2e_s >= 0, requests.rejected, requests.timed_out, requests.failed], [0, 1, 2, 3], 4)
    table = pa.table(
        {
            "arrival_s": workload.arrival_s,
            "prompt_tokens": workload.prompt_tokens,
            "output_tokens": workload.output_tokens,
            "queue_s": came(requests.queue_s),
            "ttft_s": came(requests.ttft_s),
            "tpot_s": came(np.where(workload.output_tokens > 1, requests.tpot_s, -1.0)),
            "e2e_s": came(requests.e2e_s),
            "state": pa.DictionaryArray.from_arrays(state, states).cast(pa.string()),
        }
    )
    try:
        with path.open("wb") as stream:
            stream.write(",".join(table.column_names).encode() + b"\n")
            pyarrow.csv.write_csv(table, stream, pyarrow.csv.WriteOptions(include_header=False, quoting_style="none"))
    except OSError as error:
        raise BadQuestion(f"--requests-out {path}: cannot be written ({error.strerror or error})") from error
