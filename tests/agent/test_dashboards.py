"""The alert rules and dashboards that come with Flyball name what its /metrics have, and are dashboards that Grafana takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from agent.metrics import Metrics

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
BOARDS = sorted((DEPLOY / "grafana").glob("*.json"))
RULES = DEPLOY / "prometheus" / "flyball.rules.yml"
#: What `sum by` may name beside a metric's own labels.
_ADDED = {"le", "job", "instance"}


def known() -> dict[str, set[str]]:
    """The labels of each series on /metrics."""
    found: dict[str, set[str]] = {}
    for metric in vars(Metrics()).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        ends = ("_total",) if isinstance(metric, Counter) else ("",)
        if isinstance(metric, Histogram):
            ends = ("_bucket", "_sum", "_count")
        found |= {metric._name + end: set(metric._labelnames) | _ADDED for end in ends}
    return found


def board(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def expressions() -> Iterator[str]:
    """Every PromQL expression that is shipped."""
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for path in BOARDS:
        for panel in board(path)["panels"]:
            yield from (target["expr"] for target in panel.get("targets", ()) if "expr" in target)


def test_every_expression_names_series_and_labels_that_there_are() -> None:
    names = known()
    used = set()
    for expression in expressions():
        for name, _, matchers in re.findall(r"\b(flyball_\w+)(\{([^}]*)\})?", expression):
            assert name in names, expression
            used.add(name)
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert labels <= names[name], expression
    assert len(used) >= 15


@pytest.mark.parametrize("path", BOARDS, ids=[path.stem for path in BOARDS])
def test_a_dashboard_is_one_that_grafana_takes(path: Path) -> None:
    made = board(path)
    assert {"uid", "title", "schemaVersion", "panels", "templating", "time"} <= set(made)
    ids = [panel["id"] for panel in made["panels"]]
    assert len(ids) == len(set(ids))
    assert not [pair for pair in combinations(made["panels"], 2) if _overlap(*(panel["gridPos"] for panel in pair))]
    variables = {variable["name"] for variable in made["templating"]["list"]}
    for panel in made["panels"]:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        if panel["type"] == "row":
            continue
        assert panel["datasource"]["uid"] == "${datasource}", "whoever imports it chooses the data source"
        for target in panel["targets"]:
            query = target.get("expr") or target["rawSql"]
            of_grafana = {"__rate_interval", "__range", "__unixEpochFrom", "__unixEpochTo"}
            assert set(re.findall(r"\$(\w+)", query)) <= variables | of_grafana


def test_each_alert_says_how_bad_it_is_and_what_to_do() -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}


def _overlap(a: Mapping[str, int], b: Mapping[str, int]) -> bool:
    apart = (
        a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"] or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
    )
    return not apart
