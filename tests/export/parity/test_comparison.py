"""The verdict on an export: noise is no disagreement, and a broken graph is one, also where no answer is confident."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from export.build import ExportArgs, export_checkpoint
from export.parity.comparison import Comparison
from export.parity.validate import validate
from pipelines.runtime.artifact import ModelArtifact

Make = Callable[..., Path]
TASK = "text-classification"
UNDECIDED = 0.02  # the size of a fresh head's weights, relative to a trained one's


@pytest.fixture(scope="module")
def undecided(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with a head as fresh as one after a few steps of training: every label is about as likely."""
    folder = tmp_path_factory.mktemp("undecided")
    source = checkpoint("bert", TASK)
    shutil.copytree(source, folder, dirs_exist_ok=True)
    model = AutoModelForSequenceClassification.from_pretrained(source)
    with torch.no_grad():
        model.classifier.weight.mul_(UNDECIDED)
        model.classifier.bias.mul_(UNDECIDED)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def int8(undecided: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    output = tmp_path_factory.mktemp("int8") / "artifact"
    return export_checkpoint(ExportArgs(str(undecided), TASK, output, precision="int8"))


def test_a_classifier_that_is_confident_of_nothing_goes_the_whole_road_in_int8(int8: ModelArtifact) -> None:
    parity = int8.manifest.parity
    assert parity.passed
    assert parity.largest_difference > 1e-4  # it is quantized
    assert "none of them confident, equal, or at most 0.1 and half less likely" in parity.threshold
    assert "errors that vary by at most 25% of what the logits do (here " in parity.threshold


def swapped(graph: Any) -> None:
    """The labels in another order."""
    (output,) = (one.name for one in graph.output)
    for node in graph.node:
        node.output[:] = ["in_order" if name == output else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 0]), "order"))
    graph.node.append(helper.make_node("Gather", ["in_order", "order"], [output], axis=-1))


def changed(graph: Any, wanted: Callable[[str], bool], change: Callable[[np.ndarray], np.ndarray]) -> None:
    found = [one for one in graph.initializer if wanted(one.name)]
    assert found
    for one in found:
        values = numpy_helper.to_array(one)
        one.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), one.name))


def without_positions(graph: Any) -> None:
    changed(
        graph, lambda name: "position_embeddings" in name and "scale" not in name, lambda table: table[:1] + 0 * table
    )


def matrices_of(graph: Any) -> list[str]:
    """The names of the scales of quantized matrices, in the order of the graph."""
    return [one.name for one in graph.initializer if "scale" in one.name and "embeddings" not in one.name]


def without_a_layer(graph: Any) -> None:
    """Nothing of the second half of the matrices."""
    names = matrices_of(graph)
    changed(graph, lambda name: name in names[len(names) // 2 : -2], lambda scale: scale * 0)


def wrongly_scaled(graph: Any) -> None:
    names = matrices_of(graph)
    changed(graph, lambda name: name in names[: len(names) // 2], lambda scale: scale * 3)


@pytest.mark.parametrize("break_graph", [swapped, without_positions, without_a_layer, wrongly_scaled])
def test_a_broken_graph_under_an_undecided_head_is_found(
    break_graph: Callable[[Any], None], int8: ModelArtifact, undecided: Path, tmp_path: Path
) -> None:
    shutil.copytree(int8.path, tmp_path / "broken")
    model = onnx.load(tmp_path / "broken" / "model.onnx")
    break_graph(model.graph)
    onnx.save(model, tmp_path / "broken" / "model.onnx")
    torch_model = AutoModelForSequenceClassification.from_pretrained(undecided).eval()

    parity = validate(ModelArtifact(tmp_path / "broken", int8.manifest), torch_model)

    assert not parity.passed
    assert validate(int8, torch_model).passed


def answers(reference: np.ndarray, exported: np.ndarray) -> Comparison:
    """A comparison of logits (answers, labels)."""
    from export.parity.validate import decide_choice

    compared = Comparison()
    compared.differ(reference, exported, compete=True)
    for row, (expected, got) in enumerate(zip(reference, exported, strict=True)):
        decide_choice(compared, f"input {row}", expected, got, None)
    return compared


def test_a_flip_between_two_labels_that_are_almost_as_likely_is_no_disagreement() -> None:
    draw = np.random.default_rng(0)
    reference = draw.normal(0, 0.1, (64, 2)).astype(np.float32)
    noisy = reference + draw.normal(0, 0.01, reference.shape).astype(np.float32)
    assert (reference.argmax(-1) != noisy.argmax(-1)).any()

    parity = answers(reference, noisy).verdict("int8", 64, exact=False)

    assert parity.passed
    assert parity.agreement == 1.0
    assert parity.disagreements  # it names them


def test_a_confident_answer_that_flips_is_a_disagreement_whatever_the_noise() -> None:
    reference = np.tile(np.array([[0.0, 1.0], [1.0, 0.0]], np.float32), (16, 1))
    exported = reference.copy()
    exported[0] = (0.6, 0.5)

    assert not answers(reference, exported).verdict("int8", 32, exact=False).passed


def test_a_constant_on_all_logits_is_no_error() -> None:
    reference = np.random.default_rng(0).normal(0, 0.1, (64, 3)).astype(np.float32)

    assert answers(reference, reference + 0.3).verdict("int8", 64, exact=False).passed
    assert not answers(reference, reference[:, ::-1]).verdict("int8", 64, exact=False).passed


def test_fp32_stays_exact() -> None:
    reference = np.random.default_rng(0).normal(0, 0.1, (64, 3)).astype(np.float32)

    assert answers(reference, reference).verdict("fp32", 64, exact=True).passed
    assert not answers(reference, reference + 0.001).verdict("fp32", 64, exact=True).passed


def test_spans_of_an_undecided_reader_are_judged_by_their_probability(checkpoint: Make, tmp_path: Path) -> None:
    source = shutil.copytree(checkpoint("bert", "question-answering"), tmp_path / "checkpoint")
    model = AutoModelForQuestionAnswering.from_pretrained(source)
    with torch.no_grad():
        model.qa_outputs.weight.mul_(0.05)
    model.save_pretrained(source)

    artifact = export_checkpoint(ExportArgs(str(source), "question-answering", tmp_path / "out", precision="int8"))

    assert artifact.manifest.parity.passed
    broken = replace(artifact.manifest, precision="fp32")
    assert not validate(ModelArtifact(artifact.path, broken), model.eval()).passed
