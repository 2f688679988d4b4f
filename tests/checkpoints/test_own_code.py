"""A config that names code of its own (`auto_map`): it never runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoints.resolve import resolve
from export.build import ExportArgs, export_checkpoint
from pipelines.errors import CheckpointError

TASK = "text-classification"


@pytest.fixture
def folder(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A BERT whose code of its own leaves a mark where it runs."""
    folder = Path(shutil.copytree(checkpoint("bert", TASK), tmp_path / "folder"))
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from transformers import BertConfig as Config, BertForSequenceClassification as Model\n"
    )
    classes = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    change(folder / "config.json", auto_map=classes)
    return folder


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def test_transformers_own_code_is_taken_where_it_has_the_architecture(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []

    artifact = export_checkpoint(ExportArgs(str(folder), TASK, tmp_path / "artifact"), said.append)

    assert artifact.manifest.architecture == "bert"
    assert said[0] == f"{folder} names code of its own, which is not run: transformers' 'bert' is taken"
    assert not (tmp_path / "ran").exists()


def test_an_architecture_that_transformers_lacks_is_refused(folder: Path, tmp_path: Path) -> None:
    change(folder / "config.json", model_type="bert-of-mine")
    with pytest.raises(CheckpointError) as refused:
        resolve(str(folder))
    assert str(refused.value) == f"{folder} needs code of its own (auto_map in config.json), which is never run here"
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_of_its_own_is_refused(folder: Path) -> None:
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    with pytest.raises(CheckpointError) as refused:
        resolve(str(folder))
    assert str(refused.value).endswith("(auto_map in tokenizer_config.json), which is never run here")
