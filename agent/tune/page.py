"""A tune as one HTML file that needs no network: the trade-off table, what each shape carries, and its latency over the rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.report import environment, stylesheet
from agent.tune.table import columns, heading, rows

_MET = {"met": True, "missed": False, "unsure": None}


def page(found: Mapping[str, Any], now: float) -> str:
    """``found``: as ``answer`` gives it."""
    return environment().get_template("tune_file.html").render(**drawn(found), now=now, css=stylesheet())


def drawn(found: Mapping[str, Any]) -> dict[str, Any]:
    """What ``_tune.html`` shows."""
    from agent import charts  # takes a while to import, and a daemon draws seldom

    best = found["recommended"]
    return {
        "found": found,
        "columns": columns(found),
        "rows": list(zip(found["trials"], rows(found), strict=True)),
        "best": best,
        "limits": charts.limits([_limit(t, best) for t in found["trials"]]),
        "loads": [chart for o in found["objective"] if (chart := _load(found, o)) is not None],
    }


def _limit(trial: Mapping[str, Any], best: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "label": f"{trial['number']}: {trial['label']}",
        "low": trial["carries_per_s"],
        "high": trial["below_per_s"],
        "promised": trial["promised_per_s"],
        "best": best is not None and best["name"] == trial["name"],
    }


def _load(found: Mapping[str, Any], objective: Mapping[str, Any]) -> dict[str, Any] | None:
    """One target over the rates that were sent."""
    from agent import charts

    name = objective["target"]
    if name == "error_rate":
        return None
    curves: dict[str, list[dict[str, Any]]] = {}
    for trial in found["trials"]:
        points = [
            {"rate": step["rate"], "s": target["observed"], "met": _MET[step["verdict"]]}
            for step in trial["steps"]
            if step["kind"] == "rate" and not step["invalid"]
            for target in step["targets"]
            if target["target"] == name
        ]
        if points:
            curves[str(trial["number"])] = points
    svg = charts.loads(curves, heading(name).removesuffix(" ms"), objective["limit"])
    left_out = max(0, len(curves) - charts.MOST_CURVES)
    return None if svg is None else {"title": heading(name).removesuffix(" ms"), "svg": svg, "left_out": left_out}
