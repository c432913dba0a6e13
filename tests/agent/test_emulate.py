"""`flyball emulate`: an engine file as a server, whose answers come when a replay says so, and whose faults come when they are asked for."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent.cli import app

ENGINE: dict[str, Any] = {
    "schema_version": 1,
    "iteration": {
        "base_s": 0.02, "per_sequence_s": 0.0002, "per_context_token_s": 1e-7, "per_prefill_token_s": 1e-4,
        "per_prefill_context_token_s": 0.0, "prefill_base_s": 0.005, "expert_read_s": 0.004, "expert_share": 0.1,
    },
    "limits": {"max_num_seqs": 16, "max_num_batched_tokens": 2048, "kv_tokens": 40_000, "block_size": 16, "max_model_len": 4096},
    "chunked_prefill": True,
    "source": {"model": "org/tiny"},
}  # fmt: skip


def file(folder: Path, **changes: Any) -> Path:
    path = folder / "engine.json"
    path.write_text(json.dumps({**ENGINE, **changes}))
    return path


@contextmanager
def twin(engine: Path, *options: str) -> Iterator[int]:
    """The command as a process; its port."""
    command = [sys.executable, "-m", "agent", "emulate", "--engine", str(engine), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert " on 127.0.0.1:" in line, line
            yield int(line.rsplit(":", 1)[1])
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text) if text.startswith("{") else text
    finally:
        connection.close()


def test_it_speaks_openai_and_vllm_and_fails_on_request(tmp_path: Path) -> None:
    with twin(file(tmp_path)) as port:
        assert ask(port, "GET", "/health")[0] == 200
        status, models = ask(port, "GET", "/v1/models")
        assert (status, models["data"][0]["id"], models["data"][0]["max_model_len"]) == (200, "org/tiny", 4096)
        request = {"model": "org/tiny", "prompt": "a b c", "max_tokens": 5, "ignore_eos": True}
        status, answer = ask(port, "POST", "/v1/completions", request)
        assert (status, answer["usage"]["completion_tokens"]) == (200, 5)
        status, page = ask(port, "GET", "/metrics")
        assert 'vllm:generation_tokens_total{engine="0",model_name="org/tiny"} 5.0' in page
        assert ask(port, "PUT", "/emulated/faults", {"fail": 1.0}) == (200, {"fail": 1.0, "slow": 1.0, "stick": False})
        assert ask(port, "POST", "/v1/completions", request)[0] == 500
        assert ask(port, "PUT", "/emulated/faults", {"slow": 0})[0] == 422
        assert ask(port, "PUT", "/emulated/faults", {"sloow": 2})[0] == 422
        assert ask(port, "GET", "/emulated/faults")[1]["fail"] == 1.0


def test_stuck_it_lets_nothing_out_until_it_is_told_to(tmp_path: Path) -> None:
    with twin(file(tmp_path), "--stick") as port:
        request = {"prompt": "a b c", "max_tokens": 2, "ignore_eos": True}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("POST", "/v1/completions", json.dumps(request))
        with pytest.raises(TimeoutError):
            connection.getresponse()
        connection.close()
        assert ask(port, "GET", "/health")[0] == 200, "nobody is told"
        ask(port, "PUT", "/emulated/faults", {"stick": False})
        assert ask(port, "POST", "/v1/completions", request)[0] == 200


def test_slow_every_iteration_takes_so_many_times_as_long(tmp_path: Path) -> None:
    """20 iterations of 24 ms and more, each ten times as long from the start: no machine is so fast that they take less."""
    with twin(file(tmp_path), "--slow", "10") as port:
        begin = time.monotonic()
        assert ask(port, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 20, "ignore_eos": True})[0] == 200
        assert time.monotonic() - begin > 10 * 20 * 0.02


def test_it_fails_the_share_that_it_was_asked_for(tmp_path: Path) -> None:
    with twin(file(tmp_path), "--fail", "0.5", "--seed", "1") as port:
        answers = [ask(port, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 1})[0] for _ in range(40)]
    assert set(answers) == {200, 500}
    assert 10 <= answers.count(500) <= 30


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"accept_length": 2.5}, "speculative decoding"),
        ({"chunked_prefill": False}, "whole-prompt prefill"),
        ({"limits": {}}, "max_num_seqs"),
    ],
)
def test_what_it_does_not_emulate_is_said_before_it_starts(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["emulate", "--engine", str(file(tmp_path, **changes))])
    assert done.exit_code == 2
    assert said in done.stderr


def test_of_another_kind_there_is_no_twin(tmp_path: Path) -> None:
    path = tmp_path / "vm.json"
    path.write_text('{"schema_version": 1, "kind": "quota", "requests_per_minute": 60, "service_s": 1.0}')
    done = CliRunner().invoke(app, ["emulate", "--engine", str(path)])
    assert done.exit_code == 2
    assert str(path) in done.stderr
