"""The first screen of a report: three sentences, three numbers, and what to do, each with the cost of doing nothing. Values in, values out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from analyzers.words import and_unknown, dollars, figure, lasting, observed, phrase, saved, verdict

Facts = Mapping[str, Any]
#: Teams and tenants on the first screen.
_MOST_TAGS = 5
#: Endpoints that cannot be read are named one by one up to so many.
_EACH = 3
_DAY_S, _MONTH_S = 86_400.0, 365 * 86_400.0 / 12


@dataclass(frozen=True, slots=True)
class Task:
    """One thing that somebody should do."""

    endpoint: str
    what: str
    waiting_costs: str
    """What it costs to leave it."""
    how: str
    """A command, or where to look."""
    urgency: int
    """0: people are served badly; 1: money; 2: Flyball cannot do its work."""
    usd_per_month: float | None = None
    risk: str | None = None


def title(start: float, end: float, zone: str) -> str:
    """``Week 48: 23 to 29 November 2026`` where it is a week by days; else both moments."""
    first, last = (datetime.fromtimestamp(at, ZoneInfo(zone)) for at in (start, end))
    if abs((end - start) - 7 * _DAY_S) < 2 * 3600:
        until = last - timedelta(seconds=1) if last.hour == last.minute == 0 else last
        week = (first + (until - first) / 2).isocalendar().week
        begin = f"{first.day}" if first.month == until.month else f"{first.day} {first:%B}"
        return f"Week {week}: {begin} to {until.day} {until:%B} {until.year}"
    if first.date() == last.date():
        return f"{first.day} {first:%B %Y}, {first:%H:%M} to {last:%H:%M}"
    return f"{first.day} {first:%B}, {first:%H:%M} to {last.day} {last:%B %Y}, {last:%H:%M}"


def brief(
    figures: Facts, waiting: Sequence[Facts], standing: Mapping[str, Facts], status: Facts, zone: str
) -> dict[str, Any]:
    """As JSON.

    figures: of ``agent.report.summary``. waiting: recommendations that can be decided. standing: by endpoint its ``decision`` and
    ``frozen_because``.
    """
    tasks = sorted(
        _tasks(figures, waiting, standing, status), key=lambda t: (t.urgency, -(t.usd_per_month or 0.0), t.endpoint)
    )
    missed = [e for e in figures["endpoints"] if _met(e) is False]
    return {
        "title": title(figures["start"], figures["end"], zone),
        "sentences": [_money(figures), _service(figures, missed), _done(figures, waiting)],
        "numbers": [
            {
                "value": "not known" if figures["spent_usd"] is None else dollars(figures["spent_usd"]),
                "what": f"spent{and_unknown(figures['spent_lacking'])}",
            },
            {
                "value": dollars(figures["saved"]["saved_usd"]["mid"])
                if figures["saved"]["saved_usd"]
                else "nothing yet",
                "what": f"saved, as attested{and_unknown(figures['saved']['lacking'])}",
            },
            {
                "value": f"{len(missed)} of {len(figures['endpoints'])}",
                "what": "endpoints at risk: their objective was missed"
                if len(missed) != 1
                else f"endpoints at risk: {missed[0]['name']}",
            },
        ],
        "tasks": [asdict(task) for task in tasks],
        "by_tag": _by_tag(figures),
    }


def _by_tag(figures: Facts) -> list[dict[str, Any]]:
    """Over all endpoints, by the teams or tenants that requests name; the dearest first. A tag of which some cost is not known has none."""
    found: dict[str, dict[str, Any]] = {}
    for row in (row for e in figures["endpoints"] for row in e["by_tag"] if row["tag"] is not None):
        known = found.setdefault(row["tag"], {"tag": row["tag"], "tokens": 0.0, "usd": 0.0})
        known["tokens"] += row["tokens"]
        known["usd"] = None if known["usd"] is None or row["usd"] is None else known["usd"] + row["usd"]
    return sorted(found.values(), key=lambda row: (-(row["usd"] or 0.0), -row["tokens"], row["tag"]))[:_MOST_TAGS]


def _met(endpoint: Facts) -> bool | None:
    """Whether all of its targets held over the period; None: of one it is not known, or it has none."""
    met = [o["met"] for o in endpoint["objective"]]
    return False if False in met else True if met and None not in met else None


def _money(figures: Facts) -> str:
    spent, span = figures["spent_usd"], figures["end"] - figures["start"]
    if spent is None:
        said = "What was spent is not known"
    else:
        said = f"{dollars(spent)} were spent{and_unknown(figures['spent_lacking'])}"
        watched = max(
            (figures["end"] - e["watched_since"] for e in figures["endpoints"] if e["watched_since"]), default=0.0
        )
        if 0 < watched <= span:
            said += f", which is {dollars(spent / watched * _MONTH_S)} a month"
    periods = figures["saved"]["periods"]
    return f"{said}. Flyball's changes {saved(figures['saved'])}." if periods else f"{said}."


def _service(figures: Facts, missed: Sequence[Facts]) -> str:
    judged = [e for e in figures["endpoints"] if _met(e) is not None]
    total = len(figures["endpoints"])
    if not judged:
        return "Whether the objectives were met is not known of any endpoint."
    kept = len(judged) - len(missed)
    said = (
        f"{kept} of {total} endpoints kept their objective" if total > 1 else ("The objective was kept" if kept else "")
    )
    if missed:
        worst = "; ".join(f"{e['name']} did not: {_late(e)}" for e in missed[:3])
        said = f"{said}; {worst}" if said else _late(missed[0]).capitalize()
        said += f"; nor did {len(missed) - 3} others" if len(missed) > 3 else ""
    unknown = total - len(judged)
    return f"{said}; of {unknown} it is not known." if unknown else f"{said}."


def _late(endpoint: Facts) -> str:
    """What was missed, and by how many."""
    wrong = [o for o in endpoint["objective"] if o["met"] is False]
    worst = max(wrong, key=lambda o: o["burn_rate"] or 0.0)
    share = worst["bad_share"]
    if share is None or "_p" not in worst["target"]:
        seen = "not known" if worst["observed"] is None else figure(worst["target"], worst["observed"])
        return f"{phrase(worst['target'])} was {seen}, the limit is {figure(worst['target'], worst['limit'])}"
    unit = "gaps between tokens" if worst["target"].startswith("itl") else "requests"
    return f"{share:.1%} of its {unit} took longer than {figure(worst['target'], worst['limit'])}"


def _done(figures: Facts, waiting: Sequence[Facts]) -> str:
    ended = figures["changes"]
    parts = [
        f"{ended[state]} {word}"
        for state, word in (("succeeded", "verified"), ("rolled_back", "undone"), ("failed", "failed"))
        if ended[state]
    ]
    made = sum(ended[state] for state in ("succeeded", "rolled_back", "failed"))
    said = "Nothing was changed" if not made else f"{made} change{'s' if made != 1 else ''}: {', '.join(parts)}"
    if figures["promises"]:
        said += f"; {figures['promises_held']} of {figures['promises']} promised figures came as promised"
    offered = figures["saving_waiting_usd_per_month"]
    if not waiting:
        return f"{said}; nothing waits for a decision."
    saves = f" and would save {dollars(offered)} a month" if offered else ""
    return f"{said}; {len(waiting)} proposal{'s wait' if len(waiting) != 1 else ' waits'} for a decision{saves}."


def _tasks(figures: Facts, waiting: Sequence[Facts], standing: Mapping[str, Facts], status: Facts) -> Iterator[Task]:
    proposed = {r["endpoint"]: r for r in waiting}
    for endpoint in figures["endpoints"]:
        name, known = endpoint["name"], standing.get(endpoint["name"], {})
        row = proposed.pop(name, None)
        missed = _met(endpoint) is False
        if row is not None:
            yield _decide(row, _late(endpoint) if missed else None)
        frozen = known.get("frozen_because")
        if frozen:
            yield Task(
                name,
                f"see what went wrong, then thaw it: {frozen}",
                "nothing is proposed for it",
                f"flyball unfreeze {name}",
                2,
            )
        if missed and row is None and not frozen:
            decision = known.get("decision") or {}
            text = decision.get("text") or "no reason is known; see its page"
            if decision.get("state") not in ("fine", "too_large"):
                yield Task(
                    name,
                    f"nothing to approve yet: {text}",
                    _late(endpoint),
                    f"flyball findings list --endpoint {name}",
                    0,
                )
    for row in proposed.values():  # of endpoints that are no longer in the settings
        yield _decide(row, None)
    yield from _blind(status["sources_in_trouble"], figures["end"])
    for message in status["undelivered"]:
        what = f"a message of {message['kind']} {message['subject']} did not get out: {message['error']}"
        yield Task("", what, "people do not hear of it", f"see {message['channel']} in the settings", 2)


def _blind(troubled: Sequence[Facts], end: float) -> Iterator[Task]:
    """What cannot be read; of many together once."""
    names = list(dict.fromkeys(source["endpoint"] for source in troubled))
    if len(names) > _EACH:
        what = f"make them readable: nothing comes of {len(names)} endpoints: {', '.join(names[:_EACH])} ..."
        yield Task("", what, "Flyball is blind there: it proposes nothing", "flyball check --live", 2)
        return
    for source in troubled:
        name = source["endpoint"]
        what = f"make {source['source']} readable: {source['last_error']}"
        since = "" if source["last_ok_at"] is None else f" since {lasting(max(0.0, end - source['last_ok_at']))}"
        yield Task(name, what, f"Flyball is blind there{since}: it proposes nothing", "flyball check --live", 2)


def _decide(row: Facts, late: str | None) -> Task:
    saving = row["saving_per_month"]
    costs = late
    if late is None and saving is not None and saving > 0:
        costs = f"{dollars(saving)} a month"
    elif late is None:
        costs = row["reasons"][0]["text"] if row["reasons"] else "not known"
    more = "" if saving is None or saving >= 0 else f", for {dollars(-saving)} more a month"
    return Task(
        row["endpoint"],
        f"approve or reject {row['what']}{more}",
        costs or "not known",
        f"flyball recommendations show {row['id']}",
        0 if late or row["direction"] == "grow" else 1,
        saving if saving is not None and saving > 0 else None,
        row["risk"],
    )


def markdown(figures: Facts) -> str:
    """The report's figures as Markdown, for a chat or a wiki."""
    first = figures["brief"]
    tasks = [[t["endpoint"] or "Flyball", t["what"], t["waiting_costs"], f"`{t['how']}`"] for t in first["tasks"]]
    parts = [
        f"# Flyball, {first['title']}",
        " ".join(first["sentences"]),
        "\n".join(f"- **{n['value']}** {n['what']}" for n in first["numbers"]),
        "## What to do",
        _table(["endpoint", "what", "leaving it costs", "how"], tasks) if tasks else "Nothing.",
        *(["## Whose it was", "\n".join(f"- {line}" for line in tag_lines(first))] if first["by_tag"] else []),
        "## Endpoints",
        _table(
            ["endpoint", "objective", "observed", "limit", "", "spent", "requests", "seen"], _endpoint_rows(figures)
        ),
    ]
    return "\n\n".join(parts) + "\n"


def tag_lines(first: Facts) -> list[str]:
    """A line a team or tenant: ``search: $12.30, 4,100,000 tokens``."""
    return [
        f"{row['tag']}: {'cost not known' if row['usd'] is None else dollars(row['usd'])}, {row['tokens']:,.0f} tokens"
        for row in first["by_tag"]
    ]


#: Of the report as CSV: one row for each target of each endpoint, numbers without units, empty where nothing is known.
CSV_COLUMNS = (
    "start", "end", "endpoint", "mode", "target", "limit", "observed", "met", "spent_usd", "usd_per_1k_tokens", "requests", "tokens", "coverage",
)  # fmt: skip


def as_csv(figures: Facts) -> str:
    """For a spreadsheet. What is spent, asked and seen is the endpoint's, and stands in the first of its rows alone, so that sums are right."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for e in figures["endpoints"]:
        whole = {name: e[name] for name in ("spent_usd", "usd_per_1k_tokens", "requests", "tokens", "coverage")}
        for i, o in enumerate(e["objective"] or [{"target": None, "limit": None, "observed": None, "met": None}]):
            own = {name: o[name] for name in ("target", "limit", "observed", "met")}
            row = {"start": figures["start"], "end": figures["end"], "endpoint": e["name"], "mode": e["mode"], **own}
            writer.writerow(
                {name: value for name, value in (row | (whole if i == 0 else {})).items() if value is not None}
            )
    return out.getvalue()


def _endpoint_rows(figures: Facts) -> list[list[str]]:
    rows = []
    for e in figures["endpoints"]:
        spent = "not known" if e["spent_usd"] is None else f"{dollars(e['spent_usd'])}{and_unknown(e['spent_lacking'])}"
        requests = "not known" if e["requests"] is None else f"{e['requests']:,.0f}"
        ends = [spent, requests, "nothing" if e["coverage"] is None else f"{e['coverage']:.0%}"]
        targets = [
            [
                phrase(o["target"]),
                observed(o),
                figure(o["target"], o["limit"]),
                "**missed**" if o["met"] is False else verdict(o["met"]),
            ]
            for o in e["objective"]
        ] or [["none is set", "", "", ""]]
        rows += [
            [e["name"] if not i else "", *target, *(ends if not i else ["", "", ""])]
            for i, target in enumerate(targets)
        ]
    return rows


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        f"| {' | '.join(_cell(cell) for cell in row)} |" for row in (columns, ["---"] * len(columns), *rows)
    )


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
