"""The compiled event loop: vLLM's V1 schedule, jumped from event to event.

Between two events (arrival, prefill step, completion, preemption) every running sequence decodes one token in each iteration, so
the k iterations in between are one arithmetic series: their end, the cache blocks that they take and the token gaps that they
make have closed forms. Owns the state layout and nothing else: ``engine`` validates, allocates and reads the results. One file on
purpose: Numba's disk cache notices a change only in the file of the compiled function, not in those that it calls. The small
functions are inlined by Numba, because handing arrays over costs more than most of them do.

How a replica is held (one row each of ``real`` and ``whole``): decoding sequences are a binary heap of
``(iteration in which the last token comes) << REQUEST_BITS | request``. Waiting requests are a linked list through ``link``.
Prefill leaves at most one sequence partly done, because the chunk that does not finish a prompt is the one that used up the
token budget; it is also the latest admitted. ``ring`` counts the decoding sequences by the iteration, modulo the block size,
in which they need their next block. Times are seconds, ``-1`` marks a time that has not come.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

REQUEST_BITS = 28
REQUEST_MASK = (1 << REQUEST_BITS) - 1

# Columns of ``real``.
NOW, BUSY, RUNNING, WAITING, GAPS = range(5)
REAL_COLUMNS = 5
# Columns of ``whole``.
DECODING, CONTEXT, STEP, USED, PEAK, PARTIAL, PARTIAL_DONE, PARTIAL_BLOCKS = range(8)
HEAD, TAIL, QUEUED, JUST_DONE, ADMISSIONS, PREEMPTIONS, COMPLETED = range(8, 15)
WHOLE_COLUMNS = 15
# Entries of ``limits``.
SEQS, BUDGET, BLOCKS, BLOCK_SIZE, MODEL_LEN, CHUNKED = range(6)
UNLIMITED = 1 << 60

# The gap histogram: bins of 1 % from 1 microsecond; the first and the last are open.
BIN_LOW = 1e-6
BIN_GROWTH = math.log(1.01)
BINS = 2560
BIN_EDGES = np.exp(math.log(BIN_LOW) + BIN_GROWTH * np.arange(BINS))  # upper edges


@njit(cache=True, error_model="numpy", inline="always")
def _bin(value):  # type: ignore[no-untyped-def]
    if value <= BIN_LOW:
        return 0
    index = int(math.log(value / BIN_LOW) / BIN_GROWTH) + 1
    return min(index, BINS - 1)


@njit(cache=True, error_model="numpy", inline="always")
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


@njit(cache=True, error_model="numpy", inline="always")
def _push(heap, size, key):  # type: ignore[no-untyped-def]
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if heap[parent] <= key:
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = key


@njit(cache=True, error_model="numpy", inline="always")
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


@njit(cache=True, error_model="numpy")
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


@njit(cache=True, error_model="numpy")
def _latest(heap, size, admitted):  # type: ignore[no-untyped-def]
    """Where in the heap the latest admitted sequence is."""
    best = 0
    for at in range(1, size):
        if admitted[heap[at] & REQUEST_MASK] > admitted[heap[best] & REQUEST_MASK]:
            best = at
    return best


@njit(cache=True, error_model="numpy", inline="always")
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


@njit(cache=True, error_model="numpy", inline="always")
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


@njit(cache=True, error_model="numpy")
def _make_room(row, now, heap, ring, limits, work, marks):  # type: ignore[no-untyped-def]
    """Preempt the latest admitted until every decode of the iteration that starts at ``now`` finds its cache blocks."""
    _, prompt, output, _ = work
    link, produced, admitted, _, _, e2e = marks
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
            e2e[victim] = now  # its last token; the real end-to-end overwrites it
        link[victim] = row[HEAD]
        row[HEAD] = victim
        if row[TAIL] < 0:
            row[TAIL] = victim
        row[QUEUED] += 1
        row[PREEMPTIONS] += 1


@njit(cache=True, error_model="numpy", inline="always")
def _release(row, ring, tokens, size):  # type: ignore[no-untyped-def]
    """A decoding sequence that would next read ``tokens`` leaves the batch; it holds the blocks of all but the newest token."""
    row[CONTEXT] -= tokens
    ring[(row[STEP] - tokens + 1) % size] -= 1
    row[USED] -= (tokens - 1 + size - 1) // size


@njit(cache=True, error_model="numpy", inline="always")
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


@njit(cache=True, error_model="numpy", inline="always")
def _prefill(row, now, chunk, fresh, limits, work, marks):  # type: ignore[no-untyped-def]
    """Take ``chunk`` and what fits after it into this iteration.

    Returns (tokens, tokens times their context, sequences whose prefill it completes: the first entries of ``fresh``).
    """
    arrival, prompt, _, prefix = work
    link, produced, admitted, _, queue, _ = marks
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


@njit(cache=True, error_model="numpy", inline="always")
def _complete(row, now, heap, ring, limits, work, e2e):  # type: ignore[no-untyped-def]
    """Sequences whose last token came with the iteration that ended at ``now`` leave."""
    arrival, prompt, output, _ = work
    while row[DECODING] > 0 and heap[0] >> REQUEST_BITS == row[STEP]:
        request = heap[0] & REQUEST_MASK
        row[DECODING] -= 1
        if row[DECODING] > 0:
            _sink(heap, row[DECODING], 0, heap[row[DECODING]])
        _release(row, ring, prompt[request] + output[request], limits[BLOCK_SIZE])
        e2e[request] = now - arrival[request]
        row[JUST_DONE] += 1


@njit(cache=True, error_model="numpy", inline="always")
def _start_decoding(row, cells, ready, heap, ring, fresh, limits, work, marks, bins):  # type: ignore[no-untyped-def]
    """The prefills that the iteration completed give a token each, and decode from the next iteration on."""
    arrival, prompt, output, _ = work
    _, produced, _, ttft, _, e2e = marks
    now, size = cells[NOW], limits[BLOCK_SIZE]
    for at in range(ready):
        request = fresh[at]
        tokens = prompt[request] + produced[request]
        if produced[request] == 0:
            ttft[request] = now - arrival[request]
        else:
            gap = now - e2e[request]
            e2e[request] = -1.0
            bins[_bin(gap)] += 1
            cells[GAPS] += gap
        left = output[request] - produced[request] - 1
        if left <= 0:
            e2e[request] = now - arrival[request]
            row[USED] -= (tokens + size - 1) // size
            row[JUST_DONE] += 1
            continue
        _push(heap, row[DECODING], ((row[STEP] + left) << REQUEST_BITS) | request)
        row[DECODING] += 1
        row[CONTEXT] += tokens + 1
        ring[(row[STEP] - tokens) % size] += 1


@njit(cache=True, error_model="numpy", inline="always")
def _advance(until, cells, row, heap, ring, fresh, cost, limits, work, marks, bins, edges):  # type: ignore[no-untyped-def]
    """Run one replica's iterations that start before ``until``. Returns at an iteration's end, or when nothing is left to do."""
    size, blocks = limits[BLOCK_SIZE], limits[BLOCKS]
    while cells[NOW] < until and (row[DECODING] > 0 or row[PARTIAL] >= 0 or row[HEAD] >= 0):
        now = cells[NOW]
        promised = row[USED] + ring[row[STEP] % size]
        if promised > blocks:
            _make_room(row, now, heap, ring, limits, work, marks)
            promised = row[USED] + ring[row[STEP] % size]
        decoding = row[DECODING]
        chunk = _next_chunk(row, promised, limits, work, marks[1])
        first = cost[0] + cost[1] * decoding + cost[2] * row[CONTEXT]
        ready = 0
        if chunk == 0:
            growth = cost[2] * decoding
            k = (heap[0] >> REQUEST_BITS) - row[STEP]
            if now + (k * first + growth * (0.5 * k * (k - 1.0))) >= until:
                k = _steps_until(first, growth, until - now, k)
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
            spent = first + cost[3] * tokens + cost[4] * products
            if decoding > 0:
                bins[_bin(spent)] += decoding
            in_batch = decoding + was_partial + queued - row[QUEUED]
        row[STEP] += k
        row[CONTEXT] += decoding * k
        cells[NOW] = now + spent
        cells[BUSY] += spent
        cells[GAPS] += decoding * spent
        cells[RUNNING] += in_batch * spent
        cells[WAITING] += row[QUEUED] * spent
        row[PEAK] = max(row[PEAK], row[USED])
        row[JUST_DONE] = 0
        _complete(row, cells[NOW], heap, ring, limits, work, marks[5])
        if ready > 0:
            _start_decoding(row, cells, ready, heap, ring, fresh, limits, work, marks, bins)
        row[COMPLETED] += row[JUST_DONE]


@njit(cache=True, error_model="numpy", inline="always")
def _too_large(request, limits, work):  # type: ignore[no-untyped-def]
    _, prompt, output, _ = work
    tokens = prompt[request] + output[request]
    return tokens > limits[MODEL_LEN] or (tokens + limits[BLOCK_SIZE] - 1) // limits[BLOCK_SIZE] > limits[BLOCKS]


@njit(cache=True, error_model="numpy", inline="always")
def _enqueue(request, at, real, whole, link):  # type: ignore[no-untyped-def]
    """A request reaches a replica that was advanced to its arrival."""
    if whole[DECODING] == 0 and whole[PARTIAL] < 0 and whole[HEAD] < 0:
        real[NOW] = max(real[NOW], at)
    real[WAITING] += real[NOW] - at
    link[request] = -1
    if whole[TAIL] >= 0:
        link[whole[TAIL]] = request
    else:
        whole[HEAD] = request
    whole[TAIL] = request
    whole[QUEUED] += 1


@njit(cache=True, error_model="numpy")
def _forget_unfinished(whole, link, e2e):  # type: ignore[no-untyped-def]
    """Of preempted requests that the horizon cut off, ``e2e`` still holds the time of the last token."""
    if whole[PARTIAL] >= 0:
        e2e[whole[PARTIAL]] = -1.0
    request = whole[HEAD]
    while request >= 0:
        e2e[request] = -1.0
        request = link[request]


@njit(cache=True, error_model="numpy")
def _fewest_outstanding(at, real, whole):  # type: ignore[no-untyped-def]
    chosen, fewest = 0, -1
    for replica in range(real.shape[0]):
        row = whole[replica]
        load = row[DECODING] + row[QUEUED] + (1 if row[PARTIAL] >= 0 else 0)
        if real[replica, NOW] > at:
            load += row[JUST_DONE]  # they end with the iteration that is still under way
        if fewest < 0 or load < fewest:
            chosen, fewest = replica, load
    return chosen


@njit(cache=True, error_model="numpy")
def simulate(least, horizon, real, whole, heap, ring, fresh, cost, limits, work, marks, bins, edges):  # type: ignore[no-untyped-def]
    """Route every request that arrives before ``horizon`` and run all replicas to their end, or to ``horizon``.

    least: 1 for the least-outstanding router, 0 for round robin.
    real, whole: (replicas, columns) state. heap: (replicas, slots). ring: (replicas, block size). fresh: (slots,) scratch.
    cost: (5,) the iteration's coefficients. limits: (6,). edges, bins: (BINS,) upper edges and weights of the token gaps.
    work: (n,) each: arrival, prompt, output, prefix. marks: (n,) each: link, produced, admitted, ttft, queue, e2e; in the last
    three, -1 is a time that has not come, and an e2e of -2 marks a rejected request.
    Returns (requests rejected, requests seen).
    """
    n, replicas = work[0].shape[0], real.shape[0]
    rejected, seen = 0, n
    for request in range(n + replicas):
        # The last turns of the loop drain the replicas; one call site keeps the loop one compiled body.
        draining = request >= n
        if draining:
            at, chosen, upto = horizon, request - n, request - n + 1
        else:
            at = work[0][request]
            if at >= horizon:
                seen = min(seen, request)
                continue
            if _too_large(request, limits, work):
                marks[5][request] = -2.0
                rejected += 1
                continue
            chosen = 0 if least == 1 else request % replicas
            upto = replicas if least == 1 else chosen + 1
        for replica in range(chosen, upto):
            _advance(
                at,
                real[replica],
                whole[replica],
                heap[replica],
                ring[replica],
                fresh,
                cost,
                limits,
                work,
                marks,
                bins,
                edges,
            )
        if draining:
            _forget_unfinished(whole[chosen], marks[0], marks[5])
            continue
        if least == 1:
            chosen = _fewest_outstanding(at, real, whole)
        _enqueue(request, at, real[chosen], whole[chosen], marks[0])
    return rejected, seen
