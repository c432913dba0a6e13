"""The tables and charts of docs/policies.md, from what ``policies.py`` wrote.

    python benchmarks/policies_page.py --rows FILE.json ... --timeline FILE.csv ... [--page docs/policies.md]

Several files are one result: of a policy on a scenario the last one holds. Only what stands between the page's marks is replaced.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agent import charts  # noqa: E402

BEGIN, END = "<!-- begin: benchmarks/policies_page.py -->", "<!-- end: benchmarks/policies_page.py -->"
LEAST_WITHIN = 0.99
#: Behind the name of a scenario whose first day is scored apart.
FIRST = "/first"
#: What costs are told beside: the clairvoyant that is held to nothing but the share.
BASE = "oracle"
#: Whose replicas are drawn over time, where they are told.
CHARTED = ("flyball", "oracle-by-rules", "hpa-concurrency-tuned", "hpa-concurrency")
_FLYBALL, _ORACLE, _PEER, _TUNED = (
    "Flyball",
    "clairvoyant by Flyball's rules",
    "peer, as documented",
    "peer, searched for",
)
_COLOURS = {_FLYBALL: "#d55e00", _ORACLE: "#009e73", _PEER: "#9dbfe3", _TUNED: "#2f6db3"}
Row = Mapping[str, Any]


def merged(several: Iterable[Sequence[Row]]) -> list[Row]:
    """Of each policy on each scenario the last, in the order in which they came first."""
    found: dict[tuple[str, str], Row] = {}
    for rows in several:
        found |= {(row["scenario"], row["policy"]): row for row in rows}
    return list(found.values())


def matrix(rows: Sequence[Row], cell: Any) -> list[str]:
    """A table of policies by scenarios: Flyball, the clairvoyants, and the peers as they came."""
    names, policies = (list(dict.fromkeys(str(row[key]) for row in rows)) for key in ("scenario", "policy"))
    policies.sort(key=lambda policy: [not policy.startswith(name) for name in ("flyball", "oracle")])
    by = {(row["scenario"], row["policy"]): row for row in rows}
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for policy in policies:
        cells = [cell(by[name, policy], by.get((name, BASE))) if (name, policy) in by else "" for name in names]
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    return lines


def cost(row: Row, base: Row | None) -> str:
    """Beside the free clairvoyant's, and the share within the objective; in bold where that share is enough."""
    ratio = "" if base is None else f"{row['cost_usd'] / base['cost_usd']:.2f}"
    text = f"{ratio} · {100 * row['within_objective']:.1f} %"
    return f"**{text}**" if row["within_objective"] >= LEAST_WITHIN else text


def steadiness(row: Row, _base: Row | None) -> str:
    return f"{row['changes']} · {row['moves']} · {row['wrong_shrinks']} · {len(row['breach_hours'])}"


def _kind(policy: str) -> str:
    if policy.startswith("flyball"):
        return _FLYBALL
    if policy == "oracle-by-rules":
        return _ORACLE
    return _TUNED if policy.endswith("-tuned") else _PEER


def cost_chart(rows: Sequence[Row]) -> str:
    """Costs beside the free clairvoyant's, by scenario; hollow where fewer than 99 % were in time. Beyond four times is left out."""
    base = {row["scenario"]: row["cost_usd"] for row in rows if row["policy"] == BASE and not _first(row)}
    shown = [
        {
            "scenario": row["scenario"],
            "ratio": row["cost_usd"] / base[row["scenario"]],
            "kind": _kind(row["policy"]),
            "enough": row["within_objective"] >= LEAST_WITHIN,
        }
        for row in rows
        if row["scenario"] in base and row["policy"] != BASE
    ]
    data = [point for point in shown if point["ratio"] <= 4.0]
    colour = alt.Color("kind:N", title=None, scale=alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values())))
    x = alt.X("ratio:Q", title="cost, the free clairvoyant's = 1", scale=alt.Scale(zero=False))
    y = alt.Y("scenario:N", title=None, sort=list(base))
    filled = alt.Chart(alt.InlineData([p for p in data if p["enough"]])).mark_point(filled=True, size=80, opacity=0.9)
    hollow = alt.Chart(alt.InlineData([p for p in data if not p["enough"]])).mark_point(size=60, opacity=0.9)
    layers = [layer.encode(x=x, y=y, color=colour) for layer in (filled, hollow)]
    return charts.svg(alt.layer(*layers).properties(width=640, height=36 * len(base)))


def replicas_chart(times: Sequence[Mapping[str, str]], scenario: str, policies: Sequence[str]) -> str:
    """Requests a second, and the replicas of some policies (at most four), over the scenario's hours."""
    mine = [t for t in times if t["scenario"] == scenario]
    first = [t for t in mine if t["policy"] == mine[0]["policy"]]
    hours = round((int(first[-1]["at_s"]) + int(first[1]["at_s"])) / 3600)
    x = alt.X("hour:Q", title="hours", axis=alt.Axis(tickCount=12), scale=alt.Scale(domain=[0, hours], nice=False))
    load = [{"hour": int(t["at_s"]) / 3600, "rate": float(t["requests_per_s"])} for t in first]
    above = (
        alt.Chart(alt.InlineData(load))
        .mark_line(strokeWidth=1.6, color="#7a7f87")
        .encode(x=x, y=alt.Y("rate:Q", title="requests/s"))
        .properties(width=760, height=90)
    )
    counts = [
        {"hour": int(t["at_s"]) / 3600, "replicas": int(t["replicas"]), "policy": t["policy"]}
        for t in mine
        if t["policy"] in policies
    ]
    palette = ["#d55e00", "#009e73", "#2f6db3", "#cc79a7"]
    colour = alt.Color("policy:N", title=None, scale=alt.Scale(domain=list(policies), range=palette[: len(policies)]))
    below = (
        alt.Chart(alt.InlineData(counts))
        .mark_line(strokeWidth=1.8, interpolate="step-after", opacity=0.85)
        .encode(x=x, y=alt.Y("replicas:Q", title="replicas", axis=alt.Axis(tickMinStep=1)), color=colour)
        .properties(width=760, height=160)
    )
    return charts.svg(alt.vconcat(above, below))


def tables(rows: Sequence[Row]) -> str:
    """First days, of which no season is known, apart."""
    learned = [row for row in rows if not _first(row)]
    first = [{**row, "scenario": row["scenario"].removesuffix(FIRST)} for row in rows if _first(row)]
    parts = [
        "Cost beside `oracle`'s · share of requests within the objective, in bold from 99 %:",
        "\n".join(matrix(learned, cost)),
        "Changes decided · moves of the count · wrong shrinks · hours in breach:",
        "\n".join(matrix(learned, steadiness)),
        *(
            ["The same of the first days:", "\n".join(matrix(first, cost)), "\n".join(matrix(first, steadiness))]
            if first
            else []
        ),
    ]
    return "\n\n".join(parts)


def _first(row: Row) -> bool:
    return str(row["scenario"]).endswith(FIRST)


def replaced(page: str, text: str) -> str:
    """The page with ``text`` between its marks. Raises ValueError where they are not there."""
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"the page has no place for the tables: {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, nargs="+", required=True)
    parser.add_argument("--timeline", type=Path, nargs="*", default=[])
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "policies.md")
    args = parser.parse_args(arguments)
    rows = merged(json.loads(path.read_text())["rows"] for path in args.rows)
    args.page.write_text(replaced(args.page.read_text(), tables(rows)))
    (args.page.parent / "policies-cost.svg").write_text(cost_chart(rows))
    times: list[dict[str, str]] = []
    for path in args.timeline:
        with path.open(newline="") as file:
            times += csv.DictReader(file)
    for scenario in dict.fromkeys(t["scenario"] for t in times):
        there = {t["policy"] for t in times if t["scenario"] == scenario}
        chart = replicas_chart(times, scenario, [policy for policy in CHARTED if policy in there])
        (args.page.parent / f"policies-replicas-{scenario}.svg").write_text(chart)


if __name__ == "__main__":
    main()
