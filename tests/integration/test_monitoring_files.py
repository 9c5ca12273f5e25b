"""Prometheus, its alerts and the dashboard: they ask for series that there are, where compose has them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import yaml

from local_llm.datamodels import ProcessState
from router.bootstrap import build
from router.core.vocabulary import Outcome, Reason
from tests.deploy_files import DEPLOY, KEYS, settings_of

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """Every series that a gateway with an engine of its own and limits for its keys shows."""
    environ = {
        **KEYS,
        "ROUTER_SERVER__DATA_DIR": str(tmp_path_factory.mktemp("data")),
        "ROUTER_SERVER__AUTH__DEFAULT_LIMITS__REQUESTS_PER_MIN": "600",
    }
    gateway = build(settings_of("one-24gb-card.yaml", environ))
    names = set()
    for family in gateway.telemetry.registry.collect():
        kind = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + ending for ending in kind}
    return frozenset(names)


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "router.json").read_text())
    return loaded


def expressions() -> Iterator[str]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert rule["alert"] and rule["labels"]["severity"] in {"critical", "warning", "info"}
            assert rule["annotations"]["summary"]
            yield rule["expr"]
    board = dashboard()
    assert board["uid"] and board["title"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        if panel["type"] != "row":
            assert panel["targets"] and panel["datasource"]["uid"] == "prometheus"
            yield from (target["expr"] for target in panel["targets"])


def test_alerts_and_dashboard_ask_only_for_series_that_there_are(series: frozenset[str]) -> None:
    asked = {name for text in expressions() for name in re.findall(r"\b(?:router|vllm)[_:]\w+", text)}
    assert asked - series == set()
    assert len(asked) > 25


def test_alerts_and_dashboard_ask_only_for_label_values_that_there_are() -> None:
    values = {
        "outcome": {outcome.value for outcome in Outcome},
        "state": {state.value for state in ProcessState} | {"healthy", "degraded"},
        "reason": {reason.value for reason in Reason},
        "job": {"gateway", "engine"},
    }
    for text in expressions():
        for label, how, wanted in re.findall(r'(\w+)(=~|!~|=|!=)"([^"]*)"', text):
            for one in wanted.split("|"):
                assert any(re.fullmatch(one, value) for value in values[label]), (label, how, one)


def test_no_panel_lies_on_another() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for cell in product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])):
            assert taken.setdefault(cell, panel["title"]) == panel["title"]


def test_a_legend_names_only_labels_that_its_query_keeps() -> None:
    seen = 0
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            kept = re.search(r"\bby \(([^)]*)\)", target["expr"])
            if kept is not None:
                seen += 1
                named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                assert named <= set(re.split(r",\s*", kept[1])), (panel["title"], target["legendFormat"])
    assert seen > 10


def test_prometheus_scrapes_gateway_and_engine_where_compose_has_them() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert all((DEPLOY / "prometheus" / name).is_file() for name in config["rule_files"])
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert targets == {"gateway": ["gateway:8080"], "engine": ["engine:8000"]}
    for job in targets:
        assert set(SERVICES[job]["networks"]) & set(SERVICES["prometheus"]["networks"])


def test_grafana_finds_its_datasource_and_dashboards() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "router.yaml").read_text())["providers"]
    assert source["uid"] == "prometheus" and source["url"] == "http://prometheus:9090"
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]
