"""Adapters beside their base: answers are PEFT's, and no row depends on the adapters of its neighbours."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import Answer, DecodeRequest
from pipelines.generation.open import open_engine, open_stack
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.engine import SlotEngine
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session_config import SessionConfig
from tests.lora import adapted_model

NEW_TOKENS = 12
PROMPTS = (tuple(range(5, 25)), (7, 8, 9), tuple(range(40, 29, -1)), (11, 12, 13, 14, 15, 16, 17))


def engine_of(folder: Path, adapters: Mapping[str, Path] | None = None, threads: int = 1, **slots: Any) -> SlotEngine:
    artifact, config = ModelArtifact.open(folder), SessionConfig(threads=threads)
    chosen = SlotsConfig(**{"slots": 4, "max_tokens": 100, "prefill_chunk_tokens": 8} | slots)
    engine = open_engine(artifact, config, chosen, open_stack(artifact, config, adapters) if adapters else None)
    assert isinstance(engine, SlotEngine)
    return engine


def request(prompt: Sequence[int], adapter: int = 0, new_tokens: int = NEW_TOKENS, **config: Any) -> DecodeRequest:
    resolved = GenerationConfig(max_new_tokens=new_tokens, **config).for_prompt(len(prompt), 100)
    return DecodeRequest(tuple(prompt), resolved, logprobs=True, adapter=adapter)


def tokens(answer: Answer) -> list[int]:
    return answer.generations[0].token_ids


def generated(model: Any, prompt: Sequence[int]) -> list[int]:
    """What PEFT's model writes, greedily, whatever token it comes to."""
    import torch

    ids = torch.tensor([list(prompt)])
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        answer = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS
        )
    found: list[int] = answer[0, len(prompt) :].tolist()
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "gpt_neo"])
def test_an_adapter_answers_as_peft_does(
    exported: Callable[..., Path], checkpoint: Callable[..., Path], adapter: Callable[..., Path], architecture: str
) -> None:
    narrow, wide = {"lora_alpha": 4}, {"r": 24, "use_rslora": True}
    folders = {"narrow": adapter(architecture, 1, **narrow), "wide": adapter(architecture, 2, **wide)}
    asked = [request(prompt, number) for number in (1, 2) for prompt in PROMPTS]
    answers = engine_of(exported(architecture, "text-generation"), folders).generate_all(asked)
    models = [adapted_model(checkpoint(architecture, "text-generation"), one) for one in folders.values()]
    for one, answer in zip(asked, answers, strict=True):
        assert tokens(answer) == generated(models[one.adapter - 1], one.prompt)


def test_patterns_of_ranks_and_scales_and_layers_that_are_left_out_are_pefts(
    exported: Callable[..., Path], checkpoint: Callable[..., Path], adapter: Callable[..., Path]
) -> None:
    some = {"target_modules": ["q_proj", "v_proj", "up_proj"], "layers_to_transform": [1]}
    patterns = {"rank_pattern": {"v_proj": 7}, "alpha_pattern": {"layers.1.self_attn.v_proj": 40}}
    folder = adapter("llama", 3, **some, **patterns)
    answers = engine_of(exported("llama", "text-generation"), {"one": folder}).generate_all(
        [request(prompt, 1) for prompt in PROMPTS]
    )
    model = adapted_model(checkpoint("llama", "text-generation"), folder)
    assert [tokens(one) for one in answers] == [generated(model, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("threads", [1, 2])
def test_answers_are_the_same_alone_and_beside_rows_of_other_adapters(
    exported: Callable[..., Path], adapter: Callable[..., Path], precision: str, threads: int
) -> None:
    folders = {name: adapter("llama", seed, r=rank) for name, seed, rank in (("a", 1, 4), ("b", 2, 24), ("c", 3, 40))}
    folder = exported("llama", "text-generation", precision)
    plain = engine_of(folder, threads=threads).generate_all([request(one) for one in PROMPTS])
    alone, beside = (engine_of(folder, folders, threads) for _ in range(2))
    mixed = [request(prompt, number) for prompt in PROMPTS for number in (3, 0, 1, 2)]
    beside.release_memory()
    together = beside.generate_all(mixed)
    beside.release_memory()
    assert tokens(beside.generate(mixed[0])) == tokens(together[0])
    assert together == [alone.generate(one) for one in mixed]
    assert [one for one, asked in zip(together, mixed, strict=True) if not asked.adapter] == plain
    assert len({tuple(tokens(one)) for one in together[:4]}) == 4


def test_a_prefix_is_reused_by_the_same_adapter_only(
    exported: Callable[..., Path], adapter: Callable[..., Path]
) -> None:
    folders = {"a": adapter("llama", 1), "b": adapter("llama", 2)}
    engine = engine_of(exported("llama", "text-generation"), folders)
    prompt = PROMPTS[0]
    cached = {
        number: engine.generate(request(prompt, number)).generations[0].steps[0].cached_tokens for number in (1, 2, 0)
    }
    assert cached == {1: 0, 2: 0, 0: 0}
    for number in (1, 2, 0):
        assert engine.generate(request(prompt, number)).generations[0].steps[0].cached_tokens > 0


def test_beams_pauses_and_moves_keep_the_adapter_of_a_sequence(
    exported: Callable[..., Path], adapter: Callable[..., Path]
) -> None:
    folder, folders = exported("llama", "text-generation"), {"a": adapter("llama", 1), "b": adapter("llama", 2)}
    alone = engine_of(folder, folders)
    asked = [request(prompt, number, 30) for prompt in PROMPTS for number in (1, 2, 0)]
    asked += [request(PROMPTS[0], number, num_beams=3) for number in (2, 1)]
    expected = [alone.generate(one) for one in asked]
    crowded = engine_of(folder, folders, turn_tokens=3)
    answers: dict[int, Answer] = {}

    def ask(place: int) -> None:  # callers of their own: each has a fair share, so that sequences are paused
        answers[place] = crowded.generate(asked[place])

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, one in enumerate(expected):
        assert [g.token_ids for g in answers[place].generations] == [g.token_ids for g in one.generations]
