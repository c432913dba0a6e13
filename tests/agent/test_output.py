"""Tables for people: whole words on a terminal of any width, each row below the other where it is too narrow."""

from __future__ import annotations

import pytest

from agent.cli import output

COLUMNS = ["id", "endpoint", "why", "saves a month"]
ROWS = [
    ["e7747994", "support-chat", "OBJECTIVE_BREACH_TTFT_P95_S\nQUEUE_WAITING", "[green]$1,606[/green]"],
    ["5e7d3058", "search", "-", "$803"],
]


@pytest.fixture(params=[50, 60, 80, 100, 200])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(output.stdout, "width", request.param)
    return int(request.param)


def test_no_word_is_broken_whatever_the_width(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    output.table("Recommendations", COLUMNS, ROWS, "none")
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= width
    for word in (
        "e7747994",
        "5e7d3058",
        "support-chat",
        "OBJECTIVE_BREACH_TTFT_P95_S",
        "QUEUE_WAITING",
        "$1,606",
        "endpoint",
    ):
        assert word in said, said
    assert ("│" in said) == (width >= 80)


def test_a_long_text_folds_between_its_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output.stdout, "width", 60)
    why = "the objective is met at equal load, which is what was promised of it"
    output.table("Changes", ["id", "why"], [["e7747994", why]], "none")
    said = capsys.readouterr().out
    assert "│" in said
    assert " ".join(said.replace("│", " ").split()).endswith(why + " └" + said.rsplit("└", 1)[1].strip())


def test_nothing_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.table("Changes", ["id", "why"], [], "Nothing was changed.")
    assert capsys.readouterr().out == "Nothing was changed.\n"
