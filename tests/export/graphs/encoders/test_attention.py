"""Attention in one operator: which encoders get it, and that neither padding nor its absence changes an answer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from export.graphs.encoders.attention import fuse_attention
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.export.graphs.encoders.operators import operators

Make = Callable[..., Path]
TASK = "text-classification"
RULED_OUT = {"deberta-v2"}  # its attention is disentangled: products of positions and contents


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    "architecture", ["bert", "distilbert", "albert", "roberta", "electra", "xlm-roberta", "deberta-v2"]
)
def test_every_layer_of_an_encoder_has_one_attention_with_and_one_without_a_mask(
    architecture: str, precision: str, exported: Make
) -> None:
    artifact = ModelArtifact.open(exported(architecture, TASK, precision))
    found = list(operators(onnx.load(artifact.graph("model")).graph))

    layers = artifact.config()["n_layers" if architecture == "distilbert" else "num_hidden_layers"]
    assert found.count("MultiHeadAttention") == (0 if architecture in RULED_OUT else 2 * layers)
    assert found.count("Softmax") == (layers if architecture in RULED_OUT else 0)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "albert", "xlm-roberta"])
@pytest.mark.parametrize("lengths", [(6, 6), (6, 2), (1, 9, 4), (40,)])
def test_rows_with_and_without_padding_are_read_as_pytorch_reads_them(
    architecture: str, lengths: tuple[int, ...], exported: Make, checkpoint: Make
) -> None:
    artifact = ModelArtifact.open(exported(architecture, TASK))
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint(architecture, TASK)).eval()
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(0).integers(5, 60, mask.shape) * mask + artifact.manifest.tokenizer.pad_token_id * (
        1 - mask
    )
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    session = InferenceSession(artifact.graph("model"), SessionConfig())
    ours = session.run({name: feeds[name] for name in session.input_names})["logits"]

    with torch.no_grad():
        theirs = model(**{name: torch.from_numpy(feeds[name]) for name in session.input_names}).logits
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


def test_a_graph_whose_answers_would_change_stays_as_it_was(checkpoint: Make, tmp_path: Path) -> None:
    from optimum.exporters.onnx import main_export

    main_export(str(checkpoint("bert", TASK)), tmp_path, task=TASK, do_validation=False, no_post_process=True)
    graph = tmp_path / "model.onnx"
    before = graph.read_bytes()

    assert fuse_attention(graph, heads=1) == 0  # one head of all the width is scaled otherwise
    assert graph.read_bytes() == before
    assert fuse_attention(graph, heads=AutoConfig.from_pretrained(checkpoint("bert", TASK)).num_attention_heads) > 0
    assert sorted(one.name for one in tmp_path.glob("*.onnx*")) == ["model.onnx"]
