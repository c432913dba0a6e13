"""When a run is not valid: only what the client itself did counts against it."""

from __future__ import annotations

from analyzers.client import reasons
from analyzers.interval import wilson
from collectors.traffic.tally import Tally


def tally(
    late: float = 1e-4, delay: float = 1e-4, ttft: float = 0.1, busiest: float = 0.3, own_stamps: int = 100
) -> Tally:
    found = Tally(planned=100, sent=100, ok=100)
    found.values["ttft_sent_s"].extend([ttft] * 100)
    found.values["e2e_sent_s"].extend([6 * ttft] * 100)
    found.watch.lateness.extend([late] * 100)
    found.watch.read_delay.extend([delay] * 100)
    found.values["tpot_s"].extend([0.01] * 100)
    found.watch.own_stamps = own_stamps
    found.watch.busiest = busiest
    return found


def codes(found: Tally, stopped: str | None = None, closed: bool = False) -> list[str]:
    return [reason.code for reason in reasons(found, stopped, closed)]


def test_a_client_that_keeps_up_is_valid() -> None:
    assert codes(tally()) == []
    assert codes(tally(late=0.004, delay=0.004, ttft=1.0)) == [], "small beside what is measured"


def test_what_the_client_delays_is_told() -> None:
    assert codes(tally(late=0.02)) == ["late_sending"]
    assert codes(tally(delay=0.02)) == ["late_reading"]
    assert codes(tally(late=0.003)) == ["late_sending"], "a mean of 3 % also where the tail is short"
    assert codes(tally(busiest=0.97)) == ["client_cpu"]


def test_where_the_kernel_stamps_a_late_reading_matters_when_tokens_pile_up() -> None:
    assert codes(tally(delay=0.007, own_stamps=0)) == []
    assert codes(tally(delay=0.009, own_stamps=0)) == ["late_reading"]


def test_in_a_closed_loop_lateness_is_load_that_is_missing() -> None:
    assert codes(tally(late=0.008), closed=True) == []
    assert codes(tally(late=0.05), closed=True) == ["late_sending"]


def test_what_was_not_sent_and_not_measured() -> None:
    unsent = tally()
    unsent.unsent = 3
    assert codes(unsent) == ["unsent"]
    assert codes(unsent, stopped="interrupted") == [], "a person stopped it"
    limited = tally()
    limited.errors["client_limit"] = 2
    limited.details["client_limit"] = "no more connections"
    assert codes(limited) == ["client_limit"]
    assert codes(Tally()) == ["nothing_measured"]


def test_wilson() -> None:
    assert wilson(0, 0) == (None, None)
    low, high = wilson(95, 100)
    assert low is not None
    assert high is not None
    assert (round(low, 3), round(high, 3)) == (0.888, 0.978)  # as in published tables
    assert wilson(10, 10)[1] == 1.0
