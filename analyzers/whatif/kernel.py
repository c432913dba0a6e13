"""The compiled event loop: vLLM's V1 schedule, jumped from event to event.

Between two events (arrival, prefill step, completion, preemption, a client's deadline) every running sequence decodes in each
iteration, so the k iterations in between are one arithmetic series: their end, the cache blocks that they take and the token gaps
that they make have closed forms. Owns the state layout, and ``KernelMachine``, which holds it; ``engine`` validates and reads the
results, ``fleet`` decides which replicas there are. One file on purpose: Numba's disk cache notices a change only in the file of
the compiled function, not in those that it calls. All is compiled without Numba's runtime (``_nrt=False``): nothing here allocates,
and counting references to arrays, by atomic instructions at each use, took three quarters of the time.

How a replica is held (one row each of ``real`` and ``whole``): decoding sequences are a binary heap of
``(iteration in which the last token comes) << REQUEST_BITS | request``. Waiting requests are a linked list through ``link``, in
order of arrival, and all of them arrived after all that run: admission is first come, first served, and preemption takes the
latest. Prefill leaves at most one sequence partly done, because the chunk that does not finish a prompt is the one that used up
the token budget; it is also the latest admitted. ``ring`` counts the decoding sequences by the iteration, modulo the block size,
in which they need their next block. Times are seconds, ``-1`` marks a time that has not come.

Speculative decoding (``drafts`` is not None) yields several tokens an iteration, by a pattern that is not the same for all
sequences, so the sums over an iteration are taken over the batch at each event. Numba compiles that as a variant of its own, and
the plain one holds nothing of it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from analyzers.whatif.model import EngineModel
from collectors.workload import Floats, Ints, Workload

REQUEST_BITS = 28
REQUEST_MASK = (1 << REQUEST_BITS) - 1

# Columns of ``real``.
NOW, BUSY, RUNNING, WAITING, GAPS, DEADLINE = range(6)
REAL_COLUMNS = 6
# Columns of ``whole``.
DECODING, CONTEXT, STEP, USED, PEAK, PARTIAL, PARTIAL_DONE, PARTIAL_BLOCKS = range(8)
HEAD, TAIL, QUEUED, JUST_DONE, ADMISSIONS, PREEMPTIONS, NUMBER = range(8, 15)
WHOLE_COLUMNS = 15
# Entries of ``limits``.
SEQS, BUDGET, BLOCKS, BLOCK_SIZE, MODEL_LEN, CHUNKED = range(6)
UNLIMITED = 1 << 60
# What became of a request, in ``e2e`` where no last token came.
UNFINISHED, REJECTED, TIMED_OUT, FAILED = -1.0, -2.0, -3.0, -4.0
ROUND_ROBIN, LEAST_OUTSTANDING, PREFIX_AWARE = range(3)
# The prefix-aware router leaves a session's replica that has this many more than, and this many times, the fewest outstanding.
IMBALANCE, IMBALANCE_RATIO = 32, 1.5
MOST_DRAFT_STEPS = 1 << 24

# Entries of ``cost`` after the formula's first five: the last is the logarithm of the share of a mixture's experts that one token leaves
# unread, so that n tokens read 1 - exp(n * UNREAD) of them.
PREFILL_BASE, EXPERTS, UNREAD = 5, 6, 7

# The gap histogram: bins of 1 % from 1 microsecond; the first and the last are open.
BIN_LOW = 1e-6
BIN_GROWTH = math.log(1.01)
BINS = 2560
BIN_EDGES = np.exp(math.log(BIN_LOW) + BIN_GROWTH * np.arange(BINS))  # upper edges

_OPTIONS: Any = {"cache": True, "error_model": "numpy", "_nrt": False}
_inlined = njit(**_OPTIONS, inline="always")
# Called by compiled functions alone: without the wrappers for Python the compiler is done in two thirds of the time.
_called = njit(**_OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True)  # type: ignore[call-overload]


@_inlined
def _bin(value):  # type: ignore[no-untyped-def]
    if value <= BIN_LOW:
        return 0
    index = int(math.log(value / BIN_LOW) / BIN_GROWTH) + 1
    return min(index, BINS - 1)


@_inlined
def _add_gaps(bins, edges, first, growth, count, weight):  # type: ignore[no-untyped-def]
    """Add the series ``first + j * growth``, j < count, each ``weight`` times, bin by bin."""
    index = _bin(first)
    left = count
    if growth > 0.0 and count > 1:
        value = first
        while index < BINS - 1 and value + growth * (left - 1) > edges[index]:
            inside = min(left, math.floor((edges[index] - value) / growth) + 1) if value <= edges[index] else 0
            bins[index] += inside * weight
            value += growth * inside
            left -= inside
            index += 1
    bins[index] += left * weight


@_inlined
def _push(heap, size, key):  # type: ignore[no-untyped-def]
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if heap[parent] <= key:
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = key


@_inlined
def _sink(heap, size, at, key):  # type: ignore[no-untyped-def]
    """Put ``key`` at or below ``at`` in a heap of ``size``."""
    child = 2 * at + 1
    while child < size:
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[at] = heap[child]
        at = child
        child = 2 * at + 1
    heap[at] = key


@_called
def _remove(heap, size, at):  # type: ignore[no-untyped-def]
    """Remove entry ``at`` from a heap of ``size``; it then has ``size - 1``."""
    last = heap[size - 1]
    if at == size - 1:
        return
    parent = (at - 1) >> 1
    if at > 0 and heap[parent] > last:
        while at > 0 and heap[(at - 1) >> 1] > last:
            heap[at] = heap[(at - 1) >> 1]
            at = (at - 1) >> 1
        heap[at] = last
    else:
        _sink(heap, size - 1, at, last)


@_called
def _latest(heap, size, admitted):  # type: ignore[no-untyped-def]
    """Where in the heap the latest admitted sequence is."""
    best = 0
    for at in range(1, size):
        if admitted[heap[at] & REQUEST_MASK] > admitted[heap[best] & REQUEST_MASK]:
            best = at
    return best


@_inlined
def _steps_that_fit(ring, step, block_size, decoding, free, wanted):  # type: ignore[no-untyped-def]
    """How many of the next ``wanted`` decode iterations find their cache blocks, and how many blocks those take."""
    cycles = wanted // block_size
    if decoding > 0:
        cycles = min(cycles, free // decoding)
    taken = cycles * decoding
    steps = cycles * block_size
    phase = step % block_size
    while steps < wanted:
        if taken + ring[phase] > free:
            break
        taken += ring[phase]
        steps += 1
        phase += 1
        if phase == block_size:
            phase = 0
    return steps, taken


@_inlined
def _steps_until(first, growth, gap, most):  # type: ignore[no-untyped-def]
    """The least k in 1..most whose iterations, of ``first + j * growth`` seconds each, sum to ``gap`` seconds or more."""
    if most * first + growth * (0.5 * most * (most - 1.0)) < gap:
        return most
    slope = first - 0.5 * growth
    root = slope + math.sqrt(slope * slope + 2.0 * growth * gap)
    k = most
    if root > 0.0:
        k = min(most, max(1, math.ceil(2.0 * gap / root)))
    while k > 1 and (k - 1) * first + growth * (0.5 * (k - 1.0) * (k - 2.0)) >= gap:
        k -= 1
    while k < most and k * first + growth * (0.5 * k * (k - 1.0)) < gap:
        k += 1
    return k


@_called
def _make_room(row, now, heap, ring, limits, work, marks):  # type: ignore[no-untyped-def]
    """Preempt the latest admitted until every decode of the iteration that starts at ``now`` finds its cache blocks."""
    _, prompt, output, _ = work
    link, produced, admitted, last, _, _, _ = marks
    size = limits[BLOCK_SIZE]
    while row[USED] + ring[row[STEP] % size] > limits[BLOCKS]:
        if row[PARTIAL] >= 0:
            victim = row[PARTIAL]
            row[PARTIAL] = -1
            row[USED] -= row[PARTIAL_BLOCKS]
        else:
            at = _latest(heap, row[DECODING], admitted)
            victim = heap[at] & REQUEST_MASK
            produced[victim] = output[victim] - ((heap[at] >> REQUEST_BITS) - row[STEP])
            _remove(heap, row[DECODING], at)
            row[DECODING] -= 1
            _release(row, ring, prompt[victim] + produced[victim], size)
            last[victim] = now
        _requeue(row, victim, link)


@_inlined
def _requeue(row, victim, link):  # type: ignore[no-untyped-def]
    """A preempted sequence goes to the head of the queue."""
    link[victim] = row[HEAD]
    row[HEAD] = victim
    if row[TAIL] < 0:
        row[TAIL] = victim
    row[QUEUED] += 1
    row[PREEMPTIONS] += 1


@_inlined
def _release(row, ring, tokens, size):  # type: ignore[no-untyped-def]
    """A decoding sequence that would next read ``tokens`` leaves the batch; it holds the blocks of all but the newest token."""
    row[CONTEXT] -= tokens
    ring[(row[STEP] - tokens + 1) % size] -= 1
    row[USED] -= (tokens - 1 + size - 1) // size


@_inlined
def _next_chunk(row, promised, limits, work, produced):  # type: ignore[no-untyped-def]
    """Tokens of the first prefill chunk of this iteration, 0 where nobody gets in.

    Whoever does not get in now does not before the next completion: until then blocks only get fewer and slots stay taken.
    """
    _, prompt, _, prefix = work
    size, budget = limits[BLOCK_SIZE], limits[BUDGET] - row[DECODING]
    request = row[PARTIAL]
    if request >= 0:
        before, held = row[PARTIAL_DONE], row[PARTIAL_BLOCKS]
    else:
        request = row[HEAD]
        if request < 0 or row[DECODING] >= limits[SEQS]:
            return 0
        before, held = prefix[request], 0
    left = prompt[request] + produced[request] - before
    chunk = min(left, budget) if limits[CHUNKED] == 1 else left
    if chunk > budget and row[DECODING] > 0:
        return 0
    return chunk if promised + (before + chunk + size - 1) // size - held <= limits[BLOCKS] else 0


@_inlined
def _prefill(row, now, chunk, fresh, limits, work, marks):  # type: ignore[no-untyped-def]
    """Take ``chunk`` and what fits after it into this iteration.

    Returns (tokens, tokens times their context, sequences whose prefill it completes: the first entries of ``fresh``).
    """
    arrival, prompt, _, prefix = work
    link, produced, admitted, _, _, queue, _ = marks
    size, blocks = limits[BLOCK_SIZE], limits[BLOCKS]
    budget = limits[BUDGET] - row[DECODING]
    tokens, products, ready, in_batch = 0, 0.0, 0, row[DECODING]
    while True:
        request = row[PARTIAL]
        if request < 0:
            request = row[HEAD]
            before = prefix[request]
            held = 0
            row[HEAD] = link[request]
            if row[HEAD] < 0:
                row[TAIL] = -1
            row[QUEUED] -= 1
            admitted[request] = row[ADMISSIONS]
            row[ADMISSIONS] += 1
            if queue[request] < 0.0:
                queue[request] = now - arrival[request]
        else:
            before = row[PARTIAL_DONE]
            held = row[PARTIAL_BLOCKS]
        need = (before + chunk + size - 1) // size
        row[USED] += need - held
        tokens += chunk
        products += (before + 0.5 * chunk) * chunk
        budget -= chunk
        in_batch += 1
        if before + chunk < prompt[request] + produced[request]:
            row[PARTIAL], row[PARTIAL_DONE], row[PARTIAL_BLOCKS] = request, before + chunk, need
            break
        row[PARTIAL] = -1
        fresh[ready] = request
        ready += 1
        request = row[HEAD]
        if request < 0 or budget <= 0 or in_batch >= limits[SEQS]:
            break
        left = prompt[request] + produced[request] - prefix[request]
        chunk = min(left, budget)
        if (limits[CHUNKED] == 0 and chunk < left) or row[USED] + (prefix[request] + chunk + size - 1) // size > blocks:
            break
    return tokens, products, ready


@_inlined
def _complete(row, now, heap, ring, timeout, limits, work, marks, drafts):  # type: ignore[no-untyped-def]
    """Sequences whose last token came with the iteration that ended at ``now`` leave."""
    arrival, prompt, output, _ = work
    e2e = marks[6]
    while row[DECODING] > 0 and heap[0] >> REQUEST_BITS == row[STEP]:
        request = heap[0] & REQUEST_MASK
        row[DECODING] -= 1
        if row[DECODING] > 0:
            _sink(heap, row[DECODING], 0, heap[row[DECODING]])
        if drafts is None:
            _release(row, ring, prompt[request] + output[request], limits[BLOCK_SIZE])
        else:
            row[USED] -= _drafted_held(request, 0, limits[BLOCK_SIZE], work, marks[1], drafts)
        spent = now - arrival[request]
        e2e[request] = spent if spent <= timeout else TIMED_OUT
        row[JUST_DONE] += 1


@_inlined
def _start_decoding(row, cells, ready, heap, ring, fresh, timeout, limits, work, marks, drafts, bins):  # type: ignore[no-untyped-def]
    """The prefills that the iteration completed give a token each, and decode from the next iteration on."""
    arrival, prompt, output, _ = work
    _, produced, _, last, ttft, _, e2e = marks
    now, size = cells[NOW], limits[BLOCK_SIZE]
    for at in range(ready):
        request = fresh[at]
        tokens = prompt[request] + produced[request]
        spent = now - arrival[request]
        if produced[request] > 0:
            gap = now - last[request]
            bins[_bin(gap)] += 1
            cells[GAPS] += gap
        elif spent <= timeout:
            ttft[request] = spent
        left = output[request] - produced[request] - 1
        if left <= 0:
            e2e[request] = spent if spent <= timeout else TIMED_OUT
            row[USED] -= (tokens + size - 1) // size
            row[JUST_DONE] += 1
            continue
        steps = left if drafts is None else _drafted_steps(left, drafts)
        _push(heap, row[DECODING], ((row[STEP] + steps) << REQUEST_BITS) | request)
        row[DECODING] += 1
        if drafts is None:
            row[CONTEXT] += tokens + 1
            ring[(row[STEP] - tokens) % size] += 1


@_called
def _expire(cells, row, heap, ring, timeout, limits, work, marks, drafts):  # type: ignore[no-untyped-def]
    """Requests whose clients have given up by now leave queue and batch; ``DEADLINE`` becomes that of the earliest left."""
    arrival, prompt, output, _ = work
    link, e2e = marks[0], marks[6]
    now, earliest = cells[NOW], math.inf
    while row[HEAD] >= 0 and arrival[row[HEAD]] + timeout <= now:
        e2e[row[HEAD]] = TIMED_OUT
        row[HEAD] = link[row[HEAD]]
        row[QUEUED] -= 1
    if row[HEAD] >= 0:
        earliest = arrival[row[HEAD]]
    else:
        row[TAIL] = -1
    if row[PARTIAL] >= 0 and arrival[row[PARTIAL]] + timeout <= now:
        e2e[row[PARTIAL]] = TIMED_OUT
        row[USED] -= row[PARTIAL_BLOCKS]
        row[PARTIAL] = -1
    elif row[PARTIAL] >= 0:
        earliest = min(earliest, arrival[row[PARTIAL]])
    kept = 0
    for at in range(row[DECODING]):
        request = heap[at] & REQUEST_MASK
        if arrival[request] + timeout > now:
            earliest = min(earliest, arrival[request])
            heap[kept] = heap[at]
            kept += 1
            continue
        e2e[request] = TIMED_OUT
        togo = (heap[at] >> REQUEST_BITS) - row[STEP]
        if drafts is None:
            _release(row, ring, prompt[request] + output[request] - togo, limits[BLOCK_SIZE])
        else:
            row[USED] -= _drafted_held(request, togo, limits[BLOCK_SIZE], work, marks[1], drafts)
    if kept < row[DECODING]:
        row[DECODING] = kept
        for at in range(kept // 2 - 1, -1, -1):
            _sink(heap, kept, at, heap[at])
    cells[DEADLINE] = earliest + timeout


@_inlined
def _advance(until, cells, row, heap, ring, fresh, timeout, cost, limits, work, marks, bins, edges):  # type: ignore[no-untyped-def]
    """Run one replica's iterations that start before ``until``. Returns at an iteration's end, or when nothing is left to do."""
    size, blocks = limits[BLOCK_SIZE], limits[BLOCKS]
    while cells[NOW] < until and (row[DECODING] > 0 or row[PARTIAL] >= 0 or row[HEAD] >= 0):
        now = cells[NOW]
        if now >= cells[DEADLINE]:
            _expire(cells, row, heap, ring, timeout, limits, work, marks, None)
            continue
        promised = row[USED] + ring[row[STEP] % size]
        if promised > blocks:
            _make_room(row, now, heap, ring, limits, work, marks)
            promised = row[USED] + ring[row[STEP] % size]
        decoding = row[DECODING]
        chunk = _next_chunk(row, promised, limits, work, marks[1])
        first = cost[0] + cost[1] * decoding + cost[2] * row[CONTEXT]
        ready = 0
        if chunk == 0:
            if cost[EXPERTS] > 0.0:
                first += cost[EXPERTS] * (1.0 - math.exp(cost[UNREAD] * decoding))
            growth = cost[2] * decoding
            k = (heap[0] >> REQUEST_BITS) - row[STEP]
            stop = min(until, cells[DEADLINE])
            if now + (k * first + growth * (0.5 * k * (k - 1.0))) >= stop:
                k = _steps_until(first, growth, stop - now, k)
            k, taken = _steps_that_fit(ring, row[STEP], size, decoding, blocks - row[USED], k)
            row[USED] += taken
            spent = k * first + growth * (0.5 * k * (k - 1.0))
            _add_gaps(bins, edges, first, growth, k, decoding)
            in_batch = decoding + (1 if row[PARTIAL] >= 0 else 0)
        else:
            k = 1
            row[USED] = promised
            was_partial = 1 if row[PARTIAL] >= 0 else 0
            queued = row[QUEUED]
            tokens, products, ready = _prefill(row, now, chunk, fresh, limits, work, marks)
            spent = first + cost[3] * tokens + cost[4] * products + cost[PREFILL_BASE]
            if cost[EXPERTS] > 0.0:
                spent += cost[EXPERTS] * (1.0 - math.exp(cost[UNREAD] * (decoding + tokens)))
            if decoding > 0:
                bins[_bin(spent)] += decoding
            in_batch = decoding + was_partial + queued - row[QUEUED]
        row[CONTEXT] += decoding * k
        _end_iterations(cells, row, k, decoding, in_batch, spent)
        _complete(row, cells[NOW], heap, ring, timeout, limits, work, marks, None)
        if ready > 0:
            _start_decoding(row, cells, ready, heap, ring, fresh, timeout, limits, work, marks, None, bins)


@_inlined
def _end_iterations(cells, row, k, decoding, in_batch, spent):  # type: ignore[no-untyped-def]
    """Clock and sums move on by ``k`` iterations that took ``spent`` seconds together."""
    row[STEP] += k
    cells[NOW] += spent
    cells[BUSY] += spent
    cells[GAPS] += decoding * spent
    cells[RUNNING] += in_batch * spent
    cells[WAITING] += row[QUEUED] * spent
    row[PEAK] = max(row[PEAK], row[USED])
    row[JUST_DONE] = 0


# Speculative decoding. After j decode iterations a sequence has produced ahead[j] = floor(j * accept_length) tokens more than its
# prefill left it with, at most those that it still owes; total[j] is the sum of ahead[:j]. ``steps`` and ``tokens`` are scratch,
# one entry for each decoding sequence in the heap's order: the iterations that it has done, and its tokens before them.


@_called
def _drafted_steps(left, drafts):  # type: ignore[no-untyped-def]
    """The least j for which ``ahead[j] >= left``; there is one, and ``left`` is 1 or more."""
    ahead, _, accept, _, _ = drafts
    j = min(math.ceil(left / accept), left)
    while ahead[j] < left:
        j += 1
    while ahead[j - 1] >= left:
        j -= 1
    return j


@_called
def _drafted_held(request, togo, size, work, produced, drafts):  # type: ignore[no-untyped-def]
    """The blocks of a sequence that ends with the ``togo``-th iteration from now: those of its latest iteration."""
    _, prompt, output, _ = work
    done = _drafted_steps(output[request] - produced[request] - 1, drafts) - togo
    tokens = prompt[request] + produced[request] + (1 + drafts[0][done - 1] if done > 0 else 0)
    return (tokens + size - 1) // size


@_called
def _gather(row, heap, work, produced, drafts):  # type: ignore[no-untyped-def]
    """Fill the scratch; returns the sum of ``tokens``."""
    _, prompt, output, _ = work
    _, _, _, steps, tokens = drafts
    together = 0
    for at in range(row[DECODING]):
        request = heap[at] & REQUEST_MASK
        needed = _drafted_steps(output[request] - produced[request] - 1, drafts)
        steps[at] = needed - ((heap[at] >> REQUEST_BITS) - row[STEP])
        tokens[at] = prompt[request] + produced[request] + 1
        together += tokens[at]
    return together


@_called
def _summed(table, steps, decoding, k):  # type: ignore[no-untyped-def]
    together = 0
    for at in range(decoding):
        together += table[steps[at] + k]
    return together


@_called
def _drafted_blocks(row, k, size, drafts):  # type: ignore[no-untyped-def]
    """Blocks that the replica holds in the decode iteration after the next ``k``."""
    ahead, _, _, steps, tokens = drafts
    held = row[PARTIAL_BLOCKS] if row[PARTIAL] >= 0 else 0
    for at in range(row[DECODING]):
        held += (tokens[at] + ahead[steps[at] + k] + size - 1) // size
    return held


@_called
def _drafted_time(k, fixed, per_token, decoding, drafts):  # type: ignore[no-untyped-def]
    """Seconds of the next ``k`` decode iterations, which take ``fixed`` each without their drafted context."""
    _, total, _, steps, _ = drafts
    return k * fixed + per_token * (_summed(total, steps, decoding, k) - _summed(total, steps, decoding, 0))


@_called
def _drafted_jump(row, gap, most, fixed, per_token, limits, drafts):  # type: ignore[no-untyped-def]
    """The least k in 1..most whose iterations take ``gap`` seconds or more, or fewer where the cache ends before."""
    decoding, size, blocks = row[DECODING], limits[BLOCK_SIZE], limits[BLOCKS]
    low, high = 1, most
    if _drafted_time(most, fixed, per_token, decoding, drafts) < gap:
        low = most
    while low < high:
        middle = (low + high) // 2
        if _drafted_time(middle, fixed, per_token, decoding, drafts) >= gap:
            high = middle
        else:
            low = middle + 1
    k = low
    if _drafted_blocks(row, k - 1, size, drafts) > blocks:
        low, high = 1, k - 1  # the first iteration fits: there was room made for it
        while low < high:
            middle = (low + high + 1) // 2
            if _drafted_blocks(row, middle - 1, size, drafts) <= blocks:
                low = middle
            else:
                high = middle - 1
        k = low
    return k


@_called
def _add_drafted_gaps(bins, count, fixed, per_token, decoding, drafts):  # type: ignore[no-untyped-def]
    """The gaps of the next ``count`` iterations, in none of which a sequence ends: each yields ``low`` or ``low + 1`` tokens."""
    ahead, _, accept, steps, _ = drafts
    low = int(accept)
    for each in range(low, low + 2 if accept > low else low + 1):
        begin, before = 0, _summed(ahead, steps, decoding, 0)
        while begin < count:
            index = _bin((fixed + per_token * before) / each)
            end, high = begin + 1, count
            while end < high:  # the last whose gap still falls into the bin
                middle = (end + high + 1) // 2
                if _bin((fixed + per_token * _summed(ahead, steps, decoding, middle - 1)) / each) == index:
                    end = middle
                else:
                    high = middle - 1
            after = _summed(ahead, steps, decoding, end)
            longer = after - before - low * decoding * (end - begin)
            bins[index] += each * (longer if each > low else decoding * (end - begin) - longer)
            begin, before = end, after


@_called
def _add_last_gaps(bins, at_step, spent, row, heap, work, produced, drafts):  # type: ignore[no-untyped-def]
    """The gaps of the iteration after the next ``at_step``, in which sequences may end with fewer tokens than they could have."""
    output = work[2]
    ahead, _, _, steps, _ = drafts
    for at in range(row[DECODING]):
        request = heap[at] & REQUEST_MASK
        done = ahead[steps[at] + at_step]
        tokens = min(ahead[steps[at] + at_step + 1], output[request] - produced[request] - 1) - done
        bins[_bin(spent / tokens)] += tokens


@_called
def _make_room_drafting(row, now, heap, limits, work, marks, drafts):  # type: ignore[no-untyped-def]
    """As ``_make_room``. Leaves the scratch as the batch then is; returns the sum of its ``tokens``."""
    link, produced, admitted, last, _, _, _ = marks
    ahead, _, _, steps, _ = drafts
    together = _gather(row, heap, work, produced, drafts)
    while _drafted_blocks(row, 0, limits[BLOCK_SIZE], drafts) > limits[BLOCKS]:
        if row[PARTIAL] >= 0:
            victim = row[PARTIAL]
            row[PARTIAL] = -1
        else:
            at = _latest(heap, row[DECODING], admitted)
            victim = heap[at] & REQUEST_MASK
            produced[victim] += 1 + ahead[steps[at]]
            last[victim] = now
            _remove(heap, row[DECODING], at)
            row[DECODING] -= 1
            together = _gather(row, heap, work, produced, drafts)
        _requeue(row, victim, link)
    return together


@_called
def _advance_drafting(until, cells, row, heap, ring, fresh, timeout, cost, limits, work, marks, drafts, bins):  # type: ignore[no-untyped-def]
    """As ``_advance``, with ``accept_length`` tokens an iteration: each event costs with the sequences in the batch."""
    while cells[NOW] < until and (row[DECODING] > 0 or row[PARTIAL] >= 0 or row[HEAD] >= 0):
        now = cells[NOW]
        if now >= cells[DEADLINE]:
            _expire(cells, row, heap, ring, timeout, limits, work, marks, drafts)
            continue
        together = _make_room_drafting(row, now, heap, limits, work, marks, drafts)
        decoding = row[DECODING]
        row[USED] = _drafted_blocks(row, 0, limits[BLOCK_SIZE], drafts)
        fixed = cost[0] + cost[1] * decoding + cost[2] * together
        chunk = _next_chunk(row, row[USED], limits, work, marks[1])
        k, ready = 1, 0
        was_partial = 1 if row[PARTIAL] >= 0 else 0
        queued = row[QUEUED]
        if chunk == 0:
            if cost[EXPERTS] > 0.0:
                fixed += cost[EXPERTS] * (1.0 - math.exp(cost[UNREAD] * decoding))
            gap = min(until, cells[DEADLINE]) - now
            k = _drafted_jump(row, gap, (heap[0] >> REQUEST_BITS) - row[STEP], fixed, cost[2], limits, drafts)
            row[USED] = _drafted_blocks(row, k - 1, limits[BLOCK_SIZE], drafts)
            spent = _drafted_time(k, fixed, cost[2], decoding, drafts)
            _add_drafted_gaps(bins, k - 1, fixed, cost[2], decoding, drafts)
        final = fixed + cost[2] * _summed(drafts[0], drafts[3], decoding, k - 1)
        if chunk > 0:
            tokens, products, ready = _prefill(row, now, chunk, fresh, limits, work, marks)
            final += cost[3] * tokens + cost[4] * products + cost[PREFILL_BASE]
            if cost[EXPERTS] > 0.0:
                final += cost[EXPERTS] * (1.0 - math.exp(cost[UNREAD] * (decoding + tokens)))
            spent = final
        _add_last_gaps(bins, k - 1, final, row, heap, work, marks[1], drafts)
        _end_iterations(cells, row, k, decoding, decoding + was_partial + queued - row[QUEUED], spent)
        _complete(row, cells[NOW], heap, ring, timeout, limits, work, marks, drafts)
        if ready > 0:
            _start_decoding(row, cells, ready, heap, ring, fresh, timeout, limits, work, marks, drafts, bins)


@_inlined
def _too_large(request, limits, work):  # type: ignore[no-untyped-def]
    _, prompt, output, _ = work
    tokens = prompt[request] + output[request]
    return tokens > limits[MODEL_LEN] or (tokens + limits[BLOCK_SIZE] - 1) // limits[BLOCK_SIZE] > limits[BLOCKS]


@_inlined
def _enqueue(request, at, deadline, real, whole, link):  # type: ignore[no-untyped-def]
    """A request reaches a replica that was advanced to its arrival."""
    if whole[DECODING] == 0 and whole[PARTIAL] < 0 and whole[HEAD] < 0:
        real[NOW] = max(real[NOW], at)
        real[DEADLINE] = deadline
    real[WAITING] += real[NOW] - at
    link[request] = -1
    if whole[TAIL] >= 0:
        link[whole[TAIL]] = request
    else:
        whole[HEAD] = request
    whole[TAIL] = request
    whole[QUEUED] += 1


@_inlined
def outstanding(at, cells, row):  # type: ignore[no-untyped-def]
    """Unfinished requests of a replica that was advanced to ``at``."""
    load = row[DECODING] + row[QUEUED] + (1 if row[PARTIAL] >= 0 else 0)
    if cells[NOW] > at:
        load += row[JUST_DONE]  # they end with the iteration that is still under way
    return load


@_called
def _fewest_outstanding(at, ready, order, real, whole):  # type: ignore[no-untyped-def]
    """Its position in ``order``."""
    chosen, fewest = 0, -1
    for position in range(ready):
        load = outstanding(at, real[order[position]], whole[order[position]])
        if fewest < 0 or load < fewest:
            chosen, fewest = position, load
    return chosen


@_called
def _with_its_session(request, at, ready, fewest, order, real, whole, sessions):  # type: ignore[no-untyped-def]
    """The position of the replica that served the session last; ``fewest``, the least loaded one's, where the load forbids it."""
    session, latest, _, _, _ = sessions
    if session.shape[0] == 0 or latest[session[request]] < 0:
        return fewest
    least = outstanding(at, real[order[fewest]], whole[order[fewest]])
    for position in range(ready):
        replica = order[position]
        if whole[replica, NUMBER] == latest[session[request]]:
            load = outstanding(at, real[replica], whole[replica])
            if load <= least + IMBALANCE or load <= IMBALANCE_RATIO * least:
                return position
    return fewest


@_called
def _remember(request, number, prefix, sessions):  # type: ignore[no-untyped-def]
    """Note which replica serves it. It computes the prefix that only others hold."""
    session, latest, visits, link, home = sessions
    home[request] = number
    if session.shape[0] == 0:
        return
    latest[session[request]] = number
    visit = visits[session[request]]
    if visit < 0:
        visits[session[request]] = request
        link[request] = -1
        return
    while visit >= 0 and home[visit] != number:
        visit = link[visit]
    if visit < 0:
        link[request] = visits[session[request]]
        visits[session[request]] = request
        prefix[request] = 0


@_called
def _areas(until, real, whole):  # type: ignore[no-untyped-def]
    """Sequence-seconds in the batches and request-seconds in the queues, up to ``until``."""
    running, waiting = 0.0, 0.0
    for replica in range(real.shape[0]):
        cells, row = real[replica], whole[replica]
        beyond = max(0.0, cells[NOW] - until)
        in_batch = row[DECODING] + row[JUST_DONE] + (1 if row[PARTIAL] >= 0 else 0)
        running += cells[RUNNING] - in_batch * beyond
        waiting += cells[WAITING] - row[QUEUED] * beyond
    return running, waiting


@njit(**_OPTIONS, nogil=True)
def run(  # type: ignore[no-untyped-def]
    first, upto, since, until, ready, router, timeout, order, real, whole, heap, ring, fresh, cost, limits, work, marks, sessions,
    drafts, bins, edges,
):  # fmt: skip
    """Route the requests ``first <= i < upto``, which arrive before ``until``, none before ``since``; run all replicas to ``until``.

    order: (k,) rows of the replicas; the first ``ready`` of them take requests. router: one of the constants.
    real, whole: (rows, columns) state. heap: (rows, slots). ring: (rows, block size). fresh: (slots,) scratch.
    cost: (8,) the iteration's coefficients, the last as ``UNREAD``. limits: (6,).
    edges, bins: (BINS,) upper edges and weights of the token gaps.
    work: (n,) each: arrival, prompt, output, prefix. marks: (n,) each: link, produced, admitted, time of the last token before a
    preemption, ttft, queue, e2e; in the last three, -1 is a time that has not come.
    sessions: session (n,) or (0,); by session: the replica that served it last, and the latest of its requests that was the first
    on a replica; (n,) each: the one of those before it, and the replica's number. The last is (0,) where none of it is needed.
    drafts: None, or ahead, total, accept length, and two scratch arrays (slots,).
    Returns ``_areas``.
    """
    for turn in range(first, upto + order.shape[0]):
        # The last turns of the loop run each replica to the end; one call site keeps the loop one compiled body.
        draining = turn >= upto
        if draining:
            at, low, high = until, turn - upto, turn - upto + 1
        else:
            at = max(work[0][turn], since)
            if _too_large(turn, limits, work):
                marks[6][turn] = REJECTED
                continue
            if at >= work[0][turn] + timeout:
                marks[6][turn] = TIMED_OUT
                continue
            low, high = 0, ready
            if router == ROUND_ROBIN:
                low = turn % ready
                high = low + 1
        for position in range(low, high):
            replica = order[position]
            if drafts is None:
                _advance(at, real[replica], whole[replica], heap[replica], ring[replica], fresh, timeout, cost, limits, work, marks,
                         bins, edges)  # fmt: skip
            else:
                _advance_drafting(at, real[replica], whole[replica], heap[replica], ring[replica], fresh, timeout, cost, limits,
                                  work, marks, drafts, bins)  # fmt: skip
        if draining:
            continue
        if router != ROUND_ROBIN:
            low = _fewest_outstanding(at, ready, order, real, whole)
            if router == PREFIX_AWARE:
                low = _with_its_session(turn, at, ready, low, order, real, whole, sessions)
        replica = order[low]
        if sessions[4].shape[0] > 0:
            _remember(turn, whole[replica, NUMBER], work[3], sessions)
        _enqueue(turn, at, work[0][turn] + timeout, real[replica], whole[replica], marks[0])
    return _areas(until, real, whole)


class KernelMachine:
    """The arrays of one replay, and all that is done to them. A replica is a row of them; ``grow`` makes more."""

    def __init__(
        self, workload: Workload, model: EngineModel, rows: int, router: int, timeout_s: float, *, tracked: bool
    ) -> None:
        """tracked: note which replica serves each request, for sessions and for failures."""
        n, limits = len(workload), model.limits
        slots, size = min(limits.max_num_seqs, n), limits.block_size
        self.blocks = UNLIMITED if limits.kv_tokens is None else limits.kv_tokens // size
        self.timeout_s = timeout_s
        self.real = np.zeros((rows, REAL_COLUMNS))
        self.whole = np.zeros((rows, WHOLE_COLUMNS), np.int64)
        self._heap = np.zeros((rows, slots), np.int64)
        self._ring = np.zeros((rows, size), np.int64)
        for row in range(rows):
            self.take(row, row)
        self.bins = np.zeros(BINS)
        self.ttft, self.queue, self.e2e = (np.full(n, UNFINISHED) for _ in range(3))
        self._router = router
        self._limits = np.array(
            [
                limits.max_num_seqs,
                limits.max_num_batched_tokens,
                self.blocks,
                size,
                UNLIMITED if limits.max_model_len is None else limits.max_model_len,
                int(model.chunked_prefill),
            ],
            np.int64,
        )
        self.arrival = np.ascontiguousarray(workload.arrival_s, np.float64)
        self._work = (
            self.arrival,
            np.ascontiguousarray(workload.prompt_tokens, np.int64),
            np.ascontiguousarray(workload.output_tokens, np.int64),
            np.array(workload.prefix_tokens, np.int64, copy=True if tracked else None, order="C"),
        )
        marks = (np.empty(n, np.int64), np.zeros(n, np.int64), np.empty(n, np.int64), np.empty(n))
        self._marks = (*marks, self.ttft, self.queue, self.e2e)
        *seconds, share = model.iteration.as_tuple()
        self._cost = np.array([*seconds, math.log1p(-share)], np.float64)
        self._fresh = np.zeros(slots, np.int64)
        self._sessions = _sessions(workload, tracked)
        self._drafts = _drafts(workload, model, slots)

    def run(self, first: int, upto: int, since: float, until: float, order: Ints, ready: int) -> tuple[float, float]:
        """As the function ``run``."""
        found: tuple[float, float] = run(
            first, upto, float(since), float(until), ready, self._router, self.timeout_s, order,
            self.real, self.whole, self._heap, self._ring, self._fresh, self._cost, self._limits,
            self._work, self._marks, self._sessions, self._drafts, self.bins, BIN_EDGES,
        )  # fmt: skip
        return found

    @property
    def rows(self) -> int:
        return self.real.shape[0]

    def grow(self) -> None:
        """As many rows again."""
        self.real = np.concatenate((self.real, np.zeros_like(self.real)))
        self.whole, self._heap, self._ring = (
            np.concatenate((rows, np.zeros_like(rows))) for rows in (self.whole, self._heap, self._ring)
        )

    def take(self, row: int, number: int) -> None:
        """An empty replica, with a number that none had before, in a row whose last one left nothing behind but its sums."""
        self.whole[row, [PARTIAL, HEAD, TAIL]] = -1
        self.whole[row, NUMBER] = number

    def outstanding(self, row: int, at: float) -> int:
        """Unfinished requests of a replica that was run to ``at``."""
        return int(outstanding(at, self.real[row], self.whole[row]))

    def empty_since(self, row: int) -> float | None:
        """The end of its last iteration, of a replica that holds nothing any more."""
        state = self.whole[row]
        return None if state[DECODING] or state[PARTIAL] >= 0 or state[HEAD] >= 0 else float(self.real[row, NOW])

    def latest_end(self) -> float:
        """The end of the last iteration of all."""
        return float(self.real[:, NOW].max())

    def kv_usage(self, rows: list[int]) -> float | None:
        """Their mean, 0..1 (of an iteration that is under way: as at its end). None: not limited, or no rows."""
        if not rows or self.blocks == UNLIMITED:
            return None
        return int(self.whole[rows, USED].sum()) / (len(rows) * self.blocks)

    def refuse(self, first: int, upto: int) -> Floats:
        """Reject those of the requests that no replica can hold; returns when the others arrive."""
        tokens = self._work[1][first:upto] + self._work[2][first:upto]
        refused = (tokens > self._limits[MODEL_LEN]) | (-(-tokens // self._limits[BLOCK_SIZE]) > self.blocks)
        self.e2e[first:upto][refused] = REJECTED
        arrivals: Floats = self.arrival[first:upto][~refused]
        return arrivals

    def give_up(self, request: int) -> bool:
        """The client of a request at the router does. False: it was rejected."""
        if self.e2e[request] == REJECTED:
            return False
        self.e2e[request] = TIMED_OUT
        return True

    def lose(self, row: int, at: float, upto: int) -> None:
        """The replica dies at ``at``, and with it all that it holds of the first ``upto`` requests, the tokens of the iteration
        that is under way included. Whose client had given up by then timed out; the others failed."""
        cells, state = self.real[row], self.whole[row]
        beyond = max(0.0, cells[NOW] - at)
        mine = np.flatnonzero(self._sessions[4][:upto] == state[NUMBER])
        arrival, e2e, ttft = self.arrival[mine], self.e2e[mine], self.ttft[mine]
        lost = e2e == UNFINISHED
        if beyond > 0.0:
            end = cells[NOW] - arrival
            lost |= (e2e == end) | (e2e == TIMED_OUT)
            self.ttft[mine[ttft == end]] = UNFINISHED
        self.e2e[mine[lost]] = np.where(arrival[lost] + self.timeout_s > at, FAILED, TIMED_OUT)
        cells[BUSY] -= beyond
        cells[RUNNING] -= beyond * (state[DECODING] + state[JUST_DONE] + (1 if state[PARTIAL] >= 0 else 0))
        cells[WAITING] -= beyond * state[QUEUED]
        cells[NOW] = min(cells[NOW], at)
        state[[DECODING, CONTEXT, USED, QUEUED, JUST_DONE]] = 0
        state[[PARTIAL, HEAD, TAIL]] = -1
        self._ring[row] = 0


def _sessions(workload: Workload, tracked: bool) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """As ``run`` takes it."""
    none = np.empty(0, np.int64)
    home = np.full(len(workload) if tracked else 0, -1, np.int64)
    session = workload.session
    if not tracked or session is None:
        return none, none, none, none, home
    if session.max() >= 2 * len(session):
        session = np.unique(session, return_inverse=True)[1]
    latest, visits = (np.full(int(session.max()) + 1, -1, np.int64) for _ in range(2))
    return np.ascontiguousarray(session, np.int64), latest, visits, np.empty_like(home), home


def _drafts(workload: Workload, model: EngineModel, slots: int) -> tuple[Ints, Ints, float, Ints, Ints] | None:
    """As ``run`` takes it. Raises ValueError where the longest output would need too large a table."""
    if model.accept_length == 1.0:
        return None
    accept = min(float(model.accept_length), float(workload.output_tokens.max() + 1))  # more than all is all
    steps = int(workload.output_tokens.max() / accept) + 3
    if steps > MOST_DRAFT_STEPS:
        raise ValueError(
            f"output_tokens: {workload.output_tokens.max()} is more than a replay with accept_length can tell apart; "
            f"leave out what exceeds max_model_len, or keep it below {int(MOST_DRAFT_STEPS * accept)}"
        )
    ahead = np.floor(np.arange(steps) * accept).astype(np.int64)
    total = np.concatenate(([0], np.cumsum(ahead)))
    return ahead, total, accept, np.zeros(slots, np.int64), np.zeros(slots, np.int64)
