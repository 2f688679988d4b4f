"""The tutorial, as a reader follows it: its commands are run as they stand, on small models and data of the same names.

A Hub on loopback has a tiny model for `bert-base-uncased` and takes what is published; NSMC has a few rows instead of
what curl would fetch, and the recipe's training is cut to a few steps.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployments.cluster.ray_environment import spare_port
from stores.fetch import fetch
from tests.cluster.serving import Serving
from tests.hub import Hub

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("tutorial.md", "tutorial.ko.md")
REVIEWS = [("정말 재미있어요", 1), ("지루하고 재미없다", 0), ("배우들의 연기가 훌륭해요", 1), ("돈이 아까운 영화", 0)]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


def blocks(page: str) -> list[tuple[str, str]]:
    """What each shell block is for (nothing: to be run in order), and the block."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [(kind.strip(), block) for kind, block in re.findall(r"^```sh(.*?)\n(.*?)^```", text, re.M | re.S)]


def only(kind: str) -> str:
    (block,) = [block for found, block in blocks(PAGES[0]) if found == kind]
    return block


@pytest.fixture(scope="module")
def hub(checkpoint: Callable[..., Path]) -> Iterator[Hub]:
    with Hub() as hub:
        hub.add("bert-base-uncased", checkpoint("bert", "text-classification"))
        hub.uploads.accounts["hf_writer"] = "user"
        yield hub


@pytest.fixture(scope="module")
def folder(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder after everything up to `sextet serve`."""
    folder = tmp_path_factory.mktemp("tutorial")
    rows = "".join(f"{number}\t{text}\t{label}\n" for number, (text, label) in enumerate(REVIEWS * 4))
    for name in ("ratings_train.tsv", "ratings_test.tsv"):
        (folder / name).write_text(f"id\tdocument\tlabel\n{rows}", encoding="utf-8")
    for kind, block in blocks(PAGES[0]):
        if not kind and not block.startswith("curl"):
            run(folder, hub, re.sub(r"(max_steps|save_steps): \d+", r"\1: 2", block))
    return folder


def run(folder: Path, hub: Hub, commands: str, **environment: str) -> str:
    """What the commands print in a reader's shell; fails with their own words."""
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = {"PATH": tools, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(folder / "cache"), "HF_TOKEN": "hf_writer"}
    finished = subprocess.run(
        ["bash", "-euc", commands], cwd=folder, env=os.environ | settings | environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_both_pages_show_the_same_commands() -> None:
    english, korean = ([(kind, re.sub(r" *#.*", "", one)) for kind, one in blocks(page)] for page in PAGES)

    assert english == korean


def test_the_model_is_served_answers_and_is_published(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    port = spare_port()
    assert only("serve") == "sextet serve reviews.yaml\n"
    serving = Serving.start(folder / "reviews.yaml", port=port)
    try:
        answer = run(folder, hub, only("ask"), SEXTET_URL=serving.wait_until_ready().url)
        assert serving.stop() == 0
    finally:
        serving.process.kill()
    published = run(folder, hub, only("publish"))

    assert set(re.findall(r'"label": "(\w+)"', answer)) == {"positive", "negative"}
    address = published.removeprefix("model: ").strip()
    assert re.fullmatch(r"user/reviews@[0-9a-f]{40}", address)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert (fetch(address).folder / "model.onnx").read_bytes() == (folder / "models/reviews/model.onnx").read_bytes()
