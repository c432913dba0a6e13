"""Seeded weeks of several governors with faults: no law is broken, a seed reproduces exactly, and each planted bug is found and shrunk."""

from __future__ import annotations

import pytest

from tests.world.__main__ import main
from tests.world.plants import PLANTS
from tests.world.weeks import drawn, play, shrunk

#: Days rather than weeks; `python -m tests.world` runs whole ones, thousands of them.
PART = 0.2

pytestmark = pytest.mark.timeout(300)  # where cores are shared


@pytest.mark.parametrize("first", range(0, 16, 4))
def test_no_law_is_broken(first: int) -> None:
    results = [play(seed, drawn(seed, PART), PART) for seed in range(first, first + 4)]
    assert [r for r in results if r.violation is not None] == []
    assert sum(r.changes for r in results) > 0
    assert sum(r.faults for r in results) > 20


def test_a_seed_reproduces_exactly() -> None:
    assert drawn(5, PART) == drawn(5, PART) != drawn(6, PART)
    assert play(5, drawn(5, PART), PART) == play(5, drawn(5, PART), PART)


@pytest.mark.parametrize("plant", sorted(PLANTS))
def test_each_planted_bug_is_found(plant: str) -> None:
    with PLANTS[plant]():
        found = next((r for seed in range(24) if (r := play(seed, drawn(seed, PART), PART)).violation), None)
    assert found is not None, "a world that cannot find this proves nothing"


def test_a_failing_seed_is_shrunk_to_what_still_fails() -> None:
    part = PART / 8  # hours: it is played some twenty times
    with PLANTS["ledger"]():
        seed, whole = next((n, h) for n in range(24) if play(n, h := drawn(n, part), part).violation)
        fewest = shrunk(seed, whole, part)
        assert len(fewest) < len(whole)
        assert [h.kind for h in fewest] == ["ask"]
        assert play(seed, fewest, part).violation
    assert play(seed, fewest, part).violation is None


def test_the_command_ends_in_one_line_and_says_whether_a_law_broke(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--seeds", "2", "--weeks", "0.05", "--workers", "1"]
    assert main(few) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("seeds=2 weeks=0.1 changes=")
    assert last.endswith("violations=0")
