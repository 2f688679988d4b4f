"""Graphs: weights that do not fit into one file, as a protobuf holds no more than 2 GiB; nodes inside of branches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.build import ExportArgs, export_checkpoint
from export.graphs.graph import name_weights_directly, sort

Make = Callable[..., Path]


@pytest.mark.parametrize(
    ("architecture", "task", "options"),
    [
        ("llama", "text-generation", {}),
        ("qwen2", "text-generation", {"precision": "int8"}),
        ("bert", "text-classification", {"precision": "fp16", "device": "cuda"}),
        ("roberta", "text-classification", {}),
        ("t5", "translation", {}),
    ],
)
def test_large_weights_lie_in_a_file_beside_the_graph(
    architecture: str,
    task: str,
    options: dict[str, Any],
    checkpoint: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("export.graphs.graph.LARGEST_FILE_BYTES", 1000)
    source = str(checkpoint(architecture, task))

    artifact = export_checkpoint(ExportArgs(source, task, tmp_path / "artifact", **options))

    assert artifact.manifest.parity.passed
    graphs = set(artifact.manifest.graphs.values())
    beside = {f"{graph}.data" for graph in graphs}
    assert beside & set(artifact.manifest.files), "and its digest is in the manifest"
    assert all(
        (artifact.path / graph).stat().st_size < 300_000
        for graph in graphs
        if f"{graph}.data" in artifact.manifest.files
    )


def branching() -> Any:
    """If(cond) then weight + made else weight, where `made` stands behind the branch that reads it."""
    made = helper.make_node("Add", ["x", "weight"], ["made"])
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("then", "else")]
    branches = {
        "then_branch": helper.make_graph([helper.make_node("Add", ["same", "made"], ["then"])], "t", [], results[:1]),
        "else_branch": helper.make_graph([helper.make_node("Identity", ["same"], ["else"])], "e", [], results[1:]),
    }
    nodes = [
        helper.make_node("Identity", ["weight"], ["same"]),
        helper.make_node("If", ["cond"], ["y"], **branches),
        made,
    ]
    weight = numpy_helper.from_array(np.full((2, 2), 3, np.float32), "weight")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
    inputs = [helper.make_tensor_value_info("cond", TensorProto.BOOL, []), ports[0]]
    graph = helper.make_graph(nodes, "g", inputs, ports[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_what_only_branches_read_keeps_its_place_and_its_name() -> None:
    model = branching()

    sort(model)
    name_weights_directly(model)

    assert [node.op_type for node in model.graph.node] == ["Add", "If"]
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for cond, expected in ((True, 7), (False, 3)):
        (found,) = session.run(None, {"cond": np.array(cond), "x": np.ones((2, 2), np.float32)})
        np.testing.assert_array_equal(found, np.full((2, 2), expected, np.float32))


def test_nodes_that_read_each_other_have_no_order() -> None:
    model = branching()
    model.graph.node[2].input[0] = "y"

    with pytest.raises(ValueError, match="read each other"):
        sort(model)
