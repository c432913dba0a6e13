"""Whether the client kept up with its own plan: only then are its figures those of the server. Pure: a run in, reasons out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from collectors.traffic.tally import Tally, Values

#: The client's own delay may be so large a share of the median time to first token, and never matters below the seconds beside it.
_TAIL_SHARE, _TAIL_S = 0.05, 0.005
_MEAN_SHARE, _MEAN_S = 0.01, 0.001
#: An answer that lies unread for this share of the time between tokens may be read together with the next token.
_PILED_UP = 0.8
#: A kernel stamps all reads but, at times, those just after a connection opened.
_OWN_SHARE = 0.01
#: Users may lose this share of their time to the client.
_MISSING_SHARE = 0.02
#: A worker that runs or waits for a core for more of its time than this has no room left for what comes unevenly.
_BUSIEST = 0.9


@dataclass(frozen=True, slots=True)
class ClientLimit:
    """Why figures are not to be trusted: the client, and not the server, was at its limit."""

    code: str
    detail: str

    def as_dict(self) -> dict[str, str]:
        return {"code": self.code, "detail": self.detail}


def reasons(tally: Tally, stopped: str | None, closed: bool = False) -> list[ClientLimit]:
    """What speaks against this run; none: it is valid.

    In a closed loop a late request is late for nobody and its latency counts from when it went; there lateness matters as the load
    that is missing.
    """
    watch = tally.watch
    found: list[ClientLimit] = []
    typical = tally.values["ttft_sent_s"].quantiles([0.5])[0] or 0.0
    tail, mean = max(_TAIL_S, _TAIL_SHARE * typical), max(_MEAN_S, _MEAN_SHARE * typical)
    late, whole = watch.lateness.mean, tally.values["e2e_sent_s"].mean
    if closed and late is not None and whole is not None and late > _MISSING_SHARE * whole:
        found.append(
            ClientLimit(
                "late_sending", f"users sent {late * 1e3:.1f} ms late on average, so there was less load. {_LESS}"
            )
        )
    found += _reading(tally, tail, mean)
    if not closed:
        found += _delayed("late_sending", watch.lateness, ("requests went", " late"), tail, mean)
    if watch.busiest > _BUSIEST:
        found.append(
            ClientLimit("client_cpu", f"a worker ran, or waited for a core, {watch.busiest:.0%} of the time. {_LESS}")
        )
    limited = tally.errors["client_limit"]
    if limited:
        found.append(
            ClientLimit("client_limit", f"{limited} requests got no connection: {tally.details['client_limit']}")
        )
    if tally.unsent and stopped is None:
        found.append(
            ClientLimit("unsent", f"{tally.unsent} of {tally.planned} requests were due and not sent. {_LESS}")
        )
    if not tally.ok:
        found.append(ClientLimit("nothing_measured", "no request succeeded after the warm-up, so there is no figure"))
    return found


def _reading(tally: Tally, tail: float, mean: float) -> list[ClientLimit]:
    """What an answer lay unread is in its latencies; where the kernel stamped it, only if tokens piled up in the meantime."""
    watch = tally.watch
    if watch.own_stamps > _OWN_SHARE * watch.read_delay.count:
        return _delayed("late_reading", watch.read_delay, ("answers lay unread for up to", ""), tail, mean)
    gap = tally.values["tpot_s"].quantiles([0.5])[0]
    return _delayed(
        "late_reading", watch.read_delay, ("answers lay unread for", ""), max(_TAIL_S, _PILED_UP * (gap or 0.0))
    )


def _delayed(
    code: str, values: Values, said: tuple[str, str], tail: float, mean: float = math.inf
) -> list[ClientLimit]:
    before, after = said
    p99 = values.quantiles([0.99])[0]
    if p99 is not None and p99 > tail:
        detail = f"at p99 {before} {p99 * 1e3:.1f} ms{after}, above {tail * 1e3:.1f} ms"
    elif values.mean is not None and values.mean > mean:
        detail = f"on average {before} {values.mean * 1e3:.2f} ms{after}, above {mean * 1e3:.2f} ms"
    else:
        return []
    return [ClientLimit(code, f"{detail}. {_LESS}")]


_LESS = "The client was the bottleneck: use more cores (--workers), a quieter machine, or less traffic"
