"""The settings file: every problem says where it is, what is wrong and what to do; secrets stay where they are."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import structlog

from agent import logs
from agent.check import check_file, notes_of
from agent.configfile import BadSettings, Problem, SettingsFile, load
from agent.settings import SECRET_FIELDS, Settings, weekdays
from analyzers import grammar

Write = Callable[[str], Path]
HEAD = "endpoints:\n  - name: chat\n    url: http://127.0.0.1:8000\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "flyball.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


def problems(path: Path) -> tuple[Problem, ...]:
    """All that is wrong, from the file itself and from the plugins."""
    try:
        return tuple(check_file(load(path)))
    except BadSettings as error:
        return error.problems


# -- what is wrong, where, and what to do -------------------------------------------------------------------------------

CASES: list[tuple[str, int | None, str, str, str]] = [
    # text, line, field, what, what to do
    ("timezone: UTC\ncolect: {}\n", 2, "colect", "is not a setting", "Did you mean 'collect'?"),
    ("collect:\n  interval: 3\n", 2, "collect.interval", "is not a setting", "Did you mean 'interval_s'?"),
    (HEAD + "    urll: x\n", 4, "endpoints[0].urll", "is not a setting", "Did you mean 'url'?"),
    (HEAD + "    policy:\n      max_replica: 3\n", 5, "endpoints[0].policy.max_replica", "is not a setting", "'max_replicas'"),
    ("sizes:\n  a:\n    price_per_hour: 3\n", 3, "sizes.a.price_per_hour", "is called usd_per_replica_hour now", "Write usd_per_replica_hour"),
        ("sizes:\n  accelerator:\n    memory: 3\n", 3, "sizes.accelerator.memory", "is not a setting", "Did you mean 'memory_gb'?"),
    ("web:\n  zzz: 1\n", 2, "web.zzz", "is not a setting", "Known here: host, port, public_url, token"),
    ("endpoints:\n  - name: chat\n", 2, "endpoints[0].url", "is missing", "Add it"),
    ("slack: {}\n", 1, "slack.webhook_url", "is missing. Add it, or a bot_token", "settings.md"),
    ("web:\n  port: many\n", 2, "web.port", "is not a whole number", "Write a whole number"),
    ("web:\n  port: 70000\n", 2, "web.port", "65535", "docs/settings.md"),
    ("collect: 3\n", 1, "collect", "is not a mapping", "Write `key: value`"),
    ("endpoints: 3\n", 1, "endpoints", "is not a list", "`- `"),
    ("timezone: Mars/Olympus\n", 1, "timezone", "'Mars/Olympus' is not a time zone", ""),
    ("report:\n  schedule: monday 8\n", 2, "report.schedule", "'monday 8' is not a day and a time", ""),
    (HEAD + "    objective: {ttft_p95: 1}\n", 4, "endpoints[0].objective", "expected error_rate, throttle_rate, or ttft", ""),
    (HEAD + "    objective: {error_rate: 1}\n", 4, "endpoints[0].objective", "1 % is 0.01", ""),
    (HEAD + "    mode: autopilot\n", 4, "endpoints[0].mode", "'observe', 'approve' or 'auto'", ""),
    (HEAD + "    policy: {min_replicas: 3, max_replicas: 2}\n", 4, "endpoints[0].policy.max_replicas", "is below min_replicas", ""),
    (HEAD + "    policy:\n      sizes: [gone]\n", 5, "endpoints[0].policy.sizes[0]", "names 'gone'", ""),
    (HEAD + "  - name: chat\n    url: http://127.0.0.1:1\n", 4, "endpoints[1].name", "two endpoints are called 'chat'", ""),
    ("collect:\n  window_s: 10\n", 2, "collect.window_s", "must be at least interval_s", ""),
    ("web:\n  host: 0.0.0.0\n", 2, "web.host", "set web.token, or listen on 127.0.0.1", ""),
    ("database: what is this\n", 1, "database", "is not a database's address", "sqlite:///PATH"),
    (HEAD + "    sources: {vlm: {}}\n", 4, "endpoints[0].sources.vlm", "no collector is called 'vlm'; there are: ", "Correct"),
    (HEAD + "    sources:\n      vllm: {pathh: /m}\n", 5, "endpoints[0].sources.vllm.pathh", "is not an option of vllm", "'path'"),
    (HEAD + "    sources:\n      vllm:\n        timeout_s: 0\n", 6, "endpoints[0].sources.vllm.timeout_s", "greater than 0", ""),
    (HEAD + "    actuator:\n      system: vlm\n", 5, "endpoints[0].actuator.system", "no actuator is called 'vlm'", ""),
    (HEAD + "    mode: approve\n", 4, "endpoints[0].mode", "no system can change this endpoint", "observe"),
    (HEAD + "    shape: {engine: {max_num_seq: 64}}\n", 4, "endpoints[0].shape.engine.max_num_seq", "is no argument", "mean max_num_seqs?"),
    (HEAD + "    shape: {engine: {foo: 64}}\n", 4, "endpoints[0].shape.engine.foo", "is no argument of the engine", "Known: block_size"),
    (HEAD + "    policy: {engine: {max_num_seq: [64]}}\n", 4, "endpoints[0].policy.engine.max_num_seq", "is no argument", "'max_num_seqs'"),
    (HEAD + "    shape: {accelerator: A100-80}\n", 4, "endpoints[0].shape.accelerator", "'A100-80' is not known", "'A100-80GB'"),
    (HEAD + "    shape: {size: smal}\nsizes: {small: {}}\n", 4, "endpoints[0].shape.size", "'smal' is not among `sizes`", "'small'"),
    ("sizes:\n  a: {accelerator: A100-80}\n", 2, "sizes.a.accelerator", "'A100-80' is not known", "'A100-80GB'"),
    (HEAD + "    objective: {ttft_p95_s: 1000}\n", 4, "endpoints[0].objective", "did you mean 1 s (1000ms)?", ""),
    (HEAD + "    objective: {ttft_p95_s: 200}\n", 4, "endpoints[0].objective", "did you mean 0.2 s (200ms)? Where seconds are", ""),
    (HEAD + "    objective: {itl_p95_s: '20'}\n", 4, "endpoints[0].objective", "did you mean 0.02 s (20ms)?", ""),
    # the file itself
    ("a: 1\na: 2\n", 2, "a", "is written twice", "Keep one"),
    (HEAD + "    model: a\n    model: b\n", 5, "endpoints[0].model", "is written twice", "Keep one"),
    ("web:\n  port: [1\n", 3, "", "not YAML", "quotes"),
    ("a: b: c\n", 1, "", "not YAML", "indentation"),
    ("- a\n- b\n", 1, "", "is not a mapping of settings", "flyball init"),
    ("just text\n", 1, "", "is not a mapping of settings", "flyball init"),
    ("1: x\n", 1, "", "'1' is not a name", "quotes"),
    ("? [a, b]\n: x\n", 1, "", "the key is not a name", "quotes"),
    ("database: 2024-13-45\n", None, "", "not YAML", ""),
    ("database: !!python/object:os.system x\n", 1, "", "not YAML", ""),
    ("a: &x {b: *x}\n", 1, "", "is nested without end", "alias"),
    ("a: 1\n---\nb: 2\n", 2, "", "not YAML", ""),
    ("database: !!bool x\n", None, "", "a value that its tag", ""),
    ("database: !!timestamp x\n", None, "", "a value that its tag", ""),
    ("a: " + "[" * 5000, None, "", "nested without end", ""),
    (
        "a: &a [x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join(8 * [f'*{a}'])}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
        None, "", "has more than 300,000 fields", "aliases",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "field", "what", "do"), CASES, ids=[c[0][-30:].strip() for c in CASES])
def test_a_problem_says_where_what_and_what_to_do(
    write: Write, text: str, line: int | None, field: str, what: str, do: str
) -> None:
    path = write(text)
    found = problems(path)
    assert found, "no problem was found"
    problem = found[0]
    assert (problem.file, problem.line, problem.field) == (str(path), line, field)
    assert what in problem.what
    assert do in problem.do
    assert problem.do
    assert str(problem).startswith(f"{path}:{line}: " if line else f"{path}: ")


SOUND = (
    HEAD
    + "    objective: {ttft_p95_s: 1}\n    usd_per_replica_hour: 2\n    shape: {replicas: 1, engine: {max_num_seqs: 8}}\n"
)


@pytest.mark.parametrize(
    ("text", "field", "what"),
    [
        (SOUND, None, ""),
        (SOUND.replace("objective: {ttft_p95_s: 1}", "mode: observe"), "objective", "is not judged"),
        (SOUND.replace("usd_per_replica_hour: 2", "mode: observe"), "usd_per_replica_hour", "neither cost nor saving"),
        (SOUND.replace("shape: {replicas: 1, engine: {max_num_seqs: 8}}", ""), "shape", "other shapes are not predicted"),
        (SOUND.replace("max_num_seqs: 8", "enforce_eager: true"), "shape.engine.enforce_eager", "no effect of it"),
        (SOUND.replace("replicas: 1", "accelerator: Gaudi3"), "shape.accelerator", "not in the table"),
        (SOUND + "    policy: {engine: {max_running_requests: [8]}}\n", "policy.engine.max_running_requests", "no effect of it"),
    ],
)  # fmt: skip
def test_a_note_says_what_will_not_be_judged(write: Write, text: str, field: str | None, what: str) -> None:
    path = write(text)
    assert problems(path) == ()
    notes = notes_of(load(path))
    assert [n.field for n in notes] == ([f"endpoints[0].{field}"] if field else [])
    assert all(what in n.what and n.do for n in notes)


def test_all_problems_are_told_at_once(write: Write) -> None:
    found = problems(write("colect: {}\nweb: {port: x}\ntimezone: Mars\n"))
    assert {p.field for p in found} == {"colect", "web.port", "timezone"}


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path / "none.yaml")
    assert "No such file" in problem.what
    assert "flyball init" in problem.do
    (tmp_path / "latin.yaml").write_bytes(b"timezone: \xff\xfe\n")
    (problem,) = problems(tmp_path / "latin.yaml")
    assert "cannot be read" in problem.what


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}\n"])
def test_an_empty_file_is_all_defaults(write: Write, text: str) -> None:
    loaded = load(write(text))
    assert loaded.settings.endpoints == []
    assert loaded.settings.web.port == 8321


# -- secrets ------------------------------------------------------------------------------------------------------------

SECRET = "hunter2-very-secret"
SLACK = "slack:\n  webhook_url: {}\n"


@pytest.mark.parametrize("value", [SECRET, f"https://hooks.slack.com/{SECRET}", "12345", "${A}${B}", "x-${A}"])
def test_a_secret_that_is_written_out_is_refused_and_not_repeated(write: Write, value: str) -> None:
    (problem,) = problems(write(SLACK.format(value)))
    assert (problem.line, problem.field) == (2, "slack.webhook_url")
    assert problem.what == "a secret is written into the file"
    assert "${NAME}" in problem.do
    assert value not in str(problem)


def test_every_secret_field_is_guarded(write: Write) -> None:
    text = (
        "people: [{name: ada, token: g}]\nweb: {token: a}\nslack: {webhook_url: b, signing_secret: c, previous_signing_secret: d, "
        "bot_token: h, app_token: i, channel_id: C0CHAN}\n"
        "email: {host: h, sender: a@b, to: [c@d], username: u, password: j}\n"
        + HEAD
        + "    api_key: e\n    bill: {vendor: openai, key: f}\n"
    )
    found = problems(write(text))
    assert len(found) == len(SECRET_FIELDS)
    assert all(p.what == "a secret is written into the file" for p in found)


@pytest.mark.parametrize(
    "options",
    [
        "sources: {prometheus: {url: 'http://p', token: hunter2-very-secret}}",
        "actuator: {system: azure-ml, options: {client_secret: hunter2-very-secret}}",
    ],
)
def test_a_secret_in_a_plugins_options_is_guarded_like_ours(
    options: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    (problem,) = problems(write(f"{HEAD}    {options}\n"))
    assert problem.what == "a secret is written into the file"
    assert problem.field.endswith(("token", "client_secret"))
    assert SECRET not in str(problem)
    monkeypatch.setenv("OF_THE_PLUGIN", SECRET)
    referring = options.replace(SECRET, "'${OF_THE_PLUGIN}'")
    load(write(f"{HEAD}    {referring}\n"))


def test_secret_fields_are_all_there_are() -> None:
    """A SecretStr that the list forgets could be written out in the file."""
    schema = json.dumps(Settings.model_json_schema())
    assert schema.count('"format": "password"') == len(SECRET_FIELDS)


def test_secrets_come_from_the_environment_or_a_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_OF_CHAT", SECRET)
    (tmp_path / "token").write_text(f"{SECRET}-2\n")
    settings = load(write("web: {token: 'file:token'}\n" + HEAD + "    api_key: ${KEY_OF_CHAT}\n")).settings
    key, token = settings.endpoints[0].api_key, settings.web.token
    assert key is not None
    assert token is not None
    assert (key.get_secret_value(), token.get_secret_value()) == (SECRET, f"{SECRET}-2")


@pytest.mark.parametrize("value", [None, ""])
def test_an_unset_variable_says_which(write: Write, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    if value is not None:
        monkeypatch.setenv("NOT_SET", value)
    (problem,) = problems(write("web:\n  token: ${NOT_SET}\n"))
    assert (problem.line, problem.field) == (2, "web.token")
    assert "NOT_SET is not set" in problem.what
    assert problem.do == "Export NOT_SET before Flyball starts"


@pytest.mark.parametrize(("content", "what"), [(None, "No such file"), (b"", "is empty"), (b"\xff\xfe", "is not text")])
def test_a_secrets_file_that_cannot_be_used(write: Write, tmp_path: Path, content: bytes | None, what: str) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    (problem,) = problems(write("web:\n  token: file:token\n"))
    assert what in problem.what
    assert str(tmp_path / "token") in problem.do


def _secretive(write: Write, monkeypatch: pytest.MonkeyPatch) -> SettingsFile:
    monkeypatch.setenv("S", SECRET)
    return load(
        write(
            "database: postgresql+psycopg://fly:${S}@db/flyball\nweb: {token: '${S}'}\n"
            "slack: {webhook_url: '${S}', signing_secret: '${S}'}\n" + HEAD + "    api_key: ${S}\n"
        )
    )


def test_secrets_are_not_in_repr_nor_in_json(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _secretive(write, monkeypatch).settings
    assert SECRET not in repr(settings) + str(settings)
    without_address = settings.model_dump(mode="json", exclude={"database"})
    assert SECRET not in json.dumps(without_address)
    assert SECRET in settings.database  # it is needed to connect; the store shows it as ***


def test_secrets_are_not_in_logs(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _secretive(write, monkeypatch).settings
    stream = io.StringIO()
    patient = logs.configure("info", stream=stream)
    structlog.get_logger().info("started", settings=settings, slack=settings.slack, endpoint=settings.endpoints[0])
    try:
        raise RuntimeError(f"with {settings!r}")
    except RuntimeError:
        structlog.get_logger().exception("failed")
    patient.drain(30)
    structlog.reset_defaults()
    assert "failed" in stream.getvalue()
    assert SECRET not in stream.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "timezone: ${S}\n",  # not a field for secrets, but what came from elsewhere is not shown
        "endpoints:\n  - {name: '${S} x', url: 'http://h'}\n",
        "web: {host: 0.0.0.0, tokn: '${S}'}\n",
        "web: {port: '${S}'}\n",
        "database: '${S} nonsense'\n",
        "database: 'postgresql+psycopg://u:${S}@h:port/db'\n",
    ],
)
def test_what_came_by_reference_is_not_repeated_in_errors(
    write: Write, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("S", SECRET)
    found = problems(write(text))
    assert found
    assert SECRET not in "".join(map(str, found))


# -- environment and paths ----------------------------------------------------------------------------------------------


def test_the_environment_stands_above_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYBALL_WEB__PORT", "9000")
    monkeypatch.setenv("FLYBALL_LOG_LEVEL", "debug")
    monkeypatch.setenv("FLYBALL_CONFIG", "elsewhere.yaml")  # the command line's own, no setting
    settings = load(write("web: {port: 8000, public_url: 'http://fly'}\n")).settings
    assert (settings.web.port, settings.web.public_url, settings.log_level) == (9000, "http://fly", "debug")


def test_a_wrong_variable_is_named_and_its_value_is_not(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYBALL_WEB__PORT", SECRET)
    (problem,) = problems(write("timezone: UTC\n"))
    assert (problem.file, problem.line, problem.field) == ("environment", None, "FLYBALL_WEB__PORT")
    assert SECRET not in str(problem)
    monkeypatch.setenv("FLYBALL_WEB__PORT", "8000")
    monkeypatch.setenv("FLYBALL_ENDPOINTS", "not json")
    (problem,) = problems(write("timezone: UTC\n"))
    assert (problem.field, problem.what) == ("FLYBALL_ENDPOINTS", "cannot be understood")


def test_a_stray_dotenv_does_not_steer(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("FLYBALL_WEB__PORT=1\n")
    monkeypatch.chdir(tmp_path)
    assert load(write("")).settings.web.port == 8321


def test_relative_paths_stand_beside_the_file(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = write("report: {directory: out}\ntls_ca_file: ca.pem\nstate_dir: /var/lib/flyball\n")
    settings = load(Path("..") / path.name).settings
    assert settings.database == f"sqlite:///{tmp_path}/flyball.db"
    assert settings.report.directory == tmp_path / "out"
    assert settings.tls_ca_file == tmp_path / "ca.pem"
    assert settings.state_dir == Path("/var/lib/flyball")
    assert load(write("database: 'sqlite:///:memory:'\n")).settings.database == "sqlite:///:memory:"


def test_the_example_is_fine_as_it_is(write: Write) -> None:
    text = files("agent").joinpath("flyball.example.yaml").read_text(encoding="utf-8")
    assert problems(write(text)) == ()
    assert load(write(text)).settings.endpoints[0].mode == "observe"


def test_the_example_is_fine_with_everything_switched_on(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands commented out must be right too."""
    for name in ("FLYBALL_PAGE_TOKEN", "SLACK_BOT_TOKEN", "SLACK_APP_TOKEN", "VLLM_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    lines = files("agent").joinpath("flyball.example.yaml").read_text(encoding="utf-8").splitlines()
    starts = ("# token:", "# slack:", "#   ", "# model:", "# api_key:", "# probe:")
    on = [line.replace("# ", "", 1) if line.lstrip().startswith(starts) else line for line in lines]
    path = write("\n".join(on))
    assert problems(path) == ()
    settings = load(path).settings
    assert settings.slack is not None
    assert settings.web.token is not None
    assert (settings.endpoints[0].model, list(settings.endpoints[0].sources)) == ("my-model", ["vllm", "probe"])


@pytest.mark.parametrize(
    ("text", "days"), [("mon-fri", {0, 1, 2, 3, 4}), ("sat,sun", {5, 6}), ("fri-mon", {4, 5, 6, 0}), ("Wed", {2})]
)
def test_days(text: str, days: set[int]) -> None:
    assert weekdays(text) == days
    with pytest.raises(ValueError, match="is not a set of days"):
        weekdays(text + ",xyz")


def test_settings_are_values(write: Write) -> None:
    settings = load(write(HEAD)).settings
    with pytest.raises(ValueError, match="frozen"):
        settings.timezone = "Europe/Berlin"
    assert pickle.loads(pickle.dumps(settings)) == settings
    with pytest.raises(KeyError):
        settings.endpoint("nobody")


def test_durations_are_numbers_or_text(write: Write) -> None:
    text = """
endpoints:
  - name: chat
    url: http://127.0.0.1:8000
    objective: {ttft_p95_s: 500ms, itl_p95_s: 0.05}
    policy: {cooldown_s: 2h, evidence_s: 1d}
collect: {interval_s: "30"}
"""
    settings = load(write(text)).settings
    chosen = settings.endpoint("chat")
    assert (chosen.policy.cooldown_s, chosen.policy.evidence_s, settings.collect.interval_s) == (7200.0, 86_400.0, 30.0)
    assert {t.name: t.limit for t in chosen.wanted().targets} == {"ttft_p95_s": 0.5, "itl_p95_s": 0.05}
    (soon,) = problems(write("collect: {interval_s: soon}\n"))
    assert "write for instance 500ms, 5s" in soon.what
    (absurd,) = problems(write(text.replace("500ms", "1000")))
    assert "did you mean 1 s (1000ms)?" in absurd.what


def test_a_batch_endpoint_states_its_long_limits_with_their_unit(tmp_path: Path) -> None:
    file = tmp_path / "flyball.yaml"
    file.write_text(HEAD + "    objective: {ttft_p95_s: 200s, e2e_p95_s: 2h, itl_p95_s: 50ms, error_rate: 0.01}\n")
    wanted = load(file).settings.endpoint("chat").wanted()
    assert {t.name: t.limit for t in wanted.targets} == {
        "ttft_p95_s": 200.0, "e2e_p95_s": 7200.0, "itl_p95_s": 0.05, "error_rate": 0.01,
    }  # fmt: skip
    told = [grammar.objective([text]).targets[0].limit for text in ("ttft_p95=200s", "e2e_p95=2h")]
    assert told == [200.0, 7200.0]
    for text in ("ttft_p95=200", "itl_p95_s=20", "e2e_p95=2000"):
        with pytest.raises(grammar.BadQuestion, match="did you mean"):
            grammar.objective([text])
