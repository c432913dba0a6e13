"""Jobs as CSV, there and back; and as OSCAR and Nomad tell them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from collectors.discovery import DiscoveryContext
from collectors.http import Http
from collectors.jobs import BadJobFile, BatchJob, JobPlatform, as_csv, read_jobs
from collectors.nomad.discover import NomadSystem
from collectors.oscar.discover import OscarSystem
from collectors.sessions import Sessions
from collectors.window import CollectError
from tests.collectors.clocks import SetClock
from tests.collectors.servers import TRUST
from tests.fakes.nomad import FakeNomad, NomadCluster, service_job
from tests.fakes.oscar import PASSWORD, FakeOscar, definition

JOBS = [
    BatchJob("a", 1000.0, 1010.5, 1100.0, False, 5, 6),
    BatchJob("b, the second", 1001.0, 1020.0, 1030.0, True),
    BatchJob("c", 1002.0, None, None),
]


def test_there_and_back(tmp_path: Path) -> None:
    file = tmp_path / "jobs.csv"
    file.write_text(as_csv(reversed(JOBS)))
    assert read_jobs(file) == JOBS
    file.write_text("created,started,ended\n1000,1010.5,1100\n1970-01-01T00:16:41Z,,\n")
    assert [(j.created_at, j.ended_at) for j in read_jobs(file)] == [(1000.0, 1100.0), (1001.0, None)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("created,ended\n1,2\n", "no column started"),
        ("created,started,ended\n1,2,soon\n", "line 2"),
        ("created,started,ended\n1,5,2\n", "follow each other"),
        ("created,started,ended\n,1,2\n", "created is empty"),
        ("created,started,ended,output_tokens\n1,2,3,-4\n", "0 or more"),
    ],
)
def test_what_cannot_be_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "jobs.csv"
    file.write_text(text)
    with pytest.raises(BadJobFile, match=said):
        read_jobs(file)


def asked(system: Any, platform: Any, of: str, key: str, **options: Any) -> list[BatchJob]:
    async def main(url: str) -> list[BatchJob]:
        http = Http(tls=TRUST)
        try:
            assert isinstance(system, JobPlatform)
            return await system.jobs(DiscoveryContext(http.call, SetClock(), Sessions(), {key: url, **options}), of)
        finally:
            await http.aclose()

    with platform as url:
        found = asyncio.run(main(url))
    assert platform.writes == []
    return found


def test_oscars_jobs() -> None:
    oscar = FakeOscar()
    oscar.add(definition("plants"))
    oscar.job("plants", "a", 1000, 1010, 1100)
    oscar.job("plants", "b", 1001, 1020, 1030, failed=True)
    oscar.job("plants", "c", 1002)
    assert asked(OscarSystem(), oscar, "plants", "cluster", password=PASSWORD) == [
        BatchJob("a", 1000.0, 1010.0, 1100.0),
        BatchJob("b", 1001.0, 1020.0, 1030.0, True),
        BatchJob("c", 1002.0, None, None),
    ]


def test_nomads_batch_jobs_and_those_dispatched_from_one() -> None:
    now = [5000.0]
    cluster = NomadCluster(lambda: now[0], start_s=30.0)
    for name in ("nightly/dispatch-1", "nightly/dispatch-2", "other"):
        cluster.register({**service_job(name), "Type": "batch"})
    (first,), (second,) = (cluster.jobs[f"nightly/dispatch-{i}"].allocations for i in (1, 2))
    first.status, first.ended = "complete", 5100.0
    second.status, second.ended = "failed", 5060.0
    nanosecond = pytest.approx(0.123456789, abs=1e-5)
    one, two = asked(NomadSystem(), FakeNomad(cluster), "nightly", "address")
    assert (one.created_at, one.failed, two.failed) == (5000.0, False, True)
    assert one.started_at is not None
    assert one.ended_at is not None
    assert (one.started_at - 5030.0, one.ended_at - 5100.0) == (nanosecond, nanosecond)
    with pytest.raises(CollectError, match="no job 'gone'"):
        asked(NomadSystem(), FakeNomad(NomadCluster(time.time)), "gone", "address")
