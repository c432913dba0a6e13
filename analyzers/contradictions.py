"""Facts that exclude each other. Where the telemetry, or the settings, cannot be so, nothing is concluded from them.

``ENGINE_STUCK``: requests are under way and nothing comes out of them. ``TELEMETRY_CONTRADICTS``: two metrics that count the same thing
differ beyond what sampling can do. ``METRICS_LOST``: the server answers, and tells no more what it told. ``SETTINGS_CONTRADICT``: the
server shows another limit than the settings state. ``OTHER_MODEL``: it serves another model than they name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from analyzers.finding import Reason, Severity
from analyzers.objective import mean_rate, merged, stalled_s, total
from analyzers.situation import Situation
from analyzers.vllm_arguments import DEFAULT_MAX_NUM_BATCHED_TOKENS
from analyzers.words import lasting
from collectors.window import Window

#: So many windows in a row are no accident.
_WINDOWS = 3
#: A mean of gauge readings is off by less than this factor where there are so many of them, and so many requests.
_SAMPLING, _SAMPLES, _REQUESTS = 3.0, 20, 100.0
#: Counters of one page are read at one moment: they differ by what is under way at the edges of the span.
_EDGES = 0.05
#: Of a limit that is stated, so little is reached while requests wait: it is another.
_PLATEAU = 0.9
#: A limit is where the queued windows mostly are, or the last of them, or which all of them touch: a queue begins and ends within one.
_MOSTLY = 2 / 3
#: Windows at a limit stay below it by this share, or by half a sequence: a reading may fall between one that ends and the next.
_BELOW, _BETWEEN = 0.05, 0.5
#: Of fewer tokens, an answer ends with its prefill.
_NO_DECODE = 2.0
#: With this share of an iteration's token budget in prompts, it is what requests may wait for.
_BUDGET_USED = 0.5
#: Below this use of the KV cache, it is not the cache that holds requests back.
_CACHE_FREE = 0.9


def contradictions(s: Situation) -> Iterator[tuple[Severity, Reason]]:
    """What excludes each other. ``critical``: nothing that the telemetry says can be relied on."""
    seen = [w for w in s.windows if w.coverage > 0]
    if stuck := _stuck(seen):
        yield "critical", stuck
    for reason in (_impossible(seen), _little(seen)):
        if reason is not None:
            yield "critical", reason
    if lost := _lost(s, seen):
        yield "warning", lost
    if plateau := _plateau(s, seen):
        yield "warning", plateau
    if limit := _other_limit(s, seen):
        yield "warning", limit
    if other := _other_model(s, seen):
        yield "warning", other


def _stuck(seen: Sequence[Window]) -> Reason | None:
    age = stalled_s(seen)
    if age <= 0 or age < sum(w.duration_s for w in seen[-_WINDOWS:]) * (1 - _EDGES) or len(seen) < _WINDOWS:
        return None
    running, waiting = (seen[-1].gauges[n].last if n in seen[-1].gauges else 0.0 for n in ("running", "waiting"))
    numbers = {"running": running, "waiting": waiting, "stalled_s": age}
    text = f"{running:.0f} requests run and {waiting:.0f} wait, and no token has come out for {lasting(age)}: the engine is stuck"
    return Reason("ENGINE_STUCK", text, numbers)


def _impossible(seen: Sequence[Window]) -> Reason | None:
    """Counts that cannot stand beside each other. Of one source: two sources count at different places."""
    if not seen or any("+" in w.source for w in seen):
        return None
    recent = seen[-_WINDOWS:]
    queue = [w.gauges["waiting"].mean for w in recent if "waiting" in w.gauges]
    if len(queue) == _WINDOWS and min(queue) >= 1 and all(w.count("requests") == 0 for w in recent):
        running = [w.gauges["running"].mean for w in recent if "running" in w.gauges]
        if not running or max(running) < 1:
            numbers = {"waiting_mean": sum(queue) / len(queue), "requests": 0.0}
            return _contradiction(f"{numbers['waiting_mean']:.0f} requests wait, none runs and none ends", numbers)
    prompt, cached = total(seen, "prompt_tokens"), total(seen, "cached_prompt_tokens")
    if prompt is not None and cached is not None and cached > prompt * (1 + _EDGES) + 1:
        numbers = {"cached_prompt_tokens": cached, "prompt_tokens": prompt}
        return _contradiction(f"{cached:,.0f} prompt tokens were cached of {prompt:,.0f} in all", numbers)
    output = total(seen, "output_tokens")
    for metric, what in (("ttft_s", "first tokens"), ("itl_s", "gaps between tokens")):
        sketch = merged(seen, metric)
        if sketch is None or output is None or sketch.count < _REQUESTS:
            continue
        if sketch.count > output * (1 + _EDGES) + _REQUESTS:
            numbers = {"timed": sketch.count, "output_tokens": output}
            return _contradiction(f"{sketch.count:,.0f} {what} were timed, and {output:,.0f} tokens came out", numbers)
    return None


def _little(seen: Sequence[Window]) -> Reason | None:
    """Little's law: what is under way on average is the rate times the time that each takes (J. D. C. Little, 1961)."""
    known = [w for w in seen if {"running", "waiting"} <= w.gauges.keys() and "e2e_s" in w.sketches]
    taken, requests, rate = merged(known, "e2e_s"), total(known, "requests"), mean_rate(known, "requests")
    if len(known) < _SAMPLES or taken is None or not requests or rate is None or requests < _REQUESTS:
        return None
    mean = taken.mean
    if mean is None or abs(taken.count / requests - 1) > 0.2 or sum(w.duration_s for w in known) < 20 * mean:
        return None
    counted = sum(w.gauges["running"].mean + w.gauges["waiting"].mean for w in known) / len(known)
    expected = rate * mean
    if max(counted, expected) < 1 or 1 / _SAMPLING <= counted / expected <= _SAMPLING:
        return None
    numbers = {"under_way": counted, "expected": expected, "requests_per_s": rate, "e2e_mean_s": mean}
    text = f"{counted:.3g} requests are under way on average, and {rate:.3g}/s that take {mean:.3g} s each make {expected:.3g}"
    return _contradiction(text, numbers)


def _contradiction(text: str, numbers: dict[str, float]) -> Reason:
    return Reason("TELEMETRY_CONTRADICTS", f"the telemetry contradicts itself: {text}", numbers)


def _lost(s: Situation, seen: Sequence[Window]) -> Reason | None:
    """What a decision needs, and the server told before: unknown since, and neither none nor quiet."""
    if len(seen) <= _WINDOWS:
        return None
    needed = {"requests", *("errors" if t.metric == "error_rate" else t.metric for t in s.objective.targets)}
    gone = [m for m in sorted(needed) if _told(seen[:-_WINDOWS], m) and not _told(seen[-_WINDOWS:], m)]
    if not gone:
        return None
    since = lasting(sum(w.duration_s for w in seen[-_WINDOWS:]))
    return Reason("METRICS_LOST", f"the server answers, and has not told {', '.join(gone)} for {since} or longer")


def _told(windows: Sequence[Window], metric: str) -> bool:
    return any(w.coverage_of(metric) > 0 for w in windows)


def _plateau(s: Situation, seen: Sequence[Window]) -> Reason | None:
    """Requests wait, the cache is free, and no more than so many run: that is the limit, whatever the settings state."""
    slots = s.shape.engine.get("max_num_seqs")
    if not isinstance(slots, int) or not s.shape.replicas or s.changing:
        return None
    queued = [
        w
        for w in seen
        if {"running", "waiting"} <= w.gauges.keys()
        and w.gauges["waiting"].mean >= 1
        and (w.gauges["kv_usage"].maximum if "kv_usage" in w.gauges else 0.0) < _CACHE_FREE
        and not w.count("preemptions")
    ]
    if len(queued) < _WINDOWS:
        return None
    prefill_bound = _prefill_bound(s, queued)
    most = max(w.gauges["running"].maximum for w in seen if "running" in w.gauges)
    room, edge = slots * s.shape.replicas, most - max(_BELOW * most, _BETWEEN)
    beyond = most > (1 + _BELOW) * room
    at_it = [w.gauges["running"].mean >= edge for w in queued]
    touched = all(w.gauges["running"].maximum >= edge for w in queued)
    flat = sum(at_it) >= (_WINDOWS if touched else max(_WINDOWS, _MOSTLY * len(at_it))) or all(at_it[-_WINDOWS:])
    if not beyond and (most >= _PLATEAU * room or not flat or prefill_bound):
        return None
    each, waiting = most / s.shape.replicas, sum(w.gauges["waiting"].mean for w in queued) / len(queued)
    numbers = {
        "running_most": most,
        "waiting_mean": waiting,
        "stated": float(slots),
        "replicas": float(s.shape.replicas),
    }
    ran = (
        f"{most:.0f} sequences run at once"
        if beyond
        else f"never more than {most:.0f} sequences run while {waiting:.0f} wait"
    )
    where = "" if s.shape.replicas == 1 else f", {each:.3g} on each of {s.shape.replicas} replicas"
    also = "" if beyond or s.shape.replicas == 1 else ", and does each replica get requests"
    return Reason("SETTINGS_CONTRADICT", f"{ran}{where}: is max_num_seqs really {slots}{also}?", numbers)


def _prefill_bound(s: Situation, queued: Sequence[Window]) -> bool:
    """Whether requests may wait for an iteration's token budget: long prompts with short answers, or with none, hold no slot for long.

    An iteration takes as long as a gap between tokens, so that the prompt tokens that come in one are known.
    """
    prompt, cached = total(queued, "prompt_tokens"), total(queued, "cached_prompt_tokens") or 0.0
    rate, gaps = mean_rate(queued, "prompt_tokens"), merged(queued, "itl_s")
    if not prompt or rate is None or not s.shape.replicas:
        return False
    if gaps is None or not gaps.mean:
        output, requests = total(queued, "output_tokens"), total(queued, "requests")
        return output is not None and bool(requests) and output < _NO_DECODE * (requests or 0.0)
    stated = s.shape.engine.get("max_num_batched_tokens")
    budget = stated if isinstance(stated, int) else DEFAULT_MAX_NUM_BATCHED_TOKENS
    return rate * (1 - cached / prompt) * gaps.mean / s.shape.replicas >= _BUDGET_USED * budget


def _other_limit(s: Situation, seen: Sequence[Window]) -> Reason | None:
    """Of what is bought as a rate: answers that tell another limit than is known."""
    bought = s.shape.purchase
    fact = {"tokens_per_minute": "token_limit", "requests_per_minute": "request_limit"}.get(
        bought.unit if bought else ""
    )
    told = next((w.facts[fact] for w in reversed(seen) if fact is not None and w.facts.get(fact)), None)
    if bought is None or told is None or not told.isdigit() or abs(int(told) / bought.amount - 1) <= _EDGES:
        return None
    words = bought.unit.replace("_per_", " a ")
    text = f"answers tell a limit of {int(told):,} {words}, and {bought.amount:,} are known: is it really that deployment that answers?"
    return Reason("SETTINGS_CONTRADICT", text, {"told": float(told), "known": float(bought.amount)})


def _other_model(s: Situation, seen: Sequence[Window]) -> Reason | None:
    told = Counter(w.facts["model"] for w in seen[-_WINDOWS:] if w.facts.get("model"))
    if s.model is None or not told or s.model in told:
        return None
    return Reason("OTHER_MODEL", f"the server serves {told.most_common(1)[0][0]}, and the settings name {s.model}")
