"""What vLLM's clients send besides OpenAI's parameters, with OpenAI's own client; the oracle is transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from deployments.task_server import TaskServer
from tests.deployments.asking import post
from tests.deployments.protocols.test_openai import CHAT, MESSAGES, TASK, client_of
from tests.deployments.test_task_server import started

COMPLETIONS = "/v1/completions"
PROMPT = "The river flows"


@pytest.fixture(scope="module")
def oracle(checkpoint: Callable[..., Path]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = checkpoint("qwen2", TASK)
    return AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval()


@pytest.fixture(scope="module")
def server(exported: Callable[..., Path]) -> TaskServer:
    return started(TASK, exported("qwen2", TASK), slots={"slots": 4, "max_tokens": 120, "prefill_chunk_tokens": 16})


def theirs(oracle: tuple[Any, Any], tokens: int, **settings: Any) -> list[int]:
    """The ids of transformers' own greedy continuation."""
    tokenizer, model = oracle
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    new: list[int] = model.generate(ids, max_new_tokens=tokens, do_sample=False, **settings)[0, ids.shape[1] :].tolist()
    return new


def ours(server: TaskServer, tokens: int, **extra: Any) -> Any:
    async def scenario(client: AsyncOpenAI) -> Any:
        given: dict[str, Any] = {"model": "m", "prompt": PROMPT, "temperature": 0, "max_tokens": tokens}
        return (await client.completions.create(**given, extra_body=extra)).choices[0]

    return client_of(server, scenario)


def test_a_logit_bias_equals_transformers_sequence_bias(server: TaskServer, oracle: tuple[Any, Any]) -> None:
    free = theirs(oracle, 12)
    bias = {free[0]: -100.0, free[3]: -1.5, 300: 2.5, 301: 1.25}
    expected = theirs(oracle, 12, sequence_bias={(token,): value for token, value in bias.items()})

    choice = ours(server, 12, logit_bias={str(token): value for token, value in bias.items()})

    assert expected != free
    assert choice.text == oracle[0].decode(expected, skip_special_tokens=True)


def test_an_answer_ends_with_a_stop_token_and_not_before_its_least_length(
    server: TaskServer, oracle: tuple[Any, Any]
) -> None:
    free = theirs(oracle, 20)
    ending = free[5]
    eos = [oracle[1].generation_config.eos_token_id, ending]

    stopped = ours(server, 20, stop_token_ids=[ending])
    later = ours(server, 20, stop_token_ids=[ending], min_tokens=9)

    assert stopped.text == oracle[0].decode(theirs(oracle, 20, eos_token_id=eos), skip_special_tokens=True)
    assert stopped.finish_reason == "stop"
    expected = theirs(oracle, 20, eos_token_id=eos, min_new_tokens=9)
    assert later.text == oracle[0].decode(expected, skip_special_tokens=True)
    assert len(expected) >= 9


def test_an_ignored_end_is_a_token_like_any_other(server: TaskServer, oracle: tuple[Any, Any]) -> None:
    end = {str(oracle[1].generation_config.eos_token_id): 100}

    ended = post(server, {"prompt": PROMPT, "max_tokens": 7, "logit_bias": end}, COMPLETIONS).json()
    ignored = post(
        server, {"prompt": PROMPT, "max_tokens": 7, "logit_bias": end, "ignore_eos": True}, COMPLETIONS
    ).json()

    assert (ended["choices"][0]["finish_reason"], ended["usage"]["completion_tokens"]) == ("stop", 1)
    assert (ignored["choices"][0]["finish_reason"], ignored["usage"]["completion_tokens"]) == ("length", 7)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_prompt_logprobs_rank_each_token_of_the_prompt(server: TaskServer, oracle: tuple[Any, Any], path: str) -> None:
    import torch

    tokenizer, model = oracle
    if path == CHAT:
        ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)
    else:
        ids = tokenizer(PROMPT).input_ids
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    asked = {"messages": MESSAGES} if path == CHAT else {"prompt": PROMPT}

    answer = post(server, {**asked, "max_tokens": 1, "prompt_logprobs": 2}, path).json()

    scored = answer["prompt_logprobs"] if path == CHAT else answer["choices"][0]["prompt_logprobs"]
    assert (len(scored), scored[0]) == (len(ids), None)
    for position, one in enumerate(scored[1:]):
        row, own = logprobs[position], ids[position + 1]
        assert one[str(own)]["logprob"] == pytest.approx(float(row[own]), abs=1e-4)
        assert one[str(own)]["rank"] == 1 + int((row > row[own]).sum())
        best = row.topk(2).indices.tolist()
        assert set(one) == {str(token) for token in (*best, own)}
        assert [one[str(token)]["rank"] for token in best] == [1, 2]
        assert one[str(own)]["decoded_token"] == tokenizer.decode([own])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logit_bias": {"x": 1}}, "logit_bias is 'x'; allowed: the ids of tokens, 0 to "),
        ({"logit_bias": {"999999": 1}}, "logit_bias is '999999'; allowed: the ids of tokens"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1 is 101; allowed: -100 to 100"),
        ({"logit_bias": {str(index): 1 for index in range(1025)}}, "logit_bias has 1025 "),
        ({"stop_token_ids": [999999]}, "stop_token_ids[0] is 999999; allowed: 0 to "),
        ({"stop_token_ids": list(range(65))}, "stop_token_ids has 65 elements; allowed: at most 64"),
        ({"min_tokens": 5}, "min_tokens is 5; allowed: at most max_tokens, 4"),
        ({"max_tokens": None, "min_tokens": 500}, "min_tokens is 500; allowed: at most "),
        ({"prompt_logprobs": 21}, "prompt_logprobs is 21; allowed: 0 to 20"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs is 1; allowed with stream: null"),
        ({"ignore_eos": True, "response_format": {"type": "json_object"}}, "ignore_eos is true; allowed: only without"),
        ({"min_tokens": 1, "response_format": {"type": "json_object"}}, "min_tokens is 1; allowed: only without"),
    ],
)
def test_each_has_a_bound_that_is_named(server: TaskServer, change: dict[str, Any], message: str) -> None:
    response = post(server, {"messages": MESSAGES, "max_tokens": 4} | change, CHAT)

    assert response.status_code in (400, 422), response.text
    assert message in response.json()["error"]["message"]
