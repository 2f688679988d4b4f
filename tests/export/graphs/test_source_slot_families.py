"""Encoder-decoders get KV cache slots by rule: tiny random models of each family against transformers' generate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from export.graphs.seq2seq_slot_graph import convert_seq2seq_to_slots
from export.graphs.slot_attention import ObstacleError
from export.parity.generation import SourceSlots, fault_of_slots, torch_answer
from export.quantization.quantize import to_int8
from pipelines.generation.slots.seq2seq import Seq2SeqSessions
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.tiny_checkpoints import randomize

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter; `sextet export` keeps them quiet
STEPS = 64
BOTH = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
BOTH |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 128}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "relative_attention_max_distance": 40}
GATED = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bart": ("bart", BOTH),
    "blenderbot": ("blenderbot", BOTH),
    "blenderbot-small": ("blenderbot-small", BOTH),
    "flan-t5": ("t5", GATED),
    "led": ("led", {name: size for name, size in BOTH.items() if name != "max_position_embeddings"}
    | {"attention_window": 8, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 128}),
    "m2m_100": ("m2m_100", BOTH),
    "marian": ("marian", BOTH),
    "mbart": ("mbart", BOTH | {"scale_embedding": True}),
    "mt5": ("mt5", GATED),
    "mvp": ("mvp", BOTH),
    "pegasus": ("pegasus", BOTH),
    "plbart": ("plbart", BOTH),
    "t5": ("t5", T5),
    "umt5": ("umt5", GATED),
}  # fmt: skip


def tiny(architecture: str, **settings: Any) -> Any:
    """A random model whose logits depend on all that it reads."""
    special = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = AutoConfig.for_model(architecture, **(special | settings))
    torch.manual_seed(sum(map(ord, architecture)))
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    randomize(model)
    for name in ("eos_token_id", "forced_eos_token_id", "forced_bos_token_id"):  # so that answers are long
        setattr(model.generation_config, name, None)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_decodes_in_slots_what_transformers_generates(family: str, tmp_path: Path) -> None:
    architecture, settings = FAMILIES[family]
    model = tiny(architecture, **settings)
    graphs = {role: tmp_path / f"{role}.onnx" for role in ("encoder", "decoder")}

    convert_seq2seq_to_slots(model, **graphs)

    draw = np.random.default_rng(len(family))
    sources = [draw.integers(5, 300, length).tolist() for length in (51, 3)]
    answers = [torch_answer(model, source, steps) for source, steps in zip(sources, (STEPS, 20), strict=True)]
    exported = [(slots(graphs).logits(sources, [one.tokens for one in answers]), 1e-3)]
    assert fault_of_slots(model, graphs) is None
    for ours, most in exported:
        for got, expected in zip(ours, answers, strict=True):
            scale = max(1.0, float(expected.logits.std()))
            np.testing.assert_allclose(got / scale, expected.logits / scale, atol=most)

    to_int8(graphs)
    (quantized, _) = slots(graphs).logits(sources, [one.tokens[:8] for one in answers])
    assert np.corrcoef(quantized.ravel(), answers[0].logits[:8].ravel())[0, 1] > 0.98


def slots(graphs: Mapping[str, Path]) -> SourceSlots:
    sessions = {role: InferenceSession(graph, SessionConfig()) for role, graph in graphs.items()}
    return SourceSlots(Seq2SeqSessions(**sessions), 2)


@pytest.mark.parametrize(
    ("architecture", "settings", "reason"),
    [
        ("bart", BOTH | {"decoder_attention_heads": 8}, "heads of width 4 are not a multiple of 8"),
        ("longt5", GATED, "0 of its 2 layers attend in a way that is known"),
        ("bigbird_pegasus", BOTH, "the attention of BigBirdPegasusEncoderAttention is not known"),
        ("pegasus_x", BOTH, "the attention of PegasusXGlobalLocalAttention is not known"),
        ("switch_transformers", GATED | {"num_experts": 4}, "its experts are chosen by what it reads"),
        ("prophetnet", {"hidden_size": 32, "num_encoder_layers": 2, "num_decoder_layers": 2}
        | {"num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4}, "the attention of ProphetNet"),
        ("fsmt", BOTH | {"langs": ["en", "de"], "src_vocab_size": 300, "tgt_vocab_size": 300},
         "the attention of Attention is not known"),
    ],
)  # fmt: skip
def test_an_encoder_decoder_that_attends_otherwise_is_an_obstacle_in_one_line(
    architecture: str, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    config = AutoConfig.for_model(architecture, **settings)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()

    with pytest.raises(ObstacleError, match=reason) as error:
        convert_seq2seq_to_slots(model, tmp_path / "encoder.onnx", tmp_path / "decoder.onnx")

    assert "\n" not in str(error.value)
