"""What is bought and not run, as an option of `flyball advise`: the endpoint as it is, replayed beside the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from actuators.shape import Shape
from agent.advise.sources import present
from agent.settings import Settings
from agent.whatif.predictions import Telemetry
from analyzers.advise.options import DeploymentOption
from analyzers.kinds.base import Kind
from analyzers.kinds.ptu.deployment import PtuDeployment
from analyzers.kinds.quota.deployment import QuotaDeployment
from analyzers.kinds.results import ReplayTraffic
from analyzers.objective import Objective
from analyzers.policy import Catalogue
from analyzers.shapes import Vocabulary
from collectors.window import Window
from tests.analyzers.kinds.test_call_kinds import PTU, QUOTA, TPM, TRUTH, UNITS, limited, provisioned


def telemetry(kind: Kind[Any], shape: Shape, windows: list[Window]) -> Telemetry:
    catalogue = Catalogue()
    seen = tuple(windows)
    return Telemetry(
        endpoint="chat",
        kind=kind,
        shape=shape,
        start=0.0,
        end=3600.0,
        windows=seen,
        since_change=seen,
        error={},
        catalogue=catalogue,
        vocabulary=Vocabulary(catalogue),
        lengths=None,
    )


def settings(kind: str, **more: Any) -> Settings:
    entry = {
        "name": "chat",
        "url": "http://127.0.0.1:9",
        "kind": kind,
        "usd_per_1k_input_tokens": 0.002,
        "usd_per_1k_output_tokens": 0.008,
    }
    return Settings(endpoints=[{**entry, **more}])


def test_a_quota_is_an_option_with_its_own_limit_speed_and_prices() -> None:
    found = telemetry(QUOTA, TPM, limited(60, 60_000, reserve=1.0))
    notes: list[str] = []
    offer = present(found, settings("quota"), notes)
    assert offer is not None
    assert notes == []
    assert offer.option is DeploymentOption.MODEL_SERVICE
    assert isinstance(offer.system, QuotaDeployment)
    assert offer.system.tokens is not None
    assert offer.system.tokens.per_minute == 60_000
    got = offer.system.run(ReplayTraffic(QUOTA.workload(found.windows, seed=1), Objective())).best
    assert got.distribution("e2e_s").quantile(0.5) == pytest.approx(0.8, rel=0.05)
    # An hour of 60 calls a minute of 400 and 100 tokens.
    assert offer.system.cost_usd(got) == pytest.approx(3600 * (0.4 * 0.002 + 0.1 * 0.008), rel=0.1)


def test_provisioned_throughput_is_an_option_with_what_was_learned_of_it() -> None:
    found = telemetry(PTU, UNITS.with_(engine={"spillover": "chat-2"}), provisioned(60, TRUTH, spills=True))
    offer = present(found, settings("ptu", usd_per_ptu_hour=1.0), [])
    assert offer is not None
    assert offer.option is DeploymentOption.PROVISIONED
    assert isinstance(offer.system, PtuDeployment)
    assert offer.system.input_tokens_per_minute_per_ptu == pytest.approx(3000, rel=0.02)
    assert offer.system.spill is not None
    assert offer.system.ptus == 50


def test_means_alone_are_no_option_and_are_said() -> None:
    """As Azure tells them: the time of a call is a mean, and no percentile is made of it."""
    windows = [replace(w, sketches={}) for w in limited(60, 60_000, reserve=1.0)]
    notes: list[str] = []
    assert present(telemetry(QUOTA, TPM, windows), settings("quota"), notes) is None
    assert "no distribution of whole calls" in notes[0]
