"""A newcomer's first minutes: the README's own settings, one of them wrong, beside a real vLLM server (CPU) under load.

The settings state ``max_num_seqs: 64``, and the server was started with 4. Everything else is as Flyball comes: windows, analyses, policy.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent import views
from tests.actuators.support import free_port
from tests.agent.daemons import ROOT, Daemon, flyball, running
from tests.real.vllm_parts import serving

pytestmark = [pytest.mark.real, pytest.mark.alone, pytest.mark.timeout(1500)]

NAME, STATED, TRUE = "chat", 64, 4
#: They would all run at once if the settings were right; as it is, most of them wait for seconds, on a faster machine too.
USERS = 48
#: From the first reading to the first finding, and what is waited for at most.
FIRST_FINDING_S, PATIENCE_S = 300.0, 600.0
BREACH = "OBJECTIVE_BREACH_TTFT_P95_S"


def test_first_contact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def say(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"{text}\n")

    with serving(tmp_path, max_num_seqs=TRUE) as url:
        config = readme_settings(tmp_path, url)
        with load(url, tmp_path), running(config) as daemon:
            daemon.until(lambda: _was_read(daemon), "the server was read")
            started = time.monotonic()
            first = _found(daemon, lambda codes: len(codes) > 0, "something is found")
            first_s = time.monotonic() - started
            say(f"\nfirst finding after {first_s:.0f} s: {', '.join(sorted(first))}")
            assert first_s <= FIRST_FINDING_S
            found = _found(daemon, lambda codes: {"SETTINGS_CONTRADICT", BREACH} <= codes, "what is wrong is found")
            # Three windows that show it: three minutes, and more where the machine stalls so that the users pause.
            named_s = time.monotonic() - started
            say(f"the setting and the breach are named after {named_s:.0f} s: {', '.join(sorted(found))}")
            _is_named_everywhere(daemon)
            _nothing_is_proposed_on_the_models_word(daemon)

            config.write_text(config.read_text().replace(f"max_num_seqs: {STATED}}}", f"max_num_seqs: {TRUE}}}"))
            corrected, corrected_at = time.monotonic(), time.time()
            daemon.signal(signal.SIGHUP)
            found = _found(
                daemon,
                lambda codes: "SETTINGS_CONTRADICT" not in codes and {"BATCH_FULL", BREACH} <= codes,
                "the contradiction is gone, and the batch is seen to be full",
            )
            say(f"the corrected setting is used after {time.monotonic() - corrected:.0f} s: {', '.join(sorted(found))}")
            endpoint = daemon.until(lambda: _judged_since(daemon, corrected_at), "it is judged by the truth")
            assert endpoint["shape"]["engine"] == {"max_num_seqs": TRUE}
            assert endpoint["decision"]["state"] == "too_small"
            assert "doubtful" not in flyball("check", "-c", str(config), "--live").stdout
            assert daemon.stop() == 0


def readme_settings(folder: Path, url: str) -> Path:
    """The file that the README tells to write, with the server's address, and the page on a free port."""
    block = re.search(
        r"cat > flyball.yaml <<'YAML'\n(.*?)\nYAML\n", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert block is not None
    text = block.group(1).replace("http://127.0.0.1:8000", url)
    assert url in text
    assert f"max_num_seqs: {STATED}}}" in text
    config = folder / "flyball.yaml"
    config.write_text(f"{text}\nweb: {{port: {free_port()}}}\n", encoding="utf-8")
    return config


@contextmanager
def load(url: str, folder: Path) -> Iterator[None]:
    """Users who each wait for their answer, sent by the product's own command for as long as the block lasts."""
    how = "--duration 1800 --allow-production --exact-output --prompt-tokens fixed:64 --output-tokens uniform:100:200"
    words = ["simulate", "--url", url, "--concurrency", str(USERS), *how.split()]
    log = folder / "simulate.log"
    with log.open("wb") as file:
        line, env = [sys.executable, "-m", "agent", *words], {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(line, stdout=file, stderr=file, cwd=folder, env=env)
    try:
        yield
        assert process.poll() is None, f"the load ended: {log.read_text(errors='replace')}"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_named_everywhere(daemon: Daemon) -> None:
    """On the command line as table and as JSON, on the page, and by the check that a newcomer makes first."""
    question = f"is max_num_seqs really {STATED}?"
    table = flyball("endpoints", "-c", str(daemon.config))
    assert table.returncode == 0, table.stderr
    assert "SETTINGS_CONTRADICT" in table.stdout
    assert re.search(
        rf"{NAME}: contradiction, .*never more than {TRUE} sequences run while \d+ wait: ",
        " ".join(table.stdout.split()),
    )
    endpoint = _cli_endpoint(daemon)
    assert endpoint["decision"]["state"] == "contradiction"
    assert question in endpoint["decision"]["text"]
    assert endpoint["decision"]["reasons"], "why nothing is proposed"
    assert question in next(f["text"] for f in endpoint["findings"] if f["code"] == "SETTINGS_CONTRADICT")
    status, page = daemon.get(f"/endpoints/{NAME}")
    assert status == 200
    assert page.count(question) == 2, "in the finding, and in how the endpoint stands"
    check = flyball("check", "-c", str(daemon.config), "--live")
    assert check.returncode == 0, check.stdout
    assert f"is shape.engine.max_num_seqs really {STATED}?" in check.stdout


def _nothing_is_proposed_on_the_models_word(daemon: Daemon) -> None:
    """More replicas at the most: of the limit nothing is known but that it is not what is stated."""
    decision = _cli_endpoint(daemon)["decision"]
    _, proposed, what = decision["text"].partition("; proposed: ")
    if proposed:
        assert re.fullmatch(r"replicas 1 → [2-4](; .*)?", what), decision
    with daemon.store() as store:
        for row in views.recommendation_list(store)["recommendations"]:
            assert re.fullmatch("replicas 1 → [2-4]", row["what"]), row


def _found(daemon: Daemon, suits: Callable[[set[str]], bool], what: str) -> set[str]:
    """The codes of what is found, once they suit; that something is not known yet is no finding."""

    def look() -> set[str] | None:
        time.sleep(1)
        codes = {f["code"] for f in _endpoint(daemon)["findings"] if f["kind"] != "insufficient_data"}
        return codes if suits(codes) else None

    return daemon.until(look, what, limit_s=PATIENCE_S)


def _was_read(daemon: Daemon) -> bool:
    return daemon.get("/healthz")[0] != 0 and any(source["last_ok_at"] for source in _endpoint(daemon)["sources"])


def _judged_since(daemon: Daemon, at: float) -> dict[str, Any] | None:
    endpoint = _cli_endpoint(daemon)
    return endpoint if endpoint["decision"]["at"] > at else None


def _endpoint(daemon: Daemon) -> dict[str, Any]:
    endpoint: dict[str, Any] = daemon.json(f"/endpoints/{NAME}.json")["endpoint"]
    return endpoint


def _cli_endpoint(daemon: Daemon) -> dict[str, Any]:
    (endpoint,) = json.loads(flyball("endpoints", "-c", str(daemon.config), "-o", "json").stdout)["endpoints"]
    found: dict[str, Any] = endpoint
    return found
