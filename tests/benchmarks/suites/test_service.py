"""The parts of `make bench-service` that need no cluster."""

import os
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from starlette.requests import Request as HttpRequest

from benchmarks.figures.bars import SERVICE_FIGURES
from benchmarks.suites import service
from benchmarks.suites.cluster import CLASSIFY, TRANSLATE, WRITE
from benchmarks.suites.service import OBSERVED, OBSERVERS, OTHER, SHARES, _share, collector, configuration
from benchmarks.suites.suite import Options
from benchmarks.switched import UNOBSERVED, SwitchedObserver
from deployments.config import task_configs
from deployments.http.request import Observer, Timings
from deployments.ingress.config import IngressConfig
from deployments.ingress.model_rules.traffic import STICKY, read_traffic
from deployments.observability import replica
from pipelines.runtime.artifact import ModelArtifact
from pipelines.scheduling.scheduler import BatchReport


def test_one_replica_is_measured_observed_and_not(tmp_path: Path) -> None:
    content = configuration(tmp_path / "model", 8001)

    models = task_configs(content)
    assert models[f"{CLASSIFY.name}.{OBSERVED}"].request_log.sample > 0
    applications = {one["name"]: one for one in content["applications"]}
    assert {WRITE.name, TRANSLATE.name, f"{TRANSLATE.name}.{OTHER}"} <= applications.keys()
    ingress = IngressConfig.of(content, tmp_path)
    assert (ingress.grpc_port, ingress.traffic) == (8001, str(tmp_path / "shares"))


def test_the_switched_observer_is_told_nothing_of_unobserved_requests(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Told(Observer):
        def batch(self, report: BatchReport) -> None:
            told.append("batch")

        def request(self, request: HttpRequest, timings: Timings) -> None:
            told.append("request")

        def headers(self, request: HttpRequest, timings: Timings) -> list[tuple[bytes, bytes]]:
            told.append("headers")
            return [(b"a", b"b")]

    monkeypatch.setattr(replica, "observe", lambda artifact: Told())
    observer = SwitchedObserver(ModelArtifact.open(exported("bert", CLASSIFY.name)))
    report, timings = BatchReport(1, 12, 0, 12, 0.0001, 0.001, 1), Timings()

    def happens(*headers: tuple[bytes, bytes]) -> tuple[list[tuple[bytes, bytes]], list[str]]:
        told.clear()
        request = HttpRequest({"type": "http", "method": "POST", "path": "/", "headers": list(headers)})
        observer.request(request, timings)
        added = observer.headers(request, timings)
        observer.batch(report)
        return added, told

    assert happens() == ([(b"a", b"b")], ["request", "headers", "batch"])
    assert happens((UNOBSERVED.encode(), b"1")) == ([], [])
    assert happens() == ([(b"a", b"b")], ["request", "headers", "batch"])


def test_a_change_of_the_split_is_what_the_ingress_reads(tmp_path: Path) -> None:
    file = tmp_path / "shares"
    for percent in SHARES:
        _share(file, percent)
        split = read_traffic(file)[TRANSLATE.name]
        assert (split.parts, split.sticky) == ({OTHER: 100 * percent}, False)
    assert STICKY not in file.read_text()


def test_what_observers_cost_is_measured_without_a_cluster(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "artifact_of", lambda task, say: exported("bert", task.name))
    monkeypatch.setattr(service, "running", None)  # what starts a cluster
    findings = service.run(Options(quick=True, peers=True, repetitions=1, only=(OBSERVERS,)), lambda line: None)

    assert findings.figures.keys() == {"observed_request_us", "observed_stream_us", "sampled_request_us"}
    assert findings.load["spans_received"] > 0


def test_the_collector_takes_traces_while_it_is_there() -> None:
    name = "OTEL_EXPORTER_OTLP_ENDPOINT"
    with collector() as received:
        with urlopen(Request(f"{os.environ[name]}/v1/traces", b"x", method="POST")) as response:
            assert response.status == 200
        assert received["requests"] == 1
    assert name not in os.environ


def test_every_figure_has_words_and_those_of_the_issue_have_bars() -> None:
    bars = {name: str(figure.bar) for name, figure in SERVICE_FIGURES.items() if figure.bar is not None}

    assert bars == {
        "observed_over_bare": ">= 0.97",
        "observed_request_us": "<= 10",
        "root_over_direct": ">= 0.95",
        "grpc_over_http": ">= 1",
        "canary_lost": "= 0",
        "canary_share_error": "<= 0.5",
    }
