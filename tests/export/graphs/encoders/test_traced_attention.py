"""Encoders whose attention is traced as operators: which, that they answer as PyTorch does, and what a fault does."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

from export.build import ExportArgs, export_checkpoint
from export.graphs.convert import convert
from export.graphs.encoders.attention import fault_of_attention, finish_attention
from export.graphs.encoders.traced_attention import has_traced_attention, traced_attention
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.export.graphs.encoders.operators import operators
from tests.known_models import ENCODERS
from tests.tiny_checkpoints import randomize

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter; `sextet export` keeps them quiet
SIZES = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 96, "max_position_embeddings": 1024, "pad_token_id": 0}
MODERN = SIZES | {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
FAR = SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
V3 = FAR | {"position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0}
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "modernbert": ("modernbert", MODERN),
    "modernbert of narrow windows": ("modernbert", MODERN | {"local_attention": 8, "global_attn_every_n_layers": 2}),
    "modernbert of wide windows": ("modernbert", MODERN | {"local_attention": 96, "classifier_pooling": "mean"}),
    "modernbert without windows": ("modernbert", MODERN | {"global_attn_every_n_layers": 1}),
    "deberta": ("deberta", FAR),
    "deberta of few distances": ("deberta", FAR | {"max_relative_positions": 32}),
    "deberta with absolute positions": ("deberta", SIZES),
    "deberta-v2": ("deberta-v2", FAR),
    "deberta-v2 of one kind": ("deberta-v2", FAR | {"pos_att_type": ["p2c"], "max_relative_positions": 20}),
    "deberta-v2 with a convolution": ("deberta-v2", FAR | {"conv_kernel_size": 3, "position_buckets": 32}),
    "deberta-v3": ("deberta-v2", V3),
}


def tiny(family: str, of_tokens: bool = False) -> Any:
    architecture, config = FAMILIES[family]
    torch.manual_seed(sum(map(ord, family)))
    made = AutoModelForTokenClassification if of_tokens else AutoModelForSequenceClassification
    model = made.from_config(AutoConfig.for_model(architecture, **config)).eval()
    randomize(model)
    return model


def traced(model: Any, folder: Path, task: str = "text-classification") -> Path:
    with traced_attention(model) as found:
        (graph,) = convert(model, task, folder).values()
    finish_attention(graph, found.window, model.config.hidden_size)
    return graph


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_every_length_are_read_as_pytorch_reads_them(family: str, tmp_path: Path) -> None:
    model = tiny(family, of_tokens=True)
    assert has_traced_attention(model)
    graph = traced(model, tmp_path, "token-classification")
    session = InferenceSession(graph, SessionConfig())
    for lengths in ((333, 64, 65, 1), (129, 129), (2, 7), (40,), (1,), (66, 130, 192, 193)):
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        ids = np.random.default_rng(sum(lengths)).integers(3, 300, mask.shape) * mask
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        feeds = {name: feeds[name] for name in session.input_names}

        ours = session.run(feeds)["logits"]

        with torch.no_grad():
            theirs = model(**{name: torch.from_numpy(one) for name, one in feeds.items()}).logits.numpy()
        np.testing.assert_allclose(ours[mask == 1], theirs[mask == 1], atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_layer_keeps_scores_of_its_own_or_looks_distances_up(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    found = Counter(operators(onnx.load(traced(model, tmp_path)).graph))

    layers = model.config.num_hidden_layers
    windowed = [one for one in model.modules() if getattr(one, "local_attention", (-1,))[0] > 0]
    assert found["GatherElements"] == 0
    if "deberta" in family:
        assert found["Softmax"] == layers
    else:
        assert found["Softmax"] == 0
        assert found["MultiHeadAttention"] == 2 * layers + 3 * len(windowed)


def test_tracing_leaves_a_model_as_it_was(tmp_path: Path) -> None:
    for family in ("modernbert", "deberta", "deberta-v3"):
        model, ids = tiny(family), torch.arange(3, 90)[None]
        before = model(ids, attention_mask=torch.ones_like(ids)).logits
        traced(model, tmp_path)
        torch.testing.assert_close(model(ids, attention_mask=torch.ones_like(ids)).logits, before)


def test_a_graph_that_reads_too_far_is_found(tmp_path: Path) -> None:
    model = tiny("modernbert of narrow windows")
    with traced_attention(model):
        (graph,) = convert(model, "text-classification", tmp_path).values()
    finish_attention(graph, 32, model.config.hidden_size)

    fault = fault_of_attention(graph, model)

    assert fault is not None
    assert "differs from PyTorch" in fault


@pytest.mark.parametrize("architecture", ["modernbert", "deberta", "deberta-v2"])
def test_an_export_has_the_operators_in_every_precision(architecture: str, tmp_path: Path) -> None:
    known = next(one for one in ENCODERS if one.architecture == architecture)
    checkpoint = known.write(tmp_path / "checkpoint")
    for precision in ("fp32", "int8"):
        artifact = export_checkpoint(ExportArgs(str(checkpoint), known.task, tmp_path / precision, precision=precision))
        found = set(operators(onnx.load(artifact.graph("model")).graph))
        assert "MultiHeadAttention" in found or "deberta" in architecture
        assert "GatherElements" not in found


def test_a_model_whose_attention_cannot_be_traced_is_exported_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = next(one for one in ENCODERS if one.architecture == "deberta-v2")
    checkpoint, said = known.write(tmp_path / "checkpoint"), list[str]()
    monkeypatch.setattr("export.graphs.encoders.distances.by_distance", lambda table: table[..., 0, :].sum() / 0)

    artifact = export_checkpoint(ExportArgs(str(checkpoint), known.task, tmp_path / "artifact"), said.append)

    assert "GatherElements" in set(operators(onnx.load(artifact.graph("model")).graph))
    assert any("its attention is not fused" in line for line in said)
