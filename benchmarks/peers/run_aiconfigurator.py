"""Asks AIConfigurator for mean TTFT and TPOT at operating points, by the interpreter of its own environment; imports nothing of Flyball.

A question is a list of points, each the keyword arguments of ``cli_estimate``; an answer is a list of seconds, or of why there are none.

    python run_aiconfigurator.py QUESTION.json ANSWER.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from aiconfigurator.cli.api import cli_estimate


def ask(point: dict[str, Any]) -> dict[str, Any]:
    begin = time.perf_counter()
    try:
        got = cli_estimate(**point)
    except Exception as error:  # it has no data for this point: many types, and none is documented
        return {"refused": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {"ttft_s": got.ttft / 1000, "tpot_s": got.tpot / 1000, "wall_s": time.perf_counter() - begin}


def main() -> int:
    points = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([ask(point) for point in points]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
