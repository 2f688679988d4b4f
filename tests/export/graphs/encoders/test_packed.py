"""Packed rows: which encoders get them, that no row sees another one, and what a graph for CUDA is made of.

No GPU here: a stand-in computes the packed attention, all else runs as exported. tests/gpu runs the operator itself.
"""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Encoding
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
)

from checkpoints.frameworks import quiet
from export.build import ExportArgs, export_checkpoint
from export.graphs.encoders.packed import OPERATOR, convert_to_packed
from export.graphs.encoders.stand_in import agrees, write_stand_in
from pipelines.errors import CheckpointError, ConfigurationError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.rows import Capacity, EncoderRow, PackedRows
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig

Make = Callable[..., Path]
TASK = "text-classification"
ARCHITECTURES = ["bert", "distilbert", "albert", "roberta", "electra", "xlm-roberta"]
HEADS = {
    TASK: AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
}


def row(n_tokens: int, typed: bool, seed: int) -> EncoderRow:
    ids = np.random.default_rng(seed).integers(5, 60, n_tokens)
    return EncoderRow.of(Encoding(), ids, ids % 2 if typed else None)


def packed(model: Any, graph: Path) -> bool:
    with quiet(print):  # the exporter's own warnings
        return convert_to_packed(model, graph)


def packed_session(graph: Path, folder: Path) -> InferenceSession:
    write_stand_in(graph, folder / "stand_in.onnx")
    return InferenceSession(folder / "stand_in.onnx", SessionConfig())


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_rows_are_read_as_pytorch_reads_each_row_alone(
    architecture: str, task: str, checkpoint: Make, tmp_path: Path
) -> None:
    model = HEADS[task].from_pretrained(checkpoint(architecture, task)).eval()
    graph = tmp_path / "model.onnx"
    assert packed(model, graph)
    session = packed_session(graph, tmp_path)
    rows = [row(n, "token_type_ids" in session.input_names, seed) for seed, n in enumerate((3, 11, 1, 7))]
    layout = PackedRows(session.input_names, pad_token_id=1)

    for capacity in (None, Capacity(64, 9, 40)):
        outputs = session.run(layout.feeds(rows, capacity))
        for name, output in outputs.items():
            ours = output[: len(rows)] if task == TASK else layout.by_row(output, rows)
            for one, mine in zip(rows, ours, strict=True):
                given = {"input_ids": one.input_ids, "token_type_ids": one.token_type_ids}
                with torch.no_grad():
                    theirs = model(**{key: torch.tensor(ids)[None] for key, ids in given.items() if ids is not None})
                np.testing.assert_allclose(mine, theirs[name][0].numpy(), atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_graph_for_cuda_in_fp16_has_ten_nodes_a_layer_and_none_that_the_host_computes(
    architecture: str, exported: Make
) -> None:
    artifact = ModelArtifact.open(exported(architecture, TASK, "fp16", device="cuda"))
    manifest = artifact.manifest
    graph = onnx.load(artifact.graph("model")).graph
    found = Counter(node.op_type for node in graph.node)
    layers = artifact.config()["n_layers" if architecture == "distilbert" else "num_hidden_layers"]

    assert manifest.rows == "packed"
    assert manifest.parity.passed
    assert manifest.parity.compared_on == f"CPU, with a stand-in for {OPERATOR}"
    assert found[OPERATOR] == layers
    assert found["SkipLayerNormalization"] == 2 * layers
    assert found["BiasGelu"] + found["FastGelu"] == layers
    assert not {"Shape", "Softmax", "If", "Where"}.intersection(found)
    assert {one.data_type for one in graph.initializer if len(one.dims) == 2 and "offset" not in one.name} == {10}


def test_attention_of_another_form_stays_padded_in_fp16(exported: Make) -> None:
    artifact = ModelArtifact.open(exported("deberta-v2", TASK, "fp16", device="cuda"))
    assert artifact.manifest.rows == "padded"
    assert artifact.manifest.parity.passed
    assert artifact.manifest.parity.compared_on == "CPU"


def test_a_bias_of_the_scores_is_found_to_be_lost(checkpoint: Make, tmp_path: Path) -> None:
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = MPNetConfig(**sizes, intermediate_size=64, initializer_range=0.3)  # so that attention shows in the logits
    mpnet = MPNetForSequenceClassification(config).eval()
    torch.nn.init.normal_(mpnet.mpnet.encoder.relative_attention_bias.weight)
    bert = AutoModelForSequenceClassification.from_pretrained(checkpoint("bert", TASK)).eval()

    for model, expected in ((mpnet, False), (bert, True)):
        assert packed(model, tmp_path / "model.onnx")
        assert agrees(tmp_path / "model.onnx", model) is expected


def test_an_artifact_for_tensorrt_has_padded_rows_and_operators_of_onnx_alone(exported: Make) -> None:
    artifact = ModelArtifact.open(exported("bert", TASK, "fp16", device="tensorrt"))
    assert (artifact.manifest.rows, artifact.manifest.device, artifact.manifest.optimization) == (
        "padded",
        "tensorrt",
        None,
    )
    assert artifact.manifest.parity.passed
    assert {node.domain for node in onnx.load(artifact.graph("model")).graph.node} == {""}


def test_fusions_are_refused_for_tensorrt(checkpoint: Make, tmp_path: Path) -> None:
    args = ExportArgs(str(checkpoint("bert", TASK)), TASK, tmp_path / "artifact", optimize="O2", device="tensorrt")
    with pytest.raises(ConfigurationError, match="^optimize O2 puts operators into the graph that TensorRT does not"):
        export_checkpoint(args)


def test_the_model_is_afterwards_as_it_was(checkpoint: Make, tmp_path: Path) -> None:
    for architecture in ("bert", "distilbert"):
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint(architecture, TASK)).eval()
        ids = torch.arange(5, 14)[None]
        before = model(ids).logits
        names = list(model.state_dict())
        packed(model, tmp_path / "model.onnx")
        torch.testing.assert_close(model(ids).logits, before)
        assert list(model.state_dict()) == names


def test_a_head_width_that_the_fused_kernels_do_not_take_is_not_packed(checkpoint: Make, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint("bert", TASK, num_attention_heads=8)).eval()
    assert not packed(model, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_activations_beyond_fp16_are_named_as_the_reason(checkpoint: Make, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint("bert", TASK))
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        layer.attention.output.LayerNorm.weight *= 500
        layer.intermediate.dense.weight *= 2000
    source = Path(shutil.copytree(checkpoint("bert", TASK), tmp_path / "checkpoint"))
    model.save_pretrained(source)

    with pytest.raises(CheckpointError, match=r"does not fit in fp16: its activations reach [\d.e+]+, and fp16 ends"):
        export_checkpoint(ExportArgs(str(source), TASK, tmp_path / "fp16", precision="fp16", device="cuda"))
    assert not (tmp_path / "fp16").exists()
