"""The published sizes of checkpoints that docs/models.md has speeds for; what is not named here is as in the config of
tests/known_models.py, or transformers' default for the architecture.
"""

from collections.abc import Mapping
from typing import Any

LARGEST = 1_000_000_000  # weights; more of them, in fp32 in PyTorch and in a graph, do not fit beside other programs


def _encoder(vocab_size: int, **sizes: Any) -> dict[str, Any]:
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    return {**base, "max_position_embeddings": 512, "vocab_size": vocab_size, **sizes}


def _both(vocab_size: int, width: int, layers: int, heads: int, inner: int, **sizes: Any) -> dict[str, Any]:
    """An encoder-decoder of BART's kind."""
    found = {"vocab_size": vocab_size, "d_model": width, "max_position_embeddings": 1024}
    for part in ("encoder", "decoder"):
        found |= {f"{part}_layers": layers, f"{part}_attention_heads": heads, f"{part}_ffn_dim": inner}
    return {**found, **sizes}


def _decoder(vocab_size: int, width: int, layers: int, heads: int, inner: int, **sizes: Any) -> dict[str, Any]:
    found = {"vocab_size": vocab_size, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**found, "intermediate_size": inner, "max_position_embeddings": 2048, **sizes}


def _gpt2(vocab_size: int) -> dict[str, Any]:
    return {"vocab_size": vocab_size, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}


SHAPES: Mapping[str, Mapping[str, Any]] = {
    "klue/bert-base": _encoder(32_000),
    "klue/roberta-base": _encoder(32_000, max_position_embeddings=514),
    "monologg/koelectra-base-v3-discriminator": _encoder(35_000, embedding_size=768),
    "beomi/KcELECTRA-base-v2022": _encoder(54_343, embedding_size=768),
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": {
        "vocab_size": 30_522, "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072,
        "max_position_embeddings": 512,
    },
    "dslim/bert-base-NER": _encoder(28_996),
    "deepset/roberta-base-squad2": _encoder(50_265, max_position_embeddings=514),
    "cardiffnlp/twitter-xlm-roberta-base-sentiment": _encoder(250_002, max_position_embeddings=514),
    "microsoft/deberta-base-mnli": _encoder(50_265, max_relative_positions=-1, type_vocab_size=0),
    "MoritzLaurer/DeBERTa-v3-base-mnli-fever-anli": _encoder(128_100, position_buckets=256),
    "answerdotai/ModernBERT-base": _encoder(
        50_368, num_hidden_layers=22, intermediate_size=1152, max_position_embeddings=8192
    ),
    "microsoft/mpnet-base": _encoder(30_527, max_position_embeddings=514),
    "albert/albert-base-v2": _encoder(30_000, embedding_size=128),
    "junnyu/roformer_chinese_base": _encoder(50_000, embedding_size=768, max_position_embeddings=1536),
    "facebook/bart-large-cnn": _both(50_264, 1024, 12, 16, 4096),
    "gogamza/kobart-base-v2": _both(30_000, 768, 6, 16, 3072),
    "google-t5/t5-small": {
        "vocab_size": 32_128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": 6,
        "num_heads": 8,
    },
    "google/flan-t5-base": {
        "vocab_size": 32_128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_decoder_layers": 12,
        "num_heads": 12,
    },
    "Helsinki-NLP/opus-mt-ko-en": _both(65_001, 512, 6, 8, 2048, max_position_embeddings=512),
    "facebook/m2m100_418M": _both(128_112, 1024, 12, 16, 4096),
    "facebook/nllb-200-distilled-600M": _both(256_206, 1024, 12, 16, 4096),
    "openai-community/gpt2": _gpt2(50_257),
    "skt/kogpt2-base-v2": _gpt2(51_200),
    "EleutherAI/pythia-160m": _decoder(50_304, 768, 12, 12, 3072),
    "facebook/opt-125m": {
        "vocab_size": 50_272, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "ffn_dim": 3072, "word_embed_proj_dim": 768, "max_position_embeddings": 2048,
    },
    "HuggingFaceTB/SmolLM2-135M-Instruct": _decoder(
        49_152, 576, 30, 9, 1536, num_key_value_heads=3, head_dim=64, tie_word_embeddings=True
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": _decoder(151_936, 896, 24, 14, 4864, num_key_value_heads=2, tie_word_embeddings=True),
    "Qwen/Qwen3-0.6B": _decoder(
        151_936, 1024, 28, 16, 3072, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True
    ),
    "google/gemma-3-1b-it": _decoder(
        262_144, 1152, 26, 4, 6912, num_key_value_heads=1, head_dim=256, sliding_window=512, layer_types=None
    ),
    "meta-llama/Llama-3.2-1B-Instruct": _decoder(
        128_256, 2048, 16, 32, 8192, num_key_value_heads=8, tie_word_embeddings=True
    ),
    "EleutherAI/polyglot-ko-1.3b": _decoder(30_080, 2048, 24, 16, 8192),
    "LGAI-EXAONE/EXAONE-4.0-1.2B": _decoder(
        102_400, 2048, 30, 32, 4096, num_key_value_heads=8, layer_types=None, tie_word_embeddings=True
    ),
    "microsoft/Phi-4-mini-instruct": _decoder(200_064, 3072, 32, 24, 8192, num_key_value_heads=8, rope_scaling=None),
}  # fmt: skip
"""By the checkpoint's name."""
