"""Scores after processors and warpers against transformers', and draws against the distribution they should follow."""

import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.logits import log_softmax, logits_processors
from pipelines.generation.decoding.sampling import Sampler, draw_each, top, warpers

VOCABULARY = 60
IDS = st.integers(0, VOCABULARY - 1)


@pytest.fixture(scope="module")
def model() -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=VOCABULARY, n_positions=64)
    return transformers.GPT2LMHeadModel(config)


def choices() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"max_length": st.integers(2, 12), "eos_token_id": st.lists(IDS, min_size=1, max_size=3, unique=True)},
        optional={
            "do_sample": st.just(True),
            "num_beams": st.integers(1, 3),
            "temperature": st.sampled_from([0.3, 0.7, 2.0]),
            "top_k": st.integers(0, VOCABULARY + 5),
            "top_p": st.sampled_from([0.1, 0.5, 0.9, 1.0]),
            "min_p": st.sampled_from([0.0, 0.05, 0.5, 1.0]),
            "typical_p": st.sampled_from([0.1, 0.5, 0.9]),
            "repetition_penalty": st.sampled_from([0.5, 1.3]),
            "no_repeat_ngram_size": st.integers(1, 4),
            "bad_words_ids": st.lists(st.lists(IDS, min_size=1, max_size=3), min_size=1, max_size=10),
            "min_length": st.integers(0, 12),
            "forced_bos_token_id": IDS,
            "forced_eos_token_id": st.lists(IDS, min_size=1, max_size=2),
            "suppress_tokens": st.lists(IDS, min_size=1, max_size=10),
            "begin_suppress_tokens": st.lists(IDS, min_size=1, max_size=10),
            "renormalize_logits": st.booleans(),
        },
    )


@given(chosen=choices(), prompt_tokens=st.integers(1, 5), rows=st.integers(1, 3), seed=st.integers(0, 10**6))
@example(
    chosen={"max_length": 7, "eos_token_id": [0], "do_sample": True, "top_p": 0.1, "forced_eos_token_id": [0]}
    | {"suppress_tokens": [0]},
    prompt_tokens=1,
    rows=1,
    seed=1,
)
@settings(max_examples=150)
def test_scores_are_processed_as_by_transformers(
    model: Any, chosen: dict[str, Any], prompt_tokens: int, rows: int, seed: int
) -> None:
    import torch
    import transformers

    # Two forced tokens are equally likely: which of them a warper keeps is arbitrary, as torch.sort is not stable.
    assume(len(chosen.get("forced_eos_token_id", [])) < 2 or not chosen.get("do_sample"))
    random = np.random.default_rng(seed)
    ids = random.integers(0, VOCABULARY // 4, (rows, int(random.integers(prompt_tokens, 12))))
    scores = (random.normal(size=(rows, VOCABULARY)) * 3).astype(np.float32)
    reference = transformers.GenerationConfig(**chosen)
    model._prepare_special_tokens(reference, device="cpu")
    theirs = model._get_logits_processor(reference, prompt_tokens, encoder_input_ids=torch.tensor(ids))
    expected = theirs(torch.tensor(ids), torch.tensor(scores)).numpy()

    tuples = {name: as_tuples(value) for name, value in chosen.items()}
    config = GenerationConfig(**tuples)
    for process in logits_processors(config, prompt_tokens):
        process(ids, scores)
    with np.errstate(invalid="ignore"):  # of no token left, which decoding refuses before it warps
        for warp in warpers(config):
            warp(scores)
        if config.renormalize_logits:
            scores = log_softmax(scores)
    np.testing.assert_array_equal(np.isneginf(scores), np.isneginf(expected))
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("spread", [0.3, 3.0, 8.0])  # hardly any token removed, and almost all
@pytest.mark.parametrize("chosen", [{"top_p": 0.9}, {"top_p": 0.3}, {"typical_p": 0.6}, {"min_p": 0.02}])
def test_scores_of_a_large_vocabulary_are_warped_as_by_transformers_too(
    model: Any, chosen: dict[str, Any], spread: float, beams: int
) -> None:
    import torch
    import transformers

    scores = (np.random.default_rng(5).normal(size=(2, 5000)) * spread).astype(np.float32)
    reference = transformers.GenerationConfig(do_sample=True, top_k=0, num_beams=beams, eos_token_id=1, **chosen)
    model._prepare_special_tokens(reference, device="cpu")
    theirs = model._get_logits_processor(reference, 1, encoder_input_ids=torch.tensor([[5]]))
    expected = theirs(torch.zeros((2, 1), dtype=torch.int64), torch.tensor(scores)).numpy()
    for warp in warpers(GenerationConfig(do_sample=True, top_k=0, num_beams=beams, eos_token_id=(1,), **chosen)):
        warp(scores)
    differing = np.isneginf(scores) != np.isneginf(expected)
    assert differing.sum() <= 1  # at the very edge, sums in another order may round otherwise
    np.testing.assert_allclose(scores[~differing], expected[~differing], rtol=1e-5)


@given(
    answer=st.lists(IDS, max_size=12),
    presence=st.sampled_from([-2.0, 0.0, 0.5]),
    count=st.sampled_from([-1.5, 0.0, 0.25, 2.0]),
)
def test_openais_penalties_are_of_the_tokens_of_the_answer_alone(
    answer: list[int], presence: float, count: float
) -> None:
    scores, prompt = np.zeros((1, VOCABULARY), np.float32), [1, 1, 2]
    config = GenerationConfig(presence_penalty=presence, count_penalty=count)
    for process in logits_processors(config, len(prompt)):
        process(np.asarray([[*prompt, *answer]]), scores)
    for token in range(VOCABULARY):
        times = answer.count(token)
        assert scores[0, token] == -presence * (times > 0) - count * times


@given(
    chosen=st.lists(
        st.fixed_dictionaries(
            {"top_k": st.integers(0, VOCABULARY + 5)},
            optional={
                "temperature": st.sampled_from([0.3, 2.0]),
                "top_p": st.sampled_from([0.1, 0.9]),
                "min_p": st.sampled_from([0.05, 0.5]),
                "typical_p": st.sampled_from([0.1, 0.9]),
            },
        ),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 10**6),
    coarse=st.booleans(),
    allowed=st.integers(1, VOCABULARY),
)
def test_a_row_is_drawn_among_others_as_it_is_alone(
    chosen: list[dict[str, Any]], seed: int, coarse: bool, allowed: int
) -> None:
    """Coarse scores have many equals, of which a top_k keeps all. A grammar may allow few tokens."""
    configs = [GenerationConfig(do_sample=True, **one) for one in chosen]
    scores = np.random.default_rng(seed).normal(size=(len(configs), VOCABULARY)).astype(np.float32) * 3
    scores = np.round(scores) if coarse else scores
    scores[0, np.random.default_rng(seed).permutation(VOCABULARY)[allowed:]] = -np.inf
    alone = []
    for row, config in enumerate(configs):
        left = scores[row : row + 1].copy()
        for warp in warpers(config):
            warp(left)
        alone.append(Sampler(seed, row).draw(left[0]))
    samplers = [Sampler(seed, row) for row in range(len(configs))]
    assert draw_each(scores, samplers, [*map(warpers, configs)], [config.top_k for config in configs]) == alone


def as_tuples(value: Any) -> Any:
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def test_draws_follow_the_softmax_of_the_scores() -> None:
    scores = np.log(np.asarray([0.5, 0.3, 0.15, 0.05, 0.0]) + 1e-30).astype(np.float32)
    sampler = Sampler(seed=7)
    counts = np.bincount([sampler.draw(scores) for _ in range(20_000)], minlength=5)
    assert counts[4] == 0
    np.testing.assert_allclose(counts / 20_000, [0.5, 0.3, 0.15, 0.05, 0.0], atol=0.01)


def test_distinct_draws_follow_the_softmax_without_putting_back() -> None:
    probabilities = np.asarray([0.5, 0.3, 0.15, 0.05])
    sampler = Sampler(seed=7)
    pairs = [tuple(sampler.draw_distinct(np.log(probabilities), 2)) for _ in range(20_000)]
    for first in range(4):
        for second in range(4):
            expected = probabilities[first] * probabilities[second] / (1 - probabilities[first])
            share = pairs.count((first, second)) / len(pairs)
            assert share == pytest.approx(0.0 if first == second else expected, abs=0.01)


@given(
    scores=st.lists(st.integers(-5, 5), min_size=1, max_size=30),
    count=st.integers(0, 31),
)
def test_the_top_is_a_stable_sort(scores: list[int], count: int) -> None:
    array = np.asarray(scores, np.float32)
    assert top(array, count).tolist() == sorted(range(len(scores)), key=lambda index: -scores[index])[:count]


@given(
    words=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=60),
    rows=st.integers(1, 3),
    length=st.integers(1, 8),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=150)
def test_words_of_every_length_are_forbidden_as_by_transformers(
    words: list[list[int]], rows: int, length: int, seed: int
) -> None:
    """Of four tokens, so that many words are begun at once."""
    import torch
    import transformers

    random = np.random.default_rng(seed)
    ids, scores = random.integers(0, 4, (rows, length)), random.normal(size=(rows, 8)).astype(np.float32)
    theirs = transformers.NoBadWordsLogitsProcessor(words)(torch.from_numpy(ids), torch.from_numpy(scores.copy()))

    config = GenerationConfig(max_length=20, bad_words_ids=tuple(map(tuple, words)))
    (process,) = logits_processors(config, 1)
    process(ids, scores)

    assert np.array_equal(scores, theirs.numpy())


def test_a_thousand_forbidden_words_cost_a_step_no_more_than_a_few_array_operations() -> None:
    random = np.random.default_rng(0)
    ids, scores = random.integers(0, 49_152, (1, 300)), np.zeros((1, 49_152), np.float32)
    words = tuple(map(tuple, random.integers(0, 49_152, (1024, 8)).tolist()))
    (process,) = logits_processors(GenerationConfig(max_length=400, bad_words_ids=words), 1)
    process(ids, scores)

    def fastest_s(step: Callable[[], object]) -> float:
        return min(timeit.repeat(step, number=5, repeat=20)) / 5

    # All of the 7,168 tokens of their beginnings are compared: about as much work as a softmax of the scores.
    assert fastest_s(lambda: process(ids, scores)) < 2 * fastest_s(lambda: log_softmax(scores))
