"""Sending a TrafficRequest: the estimate before, the workers, the caps and the error storm while it runs."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from agent.simulate.request import TrafficRequest
from analyzers.grammar import BadQuestion
from analyzers.money import Usage
from analyzers.tuning.judge import SentLoad
from collectors.traffic.account import CountRules
from collectors.traffic.connection import resolve
from collectors.traffic.engine import Assignment
from collectors.traffic.fleet import TrafficRun, WorkerFleet, WorkerHost, chunks_per_s, divided, workers_for
from collectors.traffic.preflight import only_model, tokens_per_word
from collectors.traffic.requests import RequestTemplate
from collectors.traffic.schedule import OpenSchedule, SessionSchedule, UserSchedule
from collectors.traffic.worker import Row

#: What a fast server takes, to guess what users in a closed loop will send: seconds to the first token, and for each.
_FAST_TTFT_S, _FAST_ITL_S = 0.05, 0.01
#: An error storm is judged by so many of the latest requests.
_STORM_REQUESTS = 50
_MOST_AHEAD = 512
#: For one of a server's addresses to take a connection.
_REACH_S = 3.0
#: Slices for the charts, at most about so many; each divides a window of a minute.
_MOST_SLICES = 120
_SLICES_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class TrafficEstimate:
    """What the traffic will come to."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    usd: float | None
    """None: no price is known."""
    workers: int
    most_requests: int | None
    """No more than these are sent. None: no bound is set; in a closed loop the server decides how many there are."""
    each_s: float | None = None
    """Seconds that a request and the thought after it are taken to last, in a closed loop: what ``requests`` rests on."""


@dataclass(frozen=True, slots=True)
class TrafficOutcome:
    """A traffic that was sent."""

    traffic: TrafficRequest
    estimate: TrafficEstimate
    model: str
    rules: CountRules
    run: TrafficRun

    @property
    def measured_s(self) -> float:
        """Seconds between the warm-up and the end of the sending: what rates are counted over."""
        return max(0.0, min(self.rules.sending_s, self.run.elapsed_s) - self.traffic.warmup_s)

    @property
    def load(self) -> SentLoad:
        """As a verdict needs it."""
        traffic = self.traffic
        return SentLoad(self.run.tally, traffic.objective, traffic.closed, self.run.stopped, self.measured_s)


def estimate(traffic: TrafficRequest, nodes: Mapping[str, int] | None = None) -> TrafficEstimate:
    """``nodes``: CPUs by node of the cluster that sends it; None: this machine does. Raises BadQuestion where they are too few."""
    load = traffic.load
    each: float | None = None
    if isinstance(load, UserSchedule):
        each = _FAST_TTFT_S + traffic.mean_output * _FAST_ITL_S + load.think.mean_s
        requests = math.ceil(load.users * max(1.0, traffic.duration_s / each))
        requests = min(requests, load.most) if load.most is not None else requests
    elif isinstance(load, SessionSchedule):
        requests = math.ceil(load.starts.size * load.turns.mean)
    else:
        requests = len(load.workload)
    prompt, output = round(requests * traffic.mean_prompt), round(requests * traffic.mean_output)
    chunks = chunks_per_s(load, traffic.peak_rate or 0.0, traffic.mean_output)
    return TrafficEstimate(
        requests,
        prompt,
        output,
        cost(traffic, traffic.duration_s, prompt, output),
        _workers(traffic.workers, chunks, nodes),
        load.most if isinstance(load, UserSchedule) else requests,
        each,
    )


def _workers(asked: int | None, chunks: float, nodes: Mapping[str, int] | None) -> int:
    """As asked, else as many as it takes; over a cluster, one on each node at least."""
    if nodes is None:
        return asked or workers_for(chunks)
    cores = sum(nodes.values())
    if asked is not None and asked > cores:
        raise BadQuestion(f"--workers {asked}: the cluster has {cores} CPUs, and each worker takes one")
    return asked or max(len(nodes), workers_for(chunks, cores))


def cost(traffic: TrafficRequest, seconds: float, prompt_tokens: float | None, output_tokens: float) -> float | None:
    """US dollars: of reserved capacity for so long, and of tokens where they are paid for. None: no price is known."""
    used = Usage(hours=seconds / 3600, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    return traffic.prices.tariff.cost(used).usd


def check_caps(traffic: TrafficRequest, found: TrafficEstimate) -> None:
    """Raises BadQuestion where an open loop would exceed a cap. A closed one is stopped when it gets there."""
    caps = traffic.caps
    if caps.usd is not None and found.usd is None:
        raise BadQuestion(
            "--max-usd: no price is known; give --usd-per-hour, or --usd-per-1k-input-tokens and --usd-per-1k-output-tokens"
        )
    if caps.rate is not None and (traffic.peak_rate or 0.0) > caps.rate:
        raise BadQuestion(f"--max-rate {caps.rate:g}: this load peaks at {traffic.peak_rate:g} requests a second")
    if traffic.closed:
        return
    over = {
        "--max-requests": (found.requests, caps.requests),
        "--max-tokens": (found.prompt_tokens + found.output_tokens, caps.tokens),
        "--max-usd": (found.usd, caps.usd),
    }
    for name, (value, cap) in over.items():
        if value is not None and cap is not None and value > cap:
            raise BadQuestion(f"{name} {cap:g}: this load comes to {value:,.6g}; send less, or raise the cap")


def slice_s(duration_s: float) -> float:
    """Seconds of one slice."""
    return next((s for s in _SLICES_S if duration_s / s <= _MOST_SLICES), _SLICES_S[-1])


def sent(
    traffic: TrafficRequest,
    found: TrafficEstimate,
    on_progress: Callable[[float, Counter[str]], str | None] = lambda _at, _counts: None,
    on_records: Callable[[list[Row]], None] | None = None,
    host: WorkerHost | None = None,
) -> TrafficOutcome:
    """Ask the server for what must be known, then send it all, from here or from ``host``. ``on_progress`` may say why to stop.

    Raises CollectError where the server does not answer.
    """
    with WorkerFleet(found.workers, host) as fleet:  # they start while the server is asked
        whole = _assignment(traffic, on_records is not None)
        guard = _Guard(traffic, on_progress)
        run = fleet.send(divided(whole, found.workers), guard.see, on_records or (lambda _: None))
    rules = replace(whole.rules, started_at=run.started_at)
    return TrafficOutcome(traffic, found, whole.template.model, rules, run)


def _assignment(traffic: TrafficRequest, records: bool) -> Assignment:
    """The whole traffic, as one worker would send it."""
    target = traffic.target
    server = resolve(target.url, target.ca_file, reach_s=min(traffic.timeout_s, _REACH_S))
    template = RequestTemplate(
        target.model or only_model(server, target.headers, min(traffic.timeout_s, 30.0)),
        target.api,
        exact_output=traffic.exact_output,
        extra=traffic.extra,
        headers=target.headers,
        seed=traffic.seed,
    )
    template = replace(template, words=tokens_per_word(server, template, traffic.timeout_s))
    limits = {t.metric: t.limit for t in traffic.objective.targets if t.quantile is not None}
    return Assignment(
        server,
        template,
        traffic.load,
        CountRules(traffic.warmup_s, traffic.duration_s, limits, slice_s(traffic.duration_s)),
        traffic.timeout_s,
        most_in_flight=traffic.most_in_flight,
        connections=_ahead(traffic),
        records=records,
    )


def _ahead(traffic: TrafficRequest) -> int:
    """Connections to open before the start: one for each user; of an open loop, those of its busiest second."""
    load = traffic.load
    wanted = load.users if isinstance(load, UserSchedule) else math.ceil(traffic.peak_rate or 1.0) + 2
    if isinstance(load, OpenSchedule | SessionSchedule) and traffic.most_in_flight is not None:
        wanted = min(wanted, traffic.most_in_flight)
    return min(wanted, _MOST_AHEAD)


class _Guard:
    """Watches the traffic, and says why it must stop."""

    def __init__(self, traffic: TrafficRequest, on_progress: Callable[[float, Counter[str]], str | None]) -> None:
        self._traffic, self._on_progress = traffic, on_progress
        self._seen: deque[tuple[int, int]] = deque([(0, 0)])

    def see(self, at_s: float, counts: Counter[str]) -> str | None:
        return self._on_progress(at_s, counts) or self._storm(counts) or self._over(at_s, counts)

    def _storm(self, counts: Counter[str]) -> str | None:
        """Too large a share of the latest requests failed."""
        now = (counts["ok"] + counts["errors"], counts["errors"])
        self._seen.append(now)
        while len(self._seen) > 2 and now[0] - self._seen[1][0] >= _STORM_REQUESTS:
            self._seen.popleft()
        ended, errors = now[0] - self._seen[0][0], now[1] - self._seen[0][1]
        storm = ended >= _STORM_REQUESTS and errors > self._traffic.caps.error_rate * ended
        return "error_storm" if storm else None

    def _over(self, at_s: float, counts: Counter[str]) -> str | None:
        caps = self._traffic.caps
        if caps.requests is not None and counts["sent"] >= caps.requests and self._traffic.closed:
            return "cap_requests"
        # What is under way will be used too: a cap that is only then seen is exceeded by as much.
        prompt = counts["prompt_tokens"] + counts["in_flight"] * self._traffic.mean_prompt
        output = counts["output_tokens"] + counts["in_flight"] * self._traffic.mean_output
        if caps.tokens is not None and prompt + output > caps.tokens:
            return "cap_tokens"
        spent = cost(self._traffic, at_s, prompt, output)
        return "cap_usd" if caps.usd is not None and spent is not None and spent > caps.usd else None
