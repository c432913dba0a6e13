"""The trade-off table of a tune, for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def columns(found: Mapping[str, Any]) -> list[str]:
    targets = [heading(o["target"]) for o in found["objective"]]
    return ["", "shape", "requests/s", "predicted", "users", *targets, "$/hour", "$/1k tokens", *_users(found)]


def heading(target: str) -> str:
    """``ttft_p95_s`` as ``TTFT p95 ms``."""
    if target == "error_rate":
        return "errors %"
    metric, quantile, _ = target.split("_")
    return f"{metric.upper() if metric != 'queue' else 'queue'} {quantile} ms"


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Cells as text; ``-`` is unknown."""
    return [_row(trial, found) for trial in found["trials"]]


def _row(trial: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    seen = {t["target"]: t["observed"] for t in trial["targets"]} if trial["carries_per_s"] else {}
    targets = [_target(o["target"], seen.get(o["target"])) for o in found["objective"]]
    return [
        str(trial["number"]),
        trial["label"],
        carried(trial),
        _number(trial["promised_per_s"]),
        "-" if trial["users"] is None else f"{trial['users']:.0f}",
        *targets,
        _money(trial["usd_per_hour"]),
        _money(trial["cost_per_1k_output_tokens_usd"]),
        *(_serves(trial["serves"][n]) for n in _counts(found)),
    ]


def carried(trial: Mapping[str, Any]) -> str:
    """The limit, with the lowest rate that was missed: ``4.2 (<4.8)``. ``~`` where it rests on few requests; ``-``: not measured."""
    if trial["state"] != "done":
        return str(trial["state"])
    if not trial["carries_per_s"]:
        below = trial["below_per_s"]
        return "-" if below is None else f"<{_number(below)}" if below else "none"
    about = "" if trial["sure"] else "~"
    below = f" (<{_number(trial['below_per_s'])})" if trial["below_per_s"] else ""
    return f"{about}{_number(trial['carries_per_s'])}{below}"


def _counts(found: Mapping[str, Any]) -> Sequence[str]:
    return list(found["trials"][0]["serves"]) if found["trials"] else []


def _users(found: Mapping[str, Any]) -> list[str]:
    return [f"{n} users" for n in _counts(found)]


def _serves(cell: Mapping[str, Any]) -> str:
    if cell["met"] is None:
        return "-"
    if not cell["met"]:
        return "no"
    cost = cell["cost_per_1k_output_tokens_usd"]
    return "yes" if cost is None else f"yes, {_money(cost)}"


def _target(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return (
        f"{100 * value:.3g}" if name == "error_rate" else f"{1000 * value:.3g}" if value < 1 else f"{1000 * value:,.0f}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _money(value: float | None) -> str:
    return "-" if value is None else f"${value:,.2f}" if value >= 1 else f"${value:.3g}"
