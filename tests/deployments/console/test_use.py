"""The form, the chat and the live table in a real browser: by keyboard, and as wide as a phone."""

import pytest

from tests.browser import Page
from tests.deployments.console.conftest import GENERATION, TASK
from tests.deployments.console.served import Cluster
from tests.deployments.console.test_accessible import answered, look
from tests.deployments.console.test_model_page import WIDTH, show

ROWS = "document.querySelectorAll('#live-table tbody tr').length"
SUMMARY = "document.querySelector('#live > summary')"


def press_until(tab: Page, condition: str) -> None:
    """Tab until what has the focus is as wanted."""
    for _ in range(60):
        tab.press("Tab")
        if tab.run(condition):
            return
    raise AssertionError(f"no way by Tab to {condition}")


def test_the_live_table_is_opened_read_and_closed_by_keyboard(tab: Page, served: Cluster) -> None:
    show(tab, served, TASK)
    tab.run("document.activeElement.blur()")
    press_until(tab, f"document.activeElement === {SUMMARY}")
    assert tab.run(ROWS) == 0
    tab.press("Enter")
    tab.wait_for(f"{ROWS} === 3")

    tab.press("Tab")  # the table, which can be scrolled where it is wider than its place
    assert tab.run("[document.activeElement.role, document.activeElement.parentElement.id]") == ["region", "live"]
    tab.run(f"{SUMMARY}.focus()")
    tab.press("Space")
    assert tab.run("document.querySelector('#live').open") is False
    tab.press("Enter")
    press_until(tab, f"document.activeElement.textContent === '/{TASK}/large'")
    tab.press("Enter")
    tab.wait_for("document.querySelector('#model-card') !== null")
    assert tab.run("location.hash") == f"#/{TASK}/large"


@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.parametrize("place", [TASK, GENERATION])
def test_no_form_answer_or_table_is_wider_than_a_phone(tab: Page, served: Cluster, place: str, language: str) -> None:
    look(tab, "light", "phone")
    show(tab, served, place, language)
    assert tab.run(WIDTH) == 0
    tab.run("document.querySelector('#more').open = document.querySelector('#live').open = true")
    if place == GENERATION:
        tab.run("document.querySelector('#field-message').value = 'unbroken'.repeat(40)")
    answered(tab)
    tab.wait_for(f"{ROWS} === 3")

    assert tab.run(WIDTH) == 0
    shown = "[...document.querySelectorAll('main *')].filter((one) => one.checkVisibility())"
    places = f"{shown}.filter((one) => !one.closest('.scroll, pre')).map((one) => one.getBoundingClientRect().right)"
    assert tab.run(f"Math.max(...{places}) <= document.documentElement.clientWidth")
