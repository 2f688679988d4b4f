"""The page of an adapter in a real browser: found from its base's, with its own facts, on a desk and on a phone."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.browser import Page
from tests.deployments.console.axe import violations
from tests.deployments.console.conftest import GENERATION
from tests.deployments.console.served import Cluster, cluster
from tests.deployments.console.test_accessible import look, looks
from tests.deployments.console.test_model_page import WIDTH, fact, opened, show
from tests.lora import save_adapter

NAME = "pirate"
ROUTE = f"/{GENERATION}/{NAME}"


@pytest.fixture(scope="module")
def served(
    exported: Callable[..., Path], checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    adapter = save_adapter(checkpoint("llama", GENERATION), tmp_path_factory.mktemp("adapters") / NAME)
    models, slots = {GENERATION: exported("llama", GENERATION)}, {"slots": 2, "max_tokens": 128}
    with cluster(tmp_path_factory.mktemp("ingress"), models, adapters={NAME: str(adapter)}, slots=slots) as running:
        yield running


def test_it_is_reached_from_its_base_and_says_whose_it_is(tab: Page, served: Cluster) -> None:
    base, adapter = (httpx.get(f"{served.url}/catalog{route}").json()["model"] for route in (f"/{GENERATION}", ROUTE))
    show(tab, served, GENERATION)
    links = "[...document.querySelectorAll('#models a')]"
    tab.wait_for(f"{links}.length === 2")
    tab.run(f"{links}.find((one) => one.textContent === '{ROUTE}').click()")
    tab.wait_for("document.querySelector('#model-card') !== null")

    assert (fact(tab, "Path"), fact(tab, "Name"), fact(tab, "Adapter of")) == (ROUTE, NAME, base["id"])
    assert (fact(tab, "Digest"), fact(tab, "Verdict")) == (adapter["digest"], "passed")
    assert fact(tab, "Replicas") == "1"
    assert tab.run("document.querySelector('#models [aria-current=page]').textContent") == ROUTE
    tab.run(f"{links}.find((one) => one.textContent !== '{ROUTE}').click()")
    tab.wait_for("document.querySelector('#page dd')?.textContent === " + f"'/{GENERATION}'")
    assert fact(tab, "Name") == base["id"]


@looks
def test_it_is_for_everybody(tab: Page, served: Cluster, scheme: str, size: str, language: str) -> None:
    look(tab, scheme, size)
    opened(tab, served, ROUTE, language)

    assert violations(tab) == []
    assert tab.run(WIDTH) == 0
