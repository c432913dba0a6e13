"""The upgrade guard: what is planted is found within minutes, what is not there hardly ever, and the load's doing is not the engine's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy

from analyzers import guard
from analyzers.guard import ALPHA, EngineShift, difference, identity, log_evidence, shift, threshold
from benchmarks.guard import AFTER, BEFORE, restless, served, trial
from collectors.window import Window
from tests.analyzers.situations import situation

AT = 60.0 * BEFORE


def rows(factor: float, seed: int = 0, unrest: float = 0.03) -> list[Window]:
    return restless([*served(1.0, BEFORE, seed), *served(factor, AFTER, seed, BEFORE)], unrest, 0.0, seed)


def found(factor: float, seed: int = 0, per_hour: float | None = 2.0) -> guard.Finding | None:
    seen = rows(factor, seed)
    s = situation(seen[-60:], start=seen[-60].start, end=seen[-1].end, per_hour=per_hour)
    return guard.guard(s, seen[:BEFORE], seen[BEFORE + 1 : BEFORE + 31], AT, "engine_version 0.9 → 0.10")


# -- the test itself ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", [0.0, 1.5])
def test_the_evidence_is_the_bayes_factor_that_integration_gives(effect: float) -> None:
    """Over the coefficients (flat), the variance (1/sigma) and the effect (normal, in units of sigma), numerically."""
    rng = np.random.default_rng(5)
    before, n = 6, 10
    indicator = (np.arange(n) >= before).astype(float)
    design = np.column_stack((np.ones(n), rng.normal(size=n)))
    y = design @ [1.0, 0.5] + effect * indicator + rng.normal(size=n)
    basis, _ = np.linalg.qr(design)

    def marginal(delta: float) -> float:
        """Of y where the effect is delta sigmas, but for constants: integrated over sigma with density 1/sigma."""

        def of_log_sigma(log_sigma: float) -> float:
            sigma = math.exp(log_sigma)
            r = y - delta * sigma * indicator
            r = r - basis @ (basis.T @ r)
            return math.exp(-(n - 2) * log_sigma - float(r @ r) / (2 * sigma**2))

        return float(scipy.integrate.quad(of_log_sigma, -6, 6, limit=200)[0])

    def weighted(delta: float) -> float:
        return marginal(delta) * float(scipy.stats.norm.pdf(delta))

    factor = scipy.integrate.quad(weighted, -12, 12, limit=200)[0] / marginal(0.0)
    assert log_evidence(y, design, before) == pytest.approx(math.log(factor), rel=1e-3)


def test_looked_at_after_every_window_it_is_seldom_sure_of_nothing() -> None:
    """The chance that it ever is stays below alpha: of 1,000 series without a change, each looked at sixty times."""
    rng, alarms = np.random.default_rng(3), 0
    design = np.column_stack((np.ones(90), rng.uniform(1, 2, 90)))
    for _ in range(1_000):
        y = rng.normal(size=90)
        alarms += any(log_evidence(y[: 30 + k], design[: 30 + k], 30) >= math.log(1 / ALPHA) for k in range(1, 61))
    assert alarms <= 1_000 * ALPHA + 3 * math.sqrt(1_000 * ALPHA)


# -- engines ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "limit_s"), [(1.3, 300.0), (1.1, 600.0), (0.9, 600.0)])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_planted_is_found_within_minutes(factor: float, limit_s: float, seed: int) -> None:
    delay = trial(factor, 0.03, 0.0, seed)
    assert delay is not None
    assert delay <= limit_s


@pytest.mark.parametrize("seed", range(8))
def test_the_same_engine_under_a_load_that_moves_is_found_unchanged(seed: int) -> None:
    assert trial(1.0, 0.03, 0.0, seed) is None


def test_a_slower_engine_is_a_finding_with_what_it_costs() -> None:
    f = found(1.3)
    assert f is not None
    assert (f.reason.code, f.kind, f.severity) == ("ENGINE_REGRESSED", "regression", "warning")
    numbers = f.reason.numbers
    assert numbers["itl_s_low"] <= numbers["itl_s_mid"] <= numbers["itl_s_high"]
    assert numbers["itl_s_mid"] == pytest.approx(1.35, rel=0.06)  # at the same requests more of them run at once
    assert numbers["usd_per_month"] == pytest.approx(1460.0 * (numbers["itl_s_mid"] - 1))
    assert f.reason.text.startswith("since engine_version 0.9 → 0.10, at equal load, the gap between tokens is +3")
    assert "a month" in f.reason.text


def test_a_faster_one_too_and_without_a_price_no_money_is_named() -> None:
    f = found(0.8, per_hour=None)
    assert f is not None
    assert (f.reason.code, f.severity) == ("ENGINE_IMPROVED", "info")
    assert "usd_per_month" not in f.reason.numbers
    assert "a month" not in f.reason.text
    assert found(1.0) is None


def test_one_stall_of_the_machine_is_no_upgrade() -> None:
    seen = rows(1.0, unrest=0.01)
    after = [*seen[BEFORE + 1 : BEFORE + 2], *restless(seen[BEFORE + 2 : BEFORE + 3], 0.0, 0.0, 0), *seen[BEFORE + 3 :]]
    stalled = after[1]
    slow = {n: s.from_values([10 * (s.mean or 0.0)]) if n.endswith("_s") else s for n, s in stalled.sketches.items()}
    after[1] = replace(stalled, sketches=slow)
    for metric in guard.METRICS:
        told = shift(seen[:BEFORE], after, metric, AT)
        assert told is not None
        assert told.sure_after_s is None


def test_a_load_that_was_never_seen_before_is_not_comparable() -> None:
    seen = rows(1.3)
    heavy = [replace(w, counts={n: 5 * v for n, v in w.counts.items()}) for w in seen[BEFORE + 1 :]]
    assert shift(seen[:BEFORE], heavy, "itl_s", AT) is None


@pytest.mark.parametrize(("before", "after"), [(guard.LEAST_BEFORE - 1, 60), (BEFORE, guard.LEAST_AFTER - 1)])
def test_too_little_says_nothing(before: int, after: int) -> None:
    seen = rows(1.3)
    assert shift(seen[:before], seen[BEFORE + 1 :][:after], "itl_s", AT) is None
    assert shift(seen[:BEFORE], [replace(w, sketches={}) for w in seen[BEFORE:]], "itl_s", AT) is None


def test_replicas_share_the_load() -> None:
    """Twice the replicas under twice the load: equal load."""
    seen = rows(1.0)
    twice = [replace(w, targets=2, counts={n: 2 * v for n, v in w.counts.items()}) for w in seen[BEFORE + 1 :]]
    told, same = (shift(seen[:BEFORE], after, "itl_s", AT) for after in (twice, seen[BEFORE + 1 :]))
    assert isinstance(told, EngineShift)
    assert told == same


def test_two_metrics_share_the_chance_of_a_false_alarm() -> None:
    assert threshold(2) == pytest.approx(math.log(2 / ALPHA))


# -- which engine it is -------------------------------------------------------------------------------------------------------------------


def test_an_engine_is_its_version_model_and_arguments_and_not_what_follows_from_them() -> None:
    facts = {"model": "m", "engine_version": "0.9", "num_gpu_blocks": "1000", "kv_tokens": "16000", "block_size": "16"}
    assert identity(facts) == {"block_size": "16", "engine_version": "0.9", "model": "m"}
    assert difference(identity(facts), identity({**facts, "kv_tokens": "1"})) == ""
    assert difference(identity(facts), identity({**facts, "engine_version": "0.10"})) == "engine_version 0.9 → 0.10"
