"""An answer as one HTML file that needs no network: what was sent and answered over time, and the distributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent import charts
from agent.report import environment, stylesheet

_SHOWN = {
    "ttft_s": "Time to first token, from when it was due",
    "ttft_sent_s": "Time to first token, from when it was sent",
    "itl_s": "Gap between tokens",
    "tpot_s": "Time per output token, of a request",
    "e2e_s": "End-to-end, from when it was due",
}
#: As short as a legend needs them.
_SHORT = {
    "ttft_s": "first token, from due",
    "ttft_sent_s": "first token, from sent",
    "e2e_s": "last token, from due",
    "itl_s": "gap between tokens",
    "tpot_s": "mean of a request",
}
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}


def page(answer: Mapping[str, Any], now: float) -> str:
    slices = [piece for piece in answer["slices"] if piece["seconds"] > 0]
    return (
        environment()
        .get_template("simulate.html")
        .render(
            answer=answer,
            shown=_SHOWN,
            quantiles=list(_QUANTILES),
            errors=sum(answer["errors"].values()),
            load=load(answer["load"]),
            limits={o["target"]: o["limit"] for o in answer["objective"]},
            traffic=charts.traffic(slices, answer["warmup_s"]),
            waits=[
                {"title": title, "svg": charts.over_time(slices, metric, _limit(answer, metric), answer["warmup_s"])}
                for metric, title in (("ttft", "Time to first token"), ("itl", "Gap between tokens"))
            ],
            spread=charts.quantiles(
                {_SHORT[name]: _points(answer[name]) for name in ("ttft_s", "ttft_sent_s", "e2e_s")}
            ),
            gaps=charts.quantiles({_SHORT[name]: _points(answer[name]) for name in ("itl_s", "tpot_s")}),
            now=now,
            css=stylesheet(),
        )
    )


def load(load: Mapping[str, Any]) -> str:
    """The load in a few words."""
    if load["kind"] == "closed":
        return f"{load['users']} users, each waiting for its answer"
    if load["kind"] == "sessions":
        return f"{load['sessions']} conversations"
    if load["kind"] == "replay":
        return (
            f"{load['requests']} requests of {load.get('trace') or load.get('like')}, {load['speed']:g} times as fast"
        )
    return f"{load['arrivals']} arrivals, {load['peak_rate']:g} a second at the peak"


def _limit(answer: Mapping[str, Any], metric: str) -> float | None:
    return next((o["limit"] for o in answer["objective"] if o["target"].startswith(f"{metric}_")), None)


def _points(summary: Mapping[str, Any]) -> list[dict[str, float | None]]:
    """Quantiles with the ends of their intervals."""
    intervals = summary.get("ci95", {})
    return [
        {
            "share": share,
            "s": summary[name],
            "low": intervals.get(name, [None])[0],
            "high": intervals.get(name, [None])[-1],
        }
        for name, share in _QUANTILES.items()
        if summary[name] is not None
    ]
