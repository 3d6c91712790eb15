"""deploy/prometheus and deploy/grafana: valid, and of metrics that there are."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from histill.cluster.metrics import METRICS, Metric

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTS = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "histill.json").read_text())
PAGE = (ROOT / "docs" / "watch.md").read_text()
EXPORTED = {metric.exported: metric for metric in METRICS.values()}
OF_A_SCRAPE = {"job", "instance", "WorkerId", "NodeAddress"}  # labels of every series


def rules() -> list[dict[str, Any]]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


def panels() -> list[tuple[str, str]]:
    """The title of each panel, with each of its expressions."""
    return [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]


def variables() -> list[tuple[str, str]]:
    listed = DASHBOARD["templating"]["list"]
    return [(each["name"], each["definition"]) for each in listed if each["type"] == "query"]


EXPRESSIONS = [*((rule["alert"], rule["expr"]) for rule in rules()), *panels(), *variables()]


@pytest.mark.parametrize(("name", "expression"), EXPRESSIONS, ids=[name for name, _ in EXPRESSIONS])
def test_what_is_asked_for_is_published_with_these_labels(name: str, expression: str) -> None:
    metrics = [EXPORTED[each] for each in re.findall(r"\bray_\w+", expression)]
    assert metrics
    selected = re.findall(r"(\w+)(?:=|=~|!=)\"", expression) + re.findall(r", (\w+)\)$", expression)
    grouped = re.findall(r"\b(?:by|on) \(([\w, ]+)\)", expression)
    labels = {*selected, *(label for labels in grouped for label in labels.split(", "))} - {"__name__"}
    for metric in metrics:
        assert labels <= {*metric.all_tags, *OF_A_SCRAPE}, metric


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_every_metric_is_shown_and_explained(metric: Metric) -> None:
    assert any(re.search(rf"\b{metric.exported}\b", expression) for _, expression in panels())
    assert f"`{metric.exported}`" in PAGE


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_is_tested_and_explained(rule: dict[str, Any]) -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"] if case["alertname"] == rule["alert"]]
    assert {bool(case["exp_alerts"]) for case in cases} == {False, True}
    assert f"### {rule['alert']}\n" in PAGE


@pytest.fixture(scope="session")
def promtool() -> str:
    found = shutil.which("promtool", path=os.pathsep.join([str(ROOT / ".tools"), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip("there is no promtool; `make promtool` takes it from Debian's package prometheus")
    return found


@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml"), ("check", "config", "prometheus.yml")],
)
def test_promtool_accepts_the_rules_and_the_scrape_set_up(promtool: str, arguments: tuple[str, ...]) -> None:
    done = subprocess.run([promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_what_the_dashboard_asks(promtool: str, tmp_path: Path) -> None:
    """As rules, with the panels' variables filled in."""
    asked = [re.sub(r"\$\w+", lambda found: "5m" if "interval" in found[0] else ".*", expr) for _, expr in panels()]
    recorded = [{"record": f"panel_{number}", "expr": expr} for number, expr in enumerate(asked)]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    done = subprocess.run([promtool, "check", "rules", "panels.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_panels_fill_the_grid_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_pod_monitor_selects_what_kuberay_makes() -> None:
    """KubeRay labels the pods of all its clusters, and names the port of their metrics."""
    monitor = yaml.safe_load((PROMETHEUS / "podmonitor.yaml").read_text())
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert monitor["spec"]["selector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]


def test_prometheus_scrapes_the_file_that_ray_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    (scrape,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape["file_sd_configs"] == [{"files": [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]}]
