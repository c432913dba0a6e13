"""Answers of both kinds as rows that tables and charts read. Unknown is None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actuators.shape import Shape

#: A queue that grows in more than this share of the replays counts as one that grows.
SATURATED = 0.5
#: Always shown, whatever the objective is.
SHOWN = ("ttft_p50_s", "ttft_p95_s", "itl_p95_s", "e2e_p95_s")


@dataclass(frozen=True, slots=True)
class Figure:
    """Seconds; with an 80 % interval where it is a prediction."""

    mid: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate."""

    number: int
    """From 1, the base or the present shape."""
    name: str
    label: str | None
    """What it runs on, where the name does not say it all."""
    told: tuple[str, ...]
    """What else came of it: refusals, cold starts, replicas that came and went."""
    refused: str | None
    """Why nothing is claimed for it."""
    replicas: float | None
    """On average, where they change."""
    usd_per_hour: float | None
    figures: Mapping[str, Figure]
    """By the objective's names, such as ``ttft_p95_s``."""
    done: tuple[int, int] | None
    """Completed, of so many requests."""
    goodput_per_s: float | None
    saturates: float | None
    """Share of the replays whose queue grew without end."""
    verdict: str | None
    """Of the whole objective: ``met``, ``missed``, ``not known``. None: there is none."""


def rows(answer: Mapping[str, Any]) -> list[Row]:
    """Of a trace's or of an endpoint's answer."""
    return [_row(number, candidate) for number, candidate in enumerate(answer["candidates"], 1)]


def _row(number: int, c: Mapping[str, Any]) -> Row:
    refused = c.get("refused")
    replayed = "completed" in c
    return Row(
        number=number,
        name=c["candidate"],
        label=c["label"] if replayed else _label(c, number),
        told=told(c) if replayed and not refused else (),
        refused=refused["detail"] if refused else None,
        replicas=_provisioned(c) if replayed else c["shape"].get("replicas"),
        usd_per_hour=c["usd_per_hour"],
        figures=(_replayed(c) if replayed else {}) | _predicted(c),
        done=(c["completed"], c["requests"]) if replayed and not refused else None,
        goodput_per_s=c.get("goodput_per_s"),
        saturates=c["saturates"],
        verdict=c["verdict"],
    )


def told(c: Mapping[str, Any]) -> tuple[str, ...]:
    """What else came of a candidate of a trace, each in a few words."""
    return tuple(line for line in (_refusals(c), _instances(c), _replicas(c)) if line)


def _refusals(c: Mapping[str, Any]) -> str | None:
    if c["throttled"] is None:
        return None
    parts = [f"{_many(c['throttled'], 'answer')} of 429" if c["throttled"] else "no answer of 429"]
    for name, what in (("retries", "sent again"), ("spilled_requests", "spilled over"), ("gave_up", "gave up")):
        if c[name]:
            parts.append(f"{c[name]:,} {what}")
    return ", ".join(parts)


def _instances(c: Mapping[str, Any]) -> str | None:
    if c["cold_starts"] is None:
        return None
    gave_up = f", {c['gave_up']:,} gave up" if c["gave_up"] else ""
    return f"{_many(c['cold_starts'], 'cold start')}, at most {_many(c['replicas_max'], 'instance')}{gave_up}"


def _replicas(c: Mapping[str, Any]) -> str | None:
    counts = [count for _, count in c["replica_timeline"] or ()]
    if len(counts) < 2:
        return None
    average = _provisioned(c)
    lost = f", {_many(c['failed'], 'request')} lost with one that failed" if c["failed"] else ""
    mean = "" if average is None else f", {average:.3g} paid for on average"
    return f"{min(counts)} to {max(counts)} replicas{mean}{lost}"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _provisioned(c: Mapping[str, Any]) -> float | None:
    """Replicas or instances, over the time simulated."""
    hours, seconds = c["replica_hours"], c["simulated_s"]
    return None if hours is None or not seconds else float(hours * 3600 / seconds)


def _label(c: Mapping[str, Any], number: int) -> str:
    """The present shape whole; of the others what they run on, since their names say what else differs."""
    shape = Shape.from_dict(c["shape"])
    return (shape if number == 1 else replace(shape, engine={})).label()


def _replayed(c: Mapping[str, Any]) -> dict[str, Figure]:
    found = {
        f"{metric}_{quantile}_s": Figure(value)
        for metric in ("ttft", "itl", "tpot", "e2e", "queue")
        for quantile, value in c[f"{metric}_s"].items()
        if value is not None and quantile != "mean"
    }
    return found | {o["target"]: Figure(o["value"]) for o in c["objective"] if o["value"] is not None}


def _predicted(c: Mapping[str, Any]) -> dict[str, Figure]:
    """With their intervals, where there are any."""
    metrics = c["prediction"]["metrics"] if c["prediction"] else {}
    return {name: Figure(i["mid"], i["low"], i["high"]) for name, i in metrics.items() if name.endswith("_s")}


def shown(answer: Mapping[str, Any]) -> list[str]:
    """The metrics of the table's columns: the usual ones, and what the objective bounds."""
    targets = [o["target"] for o in answer["objective"] if o["target"].endswith("_s")]
    return [*SHOWN, *(name for name in targets if name not in SHOWN)]


def costs(found: Sequence[Row]) -> tuple[str, dict[int, float]]:
    """What a candidate costs, by its number: US dollars an hour where a price is known for any, else replicas."""
    priced = {row.number: row.usd_per_hour for row in found if row.usd_per_hour is not None}
    if priced:
        return "US dollars per hour", priced
    return "replicas", {row.number: float(row.replicas) for row in found if row.replicas is not None}


def efficient(found: Sequence[Row], metric: str) -> set[int]:
    """Numbers of those that carry the load and that no other beats in both cost and ``metric``."""
    _, cost = costs(found)
    points = [
        (cost[row.number], row.figures[metric].mid, row.number)
        for row in found
        if row.number in cost and metric in row.figures and (row.saturates or 0.0) <= SATURATED
    ]
    return {n for x, y, n in points if not any(a <= x and b <= y and (a, b) != (x, y) for a, b, _ in points)}
