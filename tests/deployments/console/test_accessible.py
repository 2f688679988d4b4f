"""Every page of the console by axe-core: light and dark, as wide as a desk and as a phone, in both languages."""

import pytest

from tests.browser import Page
from tests.deployments.console.axe import violations
from tests.deployments.console.conftest import GENERATION, TASK
from tests.deployments.console.served import Cluster
from tests.deployments.console.test_model_page import opened, show

SIZES = {"desk": (1280, 900, False), "phone": (360, 740, True)}
looks = pytest.mark.parametrize(
    ("scheme", "size", "language"),
    [("light", "desk", "en"), ("dark", "desk", "ko"), ("light", "phone", "ko"), ("dark", "phone", "en")],
)


def look(tab: Page, scheme: str, size: str) -> None:
    width, height, mobile = SIZES[size]
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)


def answered(tab: Page) -> None:
    tab.run("document.querySelector('#form').requestSubmit()")
    tab.wait_for("document.querySelector('#stop').hidden && document.querySelector('#result').childElementCount > 0")


@looks
def test_a_form_with_its_answer_and_the_live_table(
    tab: Page, served: Cluster, scheme: str, size: str, language: str
) -> None:
    look(tab, scheme, size)
    show(tab, served, TASK, language)
    tab.run("document.querySelector('#more').open = document.querySelector('#live').open = true")
    answered(tab)
    tab.wait_for("document.querySelectorAll('#live-table tbody tr').length === 3")

    assert violations(tab) == []


@looks
def test_a_chat(tab: Page, served: Cluster, scheme: str, size: str, language: str) -> None:
    look(tab, scheme, size)
    show(tab, served, GENERATION, language)
    tab.run("document.querySelector('#more').open = true")
    tab.run("[...document.querySelectorAll('#parameters input')][0].value = 4")
    tab.run("[...document.querySelectorAll('#parameters input')][0].oninput()")
    answered(tab)

    assert violations(tab) == []


@looks
def test_the_page_of_a_model(tab: Page, served: Cluster, scheme: str, size: str, language: str) -> None:
    look(tab, scheme, size)
    opened(tab, served, f"/{TASK}/large", language)
    tab.run("document.querySelector('#model-parity summary').click()")

    assert violations(tab) == []


@looks
def test_the_page_of_a_model_that_is_not_there(
    tab: Page, served: Cluster, scheme: str, size: str, language: str
) -> None:
    look(tab, scheme, size)
    show(tab, served, f"/{TASK}/nobody", language)
    tab.wait_for("document.querySelector('#page [role=alert]')?.textContent.startsWith('404')")
    tab.faults.clear()  # the browser's own line for the 404

    assert violations(tab) == []


def test_axe_finds_what_is_wrong(tab: Page, served: Cluster) -> None:
    opened(tab, served, f"/{TASK}")
    tab.run("document.querySelector('#title').style.color = '#ccc', document.querySelector('#form').hidden = false")
    tab.run("document.querySelector('#fields').append(document.createElement('input'))")

    assert {one.split(":")[0] for one in violations(tab)} >= {"color-contrast", "label"}
