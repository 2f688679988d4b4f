"""CTranslate2: int8 weights, a decoder-only model or an encoder-decoder, one worker on all threads."""

import json
from pathlib import Path

import ctranslate2
from ctranslate2.converters import TransformersConverter
from lines import CHECKPOINT, THREADS, TOKENIZER, made, serve
from tokenizers import Tokenizer


def convert(folder: Path) -> None:
    TransformersConverter(str(CHECKPOINT)).convert(str(folder), quantization="int8", force=True)


folder = str(made(convert))
tokenizer = Tokenizer.from_file(str(TOKENIZER))
translates = json.loads((CHECKPOINT / "config.json").read_text()).get("is_encoder_decoder", False)
kind = ctranslate2.Translator if translates else ctranslate2.Generator
model = kind(folder, device="cpu", compute_type="int8", inter_threads=1, intra_threads=THREADS)


def write(prompts: list[list[int]], new_tokens: int, beams: int, exact: bool) -> list[list[int]]:
    rows = [[tokenizer.id_to_token(one) for one in prompt] for prompt in prompts]
    least = new_tokens if exact else 0
    if translates:
        results = model.translate_batch(
            rows, beam_size=beams, max_decoding_length=new_tokens, min_decoding_length=least
        )
        return [[tokenizer.token_to_id(token) for token in one.hypotheses[0]] for one in results]
    results = model.generate_batch(
        rows, beam_size=beams, max_length=new_tokens, min_length=least, sampling_topk=1, include_prompt_in_result=False
    )
    return [list(one.sequences_ids[0]) for one in results]


if __name__ == "__main__":
    serve(write)
