"""The page of a model in a real browser: what it shows, live, by keyboard, of hostile names, and when a model goes."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipelines.runtime.artifact import MANIFEST_NAME, FileDigest
from tests.browser import Page
from tests.deployments.console.conftest import GENERATION, LARGE, SCRIPT, TASK
from tests.deployments.console.served import Cluster, with_card

FACT = """
(name) => [...document.querySelectorAll("#page dt")].find((one) => one.textContent === name)?.nextSibling.textContent
"""
WIDTH = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def show(tab: Page, served: Cluster, place: str, language: str = "en") -> None:
    """Open a page at a hash, in a language."""
    tab.open(f"{served.url}/#{place}")
    tab.wait_for("Boolean(document.querySelector('#tasks button') ?? document.querySelector('#page [role=alert]'))")
    tab.run(f"document.querySelector('[data-language={language}]').click()")


def opened(tab: Page, served: Cluster, route: str, language: str = "en") -> None:
    show(tab, served, route, language)
    tab.wait_for("document.querySelector('#model-card') !== null")


def fact(tab: Page, name: str) -> Any:
    return tab.run(f"({FACT})({json.dumps(name)})")


def test_it_shows_what_the_model_is_and_what_that_model_does(
    tab: Page, served: Cluster, models: dict[str, Path]
) -> None:
    opened(tab, served, f"/{TASK}")

    assert fact(tab, "Path") == f"/{TASK}"
    assert fact(tab, "Digest") == FileDigest.of(models[TASK] / MANIFEST_NAME).sha256
    assert fact(tab, "Share of the task's requests") == "97.50 % (by client)"
    assert (fact(tab, "Precision"), fact(tab, "Verdict"), fact(tab, "Architecture")) == ("fp32", "passed", "bert")
    assert fact(tab, "Memory of a replica").endswith(" MiB")
    labels = httpx.get(f"{served.url}/catalog/{TASK}").json()["model"]["labels"]
    assert tab.run("[...document.querySelectorAll('#model-labels li')].map((one) => one.textContent)") == labels
    assert "Compared with PyTorch" in tab.run("document.querySelector('.card').textContent")
    tab.wait_for(f"({FACT})('Requests/s') === '0.0'")
    with httpx.Client(base_url=served.url) as client:
        for _ in range(100):
            assert client.post(f"/{TASK}", json={"inputs": "a film"}).status_code == 200
            if fact(tab, "Requests/s") not in ("0.0", "–"):
                break
    assert fact(tab, "p99").endswith(" ms")
    assert fact(tab, "Failed") == "0.0 %"
    tab.run(f"location.hash = '/{TASK}/large'")
    tab.wait_for(f"({FACT})('Name') === 'large' && ({FACT})('Requests/s') === '0.0'")  # the other one has nothing to do


def test_hostile_names_and_cards_are_text(tab: Page, served: Cluster) -> None:
    opened(tab, served, f"/{TASK}/large")

    assert (
        tab.run(
            "document.querySelectorAll('main img, main script, main iframe, main [onerror], main [onclick]').length"
        )
        == 0
    )
    assert tab.run("window.hacked") is None
    assert fact(tab, "Checkpoint") == f"someone/{SCRIPT}"
    assert fact(tab, "Required") == SCRIPT
    assert tab.run("document.querySelector('#model-labels li').textContent") == SCRIPT
    assert tab.run("document.querySelector('#model-labels').textContent").endswith("and 203 more")
    assert SCRIPT in tab.run("document.querySelector('.card h3').textContent")
    assert SCRIPT in tab.run("document.querySelector('#model-measured caption').textContent")
    assert "0.910 [0.800, 1.000]" in tab.run("document.querySelector('#model-measured table').textContent")
    tab.run("document.querySelector('#model-parity summary').click()")
    assert SCRIPT in tab.run("document.querySelector('#model-parity li').textContent")
    links = tab.run("[...document.querySelectorAll('.card a')].map((one) => one.href)")
    assert links
    assert all(one.startswith("https://example.com/") for one in links)


def test_a_place_that_is_none_asks_nobody(tab: Page, served: Cluster) -> None:
    for place in ("/../live", "//example.com", f"/{TASK}/a/b/c", "/<img src=x onerror=window.hacked=1>", f"/{TASK}%2e"):
        show(tab, served, place)
        tab.wait_for("document.querySelector('#page [role=alert]')?.textContent === 'There is no such model.'")
    assert (
        tab.run("performance.getEntriesByType('resource').filter((one) => one.name.includes('/catalog')).length") == 0
    )
    assert tab.run("window.hacked") is None


def test_an_unknown_model_is_told_and_the_way_back_works(tab: Page, served: Cluster) -> None:
    show(tab, served, TASK)
    tab.wait_for("document.querySelectorAll('#models a').length === 2")
    tab.run(f"location.hash = '/{TASK}/nobody'")
    tab.wait_for("document.querySelector('#page [role=alert]') !== null")

    said = tab.run("document.querySelector('#page [role=alert]').textContent")
    assert said == f"404 · there is no model '{TASK}/nobody'; allowed: {TASK}, {TASK}/large, {GENERATION}"
    assert not tab.run("document.querySelector('#form').checkVisibility()")
    tab.run("history.back()")
    tab.wait_for("document.querySelector('#form').checkVisibility()")
    assert tab.run("document.querySelector('#page').checkVisibility()") is False
    tab.faults = [one for one in tab.faults if "404" not in one]  # the browser's own line for it


def test_a_model_that_goes_and_comes_back_while_its_page_is_open(
    tab: Page, served: Cluster, models: dict[str, Path]
) -> None:
    opened(tab, served, f"/{TASK}/large")
    tab.wait_for(f"({FACT})('Requests/s') === '0.0'")
    server = served.servers.pop(LARGE)
    try:
        tab.wait_for("document.querySelector('#page [role=alert]')?.textContent.startsWith('404')")
        assert fact(tab, "Requests/s") == "–"
        assert fact(tab, "Name") == "large"  # what was there can still be read
    finally:
        served.servers[LARGE] = server
    tab.wait_for(f"!document.querySelector('#page [role=alert]') && ({FACT})('Requests/s') === '0.0'")
    tab.faults = [one for one in tab.faults if "404" not in one]


def test_another_version_takes_over_while_the_page_is_open(
    tab: Page, served: Cluster, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    opened(tab, served, f"/{TASK}/large")
    tab.run("document.querySelector('#model-parity summary').click()")
    second = with_card(
        models[TASK], tmp_path_factory.mktemp("second") / "model", "# The second one\n\n[a](https://example.com)"
    )
    served.call(lambda: served.deploy(LARGE, second))
    try:
        tab.wait_for("document.querySelector('.card h3').textContent === 'The second one'")
        assert fact(tab, "Digest") == FileDigest.of(second / MANIFEST_NAME).sha256
        assert tab.run("document.querySelector('#model-parity details')") is None  # all of its answers are the same
    finally:
        served.call(lambda: served.deploy(LARGE, models[LARGE]))


def test_it_is_reached_and_left_by_keyboard(tab: Page, served: Cluster) -> None:
    show(tab, served, TASK)
    tab.wait_for("document.querySelectorAll('#models a').length === 2")
    tab.run("document.activeElement.blur()")
    for _ in range(40):
        tab.press("Tab")
        if tab.run("document.activeElement.textContent") == f"/{TASK}/large":
            break
    tab.press("Enter")
    tab.wait_for("document.querySelector('#model-card') !== null")

    assert tab.run("document.activeElement.id") == "title"
    assert tab.run("document.querySelector('#models [aria-current=page]').textContent") == f"/{TASK}/large"
    seen = []
    for _ in range(40):
        tab.press("Tab")
        seen.append(tab.run("document.activeElement.closest('#page') ? document.activeElement.tagName : ''"))
    assert {"SUMMARY", "A", "DIV"} <= set(seen)  # a table that is wider than its place can be scrolled


def test_it_speaks_korean(tab: Page, served: Cluster) -> None:
    opened(tab, served, f"/{TASK}/large", "ko")

    headings = tab.run("[...document.querySelectorAll('#page h2')].map((one) => one.textContent)")
    assert headings == ["모델 정보", "현재 상태", "PyTorch와 비교", "라벨", "측정 결과", "모델 카드"]
    assert fact(tab, "판정") == "통과"
    names = tab.run("[...document.querySelectorAll('#page dt, #page summary')].map((one) => one.textContent)")
    english = [one for one in names if one.isascii() and one not in ("p50", "p99")]
    assert english == []
    assert tab.names("navigation") == ["태스크", "이 태스크의 모델"]


def test_the_words_of_both_languages_are_the_same_words(tab: Page, served: Cluster) -> None:
    show(tab, served, TASK)

    missing = tab.run(
        "import('./console/words.js').then(({ WORDS: { en, ko } }) => "
        "[...Object.keys(en).filter((one) => !(one in ko)), ...Object.keys(ko).filter((one) => !(one in en))])"
    )
    assert missing == []


@pytest.mark.parametrize("route", [f"/{TASK}/large", f"/{GENERATION}"])
def test_nothing_is_wider_than_a_phone(tab: Page, served: Cluster, route: str) -> None:
    tab.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
    opened(tab, served, route)

    assert tab.run(WIDTH) == 0
    tab.wait_for("document.querySelector('#models a') !== null")
    places = "['about', 'models'].map((one) => document.getElementById(one).getBoundingClientRect())"
    assert tab.run(f"(([above, below]) => above.bottom <= below.top)({places})")  # nothing lies on anything else
