"""Processes that outlive whoever started them: every instant at which Flyball can die, and what the next one finds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actuators.base import ActuatorError
from actuators.vllm_local import processes as module
from actuators.vllm_local.processes import KEPT_LOGS, Processes, ProcessRecord

SLEEP = [sys.executable, "-S", "-c", "print('up', flush=True); import time; time.sleep(600)"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    end(Processes(tmp_path))


def end(processes: Processes) -> None:
    for process in processes.scan():
        processes.kill(process.name)
    while processes.scan():
        time.sleep(0.01)
    for record in processes.records().values():
        processes.alive(record)


def start(
    folder: Path, name: str = "g1-0", token: str = "t", digest: str = "d", command: list[str] = SLEEP
) -> ProcessRecord:
    return Processes(folder).start(name, command, digest=digest, port=1, token=token, env={})


def test_a_start_is_done_once_for_each_token(folder: Path) -> None:
    first = start(folder)
    assert start(folder) == first
    adopted = start(folder, token="another")
    assert (adopted.pid, adopted.token) == (first.pid, "another")
    with pytest.raises(ActuatorError, match="NAME_TAKEN"):
        start(folder, token="third", digest="other")
    assert [p.pid for p in Processes(folder).scan()] == [first.pid]


@pytest.mark.parametrize("instant", range(6))
def test_killed_at_any_instant_of_a_start_the_next_one_has_exactly_one_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, instant: int
) -> None:
    """The instants: before and after each durable write, and right before and after the spawn."""
    left = [instant]

    def dying(function: object) -> object:
        def call(*args: object, **kwargs: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            result = function(*args, **kwargs)  # type: ignore[operator]
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return result

        return call

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", dying(module.write_json))
        patch.setattr(os, "posix_spawn", dying(os.posix_spawn))
        with pytest.raises(Killed):
            start(folder)
    found = Processes(folder)
    assert len(found.scan()) <= 1
    assert set(found.running()) <= set(found.records())  # what runs is recorded: adoptable, no orphan
    record = start(folder)
    assert [p.pid for p in Processes(folder).scan()] == [record.pid]
    assert Processes(folder).alive(record)
    assert start(folder) == record


def test_a_really_killed_flyball_leaves_a_process_that_the_next_one_adopts(folder: Path) -> None:
    text = f"""
import os, signal, sys
from pathlib import Path
from actuators.vllm_local import processes
real = os.posix_spawn
def spawn(*args, **kwargs):
    real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
os.posix_spawn = spawn
processes.Processes(Path({str(folder)!r})).start("g1-0", {SLEEP!r}, digest="d", port=1, token="t", env={{}})
"""
    died = subprocess.run([sys.executable, "-c", text], check=False)
    assert died.returncode == -signal.SIGKILL
    while not Processes(folder).scan():  # it may not have replaced its image yet
        time.sleep(0.01)
    assert Processes(folder).records()["g1-0"].pid is None
    running = Processes(folder).scan()[0]
    record = start(folder)
    assert (record.pid, record.started_ticks) == (running.pid, running.started_ticks)


def test_one_that_died_is_not_started_again_by_the_same_step_but_by_the_next(folder: Path) -> None:
    record = start(folder, command=[sys.executable, "-S", "-c", "raise SystemExit('no room')"])
    while Processes(folder).alive(record):
        time.sleep(0.01)
    assert start(folder) == record
    assert "no room" in Processes(folder).log_tail("g1-0")
    again = start(folder, token="next")
    assert Processes(folder).alive(again)
    assert again.log != record.log
    assert Path(record.log).exists()


def test_a_wrapper_that_becomes_another_program_lives_all_the_while(folder: Path) -> None:
    """While it does, nobody can read its environment."""
    again = 'i=$1; [ "$i" -gt 0 ] && exec /bin/sh -c "$0" "$0" $((i - 1)); echo up; exec sleep 600'
    record = start(folder, command=["/bin/sh", "-c", again, again, "400"])
    processes, looks = Processes(folder), 0
    while "up" not in processes.log_tail("g1-0"):
        assert processes.alive(record)
        looks += 1
    assert looks > 50, "it was looked at while it became another one"
    assert processes.alive(record)


def test_another_process_with_the_same_pid_is_not_ours(folder: Path) -> None:
    record = start(folder)
    processes = Processes(folder)
    stranger = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    try:
        path = folder / "processes" / "g1-0.json"
        path.write_text(path.read_text().replace(f'"pid": {record.pid}', f'"pid": {stranger.pid}'))
        assert not processes.alive(processes.records()["g1-0"])
        processes.terminate("g1-0", "stop", 0.0)
        processes.kill("g1-0")
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n")
    assert stranger.returncode == 0


def test_orphans_without_a_record_are_found_and_stopped_with_their_children(folder: Path) -> None:
    child = f"import subprocess, sys; subprocess.Popen({SLEEP!r}); import time; time.sleep(600)"
    start(folder, command=[sys.executable, "-S", "-c", child])
    (folder / "processes" / "g1-0.json").unlink()
    processes = Processes(folder)
    while len(processes.scan()) < 2:
        time.sleep(0.01)
    assert [p.leader for p in processes.scan()] == [True, False]
    processes.terminate("g1-0", "stop", 12.0)
    assert processes.records()["g1-0"].stopped_at == 12.0
    processes.kill("g1-0")
    while processes.scan():
        time.sleep(0.01)


def test_processes_of_another_endpoint_are_not_ours(folder: Path) -> None:
    start(folder / "one")
    try:
        assert Processes(folder / "two").scan() == []
    finally:
        end(Processes(folder / "one"))


def test_a_moved_folder_still_knows_its_processes(folder: Path) -> None:
    record = start(folder / "one")
    (folder / "one").rename(folder / "two")
    moved = Processes(folder / "two")
    try:
        assert moved.alive(moved.records()["g1-0"])
        assert [p.pid for p in moved.scan()] == [record.pid]
    finally:
        end(moved)


def test_the_environment_holds_no_secret_of_ours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYBALL_SLACK_TOKEN", "hush")
    monkeypatch.setenv("HF_HOME", "/models")
    record = start(folder, command=[sys.executable, "-S", "-c", "import os; print(sorted(os.environ), flush=True)"])
    while Processes(folder).alive(record):
        time.sleep(0.01)
    said = Processes(folder).log_tail("g1-0")
    assert "HF_HOME" in said
    assert "SLACK" not in said


def test_logs_are_kept_by_start_and_bounded(folder: Path) -> None:
    processes = Processes(folder)
    for number in range(KEPT_LOGS + 3):
        record = start(folder, token=str(number), command=["/bin/true"])
        while processes.alive(record):
            time.sleep(0.005)
    assert len(list((folder / "logs").iterdir())) == KEPT_LOGS + 3
    processes.forget_dead([])
    assert processes.records() == {}
    assert len(list((folder / "logs").iterdir())) == KEPT_LOGS


def test_what_cannot_be_started_says_why(folder: Path) -> None:
    with pytest.raises(ActuatorError, match=r"/no/such/python cannot be started: No such file"):
        start(folder, command=["/no/such/python"])


def test_a_broken_record_stops_rather_than_guesses(folder: Path) -> None:
    start(folder)
    path = folder / "processes" / "g1-0.json"
    whole = path.read_text()
    for broken in (whole[: len(whole) // 2], "{}", "[]"):
        path.write_text(broken)
        with pytest.raises(ActuatorError, match="STATE_UNREADABLE"):
            Processes(folder).records()
    path.write_text(whole)
