"""The report's first screen: what it says, in which order, and what leaving it costs."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from typing import Any

import pytest

from agent.brief import as_csv, brief, markdown, tag_lines, title

START, DAY = datetime(2026, 11, 23, tzinfo=UTC).timestamp(), 86_400.0
END = START + 7 * DAY


def target(met: bool | None, share: float | None = 0.0, name: str = "ttft_p95_s", **changed: Any) -> dict[str, Any]:
    return {
        "target": name, "limit": 1.0, "observed": None if met is None else 0.5 if met else 2.0, "at_least": None, "at_most": None,
        "met": met, "bad_share": share, "burn_rate": None if share is None else share / 0.05,
    } | changed  # fmt: skip


def endpoint(name: str, *objective: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {
        "name": name, "objective": list(objective), "watched_since": START, "coverage": 1.0, "requests": 1000.0,
        "spent_usd": 10.0, "spent_lacking": [], "by_tag": [],
    } | changed  # fmt: skip


def figures(*endpoints: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {
        "start": START, "end": END, "endpoints": list(endpoints), "spent_usd": 70.0, "spent_lacking": [],
        "saved": {"periods": 0, "saved_usd": None, "lacking": []}, "saving_waiting_usd_per_month": 0.0,
        "changes": {"succeeded": 0, "rolled_back": 0, "failed": 0}, "promises": 0, "promises_held": 0,
    } | changed  # fmt: skip


def proposal(name: str, saving: float | None, **changed: Any) -> dict[str, Any]:
    return {
        "id": f"id-{name}", "endpoint": name, "what": "replicas 4 → 2", "saving_per_month": saving, "direction": "shrink",
        "risk": "low", "reasons": [{"text": "half of it idles"}],
    } | changed  # fmt: skip


HEALTHY: dict[str, Any] = {"sources_in_trouble": [], "undelivered": []}


def made(found: dict[str, Any], *waiting: dict[str, Any], standing: Any = None, status: Any = None) -> dict[str, Any]:
    return brief(found, list(waiting), standing or {}, HEALTHY | (status or {}), "UTC")


def test_a_quiet_week_is_three_sentences_and_nothing_to_do() -> None:
    said = made(figures(endpoint("chat", target(True))))
    assert said["title"] == "Week 48: 23 to 29 November 2026"
    assert said["sentences"] == [
        "$70.00 were spent, which is $304 a month.",
        "The objective was kept.",
        "Nothing was changed; nothing waits for a decision.",
    ]
    assert [n["value"] for n in said["numbers"]] == ["$70.00", "nothing yet", "0 of 1"]
    assert said["tasks"] == []


def test_what_is_late_comes_before_money_and_money_by_its_amount() -> None:
    found = figures(
        endpoint("chat", target(False, 0.12)), endpoint("code", target(True)), endpoint("docs", target(None, None)),
        saving_waiting_usd_per_month=900.0,
    )  # fmt: skip
    said = made(
        found,
        proposal("code", 100.0),
        proposal("docs", 800.0),
        proposal("chat", -500.0, direction="grow", what="replicas 1 → 2"),
    )
    assert [(t["endpoint"], t["waiting_costs"]) for t in said["tasks"]] == [
        ("chat", "12.0% of its requests took longer than 1 s"),
        ("docs", "$800 a month"),
        ("code", "$100 a month"),
    ]
    assert said["tasks"][0]["what"] == "approve or reject replicas 1 → 2, for $500 more a month"
    assert said["sentences"][1] == (
        "1 of 3 endpoints kept their objective; chat did not: 12.0% of its requests took longer than 1 s; of 1 it is not known."
    )
    assert said["sentences"][2].endswith("3 proposals wait for a decision and would save $900 a month.")
    assert said["numbers"][2] == {"value": "1 of 3", "what": "endpoints at risk: chat"}


def test_a_missed_objective_without_a_proposal_says_why_there_is_none() -> None:
    decision = {"decision": {"state": "too_small", "text": "cooling down"}, "frozen_because": None}
    (task,) = made(figures(endpoint("chat", target(False, 0.2))), standing={"chat": decision})["tasks"]
    assert task["what"] == "nothing to approve yet: cooling down"
    frozen = {"decision": None, "frozen_because": "rolled back"}
    (task,) = made(figures(endpoint("chat", target(False, 0.2))), standing={"chat": frozen})["tasks"]
    assert "then thaw it: rolled back" in task["what"]
    over = {"decision": {"state": "fine", "text": ""}, "frozen_because": None}
    assert made(figures(endpoint("chat", target(False, 0.2))), standing={"chat": over})["tasks"] == [], "it has passed"


@pytest.mark.parametrize(("many", "tasks"), [(1, 1), (3, 3), (4, 1)])
def test_who_cannot_be_read_is_named_and_many_are_named_once(many: int, tasks: int) -> None:
    troubled = [
        {"endpoint": f"e{i}", "source": "vllm", "last_error": "down", "last_ok_at": END - 600} for i in range(many)
    ]
    found = made(figures(endpoint("chat", target(True))), status={"sources_in_trouble": troubled})["tasks"]
    assert len(found) == tasks
    assert all("blind" in task["waiting_costs"] for task in found)


def test_what_is_not_known_is_said_and_no_zero() -> None:
    unknown = figures(
        endpoint("chat", target(None, None), spent_usd=None, requests=None, coverage=None, watched_since=None),
        spent_usd=None,
    )
    said = made(unknown)
    assert said["sentences"][0] == "What was spent is not known."
    assert said["sentences"][1] == "Whether the objectives were met is not known of any endpoint."
    assert said["numbers"][0]["value"] == "not known"
    text = markdown(unknown | {"brief": said})
    assert "| chat | time to first token (p95) | unknown | 1 s | not known | not known | not known | nothing |" in text


def test_markdown_is_whole_and_a_name_cannot_break_its_tables() -> None:
    found = figures(endpoint("a|b\nc", target(True), target(False, 0.1, "e2e_p95_s")))
    text = markdown(found | {"brief": made(found, proposal("a|b\nc", 5.0))})
    assert text.startswith("# Flyball, Week 48: 23 to 29 November 2026\n\n")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows[:3]} == {5}
    assert {line.replace("\\|", "").count("|") for line in rows[3:]} == {9}
    assert "a\\|b c" in text


def test_whose_it_was_is_a_line_a_team_over_all_endpoints() -> None:
    def used(tag: str | None, tokens: float, usd: float | None) -> dict[str, Any]:
        return {"tag": tag, "tokens": tokens, "share": 0.5, "usd": usd}

    found = figures(
        endpoint("chat", by_tag=[used("search", 1000.0, 6.0), used(None, 500.0, 4.0)]),
        endpoint("mail", by_tag=[used("search", 500.0, 1.5), used("crm", 9e6, None)]),
    )
    said = made(found)
    assert tag_lines(said) == ["search: $7.50, 1,500 tokens", "crm: cost not known, 9,000,000 tokens"]
    assert "## Whose it was\n\n- search: $7.50" in markdown(found | {"brief": said})
    quiet = figures(endpoint("chat"))
    assert "## Whose it was" not in markdown(quiet | {"brief": made(quiet)})


def test_csv_has_a_row_a_target_and_sums_that_are_right() -> None:
    told = {"mode": "observe", "usd_per_1k_tokens": None, "tokens": 5.0}
    found = figures(
        endpoint("a,b", target(True), target(False, 0.1, "e2e_p95_s"), **told),
        endpoint("bare", **told | {"spent_usd": None}),
    )
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [(row["endpoint"], row["target"], row["met"]) for row in rows] == [
        ("a,b", "ttft_p95_s", "True"), ("a,b", "e2e_p95_s", "False"), ("bare", "", ""),
    ]  # fmt: skip
    assert [row["spent_usd"] for row in rows] == ["10.0", "", ""], "once an endpoint, and unknown is empty"


@pytest.mark.parametrize(
    ("start", "end", "zone", "said"),
    [
        (START, END, "UTC", "Week 48: 23 to 29 November 2026"),
        (START + 8 * 3600, END + 8 * 3600, "UTC", "Week 48: 23 to 30 November 2026"),
        (START + 5 * DAY, END + 5 * DAY, "UTC", "Week 49: 28 November to 4 December 2026"),
        (START, START + 3600, "UTC", "23 November 2026, 00:00 to 01:00"),
        (START, START + 30 * DAY, "Europe/Berlin", "23 November, 01:00 to 23 December 2026, 01:00"),
    ],
)
def test_the_title_names_the_week(start: float, end: float, zone: str, said: str) -> None:
    assert title(start, end, zone) == said
