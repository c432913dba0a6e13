"""Whether one load met the objective, and when nobody can tell."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from analyzers.objective import Objective
from analyzers.tuning.judge import LoadVerdict, SentLoad, figures, invalid, judge
from collectors.traffic.tally import Tally
from tests.analyzers.test_client import tally as kept_up

SECONDS, WARM_S = 10.0, 1.0


def load(tally: Tally, rate: float | None, limits: Mapping[str, float], stopped: str | None = None) -> SentLoad:
    return SentLoad(tally, Objective.from_mapping(limits), rate is None, stopped, SECONDS - WARM_S)


def tally(ok: int = 0, failed: int = 0, steady: int | None = None, **seconds: float | list[float]) -> Tally:
    """``ok`` answers that took so many seconds each."""
    found = kept_up() if ok else Tally()
    found.ok, found.sent, found.planned = ok, ok + failed, ok + failed
    found.steady_ok = ok if steady is None else steady
    if failed:
        found.errors["http_5xx"] = failed
    for name, several in seconds.items():
        found.values[name].extend(several if isinstance(several, list) else [several] * ok)
    return found


def judged(
    found: Tally, limits: Mapping[str, float], rate: float | None = None, stopped: str | None = None
) -> LoadVerdict:
    return judge(load(found, rate, limits, stopped), rate)


def test_met_and_missed_with_enough_requests() -> None:
    fast, slow = tally(200, ttft_s=0.1), tally(200, ttft_s=0.9)
    met = judged(fast, {"ttft_p95_s": 0.5}, rate=20.0)
    assert (met.verdict, met.likely, met.why) == ("met", True, "the objective holds")
    assert met.targets == ({"target": "ttft_p95_s", "limit": 0.5, "observed": 0.1, "low": 0.1, "high": 0.1},)
    missed = judged(slow, {"ttft_p95_s": 0.5}, rate=20.0)
    assert (missed.verdict, missed.likely) == ("missed", False)
    assert missed.why == "ttft_p95_s missed"


def test_just_at_the_limit_it_holds() -> None:
    assert judged(tally(200, ttft_s=0.5), {"ttft_p95_s": 0.5}).verdict == "met"


def test_one_target_that_is_missed_is_enough_and_is_named() -> None:
    found = tally(200, ttft_s=0.1, e2e_s=9.0)
    missed = judged(found, {"ttft_p95_s": 0.5, "e2e_p95_s": 5.0})
    assert (missed.verdict, missed.why) == ("missed", "e2e_p95_s missed")
    assert [t["observed"] for t in missed.targets] == [0.1, 9.0]


def test_too_few_requests_decide_nothing_but_lean_one_way() -> None:
    few = judged(tally(20, ttft_s=0.1), {"ttft_p95_s": 0.5}, rate=2.0)
    assert (few.verdict, few.likely, few.why) == ("unsure", True, "too near the limit to tell")
    assert few.targets[0]["high"] is None
    leaning = judged(tally(20, ttft_s=[0.1] * 18 + [0.9] * 2), {"ttft_p95_s": 0.5}, rate=2.0)
    assert (leaning.verdict, leaning.likely) == ("unsure", False)
    # A quantile in the middle is decided by as many.
    assert judged(tally(20, ttft_s=0.1), {"ttft_p50_s": 0.5}, rate=2.0).verdict == "met"
    assert judged(tally(20, ttft_s=0.9), {"ttft_p50_s": 0.5}, rate=2.0).verdict == "missed"


def test_gaps_between_tokens_near_the_limit_decide_nothing() -> None:
    verdicts = {gap: judged(tally(200, itl_s=gap), {"itl_p95_s": 0.1}) for gap in (0.09, 0.096, 0.104, 0.11)}
    assert [v.verdict for v in verdicts.values()] == ["met", "unsure", "unsure", "missed"]
    assert [v.likely for v in verdicts.values()] == [True, True, False, False]


def test_errors_are_missed_also_where_the_objective_says_nothing_of_them() -> None:
    limits = {"ttft_p95_s": 0.5}
    assert judged(tally(80, failed=20, ttft_s=0.1), limits).why == "too many errors"
    assert judged(tally(80, failed=20, ttft_s=0.1), limits).verdict == "missed"
    assert judged(tally(95, failed=5, ttft_s=0.1), limits).verdict == "met", "one in twenty is borne"
    near = judged(tally(94, failed=6, ttft_s=0.1), limits)
    assert (near.verdict, near.why) == ("unsure", "too near the limit to tell")


def test_the_objectives_own_share_of_errors() -> None:
    limits = {"ttft_p95_s": 0.5, "error_rate": 0.01}
    missed = judged(tally(90, failed=10, ttft_s=0.1), limits)
    assert (missed.verdict, missed.likely, missed.why) == ("missed", False, "too many errors")
    assert missed.targets[1]["observed"] == 0.1
    assert missed.targets[1]["low"] < 0.1 < missed.targets[1]["high"]
    one = judged(tally(98, failed=2, ttft_s=0.1), limits)
    assert (one.verdict, one.likely) == ("unsure", False), "two in a hundred may be chance"
    assert judged(tally(200, ttft_s=0.1), limits).verdict == "met"


def test_an_error_storm_is_missed_whatever_was_answered_before() -> None:
    storm = judged(tally(200, ttft_s=0.1), {"ttft_p95_s": 0.5}, rate=20.0, stopped="error_storm")
    assert (storm.verdict, storm.likely, storm.why) == ("missed", False, "too many errors")


def test_a_server_that_falls_behind() -> None:
    limits, fast = {"ttft_p95_s": 0.5}, {"ttft_s": 0.1}
    behind = judged(tally(200, steady=120, **fast), limits, rate=20.0)
    assert (behind.verdict, behind.likely, behind.why) == ("missed", False, "the server does not keep up")
    assert judged(tally(200, steady=150, **fast), limits, rate=20.0).verdict == "met", "of 180 so few by chance"
    assert judged(tally(200, steady=120, **fast), limits).verdict == "met", "users wait for their answers"
    few = judged(tally(20, steady=12, ttft_s=0.1), {"ttft_p50_s": 0.5}, rate=2.0)
    assert few.verdict == "met", "of 18 requests 6 may be missing by chance"


def test_what_a_client_cannot_measure_does_not_count_against_it() -> None:
    found = judged(tally(200, ttft_s=0.1), {"queue_p95_s": 0.001, "ttft_p95_s": 0.5}, rate=20.0)
    assert found.verdict == "met"
    unknown = next(t for t in found.targets if t["target"] == "queue_p95_s")
    assert (unknown["observed"], unknown["low"], unknown["high"]) == (None, None, None)


def test_no_answer_at_all() -> None:
    nothing = judged(Tally(), {"ttft_p95_s": 0.5}, rate=20.0)
    assert (nothing.verdict, nothing.likely, nothing.why) == ("unsure", False, "nothing was answered")
    failed = judged(tally(0, failed=50), {"ttft_p95_s": 0.5}, rate=20.0)
    assert (failed.verdict, failed.why) == ("missed", "too many errors")


# -- the client --------------------------------------------------------------------------------------------------------


def late(seconds: float) -> Tally:
    found = tally(200, ttft_s=0.1)
    found.watch.lateness.extend([seconds] * 100)
    return found


@pytest.mark.parametrize(("limit", "valid"), [(0.5, True), (0.3, False)])
def test_a_late_client_matters_against_the_objective(limit: float, valid: bool) -> None:
    why = invalid(load(late(0.02), 20.0, {"ttft_p95_s": limit}))
    assert (why is None) is valid
    assert valid or "bottleneck" in str(why)


def test_a_late_client_matters_where_only_gaps_are_asked_for() -> None:
    assert "late" in str(invalid(load(late(0.02), 20.0, {"itl_p95_s": 10.0})))


def test_a_client_without_room_is_never_harmless() -> None:
    found = tally(200, ttft_s=0.1)
    found.watch.busiest = 0.97
    assert "97%" in str(invalid(load(found, 20.0, {"ttft_p95_s": 100.0})))


def test_a_server_that_answers_nothing_is_not_the_clients_fault() -> None:
    assert invalid(load(Tally(), 20.0, {"ttft_p95_s": 0.5})) is None


def test_what_is_kept_of_a_load() -> None:
    found = tally(90, failed=10, steady=81, ttft_s=0.1, e2e_s=2.0)
    found.steady_tokens = 810
    kept = figures(load(found, 10.0, {"ttft_p95_s": 0.5}))
    assert (kept["sent"], kept["completed"], kept["errors"]) == (100, 90, {"http_5xx": 10})
    assert (kept["measured_s"], kept["requests_per_s"], kept["output_tokens_per_s"]) == (9.0, 9.0, 90.0)
    assert (kept["ttft_s"]["mean"], kept["e2e_s"]["p99"]) == (pytest.approx(0.1), 2.0)
    assert kept["itl_s"] == dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "p99.9"))
