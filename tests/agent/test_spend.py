"""What was really spent: tokens by their kind at the price of their moment, what is not known, and 1,000 tokens at the objective's rate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from actuators.base import LiveState
from actuators.shape import Shape
from agent import spend
from agent.clock import WallClock
from agent.configfile import load
from agent.settings import Settings
from agent.store import Store, prices, windows
from agent.watch import WatchedEndpoint
from agent.wiring import catalogue_of
from analyzers.money import Cost, Tariff, Unit
from analyzers.whatif import calibrate
from collectors.window import Window
from tests.agent.records import T0

MINUTE = 60.0


def settings(**endpoint: Any) -> Settings:
    return Settings.model_validate({"endpoints": [{"name": "chat", "url": "http://127.0.0.1:1", **endpoint}]})


def window(number: int, *, coverage: float = 1.0, **counts: float) -> Window:
    return Window("chat", "vllm", T0 + MINUTE * number, MINUTE, coverage, counts=counts)


TOKENS: Mapping[str, float] = {
    "requests": 10.0,
    "prompt_tokens": 1000.0,
    "cached_prompt_tokens": 400.0,
    "output_tokens": 500.0,
}
BY_TOKEN = {"usd_per_1k_input_tokens": 2.0, "usd_per_1k_cached_input_tokens": 1.0, "usd_per_1k_output_tokens": 8.0}


class ReadOnly:
    """An actuator that is never called."""


def billed(chosen: Settings, shape: Shape, one: Window) -> float | None:
    """What the daemon binds to a window."""
    endpoint = chosen.endpoints[0]
    watched = WatchedEndpoint(endpoint, {}, ReadOnly(), catalogue_of(chosen, endpoint))  # type: ignore[arg-type]
    watched.saw(LiveState(shape, "v", ready=True))
    return watched.entry_of(one).cost_usd


def test_input_cached_and_output_tokens_are_billed_apart() -> None:
    assert billed(settings(**BY_TOKEN), Shape(), window(0, **TOKENS)) == pytest.approx(0.6 * 2 + 0.4 * 1 + 0.5 * 8)


def test_cached_tokens_without_a_price_of_their_own_cost_as_any_other() -> None:
    without = {name: usd for name, usd in BY_TOKEN.items() if "cached" not in name}
    assert billed(settings(**without), Shape(), window(0, **TOKENS)) == pytest.approx(1.0 * 2 + 0.5 * 8)


def test_replicas_and_tokens_may_both_be_paid_for() -> None:
    both = settings(**BY_TOKEN, usd_per_replica_hour=60.0)
    assert billed(both, Shape(replicas=2), window(0, **TOKENS)) == pytest.approx(2.0 + 5.6)


@pytest.mark.parametrize("one", [window(0, coverage=0.5, **TOKENS), window(0, requests=1.0), window(0, coverage=0.0)])
def test_tokens_that_were_not_wholly_seen_have_no_known_cost(one: Window) -> None:
    assert billed(settings(**BY_TOKEN), Shape(), one) is None


def test_each_kind_at_the_price_of_its_moment(store: Store) -> None:
    rows = [window(i, **TOKENS) for i in range(4)]
    with store.write() as db:
        known = {("endpoint:chat", Unit.INPUT_1K): 2.0, ("endpoint:chat", Unit.OUTPUT_1K): 8.0}
        assert prices.note(db, known, T0 - 1) == 2
        assert prices.note(db, known, T0) == 0, "nothing changed"
        assert prices.note(db, {("endpoint:chat", Unit.OUTPUT_1K): 10.0}, T0 + 2 * MINUTE) == 1
    with store.read() as db:
        found = spend.by_kind(rows, prices.history(db, "endpoint:chat"))
    assert (found["input"].tokens, found["input"].usd) == (2400.0, pytest.approx(4.8))
    assert (found["cached_input"].tokens, found["cached_input"].usd) == (1600.0, pytest.approx(3.2))
    assert (found["output"].tokens, found["output"].usd) == (2000.0, pytest.approx(2 * 4.0 + 2 * 5.0))


def test_kinds_that_nobody_told_are_not_known() -> None:
    found = spend.by_kind([window(0, requests=1.0, prompt_tokens=1000.0)], Tariff.of({Unit.INPUT_1K: 2.0}))
    assert (found["input"].tokens, found["input"].usd) == (1000.0, 2.0)
    assert (found["cached_input"].tokens, found["output"].tokens, found["output"].usd) == (None, None, None)


def test_what_a_span_cost_and_what_is_not_known_of_it(store: Store) -> None:
    with store.write() as db:
        windows.save(db, [window(i, **TOKENS) for i in range(30)], {"chat": Tariff.of({Unit.HOUR: 6.0})})
    with store.read() as db:
        whole, half = (
            spend.of_endpoint(db, settings(), settings().endpoints[0], T0, T0 + minutes * MINUTE)
            for minutes in (30, 60)
        )
    assert whole["usd"] == half["usd"] == pytest.approx(3.0)
    assert (whole["lacking"], half["lacking"]) == ([], ["hours without a window"])
    assert whole["usd_per_1k_tokens"] == pytest.approx(3.0 / 45)
    assert whole["usd_per_request"] == pytest.approx(0.01)
    assert half["hours_without_a_window"] == pytest.approx(0.5)


def test_what_the_source_says_that_it_charged_stands_beside(store: Store) -> None:
    with store.write() as db:
        windows.save(db, [window(i, requests=1.0, billed_usd=0.5) for i in range(4)])
    with store.read() as db:
        found = spend.of_endpoint(db, settings(), settings().endpoints[0], T0, T0 + 4 * MINUTE)
    assert (found["charged_usd"], found["usd"]) == (2.0, None)


def test_a_part_without_a_price_makes_no_price_of_1k_tokens(store: Store) -> None:
    with store.write() as db:
        windows.save(db, [window(i, **TOKENS) for i in range(3)], {"chat": Tariff.of({Unit.HOUR: 6.0})})
        windows.save(db, [window(i, **TOKENS) for i in range(3, 6)])
    with store.read() as db:
        found = spend.of_endpoint(db, settings(), settings().endpoints[0], T0, T0 + 6 * MINUTE)
    assert found["usd"] == pytest.approx(0.3)
    assert (found["lacking"], found["usd_per_1k_tokens"], found["usd_per_request"]) == (["price"], None, None)


def test_1k_tokens_at_the_objectives_rate(telemetry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More is carried at the limit than came, so that each token costs less than it did."""
    monkeypatch.setattr(calibrate, "REPLAYED", 1_000)
    chosen = load(telemetry).settings
    store = Store(chosen.database)
    now = WallClock().now()
    with store.read() as db:
        really = spend.of_endpoint(db, chosen, chosen.endpoints[0], now - 1500, now)
    found = spend.at_objective(store, chosen, chosen.endpoints[0], now)
    unpriced = replace_price(chosen)
    refused = spend.at_objective(store, unpriced, unpriced.endpoints[0], now)
    store.close()
    assert found["why"] == ""
    assert found["requests_per_s"] > 4.0
    assert (
        0
        < found["usd_per_1k_tokens"]
        < really["usd"] * 1000 / sum(really["tokens"][k]["tokens"] for k in ("input", "output"))
    )
    assert (refused["usd_per_1k_tokens"], refused["why"]) == (None, "the price of its shape is not known by the hour")


def replace_price(chosen: Settings) -> Settings:
    sizes = {name: size.model_copy(update={"usd_per_replica_hour": None}) for name, size in chosen.sizes.items()}
    return chosen.model_copy(update={"sizes": sizes})


# -- whose it was -------------------------------------------------------------------------------------------------------

TAGS: Mapping[str, float] = {
    "prompt_tokens@search": 600.0,
    "output_tokens@search": 100.0,
    "cached_prompt_tokens@search": 400.0,
    "prompt_tokens@drafts": 200.0,
    "output_tokens@drafts": 400.0,
}


def test_reserved_capacity_is_shared_out_by_tokens_and_the_rest_is_untagged(store: Store) -> None:
    with store.write() as db:
        windows.save(db, [window(i, **TOKENS, **TAGS) for i in range(30)], {"chat": Tariff.of({Unit.HOUR: 6.0})})
    with store.read() as db:
        found = spend.of_endpoint(db, settings(), settings().endpoints[0], T0, T0 + 30 * MINUTE)["by_tag"]
    assert [part["tag"] for part in found] == ["search", "drafts", None]
    assert [part["tokens"] for part in found] == [21_000.0, 18_000.0, 6_000.0]
    assert [part["usd"] for part in found] == [
        pytest.approx(v) for v in (3.0 * 700 / 1500, 3.0 * 600 / 1500, 3.0 * 200 / 1500)
    ]
    assert sum(part["share"] for part in found) == pytest.approx(1.0)


def test_what_is_billed_by_the_token_is_shared_out_by_price() -> None:
    """Input at 2, cached at 1, output at 8 dollars: of 1.6 + 4.0, 0.8 + 0.8 are of the one, and 0.4 + 3.2 of the other."""
    tariff = Tariff.of({Unit.INPUT_1K: 2.0, Unit.CACHED_INPUT_1K: 1.0, Unit.OUTPUT_1K: 8.0})
    found = spend.by_tag([window(0, **TOKENS, **TAGS)], Cost(5.6), tariff)
    assert [(part["tag"], part["usd"]) for part in found] == [
        ("drafts", pytest.approx(3.6)), ("search", pytest.approx(1.6)), (None, pytest.approx(0.4)),
    ]  # fmt: skip


def test_without_tags_nothing_is_shared_out_and_an_unknown_cost_has_shares_only() -> None:
    assert spend.by_tag([window(0, **TOKENS)], Cost(1.0), Tariff()) == []
    found = spend.by_tag([window(0, **TOKENS, **TAGS)], Cost(1.0, ("price",)), Tariff())
    assert [part["usd"] for part in found] == [None, None, None]
    assert found[0]["share"] == pytest.approx(700 / 1500)


def test_tags_outlive_rolling_up(store: Store) -> None:
    with store.write() as db:
        windows.save(db, [window(i, **TOKENS, **TAGS) for i in range(60)], {"chat": Tariff.of({Unit.HOUR: 6.0})})
    windows.roll_up(store, T0 + 7200.0, MINUTE)
    with store.read() as db:
        (merged,) = windows.load(db, "chat", "vllm", T0, T0 + 3600.0, 3600.0)
    assert merged.counts["output_tokens@drafts"] == pytest.approx(24_000.0)
