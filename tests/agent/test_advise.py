"""`flyball advise`: what it answers, what it refuses, its page, and where prices come from."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from agent import charts
from agent.advise.page import page
from agent.cli import app, output
from agent.store import Store, fleet, windows
from tests.agent.records import NASTY, T0
from tests.agent.telemetry import MODEL, SHAPE

OFFERS: dict[str, Any] = {
    "schema_version": 1,
    "source": "contract",
    "as_of": "2026-11-01",
    "offers": {
        "api": {
            "option": "pay-per-token", "kind": "quota", "speed": {"ttft_s": 0.4, "tpot_s": 0.01},
            "usd_per_1k_input_tokens": 0.0004, "usd_per_1k_output_tokens": 0.0016,
        },
        "function": {
            "option": "serverless", "kind": "serverless", "concurrency": 8, "cold_start_s": 30, "most": 20, "idle_s": 120,
            "speed": {"ttft_s": 0.4, "tpot_s": 0.01}, "usd_per_billed_hour": 2.0,
        },
        "gpu": {"option": "self-hosted", "engine": "engine.json", "usd_per_replica_hour": 3.5},
        "box": {"option": "dedicated", "kind": "machine", "carries_per_s": 2.0},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.stdout, "width", 240)
    monkeypatch.setattr(output.console, "width", 240)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """An hour of one request in two seconds."""
    rng = np.random.default_rng(3)
    rows = [f"{at:.3f},300,100" for at in np.cumsum(rng.exponential(2.0, 1800))]
    path = tmp_path / "traffic.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture
def offers(tmp_path: Path) -> Path:
    (tmp_path / "engine.json").write_text(json.dumps(MODEL.to_dict()))
    return written(tmp_path, OFFERS)


def written(folder: Path, data: Any) -> Path:
    path = folder / "offers.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def run(*words: str | Path, code: int = 0) -> Result:
    found = CliRunner().invoke(app, ["advise", *map(str, words)])
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    return found


def asked(*words: str | Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(run(*words, "-o", "json").stdout)
    return told


def by_name(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {o["name"]: o for o in told["options"]}


def test_the_answer_has_its_schema(trace: Path, offers: Path) -> None:
    told = asked("--workload", trace, "--offers", offers, "--needs", "low-latency", "--objective", "e2e_p95=8")
    assert told["schema_version"] == 1
    assert told["workload"]["requests"] == 1800
    assert told["objective"] == [{"target": "e2e_p95_s", "limit": 8.0}]
    assert {c["name"]: c["why"] for c in told["conditions"]}["low-latency"] == "asked for"
    rows = by_name(told)
    api, gpu, box = rows["api"], rows["gpu"], rows["box"]
    assert api["usd_per_request"] == pytest.approx(300 * 0.0004 / 1000 + 100 * 0.0016 / 1000)
    assert api["usd_per_hour"] == pytest.approx(api["usd_per_request"] * told["workload"]["requests_per_s"] * 3600)
    assert api["usd_per_1k_tokens"] == pytest.approx(api["usd_per_request"] / 0.4)
    assert (api["price_source"], api["price_as_of"]) == ("contract", "2026-11-01")
    assert (gpu["units"], gpu["usd_per_hour"], gpu["meets_objective"]) == (1, 3.5, True)
    assert gpu["carries_per_s"] > 1
    assert (box["usd_per_hour"], box["lacking"], box["latency_s"]["e2e_p95_s"]) == (
        None,
        ["usd_per_replica_hour"],
        None,
    )
    assert [c["verdict"] for c in rows["function"]["criteria"] if c["condition"] == "low-latency"] == ["against"]
    assert told["options"][0]["name"] == told["recommended"]
    assert [o["rank"] for o in told["options"]] == list(range(1, len(told["options"]) + 1))
    assert any("box (usd_per_replica_hour)" in note for note in told["notes"])
    assert any("nobody offers" in note and "provisioned" in note for note in told["notes"])


def test_ten_users_and_a_hundred(trace: Path, offers: Path) -> None:
    told = asked(
        "--workload",
        trace,
        "--offers",
        offers,
        "--objective",
        "e2e_p95=8",
        "--users",
        "10,100",
        "--calls-per-user-hour",
        "36",
    )
    rows = by_name(told)
    few, many = rows["gpu"]["users"]
    assert (few["users"], few["usd_per_hour"], few["usd_per_call"]) == (10, 3.5, pytest.approx(3.5 / 360))
    assert many["usd_per_call"] == pytest.approx(few["usd_per_call"] / 10)
    assert all(u["usd_per_call"] == pytest.approx(rows["api"]["usd_per_request"]) for u in rows["api"]["users"])
    assert [u["usd_per_call"] for u in rows["box"]["users"]] == [None, None]


def test_the_break_even_is_where_both_cost_the_same(trace: Path, offers: Path) -> None:
    told = asked(
        "--workload", trace, "--offers", offers, "--objective", "e2e_p95=8", "--only", "pay-per-token,self-hosted"
    )
    (at,) = told["break_even"]
    each = by_name(told)["api"]["usd_per_request"]
    assert at["requests_per_s"] == pytest.approx(3.5 / 3600 / each)
    assert at["share_of_capacity"] == pytest.approx(at["requests_per_s"] / by_name(told)["gpu"]["carries_per_s"])
    assert [r["name"] for r in told["cheapest"]][:2] == ["api", "gpu"]
    assert told["cheapest"][1]["from_requests_per_s"] == pytest.approx(at["requests_per_s"], rel=1e-6)


def test_without_traffic_the_conditions_decide() -> None:
    told = asked("--needs", "private-data,steady", "--needs", "custom-model")
    assert (told["workload"], told["recommended"]) == (None, "self-hosted")
    assert told["options"][-1]["excluded"]
    assert "the conditions alone decide" in told["notes"][0]
    said = run("--needs", "private-data").stdout
    assert "excluded by private-data" in said
    assert "$/h" not in said


def test_the_tables_say_it(trace: Path, offers: Path) -> None:
    said = run("--workload", trace, "--offers", offers, "--objective", "e2e_p95=8").stdout
    assert "requests/s of 300 + 100 tokens" in said.splitlines()[0]
    assert "few-at-once" in said
    assert re.search(r"from [0-9.]+ requests/s: api costs least", said)
    assert "gpu costs as much as api at" in said
    assert "CHOICE by the conditions alone it would be dedicated (box); its cost is not known" in said
    assert "BILLED_BY_THE_HOUR" not in said, "no offer is a managed endpoint"


def test_a_price_of_ones_own_decides(trace: Path, offers: Path) -> None:
    words = (
        "--workload",
        trace,
        "--offers",
        offers,
        "--objective",
        "e2e_p95=8",
        "--only",
        "pay-per-token,dedicated,self-hosted",
    )
    assert asked(*words)["recommended"] == "api"
    told = asked(*words, "--price", "gpu.usd_per_replica_hour=0.1")
    assert told["recommended"] == "gpu"
    assert by_name(told)["gpu"]["price_source"] == "--price"


def test_token_prices_of_litellms_list(trace: Path, tmp_path: Path) -> None:
    prices = tmp_path / "model_prices.json"
    row = {
        "input_cost_per_token": 4e-7,
        "output_cost_per_token": 1.6e-6,
        "input_cost_per_token_flex": 2e-7,
        "output_cost_per_token_flex": 8e-7,
        "deprecation_date": "2027-04-14",
        "mode": "chat",
    }
    prices.write_text(json.dumps({"azure/gpt-4.1-mini": row, "azure/whisper": {"input_cost_per_second": 1e-4}}))

    def offer(model: str, **more: Any) -> Path:
        return written(
            tmp_path,
            {
                "schema_version": 1,
                "offers": {"mini": {"option": "models-as-a-service", "kind": "tokens", "model": model, **more}},
            },
        )

    words = ("--workload", trace, "--token-prices", prices, "--offers")
    told = asked(*words, offer("azure/gpt-4.1-mini"))
    (mini,) = (o for o in told["options"] if o["offered"])
    assert mini["prices"] == {
        "usd_per_1k_input_tokens": pytest.approx(0.0004),
        "usd_per_1k_output_tokens": pytest.approx(0.0016),
    }
    assert mini["price_source"] == "model_prices.json, azure/gpt-4.1-mini"
    assert "mini: azure/gpt-4.1-mini is deprecated from 2027-04-14 on" in told["notes"]
    flex = asked(*words, offer("azure/gpt-4.1-mini", service_tier="flex"))
    assert by_name(flex)["mini"]["prices"]["usd_per_1k_output_tokens"] == pytest.approx(0.0008)
    assert by_name(flex)["mini"]["price_source"] == "model_prices.json, azure/gpt-4.1-mini, flex"
    assert by_name(flex)["mini"]["usd_per_hour"] == pytest.approx(by_name(told)["mini"]["usd_per_hour"] / 2)
    no_tier = run(*words, offer("azure/gpt-4.1-mini", service_tier="priority"), code=2).stderr
    assert "azure/gpt-4.1-mini, priority has no price" in no_tier
    assert "flex" in run(*words, offer("azure/gpt-4.1-mini", service_tier="flexy"), code=2).stderr
    own = asked(*words, offer("azure/gpt-4.1-mini", usd_per_1k_output_tokens=0.001))
    assert by_name(own)["mini"]["prices"]["usd_per_1k_output_tokens"] == 0.001
    assert "did you mean azure/gpt-4.1-mini?" in run(*words, offer("azure/gpt-4.1-mni"), code=2).stderr
    assert "no price by the token" in run(*words, offer("azure/whisper"), code=2).stderr


def test_an_endpoint_is_an_option_itself(telemetry: Path, offers: Path) -> None:
    told = asked(
        "-c",
        telemetry,
        "--endpoint",
        "chat",
        "--since",
        "35m",
        "--offers",
        offers,
        "--only",
        "pay-per-token,dedicated,self-hosted",
    )
    chat = by_name(told)["chat"]
    assert (chat["option"], chat["units"], chat["usd_per_hour"]) == ("dedicated", 1, 3.5)
    assert chat["meets_objective"] is True
    assert chat["latency_s"]["ttft_p95_s"] > 0
    assert "as it is now: 1 x a100" in chat["notes"][0]
    assert told["objective"] == [{"target": "ttft_p95_s", "limit": 1.0}]
    assert told["workload"]["of"] == "chat"


def test_a_reference_server_is_an_option_for_the_others(telemetry: Path, tmp_path: Path) -> None:
    """What was seen of it is the model; the traffic is that of the endpoint that is asked about."""
    (tmp_path / "flyball.db").write_bytes((telemetry.parent / "flyball.db").read_bytes())
    settings = yaml.safe_load(telemetry.read_text())
    yardstick = {**settings["endpoints"][0], "name": "yardstick", "role": "reference"}
    settings["endpoints"].append(yardstick)
    (tmp_path / "flyball.yaml").write_text(yaml.safe_dump(settings))
    words = ("-c", tmp_path / "flyball.yaml", "--endpoint", "chat", "--since", "35m")
    told = asked(*words)
    assert any("yardstick itself is not among the options" in note for note in told["notes"]), "nothing was seen of it"
    store = Store(f"sqlite:///{tmp_path}/flyball.db")
    with store.write() as db:
        seen = windows.load(db, "chat", "vllm", 0.0, 4e9, 60.0)
        windows.save(db, [replace(w, endpoint="yardstick") for w in seen])
        fleet.saw_shape(
            db,
            "yardstick",
            {
                "shape": SHAPE.as_dict(),
                "shape_version": "v",
                "ready": True,
                "detail": "",
                "seen_at": 0.0,
                "price_per_hour": 3.5,
            },
        )
    store.close()
    rows = by_name(asked(*words))
    assert "the reference server: 1 x a100" in rows["yardstick"]["notes"][0]
    assert rows["yardstick"]["carries_per_s"] == pytest.approx(rows["chat"]["carries_per_s"])


def test_an_endpoint_without_telemetry_has_no_traffic(telemetry: Path, tmp_path: Path, sqlite_template: Path) -> None:
    (tmp_path / "flyball.yaml").write_bytes(telemetry.read_bytes())
    (tmp_path / "flyball.db").write_bytes(sqlite_template.read_bytes())
    said = run("-c", tmp_path / "flyball.yaml", "--endpoint", "chat", code=1)
    assert said.stdout == ""
    assert "NO_TRAFFIC" in said.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--needs", "low-latncy"), "did you mean low-latency?"),
        (("--only", "severless"), "did you mean serverless?"),
        (("--workload", "a.csv", "--endpoint", "chat"), "not both"),
        (("--users", "many"), "write how many"),
        (("--users", "0"), "write how many"),
        (("--calls-per-user-hour", "-1"), "above 0"),
        (("--objective", "ttft_p95"), "NAME=DURATION"),
        (("--offers", "/nowhere/offers.yaml"), "cannot be read"),
        (("--price", "gpu.usd_per_replica_hour=1"), "known: none"),
        (("--price", "gpu=1"), "OFFER.PRICE=USD"),
        (("--workload", "/nowhere/t.csv"), "/nowhere/t.csv"),
    ],
)
def test_wrong_questions_are_answered_in_one_line(words: tuple[str, ...], says: str) -> None:
    said = run(*words, code=2).stderr
    assert says in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("[", "is no YAML"),
        ("offers: 3", "expected"),
        ("{schema_version: 2, offers: {}}", "schema_version: 2"),
        ("{schema_version: 1, ofers: {}, offers: {}}", "did you mean offers?"),
        ("{schema_version: 1, offers: {gpu: 3}}", "offers.gpu must be an object"),
        ("{schema_version: 1, offers: {gpu: {option: dedicated, engine: none.json}}}", "none.json"),
        (
            "{schema_version: 1, offers: {a: {option: pay-per-token, kind: tokens, model: x, usd_per_1k_input_tokens: 1}}}",
            "no.json: cannot be read",
        ),
    ],
)
def test_wrong_offers_are_named(tmp_path: Path, data: str, says: str) -> None:
    path = tmp_path / "offers.yaml"
    path.write_text(data)
    assert says in run("--offers", path, "--token-prices", tmp_path / "no.json", code=2).stderr


# -- the page -----------------------------------------------------------------------------------------------------------


def test_the_page(trace: Path, offers: Path, tmp_path: Path) -> None:
    made = tmp_path / "advice.html"
    told = asked(
        "--workload", trace, "--offers", offers, "--needs", "low-latency", "--objective", "e2e_p95=8", "--html", made
    )
    html = made.read_text()
    assert html.count("<svg") == 1
    assert "<script" not in html
    assert "http" not in re.sub(r"http://www\.w3\.org", "", html), "it needs no network"
    assert "<h1>Which deployment: traffic.csv</h1>" in html
    assert f"<b>{told['recommended']}</b>recommended" in html
    assert "Prices: contract, as of 2026-11-01" in html
    assert "not known: usd_per_replica_hour" in html
    assert html.count('<tr class="best">') == 1


def test_the_page_of_conditions_alone(tmp_path: Path) -> None:
    made = tmp_path / "advice.html"
    run("--needs", "prototype", "--html", made)
    html = made.read_text()
    assert "<svg" not in html
    assert "$" not in html.partition("<body>")[2].replace("$/", "")


def test_text_from_elsewhere_is_text(trace: Path, tmp_path: Path) -> None:
    offer = {"option": "dedicated", "kind": "machine", "usd_per_replica_hour": 1.0, "note": NASTY, "source": NASTY}
    told = asked("--workload", trace, "--offers", written(tmp_path, {"schema_version": 1, "offers": {NASTY: offer}}))
    html = page(told, {NASTY: [(1.0, 2.0)]}, T0)
    assert NASTY not in html
    assert "&lt;script&gt;" in html


def test_the_chart_marks_the_rate_and_the_crossings() -> None:
    curves = {"api": [(0.1, 0.1), (10.0, 10.0)], "gpu": [(0.1, 3.0), (10.0, 3.0)], "free": [(0.1, 0.0), (10.0, 0.0)]}
    at = [{"from_requests_per_s": 0.1, "usd_per_hour": 0.1}, {"from_requests_per_s": 3.0, "usd_per_hour": 3.0}]
    svg = charts.costs(curves, 1.0, at)
    assert svg is not None
    assert svg.count('stroke-dasharray="4,3"') == 1
    assert "requests per second" in svg
    assert charts.costs({"free": curves["free"]}, None, []) is None
