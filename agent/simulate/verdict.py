"""Whether the client kept up with its own plan: only then are its figures those of the server. Pure: a run in, reasons out."""

from __future__ import annotations

from dataclasses import dataclass

from collectors.traffic.tally import Tally

#: The client's own delay may be so large a share of the median time to first token, and never matters below the seconds beside it.
_TAIL_SHARE, _TAIL_S = 0.05, 0.005
_MEAN_SHARE, _MEAN_S = 0.01, 0.001
#: Users may lose this share of their time to the client.
_MISSING_SHARE = 0.02
#: A worker that uses more of its core than this has no room left for what comes unevenly.
_BUSIEST = 0.9


@dataclass(frozen=True, slots=True)
class Reason:
    """Why figures are not to be trusted."""

    code: str
    detail: str

    def as_dict(self) -> dict[str, str]:
        return {"code": self.code, "detail": self.detail}


def reasons(tally: Tally, stopped: str | None, closed: bool = False) -> list[Reason]:
    """What speaks against this run; none: it is valid.

    In a closed loop a late request is late for nobody and its latency counts from when it went; there lateness matters as the load
    that is missing.
    """
    watch = tally.watch
    found: list[Reason] = []
    typical = tally.values["ttft_sent_s"].quantiles([0.5])[0] or 0.0
    tail, mean = max(_TAIL_S, _TAIL_SHARE * typical), max(_MEAN_S, _MEAN_SHARE * typical)
    late, whole = watch.lateness.mean, tally.values["e2e_sent_s"].mean
    if closed and late is not None and whole is not None and late > _MISSING_SHARE * whole:
        found.append(
            Reason("late_sending", f"users sent {late * 1e3:.1f} ms late on average, so there was less load. {_LESS}")
        )
    judged = [("late_reading", watch.read_delay, "answers lay unread for up to")]
    if not closed:
        judged.append(("late_sending", watch.lateness, "requests went"))
    for code, values, what in judged:
        p99 = values.quantiles([0.99])[0]
        if p99 is not None and p99 > tail:
            after = " late" if code == "late_sending" else ""
            detail = f"at p99 {what} {p99 * 1e3:.1f} ms{after}"
            found.append(Reason(code, f"{detail}, above {tail * 1e3:.1f} ms. {_LESS}"))
        elif values.mean is not None and values.mean > mean:
            after = " late" if code == "late_sending" else ""
            detail = f"on average {what} {values.mean * 1e3:.2f} ms{after}"
            found.append(Reason(code, f"{detail}, above {mean * 1e3:.2f} ms. {_LESS}"))
    if watch.busiest > _BUSIEST:
        found.append(Reason("client_cpu", f"a worker used {watch.busiest:.0%} of its core. {_LESS}"))
    limited = tally.errors["client_limit"]
    if limited:
        found.append(Reason("client_limit", f"{limited} requests got no connection: {tally.details['client_limit']}"))
    if tally.unsent and stopped is None:
        found.append(Reason("unsent", f"{tally.unsent} of {tally.planned} requests were due and not sent. {_LESS}"))
    if not tally.ok:
        found.append(Reason("nothing_measured", "no request succeeded after the warm-up, so there is no figure"))
    return found


_LESS = "The client was the bottleneck: use more cores (--workers), a quieter machine, or less traffic"
