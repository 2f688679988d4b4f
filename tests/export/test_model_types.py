"""Every `model_type` that transformers knows ends in an artifact, or in one line that says why not."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from safetensors.numpy import save_file
from transformers import CONFIG_MAPPING

from checkpoints.resolve import resolve
from export.build import ExportArgs, export_checkpoint
from export.graphs.convert import check_task
from pipelines.errors import CheckpointError
from pipelines.tasks import TASKS
from tests.known_models import ANSWER, TAG, KnownModel

pytestmark = pytest.mark.filterwarnings("ignore")  # of configs; `sextet export` keeps them quiet


def lines_of(model_type: str, folder: Path) -> Iterator[tuple[str, str | None]]:
    """For each task, why a checkpoint of this type cannot do it; None where an export goes on to load its weights."""
    import numpy as np

    try:
        CONFIG_MAPPING[model_type]().save_pretrained(folder)
    except Exception:  # a config that needs more than its defaults
        (folder / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    save_file({"nothing": np.zeros(1, np.float32)}, folder / "model.safetensors")
    try:
        checkpoint = resolve(str(folder))
    except CheckpointError as error:
        yield "", str(error)
        return
    for task in TASKS:
        try:
            check_task(checkpoint, task)
        except CheckpointError as error:
            yield task, str(error)
        else:
            yield task, None


def test_a_checkpoint_of_any_type_is_taken_or_refused_in_one_line_before_its_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # some configs ask for another model's
    taken: dict[str, list[str]] = {}
    for model_type in CONFIG_MAPPING:
        folder = tmp_path / model_type
        folder.mkdir()
        for task, line in lines_of(model_type, folder):
            if line is None:
                taken.setdefault(model_type, []).append(task)
            else:
                assert "\n" not in line, line
                assert str(folder) in line
    assert len(taken) > 150
    assert taken["bert"] == ["text-classification", "question-answering", "token-classification"]
    assert "clip" not in taken


@pytest.mark.parametrize(
    ("architecture", "task", "reason"),
    [
        ("layoutlm", TAG, "bbox"),  # a graph that asks for more than texts
        ("longformer", ANSWER, "AssertionError"),  # the model's own code fails on the exporter's example
        ("apertus", "text-generation", "expm1"),  # torch's exporter lacks an operator
        ("mamba", "text-generation", "its attention is not known for mamba"),  # no attention, and Optimum has no graph
    ],
)
def test_what_the_frameworks_fail_on_is_one_line_and_leaves_nothing(
    architecture: str, task: str, reason: str, tmp_path: Path
) -> None:
    tokenizer = "gpt2" if task == "text-generation" else "bert"
    source = KnownModel(f"someone/{architecture}", architecture, task, tokenizer).write(tmp_path / "checkpoint")

    with pytest.raises(CheckpointError, match=reason) as refused:
        export_checkpoint(ExportArgs(str(source), task, tmp_path / "artifact"))

    assert "\n" not in str(refused.value)
    assert not (tmp_path / "artifact").exists()
