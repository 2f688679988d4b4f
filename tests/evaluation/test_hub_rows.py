"""A data set of the Hub by its id, through the real `datasets` library; in a process of its own, as it reads
HF_ENDPOINT when it is imported."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation.readers import Reference
from tests.data_hub import DataHub

READ = """
import sys
from evaluation.rows import DataArgs, read
from pipelines.errors import SextetError
try:
    for row in read([sys.argv[1]], DataArgs("text-classification")):
        print(row["where"], row["text"], row["label"])
except SextetError as error:
    print(error)
"""
CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train.jsonl}
  - {split: test, path: data/test.jsonl}
---
# Reviews
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataHub]:
    folder = tmp_path_factory.mktemp("reviews")
    (folder / "data").mkdir()
    (folder / "README.md").write_text(CARD)
    rows = [{"document": "좋다", "label": 1}, {"document": "나쁘다", "label": 0}]
    (folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "data" / "test.jsonl").write_text(json.dumps({"document": "fine", "label": 1}) + "\n")
    with DataHub("someone/reviews", folder) as started:
        yield started


def lines(hub: DataHub, home: Path, name: str) -> list[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "PYTHONPATH": str(Path.cwd())}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", READ, name]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=120)
    return finished.stdout.splitlines()


def test_a_split_of_a_data_set_is_read_and_its_rows_are_numbered(hub: DataHub, tmp_path: Path) -> None:
    *_, first, second = lines(hub, tmp_path, "someone/reviews:train")
    assert first == "someone/reviews:train row 1 좋다 1"
    assert second == "someone/reviews:train row 2 나쁘다 0"


def test_without_a_split_or_with_a_wrong_one_the_splits_are_named(hub: DataHub, tmp_path: Path) -> None:
    assert lines(hub, tmp_path, "someone/reviews") == [
        "someone/reviews has several splits: train, test; write which one: someone/reviews:train"
    ]
    assert lines(hub, tmp_path, "someone/reviews:dev") == ["someone/reviews has no split 'dev'; allowed: train, test"]


def test_a_data_set_that_is_not_there_is_one_line(hub: DataHub, tmp_path: Path) -> None:
    (line,) = lines(hub, tmp_path, "someone/nothing:train")
    assert line.startswith("someone/nothing: no such file, and as a data set of the Hub it cannot be had (")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("klue/klue:ner/validation", Reference("klue/klue", None, "ner", "validation")),
        ("a/b@v1:test", Reference("a/b", "v1", None, "test")),
        ("a/b", Reference("a/b")),
        ("reviews.tsv", None),
        ("a/b/c", None),
    ],
)
def test_a_reference_names_owner_data_set_revision_configuration_and_split(
    text: str, expected: Reference | None
) -> None:
    assert Reference.parse(text) == expected
