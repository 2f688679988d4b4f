"""A replica with adapters holds the base's weights once, whatever the number of adapters."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from export.graphs.slot_graph import convert_to_slots
from pipelines.generation.adapters.graph import points_of
from tests.pipelines.generation.adapters.test_lora import of_layer, write

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter
MIB = 2**20
PROGRAM = """
import sys
from pathlib import Path
import onnxruntime
from deployments.cluster.processes import resident_bytes
from deployments.host import give_memory_back
from pipelines.generation.adapters.stack import AdapterStack
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig

graph, folders = Path(sys.argv[1]), sys.argv[2:]
before = resident_bytes()
if folders:
    stack = AdapterStack.open(graph, {Path(one).name: Path(one) for one in folders})
    session = InferenceSession(stack.graph(graph), SessionConfig(), folder=graph.parent)
else:
    session = InferenceSession(graph, SessionConfig())
give_memory_back()
print(resident_bytes() - before)
"""


def grown_bytes(graph: Path, *adapters: Path) -> int:
    """What a new process holds once it has loaded these."""
    command = [sys.executable, "-c", PROGRAM, str(graph), *map(str, adapters)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_adapters_take_no_second_copy_of_the_base(tmp_path: Path) -> None:
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 6}
    torch.manual_seed(1)
    config = AutoConfig.for_model("llama", vocab_size=500, **shape)
    graph = tmp_path / "model.onnx"
    convert_to_slots(AutoModelForCausalLM.from_config(config).eval(), graph)
    weights = graph.stat().st_size
    assert weights > 90 * MIB
    layers = [(part.layer, point.width, part.width) for point in points_of(graph) for part in point.parts]
    tensors = {
        name: values
        for layer, reads, makes in layers
        for name, values in of_layer(f"base_model.model.{layer}", reads, makes, 4).items()
    }
    adapters = [write(tmp_path / f"a{n}", tensors) for n in range(2)]

    plain, adapted = grown_bytes(graph), grown_bytes(graph, *adapters)

    assert adapted - plain < 0.25 * weights
