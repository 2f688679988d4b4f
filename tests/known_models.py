"""Checkpoints that people run: what their config.json says, for tests on tiny weights under the same name.

The sizes are those of the published config; `tiny` makes the layers few and narrow, and leaves everything else as it
is. Tokenizers are small ones of the class that the checkpoint names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.model_types import tiny_config
from tests.tiny_checkpoints import LABELS, model_class_of, randomize, tokenizer_of

CLASSIFY, ANSWER, TAG = "text-classification", "question-answering", "token-classification"
TRANSLATE, SUMMARIZE, GENERATE = "translation", "summarization", "text-generation"


@dataclass(frozen=True)
class KnownModel:
    """A checkpoint of the Hub. `tokenizer` is the architecture whose tiny tokenizer stands for its own.

    `says` is part of why it is on the plain graph, or refused where `refused` is set; "" for one in slots, or an
    encoder.
    """

    name: str
    architecture: str
    task: str
    tokenizer: str
    config: Mapping[str, Any] = field(default_factory=dict)
    says: str = ""
    refused: bool = False

    @property
    def generates(self) -> bool:
        return self.task not in LABELS and self.task != ANSWER

    def model_config(self, shape: Mapping[str, Any] | None = None) -> Any:
        """The config of a tiny model, or of one of the sizes in `shape`."""
        from transformers import AutoConfig

        given = self.settings(tokenizer_of(self.tokenizer))
        if shape is None:
            config = tiny_config(self.architecture, **given)
        else:
            config = AutoConfig.for_model(self.architecture, **(given | dict(shape)))
        if config.is_encoder_decoder:
            config.decoder_start_token_id = given["pad_token_id"]
        return config

    def settings(self, tokenizer: Any) -> dict[str, Any]:
        """What the config of a model with this tokenizer says beside sizes."""
        names = ("pad_token_id", "bos_token_id", "eos_token_id")
        given = {"vocab_size": max(tokenizer.get_vocab().values()) + 1, **self.config}
        given |= {name: getattr(tokenizer, name) for name in names}
        if self.task in LABELS:
            given |= {"id2label": dict(enumerate(LABELS[self.task]))}
            given |= {"label2id": {label: index for index, label in enumerate(LABELS[self.task])}}
        return given

    def write(self, folder: Path, shape: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint of this config with random weights, tiny ones without `shape`."""
        import torch

        config = self.model_config(shape)
        torch.manual_seed(sum(map(ord, self.name)))
        model = model_class_of(config, self.task).from_config(config).eval()
        randomize(model)
        if model.can_generate():
            ids = {name: getattr(config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
            model.generation_config.update(max_length=20, **ids)
        model.save_pretrained(folder)
        tokenizer_of(self.tokenizer).save_pretrained(folder)
        return folder


def _llama(name: str, **config: Any) -> KnownModel:
    return KnownModel(name, "llama", GENERATE, "llama", {"num_key_value_heads": 2} | config)


_LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3 |= {"original_max_position_embeddings": 64}
_LONGROPE: dict[str, Any] = {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}}
_LONGROPE |= {"original_max_position_embeddings": 64, "max_position_embeddings": 2048}
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 16}
_NOT_ALL = "attend in a way that is known"

ENCODERS = (
    KnownModel("klue/roberta-base", "roberta", TAG, "bert", {"type_vocab_size": 1}),
    KnownModel("klue/bert-base", "bert", CLASSIFY, "bert"),
    KnownModel("monologg/koelectra-base-v3-discriminator", "electra", ANSWER, "electra"),
    KnownModel("beomi/KcELECTRA-base-v2022", "electra", CLASSIFY, "electra"),
    KnownModel("skt/kobert-base-v1", "bert", CLASSIFY, "albert"),
    KnownModel("distilbert/distilbert-base-uncased-finetuned-sst-2-english", "distilbert", CLASSIFY, "distilbert"),
    KnownModel("dslim/bert-base-NER", "bert", TAG, "bert"),
    KnownModel("deepset/roberta-base-squad2", "roberta", ANSWER, "roberta", {"type_vocab_size": 1}),
    KnownModel("cardiffnlp/twitter-xlm-roberta-base-sentiment", "xlm-roberta", CLASSIFY, "xlm-roberta",
               {"type_vocab_size": 1}),
    KnownModel("microsoft/deberta-base-mnli", "deberta", CLASSIFY, "roberta",
               {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}),
    KnownModel("MoritzLaurer/DeBERTa-v3-base-mnli-fever-anli", "deberta-v2", CLASSIFY, "deberta-v2",
               {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16,
                "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
                "type_vocab_size": 0}),
    KnownModel("answerdotai/ModernBERT-base", "modernbert", CLASSIFY, "gpt2"),
    KnownModel("microsoft/mpnet-base", "mpnet", CLASSIFY, "bert"),
    KnownModel("google/mobilebert-uncased", "mobilebert", CLASSIFY, "bert"),
    KnownModel("albert/albert-base-v2", "albert", CLASSIFY, "albert"),
    KnownModel("junnyu/roformer_chinese_base", "roformer", CLASSIFY, "bert"),
    KnownModel("facebook/bart-large-mnli", "bart", CLASSIFY, "bart"),
    KnownModel("allenai/longformer-base-4096", "longformer", CLASSIFY, "roberta", {"attention_window": 8},
               refused=True),
    KnownModel("google/bigbird-roberta-base", "big_bird", CLASSIFY, "roberta", refused=True),
    KnownModel("tau/splinter-base", "splinter", ANSWER, "bert"),
    KnownModel("mrm8488/gpt2-finetuned-classifier", "gpt2", CLASSIFY, "gpt2"),
    KnownModel("Qwen/Qwen3-Reranker-0.6B-seq-cls", "qwen3", CLASSIFY, "qwen2", {"num_key_value_heads": 2}),
)  # fmt: skip
ENCODER_DECODERS = (
    KnownModel("facebook/bart-large-cnn", "bart", SUMMARIZE, "bart"),
    KnownModel("gogamza/kobart-base-v2", "bart", SUMMARIZE, "bart"),
    KnownModel("facebook/mbart-large-50-many-to-many-mmt", "mbart", TRANSLATE, "mbart50", {"scale_embedding": True}),
    KnownModel("facebook/mbart-large-en-ro", "mbart", TRANSLATE, "mbart", {"scale_embedding": True}),
    KnownModel("google-t5/t5-small", "t5", TRANSLATE, "t5"),
    KnownModel("google/flan-t5-base", "t5", SUMMARIZE, "t5",
               {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    KnownModel("google/mt5-small", "mt5", SUMMARIZE, "t5"),
    KnownModel("google/umt5-small", "umt5", SUMMARIZE, "t5"),
    KnownModel("google/pegasus-xsum", "pegasus", SUMMARIZE, "t5", {"scale_embedding": True}),
    KnownModel("facebook/blenderbot-400M-distill", "blenderbot", SUMMARIZE, "bart"),
    KnownModel("facebook/blenderbot_small-90M", "blenderbot-small", SUMMARIZE, "bart"),
    KnownModel("Helsinki-NLP/opus-mt-ko-en", "marian", TRANSLATE, "marian", {"scale_embedding": True}),
    KnownModel("facebook/m2m100_418M", "m2m_100", TRANSLATE, "m2m_100", {"scale_embedding": True}),
    KnownModel("facebook/nllb-200-distilled-600M", "m2m_100", TRANSLATE, "nllb", {"scale_embedding": True}),
    KnownModel("allenai/led-base-16384", "led", SUMMARIZE, "bart", {"attention_window": 8}),
    KnownModel("google/long-t5-local-base", "longt5", SUMMARIZE, "t5", says=_NOT_ALL),
    KnownModel("google/bigbird-pegasus-large-arxiv", "bigbird_pegasus", SUMMARIZE, "t5", refused=True),
    KnownModel("facebook/wmt19-en-de", "fsmt", TRANSLATE, "bart", {"langs": ["en", "de"]}, refused=True),
    KnownModel("microsoft/prophetnet-large-uncased", "prophetnet", SUMMARIZE, "bert", refused=True),
)  # fmt: skip
DECODERS = (
    KnownModel("openai-community/gpt2", "gpt2", GENERATE, "gpt2"),
    KnownModel("skt/kogpt2-base-v2", "gpt2", GENERATE, "gpt2"),
    KnownModel("EleutherAI/gpt-neo-125m", "gpt_neo", GENERATE, "gpt_neo",
               {"attention_types": [[["global"], 3]], "window_size": 8}),
    KnownModel("EleutherAI/polyglot-ko-1.3b", "gpt_neox", GENERATE, "gpt2", {"rotary_pct": 0.5}),
    KnownModel("EleutherAI/pythia-160m", "gpt_neox", GENERATE, "gpt2", {"rotary_pct": 0.25}),
    KnownModel("facebook/opt-125m", "opt", GENERATE, "gpt2"),
    KnownModel("bigscience/bloom-560m", "bloom", GENERATE, "gpt2", says="is not known for bloom"),
    KnownModel("tiiuae/falcon-7b", "falcon", GENERATE, "gpt2", {"multi_query": True, "alibi": False}),
    KnownModel("tiiuae/falcon-rw-1b", "falcon", GENERATE, "gpt2",
               {"alibi": True, "multi_query": False, "num_kv_heads": 4}, says="ALiBi"),
    _llama("meta-llama/Llama-3.2-1B-Instruct", rope_scaling=_LLAMA3),
    _llama("HuggingFaceTB/SmolLM2-135M-Instruct"),
    _llama("kakaocorp/kanana-1.5-2.1b-instruct-2505"),
    _llama("naver-hyperclovax/HyperCLOVAX-SEED-Text-Instruct-1.5B", head_dim=16),
    _llama("skt/A.X-3.1-Light"),
    _llama("K-intelligence/Midm-2.0-Mini-Instruct", head_dim=16),
    KnownModel("skt/A.X-4.0-Light", "qwen2", GENERATE, "qwen2"),
    KnownModel("LGAI-EXAONE/EXAONE-4.0-1.2B", "exaone4", GENERATE, "llama", _WINDOWS),
    KnownModel("Qwen/Qwen2.5-0.5B-Instruct", "qwen2", GENERATE, "qwen2"),
    KnownModel("Qwen/Qwen3-0.6B", "qwen3", GENERATE, "qwen2"),
    KnownModel("mistralai/Mistral-7B-Instruct-v0.3", "mistral", GENERATE, "llama", {"sliding_window": None}),
    KnownModel("google/gemma-2b-it", "gemma", GENERATE, "llama"),
    KnownModel("google/gemma-2-2b-it", "gemma2", GENERATE, "llama", {"query_pre_attn_scalar": 16}),
    KnownModel("google/gemma-3-1b-it", "gemma3_text", GENERATE, "llama",
               {"query_pre_attn_scalar": 16, "sliding_window": 16}),
    KnownModel("microsoft/phi-2", "phi", GENERATE, "gpt2", {"partial_rotary_factor": 0.5}),
    KnownModel("microsoft/Phi-3-mini-4k-instruct", "phi3", GENERATE, "llama"),
    KnownModel("microsoft/Phi-3-mini-128k-instruct", "phi3", GENERATE, "llama", _LONGROPE),
    KnownModel("microsoft/Phi-4-mini-instruct", "phi3", GENERATE, "gpt2",
               _LONGROPE | {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    KnownModel("HuggingFaceTB/SmolLM3-3B", "smollm3", GENERATE, "llama", {"no_rope_layers": [1, 1, 0]}),
    KnownModel("allenai/OLMo-2-0425-1B-Instruct", "olmo2", GENERATE, "gpt2"),
    KnownModel("ibm-granite/granite-3.3-2b-instruct", "granite", GENERATE, "gpt2",
               {"attention_multiplier": 0.2, "logits_scaling": 3.0, "residual_multiplier": 0.5}),
    KnownModel("stabilityai/stablelm-2-1_6b-chat", "stablelm", GENERATE, "gpt2", {"partial_rotary_factor": 0.5}),
    KnownModel("bigcode/starcoder2-3b", "starcoder2", GENERATE, "gpt2", {"sliding_window": 16}),
    KnownModel("CohereLabs/c4ai-command-r7b-12-2024", "cohere2", GENERATE, "llama", _WINDOWS),
    KnownModel("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral", GENERATE, "llama", refused=True),
)  # fmt: skip
KNOWN_MODELS = (*ENCODERS, *ENCODER_DECODERS, *DECODERS)
