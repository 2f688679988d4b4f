"""The console behind an ingress that asks for keys, in a real browser: what it asks a person, and how often."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from deployments.config import route_of
from deployments.ingress.config import IngressConfig
from deployments.ingress.haproxy import WRAPPER_VARIABLE
from deployments.ingress.keys import Key, add, new_key
from tests.browser import Page
from tests.deployments.console.conftest import LARGE, TASK
from tests.deployments.console.served import Cluster
from tests.deployments.ingress.running import Running, running

ROUTES = "[...document.querySelectorAll('#live tbody th')].map((one) => one.textContent)"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A file of keys, and the keys by their names."""
    file, found = tmp_path_factory.mktemp("keys") / "keys", {}
    for name, tasks in {"all": (), "one": (TASK,)}.items():
        found[name], digest = new_key()
        add(file, Key(digest, name, tasks=tasks))
    return file, found


@pytest.fixture(scope="module")
def ingress(
    served: Cluster, keys: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    applications = {name: route_of(name) for name in served.servers} | {"gateway": "/"}
    elsewhere = dict.fromkeys(applications, urlsplit(served.url).port or 0)
    config = IngressConfig(keys=str(keys[0]))
    node = tmp_path_factory.mktemp("node")
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv(WRAPPER_VARIABLE)  # the gateway's, which is no HAProxy
        with running(node, config, applications=applications, elsewhere=elsewhere) as started:
            yield started


def forget_refusals(tab: Page) -> None:
    """The browser's own lines for them."""
    tab.faults = [one for one in tab.faults if "401" not in one and "403" not in one]


def test_it_asks_for_a_key_until_one_is_known_and_then_for_none(
    tab: Page, ingress: Running, keys: tuple[Path, dict[str, str]]
) -> None:
    tab.given = ["sextet_guessed", f" {keys[1]['all']} "]
    tab.open(f"{ingress.url}/#{TASK}")
    tab.wait_for("document.querySelectorAll('#models a').length === 2")
    assert (tab.prompted, tab.given) == (2, [])

    tab.run("document.querySelector('#form').requestSubmit()")
    tab.wait_for("document.querySelector('#result').textContent.trim()")
    tab.run("document.querySelector('#live').open = true")
    tab.wait_for(f"{ROUTES}.length === 3")

    assert tab.prompted == 2
    assert tab.run("[localStorage.length, document.cookie, sessionStorage.getItem('key')]") == [0, "", keys[1]["all"]]
    forget_refusals(tab)


def test_a_page_that_asks_for_several_things_at_once_asks_for_the_key_once(
    tab: Page, ingress: Running, keys: tuple[Path, dict[str, str]]
) -> None:
    tab.given = [keys[1]["all"]]
    tab.open(f"{ingress.url}/#/{TASK}/large")
    tab.wait_for("document.querySelector('#model-card') !== null")

    assert tab.prompted == 1
    forget_refusals(tab)


def test_who_has_no_key_is_told_so_and_left_alone(tab: Page, ingress: Running) -> None:
    tab.open(f"{ingress.url}/#/{TASK}")
    said = tab.wait_for("document.querySelector('[role=alert]')?.textContent")

    assert "401" in said
    assert tab.prompted == 1
    forget_refusals(tab)


def test_a_key_for_one_task_sees_the_live_numbers_of_its_models_and_is_refused_elsewhere(
    tab: Page, ingress: Running, keys: tuple[Path, dict[str, str]]
) -> None:
    tab.given = [keys[1]["one"]]
    tab.open(f"{ingress.url}/#{TASK}")
    tab.wait_for("document.querySelectorAll('#models a').length === 2")
    tab.run("document.querySelector('#live').open = true")
    tab.wait_for(f"{ROUTES}.length")

    assert tab.run(ROUTES) == [route_of(TASK), route_of(LARGE)]
    tab.run("location.hash = 'text-generation'")
    tab.run("document.querySelector('#form').requestSubmit()")
    assert "403 · this key may not ask this task" in tab.wait_for(
        "document.querySelector('#result').textContent.trim()"
    )
    forget_refusals(tab)
