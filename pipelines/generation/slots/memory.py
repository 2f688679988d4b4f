"""The memory of KV cache slots, known before a model is loaded."""

from collections.abc import Mapping
from typing import Any

from pipelines.runtime.artifact import ModelArtifact

# What configs of transformers call the same number; those of a decoder come before those that both halves share.
_LAYERS = ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "n_layer", "num_layers")
_HEADS = ("decoder_attention_heads", "num_attention_heads", "n_head", "num_heads")
_WIDTH = ("d_model", "hidden_size", "n_embd")
_HEAD_DIM = ("d_kv", "head_dim")


def slot_bytes(artifact: ModelArtifact, max_tokens: int) -> int | None:
    """The bytes of one slot that is full, a source of an encoder-decoder included; a paused sequence takes as many.

    None for a model without slots, or whose config does not tell.
    """
    config = artifact.config()
    layers, heads = _first(config, _LAYERS), _first(config, _HEADS)
    if artifact.manifest.cache != "slots" or layers is None or heads is None:
        return None
    head_dim = _first(config, _HEAD_DIM) or (_first(config, _WIDTH) or 0) // heads
    stored = _first(config, ("num_key_value_heads",)) or heads
    tokens = max_tokens + (artifact.manifest.tokenizer.max_length if "decoder" in artifact.manifest.graphs else 0)
    number_bytes = 4 if artifact.manifest.device == "cpu" else 2  # slots on a GPU are fp16, int4 weights or not
    return layers * 2 * stored * head_dim * tokens * number_bytes or None


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)
