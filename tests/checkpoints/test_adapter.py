"""Adapters: what sextet exports of one answers as PEFT's own model does."""

import copy
import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import peft
import pytest
import torch
import transformers
from peft import IA3Config, LoraConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file

import pipelines
from checkpoints.resolve import resolve
from export.build import ExportArgs, export_checkpoint
from pipelines.errors import CheckpointError, ConfigurationError
from tests.hub import Hub
from tests.tiny_checkpoints import tokenizer_of
from training.finetune import FinetuneArgs, finetune

TEXTS = ["Anna wrote the report.", "The bank said so in 1998."]
IA3_OF_DISTILBERT = IA3Config(
    task_type="TOKEN_CLS", target_modules=["k_lin", "v_lin", "lin2"], feedforward_modules=["lin2"]
)
LOADERS = {
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEXTET_CACHE", str(tmp_path / "cache"))


def trained(base: Path, config: Any, output: Path, **changes: Any) -> tuple[Path, Any]:
    """An adapter of random weights as PEFT saves one, and the model that it was saved from."""
    torch.manual_seed(0)
    loader = LOADERS.get(config.task_type, transformers.AutoModelForSequenceClassification)
    model = loader.from_pretrained(base, ignore_mismatched_sizes=True, **changes)
    wrapped = peft.get_peft_model(model, config)
    for weight in wrapped.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    wrapped.save_pretrained(output)
    return output, wrapped.eval()


def logits(model: Any, tokenizer: Any, text: str) -> Any:
    with torch.inference_mode():
        return model(**tokenizer(text, return_tensors="pt")).logits.numpy()


@pytest.mark.parametrize(
    ("architecture", "task", "config", "changes"),
    [
        ("bert", "text-classification", LoraConfig(task_type="SEQ_CLS"), {"num_labels": 3}),
        ("bert", "text-classification", LoraConfig(target_modules=["query", "value"]), {}),
        ("xlm-roberta", "text-classification", LoraConfig(task_type="SEQ_CLS", use_dora=True), {"num_labels": 5}),
        ("distilbert", "token-classification", IA3_OF_DISTILBERT, {}),
        ("gpt2", "text-generation", LoraConfig(task_type="CAUSAL_LM"), {}),
        ("t5", "summarization", LoraConfig(task_type="SEQ_2_SEQ_LM", use_rslora=True), {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_adapter_becomes_the_model_that_peft_makes_of_it(
    checkpoint: Callable[..., Path], tmp_path: Path, architecture: str, task: str, config: Any, changes: dict[str, Any]
) -> None:
    base = checkpoint(architecture, task)
    folder, expected = trained(base, copy.deepcopy(config), tmp_path / "adapter", **changes)

    found = resolve(str(folder))

    (name,) = transformers.AutoConfig.from_pretrained(found.path).architectures
    loaded = getattr(transformers, name).from_pretrained(found.path).state_dict()
    plain = expected.merge_and_unload().state_dict()
    assert all(torch.allclose(loaded[name], tensor, atol=1e-6) for name, tensor in plain.items())
    assert found.base == f"{base}@{resolve(str(base)).revision}"


@pytest.mark.parametrize(
    ("architecture", "task", "config", "changes"),
    [
        ("llama", "text-generation", LoraConfig(task_type="CAUSAL_LM", target_modules=["embed_tokens"]), {}),
        ("gpt2", "text-generation", LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"]), {}),
        ("llama", "text-generation", LoraConfig(task_type="CAUSAL_LM", layer_replication=[[0, 2], [0, 2]]), {}),
        ("qwen2", "text-generation", LoraConfig(task_type="CAUSAL_LM", trainable_token_indices=[5, 6]), {}),
        ("bart", "summarization", LoraConfig(task_type="SEQ_2_SEQ_LM", modules_to_save=["lm_head"]), {}),
        (
            "distilbert",
            "text-classification",
            LoraConfig(task_type="SEQ_CLS", target_modules=["q_lin"]),
            {"num_labels": 4},
        ),
    ],
    ids=["embeddings", "output", "repeated-layers", "tokens", "output-of-bart", "two-heads"],
)
def test_layers_that_share_a_weight_and_heads_of_two_layers_answer_as_in_peft(
    checkpoint: Callable[..., Path], tmp_path: Path, architecture: str, task: str, config: Any, changes: dict[str, Any]
) -> None:
    base = checkpoint(architecture, task)
    folder, expected = trained(base, copy.deepcopy(config), tmp_path / "adapter", **changes)

    found = resolve(str(folder))

    (name,) = found.config.architectures
    model, tokenizer = getattr(transformers, name).from_pretrained(found.path), tokenizer_of(architecture)
    np.testing.assert_allclose(logits(model, tokenizer, TEXTS[0]), logits(expected, tokenizer, TEXTS[0]), atol=1e-3)


def test_an_exported_adapter_answers_as_peft_and_says_what_it_is_made_of(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    base = checkpoint("bert", "text-classification")
    folder, expected = trained(base, LoraConfig(task_type="SEQ_CLS"), tmp_path / "adapter", num_labels=4)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")

    artifact = export_checkpoint(ExportArgs(str(folder), "text-classification", tmp_path / "artifact"))

    source = artifact.manifest.source
    assert (source.checkpoint, source.licence) == (str(folder), "mit")
    assert source.base is not None
    assert f"| Adapter of | `{source.base}` |" in (artifact.path / "README.md").read_text()
    tokenizer = tokenizer_of("bert")
    model = pipelines.load(artifact.path)
    for text in TEXTS:
        row = torch.softmax(torch.from_numpy(logits(expected, tokenizer, text)), dim=-1)[0].numpy()
        answer = {one["label"]: one["score"] for one in model(text, top_k=None)}
        np.testing.assert_allclose([answer[f"LABEL_{index}"] for index in range(4)], row, atol=1e-4)


def test_an_adapter_from_the_hub_brings_its_base_at_the_revision_that_it_names(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    base = checkpoint("gpt2", "text-generation")
    folder, expected = trained(base, LoraConfig(task_type="CAUSAL_LM"), tmp_path / "adapter")
    (folder / "training_args.bin").write_bytes(b"not wanted")
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        pinned = hub.add("someone/base", base)
        hub.add("someone/base", checkpoint("gpt2", "text-generation", n_embd=16), branch="later")
        name_base(folder, "someone/base", revision=pinned)
        commit = hub.add("someone/lora", folder)

        found = resolve("someone/lora")

    assert (found.revision, found.base) == (commit, f"someone/base@{pinned}")
    assert "someone/lora/training_args.bin" not in hub.fetched
    model, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(found.path), tokenizer_of("gpt2")
    np.testing.assert_allclose(logits(model, tokenizer, TEXTS[0]), logits(expected, tokenizer, TEXTS[0]), atol=1e-4)


def test_a_tokenizer_with_new_tokens_widens_the_embeddings(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    base = checkpoint("gpt2", "text-generation")
    model, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(base), tokenizer_of("gpt2")
    before = model.get_input_embeddings().num_embeddings
    tokenizer.add_tokens([f"<new{index}>" for index in range(before - len(tokenizer) + 2)])
    model.resize_token_embeddings(len(tokenizer))
    wrapped = peft.get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", modules_to_save=["wte", "lm_head"]))
    wrapped.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    name_base(tmp_path / "adapter", str(base))

    found = resolve(str(tmp_path / "adapter"))

    assert found.config.vocab_size == before + 2
    loaded = transformers.AutoTokenizer.from_pretrained(found.path)
    assert loaded.convert_tokens_to_ids("<new0>") == tokenizer.convert_tokens_to_ids("<new0>")


def test_embeddings_that_were_padded_have_the_rows_that_the_adapter_holds(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    base = checkpoint("llama", "text-generation")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + 1, pad_to_multiple_of=64)
    peft.get_peft_model(model, LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")

    found = resolve(str(tmp_path / "adapter"))

    assert found.config.vocab_size == model.config.vocab_size
    loaded = load_file(found.path / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(loaded, model.get_input_embeddings().weight)


def test_a_token_whose_embedding_nobody_has_is_refused_unless_it_only_pads(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    base = checkpoint("gpt2", "text-generation")
    folder, _ = trained(base, LoraConfig(task_type="CAUSAL_LM"), tmp_path / "adapter")
    tokenizer = tokenizer_of("gpt2")
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(folder)
    first = resolve(str(folder))
    assert first.config.vocab_size == len(tokenizer)
    shutil.rmtree(first.path)
    assert resolve(str(folder)).revision == first.revision, "the same weights each time"

    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    shutil.rmtree(tmp_path / "cache")
    assert refused(folder) == (
        f"{folder} cannot be merged: neither it nor its base {base} holds the embedding of its token '<new>' "
        "(2 tokens in all)"
    )


def test_generation_parameters_that_contradict_each_other_stay_as_they_are_in_the_base(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(checkpoint("gpt2", "text-generation"), tmp_path / "base"))
    file = base / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"temperature": 0.7, "do_sample": False}))
    folder, _ = trained(base, LoraConfig(task_type="CAUSAL_LM"), tmp_path / "adapter")

    found = resolve(str(folder))

    assert json.loads((found.path / "generation_config.json").read_text())["temperature"] == 0.7


def name_base(folder: Path, base: str, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": base} | changes
    file.write_text(json.dumps(config))


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        resolve(str(folder))
    assert "\n" not in str(error.value)
    assert not list((folder.parent / "cache").glob("*")), "nothing is kept of what failed"
    return str(error.value)


def test_what_cannot_be_merged_is_refused_in_one_line(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    base = checkpoint("bert", "text-classification")
    folder, _ = trained(base, LoraConfig(task_type="SEQ_CLS"), tmp_path / "adapter")

    def changed(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    gone = changed("gone")
    name_base(gone, str(tmp_path / "nowhere"))
    assert refused(gone) == (
        f"{gone} is an adapter, and its base cannot be had: there is no folder {tmp_path}/nowhere, and it is not a Hub "
        "id (owner/name) or starter:NAME either"
    )
    itself = changed("itself")
    name_base(itself, str(itself))
    assert refused(itself) == (
        f"{itself} is an adapter, and its base cannot be had: {itself} is an adapter on top of itself"
    )

    there, back = changed("there"), changed("back")
    name_base(there, str(back))
    name_base(back, str(there))
    assert refused(there) == (
        f"{there} is an adapter, and its base cannot be had: {back} is an adapter, and its base cannot be had: "
        f"{there} is an adapter on top of itself"
    )

    nameless = changed("nameless")
    name_base(nameless, "")
    assert refused(nameless) == (f"adapter_config.json of {nameless} names no base (base_model_name_or_path is '')")
    broken = changed("broken")
    (broken / "adapter_config.json").write_text("{")
    assert refused(broken).startswith(f"adapter_config.json of {broken} cannot be read (JSONDecodeError")

    of_another_kind = changed("of-another-kind")
    name_base(of_another_kind, str(base), peft_type="ZORA")
    assert refused(of_another_kind).startswith(f"{of_another_kind} is a ZORA adapter, which PEFT ")
    numbered = changed("numbered")
    name_base(numbered, str(base), revision=5)
    assert refused(numbered) == f"adapter_config.json of {numbered} has the revision 5, which is no text"

    whole = changed("whole")
    shutil.copy(base / "model.safetensors", whole)
    name_base(whole, "starter:none")
    assert refused(whole).endswith("; remove its adapter_config.json to use the whole weights beside it")

    broken_head = changed("broken-head")
    tensors = load_file(broken_head / "adapter_model.safetensors")
    tensors["base_model.model.classifier.bias"][:] = torch.nan
    save_file(tensors, broken_head / "adapter_model.safetensors")
    assert refused(broken_head) == f"{broken_head} on top of its base {base} answers with what is no number"

    cut = changed("cut")
    weights = (cut / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert refused(cut).startswith(f"{cut} cannot be merged into its base {base}: ")

    short = changed("short")
    half = load_file(short / "adapter_model.safetensors")
    lost = next(name for name in half if "lora_B" in name)
    save_file({name: tensor for name, tensor in half.items() if name != lost}, short / "adapter_model.safetensors")
    assert refused(short).startswith(f"{short} does not fit its base {base}: ")

    other = changed("other")
    name_base(other, str(checkpoint("bert", "text-classification", num_hidden_layers=1)))
    assert " does not fit its base " in refused(other)

    pickled = changed("pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    assert refused(pickled) == (
        f"{pickled} has only pickled weights (adapter_model.bin), which can run code when loaded; convert them to "
        "safetensors, or trust them with --allow-pickle"
    )
    empty = changed("empty")
    (empty / "adapter_model.safetensors").unlink()
    assert refused(empty) == f"{empty} is an adapter without weights (adapter_model.safetensors)"


def test_a_cache_that_cannot_be_written_is_named(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = trained(checkpoint("bert", "text-classification"), LoraConfig(task_type="SEQ_CLS"), tmp_path / "lora")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(ConfigurationError) as full:
            export_checkpoint(ExportArgs(str(folder), "text-classification", tmp_path / "artifact"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    remedy = "free some, or name another folder with SEXTET_CACHE"
    assert str(full.value) == f"{tmp_path}/cache cannot be written: File too large; {remedy}"
    assert not list((tmp_path / "cache").iterdir())

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEXTET_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError) as unwritable:
        resolve(str(folder))
    assert str(unwritable.value) == f"{tmp_path}/file cannot be written: File exists; {remedy}"


def test_what_a_killed_merge_left_is_removed_by_a_later_one(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder, _ = trained(checkpoint("bert", "text-classification"), LoraConfig(task_type="SEQ_CLS"), tmp_path / "lora")
    merged = resolve(str(folder)).path
    for name, age_s in {"killed": 2 * 86400.0, "working": 60.0}.items():
        left = merged.with_name(f".{merged.name}-{name}")
        merged.rename(left) if name == "killed" else left.mkdir()
        os.utime(left, (time.time() - age_s,) * 2)

    assert resolve(str(folder)).path == merged

    assert [path.name for path in merged.parent.glob(".*")] == [f".{merged.name}-working"]


def test_settings_of_a_later_peft_are_named(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    base = checkpoint("bert", "text-classification")
    folder, _ = trained(base, LoraConfig(task_type="SEQ_CLS"), tmp_path / "lora")
    name_base(folder, str(base), twist=2, untwisted=None)
    said: list[str] = []

    resolve(str(folder), progress=said.append)

    assert said == [
        f"merging {folder} into {base}",
        f"{folder} was saved by another release of PEFT, settings are ignored: twist",
    ]


def test_an_adapter_is_trained_further_which_is_said(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    base = checkpoint("bert", "text-classification")
    folder, _ = trained(base, LoraConfig(task_type="SEQ_CLS"), tmp_path / "lora")
    (tmp_path / "train.csv").write_text("text,label\nA good one.,positive\nA bad one.,negative\n")
    recipe = {"model": str(folder), "task": "text-classification", "train": str(tmp_path / "train.csv"), "max_steps": 1}
    said: list[str] = []

    output = finetune(
        FinetuneArgs.from_mapping(recipe | {"output": str(tmp_path / "tuned"), "lora": True}), said.append
    )

    assert said[0] == f"merging {folder} into {base}"
    assert resolve(str(output / "adapter")).base == f"{folder}@{resolve(str(folder)).revision}"


def test_a_head_that_nobody_trained_and_a_prompt_are_refused(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    plain = checkpoint("bert", "question-answering")
    headless, _ = trained(plain, LoraConfig(target_modules=["query"]), tmp_path / "headless")
    name_base(headless, str(plain), task_type="SEQ_CLS")
    assert f"neither it nor its base {plain} holds " in refused(headless)

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    prompt, _ = trained(checkpoint("gpt2", "text-generation"), config, tmp_path / "prompt")
    assert refused(prompt) == f"{prompt} is a PROMPT_TUNING adapter, which no merge can apply"

    start = LoraConfig(task_type="CAUSAL_LM", init_lora_weights="pissa_niter_2", r=4)
    random, _ = trained(checkpoint("gpt2", "text-generation"), start, tmp_path / "random")
    assert " its training changed the base by chance (init_lora_weights is pissa_niter_2); " in refused(random)

    shared = LoraConfig(task_type="SEQ_2_SEQ_LM", modules_to_save=["lm_head"])
    scaled, _ = trained(checkpoint("t5", "summarization"), shared, tmp_path / "scaled")
    assert "a LORA adapter of such layers answers otherwise when it is merged (by " in refused(scaled)

    features = Path(shutil.copytree(headless, tmp_path / "features"))
    name_base(features, str(plain), task_type="FEATURE_EXTRACTION")
    assert refused(features) == (
        f"{features} was trained for task_type FEATURE_EXTRACTION; allowed: SEQ_CLS, QUESTION_ANS, TOKEN_CLS, "
        "SEQ_2_SEQ_LM, CAUSAL_LM"
    )
