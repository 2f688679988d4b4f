"""The next token from the best ones alone is the one that all logits give, for the same seed."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import DecodeRequest, Step
from pipelines.generation.decoding.sequence_state import SequenceState, advance, advance_rows
from pipelines.generation.slots.device.logits import DeviceLogits, LogitsReader
from pipelines.runtime.session_config import SessionConfig

VOCAB, ROWS = 3000, 12


class CountedLogits(DeviceLogits):
    """Logits in CPU memory, read as a device's; it counts the rows that are copied whole."""

    def __init__(self, reader: LogitsReader, values: np.ndarray) -> None:
        self._values = values  # keeps the memory
        super().__init__(reader, values.ctypes.data, len(values), range(len(values)))
        self.whole = 0

    def rows(self, wanted: Sequence[int]) -> np.ndarray:
        self.whole += len(wanted)
        return super().rows(wanted)


@pytest.fixture(scope="module")
def reader() -> LogitsReader:
    return LogitsReader(VOCAB, SessionConfig())


def logits(random: Random, rows: int = ROWS, steep: float = 1.0, vocab: int = VOCAB) -> np.ndarray:
    """As fp16 models make them: among thousands of values many are equal."""
    values = np.random.default_rng(random.getrandbits(32)).normal(size=(rows, vocab)) * random.choice([0.5, 3, 8])
    return (values * steep).astype(np.float16).astype(np.float32)


def request(random: Random, vocab: int = VOCAB, **options: Any) -> DecodeRequest:
    prompt = tuple(random.randrange(vocab) for _ in range(20))
    config = GenerationConfig(max_new_tokens=50, **options).for_prompt(len(prompt), None)
    logprobs = random.random() < 0.3
    return DecodeRequest(prompt, config, seed=random.getrandbits(32), logprobs=logprobs, top_tokens=5 * logprobs)


def compared(requests: Sequence[DecodeRequest], values: Sequence[np.ndarray], reader: LogitsReader) -> int:
    """Decode from the best tokens and from all; returns how many rows were copied whole."""
    ours, oracle = ([SequenceState(one) for one in requests] for _ in range(2))
    whole = 0
    for step in values:
        device = CountedLogits(reader, step.copy())
        order = list(np.random.default_rng(len(requests)).permutation(len(requests)))
        found = advance_rows(ours, device, order)
        expected = advance(oracle, step[order])
        whole += device.whole
        for one, other in zip(found, expected, strict=True):
            assert isinstance(one, Step)
            assert isinstance(other, Step)
            assert one.token_id == other.token_id
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [token for token, _ in one.top] == [token for token, _ in other.top]
            assert [logprob for _, logprob in one.top] == pytest.approx([logprob for _, logprob in other.top], abs=1e-4)
    return whole


DECIDED: tuple[tuple[dict[str, Any], float], ...] = (
    # options, and the largest share of rows that may be copied whole
    ({}, 0.0),
    ({"repetition_penalty": 1.3}, 0.02),
    ({"no_repeat_ngram_size": 1, "bad_words_ids": ((7,), (8, 9))}, 0.02),
    ({"presence_penalty": 1.0, "count_penalty": 0.5, "frequency_penalty": 0.4}, 0.02),
    ({"do_sample": True}, 0.2),  # ties at the fiftieth token
    ({"do_sample": True, "top_k": 5, "temperature": 0.7}, 0.2),
    ({"do_sample": True, "top_k": 20, "top_p": 0.8, "min_p": 0.01, "typical_p": 0.9}, 0.2),
    ({"do_sample": True, "top_k": 10, "repetition_penalty": 1.2, "min_new_tokens": 3, "eos_token_id": (1, 2)}, 0.2),
)


@pytest.mark.parametrize(("options", "share"), DECIDED)
def test_a_few_tokens_decide_what_all_do(options: dict[str, Any], share: float, reader: LogitsReader) -> None:
    random = Random(str(options))
    steps = 25
    requests = [request(random, **options) for _ in range(ROWS)]
    assert compared(requests, [logits(random) for _ in range(steps)], reader) <= share * steps * ROWS


def test_a_nucleus_is_found_among_the_best_where_it_is_small(reader: LogitsReader) -> None:
    random, steps = Random(3), 25
    options: tuple[dict[str, Any], ...] = (
        {"top_p": 0.9},
        {"top_p": 0.5, "temperature": 0.6},
        {"top_p": 0.99, "temperature": 0.8},
    )
    requests = [request(random, do_sample=True, top_k=0, **options[row % 3]) for row in range(ROWS)]
    values = [logits(random, steep=4) for _ in range(steps)]
    assert compared(requests, values, reader) < 0.6 * steps * ROWS


@pytest.mark.parametrize("vocab", [255, 256, 3000, 50257])
def test_tokens_are_drawn_from_all_without_copying_them(vocab: int) -> None:
    """The host's own draw but for rounding, over many seeds, temperatures and flat and steep distributions."""
    reader, random, steps = LogitsReader(vocab, SessionConfig()), Random(vocab), 40
    temperatures = (1.0, 0.6, 1.7)
    requests = [
        replace(
            request(random, vocab, do_sample=True, top_k=0, temperature=temperatures[row % 3]),
            logprobs=False,
            top_tokens=0,
        )
        for row in range(ROWS)
    ]
    values = [logits(random, vocab=vocab) for _ in range(steps)]
    assert compared(requests, values, reader) < 0.15 * steps * ROWS


def test_a_share_at_the_end_of_a_token_is_decided_by_the_host(reader: LogitsReader) -> None:
    """Four equal tokens: shares of a quarter lie where rounding decides."""
    values = np.full((3, VOCAB), -np.inf, np.float32)
    values[:, [5, 6, 300, 2999]] = 1.0
    device = CountedLogits(reader, values)
    assert device.draw([0, 1, 2], [1.0] * 3, [0.25, 0.25 + 1e-7, 0.3]) == [None, None, 6]
    assert device.draw([0, 1, 2], [1.0] * 3, [0.1, 0.7, 0.99]) == [5, 300, 2999]


def test_logprobs_of_a_drawn_token_are_read_from_the_row(reader: LogitsReader) -> None:
    random = Random(4)
    requests = [replace(request(random, do_sample=True, top_k=0), logprobs=True, top_tokens=2) for _ in range(ROWS)]
    assert compared(requests, [logits(random) for _ in range(3)], reader) == 3 * ROWS


UNDECIDED: tuple[dict[str, Any], ...] = (
    {"do_sample": True, "top_k": 0, "min_p": 0.01},
    {"do_sample": True, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.2},  # the mass changes
    {"do_sample": True, "top_k": 2000},
    {"repetition_penalty": 0.8},  # raises what was seen
    {"presence_penalty": -1.0},
    {"forced_eos_token_id": (3,), "eos_token_id": (3,)},
)


@pytest.mark.parametrize("options", UNDECIDED)
def test_what_depends_on_more_copies_the_row(options: dict[str, Any], reader: LogitsReader) -> None:
    random = Random(str(options))
    requests = [request(random, **options) for _ in range(ROWS)]
    assert compared(requests, [logits(random) for _ in range(5)], reader) == 5 * ROWS


def test_requests_of_all_kinds_share_a_step(reader: LogitsReader) -> None:
    random = Random(9)
    kinds = [options for options, _ in DECIDED] + list(UNDECIDED)
    for _ in range(20):
        requests = [request(random, **random.choice(kinds)) for _ in range(ROWS)]
        compared(requests, [logits(random) for _ in range(10)], reader)


def test_ties_are_broken_as_among_all_tokens(reader: LogitsReader) -> None:
    """Whole rows of equal logits, and rows of two values."""
    flat = np.zeros((4, VOCAB), np.float32)
    flat[2:, ::7] = 1.0
    random = Random(1)
    options: tuple[dict[str, Any], ...] = ({}, {"do_sample": True, "top_k": 5}, {}, {"do_sample": True, "top_k": 5})
    requests = [request(random, **one) for one in options]
    compared(requests, [flat.copy() for _ in range(5)], reader)


def test_a_token_that_is_lowered_to_the_others_does_not_go_before_them(reader: LogitsReader) -> None:
    """Token 2900 is the best and was seen, as 0 to 63 were: then 64, one of many equal ones, is the first of them."""
    values = np.ones((1, VOCAB), np.float32)
    values[0, 2900] = 2.0
    config = GenerationConfig(max_new_tokens=5, repetition_penalty=2.0).for_prompt(65, None)
    asked = DecodeRequest((*range(64), 2900), config)
    (step,) = advance_rows([SequenceState(asked)], CountedLogits(reader, values), [0])
    assert isinstance(step, Step)
    assert step.token_id == 64


def test_logits_that_are_not_finite_fail_as_they_do_elsewhere(reader: LogitsReader) -> None:
    random = Random(2)
    values = logits(random, rows=3)
    values[0, 5], values[1, 6], values[2] = np.nan, np.inf, -np.inf
    requests = [replace(request(random), logprobs=False, top_tokens=0) for _ in range(3)]
    found = advance_rows([SequenceState(one) for one in requests], CountedLogits(reader, values.copy()), range(3))
    expected = advance([SequenceState(one) for one in requests], values.copy())
    assert [str(one) for one in found] == [str(one) for one in expected]
    assert all(isinstance(one, Exception) for one in found)
