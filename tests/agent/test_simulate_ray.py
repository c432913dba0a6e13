"""`flyball simulate --ray` before Ray is asked anything: what is missing or wrong, in one line. tests/real has the rest."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from agent.cli import app
from agent.simulate.options import TrafficOptions, traffic_of
from agent.simulate.request import LoadOptions, TrafficRequest
from agent.simulate.run import estimate
from analyzers.grammar import BadQuestion


def traffic(workers: int | None = None, rate: float = 10.0) -> TrafficRequest:
    given = TrafficOptions(url="http://127.0.0.1:1", workers=workers)
    return traffic_of(given, LoadOptions(rate=rate, duration_s=1.0, arrivals="constant"), None, [])


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    asked = ["simulate", "--url", "http://127.0.0.1:1", "--rate", "1", "--duration", "1", "--ray", "auto"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2
    assert "pip install 'flyball[ray]'" in result.stderr.replace("\n", " ")


@pytest.mark.skipif(find_spec("ray") is None, reason="says what to install instead")
def test_an_address_that_is_none_is_said() -> None:
    asked = ["simulate", "--url", "http://127.0.0.1:1", "--rate", "1", "--duration", "1", "--ray", "head"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 1
    assert "HOST:PORT" in result.stderr


def test_each_node_has_a_worker_and_each_worker_a_cpu() -> None:
    nodes = {"a": 4, "b": 4, "c": 1}
    assert estimate(traffic(), nodes).workers == 3
    assert estimate(traffic(rate=2000.0), nodes).workers == 8, (
        "2000/s of 64 tokens is more than these can; one CPU is left"
    )
    assert estimate(traffic(workers=1), nodes).workers == 1
    assert estimate(traffic(workers=9), nodes).workers == 9
    with pytest.raises(BadQuestion, match="the cluster has 9 CPUs"):
        estimate(traffic(workers=10), nodes)
