"""Tokenizer: tokenizer.json for every checkpoint, the settings that it does not hold, and the prompt templates."""

import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.checkpoint import ResolvedCheckpoint, max_length
from checkpoints.heads import DECODER
from export.parity.samples import ODD_TEXTS, TEXTS
from export.tokenizers.pieces import PieceTokenizer, build, surround
from pipelines.errors import CheckpointError
from pipelines.runtime.artifact import TokenizerSettings
from pipelines.tasks import TASKS

_LONGEST_SOURCE = 2048
"""Tokens of a source, where the model itself has no limit: attention takes memory by their square."""


@dataclass(frozen=True)
class ExportedTokenizer:
    """`settings` for the manifest. Ids from `outside` on stand for the unknown token (see pieces), unless None."""

    settings: TokenizerSettings
    outside: int | None


def write_tokenizer(tokenizer: Any, model: Any, folder: Path) -> ExportedTokenizer:
    """Write tokenizer.json into `folder`. Raises CheckpointError where no fast tokenizer equals the slow one."""
    outside = None
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
    else:
        fast = convert_slow(tokenizer)
        prove_equal(fast, tokenizer)
        backend, outside = fast.backend, fast.outside
    backend.save(str(folder / "tokenizer.json"))
    settings = TokenizerSettings(
        max_length=(length := max_length(tokenizer, model)),
        pad_token_id=next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        cls_token_id=tokenizer.cls_token_id,
        unk_token_id=tokenizer.unk_token_id,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        clean_up_tokenization_spaces=bool(tokenizer.clean_up_tokenization_spaces),
        token_type_ids="token_type_ids" in tokenizer.model_input_names,
        languages=(languages := _languages(tokenizer)),
        language_last=bool(languages) and _is_last(tokenizer, set(languages.values())),
        longest=max(length, _LONGEST_SOURCE) if _reads_any_length(model.config) else None,
    )
    return ExportedTokenizer(settings, outside)


def _languages(tokenizer: Any) -> dict[str, int]:
    """Language code -> token id, of multilingual translation models."""
    codes: dict[str, int] = dict(getattr(tokenizer, "lang_code_to_id", None) or {})
    if not codes and hasattr(tokenizer, "set_src_lang_special_tokens"):  # NLLB's is told by its list of codes
        known = getattr(sys.modules[type(tokenizer).__module__], "FAIRSEQ_LANGUAGE_CODES", ())
        ids = {code: tokenizer.convert_tokens_to_ids(code) for code in known}
        codes = {code: one for code, one in ids.items() if one not in (None, tokenizer.unk_token_id)}
    return codes


def _is_last(tokenizer: Any, languages: set[int]) -> bool:
    """Whether the language of a source stands after its text."""
    return tokenizer("a").input_ids[-1] in languages


def _reads_any_length(config: Any) -> bool:
    """Whether an encoder-decoder adds no positions to embeddings, but a bias by distance, which has no end."""
    return bool(config.is_encoder_decoder) and hasattr(config, "relative_attention_num_buckets")


def convert_slow(tokenizer: Any) -> PieceTokenizer:
    """A fast tokenizer for a slow one. Raises CheckpointError for kinds other than Marian's and M2M100's."""
    name = type(tokenizer).__name__
    if name == "MarianTokenizer" and not tokenizer.separate_vocabs:
        codes = tokenizer.supported_language_codes
        fast = build(
            Path(tokenizer.spm_files[0]),
            tokenizer.encoder,
            special=[token for token in tokenizer.all_special_tokens if token not in codes],
            split=codes,
            unknown=tokenizer.unk_token,
        )
        surround(fast.backend, [], [tokenizer.eos_token], tokenizer.encoder)
        return fast
    if name == "M2M100Tokenizer":
        ids = tokenizer.encoder | tokenizer.lang_token_to_id
        # Fairseq padded the vocabulary with these. Ids must have no gaps; no text has them, and decoding skips them.
        unused = {f"\uffff{index}": len(ids) + index for index in range(tokenizer.num_madeup_words)}
        ids |= unused
        special = [*tokenizer.all_special_tokens, *unused]
        fast = build(Path(tokenizer.spm_file), ids, special=special, split=[], unknown=tokenizer.unk_token)
        surround(fast.backend, [tokenizer.get_lang_token(tokenizer.src_lang)], [tokenizer.eos_token], ids)
        return fast
    raise CheckpointError(
        f"{name} has no fast version in transformers; slow tokenizers are converted for Marian (with one vocabulary "
        "for both languages) and M2M100"
    )


def prove_equal(fast: PieceTokenizer, slow: Any) -> None:
    """Raises CheckpointError naming the first text that they encode, or ids that they decode, differently."""
    texts = [*TEXTS, *ODD_TEXTS, " ".join(TEXTS)]
    texts += [f"{code} {text}" for code in getattr(slow, "supported_language_codes", [])[:5] for text in TEXTS[:3]]
    for text in texts:
        expected = slow(text).input_ids
        got = [slow.unk_token_id if fast.outside and i >= fast.outside else i for i in fast.backend.encode(text).ids]
        if got != expected:
            raise CheckpointError(f"no fast tokenizer equals {type(slow).__name__}: it encodes {text!r} differently")
    rng = random.Random(0)
    known = range(len(slow.get_vocab()))
    sequences = [slow(text).input_ids for text in texts]
    sequences += [rng.choices(known, k=length) for length in np.tile([1, 2, 5, 20], 25)]
    for ids in sequences:
        if fast.backend.decode(ids) != slow.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False):
            raise CheckpointError(f"no fast tokenizer equals {type(slow).__name__}: it decodes {ids} differently")


def prompt_template(checkpoint: ResolvedCheckpoint, task: str, tokenizer: Any) -> str | None:
    """The task's instruction in the model's chat template: `{text}` is the input, and no special token is missing.

    None where the model does the task without an instruction. Raises CheckpointError for a decoder that was not trained
    to follow instructions.
    """
    instruction = TASKS[task].instruction
    if instruction is None or checkpoint.config.is_encoder_decoder:
        return None
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{checkpoint.name} cannot do {task}: it is a decoder without a chat template; "
            "use an instruct model, or an encoder-decoder"
        )
    message = {"role": "user", "content": instruction}
    template = str(tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
    if "{text}" not in template:
        raise CheckpointError(f"the chat template of {checkpoint.name} drops the user's message")
    return template


def chat_template(task: str, tokenizer: Any) -> str | None:
    """The model's chat template, in Jinja, where clients may chat with the artifact; None where it has none."""
    if TASKS[task].head.auto_class != DECODER:
        return None
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name; transformers takes this one without tools
        template = template.get("default")
    return template or None
