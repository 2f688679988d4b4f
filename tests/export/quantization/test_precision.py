"""Precisions and optimization levels: what they do to a graph, and which do not go together."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from export.build import ExportArgs, export_checkpoint
from export.quantization.outliers import digest, outlier_matrices
from export.quantization.quantize import quantize_rows, to_fp16, to_int4, to_int8
from pipelines.errors import CheckpointError, ConfigurationError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig

Make = Callable[..., Path]


def nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph and of the branches in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes(attribute.g)


def stored_bytes(path: Path) -> dict[int, int]:
    """Bytes of weights in a file by ONNX data type; tables of sines and cosines are none."""
    sizes: dict[int, int] = {}
    for tensor in onnx.load(path).graph.initializer:
        if len(tensor.dims) == 2 and not tensor.name.endswith(("cos_cache", "sin_cache")):
            sizes[tensor.data_type] = sizes.get(tensor.data_type, 0) + numpy_helper.to_array(tensor).nbytes
    return sizes


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("bert", "token-classification"),
        ("distilbert", "question-answering"),
        ("deberta-v2", "text-classification"),
        ("gpt2", "text-generation"),
        ("llama", "text-generation"),
        ("t5", "translation"),
        ("marian", "translation"),
    ],
)
def test_int8_keeps_the_confident_answers(architecture: str, task: str, exported: Make) -> None:
    artifact = ModelArtifact.open(exported(architecture, task, "int8"))

    parity = artifact.manifest.parity
    assert parity.passed
    assert parity.agreement >= 0.98
    assert parity.largest_difference > 1e-3  # it is quantized
    for graph in artifact.manifest.graphs.values():
        weights = stored_bytes(artifact.path / graph)
        # The rest are scales, and what no product reads: DeBERTa normalizes its table of relative positions.
        assert weights[onnx.TensorProto.INT8] > 0.8 * sum(weights.values())
        assert not any(node.op_type == "Gemm" for node in nodes(onnx.load(artifact.path / graph).graph))


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neo", "llama", "qwen2"])
def test_int4_reports_how_far_it_is_from_pytorch(architecture: str, exported: Make) -> None:
    artifact = ModelArtifact.open(exported(architecture, "text-generation", "int4"))

    manifest = artifact.manifest
    assert manifest.quantization == {"block_size": 32, "accuracy_level": 4}
    assert manifest.parity.passed
    assert manifest.parity.perplexities is not None
    assert manifest.parity.threshold.endswith("and perplexity at most 50% above PyTorch's")
    card = (artifact.path / "README.md").read_text(encoding="utf-8")
    assert "| Blocks | 32 weights share a scale; accuracy level 4 |" in card
    assert "| Perplexity | " in card
    graph = onnx.load(artifact.graph("model")).graph
    weights = {one.name for one in graph.initializer}
    products = [node.op_type for node in nodes(graph) if node.input and weights.intersection(node.input[:2])]
    assert "MatMulNBits" in products
    assert not {"MatMul", "Gemm"}.intersection(products)


def test_int4_without_slots_is_refused_with_the_reason(checkpoint: Make, tmp_path: Path) -> None:
    for architecture, task, reason in (
        ("marian", "translation", "marian has none for translation"),
        ("bert", "text-classification", "bert has none for text-classification"),
    ):
        args = ExportArgs(str(checkpoint(architecture, task)), task, tmp_path / "artifact", precision="int4")
        with pytest.raises(ConfigurationError, match=f"precision int4 .*{reason}; use --precision int8"):
            export_checkpoint(args)
        with pytest.raises(ConfigurationError, match=f"precision int4 .*{reason}; use --precision fp16"):
            export_checkpoint(replace(args, device="cuda"))


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neo", "llama", "qwen2"])
@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_slots_for_cuda_are_halves_that_no_product_quantizes(architecture: str, precision: str, exported: Make) -> None:
    """CUDA's attention over slots and its products of int4 weights read fp16 alone."""
    artifact = ModelArtifact.open(exported(architecture, "text-generation", precision, device="cuda"))

    manifest = artifact.manifest
    assert manifest.cache == "slots"
    assert manifest.quantization == ({"block_size": 32, "accuracy_level": 0} if precision == "int4" else {})
    model = onnx.shape_inference.infer_shapes(onnx.load(artifact.graph("model")))
    half, whole = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    ports = {one.name: one.type.tensor_type.elem_type for one in (*model.graph.input, *model.graph.output)}
    assert ports["logits"] == whole
    assert {kind for name, kind in ports.items() if name.startswith(("past", "present"))} == {half}
    assert stored_bytes(artifact.path / "model.onnx").get(whole, 0) == 0
    operators = {node.op_type for node in nodes(model.graph)}
    assert ("MatMulNBits" in operators) == (precision == "int4")
    assert not operators & {"If", "Loop", "DynamicQuantizeLinear", "MatMulInteger"}


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this one has CUDA")
def test_the_card_says_that_graphs_for_cuda_were_compared_on_the_cpu(exported: Make) -> None:
    artifact = ModelArtifact.open(exported("llama", "text-generation", "fp16", device="cuda"))

    assert artifact.manifest.device == "cuda"
    assert artifact.manifest.parity.compared_on == "CPU"
    assert "| Compared on | CPU |" in (artifact.path / "README.md").read_text(encoding="utf-8")


def test_fp32_for_cuda_has_no_slots(exported: Make) -> None:
    """CUDA's attention over slots has no kernel for it: ONNX Runtime would run it on the CPU, and copy."""
    assert ModelArtifact.open(exported("llama", "text-generation", device="cuda")).manifest.cache == "plain"


def test_blocks_of_four_bits_are_what_the_operator_reads(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(80, 48)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"], "product")],
        "one",
        [helper.make_tensor_value_info("x", 1, ["rows", 80])],
        [helper.make_tensor_value_info("y", 1, ["rows", 48])],
        [numpy_helper.from_array(weight, "weight")],
    )
    path = tmp_path / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)

    to_int4({"model": path})

    y = InferenceSession(path, SessionConfig()).run({"x": np.eye(80, dtype=np.float32)})["y"]  # the weights themselves
    blocks = np.pad(np.abs(weight), ((0, 16), (0, 0))).reshape(3, 32, 48).max(1).repeat(32, 0)[:80]
    assert (np.abs(y - weight) <= blocks / 8 * 1.01).all()  # the positive end has a whole step, the others half of one


@pytest.mark.parametrize(
    ("architecture", "task", "optimization"),
    [
        ("bert", "text-classification", "O4"),
        ("gpt2", "text-generation", None),  # ORTOptimizer does not know slots; fp16 they become all the same
        ("qwen2", "text-generation", None),
        ("t5", "translation", None),  # whose position buckets are wrong when they are counted in fp16
        ("m2m_100", "translation", None),
    ],
)
def test_fp16_for_cuda_is_validated_as_far_as_a_cpu_runs_it(
    architecture: str, task: str, optimization: str | None, exported: Make
) -> None:
    artifact = ModelArtifact.open(exported(architecture, task, "fp16", device="cuda"))

    assert artifact.manifest.device == "cuda"
    assert artifact.manifest.optimization == optimization
    assert artifact.manifest.parity.largest_difference < 0.2
    for graph in artifact.manifest.graphs.values():
        weights = stored_bytes(artifact.path / graph)
        assert weights[onnx.TensorProto.FLOAT16] > 0.9 * sum(weights.values())


def test_angles_of_late_positions_are_not_counted_in_fp16(tmp_path: Path) -> None:
    frequencies = (10000.0 ** -np.linspace(0, 1, 8)).astype(np.float32)
    steps = [("Cast", ["position"], "float", {"to": 1}), ("Mul", ["float", "frequency"], "angle", {})]
    steps += [("Cos", ["angle"], "cosine", {}), ("Mul", ["cosine", "x"], "y", {})]
    graph = helper.make_graph(
        [helper.make_node(operator, read, [made], made, **options) for operator, read, made, options in steps],
        "rotation",
        [helper.make_tensor_value_info("position", 7, ["n", 1]), helper.make_tensor_value_info("x", 1, [8])],
        [helper.make_tensor_value_info("y", 1, ["n", 8])],
        [numpy_helper.from_array(frequencies, "frequency")],
    )
    path = tmp_path / "rotation.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)

    to_fp16({"model": path})

    position = np.asarray([[1], [777], [2049], [4095]])
    y = InferenceSession(path, SessionConfig()).run({"position": position, "x": np.ones(8, np.float32)})["y"]
    np.testing.assert_allclose(y, np.cos(position * frequencies), atol=2e-3)
    assert {node.op_type for node in onnx.load(path).graph.node} >= {"Cos", "Cast"}


@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_each_level_rewrites_the_graph(level: str, exported: Make) -> None:
    artifact = ModelArtifact.open(exported("bert", "text-classification", optimize=level))

    operators = {node.op_type for node in nodes(onnx.load(artifact.graph("model")).graph)}
    assert artifact.manifest.optimization == level
    assert ("SkipLayerNormalization" in operators) == (level != "O1")
    assert ("FastGelu" in operators) == (level == "O3")


@pytest.mark.parametrize(("architecture", "task"), [("gpt2", "text-generation"), ("marian", "translation")])
def test_generators_can_be_optimized_too(architecture: str, task: str, exported: Make) -> None:
    artifact = ModelArtifact.open(exported(architecture, task, optimize="O2"))
    assert artifact.manifest.parity.largest_difference <= 1e-4


def test_an_optimized_graph_can_be_quantized(exported: Make) -> None:
    artifact = ModelArtifact.open(exported("bert", "text-classification", "int8", optimize="O2"))
    operators = {node.op_type for node in nodes(onnx.load(artifact.graph("model")).graph)}
    assert {"SkipLayerNormalization", "MatMulInteger"} <= operators


def test_the_default_level_depends_on_precision_and_kind(exported: Make) -> None:
    def level(*made: str) -> str | None:
        return ModelArtifact.open(exported(*made)).manifest.optimization

    assert level("bert", "text-classification") == "O2"
    assert level("bert", "token-classification", "int8") is None
    assert level("gpt2", "text-generation") is None


@pytest.mark.parametrize(("architecture", "task"), [("llama", "text-generation"), ("marian", "translation")])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_tied_weights_are_stored_once(architecture: str, task: str, precision: str, exported: Make) -> None:
    artifact = ModelArtifact.open(exported(architecture, task, precision))
    rows = artifact.config()["vocab_size"]

    graph = onnx.load(artifact.path / list(artifact.manifest.graphs.values())[-1]).graph
    tables = [tensor for tensor in graph.initializer if len(tensor.dims) == 2 and rows in tensor.dims]
    assert len([tensor.name for tensor in tables if 1 not in tensor.dims]) == 1  # biases and scales are one wide


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"precision": "int8", "device": "cuda"}, r"int8 is for the CPU: CUDA has no kernels .* use --precision fp16"),
        ({"precision": "fp16"}, r"fp16 is for CUDA: a CPU converts .* use --precision int8 or fp32"),
        ({"precision": "int2"}, r"precision is 'int2'; allowed: fp32, fp16, int8, int4"),
        ({"precision": "int4", "optimize": "O2"}, r"int4 is for graphs that decode in slots, and optimize O2 does not"),
        ({"device": "tpu"}, r"device is 'tpu'; allowed: cpu, cuda"),
        ({"optimize": "O5"}, r"optimize is 'O5'; allowed: O1, O2, O3, O4"),
        ({"optimize": "O4"}, r"optimize O4 and precision fp16 belong together \(got O4 with fp32\)"),
        (
            {"optimize": "O2", "precision": "fp16", "device": "cuda"},
            r"optimize O4 and precision fp16 belong together \(got O2 with fp16\)",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(
    options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        export_checkpoint(ExportArgs("nothing", "text-classification", tmp_path / "artifact", **options))


def test_a_level_for_an_architecture_that_has_no_fusions_is_refused(checkpoint: Make, tmp_path: Path) -> None:
    args = ExportArgs(
        str(checkpoint("qwen2", "text-generation")), "text-generation", tmp_path / "artifact", optimize="O2"
    )
    with pytest.raises(CheckpointError, match=r"optimize O2 is not known for the architecture 'qwen2'; it is for: .*"):
        export_checkpoint(args)


def test_quantized_rows_are_within_half_a_step() -> None:
    values = np.random.default_rng(0).normal(size=(50, 30)).astype(np.float32) * np.logspace(-3, 3, 50)[:, None]
    values[7] = 0
    values = values.astype(np.float32)
    scale, quantized = quantize_rows(values, 127)

    assert quantized.dtype == np.int8
    assert np.abs(quantized).max() == 127
    assert (np.abs(quantized * scale - values) <= scale / 2 * 1.0001).all()


def gemm(path: Path, weight: np.ndarray, **attributes: Any) -> Path:
    """A graph of one Gemm with a bias."""
    rows, width = ("rows", weight.shape[1 if attributes.get("transB") else 0])
    columns = weight.shape[0 if attributes.get("transB") else 1]
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], "gemm", **attributes)],
        "one",
        [helper.make_tensor_value_info("x", 1, [rows, width])],
        [helper.make_tensor_value_info("y", 1, [rows, columns])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.arange(columns, dtype=np.float32), "bias"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_is_quantized_by_its_output_channels(transposed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(16, 8)) * np.logspace(0, 3, 8)).astype(np.float32)
    x = rng.uniform(-1, 1, size=(4, 16)).astype(np.float32)
    path = gemm(tmp_path / "gemm.onnx", weight.T.copy() if transposed else weight, transB=transposed)

    to_int8({"model": path})

    y = InferenceSession(path, SessionConfig()).run({"x": x})["y"]
    expected = x @ weight + np.arange(8)
    assert (np.abs(y - expected) / np.abs(weight).max(0)).max() < 0.1  # of each channel's own scale
    assert any(node.op_type == "MatMulInteger" for node in onnx.load(path).graph.node)


def test_a_matrix_that_is_kept_stays_as_it_is(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    path = gemm(tmp_path / "gemm.onnx", weight)

    to_int8({"model": path}, keep={digest(weight.T)})

    assert [node.op_type for node in onnx.load(path).graph.node] == ["Gemm"]


def test_a_matrix_whose_input_has_a_token_far_above_the_others_is_an_outlier(checkpoint: Make) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint("llama", "text-generation")).eval()
    inputs = [[1, 30, 40, 50, 60, 70], [1, 90, 80, 30, 60]]
    assert outlier_matrices(model, inputs) == frozenset()

    loud = model.model.layers[1].mlp
    with torch.no_grad():  # the first token excites one unit of the feed-forward network
        hidden: list[Any] = []
        hook = loud.register_forward_hook(lambda _module, given, _output: hidden.append(given[0][0]))
        model(torch.tensor(inputs[:1]))
        hook.remove()
        direction = hidden[0][0] - hidden[0][1:].mean(0)
        loud.up_proj.weight[0] = loud.gate_proj.weight[0] = direction * 20
    assert outlier_matrices(model, inputs) == {digest(loud.down_proj.weight.detach().numpy())}
