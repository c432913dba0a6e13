"""Load-test summaries of other programs, as data for calibration: inference-perf, GuideLLM, AIPerf and ``vllm bench serve``.

Each is recognised by its fields. The four do not mean the same by the same word; what is read here means: TTFT, request sent to first
token; TPOT, (end-to-end - TTFT) / (output tokens - 1) of one request, over requests; ITL, a gap between tokens, over gaps. What a program
defines otherwise is converted where its figures allow it and left out where not; ``notes`` say so. Times are seconds. Unknown is None, and
a latency of 0, which all four write for "none", is unknown. Owns the four formats, read once from a file; fits nothing.
"""

from collectors.loadtests.loadtest import LATENCIES, BadLoadTest, LoadTest, LoadTestRecord, RateRamp, Summary
from collectors.loadtests.reader import parse, read

__all__ = ["LATENCIES", "BadLoadTest", "LoadTest", "LoadTestRecord", "RateRamp", "Summary", "parse", "read"]
