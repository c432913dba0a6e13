"""The compiled event loops of the kinds. ``quota``, ``ptu``, ``serverless`` and ``usl`` validate, allocate and read the results.

One file on purpose: Numba's disk cache notices a change only in the file of the compiled function, not in those that it calls.
Times are seconds; -1 marks one that has not come. Among events at one instant, those of the server come before those of clients,
and of each the lowest number first (instance, or request in input order).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# Entries of a limit's array (``quota``).
AMOUNT, PERIOD, CONTINUOUS = range(3)
# Entries of a client's array (``base.Retries``).
TRIES, FIRST, MOST, JITTER, HEEDED = range(5)
# Columns of an instance's row (``instances``).
STATUS, RUNNING, PROGRESS, SINCE, STARTED, BUSY_SINCE, HEAP = range(7)
COLUMNS = 7
OFF, STARTING, READY = range(3)
# Entries of the limits that ``instances`` reads.
CAP, LEAST, MOST_INSTANCES, COLD, IDLE, WAIT, SIGMA, KAPPA, PACKED = range(9)
# Its counts, and the sums that it answers with.
ALIVE, WARMING, ACTIVE, HEAD, TAIL = range(5)
ALIVE_S, BUSY_S, STARTS, PEAK, END = range(5)

_SLACK = 1e-9
_GOLDEN = 0.6180339887498949


@njit(cache=True, error_model="numpy", inline="always")
def _before(key, ident, other_key, other):  # type: ignore[no-untyped-def]
    return key < other_key or (key == other_key and ident < other)


@njit(cache=True, error_model="numpy")
def _push(keys, idents, size, key, ident):  # type: ignore[no-untyped-def]
    """Into a binary heap of ``size`` (key, ident) pairs."""
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if _before(keys[parent], idents[parent], key, ident):
            break
        keys[at], idents[at] = keys[parent], idents[parent]
        at = parent
    keys[at], idents[at] = key, ident


@njit(cache=True, error_model="numpy")
def _pop(keys, idents, size):  # type: ignore[no-untyped-def]
    """Take the least off a heap of ``size``, whose top has been read."""
    key, ident = keys[size - 1], idents[size - 1]
    size -= 1
    at, child = 0, 1
    while child < size:
        if child + 1 < size and _before(keys[child + 1], idents[child + 1], keys[child], idents[child]):
            child += 1
        if _before(key, ident, keys[child], idents[child]):
            break
        keys[at], idents[at] = keys[child], idents[child]
        at = child
        child = 2 * at + 1
    keys[at], idents[at] = key, ident


# ------------------------------------------------------------------------------------------------- calls that are refused


@njit(cache=True, error_model="numpy", inline="always")
def _again(now, allowed, retried, draw, client):  # type: ignore[no-untyped-def]
    """When a client that was refused at ``now`` sends its next call; the server told it ``allowed``."""
    if allowed - now <= client[HEEDED]:
        return allowed
    turn = draw + retried * _GOLDEN
    wait = min(client[FIRST] * 2.0**retried, client[MOST])
    return now + wait * (1.0 - client[JITTER] * (turn - math.floor(turn)))


@njit(cache=True, error_model="numpy", inline="always")
def _refill(limit, state, now):  # type: ignore[no-untyped-def]
    """Bring a limit to ``now``. state: (what is left, when that was so, or the number of the window)."""
    if limit[CONTINUOUS] > 0.0:
        state[0] = min(limit[AMOUNT], state[0] + (now - state[1]) * (limit[AMOUNT] / limit[PERIOD]))
        state[1] = now
    else:
        window = math.floor(now / limit[PERIOD])
        if window != state[1]:
            state[0], state[1] = limit[AMOUNT], window


@njit(cache=True, error_model="numpy", inline="always")
def _allowed_at(limit, state, now, need):  # type: ignore[no-untyped-def]
    """When ``need`` would be accepted if nobody else came; ``now`` where it is. A window accepts while anything is left."""
    if limit[CONTINUOUS] > 0.0:
        short = need - state[0]
        return now if short <= _SLACK * limit[AMOUNT] else now + short / (limit[AMOUNT] / limit[PERIOD])
    return now if state[0] > _SLACK else (state[1] + 1.0) * limit[PERIOD]


@njit(cache=True, error_model="numpy")
def quota(arrival, tokens, draws, token_limit, request_limit, client):  # type: ignore[no-untyped-def]
    """Calls against two limits. tokens: (n,) estimated of each, -1 for one that can never be accepted.

    Returns (n,) when each was accepted, (n,) calls sent, how many were refused, and the time of the last event.
    """
    n = arrival.shape[0]
    accepted, tries = np.full(n, -1.0), np.zeros(n, np.int64)
    keys, idents, size = np.empty(n), np.empty(n, np.int64), 0
    left_tokens = np.array([token_limit[AMOUNT], 0.0])
    left_requests = np.array([request_limit[AMOUNT], 0.0])
    upcoming, refused, now = 0, 0, 0.0
    while upcoming < n or size > 0:
        if size > 0 and (upcoming == n or _before(keys[0], idents[0], arrival[upcoming], upcoming)):
            now, request = keys[0], idents[0]
            _pop(keys, idents, size)
            size -= 1
        else:
            now, request = arrival[upcoming], upcoming
            upcoming += 1
        tries[request] += 1
        if tokens[request] < 0.0:
            continue
        _refill(token_limit, left_tokens, now)
        _refill(request_limit, left_requests, now)
        by_tokens = _allowed_at(token_limit, left_tokens, now, tokens[request])
        by_requests = _allowed_at(request_limit, left_requests, now, 1.0)
        if by_requests <= now:
            left_requests[0] -= 1.0  # a call that the tokens refuse counts as a request too
            if by_tokens <= now:
                left_tokens[0] -= tokens[request]
                accepted[request] = now
                continue
        refused += 1
        if tries[request] < client[TRIES]:
            when = _again(now, max(by_tokens, by_requests), tries[request] - 1, draws[request], client)
            _push(keys, idents, size, when, request)
            size += 1
    return accepted, tries, refused, now


@njit(cache=True, error_model="numpy", inline="always")
def _drain(state, now, rate):  # type: ignore[no-untyped-def]
    """Bring a leaky bucket to ``now``. state: (level, when that was so, level x seconds so far, highest level)."""
    span = now - state[1]
    if state[0] >= rate * span:
        state[2] += span * (state[0] - 0.5 * rate * span)
        state[0] -= rate * span
    else:
        state[2] += 0.5 * state[0] * state[0] / rate
        state[0] = 0.0
    state[1] = now


@njit(cache=True, error_model="numpy")
def ptu(arrival, estimate, actual, call_s, draws, bucket, rate, client, spills):  # type: ignore[no-untyped-def]
    """Calls against a leaky bucket. estimate, actual: (n,) weighted tokens of each; call_s: (n,) seconds of each call.

    Returns (n,) when each was accepted, (n,) calls sent, (n,) whether it went elsewhere, how many were refused, and the state of the
    bucket as ``_drain`` has it.
    """
    n = arrival.shape[0]
    accepted, tries, spilled = np.full(n, -1.0), np.zeros(n, np.int64), np.zeros(n, np.bool_)
    keys, idents, size = np.empty(n), np.empty(n, np.int64), 0
    ends, ending, running = np.empty(n), np.empty(n, np.int64), 0
    state, upcoming, refused = np.zeros(4), 0, 0
    while upcoming < n or size > 0 or running > 0:
        retry = size > 0 and (upcoming == n or _before(keys[0], idents[0], arrival[upcoming], upcoming))
        now = math.inf
        if retry:
            now = keys[0]
        elif upcoming < n:
            now = arrival[upcoming]
        if running > 0 and ends[0] <= now:
            _drain(state, ends[0], rate)
            state[0] = max(0.0, state[0] + actual[ending[0]] - estimate[ending[0]])
            state[3] = max(state[3], state[0])
            _pop(ends, ending, running)
            running -= 1
            continue
        request = idents[0] if retry else upcoming
        if retry:
            _pop(keys, idents, size)
            size -= 1
        else:
            upcoming += 1
        _drain(state, now, rate)
        tries[request] += 1
        if state[0] < bucket:
            state[0] += estimate[request]
            state[3] = max(state[3], state[0])
            accepted[request] = now
            _push(ends, ending, running, now + call_s[request], request)
            running += 1
            continue
        refused += 1
        if spills:
            accepted[request], spilled[request] = now, True
        elif tries[request] < client[TRIES]:
            wait = (
                math.floor((state[0] - bucket) / rate * 1000.0) + 1.0
            ) / 1000.0  # whole milliseconds, and then below
            _push(keys, idents, size, _again(now, now + wait, tries[request] - 1, draws[request], client), request)
            size += 1
    return accepted, tries, spilled, refused, state


# --------------------------------------------------------------------------------------------- instances that share their time


@njit(cache=True, error_model="numpy")
def _rank(tree, values, at, width):  # type: ignore[no-untyped-def]
    """``values[at]`` changed: find again which of ``width`` (a power of two) is the least, the first of them on ties."""
    at = (at + width) >> 1
    while at > 0:
        left, right = tree[2 * at], tree[2 * at + 1]
        tree[at] = left if values[left] <= values[right] else right
        at >>= 1


@njit(cache=True, error_model="numpy", inline="always")
def _slowdown(running, sigma, kappa):  # type: ignore[no-untyped-def]
    return 1.0 + sigma * (running - 1.0) + kappa * running * (running - 1.0)


@njit(cache=True, error_model="numpy", inline="always")
def _progress(row, now, sigma, kappa):  # type: ignore[no-untyped-def]
    """Bring an instance's progress, the seconds of work alone that each of its requests got so far, to ``now``."""
    if row[RUNNING] > 0.0:
        row[PROGRESS] += (now - row[SINCE]) / _slowdown(row[RUNNING], sigma, kappa)
    row[SINCE] = now


@njit(cache=True, error_model="numpy")
def _happen(at, now, row, keys, idents, nexts, loads, counts, marks, sums, limits):  # type: ignore[no-untyped-def]
    """What instance ``at`` was going to do at ``now``: be ready, answer, finish a request, or go because it was idle."""
    _, answered, ended = marks
    if row[STATUS] == STARTING:
        row[STATUS] = READY
        counts[WARMING] -= 1
        nexts[at] = now + limits[IDLE]
    elif row[RUNNING] > 0.0:
        ident = idents[0]
        row[PROGRESS], row[SINCE] = keys[0], now
        _pop(keys, idents, int(row[HEAP]))
        row[HEAP] -= 1
        if ident & 1 == 0:
            answered[ident >> 1] = now
            return
        ended[ident >> 1] = sums[END] = now
        row[RUNNING] -= 1
        counts[ACTIVE] -= 1
        if row[RUNNING] == 0.0:
            sums[BUSY_S] += now - row[BUSY_SINCE]
            nexts[at] = now + limits[IDLE]
    elif counts[ALIVE] > limits[LEAST]:
        row[STATUS] = OFF
        counts[ALIVE] -= 1
        sums[ALIVE_S] += now - row[STARTED]
        nexts[at] = loads[at] = math.inf
    else:
        nexts[at] = math.inf


@njit(cache=True, error_model="numpy")
def _admit(now, row, keys, idents, counts, marks, queue, requests, limits):  # type: ignore[no-untyped-def]
    """Give the free slots of an instance to those that wait."""
    _, first, work = requests
    _progress(row, now, limits[SIGMA], limits[KAPPA])
    while counts[HEAD] < counts[TAIL] and row[RUNNING] < limits[CAP]:
        request = queue[counts[HEAD]]
        counts[HEAD] += 1
        marks[0][request] = now
        if row[RUNNING] == 0.0:
            row[BUSY_SINCE], row[PROGRESS] = now, 0.0
        row[RUNNING] += 1
        counts[ACTIVE] += 1
        if first[request] >= 0.0:
            _push(keys, idents, int(row[HEAP]), row[PROGRESS] + first[request], 2 * request)
            row[HEAP] += 1
        _push(keys, idents, int(row[HEAP]), row[PROGRESS] + work[request], 2 * request + 1)
        row[HEAP] += 1


@njit(cache=True, error_model="numpy")
def _start(now, rows, nexts, counts, sums, cold_s):  # type: ignore[no-untyped-def]
    """Start the first instance that is off, and say which."""
    at = 0
    while rows[at, STATUS] != OFF:
        at += 1
    rows[at, STATUS], rows[at, STARTED], nexts[at] = STARTING, now, now + cold_s
    counts[ALIVE] += 1
    counts[WARMING] += 1
    sums[STARTS] += 1.0
    sums[PEAK] = max(sums[PEAK], counts[ALIVE])
    return at


@njit(cache=True, error_model="numpy")
def _wider(old, columns):  # type: ignore[no-untyped-def]
    """A copy with at least ``columns``, and with room to spare."""
    new = np.empty((old.shape[0], max(columns, 2 * old.shape[1])), old.dtype)
    new[:, : old.shape[1]] = old
    return new


@njit(cache=True, error_model="numpy")
def _foresee(at, now, row, keys, nexts, loads, limits):  # type: ignore[no-untyped-def]
    """When instance ``at`` does something next, and how it ranks for the next request."""
    if row[RUNNING] > 0.0:
        slow = _slowdown(row[RUNNING], limits[SIGMA], limits[KAPPA])
        nexts[at] = max(now, row[SINCE] + (keys[0] - row[PROGRESS]) * slow)
    if row[STATUS] == READY:
        load = -row[RUNNING] if limits[PACKED] > 0.0 else row[RUNNING]
        loads[at] = load if row[RUNNING] < limits[CAP] else math.inf


@njit(cache=True, error_model="numpy")
def instances(requests, limits):  # type: ignore[no-untyped-def]
    """Requests on instances with slots, and one queue before them.

    requests: (n,) arrival; (n,) seconds alone on an instance to the first token (-1: it does not stream); (n,) to the end.
    limits: as named above. With k running on an instance each takes 1 + SIGMA (k - 1) + KAPPA k (k - 1) times as long. PACKED: the fullest
    with a free slot gets the next request, else the emptiest. Who waits longer than WAIT gives up.
    Returns (n,) when each got its slot, its first token and its end, and the sums.
    """
    arrival = requests[0]
    n, most, width = arrival.shape[0], int(limits[MOST_INSTANCES]), 1
    while width < most:
        width *= 2
    marks = (np.full(n, -1.0), np.full(n, -1.0), np.full(n, -1.0))
    rows, nexts, loads = np.zeros((most, COLUMNS)), np.full(width, math.inf), np.full(width, math.inf)
    by_time, by_load = np.zeros(2 * width, np.int64), np.zeros(2 * width, np.int64)
    by_time[width:], by_load[width:] = np.arange(width), np.arange(width)
    keys, idents = np.empty((most, 8)), np.empty((most, 8), np.int64)
    queue, counts, sums = np.empty(n, np.int64), np.zeros(5, np.int64), np.zeros(5)
    counts[ALIVE] = sums[PEAK] = limits[LEAST]
    for at in range(width - 1, -1, -1):
        if at < limits[LEAST]:
            rows[at, STATUS], loads[at] = READY, 0.0
        _rank(by_time, nexts, at, width)
        _rank(by_load, loads, at, width)
    upcoming = 0
    while upcoming < n or counts[ACTIVE] > 0 or counts[HEAD] < counts[TAIL]:
        at = by_time[1]
        comes = upcoming < n and arrival[upcoming] < nexts[at]
        now = arrival[upcoming] if comes else nexts[at]
        while counts[HEAD] < counts[TAIL] and now - arrival[queue[counts[HEAD]]] > limits[WAIT]:
            counts[HEAD] += 1
        if comes:
            queue[counts[TAIL]] = upcoming
            counts[TAIL] += 1
            upcoming += 1
            at = by_load[1]
        else:
            _happen(at, now, rows[at], keys[at], idents[at], nexts, loads, counts, marks, sums, limits)
        row = rows[at]
        if row[STATUS] == READY and row[RUNNING] < limits[CAP] and counts[HEAD] < counts[TAIL]:
            columns = int(row[HEAP] + 2 * min(limits[CAP] - row[RUNNING], counts[TAIL] - counts[HEAD]))
            if columns > keys.shape[1]:
                keys, idents = _wider(keys, columns), _wider(idents, columns)
            _admit(now, row, keys[at], idents[at], counts, marks, queue, requests, limits)
        _foresee(at, now, row, keys[at], nexts, loads, limits)
        _rank(by_time, nexts, at, width)
        _rank(by_load, loads, at, width)
        short = counts[TAIL] - counts[HEAD] > counts[WARMING] * limits[CAP]
        if comes and short and counts[ALIVE] < most:
            _rank(by_time, nexts, _start(now, rows, nexts, counts, sums, limits[COLD]), width)
    sums[END] = max(sums[END], arrival[-1])
    for at in range(most):
        if rows[at, STATUS] != OFF:
            sums[ALIVE_S] += max(0.0, sums[END] - rows[at, STARTED])
    return marks[0], marks[1], marks[2], sums
