"""A decoder with random weights as a GGUF file, which OpenVINO GenAI and llama.cpp read.

Its weights are in Q4_1, as those of SmolLM2's packaged file are.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suites.gpu.models import DecoderShape

NORMAL, CONTROL = 1, 3  # GGUF's types of tokens


def ensure_gguf(shape: DecoderShape) -> Path:
    """The file of a checkpoint, made where it is missing, for architectures whose tensors GGUF does not permute."""
    output = shape.checkpoint.with_name(f"{shape.name}.gguf")
    if not output.exists():
        unfinished = output.with_suffix(".unfinished")
        _write(shape.checkpoint, unfinished)
        unfinished.rename(output)
    return output


def _write(checkpoint: Path, output: Path) -> None:
    import gguf
    from safetensors import safe_open

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    architecture, layers = config["model_type"], config["num_hidden_layers"]
    (named,) = [one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    names = gguf.get_tensor_name_map(named, layers)
    writer = gguf.GGUFWriter(output, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    _add_tokenizer(writer, checkpoint, config)
    with safe_open(checkpoint / "model.safetensors", "np") as tensors:
        for name in tensors.keys():  # noqa: SIM118, it is no mapping
            array = tensors.get_tensor(name).astype(np.float32)
            kind = gguf.GGMLQuantizationType.F32 if array.ndim == 1 else gguf.GGMLQuantizationType.Q4_1
            data = gguf.quants.quantize(array, kind)
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, checkpoint: Path, config: dict[str, Any]) -> None:
    """The byte-level BPE of the checkpoint's tokenizer.json."""
    content = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    special = {one["content"] for one in content["added_tokens"] if one["special"]}
    vocabulary = content["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [one if isinstance(one, str) else " ".join(one) for one in content["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_merges(merges)
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(config["eos_token_id"])
    writer.add_add_bos_token(False)
