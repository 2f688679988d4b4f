"""Adapters of a family go where PEFT puts them: the logits of rows with and without one, held against PEFT's model."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch

from export.graphs.slot_graph import convert_to_slots
from export.quantization.quantize import to_int4, to_int8
from pipelines.generation.adapters.graph import points_of
from pipelines.generation.adapters.stack import AdapterStack
from pipelines.generation.slots.causal import CausalSlots
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.export.graphs.test_slot_families import tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter
FAMILIES = (
    "cohere", "falcon", "gemma2", "glm4", "gpt2", "gpt_bigcode", "gpt_neox", "granite", "llama", "olmo2", "opt", "phi",
    "phi3", "qwen3", "stablelm", "starcoder2",
)  # fmt: skip
ROUNDED = ("starcoder2",)
"""Without adapters, ONNX Runtime sums bias and residual in one operator with the norm behind them."""
PROMPTS = np.random.default_rng(1).integers(5, 300, (3, 9))


def logits(stack: AdapterStack | None, graph: Path, adapters: list[int]) -> np.ndarray:
    """Those of all tokens of PROMPTS but the last, read together, and of the last one, read after them."""
    source = graph if stack is None else stack.graph(graph)
    slots = CausalSlots(InferenceSession(source, SessionConfig()), len(PROMPTS), 32, stack=stack)
    slots.adapters[:] = adapters
    rows, tokens = PROMPTS.shape
    zeros, before = np.zeros(rows, np.int64), np.full(rows, tokens - 1)
    every = slots.read(0, PROMPTS[:, :-1], zeros, np.arange(rows * (tokens - 1)), before)
    first = every.rows(range(rows * (tokens - 1))).reshape(rows, tokens - 1, -1).copy()
    last = slots.read(0, PROMPTS[:, -1:], before, np.arange(rows)).rows(range(rows))[:, None]
    return np.concatenate([first, last], axis=1)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_rows_of_adapters_and_of_the_base_are_pefts(architecture: str, tmp_path: Path) -> None:
    model, graph, folder = tiny(architecture), tmp_path / "model.onnx", tmp_path / "adapter"
    convert_to_slots(model, graph)
    with torch.no_grad():
        base = model(torch.tensor(PROMPTS)).logits.numpy()
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=5, lora_alpha=7)
    adapted = peft.get_peft_model(model, config).eval()
    torch.manual_seed(2)
    for name, weight in adapted.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    adapted.save_pretrained(folder)
    with torch.no_grad():
        changed = adapted(torch.tensor(PROMPTS)).logits.numpy()
    scale = float(base.std())
    assert np.abs(changed - base).max() > 0.05 * scale

    ours = logits(AdapterStack.open(graph, {"a": folder}), graph, [1, 0, 1])

    np.testing.assert_allclose(ours / scale, np.stack([changed[0], base[1], changed[2]]) / scale, atol=1e-3)
    plain = logits(None, graph, [0, 0, 0])
    if architecture in ROUNDED:
        np.testing.assert_allclose(ours[1] / scale, plain[1] / scale, atol=1e-5)
    else:
        assert np.array_equal(ours[1], plain[1])
    exact = graph.read_bytes()
    for quantize, alike in ((to_int8, 0.98), (to_int4, 0.7)):
        graph.write_bytes(exact)
        quantize({"model": graph})
        quantized = logits(AdapterStack.open(graph, {"a": folder}), graph, [1, 1, 1])
        assert np.corrcoef(quantized.ravel(), changed.ravel())[0, 1] > alike


def test_layers_with_equal_weights_and_the_output_layer_are_no_points(tmp_path: Path) -> None:
    model, graph = tiny("llama"), tmp_path / "model.onnx"
    layers = model.model.layers
    with torch.no_grad():
        layers[1].mlp.down_proj.weight.copy_(layers[0].mlp.down_proj.weight)
    convert_to_slots(model, graph)
    found = {part.layer for point in points_of(graph) for part in point.parts}
    of_layer = {f"self_attn.{name}_proj" for name in "qkvo"} | {"mlp.gate_proj", "mlp.up_proj"}
    assert found == {f"model.layers.{n}.{name}" for n in range(2) for name in of_layer}
