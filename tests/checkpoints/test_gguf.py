"""GGUF files as checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

import pipelines
from checkpoints.checkpoint import load_tokenizer
from checkpoints.resolve import resolve
from export.build import ExportArgs, export_checkpoint
from pipelines.errors import CheckpointError
from training.finetune import FinetuneArgs, finetune

PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def to_gguf(folder: Path, path: Path, architecture: str = "qwen2") -> Path:
    """A tiny Qwen2 checkpoint as the GGUF file that llama.cpp's converter would write."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = dict(tokenizer["model"]["vocab"])
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_license("mit")
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(vocabulary["<|endoftext|>"])
    writer.add_eos_token_id(vocabulary["<|im_end|>"])
    writer.add_pad_token_id(vocabulary["<|endoftext|>"])
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
    for name, tensor in load_file(folder / "model.safetensors").items():
        writer.add_tensor(gguf_name(name), tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    name = name.removeprefix("model.")
    if name.startswith("layers."):
        _, layer, rest = name.split(".", 2)
        part, kind = rest.rsplit(".", 1)
        return f"blk.{layer}.{PARTS[part]}.{kind}"
    return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]


@pytest.fixture(scope="session")
def gguf(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_gguf(checkpoint("qwen2", "text-generation"), tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_gguf_file_exports_to_what_its_original_exports_to(
    gguf: Path, exported: Callable[..., Path], tmp_path: Path
) -> None:
    artifact = export_checkpoint(ExportArgs(str(gguf), "text-generation", tmp_path / "artifact"))
    original = exported("qwen2", "text-generation")

    options = {"max_new_tokens": 8, "do_sample": False, "details": True}
    details = [pipelines.load(one)("The river flows", **options)[0]["details"] for one in (artifact.path, original)]
    ours, theirs = ([(token["id"], token["logprob"]) for token in one["tokens"]] for one in details)
    assert [token for token, _ in ours] == [token for token, _ in theirs]
    assert [logprob for _, logprob in ours] == pytest.approx([logprob for _, logprob in theirs], abs=1e-4)
    assert artifact.manifest.source.licence == "mit"


def test_the_end_of_text_is_the_one_that_the_file_names(gguf: Path, tmp_path: Path) -> None:
    artifact = export_checkpoint(ExportArgs(str(gguf), "summarization", tmp_path / "artifact"))

    assert artifact.manifest.tokenizer.eos_token_id == 2
    assert artifact.generation_config()["eos_token_id"] == 2
    assert str(artifact.manifest.prompt_template).startswith("<|im_start|>user\n")


def test_what_is_trained_from_a_gguf_file_reads_and_ends_texts_as_it_does(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEXTET_CACHE", str(tmp_path / "cache"))
    base = resolve(str(gguf))
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(gguf)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "data.txt").write_text("A text.\nAnother one.\n")
    recipe = {"model": str(gguf), "task": "text-generation", "train": str(tmp_path / "data.txt"), "max_steps": 1}
    finetune(FinetuneArgs.from_mapping(recipe | {"output": str(tmp_path / "tuned"), "lora": True}))

    for name in ("adapter", "tuned", "tuned/adapter"):
        found = resolve(str(tmp_path / name))
        expected, got = load_tokenizer(base), load_tokenizer(found)
        assert (
            (got.eos_token, got.pad_token)
            == (expected.eos_token, expected.pad_token)
            == ("<|im_end|>", "<|endoftext|>")
        )
        assert got("<|im_start|>user\nHello").input_ids == expected("<|im_start|>user\nHello").input_ids
        assert found.config.eos_token_id == got.eos_token_id
        assert not (found.path / "tokenizer.model").exists()


def test_an_architecture_that_transformers_cannot_read_is_refused(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = to_gguf(checkpoint("qwen2", "text-generation"), tmp_path / "tiny.gguf", architecture="rwkv6")
    with pytest.raises(CheckpointError, match=r"tiny.gguf holds a 'rwkv6' model; GGUF files are read of: .*llama"):
        resolve(str(path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not gguf at all, but long enough", b"GGUF\x03\x00\x00\x00"])
def test_a_file_that_is_not_gguf_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.gguf is not a (whole )?GGUF file"):
        resolve(str(tmp_path / "model.gguf"))


def test_a_gguf_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no file .*nowhere.gguf"):
        resolve(str(tmp_path / "nowhere.gguf"))
