"""Every `model_type` that transformers knows, as a config of a few thousand weights where one can be made."""

from typing import Any

LAYERS, WIDTH, HEADS, VOCABULARY = 3, 64, 4, 300
_SIZES = {
    LAYERS: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_encoder_layers "
    "num_decoder_layers",
    WIDTH: "hidden_size d_model n_embd dim embedding_size emb_dim word_embed_proj_dim model_dim",
    HEADS: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads num_experts num_local_experts n_routed_experts "
    "moe_num_experts",
    96: "intermediate_size ffn_dim d_ff d_inner encoder_ffn_dim decoder_ffn_dim n_inner hidden_dim "
    "moe_intermediate_size shared_expert_intermediate_size ffn_hidden_size",
    HEADS // 2: "num_key_value_heads num_kv_heads num_experts_per_tok n_group topk_group",
    VOCABULARY: "vocab_size",
    128: "max_position_embeddings n_positions n_ctx max_encoder_position_embeddings max_decoder_position_embeddings",
    WIDTH // HEADS: "head_dim d_kv kv_channels",
    0: "pad_token_id",
    1: "bos_token_id eos_token_id decoder_start_token_id",
}
_BY_LAYER = ("layer_types", "layers_block_type", "no_rope_layers", "block_types", "mlp_layer_types")


def tiny_config(model_type: str, **changes: Any) -> Any:
    """The config of a small model; raises whatever a config class raises that needs more than that."""
    from transformers import CONFIG_MAPPING

    made = CONFIG_MAPPING[model_type]
    default = made()
    sizes = {name: size for size, names in _SIZES.items() for name in names.split() if _is_size(default, name)}
    layers = {name: value[:LAYERS] for name in _BY_LAYER if isinstance(value := getattr(default, name, None), list)}
    return made(**(sizes | layers | changes))


def _is_size(config: Any, name: str) -> bool:
    if isinstance(getattr(type(config), name, None), property):  # of other sizes
        return False
    try:
        value = getattr(config, name, None)
    except Exception:  # one that differs from layer to layer
        return False
    return isinstance(value, int) and not isinstance(value, bool)


def tiny_model(auto_class: Any, config: Any, largest: int = 3_000_000) -> Any:
    """A model with random weights; raises ValueError where it has more of them than `largest`."""
    import torch

    with torch.device("meta"):
        count = sum(one.numel() for one in auto_class.from_config(config).parameters())
    if count > largest:
        raise ValueError(f"{config.model_type} has {count} weights")
    torch.manual_seed(0)
    return auto_class.from_config(config).eval()
