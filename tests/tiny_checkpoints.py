"""Tiny checkpoints: complete Hugging Face folders with random weights, made in a second, for every architecture.

    tiny_checkpoint("bert", "text-classification", tmp_path / "bert")

The weights are random but shaped like trained ones: logits of unit scale that depend on the whole input, so that
labels, spans and tokens vary and a wrong mask, position or offset changes an answer. The tokenizers are trained here,
on a corpus with Korean, emoji and combining characters, by the libraries that trained the real ones.
"""

import io
import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CORPUS = (
    "The film was wonderful, and the ending made everyone in the theatre cry.",
    "I did not like the food; the service was slow and the room was cold.",
    "Who wrote the letter that Anna Smith found in Paris last winter?",
    "The river flows from the mountains of Norway to the North Sea.",
    "Researchers at the University of Seoul measured 1,234 samples in 2019.",
    "Is this the train to Berlin? Yes, it leaves at 10:45 from platform 7.",
    "A small step, then another: that is how the bridge was built.",
    "Prices rose by 3.5% in March, the bank said on Tuesday.",
    "please summarize the following text and translate it to French",
    "정말 재미있는 영화였어요. 배우들의 연기도 훌륭했습니다.",
    "음식은 맛이 없었고 직원은 불친절했다.",
    "서울은 대한민국의 수도이며 한강이 흐른다.",
    "김민수는 1998년 부산에서 태어나 런던에서 공부했다.",
    "오늘 날씨가 좋아서 공원에 갔다 왔어요 😀",
    "Le train part à midi ; je ne l'ai pas vu hier.",
    "Où habite la sœur de Jean ? Elle habite à Genève.",
    "Ça va très bien, merci beaucoup pour votre aide !",
    "Die Straße ist gesperrt, deshalb fahren wir über München.",
    "El niño comió una manzana roja en el jardín.",
    "日本の首都は東京です。とても大きい都市です。",
    "Москва — столица России, город на реке.",
    "الكتاب على الطاولة",
    "great 👍 👨‍👩‍👧 café naïve Zoë 🎉🎉 50€",
    "def add(a, b): return a + b  # code, too",
    *(unicodedata.normalize("NFD", text) for text in ("café à Genève", "한국어 문장", "Zoë naïve")),
)

ENCODERS = ("bert", "distilbert", "albert", "roberta", "deberta-v2", "electra", "xlm-roberta")
DECODERS = ("gpt2", "gpt_neo", "llama", "qwen2")
ENCODER_DECODERS = ("t5", "bart", "marian", "m2m_100")
ENCODER_TASKS = ("text-classification", "question-answering", "token-classification")
LABELS = {
    "text-classification": ("negative", "neutral", "positive"),
    "token-classification": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
}
MAX_TOKENS = {"encoder": 128, "decoder": 256, "encoder-decoder": 128}

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)


def tiny_checkpoint(architecture: str, task: str, directory: Path, **changes: Any) -> Path:
    """Write the checkpoint of `architecture` (a transformers model_type) with the head of `task`; returns `directory`.

    `changes` go to the generation config where it has such a field, to the config otherwise: `num_labels=1`,
    `problem_type="multi_label_classification"`, `num_beams=3`. The decoders' summarization and translation
    checkpoints are instruct models: text generation with a chat template.
    """
    import torch
    from transformers import AutoConfig, GenerationConfig

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(architecture)
    generation = {name: value for name, value in changes.items() if hasattr(GenerationConfig(), name)}
    settings = _config(architecture, tokenizer)
    if task in LABELS and "num_labels" not in changes and "id2label" not in changes:
        settings["id2label"] = dict(enumerate(LABELS[task]))
        settings["label2id"] = {label: index for index, label in enumerate(LABELS[task])}
    settings |= {name: value for name, value in changes.items() if name not in generation}
    config = AutoConfig.for_model(architecture, **settings)
    torch.manual_seed(sum(map(ord, architecture + task)))
    model = model_class(architecture, task).from_config(config).eval()
    randomize(model)
    if architecture in ENCODERS:
        _balance(model, tokenizer)
    if hasattr(model, "generation_config") and model.can_generate():
        model.generation_config.update(**_generation(architecture, tokenizer, config) | generation)
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    return directory


def model_class(architecture: str, task: str) -> Any:
    import transformers

    if architecture in DECODERS:
        return transformers.AutoModelForCausalLM
    if architecture in ENCODER_DECODERS:
        return transformers.AutoModelForSeq2SeqLM
    return {
        "text-classification": transformers.AutoModelForSequenceClassification,
        "question-answering": transformers.AutoModelForQuestionAnswering,
        "token-classification": transformers.AutoModelForTokenClassification,
    }[task]


def _config(architecture: str, tokenizer: Any) -> dict[str, Any]:
    """Two layers, four heads, width 32, in the names that each architecture uses."""
    tokens = {
        "vocab_size": max(tokenizer.get_vocab().values()) + 1 + (108 if architecture == "m2m_100" else 0),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    wide = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    length = {"max_position_embeddings": MAX_TOKENS["encoder"]}
    both = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    both |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 128}
    own: dict[str, dict[str, Any]] = {
        "bert": wide | length,
        "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64} | length,
        "albert": wide | length | {"embedding_size": 16},
        "roberta": wide | {"max_position_embeddings": MAX_TOKENS["encoder"] + 2, "type_vocab_size": 1},
        "deberta-v2": wide
        | length
        | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16, "share_att_key": True}
        | {"norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0},
        "electra": wide | length | {"embedding_size": 16},
        "xlm-roberta": wide | {"max_position_embeddings": MAX_TOKENS["encoder"] + 2, "type_vocab_size": 1},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": MAX_TOKENS["decoder"]},
        "gpt_neo": {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": MAX_TOKENS["decoder"],
        },
        "llama": wide
        | {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "tie_word_embeddings": True},
        "qwen2": wide | {"num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True},
        "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        | {"decoder_start_token_id": tokenizer.pad_token_id},
        "bart": both | {"decoder_start_token_id": tokenizer.eos_token_id},
        "marian": both | {"decoder_start_token_id": tokenizer.pad_token_id, "scale_embedding": True},
        "m2m_100": both | {"decoder_start_token_id": tokenizer.eos_token_id, "scale_embedding": True},
    }
    return tokens | own[architecture]


def _generation(architecture: str, tokenizer: Any, config: Any) -> dict[str, Any]:
    """What a generation_config.json of such a model says; short answers keep the tests fast."""
    settings: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if architecture in DECODERS:
        return settings | {"bos_token_id": tokenizer.bos_token_id}
    settings |= {"max_length": 20, "decoder_start_token_id": config.decoder_start_token_id}
    if architecture == "bart":
        settings |= {"forced_eos_token_id": tokenizer.eos_token_id, "no_repeat_ngram_size": 3}
    if architecture == "marian":
        settings |= {"bad_words_ids": [[tokenizer.pad_token_id]], "forced_eos_token_id": tokenizer.eos_token_id}
    return settings


def randomize(model: Any) -> None:
    """Weights as training leaves them, roughly: every layer moves the residual stream, logits have unit scale."""
    import torch
    from torch import nn

    tied = model.get_output_embeddings()
    t5 = model.config.model_type == "t5"
    for module in model.modules():
        if module is tied:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                nn.init.normal_(parameter, std=1.0 if t5 else 0.25 if tied else 0.4)
            elif parameter.dim() > 1:
                fan_in = parameter.shape[0] if type(module).__name__ == "Conv1D" else parameter.shape[-1]
                nn.init.normal_(parameter, std=2.0 / fan_in**0.5)
            elif name == "bias":
                nn.init.normal_(parameter, std=0.1)
            else:  # norms, with mixed signs: else tied embeddings make every token predict itself
                signs = torch.randint(0, 2, parameter.shape) * 2.0 - 1.0
                parameter.data = signs * torch.normal(1.0, 0.1, parameter.shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoder_attn.out_proj" in name:  # the source must not drown what was decoded so far
                parameter.mul_(0.4)
        if t5:  # it does not divide attention scores by the root of the head's width
            for name, parameter in model.named_parameters():
                if name.endswith("Attention.q.weight"):
                    parameter.div_(model.config.d_kv**0.5)
        if tied is not None and model.config.eos_token_id is not None:  # so that some answers end by themselves
            tied.weight[model.config.eos_token_id].mul_(1.6)


def _balance(model: Any, tokenizer: Any) -> None:
    """Centre and scale the head's outputs over the corpus, so that no label wins everywhere."""
    import torch
    from torch import nn

    *_, head = (module for module in model.modules() if isinstance(module, nn.Linear))
    seen = []
    hook = head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.flatten(0, -2)))
    with torch.no_grad():
        for text in CORPUS:
            model(**tokenizer(text, return_tensors="pt"))
        outputs = torch.cat(seen)
        mean, std = outputs.mean(0), outputs.std(0)
        head.bias.sub_(mean).div_(std)
        head.weight.div_(std[:, None])
    hook.remove()


# --- tokenizers ---


def tokenizer_of(architecture: str) -> Any:
    """The tokenizer of an architecture's checkpoints."""
    kinds: Mapping[str, Callable[[], Any]] = {
        "bert": lambda: _wordpiece("BertTokenizerFast", lowercase=True),
        "distilbert": lambda: _wordpiece("DistilBertTokenizerFast", lowercase=False),
        "electra": lambda: _wordpiece("ElectraTokenizerFast", lowercase=False),
        "roberta": lambda: _byte_level("RobertaTokenizerFast", ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), 128),
        "bart": lambda: _byte_level("BartTokenizerFast", ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), 128),
        "gpt2": lambda: _byte_level("GPT2TokenizerFast", ("<|endoftext|>",), 256, pad_token="<|endoftext|>"),
        "gpt_neo": lambda: _byte_level("GPT2TokenizerFast", ("<|endoftext|>",), 256, pad_token="<|endoftext|>"),
        "qwen2": _qwen2,
        "llama": _llama,
        "albert": _albert,
        "deberta-v2": _deberta,
        "xlm-roberta": _xlm_roberta,
        "t5": _t5,
        "marian": _marian,
        "m2m_100": _m2m_100,
    }
    return kinds[architecture]()


@contextmanager
def _scratch() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(folder)


def _wordpiece(name: str, *, lowercase: bool) -> Any:
    import tokenizers
    import transformers

    trained = tokenizers.BertWordPieceTokenizer(lowercase=lowercase)
    words = [word for text in CORPUS for word, _ in _words(trained, text)]
    # The trainer would number them in the order of a hash table, another one in every process, and ties in what it
    # merges go by number: the vocabulary, and with it every answer of the checkpoint, would be another one each time.
    inner = sorted({f"##{character}" for word in words for character in word[1:]})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *inner]
    trained.train_from_iterator(CORPUS, vocab_size=500, min_frequency=1, special_tokens=special, show_progress=False)
    with _scratch() as folder:
        (path,) = trained.save_model(str(folder))
        cls = getattr(transformers, name)
        return cls(vocab_file=path, do_lower_case=lowercase, model_max_length=MAX_TOKENS["encoder"])


def _words(tokenizer: Any, text: str) -> Any:
    """The words of a text as a tokenizer that is not trained yet sees them, with their places."""
    return tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))


def _byte_level(name: str, special: tuple[str, ...], max_tokens: int, **settings: Any) -> Any:
    import tokenizers
    import transformers

    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=500, special_tokens=list(special), show_progress=False)
    with _scratch() as folder:
        vocab, merges = trained.save_model(str(folder))
        return getattr(transformers, name)(vocab, merges, model_max_length=max_tokens, **settings)


def _qwen2() -> Any:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer = _byte_level("Qwen2TokenizerFast", special, 256, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = _CHATML
    return tokenizer


def _llama() -> Any:
    from transformers import LlamaTokenizerFast

    with _scratch() as folder:
        path = _sentencepiece(folder / "tokenizer.model", model_type="bpe", vocab_size=700, byte_fallback=True)
        tokenizer = LlamaTokenizerFast(vocab_file=str(path), pad_token="</s>", model_max_length=256)
    tokenizer.chat_template = _LLAMA_CHAT
    return tokenizer


def _albert() -> Any:
    from transformers import AlbertTokenizerFast

    with _scratch() as folder:
        path = _sentencepiece(
            folder / "spiece.model",
            pad_id=0,
            pad_piece="<pad>",
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            control_symbols="[CLS],[SEP],[MASK]",
        )
        return AlbertTokenizerFast(vocab_file=str(path), model_max_length=MAX_TOKENS["encoder"])


def _deberta() -> Any:
    from transformers import DebertaV2TokenizerFast

    pieces: dict[str, Any] = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    with _scratch() as folder:
        path = _sentencepiece(folder / "spm.model", pad_id=0, bos_id=1, eos_id=2, unk_id=3, **pieces)
        return DebertaV2TokenizerFast(vocab_file=str(path), model_max_length=MAX_TOKENS["encoder"])


def _xlm_roberta() -> Any:
    from transformers import XLMRobertaTokenizerFast

    with _scratch() as folder:
        path = _sentencepiece(folder / "sentencepiece.bpe.model")
        return XLMRobertaTokenizerFast(vocab_file=str(path), model_max_length=MAX_TOKENS["encoder"])


def _t5() -> Any:
    from transformers import T5TokenizerFast

    with _scratch() as folder:
        path = _sentencepiece(folder / "spiece.model", pad_id=0, pad_piece="<pad>", eos_id=1, unk_id=2, bos_id=-1)
        return T5TokenizerFast(vocab_file=str(path), extra_ids=10, model_max_length=128)


def _marian() -> Any:
    """As Opus-MT ships it: two SentencePiece models, one vocabulary of both with `<pad>` at its end."""
    from transformers import MarianTokenizer

    with _scratch() as folder:
        source = _sentencepiece(folder / "source.spm", vocab_size=400, character_coverage=0.995)
        target = _sentencepiece(folder / "target.spm", vocab_size=450)
        pieces = dict.fromkeys(["</s>", "<unk>", *_pieces(source), *_pieces(target), "<pad>"])
        vocab = folder / "vocab.json"
        vocab.write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}), encoding="utf-8")
        files = {"source_spm": str(source), "target_spm": str(target), "vocab": str(vocab)}
        return MarianTokenizer(**files, source_lang="en", target_lang="fr", model_max_length=128)


def _m2m_100() -> Any:
    """As M2M100 ships it: one SentencePiece model, a vocabulary in fairseq's order, language tokens after it."""
    from transformers import M2M100Tokenizer
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

    with _scratch() as folder:
        model = _sentencepiece(folder / "sentencepiece.bpe.model", model_type="bpe", vocab_size=500)
        pieces = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *_pieces(model)])
        vocab = folder / "vocab.json"
        vocab.write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}), encoding="utf-8")
        languages = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
        return M2M100Tokenizer(
            str(vocab),
            str(model),
            src_lang="en",
            tgt_lang="fr",
            model_max_length=128,
            additional_special_tokens=languages,
        )


def _sentencepiece(path: Path, vocab_size: int = 450, **settings: Any) -> Path:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    path.write_bytes(model.getvalue())
    return path


def _pieces(model: Path) -> Iterator[str]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return (
        processor.id_to_piece(index) for index in range(processor.get_piece_size()) if not processor.is_control(index)
    )
