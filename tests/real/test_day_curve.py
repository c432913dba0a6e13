"""Three days of a day curve under the real governor, beside the clairvoyant: what a person who follows its advice gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import policies

pytestmark = [pytest.mark.real, pytest.mark.timeout(2400)]


def test_no_hour_is_in_breach_and_the_cost_is_near_the_clairvoyants(tmp_path: Path) -> None:
    """Swing 0.8, defaults, a person who approves at once: after the first day, of which nobody knows the season."""
    output = tmp_path / "rows.json"
    policies.main(["--trace", "day-curve", "--quick", "--only", "flyball,oracle", "--output", str(output)])
    rows = {(row["scenario"], row["policy"]): row for row in json.loads(output.read_text())["rows"]}
    first, later, oracle = rows["day-curve/first", "flyball"], rows["day-curve", "flyball"], rows["day-curve", "oracle"]
    assert first["breach_hours"] == later["breach_hours"] == []
    assert first["moves"] == 0, "without a season it does not shrink below what the day may bring"
    assert later["within_objective"] >= 0.99
    assert later["wrong_shrinks"] == 0
    assert later["changes"] <= 2 * 2, "in two days"
    assert later["cost_usd"] <= 1.15 * oracle["cost_usd"]
