"""Figures in words, the same wherever people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

#: Ends that differ by less than this share are one figure to a reader.
_ALIKE = 0.02


#: Units of a duration: from so many seconds on, its name, its seconds, and those of the unit that its rest is told in.
_DURATIONS = ((171_000.0, "d", 86_400, "h", 3600), (3570.0, "h", 3600, "min", 60), (59.5, "min", 60, "s", 1))
#: Of so many or more, no rest is told.
_MANY = 10


def lasting(seconds: float) -> str:
    """``0.25 s``, ``45 s``, ``2 min 31 s``, ``49 min``, ``3 h``, ``2 d 12 h``."""
    for least, unit, size, part, step in _DURATIONS:
        if seconds >= least:
            whole, rest = divmod(round(seconds / step) * step, size)
            if whole >= _MANY:
                return f"{round(seconds / size)} {unit}"
            return f"{whole} {unit} {rest // step} {part}" if rest else f"{whole} {unit}"
    return f"{seconds:.2g} s"


#: Of each latency, by what its metric begins with.
METRICS = {
    "ttft": "time to first token",
    "itl": "gap between tokens",
    "e2e": "end-to-end time",
    "tpot": "time per output token",
    "queue": "time in the queue",
}
_PLAIN = {
    "error_rate": "share of errors",
    "throttle_rate": "share of calls refused for a rate or quota",
    "spill_rate": "share of calls that spill over",
    "ptu_usage_mean": "provisioned throughput in use, on average",
    "ptu_usage_max": "provisioned throughput in use, at most",
    "output_tokens_per_s": "output tokens a second",
    "requests_per_s": "requests a second",
    "goodput_per_s": "requests a second within the objective",
    "running_mean": "requests running, on average",
    "waiting_mean": "requests waiting, on average",
    "kv_usage_mean": "KV cache in use, on average",
    "kv_usage_max": "KV cache in use, at most",
    "usd_per_1k_tokens": "$ per 1,000 tokens",
}
_SHARES = frozenset(
    ("error_rate", "throttle_rate", "spill_rate", "kv_usage_mean", "kv_usage_max", "ptu_usage_mean", "ptu_usage_max")
)
_QUANTILE = re.compile(r"(?P<metric>[a-z0-9]+)_p(?P<percent>[0-9.]+)_s")


def wording(metric: str) -> str:
    """A metric's name as a person says it: ``time to first token, p95`` of ``ttft_p95_s``. Itself, where it has no other."""
    found = _QUANTILE.fullmatch(metric)
    if found is not None and found["metric"] in METRICS:
        return f"{METRICS[found['metric']]}, p{found['percent']}"
    return _PLAIN.get(metric, metric)


def phrase(metric: str) -> str:
    """The same within a sentence: ``time to first token (p95)``."""
    name, _, quantile = wording(metric).partition(", p")
    return f"{name} (p{quantile})" if quantile else name


def heading(metric: str) -> str:
    """The same, as short as a table's head: ``TTFT p95``, ``e2e p95``."""
    found = _QUANTILE.fullmatch(metric)
    if found is None or found["metric"] not in METRICS:
        return _PLAIN.get(metric, metric)
    short = found["metric"]
    return f"{short if short in ('e2e', 'queue') else short.upper()} p{found['percent']}"


def figure(metric: str, value: float | None) -> str:
    """A metric's value with its unit: ``230 ms``, ``3.56 s``, ``0.4 %``, ``12.3``. ``-`` where it is not known."""
    if value is None:
        return "-"
    if metric.endswith("_s") and not metric.endswith("_per_s"):
        return _seconds(value)
    return f"{100 * value:.3g} %" if metric in _SHARES else plain(value)


def plain(value: float) -> str:
    """A number to three figures, never with an exponent: ``0.0000507``, ``12.3``, ``29,696``."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    fixed = f"{value:.{digits}f}"
    return fixed.rstrip("0").rstrip(".") if "." in fixed else fixed


def _seconds(value: float) -> str:
    """``0.8 ms``, ``230 ms``, ``3.56 s``, ``2 min 31 s``."""
    if not math.isfinite(value):
        return f"{value:g} s"
    if abs(value) < 0.9995:
        return f"{plain(1000 * value)} ms"
    return f"{plain(value)} s" if abs(value) < 120 else lasting(value)


def between(metric: str, observed: float | None, least: float | None, most: float | None) -> str:
    """A figure that is known to lie between two: ``25 ms to 50 ms``, ``at least 10 s``, or itself where both ends are alike."""
    if observed is None:
        return "unknown"
    if least is None:
        return figure(metric, observed)
    if most is None or math.isinf(most):
        return f"at least {figure(metric, least)}"
    alike = most - least <= _ALIKE * abs(most)
    return figure(metric, observed) if alike else f"{figure(metric, least)} to {figure(metric, most)}"


def observed(target: Mapping[str, Any]) -> str:
    """``between`` of an objective's target in JSON."""
    return between(target["target"], target["observed"], target["at_least"], target["at_most"])


def verdict(met: bool | None) -> str:
    """Whether what must hold does: ``met``, ``missed``, ``not known``."""
    return {True: "met", False: "missed", None: "not known"}[met]


def promise(comparable: bool, inside: bool | None) -> str:
    """What came of a promised interval: ``held``, ``missed``, ``not comparable`` (the load was another), ``unknown``.

    What was observed as a range holds it where the two meet.
    """
    if not comparable:
        return "not comparable"
    return {True: "held", False: "missed", None: "unknown"}[inside]


def dollars(value: float) -> str:
    """``$1,234``, ``-$12.30``, ``$0.0025``."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    digits = f"{size:,.0f}" if size >= 100 else f"{size:,.2f}" if size >= 0.1 or size == 0 else plain(size)
    return f"{sign}${digits}"


def and_unknown(lacking: Sequence[str]) -> str:
    """What a total must say of those of whom it is not wholly known: empty where it is whole."""
    return f", and an unknown amount on {', '.join(f'`{name}`' for name in lacking)}" if lacking else ""


def saved(total: Mapping[str, Any]) -> str:
    """What was saved, as a ``SavingTotal`` in JSON tells it: ``saved $12.30 (80 %: $11.00 to $13.60); the objective would have been
    missed on 14 min (80 %: 3 to 20), it was on 0 min``. Growth costs more, and says so.
    """
    if not total["periods"]:
        return "nothing is attested yet"
    usd = total["saved_usd"]
    if usd is None:
        money = "what was saved is not known"
    elif usd["mid"] < 0:
        money = f"cost {dollars(-usd['mid'])} more{_ends(dollars(-usd['high']), dollars(-usd['low']))}"
    else:
        money = f"saved {dollars(usd['mid'])}{_ends(dollars(usd['low']), dollars(usd['high']))}"
    return f"{money}{and_unknown(total.get('lacking', ())) if usd is not None else ''}; {_missed(total)}"


def _missed(total: Mapping[str, Any]) -> str:
    would, really = total["would_miss_s"], total["missed_s"]
    was = "whether it was is not known" if really is None else f"it was on {really / 60:.0f} min"
    if would is None:
        return f"whether the objective would have been missed is not known, {was}"
    low, mid, high = (f"{would[end] / 60:.0f}" for end in ("low", "mid", "high"))
    return f"the objective would have been missed on {mid} min{_ends(low, high)}, {was}"


def _ends(low: str, high: str) -> str:
    """Of an 80 % interval; nothing where both are one figure."""
    return "" if low == high else f" (80 %: {low} to {high})"


def track_record(held: Mapping[str, Mapping[str, int]]) -> str:
    """How good the promises have been, here and on all endpoints."""
    here, everywhere = held["endpoint"], held["all"]
    if not everywhere["promises"]:
        return "none yet; 80 % of them should hold"
    own = (
        f"{here['held']} of {here['promises']} held on this endpoint, "
        if here["promises"]
        else "none on this endpoint yet, "
    )
    return f"{own}{everywhere['held']} of {everywhere['promises']} held on all (80 % should)"
