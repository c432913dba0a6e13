"""The command line: exit codes, tables for people, JSON for programs, on an empty and on a filled database."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
from rich.console import Console
from typer.testing import CliRunner, Result

from agent import plugins
from agent.cli import PANELS, app, main, output, watch
from agent.cli.inspect import opened
from agent.clock import WallClock
from agent.store import Store, changes, control, fleet, recommendations, schema
from tests.agent.records import change_row, fill, plan, recommendation_row, shape_row

SETTINGS = """
endpoints:
  - name: chat
    url: http://127.0.0.1:1
    mode: approve
    actuator: {system: emulated}
    objective: {ttft_p95_s: 1.0}
    shape: {replicas: 2, size: small}
    usd_per_replica_hour: 1.5
"""


@pytest.fixture
def config(tmp_path: Path, sqlite_template: Path) -> Path:
    (tmp_path / "flyball.db").write_bytes(sqlite_template.read_bytes())
    (tmp_path / "flyball.yaml").write_text(SETTINGS)
    return tmp_path / "flyball.yaml"


@pytest.fixture
def filled(config: Path) -> Iterator[Store]:
    """The same database, with an hour of telemetry up to now."""
    store = Store(f"sqlite:///{config.parent}/flyball.db")
    fill(store, now=WallClock().now())
    yield store
    store.close()


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that is wide enough for every cell to stand on one line."""
    monkeypatch.setattr(output.stdout, "width", 240)
    monkeypatch.setattr(output.console, "width", 240)


def run(*arguments: str | Path, given: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=given)


def as_json(*arguments: str | Path) -> Any:
    result = run(*arguments, "--output", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# -- setting up ---------------------------------------------------------------------------------------------------------


def test_init_writes_what_check_passes(tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    result = run("init", path)
    assert result.exit_code == 0
    assert "flyball check -c" in result.stderr
    assert run("check", "-c", path).exit_code == 0


def test_init_writes_over_nothing_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("timezone: UTC\n")
    result = run("init", path)
    assert result.exit_code == 2
    assert "--force" in result.stderr
    assert path.read_text() == "timezone: UTC\n"
    assert run("init", path, "--force").exit_code == 0
    assert "endpoints:" in path.read_text()


def test_init_says_when_it_cannot_write(tmp_path: Path) -> None:
    result = run("init", tmp_path / "none" / "x.yaml")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_check_tells_each_problem_and_exits_with_2(tmp_path: Path) -> None:
    path = tmp_path / "[bold]x.yaml"
    path.write_text("colect: {}\nendpoints:\n  - {name: a, url: 'http://h', sources: {'[/red]': {}}}\n")
    result = run("check", "-c", path)
    assert result.exit_code == 2
    assert f"{path}:1: colect: is not a setting. Did you mean 'collect'?" in result.stdout
    path.write_text(path.read_text().replace("colect: {}\n", ""))
    result = run("check", "-c", path)
    assert result.exit_code == 2
    assert "endpoints[0].sources.[/red]: no collector is called '[/red]'" in result.stdout
    found = json.loads(run("check", "-c", path, "-o", "json").stdout)
    assert found["schema_version"] == 1
    assert found["ok"] is False
    assert found["problems"][0] | {"do": ""} == {
        "file": str(path),
        "line": 2,
        "field": "endpoints[0].sources.[/red]",
        "what": "no collector is called '[/red]'; there are: " + ", ".join(plugins.names(plugins.COLLECTORS)),
        "do": "",
    }


def test_check_says_fine(config: Path) -> None:
    result = run("check", "-c", config)
    assert (result.exit_code, result.stdout) == (0, f"{config}: fine\n")
    assert as_json("check", "-c", config) == {"schema_version": 1, "ok": True, "problems": [], "notes": []}
    config.write_text(SETTINGS.replace("objective: {ttft_p95_s: 1.0}", "objective: {}"))
    result = run("check", "-c", config)
    assert result.exit_code == 0
    assert (
        f"note: {config}:7: endpoints[0].objective: no objective: whether it is fast enough is not judged."
        in result.stdout
    )
    (note,) = as_json("check", "-c", config)["notes"]
    assert (note["field"], note["line"]) == ("endpoints[0].objective", 7)


def test_check_live_tells_what_does_not_answer(config: Path) -> None:
    result = run("check", "-c", config, "--live", "-o", "json")
    assert result.exit_code == 2
    fields = {p["field"] for p in json.loads(result.stdout)["problems"]}
    assert fields == {"endpoints[0].actuator", "endpoints[0].sources.vllm"}


def test_database_commands(tmp_path: Path) -> None:
    path = tmp_path / "flyball.yaml"
    path.write_text(SETTINGS)
    assert as_json("db", "current", "-c", path)["current"] is None
    assert "is at schema" in run("db", "upgrade", "-c", path).stdout
    after = as_json("db", "current", "-c", path)
    assert after["schema_version"] == 1
    assert after["current"] == after["needed"]
    assert "flyball.db" in after["database"]


# -- looking ------------------------------------------------------------------------------------------------------------

LISTINGS = (
    ("status",),
    ("endpoints",),
    ("recommendations", "list"),
    ("recommendations", "list", "--all"),
    ("changes", "list"),
    ("savings",),
    ("spend",),
    ("report",),
)


@pytest.mark.parametrize("command", LISTINGS, ids=" ".join)
def test_listings_work_on_an_empty_database(config: Path, command: tuple[str, ...]) -> None:
    assert as_json(*command, "-c", config)["schema_version"] == 1
    result = run(*command, "-c", config)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", LISTINGS, ids=" ".join)
def test_listings_work_on_a_filled_database(config: Path, filled: Store, command: tuple[str, ...]) -> None:
    assert as_json(*command, "-c", config)["schema_version"] == 1
    result = run(*command, "-c", config)
    assert result.exit_code == 0, result.output


def test_status_tells_how_it_is(config: Path, filled: Store) -> None:
    with filled.write() as db:
        fleet.freeze(db, "chat", reason="rolled back", now=1.0, by="flyball")
    view = as_json("status", "-c", config)
    assert view["running"] is True
    assert view["audit_intact"] is True
    assert (view["open_recommendations"], view["active_changes"], view["frozen"]) == (1, 0, ["chat"])
    with filled.write() as db:
        db.execute(sa.update(schema.audit).where(schema.audit.c.id == 1).values(actor="eve"))
        control.release(db, "leader", "host:1")
    view = as_json("status", "-c", config)
    assert (view["running"], view["audit_intact"]) == (False, False)
    assert "broken" in run("status", "-c", config).stdout


def test_endpoints_show_what_is_not_known_as_such(config: Path) -> None:
    (row,) = as_json("endpoints", "-c", config)["endpoints"]
    unknown = dict.fromkeys(("observed", "at_least", "at_most", "met", "burn_rate"))
    assert row["objective"] == [{"target": "ttft_p95_s", "limit": 1.0, "samples": 0.0, **unknown}]
    assert row["money"]["usd_per_month"] is None
    assert "not seen yet" in run("endpoints", "-c", config).stdout
    assert "chat: not judged yet: `flyball run` has not analyzed it so far" in run("endpoints", "-c", config).stdout


def test_endpoints_show_what_was_seen(config: Path, filled: Store) -> None:
    (row,) = as_json("endpoints", "-c", config)["endpoints"]
    assert row["label"] == "2 x small, max_num_seqs=64"
    assert row["money"]["usd_per_month"] == 1460.0
    assert [f["code"] for f in row["findings"]] == ["LOW_OCCUPANCY"]


def test_watch_says_what_is_waited_for_before_anything_is_known(config: Path) -> None:
    said = run("watch", "-c", config).stdout
    assert "1 endpoint: 1 not judged; cost not known" in said
    assert "it was not read yet" in said
    assert "Nobody watches" in said


def test_watch_shows_each_endpoint_and_what_waits(config: Path, filled: Store) -> None:
    said = run("watch", "chat", "-c", config).stdout
    assert "$1,460 a month" in said
    assert re.search(r"requests +[\d.]+/s +.*█", said), "a number and its last windows"
    assert re.search(r"TTFT p95 .* of 1 s (met|missed)", said)
    assert re.search(r"waits for you aaaa0001 +chat: replicas 2 → 1", said)
    assert run("watch", "caht", "-c", config).exit_code == 2


def test_watch_keeps_to_the_lines_of_a_terminal(config: Path, filled: Store) -> None:
    config.write_text(SETTINGS + SETTINGS.partition("endpoints:")[2].replace("name: chat", "name: other"))
    with opened(config) as (store, settings):
        view = watch._seen(store, settings, WallClock().now(), None)
    short, tall = (_lines(watch._screen(view, height)) for height in (12, 80))
    assert "and 1 more, less urgent" in short
    assert "more, less urgent" not in tall


def _lines(shown: Any) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_one_recommendation_whole_and_by_the_beginning_of_its_id(config: Path, filled: Store) -> None:
    view = as_json("recommendations", "show", "aaaa", "-c", config)
    assert view["recommendation"]["id"] == "aaaa0001"
    assert view["recommendation"]["plan"]["operations"][0]["name"] == "scale"
    text = run("recommendations", "show", "aaaa", "-c", config).stdout
    assert all(word in text for word in ("LOW_OCCUPANCY", "scale to 1", "Way back: scale back", "cannot predict"))


def test_ids_that_are_not_unique_or_not_there_are_errors(config: Path, filled: Store) -> None:
    for arguments in (("changes", "show", "cccc"), ("changes", "show", "zzzz"), ("recommendations", "show", "zz")):
        result = run(*arguments, "-c", config)
        assert result.exit_code == 1
        assert "no single" in result.stderr


def test_one_change_whole(config: Path, filled: Store) -> None:
    view = as_json("changes", "show", "cccc0002", "-c", config)["change"]
    assert [j["state"] for j in view["journal"]] == ["done"]
    assert [(r["observed"], r["inside"]) for r in view["ledger"]] == [(0.8, False)]
    text = run("changes", "show", "cccc0002", "-c", config).stdout
    assert "rolled_back" in text
    assert "+100%" in text


def test_savings_and_what_they_rest_on(config: Path, filled: Store) -> None:
    said = run("savings", "-c", config).output
    assert (
        "saved $1.00 (80 %: $0.80 to $1.30); the objective would have been missed on 2 min (80 %: 0 to 4), it was on 1 min"
        in said
    )
    result = run("savings", "--verify", "-c", config)
    assert result.exit_code == 0, "the chain holds, and what aged out is no forgery"
    assert "cannot: " in result.output
    with filled.write() as db:
        db.execute(sa.update(schema.savings).values(saved_usd=99.0))
    result = run("savings", "--verify", "-c", config)
    assert result.exit_code == 1
    assert "row 1 was altered" in result.output


def test_text_from_elsewhere_cannot_act_as_markup(config: Path) -> None:
    store = Store(f"sqlite:///{config.parent}/flyball.db")
    fill(store, now=WallClock().now(), text="[/bold][red]boo")
    store.close()
    for command in (("recommendations", "show", "aaaa"), ("changes", "show", "cccc0001"), ("changes", "list")):
        result = run(*command, "-c", config)
        assert result.exit_code == 0, result.output
        assert "[/bold][red]" in result.stdout


# -- deciding -----------------------------------------------------------------------------------------------------------


def _state(store: Store, identity: str = "aaaa0001") -> str:
    with store.read() as db:
        return str((recommendations.get(db, identity) or {})["state"])


def test_approve_asks_and_shows_the_plan(config: Path, filled: Store) -> None:
    result = run("recommendations", "approve", "aaaa", "-c", config, given="n\n")
    assert result.exit_code == 1
    assert plan().hash in result.stdout.replace("\n", "")
    assert _state(filled) == "proposed"
    result = run("recommendations", "approve", "aaaa", "-c", config, given="y\n")
    assert result.exit_code == 0
    assert _state(filled) == "approved"


def test_approve_is_bound_to_the_plan(config: Path, filled: Store) -> None:
    result = run("recommendations", "approve", "aaaa", "-c", config, "--plan", "sha256:other")
    assert result.exit_code == 1
    assert "the plan has changed since" in result.stderr
    assert _state(filled) == "proposed"
    assert run("recommendations", "approve", "aaaa", "-c", config, "--plan", plan().hash).exit_code == 0
    assert _state(filled) == "approved"
    with filled.read() as db:
        made = recommendations.decisions(db, "aaaa0001")
    assert [(d["accepted"], d["reason"], d["channel"]) for d in made] == [
        (False, "superseded", "cli"),
        (True, "accepted", "cli"),
    ]
    assert all(d["actor"].startswith("cli:") for d in made)


@pytest.mark.parametrize(("verb", "state"), [("reject", "rejected"), ("snooze", "snoozed")])
def test_reject_and_snooze(config: Path, filled: Store, verb: str, state: str) -> None:
    assert run("recommendations", verb, "aaaa", "-c", config).exit_code == 0
    assert _state(filled) == state


def test_what_is_decided_stays_decided(config: Path, filled: Store) -> None:
    assert run("recommendations", "reject", "aaaa", "-c", config).exit_code == 0
    result = run("recommendations", "approve", "aaaa", "-y", "-c", config)
    assert result.exit_code == 1
    assert "it is rejected already" in result.stderr


def test_what_expired_cannot_be_approved(config: Path, filled: Store) -> None:
    with filled.write() as db:
        recommendations.insert(db, recommendation_row("bbbb0001", expires_at=1.0))
    result = run("recommendations", "approve", "bbbb", "-y", "-c", config)
    assert result.exit_code == 1
    assert "expired" in result.stderr


def test_propose_says_why_not(config: Path) -> None:
    result = run("recommendations", "propose", "nobody", "--shape", "replicas=1", "-c", config)
    assert result.exit_code == 2
    assert "no endpoint nobody; known: chat" in result.stderr
    result = run("recommendations", "propose", "chat", "--shape", "replicas", "-c", config)
    assert result.exit_code == 2
    assert "NAME=VALUE" in result.stderr


def test_rollback(config: Path, filled: Store) -> None:
    result = run("changes", "rollback", "cccc0001", "-c", config, given="n\n")
    assert result.exit_code == 1
    assert run("changes", "rollback", "cccc0001", "-y", "-c", config).exit_code == 0
    with filled.read() as db:
        assert (changes.get(db, "cccc0001") or {})["rollback_requested"] is True
    result = run("changes", "rollback", "cccc0002", "-y", "-c", config)
    assert result.exit_code == 1
    assert "is rolled_back: there is nothing to undo" in result.stderr
    assert run("changes", "rollback", "zzzz", "-y", "-c", config).exit_code == 1


@pytest.mark.parametrize(
    "words",
    [
        ("endpoints", "caht"),
        ("deploy", "caht"),
        ("recommendations", "list", "--endpoint", "caht"),
        ("changes", "list", "--endpoint", "caht"),
        ("recommendations", "propose", "caht", "--shape", "replicas=1"),
    ],
)
def test_an_endpoint_that_is_not_there(config: Path, words: tuple[str, ...]) -> None:
    result = run(*words, "-c", config)
    assert (result.exit_code, result.stderr) == (2, "error no endpoint caht; did you mean chat?\n")


def test_one_endpoint_is_shown_alone(config: Path, filled: Store) -> None:
    config.write_text(SETTINGS + "  - {name: other, url: 'http://127.0.0.1:2'}\n")
    assert [e["name"] for e in as_json("endpoints", "-c", config)["endpoints"]] == ["chat", "other"]
    assert [e["name"] for e in as_json("endpoints", "other", "-c", config)["endpoints"]] == ["other"]
    assert "chat" not in run("endpoints", "other", "-c", config).stdout


def test_the_load_of_now_stands_beside_that_of_the_span(config: Path, filled: Store) -> None:
    (row,) = as_json("endpoints", "-c", config)["endpoints"]
    assert 0 < row["now"]["span_s"] <= 180
    assert row["now"]["requests_per_s"] == pytest.approx(row["load"]["requests_per_s"])
    assert row["window"]["old"] is False
    said = run("endpoints", "-c", config).stdout
    assert re.search(r"now [0-9.]+/s", said)
    assert re.search(r"[0-9.]+/s over [0-9.]+ (min|h)", said)


def _ended(store: Store) -> None:
    """The daemon that filled it gives the lease up."""
    with store.write() as db:
        leads = control.leader(db, "leader")
        assert leads is not None
        control.release(db, "leader", leads["holder"])


def test_old_figures_are_called_old_and_that_nobody_watches(config: Path, sqlite_template: Path) -> None:
    store = Store(f"sqlite:///{config.parent}/flyball.db")
    fill(store, now=WallClock().now() - 1200)
    _ended(store)
    (row,) = as_json("endpoints", "-c", config)["endpoints"]
    assert row["window"]["old"] is True
    assert 1200 <= row["window"]["age_s"] < 1400
    assert row["now"] is None
    said = run("endpoints", "-c", config).stdout
    assert "now not known" in said
    assert re.search(r"chat: the newest figures are of .*, 2\d\.?\d? min ago", said)
    assert "Nobody watches: no daemon is running" in said
    with store.write() as db:
        assert control.acquire(db, "leader", "somebody", 30.0) is not None
    assert "Nobody watches" not in run("endpoints", "-c", config).stdout
    store.close()


def test_the_last_sign_of_life_has_an_age(config: Path, filled: Store) -> None:
    _ended(filled)
    with filled.write() as db:
        control.acquire(db, "leader", "somebody", 30.0)
        control.put(db, "heartbeat", {}, WallClock().now() - 25, "somebody")
    assert 25 <= as_json("status", "-c", config)["last_cycle_age_s"] < 60
    said = run("status", "-c", config).stdout
    assert re.search(r"last sign of life +│ [2-5]\d\.?\d? s ago", said)
    assert "not running" not in said


def test_the_version_is_said() -> None:
    for option in ("--version", "-V"):
        result = run(option)
        assert (result.exit_code, result.stdout) == (0, f"flyball {version('flyball')}\n")


def test_what_the_daemons_parts_log_does_not_stand_above_an_answer(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(config):
        structlog.get_logger().info("recommended", endpoint="chat")
        structlog.get_logger().warning("trouble")
    said = capsys.readouterr()
    assert said.out == ""
    assert "recommended" not in said.err
    assert "trouble" in said.err


def test_pause_and_resume(config: Path, filled: Store) -> None:
    assert run("pause", "--reason", "holiday", "-c", config).exit_code == 0
    view = as_json("status", "-c", config)["paused"]
    assert view["reason"] == "holiday"
    assert view["by"].startswith("cli:")
    assert "holiday" in run("status", "-c", config).stdout
    assert run("resume", "-c", config).exit_code == 0
    assert as_json("status", "-c", config)["paused"] is None
    result = run("resume", "-c", config)
    assert result.exit_code == 1
    assert "nothing is paused" in result.stderr


def test_unfreeze(config: Path, filled: Store) -> None:
    assert run("unfreeze", "chat", "-c", config).exit_code == 1
    result = run("unfreeze", "caht", "-c", config)
    assert (result.exit_code, result.stderr) == (2, "error no endpoint caht; did you mean chat?\n")
    with filled.write() as db:
        fleet.saw_shape(db, "chat", shape_row())
        fleet.freeze(db, "chat", reason="x", now=1.0, by="flyball")
    assert run("unfreeze", "chat", "-c", config).exit_code == 0
    assert as_json("status", "-c", config)["frozen"] == []


def test_a_change_under_way_is_shown(config: Path, filled: Store) -> None:
    with filled.write() as db:
        changes.start(db, change_row("dddd0001", now=WallClock().now()))
    assert as_json("status", "-c", config)["active_changes"] == 1
    assert as_json("changes", "list", "-c", config)["changes"][0]["state"] == "applying"


def test_report_is_written_where_it_is_asked_for(config: Path, filled: Store, tmp_path: Path) -> None:
    result = run("report", "-c", config, "--to", tmp_path / "r.html", "--since", "36h")
    assert result.exit_code == 0
    assert "<svg" in (tmp_path / "r.html").read_text()
    assert as_json("status", "-c", config)["last_report"]["path"] == str(tmp_path / "r.html")


@pytest.mark.parametrize("given", [("--since", "2d"), ("--since", "48h"), ("--days", "2"), ("--days", "2d")])
def test_a_reports_span_is_a_duration(config: Path, filled: Store, given: tuple[str, str]) -> None:
    result = run("report", "-c", config, *given, "-o", "json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["end"] - found["start"] == 2 * 86_400
    assert ("--days is read as --since 2d" in result.stderr) is (given[0] == "--days")


@pytest.mark.parametrize("span", ["0", "1s", "soon"])
def test_a_reports_span_that_says_nothing_is_refused(config: Path, span: str) -> None:
    result = run("report", "-c", config, "--since", span)
    assert result.exit_code == 2
    assert "7d" in result.stderr


# -- as a program -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    code: object
    stdout: str
    stderr: str


Program = Callable[..., Ended]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """`flyball` as its entry point runs it, in the folder of this test."""

    def ended(*arguments: str) -> Ended:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["flyball", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return Ended(end.value.code, *capsys.readouterr())

    return ended


def test_a_wrong_file_is_one_line_a_problem_and_exit_code_2(program: Program, tmp_path: Path) -> None:
    ended = program("status")
    assert (ended.code, ended.stdout) == (2, "")
    assert "flyball.yaml: cannot be read" in ended.stderr
    assert "flyball init" in ended.stderr
    assert "Traceback" not in ended.stderr
    (tmp_path / "flyball.yaml").write_text("colect: {}\n[x]: 1\n")
    ended = program("endpoints")
    assert ended.code == 2
    assert "flyball.yaml:2: the key is not a name" in ended.stderr


def test_a_missing_schema_says_what_to_do(program: Program, tmp_path: Path) -> None:
    (tmp_path / "flyball.yaml").write_text(SETTINGS)
    ended = program("status")
    assert ended.code == 2
    assert "run `flyball db upgrade`" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_newer_schema_is_refused(program: Program, config: Path) -> None:
    store = Store(f"sqlite:///{config.parent}/flyball.db")
    with store.write() as db:
        db.execute(sa.text("update alembic_version set version_num = '9999'"))
    store.close()
    for command in (("status",), ("db", "upgrade")):
        ended = program(*command)
        assert ended.code == 2
        assert "a newer one made it" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_database_that_cannot_be_opened(program: Program, tmp_path: Path) -> None:
    (tmp_path / "flyball.yaml").write_text("database: postgresql+psycopg://u:hunter2@127.0.0.1:1/x\n")
    for command in (("status",), ("db", "current"), ("db", "upgrade")):
        ended = program(*command)
        assert ended.code == 2, command
        assert "hunter2" not in ended.stderr
        assert "Traceback" not in ended.stderr


def test_json_goes_to_standard_output_alone(config: Path) -> None:
    installed = Path(sys.executable).with_name("flyball")
    if not installed.exists():
        pytest.skip("flyball is not installed beside this Python; run `make setup`")
    command = [installed, "status", "-o", "json"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=config.parent, timeout=60, check=False)
    assert json.loads(ended.stdout)["schema_version"] == 1
    assert ended.stderr == ""


def test_help_has_the_commands_by_what_they_are_for_and_completion_is_there() -> None:
    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"}).stdout
    places = [said.index(f"─ {panel} ─") for panel in PANELS]
    assert places == sorted(places)
    for panel, names in PANELS.items():
        part = said[said.index(f"─ {panel} ─") :].partition("╰")[0]
        assert {line.split()[1] for line in part.splitlines() if line.startswith("│ ") and line[2] != " "} == set(names)
    assert "--install-completion" in said


@pytest.mark.parametrize("arguments", [["--help"], ["recommendations", "--help"], ["check", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nsys.argv = ['flyball', *sys.argv[1:]]\nfrom agent.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'asyncio', 'numba', 'sklearn', 'altair', 'scipy', 'numpy', 'vl_convert', 'fastapi', 'uvicorn', 'sqlalchemy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "[]\n")
    assert "Usage" in ended.stdout


def test_main_is_the_entry_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["flyball", "status", "-c", str(tmp_path / "no[ne].yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "no[ne].yaml: cannot be read" in capsys.readouterr().err
