"""Jobs on machines, on instances of their own, as a batch: what they cost and when they are done, against sums made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from analyzers.advise.jobs import JobEstimate, JobSet, ranked
from analyzers.advise.offers import offer_of
from collectors.jobs import BatchJob

HOUR = 3600.0
#: A data set: eight files at once, an hour each.
FILES = [BatchJob(f"f{i}", 1000.0, 1060.0, 1060.0 + HOUR, False, 1_000_000, 100_000) for i in range(8)]
BOX = {"option": "dedicated", "kind": "machine", "usd_per_replica_hour": 2.0}
FUNCTION = {
    "option": "serverless", "kind": "serverless", "concurrency": 1, "cold_start_s": 60, "most": 4, "idle_s": 0,
    "speed": {"ttft_s": 1, "tpot_s": 0}, "usd_per_billed_hour": 3.0,
}  # fmt: skip
NIGHT = {
    "option": "batch", "kind": "tokens", "usd_per_1k_input_tokens": 0.001, "usd_per_1k_output_tokens": 0.004, "deadline_s": 86400,
}  # fmt: skip


def estimates(
    jobs: list[BatchJob], deadline_s: float | None = None, **offers: dict[str, Any]
) -> dict[str, JobEstimate]:
    found = ranked([offer_of(name, data) for name, data in offers.items()], JobSet.of(jobs), deadline_s)
    return {estimate.name: estimate for estimate in found}


def test_one_machine_works_them_off_one_after_the_other() -> None:
    box = estimates(FILES, box=BOX)["box"]
    assert (box.units, box.whole_s, box.meets) == (1, 8 * HOUR, None)
    assert (box.usd, box.usd_per_job) == (16.0, 2.0)
    assert "$1,460 a month where it is kept" in box.notes


@pytest.mark.parametrize(("deadline_h", "units"), [(8, 1), (4, 2), (3, 3), (2, 4), (1, 8)])
def test_as_few_machines_as_hold_the_deadline(deadline_h: int, units: int) -> None:
    box = estimates(FILES, deadline_h * HOUR, box=BOX)["box"]
    assert (box.units, box.meets) == (units, True)


def test_more_than_there_are_is_not_in_time() -> None:
    box = estimates(FILES, HOUR, box={**BOX, "max_units": 5})["box"]
    assert (box.units, box.meets) == (5, False)


def test_a_faster_machine_is_known_by_what_it_carries() -> None:
    box = estimates(FILES, box={**BOX, "carries_per_s": 4 / HOUR})["box"]
    assert box.whole_s == pytest.approx(2 * HOUR)


def test_instances_are_paid_while_they_are_there() -> None:
    function = estimates(FILES, 3 * HOUR, function=FUNCTION)["function"]
    assert function.units == 4
    assert function.whole_s == pytest.approx(2 * HOUR + 60.0), "four at once, twice; an instance takes the next at once"
    assert function.usd == pytest.approx(3.0 * (8 + 4 * 60 / HOUR))
    assert function.meets is True


def test_a_batch_is_paid_by_the_token_and_done_by_its_own_deadline() -> None:
    night = estimates(FILES, 12 * HOUR, night=NIGHT)["night"]
    assert night.usd == pytest.approx(8 * (1.0 + 0.4))
    assert (night.meets, night.done_p95_s) == (False, 86400.0)
    assert estimates(FILES, 24 * HOUR, night=NIGHT)["night"].meets is True
    untold = estimates([*FILES, BatchJob("x", 1.0, 2.0, 3.0)], night=NIGHT)["night"]
    assert (untold.usd, untold.usd_per_job) == (None, None)
    assert untold.lacking


def test_who_holds_the_deadline_stands_first_and_then_the_cheapest() -> None:
    dear = {**BOX, "usd_per_replica_hour": 9.0}
    unpriced = {"option": "dedicated", "kind": "machine"}
    assert list(estimates(FILES, 4 * HOUR, night=NIGHT, dear=dear, box=BOX, unpriced=unpriced)) == [
        "box", "dear", "unpriced", "night",
    ]  # fmt: skip


def test_what_failed_or_runs_still_is_counted_and_not_measured() -> None:
    more = [BatchJob("a", 1.0, 2.0, 3.0, True), BatchJob("b", 1.0, 2.0, None), BatchJob("c", 1.0, None, None)]
    jobs = JobSet.of([*FILES, *more])
    assert (len(jobs), jobs.failed, jobs.unfinished) == (8, 1, 2)
    assert jobs.hours == 8.0
    with pytest.raises(ValueError, match="no job of these has ended well"):
        JobSet.of(more)
