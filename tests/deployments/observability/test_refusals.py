"""What HAProxy refuses is among the series of its node, as Prometheus reads them."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from deployments.cluster.ray_environment import spare_port
from deployments.ingress.node import prepare
from deployments.observability.exposition import Exposition
from deployments.observability.refusals import Refusals
from tests.deployments.ingress.running import Running, running
from tests.deployments.observability.observed import Series, series_of

NAME, PATH = "sextet_refusals_total", "/text-classification"
EVIL = {"host": "evil.example"}
REFUSED = {"task": "none", "application": "none", "status": "421", "reason": "host"}


class Node:
    """An ingress, and a scrape of its node."""

    def __init__(self, ingress: Running, port: int) -> None:
        self.ingress, self._url = ingress, f"http://127.0.0.1:{port}/metrics"

    def refuse(self, times: int) -> None:
        with self.ingress.client() as client:
            for _ in range(times):
                assert client.get(PATH, headers=EVIL).status_code == 421

    def scrape(self) -> Series:
        give_up_at = time.monotonic() + 30
        while True:
            try:
                return series_of(httpx.get(self._url, timeout=20).text)
            except httpx.ConnectError:  # it is not there yet
                assert time.monotonic() < give_up_at

    def refused(self) -> float:
        return self.scrape()[NAME, frozenset(REFUSED.items())]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """One with two processes that have series, as replicas have."""
    registry, port = CollectorRegistry(), spare_port()
    (tmp_path / "ingress").mkdir()
    with running(tmp_path / "ingress") as ingress:
        registry.register(Refusals(ingress.admin))
        expositions = [
            Exposition(bytes, tmp_path / str(number), ("127.0.0.1", port), partial(generate_latest, registry))
            for number in range(2)
        ]
        for one in expositions:
            one.start()
        try:
            yield Node(ingress, port)
        finally:
            for one in expositions:
                one.close()


def test_a_node_hands_out_once_what_its_ingress_refused(node: Node) -> None:
    before = node.scrape()
    node.refuse(3)
    after = node.scrape()

    assert before[NAME, frozenset(REFUSED.items())] == 0, "a rate needs a series before the first refusal"
    assert {key: n for key, n in after.items() if n} == {(NAME, frozenset(REFUSED.items())): 3}
    outages = {dict(labels)["task"] for _, labels in after if ("reason", "no_replica") in labels}
    assert outages == {"text-classification", "text-generation", "gateway", "none"}


def test_a_count_never_falls_where_another_process_takes_over(node: Node) -> None:
    """Prometheus would take it for a start at 0, and add all of it once more."""
    ingress = node.ingress
    node.refuse(3)
    run = ingress.write()
    prepare(str(ingress.folder / "settings.json"), str(ingress.folder / "haproxy.cfg"))
    node.refuse(4)
    assert node.refused() == 7

    ingress.run([*run, *ingress.taking_over()])

    assert node.refused() == 7
    node.refuse(5)
    assert node.refused() == 8


def test_where_haproxy_ends_its_series_go_and_begin_at_0_with_another_one(node: Node) -> None:
    node.refuse(3)
    assert node.refused() == 3
    (killed,) = node.ingress.processes
    killed.kill()
    killed.wait()
    assert node.scrape() == {}

    node.ingress.start()

    assert node.refused() == 0
