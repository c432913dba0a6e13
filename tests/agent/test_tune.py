"""`flyball tune` on an emulated endpoint: to its end, killed and asked again, interrupted, out of budget, and refused.

The server, the traffic and the command's process are real; the loads are as short as they can be, so that no figure means anything.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
import yaml
from typer.testing import CliRunner

from actuators.emulated.engine import Size
from actuators.emulated.fleet import EmulatedFleet, EmulatedSpec
from actuators.shape import Shape
from agent.apply import lease_of
from agent.cli import app, output
from agent.store import Store, audit, changes, control, fleet, schema, tunes
from tests.actuators.support import call, free_port
from tests.agent.daemons import ROOT, flyball
from tests.agent.records import change_row, shape_row
from tests.world.world import NAME, World
from tests.world.world import run as simulate

FIRST = Shape(replicas=1, size="emu-small", engine={"max_num_seqs": 8})
SPEC = EmulatedSpec(
    "chat",
    "demo-8b",
    FIRST,
    {"emu-small": Size(680.0, 104.0, 40_000), "emu-large": Size(1360.0, 208.0, 120_000)},
    {"base_s": 0.004},
    cold_start_s=0.3,
    noise=0.0,
)
SIZES = {
    "emu-small": {"usd_per_replica_hour": 1.0, "accelerator": "L4", "accelerator_count": 1, "bandwidth_gb_s": 680.0, "tflops_bf16": 104.0},
    "emu-large": {"usd_per_replica_hour": 90.0, "accelerator": "A100", "accelerator_count": 1, "bandwidth_gb_s": 1360.0, "tflops_bf16": 208.0},
}  # fmt: skip
QUICK = ("--step-seconds", "1", "--max-steps", "2", "--precision", "0.5", "--output-tokens", "fixed:8", "-y")
SEQS = ("--candidate", "max_num_seqs=4")
_LIMIT_S = 60.0


class Place:
    """One endpoint's settings and database beside a server of its own."""

    def __init__(self, folder: Path, url: str, **endpoint: Any) -> None:
        self.url, self.config = url, folder / "flyball.yaml"
        own = {
            "name": "chat", "url": url, "model": "demo-8b", "role": "reference", "mode": "approve",
            "shape": FIRST.as_dict(), "sources": {"vllm": {}},
            "objective": {"ttft_p50_s": 4.0}, "actuator": {"system": "emulated"}, **endpoint,
        }  # fmt: skip
        data = {
            "database": f"sqlite:///{folder}/f.db",
            "state_dir": str(folder / "state"),
            "sizes": SIZES,
            "endpoints": [own],
        }
        self.config.write_text(yaml.safe_dump(data), encoding="utf-8")
        self.store = Store(f"sqlite:///{folder}/f.db")
        self.store.upgrade()

    def words(self, *words: str | Path) -> list[str]:
        return ["tune", "-c", str(self.config), "--endpoint", "chat", *map(str, words)]

    def run(self, *words: str | Path) -> tuple[int, str, str]:
        """To its end in a process of its own: exit code, stdout, stderr."""
        ended = flyball(*self.words(*words))
        return ended.returncode, ended.stdout, ended.stderr

    def here(self, *words: str | Path) -> tuple[int, str, str]:
        """The same within this process, where nobody kills it."""
        found = CliRunner().invoke(app, self.words(*words))
        return found.exit_code, found.stdout, " ".join(found.stderr.split())

    @contextmanager
    def running(self, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
        line = [sys.executable, "-m", "agent", *self.words(*words)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        process = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def shape(self) -> dict[str, Any]:
        shape: dict[str, Any] = json.loads(call("GET", f"{self.url}/emulated/shape").body)["shape"]
        return shape

    def tune(self) -> dict[str, Any]:
        with self.store.read() as db:
            (row,) = tunes.latest(db)
        return row

    def trials(self) -> list[dict[str, Any]]:
        with self.store.read() as db:
            return [t for row in tunes.latest(db, limit=1) for t in tunes.trials(db, row["id"])]

    def until(self, true: Callable[[], bool], process: subprocess.Popen[str], what: str) -> None:
        end = time.monotonic() + _LIMIT_S
        while not true():
            assert process.poll() is None, (what, process.communicate())
            assert time.monotonic() < end, what
            time.sleep(0.05)

    def steps(self) -> list[dict[str, Any]]:
        return [step for trial in self.trials() for step in trial["body"].get("steps", [])]


@contextmanager
def place(folder: Path, spec: EmulatedSpec = SPEC, **endpoint: Any) -> Iterator[Place]:
    with EmulatedFleet(folder) as servers:
        made = Place(folder, servers.start(spec), **endpoint)
        yield made
        made.store.close()


def sending(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The workers of the load under way."""
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not alive


def as_was(shape: Mapping[str, Any]) -> bool:
    return (shape["replicas"], shape["size"], shape["engine"]) == (1, "emu-small", {"max_num_seqs": 8})


# -- killed, interrupted, out of budget ---------------------------------------------------------------------------------


def later(at: Place) -> None:
    """The lease of one who was killed runs out, as it does by itself in time."""
    with at.store.write() as db:
        db.execute(sa.update(schema.leases).values(expires_at=1.0))


def test_killed_in_the_middle_of_a_trial_it_goes_on_with_what_was_measured(tmp_path: Path) -> None:
    with place(tmp_path) as at:
        with at.running(*SEQS, *QUICK) as process:
            at.until(lambda: len(at.steps()) == 2, process, "two loads were kept")
            at.until(lambda: bool(sending(process)), process, "the next one is sent")
            workers = sending(process)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert gone(workers), "none outlives the one who sent it"
        before, identity = at.steps(), at.tune()["id"]
        assert at.tune()["state"] == "running"
        assert not as_was(at.shape()), "it was up in the trial's shape"
        code, _, err = at.here("--candidate", "max_num_seqs=5", *QUICK)
        assert code == 1, "another question must wait"
        assert f"tune {identity} of another question" in err
        later(at)
        code, out, err = at.run(*SEQS, *QUICK, "--budget-time", "50m", "-o", "json")  # a budget may be raised
        assert code == 0, err
        assert f"going on with tune {identity}" in err
        found = json.loads(out)
        assert (found["tune"], found["complete"]) == (identity, True)
        (trial,) = found["trials"]
        assert trial["steps"][: len(before)] == before
        assert [s["kind"] for s in trial["steps"]].count("single") == 1, "what is known is not measured again"
        assert len(trial["steps"]) > len(before)
        assert as_was(at.shape())
        with at.store.read() as db:
            assert [e["action"] for e in audit.entries(db, "chat")].count("tune") == 1


def test_one_that_stood_still_leaves_everything_to_whoever_went_on(tmp_path: Path) -> None:
    with place(tmp_path) as at, at.running(*SEQS, *QUICK) as stopped:
        at.until(lambda: bool(sending(stopped)) and bool(at.steps()), stopped, "a load is sent")
        stopped.send_signal(signal.SIGSTOP)
        later(at)
        before = len(at.steps())
        with at.running(*SEQS, *QUICK, "-o", "json") as other:
            at.until(lambda: len(at.steps()) > before, other, "the other one has gone on")
            stopped.send_signal(signal.SIGCONT)
            _, err = stopped.communicate(timeout=_LIMIT_S)
            said = " ".join(err.split())
            assert stopped.returncode == 1, err
            assert "this process stood still, and somebody else has gone on with tune" in said
            assert "leads the endpoint back" not in said
            out, err = other.communicate(timeout=_LIMIT_S)
        assert other.returncode == 0, err
        (trial,) = json.loads(out)["trials"]
        assert at.steps() == trial["steps"], "nobody else wrote there"
        assert as_was(at.shape())
        with at.store.read() as db:
            assert [e["action"] for e in audit.entries(db, "chat")].count("deploy") == 2, "there and back, once"


def test_interrupted_it_gives_what_there_is_and_abandoned_it_is_forgotten(tmp_path: Path) -> None:
    with place(tmp_path) as at:
        with at.running(*SEQS, *QUICK, "-o", "json") as process:
            at.until(lambda: bool(at.steps()), process, "a load was kept")
            at.until(lambda: bool(sending(process)), process, "the next one is sent")
            workers = sending(process)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)  # of one who cannot wait
            out, err = process.communicate(timeout=30)
        assert process.returncode == 130, err
        assert "Traceback" not in err
        found = json.loads(out)
        assert (found["ended"], found["complete"], found["recommended"]) == ("interrupted", False, None)
        assert [s["kind"] for s in found["trials"][0]["steps"]] == ["single"]
        assert as_was(at.shape()), "the endpoint is back, also for one who asked twice"
        with at.store.read() as db:
            said = [e["action"] for e in audit.entries(db, "chat")]
        assert said.count("deployed") == said.count("deploy") == 2, "it was waited for until it served"
        assert gone(workers)
        assert at.tune()["state"] == "running", "it goes on when it is asked again"
        code, _, err = at.here("--abandon")
        assert (code, at.tune()["state"]) == (0, "abandoned"), err
        assert f"Tune {at.tune()['id']} is abandoned" in err
        code, _, err = at.here("--abandon")
        assert (code, "no tune is under way" in err) == (0, True)


def test_interrupted_while_it_waits_for_somebody_else(tmp_path: Path) -> None:
    with place(tmp_path) as at:
        with at.store.write() as db:
            assert control.acquire(db, lease_of("chat"), "somebody else", 60.0) is not None
        with at.running(*SEQS, *QUICK) as process:
            at.until(lambda: bool(at.trials()), process, "it has begun")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (130, ""), err
        assert "interrupted; the same command goes on from here" in err
        assert "Traceback" not in err
        assert at.tune()["state"] == "running"
        assert as_was(at.shape())


@pytest.mark.parametrize(
    ("budget", "spent"),
    [
        (("--budget-time", "900ms"), "the budget of 0.015 minutes is spent"),
        (("--budget-usd", "0.0003"), "the budget of $0.0003 is spent"),  # a second costs $0.00028
    ],
)
def test_out_of_budget_it_ends_and_says_what_was_not_tried(tmp_path: Path, budget: tuple[str, str], spent: str) -> None:
    with place(tmp_path) as at:
        code, out, _ = at.here(*SEQS, "--candidate", "max_num_seqs=5", *QUICK, *budget)
        assert code == 3, "nothing was found"
        assert f"1: skipped: {spent}" in out
        assert f"2: skipped: {spent}" in out
        assert f"Ended early: {spent}" in out
        assert as_was(at.shape())
        assert at.tune()["state"] == "done"
        assert [t["state"] for t in at.trials()] == ["skipped", "skipped"]
        first, second = at.trials()
        assert first["busy_s"] > 0, "it was spent in the middle of this one"
        assert not second["busy_s"]


def test_a_server_that_dies_under_a_load_fails_that_trial(tmp_path: Path) -> None:
    """Nothing comes back: the endpoint cannot be led back, and that is said; when it is there again it can."""
    spec = replace(SPEC, port=free_port())
    with EmulatedFleet(tmp_path) as servers:
        at = Place(tmp_path, servers.start(spec))
        with at.running(*SEQS, "--candidate", "max_num_seqs=5", *QUICK) as process:
            at.until(lambda: bool(sending(process)), process, "the first load is sent")
            time.sleep(2.0)
            os.kill(servers.pid("chat"), signal.SIGKILL)
            _, err = process.communicate(timeout=_LIMIT_S)
        servers.stop("chat")
        assert process.returncode == 1
        said = " ".join(err.split())
        assert "failed: it died under this load" in said
        assert "chat is not back in its old shape" in said
        assert "Try again with `flyball tune --abandon`" in said
        assert "Traceback" not in said
        assert [t["state"] for t in at.trials()] == ["failed", "failed"]
        servers.start(spec)
        code, _, err = at.here("--abandon")
        assert code == 0, err
        assert as_was(at.shape())
        at.store.close()


# -- the daemon --------------------------------------------------------------------------------------------------------


def begin(db: sa.Connection, now: float, identity: str = "aaaa0001", endpoint: str = NAME) -> bool:
    row = {
        "id": identity, "endpoint": endpoint, "question": {}, "digest": "d", "original": None, "started_by": "cli:ann",
        "started_at": now,
    }  # fmt: skip
    return tunes.start(db, row, [{"number": 0, "name": "a", "shape": FIRST.as_dict()}])


def test_no_change_begins_while_a_tune_is_under_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, replicas=2, rate=3.0, loops=("lead", "collect", "act")) as world:
            await world.run(60)
            with world.store.write() as db:
                assert begin(db, world.clock.now())
            identity = await world.ask_and_approve(replicas=3)
            await world.run(300)
            assert world.changes() == []
            assert world.recommendation(identity)["state"] == "approved", "it waits"
            with world.store.write() as db:
                tunes.end(db, "aaaa0001", state="done", now=world.clock.now(), by="cli:ann")
            assert await world.until_true(lambda: len(world.changes()) == 1, 60)

    simulate(scenario)


def test_nothing_is_advised_while_a_tune_is_under_way(tmp_path: Path) -> None:
    """Four replicas for the traffic of one: as soon as the tune has ended it says so."""

    async def scenario() -> None:
        async with World(tmp_path, replicas=4, rate=1.0) as world:
            await world.run(60)
            with world.store.write() as db:
                assert begin(db, world.clock.now())
            await world.until_true(lambda: bool(world.recommendations()), 600)
            assert world.recommendations() == []
            with world.store.write() as db:
                tunes.end(db, "aaaa0001", state="done", now=world.clock.now(), by="cli:ann")
            assert await world.until_true(lambda: bool(world.recommendations()), 120), "it was due"

    simulate(scenario)


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmulatedFleet(tmp_path_factory.mktemp("served")) as servers:
        yield servers.start(SPEC)


@pytest.fixture
def refuse(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """What the command says, in one line, when it refuses; and that it touched nothing."""
    monkeypatch.setattr(output.stdout, "width", 400)
    monkeypatch.setattr(output.console, "width", 400)
    kept: list[Place] = []

    def refused(*words: str | Path, code: int, before: Callable[[sa.Connection], Any] | None = None, **own: Any) -> str:
        at = Place(tmp_path, url, **own)
        kept.append(at)
        if before is not None:
            with at.store.write() as db:
                before(db)
        found = CliRunner().invoke(app, at.words(*words))
        assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
        assert found.stdout.strip() == ""
        with at.store.read() as db:
            assert tunes.latest(db) == []
        assert as_was(at.shape())
        return found.stderr.strip()

    yield refused
    for at in kept:
        at.store.close()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "give shapes to try: --candidate"),
        (("--candidate", "max_num_seqs"), "no NAME=VALUE"),
        (("--candidate", "size=emu-larg"), "did you mean emu-large?"),
        (("--candidate", "replicas=0"), "replicas=0"),
        (("--space", "/no/such/space.yaml"), "cannot be read"),
        ((*SEQS, "--objective", "speed=1"), "speed"),
        ((*SEQS, "--objective", "ttft_p95"), "NAME=DURATION"),
        ((*SEQS, "--rate", "-1"), "--rate -1: give a number above 0"),
        ((*SEQS, "--rate", "nan"), "--rate nan"),
        ((*SEQS, "--think", "-1"), "is no duration"),
        ((*SEQS, "--budget-usd", "0"), "--budget-usd 0"),
        ((*SEQS, "--budget-time", "inf"), "is no duration"),
        ((*SEQS, "--step-seconds", "0"), "--step-seconds 0"),
        ((*SEQS, "--precision", "0"), "--precision 0"),
        ((*SEQS, "--prompt-tokens", "zipf:2"), "expected 100"),
        ((*SEQS, "--prefix-tokens", "-4"), "--prefix-tokens -4"),
        ((*SEQS, "--api", "grpc"), "known are chat and completions"),
    ],
)
def test_wrong_options_are_told_in_one_line(refuse: Callable[..., str], words: tuple[str, ...], says: str) -> None:
    said = refuse(*words, "-y", code=2)
    assert says in said
    assert len(said.splitlines()) == 1


def test_one_that_is_not_there(refuse: Callable[..., str]) -> None:
    assert "did you mean chat?" in refuse("--endpoint", "chats", *SEQS, code=2)


def test_users_are_not_met_with_every_shape(refuse: Callable[..., str]) -> None:
    assert "--allow-production" in refuse(*SEQS, "-y", code=2, role="production")


def test_without_an_objective_no_rate_is_too_high(refuse: Callable[..., str]) -> None:
    assert "chat has no objective" in refuse(*SEQS, "-y", code=2, objective={})


def test_a_system_that_cannot_deploy(refuse: Callable[..., str]) -> None:
    said = refuse(*SEQS, "-y", code=1, actuator={"system": "none"})
    assert "its system (none) cannot deploy shapes" in said


def test_a_server_that_is_not_there(refuse: Callable[..., str]) -> None:
    nowhere = {"system": "emulated", "options": {"admin_url": f"http://127.0.0.1:{free_port()}"}}
    said = refuse(*SEQS, "-y", code=1, actuator=nowhere)
    assert "chat: " in said
    assert len(said.splitlines()) == 1


def test_who_says_no_has_begun_nothing(refuse: Callable[..., str]) -> None:
    assert "1 shapes on chat: about" in refuse(*SEQS, code=1)  # nobody answers: there is no input


def frozen(db: sa.Connection) -> None:
    fleet.saw_shape(db, "chat", shape_row())
    fleet.freeze(db, "chat", reason="it flaps", now=1.0, by="flyball")


@pytest.mark.parametrize(
    ("before", "says"),
    [
        (lambda db: control.pause(db, now=1.0, by="cli:ann", reason="x"), "`flyball resume` first"),
        (frozen, "`flyball unfreeze chat` first"),
        (lambda db: changes.start(db, change_row("cccc0001")), "a change is under way"),
    ],
    ids=["paused", "frozen", "changing"],
)
def test_it_does_not_begin_where_nothing_may_be_changed(
    refuse: Callable[..., str], before: Callable[[sa.Connection], Any], says: str
) -> None:
    assert says in refuse(*SEQS, "-y", code=1, before=before)


# -- the whole of it ---------------------------------------------------------------------------------------------------


def test_a_whole_tune(tmp_path: Path) -> None:
    """Two shapes are measured, and the third need not be: at its price it cannot win. Meanwhile nobody else may."""
    page = tmp_path / "t.html"
    wanted = (*SEQS, "--candidate", "max_num_seqs=16", "--candidate", "size=emu-large", *QUICK)
    with place(tmp_path) as at:
        with at.running(*wanted, "--html", page, "-o", "json") as process:
            at.until(lambda: bool(at.steps()), process, "a load was kept")
            with at.running(*wanted) as second:
                deploy = CliRunner().invoke(app, ["deploy", "chat", "--yes", "-c", str(at.config)])
                other = at.here("--candidate", "replicas=2", *QUICK)
                out, err = process.communicate(timeout=_LIMIT_S)
                _, refused = second.communicate(timeout=_LIMIT_S)
        assert process.returncode == 0, err
        found = json.loads(out)
        _is_whole(found)
        assert as_was(at.shape()), "the endpoint is back"
        _is_stored(at, found)
    assert "3 shapes on chat: about" in err, "the estimate comes first"
    assert "not tried: size=emu-large" in err
    assert (deploy.exit_code, other[0], second.returncode) == (1, 1, 1)
    assert f"tune {found['tune']} is under way" in " ".join(deploy.stderr.split())
    assert "of another question is not at its end" in other[2]
    # It waits for a while, in case that the first one was killed.
    assert "somebody else tunes or deploys it" in refused or f"tune {found['tune']} has just ended" in refused
    text = page.read_text()
    assert text.count("<svg") == 2
    addresses = {a for a in re.findall(r"https?://[^\"'\s<)]+", text) if "www.w3.org" not in a}
    assert addresses == set()
    assert "<script" not in text
    assert found["recommended"]["label"] in text


def _is_whole(found: Mapping[str, Any]) -> None:
    assert found["schema_version"] == 1
    assert (found["endpoint"], found["ended"], found["complete"]) == ("chat", "done", True)
    assert found["objective"] == [{"target": "ttft_p50_s", "limit": 4.0}]
    assert [t["state"] for t in found["trials"]] == ["done", "done", "pruned"]
    assert [t["number"] for t in found["trials"]] == [1, 2, 3]
    first, second, pruned = found["trials"]
    assert first["promised_per_s"] is None, "nothing is known before the first"
    assert second["promised_per_s"] > 0
    assert "dearer per token than shape" in pruned["why"]
    assert (pruned["steps"], pruned["carries_per_s"], pruned["busy_s"]) == ([], None, 0)
    assert [s["kind"] for s in first["steps"]][:2] == ["single", "most"]
    assert {s["kind"] for s in first["steps"][2:]} == {s["kind"] for s in second["steps"][1:]} == {"rate"}
    for trial in (first, second):
        for step in trial["steps"]:
            assert step["figures"]["completed"] > 0
            assert step["server"]["requests"] >= step["figures"]["completed"], "both sides were watched"
            assert step["targets"][0]["observed"] == step["figures"]["ttft_s"]["p50"]
        assert 0 < trial["spent_usd"] == pytest.approx(trial["busy_s"] / 3600)
        assert set(trial["serves"]) == {"10", "100"}
    measured = [t for t in (first, second) if t["carries_per_s"]]
    best = min(measured, key=lambda t: t["cost_per_1k_output_tokens_usd"])
    assert found["recommended"]["name"] == best["name"]
    assert found["recommended"]["why"] == "the least dollars per token at its limit"
    assert found["spent"]["minutes"] == pytest.approx((first["busy_s"] + second["busy_s"]) / 60)
    if second["carries_per_s"]:
        error = second["promised_per_s"] / second["carries_per_s"] - 1
        assert found["predictions"]["errors"] == [pytest.approx(error)]


def _is_stored(at: Place, found: Mapping[str, Any]) -> None:
    row, trials = at.tune(), at.trials()
    assert (row["id"], row["state"], row["result"]) == (found["tune"], "done", found)
    assert Shape.from_dict(row["original"]) == FIRST
    for kept, told in zip(trials, found["trials"], strict=True):
        assert (kept["state"], kept["why"], kept["name"]) == (told["state"], told["why"], told["name"])
        assert kept["body"].get("steps", []) == told["steps"]
        assert (kept["limit_low"], kept["limit_high"]) == (told["carries_per_s"], told["below_per_s"])
        assert kept["cost_per_1k_output_tokens_usd"] == told["cost_per_1k_output_tokens_usd"]
    with at.store.read() as db:
        said = [e["action"] for e in audit.entries(db, "chat")][::-1]
        assert audit.verify(db) is None
        assert tunes.running(db, "chat") is None
        held = db.execute(sa.select(schema.leases.c.expires_at)).scalars().all()
    assert (said[0], said[-1], said.count("tune_done")) == ("tune", "tune_done", 1)
    assert said.count("deployed") == said.count("deploy") == 3, "two shapes, and the way back"
    assert set(held) == {0.0}, "no lease is left"
