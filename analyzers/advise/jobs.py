"""Jobs on what can be had: machines that work them off, instances that start for each, a batch by the token. Costs, and when they are done.

Each job takes as long as it took, wherever it runs, unless an offer says how many a machine carries; what no offer says stays unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyzers.advise.offers import DeploymentOffer
from analyzers.advise.options import DeploymentOption
from analyzers.kinds.serverless.function import ServerlessFunction
from analyzers.kinds.serverless.platform import Serverless, run
from analyzers.kinds.service import ServiceReplay
from analyzers.money import HOURS_PER_MONTH, Usage
from collectors.jobs import BatchJob
from collectors.workload import Floats, Workload

_MOST_UNITS = 256


@dataclass(frozen=True, slots=True)
class JobSet:
    """(n,) jobs that succeeded, in the order in which they were wanted."""

    arrival_s: Floats
    """From the first one."""
    wait_s: Floats
    run_s: Floats
    prompt_tokens: float | None
    """Of all of them. None: not known of each."""
    output_tokens: float | None
    failed: int
    unfinished: int

    @classmethod
    def of(cls, jobs: Sequence[BatchJob]) -> JobSet:
        """Raises ValueError where none has ended."""
        done = [j for j in jobs if not j.failed and j.started_at is not None and j.ended_at is not None]
        done.sort(key=lambda j: j.created_at)
        if not done:
            raise ValueError("no job of these has ended well: nothing is known of how long one takes")
        created, started, ended = (
            np.array([getattr(j, name) for j in done], np.float64) for name in ("created_at", "started_at", "ended_at")
        )
        failed = sum(j.failed for j in jobs)
        return cls(
            arrival_s=created - created[0],
            wait_s=started - created,
            run_s=ended - started,
            prompt_tokens=_sum([j.prompt_tokens for j in done]),
            output_tokens=_sum([j.output_tokens for j in done]),
            failed=failed,
            unfinished=len(jobs) - len(done) - failed,
        )

    def __len__(self) -> int:
        return int(self.arrival_s.shape[0])

    @property
    def done_s(self) -> Floats:
        """(n,) seconds from wanted to ended, as it was."""
        return self.wait_s + self.run_s

    @property
    def hours(self) -> float:
        """Of running, summed over all."""
        return float(self.run_s.sum()) / 3600.0


@dataclass(frozen=True, slots=True)
class JobEstimate:
    """What all jobs would cost on one offer, and when they would be done. None: not known."""

    name: str
    option: DeploymentOption
    units: int | None
    """Machines; at most so many instances."""
    usd: float | None
    lacking: tuple[str, ...]
    usd_per_job: float | None
    done_p95_s: float | None
    """From wanted to ended, of the slowest in twenty."""
    whole_s: float | None
    """From the first one wanted to the last one ended."""
    meets: bool | None
    """Whether every job is done by the deadline. None: not known, or there is none."""
    notes: tuple[str, ...] = ()


def _sum(counts: Sequence[int | None]) -> float | None:
    """None where one of them is not known."""
    known = [n for n in counts if n is not None]
    return float(sum(known)) if len(known) == len(counts) else None


def ranked(offers: Sequence[DeploymentOffer], jobs: JobSet, deadline_s: float | None) -> list[JobEstimate]:
    """Those that hold the deadline first, those of which it is not known next; of equals the cheapest."""
    found = [_estimate(offer, jobs, deadline_s) for offer in offers]
    order = {True: 0, None: 1, False: 2}
    return sorted(found, key=lambda e: (order[e.meets], e.usd is None, e.usd or 0.0, e.name))


def _estimate(offer: DeploymentOffer, jobs: JobSet, deadline_s: float | None) -> JobEstimate:
    if offer.by_token:
        return _by_token(offer, jobs, deadline_s)
    if isinstance(offer.system, ServerlessFunction):
        return _serverless(offer, offer.system, jobs, deadline_s)
    if offer.on_machines:
        return _machines(offer, jobs, deadline_s)
    return JobEstimate(offer.name, offer.option, None, None, (), None, None, None, None, ("nothing that jobs run on",))


def _machines(offer: DeploymentOffer, jobs: JobSet, deadline_s: float | None) -> JobEstimate:
    """As few as hold the deadline, up for these jobs and then deleted."""
    carries, price = offer.terms.carries_per_s, offer.by_name.get("usd_per_replica_hour")
    speed = 1.0 if carries is None else 1.0 / (carries * float(jobs.run_s.mean()))
    work, most = jobs.run_s * speed, offer.most or _MOST_UNITS
    units = offer.least
    got = _replayed(jobs, Serverless(1, 0.0, units, units), work)
    while deadline_s is not None and units < most and float(got.each.e2e_s.max()) > deadline_s:
        units = min(most, max(units + 1, units * 5 // 4))
        got = _replayed(jobs, Serverless(1, 0.0, units, units), work)
    while deadline_s is not None and units > offer.least:  # one fewer, as the steps above grow
        fewer = _replayed(jobs, Serverless(1, 0.0, units - 1, units - 1), work)
        if float(fewer.each.e2e_s.max()) > deadline_s:
            break
        units, got = units - 1, fewer
    hours = _whole_s(jobs, got.each.e2e_s) / 3600.0
    usd = None if price is None else units * price * hours
    notes = ["a job takes as long as it took" if carries is None else f"one carries {carries:g} jobs/s"]
    if price is not None:
        notes.append(f"${units * price * HOURS_PER_MONTH:,.0f} a month where it is kept")
    return _told(
        offer,
        jobs,
        got.each.e2e_s,
        deadline_s,
        units,
        usd,
        () if price is not None else ("usd_per_replica_hour",),
        notes,
    )


def _serverless(
    offer: DeploymentOffer, system: ServerlessFunction, jobs: JobSet, deadline_s: float | None
) -> JobEstimate:
    got = _replayed(jobs, system, jobs.run_s)
    price = system.usd_per_billed_hour
    usd = None if price is None else got.used[f"{system.billed}_s"] / 3600.0 * price
    notes = [f"{got.gauges['cold_starts']:,.0f} cold starts of {system.cold_start_s:g} s"]
    lacking = () if price is not None else ("usd_per_billed_hour",)
    return _told(offer, jobs, got.each.e2e_s, deadline_s, int(got.gauges["instances_max"]), usd, lacking, notes)


def _by_token(offer: DeploymentOffer, jobs: JobSet, deadline_s: float | None) -> JobEstimate:
    used = Usage(
        requests=float(len(jobs)),
        prompt_tokens=jobs.prompt_tokens,
        output_tokens=jobs.output_tokens,
        cached_prompt_tokens=0.0,
    )
    cost = offer.tariff.cost(used)
    own = offer.terms.deadline_s
    meets = None if own is None or deadline_s is None else own <= deadline_s
    note = "when it answers is not known" if own is None else f"answers within {own / 3600:g} h"
    each = None if cost.usd is None else cost.usd / len(jobs)
    return JobEstimate(offer.name, offer.option, None, cost.usd, cost.lacking, each, own, None, meets, (note,))


def _replayed(jobs: JobSet, platform: Serverless, work: Floats) -> ServiceReplay:
    ones = np.ones(len(jobs), np.int64)
    workload = Workload(jobs.arrival_s, ones, ones, np.zeros(len(jobs), np.int64))
    return run(workload, platform, np.full(len(jobs), -1.0), work, packed=True)


def _whole_s(jobs: JobSet, done_s: Floats) -> float:
    return float((jobs.arrival_s + done_s).max())


def _told(
    offer: DeploymentOffer,
    jobs: JobSet,
    done_s: Floats,
    deadline_s: float | None,
    units: int,
    usd: float | None,
    lacking: tuple[str, ...],
    notes: Sequence[str],
) -> JobEstimate:
    return JobEstimate(
        name=offer.name,
        option=offer.option,
        units=units,
        usd=usd,
        lacking=lacking,
        usd_per_job=None if usd is None else usd / len(jobs),
        done_p95_s=float(np.quantile(done_s, 0.95)),
        whole_s=_whole_s(jobs, done_s),
        meets=None if deadline_s is None else bool(done_s.max() <= deadline_s),
        notes=tuple(notes),
    )
