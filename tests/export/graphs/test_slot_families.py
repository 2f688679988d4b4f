"""Decoder-only families get KV cache slots by rule: tiny random models of each, held against transformers' generate."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import pipelines
from export.build import ExportArgs, export_checkpoint
from export.graphs.convert import convert
from export.graphs.slot_attention import ObstacleError, describe
from export.graphs.slot_graph import convert_to_slots
from export.parity.generation import PromptSlots, fault_of_slots, torch_answer
from export.quantization.quantize import to_int4, to_int8
from pipelines.errors import SextetError
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.tiny_checkpoints import randomize, tokenizer_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter; `sextet export` keeps them quiet
STEPS = 256
WIDE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
WIDE |= {"max_position_embeddings": 512}
GROUPED = WIDE | {"num_key_value_heads": 2}
WINDOWED = GROUPED | {"sliding_window": 16}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
GEMMA = WINDOWED | {"head_dim": 32, "query_pre_attn_scalar": 16}
# Phi-3's and Phi-4's: as trained up to a first length, and rotated in another way beyond it.
LONGROPE = {"original_max_position_embeddings": 384, "max_position_embeddings": 3072} | {
    "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.4, 2.0, 2.1, 3.0, 3.5]}
    | {"long_factor": [1.0, 1.5, 2.5, 4.0, 5.0, 7.0, 7.5, 8.0]}
}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "arcee": GROUPED,
    "cohere": GROUPED,
    "cohere2": WINDOWED | {"layer_types": ["sliding_attention", "full_attention"]},
    "ernie4_5": GROUPED,
    "exaone4": WINDOWED | {"layer_types": ["sliding_attention", "full_attention"]},
    "falcon": WIDE | {"alibi": False, "multi_query": True},
    "gemma": GROUPED | {"head_dim": 32},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA | {"sliding_window_pattern": 2},
    "glm4": GROUPED | {"head_dim": 32},
    "gpt2": GPT,
    "gpt_bigcode": GPT | {"n_inner": 96},
    "gpt_neo": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    | {"window_size": 8, "max_position_embeddings": 512},
    "gpt_neox": WIDE,
    "granite": GROUPED | {"attention_multiplier": 0.2, "logits_scaling": 3.0, "residual_multiplier": 0.5},
    "helium": GROUPED | {"head_dim": 16},
    "hunyuan_v1_dense": GROUPED | {"head_dim": 16},
    "llama": GROUPED | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    | {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
    "mistral": WINDOWED,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": WINDOWED,
    "opt": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 96}
    | {"max_position_embeddings": 512, "word_embed_proj_dim": 64},
    "phi": WIDE,
    "phi3": GROUPED,
    "phi3 128k": GROUPED | LONGROPE,
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 16},
    "qwen3 of 24": GROUPED | {"head_dim": 24},
    "phi of 40": WIDE | {"hidden_size": 160, "partial_rotary_factor": 0.4, "qk_layernorm": True},
    "seed_oss": GROUPED | {"head_dim": 16},
    "smollm3": GROUPED | {"no_rope_layers": [1, 0]},
    "stablelm": GROUPED | {"hidden_size": 128, "partial_rotary_factor": 0.5},
    "starcoder2": WINDOWED,
}  # fmt: skip
ROTATED_BY_THE_MODEL = ("gpt_neox", "phi", "hunyuan_v1_dense", "qwen3 of 24", "phi of 40")
"""Heads that the operator does not rotate: of another order, or of a width that is no multiple of 16."""


def tiny(architecture: str, **changes: Any) -> Any:
    """A random model whose logits depend on all that it reads."""
    special = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    settings = special | dict(FAMILIES[architecture]) | changes
    torch.manual_seed(sum(map(ord, architecture)))
    # transformers' other implementations leave Gemma 2's softcap out.
    options = {"attn_implementation": "eager"} if architecture == "gemma2" else {}
    config = AutoConfig.for_model(architecture.split()[0], **settings)
    model = AutoModelForCausalLM.from_config(config, **options).eval()
    randomize(model)
    return model


def obstacle(model: Any, folder: Path) -> str:
    """Why a model has no slot graph."""
    with pytest.raises(ObstacleError) as error:
        convert_to_slots(model, folder / "model.onnx")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_family_decodes_in_slots_what_transformers_generates(architecture: str, tmp_path: Path) -> None:
    model, graph = tiny(architecture), tmp_path / "model.onnx"
    attention = describe(model)
    assert attention.kv_heads <= attention.heads
    has_rotary = architecture not in ("gpt2", "gpt_bigcode", "gpt_neo", "opt", *ROTATED_BY_THE_MODEL)
    assert (attention.rotations is not None) == has_rotary

    convert_to_slots(model, graph)

    draw = np.random.default_rng(len(architecture))
    prompts = [draw.integers(5, 300, length).tolist() for length in (37, 3)]
    answers = [torch_answer(model, prompt, steps) for prompt, steps in zip(prompts, (STEPS, 20), strict=True)]
    ours = PromptSlots(InferenceSession(graph, SessionConfig())).logits(prompts, [one.tokens for one in answers])
    for got, expected in zip(ours, answers, strict=True):
        scale = max(1.0, float(expected.logits.std()))
        np.testing.assert_allclose(got / scale, expected.logits / scale, atol=1e-3)
        leads = np.sort(expected.logits, axis=-1)[:, -2:]
        undecided = leads[:, 1] - leads[:, 0] < 1e-3 * scale
        assert ((got.argmax(-1) == expected.tokens) | undecided).all()
    assert fault_of_slots(model, {"model": graph}) is None

    for quantize, alike in ((to_int8, 0.98), (to_int4, 0.7)):
        convert_to_slots(model, graph)
        quantize({"model": graph})
        session = InferenceSession(graph, SessionConfig())
        (quantized, _) = PromptSlots(session).logits(prompts, [one.tokens[:8] for one in answers])
        assert np.corrcoef(quantized.ravel(), answers[0].logits[:8].ravel())[0, 1] > alike


@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        ("llama", {"hidden_size": 48, "num_attention_heads": 4}, "heads of width 12 are not a multiple of 8"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type dynamic depends on the length"),
        ("falcon", {"alibi": True}, "its attention adds a bias by distance"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scaled in a way of its own"),
    ],
)
def test_what_the_operator_cannot_do_is_an_obstacle(
    architecture: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert reason in obstacle(tiny(architecture, **changes), tmp_path)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
        ("mixtral", GROUPED | {"num_local_experts": 4}),
        ("gptj", GPT | {"rotary_dim": 8}),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2}),
    ],
)
def test_an_architecture_that_attends_otherwise_is_an_obstacle_in_one_line(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, vocab_size=300, **settings)).eval()

    assert obstacle(model, tmp_path)


def test_tracing_leaves_transformers_and_torch_as_they_were(tmp_path: Path) -> None:
    repeat = torch.repeat_interleave, torch.Tensor.repeat_interleave
    for architecture in ("gemma", "falcon", "gpt_neo"):
        model = tiny(architecture)
        before = model(torch.arange(5, 25)[None]).logits
        convert_to_slots(model, tmp_path / "model.onnx")
        torch.testing.assert_close(model(torch.arange(5, 25)[None]).logits, before)
    assert (torch.repeat_interleave, torch.Tensor.repeat_interleave) == repeat


def test_a_model_whose_own_code_fails_leaves_transformers_as_it_was(tmp_path: Path) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    functions = set(ALL_ATTENTION_FUNCTIONS)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("bamba", vocab_size=300, **GROUPED)).eval()
    implementation = model.config._attn_implementation
    assert obstacle(model, tmp_path)
    assert set(ALL_ATTENTION_FUNCTIONS) == functions
    assert model.config._attn_implementation == implementation


def test_what_torch_cannot_export_fails_without_a_word_on_stdout(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("apertus", vocab_size=300, **GROUPED)).eval()

    with pytest.raises(Exception, match="expm1"):
        convert(model, "text-generation", tmp_path, "slots")

    assert capfd.readouterr().out == ""


def test_a_graph_that_keeps_what_only_the_example_does_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, graph = tiny("llama"), tmp_path / "model.onnx"
    with monkeypatch.context() as patch:
        rotations = describe(model).rotations
        assert rotations is not None
        patch.setattr(type(rotations), "tables", lambda self, rotation, positions: (torch.ones(positions, 8),) * 2)
        convert_to_slots(model, graph)

    fault = fault_of_slots(model, {"model": graph})

    assert fault is not None
    assert "differs from PyTorch" in fault


def test_a_model_of_few_positions_has_slots(tmp_path: Path) -> None:
    for architecture in ("llama", "gpt2"):
        name = "n_positions" if architecture == "gpt2" else "max_position_embeddings"
        model, graph = tiny(architecture, **{name: 20}), tmp_path / "model.onnx"
        convert_to_slots(model, graph)
        assert fault_of_slots(model, {"model": graph}) is None

    tokenizer = tokenizer_of("llama")
    tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=20).save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    args = ExportArgs(str(tmp_path / "checkpoint"), "text-generation", tmp_path / "artifact")
    assert export_checkpoint(args).manifest.cache == "slots"


@pytest.mark.parametrize("decoding", ["slots", "plain"])
def test_what_longrope_rotates_in_another_way_is_refused(
    decoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers begins anew with other rotations where a text grows beyond the first length."""
    tokenizer = tokenizer_of("llama")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": None}
    model = tiny("phi3 128k", vocab_size=len(tokenizer), original_max_position_embeddings=48, **ids)
    model.generation_config.update(eos_token_id=None, pad_token_id=0)
    model.save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    if decoding == "plain":
        monkeypatch.setattr("export.conversion._obstacle", lambda *_given: "it is tested without slots")
    args = ExportArgs(str(tmp_path / "checkpoint"), "text-generation", tmp_path / "artifact")
    artifact = export_checkpoint(args)
    assert artifact.manifest.cache == decoding
    assert artifact.manifest.tokenizer.max_length == 48
    pipeline, prompt = pipelines.load(artifact.path), "a text about the sea"
    given = tokenizer(prompt, return_tensors="pt").input_ids
    room = 48 - given.shape[1]

    answer = pipeline(prompt, max_new_tokens=room, return_full_text=False, do_sample=False)[0]["generated_text"]

    expected = model.generate(given, max_new_tokens=room, do_sample=False)[0, given.shape[1] :]
    assert answer == tokenizer.decode(expected, skip_special_tokens=True)
    with pytest.raises(SextetError, match="48") as refused:
        pipeline(prompt, max_new_tokens=room + 1)
    assert "\n" not in str(refused.value)


def test_a_graph_is_checked_beyond_the_window_of_its_model(tmp_path: Path) -> None:
    """Within its window, a model and one without a window are the same."""
    windowed, whole, graph = (
        tiny("mistral", sliding_window=64),
        tiny("mistral", sliding_window=None),
        tmp_path / "m.onnx",
    )
    convert_to_slots(whole, graph)

    fault = fault_of_slots(windowed, {"model": graph})

    assert fault is not None
    assert "differs from PyTorch" in fault


def test_the_text_model_of_a_multimodal_checkpoint_has_slots(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("llama")
    text = dict(GEMMA, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision |= {"image_size": 28, "patch_size": 14}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    randomize(model)
    model.save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")

    artifact = export_checkpoint(ExportArgs(str(tmp_path / "checkpoint"), "text-generation", tmp_path / "artifact"))

    assert artifact.manifest.architecture == "gemma3_text"
    assert artifact.manifest.cache == "slots"
    assert artifact.config()["num_hidden_layers"] == 2
    (prompt, expected) = ([5, 9, 13], torch_answer(model, [5, 9, 13], 12))
    (ours,) = PromptSlots(InferenceSession(artifact.graph("model"), SessionConfig())).logits(
        [prompt], [expected.tokens]
    )
    np.testing.assert_allclose(ours, expected.logits, atol=1e-3)


def test_an_architecture_that_optimum_does_not_know_is_exported_with_slots(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("llama")
    model = tiny("exaone4", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    command = [sys.executable, "-m", "sextet", "export", str(tmp_path / "checkpoint"), "--task", "text-generation"]

    finished = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )

    assert finished.returncode == 0, finished.stderr
    assert "one by one" not in finished.stderr
