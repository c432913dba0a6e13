"""`flyball init --url` against real HTTP servers with pages of our own: settings from what a server tells, and no more than that."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from agent.cli import app
from agent.configfile import load
from tests.agent.test_check_live import PAGE, server
from tests.collectors.servers import answering, serve

TIMED = (
    PAGE
    + """# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",model_name="org/m",le="1.0"} 4.0
vllm:time_to_first_token_seconds_bucket{engine="0",model_name="org/m",le="+Inf"} 4.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="org/m"} 4.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="org/m"} 1.0
"""
)


def init(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["init", str(path), *arguments])


def test_settings_are_written_from_what_a_server_tells_and_pass_the_check(tmp_path: Path) -> None:
    path = tmp_path / "flyball.yaml"
    with serve(server(TIMED)) as served:
        result = init(path, "--url", served.url + "/", "--accelerator", "H100", "--usd-per-replica-hour", "2.5")
        assert result.exit_code == 0, result.output
        (endpoint,) = load(path).settings.endpoints
        assert (endpoint.name, endpoint.url, endpoint.mode) == ("m", served.url, "observe")
        assert list(endpoint.sources) == ["vllm"]
        assert endpoint.usd_per_replica_hour == 2.5
        assert endpoint.shape.accelerator == "H100"
        assert endpoint.shape.engine == {"max_model_len": 8192}
        text = path.read_text()
        assert "serves org/m, version 0.10.2, 2 engines" in text
        assert "time to first token has been 250 ms on average since its start" in text
        assert text in result.stdout
        checked = CliRunner().invoke(app, ["check", "-c", str(path), "--live"])
        assert checked.exit_code == 0, checked.output
        assert {request.method for request in served.requests} == {"GET"}


def test_what_is_not_told_is_left_for_a_person(tmp_path: Path) -> None:
    path = tmp_path / "flyball.yaml"
    with serve(server(models=False)) as served:
        assert init(path, "--url", served.url, "--name", "mine").exit_code == 0
    (endpoint,) = load(path).settings.endpoints
    assert endpoint.name == "mine"
    assert endpoint.usd_per_replica_hour is None
    assert endpoint.shape.engine == {}
    assert "# usd_per_replica_hour" in path.read_text()


def test_a_server_without_metrics_is_probed(tmp_path: Path) -> None:
    path = tmp_path / "flyball.yaml"
    with serve(server(path="/elsewhere")) as served:
        assert init(path, "--url", served.url).exit_code == 0
        assert {request.method for request in served.requests} == {"GET"}, "init itself sends nothing but reads"
    assert list(load(path).settings.endpoints[0].sources) == ["probe"]


def test_a_key_is_sent_and_only_its_reference_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "canary-key")
    path = tmp_path / "flyball.yaml"
    with serve(server()) as served:
        result = init(path, "--url", served.url, "--api-key", "${VLLM_API_KEY}")
        assert result.exit_code == 0, result.output
        assert {request.headers.get("authorization") for request in served.requests} >= {"Bearer canary-key"}
    assert "canary-key" not in path.read_text() + result.output
    key = load(path).settings.endpoints[0].api_key
    assert key is not None
    assert key.get_secret_value() == "canary-key"


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("--api-key", "written-out"), 2, "a secret is written into the file"),
        (("--api-key", "${NOT_SET_ANYWHERE}"), 2, "NOT_SET_ANYWHERE is not set"),
    ],
)
def test_a_key_that_is_no_reference_is_refused(tmp_path: Path, arguments: tuple[str, ...], code: int, why: str) -> None:
    path = tmp_path / "flyball.yaml"
    result = init(path, "--url", "http://127.0.0.1:9", *arguments)
    assert result.exit_code == code
    assert why in result.stderr
    assert not path.exists()


def test_nothing_is_written_where_nothing_is_known(tmp_path: Path) -> None:
    path = tmp_path / "flyball.yaml"
    refused = init(path, "--url", "http://127.0.0.1:9")
    with serve(answering("<html>hello</html>")) as page, serve(answering("litellm_x 1\n")) as proxy:
        strange, proxied = init(path, "--url", page.url), init(path, "--url", proxy.url)
    spelled = init(path, "--url", "127.0.0.1:8000")
    for result, why in (
        (refused, "refuses connections"),
        (strange, "is it the server's root?"),
        (proxied, "the LiteLLM proxy's"),
        (spelled, "Write http://HOST:PORT"),
    ):
        assert result.exit_code == 1, result.output
        assert why in result.stderr
    lone = init(path, "--accelerator", "H100")
    assert lone.exit_code == 2
    assert "--url" in lone.stderr
    assert not path.exists()
