"""The reference from settings to every place where people read it: chosen, learned, kept, shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.trace import NoOpTracer
from pydantic import ValidationError

from actuators.base import LiveState
from actuators.shape import Shape
from agent import references, views
from agent.apply import LEASE
from agent.clock import VirtualClock
from agent.metrics import Metrics
from agent.references import NoReference, References, choose, family
from agent.reflect import Reflector
from agent.report import weekly
from agent.settings import Settings
from agent.slack import message
from agent.store import Store, control, fleet, recommendations, windows
from agent.wiring import Environment, watched_of
from analyzers.whatif import calibrate as calibration
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from collectors.http import Http
from collectors.sessions import Sessions
from tests.agent.daemons import invoke
from tests.agent.records import T0, window
from tests.analyzers.whatif.reference_server import poisson
from tests.analyzers.whatif.reference_server import windows as served

LIMITS = EngineLimits(64, 4096, 200_000)
FAST = EngineModel(IterationCost(0.0085, 3e-5, 3e-8, 5e-5, 2e-9), LIMITS)
SLOW = EngineModel(FAST.iteration.scaled(1.5), LIMITS)
SHAPE = Shape(replicas=2, engine={"max_num_seqs": 64, "max_num_batched_tokens": 4096})
URL = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _quick_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "REPLAYED", 2_000)


def endpoint(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "url": URL, "objective": {"ttft_p95_s": 2.0}, **more}


def settings(*endpoints: Mapping[str, Any], **more: Any) -> Settings:
    return Settings.model_validate({"endpoints": list(endpoints), **more})


# -- which one ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama"),
        ("Qwen/Qwen2.5-7B", "qwen"),
        ("gpt-oss-20b", "gpt"),
        ("7B", None),
        (None, None),
    ],
)
def test_the_family_of_a_model(model: str | None, name: str | None) -> None:
    assert family(model) == name


def test_the_one_that_is_named_else_that_of_its_family_else_the_only_one() -> None:
    llama, qwen = (endpoint(n, role="reference") for n in ("l", "q"))
    models = {"l": "meta-llama/Llama-3.1-8B", "q": "Qwen/Qwen3-8B"}
    both = settings(endpoint("chat"), llama, qwen)
    assert choose(both.endpoint("chat"), "Llama-3.3-70B", both, models).name == "l"
    with pytest.raises(NoReference, match="l, q could each be the reference of chat; name one by `reference:`"):
        choose(both.endpoint("chat"), "gemma-3", both, models)
    named = settings(endpoint("chat", reference="q"), llama, qwen)
    assert choose(named.endpoint("chat"), "Llama-3.3-70B", named, models).name == "q"
    alone = settings(endpoint("chat"), llama)
    assert choose(alone.endpoint("chat"), "gemma-3", alone, models).name == "l"
    none = settings(endpoint("chat"))
    with pytest.raises(NoReference, match="no reference server stands; give one endpoint `role: reference`"):
        choose(none.endpoint("chat"), None, none, {})


def test_among_two_of_a_family_the_one_with_the_same_model() -> None:
    both = settings(endpoint("chat"), endpoint("a", role="reference"), endpoint("b", role="reference"))
    assert choose(both.endpoint("chat"), "llama-8b", both, {"a": "llama-8b", "b": "llama-70b"}).name == "a"


@pytest.mark.parametrize(
    ("mine", "other", "said"),
    [
        ({"reference": "gpu"}, {}, "'gpu' is no endpoint with `role: reference`"),
        ({"reference": "gpu", "role": "reference"}, {"role": "reference"}, "is a reference itself"),
    ],
)
def test_a_reference_that_is_none_is_refused(mine: dict[str, Any], other: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        settings(endpoint("chat", **mine), endpoint("gpu", **other))


# -- from windows to people ---------------------------------------------------------------------------------------------------------------


class House:
    """``chat``, two replicas at two dollars an hour that are 1.5 times as slow as ``gpu``, which costs one and serves a little."""

    def __init__(self, folder: Path, *, with_reference: bool = True) -> None:
        self.config = folder / "flyball.yaml"
        policy = {"stable_cycles": 1, "evidence_s": 1200}
        chat = endpoint("chat", usd_per_replica_hour=2.0, policy=policy, mode="approve")
        gpu = endpoint("gpu", usd_per_replica_hour=1.0, policy=policy, role="reference", objective={})
        data = {"endpoints": [chat, *([gpu] if with_reference else [])], "report": {"directory": str(folder)}}
        self.config.write_text(yaml.safe_dump(data))
        self.settings = settings(*data["endpoints"], report=data["report"], state_dir=folder)
        self.store = Store(f"sqlite:///{folder / 'flyball.db'}")
        self.store.upgrade()
        self.clock = VirtualClock(T0 + 1200)
        environment = Environment(Http(monotonic=self.clock.monotonic), self.clock, Sessions())
        self.watched = [watched_of(self.settings, e, environment) for e in self.settings.endpoints]
        seen = {"chat": served(SLOW, poisson(1.0, 1300.0, 1), replicas=2), "gpu": served(FAST, poisson(1.0, 1300.0, 2))}
        with self.store.write() as db:
            for name, rows in seen.items():
                windows.save(db, [replace(w, endpoint=name, start=T0 + w.start) for w in rows[:20]])
            counts = {"requests": 270.0, "prompt_tokens": 270 * 600.0, "output_tokens": 270 * 200.0}
            before = [window(T0 - (i + 1) * 300.0, duration_s=300.0, counts=counts) for i in range(30 * 12)]
            windows.save(db, before)  # a day that was no busier: what it brings is known
            lead = control.acquire(db, LEASE, "here", 1e9)
        assert lead is not None
        self.lead = lead
        for watched in self.watched:
            watched.saw(
                LiveState(SHAPE if watched.settings.name == "chat" else SHAPE.with_(replicas=1), "v1", ready=True)
            )
        self.reflector = Reflector(self.settings, self.store, self.clock, Metrics(), NoOpTracer())

    def cycle(self) -> None:
        asyncio.run(self.reflector.cycle_all(self.watched, self.lead))

    def codes(self) -> dict[str, dict[str, Any]]:
        with self.store.read() as db:
            return {f["code"]: f["body"] for f in fleet.findings(db, "chat")}


def test_from_the_windows_to_every_place_where_it_is_read(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.cycle()
    view = views.references(house.store, house.settings, house.clock.now())
    (chat,) = view["endpoints"]
    found = chat["comparison"]
    assert chat["lacks"] is None
    assert (found["reference"], found["replicas"]) == ("gpu", 2)
    assert found["ratios"]["e2e_p50_s"]["ratio"]["mid"] == pytest.approx(1.5, rel=0.2)
    assert found["ratios"]["usd_per_1k_tokens"]["ratio"]["mid"] == pytest.approx(
        4.0
    )  # two of two dollars, beside one of one
    assert house.codes()["SLOWER_THAN_REFERENCE"]["cause"]["code"] == "OWN"
    (gpu,) = view["references"]
    assert gpu["use"]["usd_per_month"] == 730.0
    assert gpu["use"]["occupancy"] is not None

    with house.store.read() as db:
        (row,) = recommendations.listed(db, endpoint="chat")
    assert row["body"]["reference"]["text"] == found["text"]
    assert f"*Reference:* it {found['text']}" in json.dumps(message.recommendation(row, None, URL))

    table = invoke("reference", "-c", house.config, env={"COLUMNS": "220"})
    assert table.exit_code == 0, table.output
    assert f"chat {found['text']}" in table.stdout
    shown = invoke("recommendations", "show", row["id"], "-c", house.config)
    assert f"reference: it {found['text']}" in " ".join(shown.stdout.split())
    answer = json.loads(invoke("reference", "chat", "-c", house.config, "-o", "json").stdout)
    assert answer["endpoints"] == view["endpoints"]
    assert invoke("reference", "chta", "-c", house.config).exit_code == 2

    report = weekly(house.store, house.settings, start=T0, end=T0 + 1200, now=T0 + 1200)
    assert report is not None
    html = report.read_text(encoding="utf-8")
    assert f"chat {found['text']}." in html
    assert "$730 a month" in html


def test_without_a_reference_everything_works_and_says_what_is_missing(tmp_path: Path) -> None:
    house = House(tmp_path, with_reference=False)
    house.cycle()
    (chat,) = views.references(house.store, house.settings, house.clock.now())["endpoints"]
    assert chat == {
        "name": "chat",
        "comparison": None,
        "lacks": "no reference server stands; give one endpoint `role: reference`",
    }
    with house.store.read() as db:
        (row,) = recommendations.listed(db, endpoint="chat")
    assert row["body"]["reference"] is None
    assert "chat: not compared: no reference server stands" in " ".join(
        invoke("reference", "-c", house.config).stdout.split()
    )


def test_a_reference_without_traffic_of_its_own_is_known_from_when_it_had_some(tmp_path: Path) -> None:
    house = House(tmp_path)
    chat = house.settings.endpoint("chat")
    learned = References(house.settings, house.store)
    kept = learned.of(chat, None, chat.wanted(), house.clock.now(), house.store.write)
    long_after = house.clock.now() + references.LOOK_BACK_S + 86_400.0
    quiet = [replace(w, endpoint="gpu", start=long_after - 600 + 60 * i) for i, w in enumerate(_quiet())]
    with house.store.write() as db:
        windows.save(db, quiet)
    again = References(house.settings, house.store).of(chat, None, chat.wanted(), long_after, house.store.write)
    assert again.calibrated.as_dict() == kept.calibrated.as_dict()


def test_a_reference_of_which_nothing_is_known_says_what_would_help(tmp_path: Path) -> None:
    house = House(tmp_path)
    chat = house.settings.endpoint("chat")
    with pytest.raises(NoReference, match=r"nothing is known of gpu's engine yet: .*`flyball simulate` can send some"):
        References(house.settings, house.store).of(chat, None, chat.wanted(), T0 - 3600.0, house.store.write)


def _quiet() -> list[Any]:
    rows = served(FAST, poisson(1.0, 700.0, 1))[:10]
    return [replace(w, counts={"requests": 0.0, "prompt_tokens": 0.0, "output_tokens": 0.0}, sketches={}) for w in rows]
