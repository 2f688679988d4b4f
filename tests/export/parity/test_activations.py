"""Activations beyond fp16: a CPU computes in fp32 and does not show them, so the export looks at PyTorch's."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from export.build import ExportArgs, export_checkpoint
from export.parity.activations import LARGEST_FP16, Activations
from pipelines.errors import CheckpointError

Make = Callable[..., Path]
LOADERS = {"llama": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM}
TASKS = {"llama": "text-generation", "t5": "translation"}


def grown(architecture: str, checkpoint: Make, folder: Path) -> Path:
    """A checkpoint whose residual stream outgrows fp16, which the norms behind it hide."""
    given = checkpoint(architecture, TASKS[architecture])
    model = LOADERS[architecture].from_pretrained(given)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("down_proj.weight", "wo.weight")):
                parameter *= 1e4
                assert parameter.abs().max() < LARGEST_FP16, "the weights themselves fit"
    source = Path(shutil.copytree(given, folder / "checkpoint"))
    model.save_pretrained(source)
    return source


@pytest.mark.parametrize(("architecture", "precision"), [("llama", "fp16"), ("llama", "int4"), ("t5", "fp16")])
def test_a_generator_that_overflows_is_refused_with_the_reason(
    architecture: str, precision: str, checkpoint: Make, tmp_path: Path
) -> None:
    source, output = grown(architecture, checkpoint, tmp_path), tmp_path / "artifact"
    asked = ExportArgs(str(source), TASKS[architecture], output, precision=precision, device="cuda")
    with pytest.raises(CheckpointError, match=r"does not fit in fp16: its activations reach [\d.e+]+, and fp16 ends"):
        export_checkpoint(asked)
    assert not output.exists()


def test_what_is_given_and_read_counts_and_masks_do_not() -> None:
    class Gate(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.softmax = torch.nn.Linear(2, 2, bias=False), torch.nn.Softmax(-1)

        def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            given: torch.Tensor = self.softmax(mask)
            return torch.add(given, self.down(hidden * hidden), alpha=0.0)

    seen = Activations()
    model, least = Gate(), torch.full((1, 2), torch.finfo(torch.float32).min)
    with seen.observed(model):
        model(torch.tensor([[3.0, -100.0]]), least)
    model(torch.tensor([[0.0, 1e6]]), least)
    assert seen.largest == 10_000.0
