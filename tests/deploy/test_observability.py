"""What Prometheus and Grafana are told to look at is what replicas hand out."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from deployments.observability.exposition import PROCESS_S, SCRAPE_S
from deployments.observability.metrics import LABELS, Metrics
from deployments.observability.refusals import Refusals

FOLDER = Path(__file__).parents[2] / "deploy" / "observability"
RULES = yaml.safe_load((FOLDER / "rules.yaml").read_text(encoding="utf-8"))["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana" / "sextet.json").read_text(encoding="utf-8"))
REPLICAS = "sextet_replicas"  # by the gateway's process: observability/replicas.py


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in RULES)
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ()))
    yield from (one["query"]["query"] for one in DASHBOARD["templating"]["list"])


def handed_out() -> set[str]:
    """The names of all families, as Prometheus has them."""
    of_node = CollectorRegistry()
    of_node.register(Refusals(FOLDER / "no.sock"))
    text = (generate_latest(Metrics().registry) + generate_latest(of_node)).decode()
    heads = re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)
    suffixes = ("_bucket", "_sum", "_count")
    return {f"{name}{suffix}" for name, kind in heads for suffix in (suffixes if kind == "histogram" else ("",))} | {
        REPLICAS
    }


def test_every_metric_that_is_asked_for_is_handed_out() -> None:
    asked = {name for expression in expressions() for name in re.findall(r"\bsextet_\w+", expression)}

    assert asked
    assert asked - handed_out() == set()


def test_a_scrape_ends_before_prometheus_gives_up_though_processes_hang() -> None:
    """It waits for ten seconds, or as long as its interval where that is shorter."""
    interval = yaml.safe_load((FOLDER / "prometheus.yaml").read_text(encoding="utf-8"))["global"]["scrape_interval"]

    assert interval.endswith("s")
    assert int(interval[:-1]) > SCRAPE_S + 2 * PROCESS_S, "the last process asked, and HAProxy"


def test_every_recorded_series_is_recorded_and_used() -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    used = {name for expression in expressions() for name in re.findall(r"\bsextet:[\w:]+", expression)}

    assert used == recorded


def test_every_label_is_one_that_metrics_have() -> None:
    known = {*LABELS, "protocol", "status", "reason", "le", "architecture", "precision", "parity", "state"}
    known |= {"application", "instance", "job", "alertname", "alertstate"}
    for expression in expressions():
        braces = " ".join(re.findall(r"\{([^}]*)\}", expression))
        by = " ".join(re.findall(r"(?:by|ignoring) \(([^)]*)\)", expression))
        named = set(re.findall(r"(\w+)\s*(?:=~|!=|=)", braces)) | set(re.findall(r"\w+", by))
        assert named <= known, expression


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Prometheus")
@pytest.mark.parametrize(
    "command", [("check", "config", "prometheus.yaml"), ("test", "rules", "rules.test.yaml")], ids=lambda one: one[0]
)
def test_promtool_takes_the_rules_and_their_tests_pass(command: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
