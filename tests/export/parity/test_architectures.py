"""Every architecture and task becomes an artifact; the oracle is transformers, run beside ONNX Runtime and Optimum."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from optimum.onnxruntime import ORTModelForSeq2SeqLM
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from export.build import ExportArgs, export_checkpoint
from export.graphs.seq2seq_slot_graph import obstacle
from export.parity.samples import TEXTS
from pipelines.errors import CheckpointError
from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import DecodeRequest
from pipelines.generation.plain.decoder import open_decoder
from pipelines.generation.plain.engine import PlainEngine
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.tiny_checkpoints import DECODERS, ENCODER_DECODERS, ENCODER_TASKS, ENCODERS, LABELS, model_class

Make = Callable[..., Path]


def assert_exact(artifact: ModelArtifact) -> None:
    parity = artifact.manifest.parity
    assert parity.passed
    assert parity.inputs >= 64
    assert parity.largest_difference <= 1e-4
    assert parity.agreement == 1.0
    assert parity.disagreements == ()


@pytest.mark.parametrize("task", ENCODER_TASKS)
@pytest.mark.parametrize("architecture", ENCODERS)
def test_an_encoder_equals_transformers(architecture: str, task: str, exported: Make, checkpoint: Make) -> None:
    source = checkpoint(architecture, task)
    artifact = ModelArtifact.open(exported(architecture, task), task=task)
    assert_exact(artifact)
    assert artifact.manifest.architecture == architecture
    assert artifact.manifest.labels == LABELS.get(task, ())

    batch = AutoTokenizer.from_pretrained(source)(list(TEXTS[:5]), padding=True, truncation=True, return_tensors="pt")
    session = InferenceSession(artifact.graph("model"), SessionConfig())
    ours = session.run({name: batch[name].numpy() for name in session.input_names})
    with torch.no_grad():
        theirs = model_class(architecture, task).from_pretrained(source)(**batch)
    for name, logits in ours.items():
        torch.testing.assert_close(torch.from_numpy(logits), theirs[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_decoder_generates_what_transformers_generates(architecture: str, exported: Make, checkpoint: Make) -> None:
    source = checkpoint(architecture, "text-generation")
    artifact = ModelArtifact.open(exported(architecture, "text-generation"), task="text-generation")
    assert_exact(artifact)
    assert artifact.manifest.prompt_template is None
    assert artifact.manifest.cache == "slots"

    assert_same_greedy_tokens(artifact, source)


@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type dynamic depends on the length"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "its attention is scaled in a way of its own"),
        ("gpt2", {"optimize": "O1"}, "the fusions of O1 do not know such a graph"),
    ],
)
def test_a_decoder_that_cannot_have_slots_stays_on_the_plain_graph_and_says_why(
    architecture: str, changes: dict[str, Any], reason: str, checkpoint: Make, tmp_path: Path
) -> None:
    said: list[str] = []
    level = changes.get("optimize")
    source = str(checkpoint(architecture, "text-generation", **({} if level else changes)))
    args = ExportArgs(source, "text-generation", tmp_path / "artifact", optimize=level)
    artifact = export_checkpoint(args, said.append)
    assert artifact.manifest.cache == "plain"
    assert any(reason in line for line in said)

    assert_same_greedy_tokens(artifact, Path(source))


def assert_same_greedy_tokens(artifact: ModelArtifact, source: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    engine = PlainEngine(open_decoder(artifact, SessionConfig()))
    for text in ("No.", TEXTS[4], TEXTS[9]):
        batch = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        (expected,) = model.generate(**batch, do_sample=False, max_new_tokens=12).tolist()
        prompt = tuple(batch.input_ids[0].tolist())
        config = GenerationConfig(max_new_tokens=12, eos_token_id=(tokenizer.eos_token_id,))
        (ours,) = engine.generate(DecodeRequest(prompt, config.for_prompt(len(prompt), 256))).generations
        assert [*prompt, *ours.token_ids] == expected


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_an_encoder_decoder_equals_transformers(architecture: str, exported: Make) -> None:
    """Its answers are compared in tests/pipelines/generation."""
    artifact = ModelArtifact.open(exported(architecture, "translation"), task="translation")
    assert_exact(artifact)
    assert set(artifact.manifest.graphs) == {"encoder", "decoder"}
    assert artifact.manifest.cache == "slots"


@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        ("marian", {"optimize": "O1"}, "the fusions of O1 do not know such a graph"),
        (
            "bart",
            {"encoder_attention_heads": 8, "decoder_attention_heads": 8},
            "heads of width 4 are not a multiple of 8",
        ),
    ],
)
def test_an_encoder_decoder_that_cannot_have_slots_stays_on_the_plain_graphs_and_says_why(
    architecture: str, changes: dict[str, Any], reason: str, checkpoint: Make, tmp_path: Path
) -> None:
    said: list[str] = []
    level = changes.get("optimize")
    source = checkpoint(architecture, "translation", **({} if level else changes))
    args = ExportArgs(str(source), "translation", tmp_path / "artifact", optimize=level)
    artifact = export_checkpoint(args, said.append)
    assert_exact(artifact)
    assert artifact.manifest.cache == "plain"
    assert any(reason in line for line in said)

    ours = ORTModelForSeq2SeqLM.from_pretrained(artifact.path)
    assert_same_tokens(ours, AutoModelForSeq2SeqLM.from_pretrained(source), source, num_beams=2)


def test_an_encoder_decoder_of_another_architecture_stays_on_the_plain_graphs() -> None:
    reason = obstacle(AutoConfig.for_model("pegasus"))
    assert reason == "its attention is not known for pegasus"


def assert_same_tokens(ours: Any, theirs: Any, source: Path, **options: Any) -> None:
    """Both continue a padded batch of three texts with the same tokens."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.padding_side = "right" if theirs.config.is_encoder_decoder else "left"
    batch = tokenizer(["No.", TEXTS[4], TEXTS[9]], padding=True, return_tensors="pt", return_token_type_ids=False)
    expected = theirs.generate(**batch, do_sample=False, **options)
    assert ours.generate(**batch, do_sample=False, **options).tolist() == expected.tolist()


def test_a_bart_checkpoint_summarizes(exported: Make) -> None:
    assert_exact(ModelArtifact.open(exported("bart", "summarization"), task="summarization"))


@pytest.mark.parametrize("task", ["summarization", "translation"])
def test_an_instruct_model_is_told_what_to_do_in_its_own_chat_template(task: str, exported: Make) -> None:
    artifact = ModelArtifact.open(exported("qwen2", task), task=task)
    assert_exact(artifact)
    assert set(artifact.manifest.graphs) == {"model"}
    template = str(artifact.manifest.prompt_template)
    assert template.startswith("<|im_start|>user\n")
    assert template.endswith("\n\n{text}<|im_end|>\n<|im_start|>assistant\n")
    assert ("from {src_lang} to {tgt_lang}" in template) == (task == "translation")


@pytest.mark.parametrize(
    ("precision", "changes"),
    [
        ("fp32", {"num_labels": 1}),
        ("fp32", {"num_labels": 1, "problem_type": "regression"}),
        ("fp32", {"problem_type": "multi_label_classification"}),
        ("int8", {"problem_type": "multi_label_classification"}),
    ],
)
def test_heads_other_than_one_of_many_are_compared_too(precision: str, changes: dict[str, Any], exported: Make) -> None:
    artifact = ModelArtifact.open(exported("electra", "text-classification", precision, **changes))
    assert artifact.manifest.parity.passed
    assert artifact.manifest.problem_type == changes.get("problem_type")
    assert len(artifact.manifest.labels) == changes.get("num_labels", 3)


def test_a_number_that_int8_moves_by_more_than_a_tenth_disagrees(exported: Make) -> None:
    with pytest.raises(CheckpointError, match=r"does not agree with PyTorch: .* -?\d\.\d+ became -?\d\.\d+ \(conf"):
        exported("electra", "text-classification", "int8", num_labels=1)
