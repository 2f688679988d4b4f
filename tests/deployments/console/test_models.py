"""GET /catalog/<task>[/<model>]: what the gateway tells of one model, and the HTML of its card."""

import asyncio
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

import pipelines
from deployments.cluster.catalog import FRESH_S, Standing
from deployments.console.models import ModelPage, html, model_page
from deployments.ingress.model_rules.traffic import Split
from deployments.served import MAX_CARD_BYTES, details
from pipelines.runtime.artifact import MANIFEST_NAME, FileDigest
from tests.deployments.console.conftest import GENERATION, HOSTILE, LABELS, LARGE, METRICS, TASK
from tests.deployments.console.served import Cluster, with_card

OTHERS = {"large", "small"}


def asked(served: Cluster, path: str) -> httpx.Response:
    return httpx.get(f"{served.url}{path}", timeout=30)


def test_a_page_has_card_parity_labels_metrics_digest_replicas_and_the_share(
    served: Cluster, models: dict[str, Path]
) -> None:
    default, large = (asked(served, f"/catalog/{name}").json() for name in (TASK, f"{TASK}/large"))

    named = {key: value for key, value in large.items() if key != "model"}
    assert named == {
        "task": TASK,
        "name": "large",
        "route": f"/{TASK}/large",
        "ready": True,
        "asleep": False,
        "replicas": 1,
        "share": 2.5,
        "sticky": True,
    }
    model = large["model"]
    assert model["digest"] == FileDigest.of(models[LARGE] / MANIFEST_NAME).sha256
    assert model["version"] == model["digest"][:12]
    assert (model["id"], model["labels"], model["metrics"]) == ("large", list(LABELS), METRICS)
    assert (model["parity"]["agreement"], model["parity"]["perplexities"]) == (0.98, [10.0, 10.5])
    assert model["parity"]["largest_difference"] is None  # JSON has no NaN
    assert (model["card"], model["card_bytes"]) == (HOSTILE, len(HOSTILE.encode()))
    assert model["memory_bytes"] > 2**20
    page = msgspec.convert(default, ModelPage)  # as OpenAPI describes it
    assert page.model is not None
    assert (page.share, page.name, page.model.precision) == (97.5, TASK, "fp32")


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (f"/catalog/{TASK}/nobody", f"{TASK}/nobody"),
        ("/catalog/nothing", "nothing"),
        (f"/catalog/{LARGE}", LARGE),  # the name of an application is no path
        (f"/catalog/{TASK}/large.x", f"{TASK}/large.x"),
    ],
)
def test_a_model_that_is_not_there_is_a_404_that_lists_those_there_are(served: Cluster, path: str, wrong: str) -> None:
    response = asked(served, path)

    assert (response.status_code, response.json()["error_type"]) == (404, "not_found")
    assert response.json()["error"] == f"there is no model '{wrong}'; allowed: {TASK}, {TASK}/large, {GENERATION}"
    assert httpx.post(f"{served.url}/catalog/{TASK}").status_code == 405


def test_a_model_that_sleeps_shows_what_it_said_before_and_one_that_never_spoke_shows_nothing(served: Cluster) -> None:
    known = asked(served, f"/catalog/{TASK}").json()["model"]
    served.asleep |= {TASK, GENERATION}
    try:
        sleeping = httpx.get(f"{served.url}/catalog/{TASK}", timeout=30).json()
        while not sleeping["asleep"]:
            sleeping = asked(served, f"/catalog/{TASK}").json()
        silent = asked(served, f"/catalog/{GENERATION}").json()
    finally:
        served.asleep.clear()

    assert (sleeping["ready"], sleeping["replicas"], sleeping["model"]) == (True, 0, known)
    assert (silent["asleep"], silent["model"]) == (True, None)


def page_of(application: str, split: Split | None) -> ModelPage:
    return model_page(application, Standing(1), None, split, OTHERS)


def test_shares_are_of_models_that_are_there_and_unknown_where_the_file_is_wrong() -> None:
    split = Split({"large": 500, "gone": 3000}, sticky=False)

    shares = {name: page_of(name, split).share for name in (TASK, f"{TASK}.large", f"{TASK}.small")}

    assert shares == {TASK: 95.0, f"{TASK}.large": 5.0, f"{TASK}.small": 0.0}
    assert page_of(TASK, Split()).share == 100.0
    assert page_of(TASK, None).share is None


def test_what_a_replica_of_another_release_says_is_left_out() -> None:
    assert model_page(TASK, Standing(1), {"id": "a"}, Split(), OTHERS).model is None


def test_an_adapter_has_the_page_of_its_base_under_its_own_name(served: Cluster) -> None:
    server = served.servers[TASK]
    plain = server.details
    adapter = {"name": "polite", "version": "0123456789ab", "memory_bytes": 1000, "rank": 8}
    server.details = lambda: plain() | {"adapters": [adapter]}  # type: ignore[method-assign]
    try:
        served.call(lambda: asyncio.sleep(FRESH_S))
        page = asked(served, f"/catalog/{TASK}/polite").json()
    finally:
        del server.details

    assert (page["name"], page["route"], page["share"]) == ("polite", f"/{TASK}/polite", 0.0)
    found = {key: page["model"][key] for key in ("id", "version", "digest", "memory_bytes", "rank", "adapter_of")}
    assert found == {
        "id": "polite",
        "version": "0123456789ab",
        "digest": "0123456789ab",
        "memory_bytes": 1000,
        "rank": 8,
        "adapter_of": server.describe()["id"],
    }


@pytest.fixture
def opened(exported: Callable[..., Path], tmp_path: Path) -> Callable[[str | None], Any]:
    def make(card: str | None) -> Any:
        return pipelines.load(with_card(exported("bert", TASK), tmp_path / "artifact", card))

    return make


def test_a_huge_card_is_cut_between_characters_and_its_size_is_told(opened: Callable[..., Any]) -> None:
    card = "한" * MAX_CARD_BYTES

    said = details(opened(card), "cpu")

    assert said["card"] == "한" * (MAX_CARD_BYTES // 3)
    assert said["card_bytes"] == 3 * MAX_CARD_BYTES


def test_a_card_that_is_not_of_the_artifact_that_was_loaded_is_not_shown(opened: Callable[..., Any]) -> None:
    pipeline = opened("# Mine")
    assert details(pipeline, "cpu")["card"] == "# Mine"
    (pipeline.artifact.path / "README.md").write_text("# Another one's", encoding="utf-8")

    assert (details(pipeline, "cpu")["card"], details(pipeline, "cpu")["card_bytes"]) == ("", 0)
    (pipeline.artifact.path / "README.md").unlink()
    assert details(pipeline, "cpu")["card"] == ""


def test_an_artifact_may_have_no_card(opened: Callable[..., Any]) -> None:
    said = details(opened(None), "cpu")

    assert (said["card"], said["card_bytes"]) == ("", 0)


class Tags(HTMLParser):
    """The elements of a text, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_html_of_a_card_has_no_markup_of_its_author() -> None:
    written = Tags(html(HOSTILE)).found

    allowed = {"h3", "p", "table", "thead", "tbody", "tr", "th", "td", "a", "pre", "code", "em", "strong", "ul", "li"}
    assert {tag for tag, _ in written} <= allowed
    links = [attributes for tag, attributes in written if tag == "a"]
    assert [one["href"] for one in links[:2]] == ["https://example.com/page", "https://example.com/x"]
    for one in links:
        assert str(one["href"]).startswith("https://example.com/")
        assert one["rel"] == "noopener noreferrer nofollow"
        assert set(one) <= {"href", "rel", "title"}
    of_cells = [attributes for tag, attributes in written if tag in ("th", "td")]
    assert of_cells == [{"class": "center"}, {"class": "right"}] * 2  # no styles, which the page does not allow
    assert not [name for _, attributes in written for name in attributes if name.startswith("on")]


def test_a_card_is_shown_below_the_headings_of_the_page_and_without_its_metadata() -> None:
    assert html("---\ntitle: x\n---\n# One\n###### Six\n") == "<h3>One</h3>\n<h6>Six</h6>\n"
    assert html("---\nno end\n") == "<hr />\n<p>no end</p>\n"
    assert html("| a |\n|---|\n| b |\n").startswith("<table>")


def test_a_cell_of_a_heads_row_without_words_is_no_header() -> None:
    """Screen readers announce headers; parity's table has a first column without one."""
    written = html("| | PyTorch |\n|---|---:|\n| | a |\n")

    assert [tag for tag, _ in Tags(written).found if tag in ("th", "td")] == ["td", "th", "td", "td"]
    assert (written.count("<th"), written.count("</th>")) == (2, 1)  # one of them is thead


@pytest.mark.parametrize("unit", ["![[", "> ", "- ", "**a_", "[a](b", "| a ", "<a ", "`", "[]: b\n"])
def test_a_card_of_the_largest_size_becomes_html_of_a_bounded_size(unit: str) -> None:
    card = unit * (MAX_CARD_BYTES // len(unit))

    assert len(html(card)) < 40 * MAX_CARD_BYTES
