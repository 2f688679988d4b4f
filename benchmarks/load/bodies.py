"""Bodies: a text of the load as the request of a task, in the words of a protocol.

A protocol is one function from (task, texts, settings) to a path and a JSON body; another one joins by an entry in
PROTOCOLS. A request carries one text, or a list of them where the protocol has lists.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.load.client import request_bytes
from benchmarks.load.generator import Call
from pipelines.errors import ConfigurationError

QUESTION = "What is it about?"  # every context gets the same one: lengths are those of the texts


@dataclass(frozen=True)
class BodyConfig:
    """What each request says besides its text. `parameters` go over those that bound the generating tasks."""

    protocol: str = "huggingface"
    stream: bool = False
    max_new_tokens: int = 32
    parameters: Mapping[str, Any] = field(default_factory=dict)


Protocol = Callable[[str, Sequence[str], BodyConfig], tuple[str, Any]]


def calls(
    host: str, prefix: str, task: str, texts: Sequence[str], inputs_per_request: int, config: BodyConfig
) -> list[Call]:
    """Ready requests, `inputs_per_request` texts in each (the last takes what is left); paths begin with `prefix`."""
    if config.protocol not in PROTOCOLS:
        raise ConfigurationError(f"protocol is {config.protocol!r}; allowed: {', '.join(PROTOCOLS)}")
    if config.stream and (task != "text-generation" or inputs_per_request > 1):
        raise ConfigurationError("--stream takes --task text-generation and one input per request")
    groups = [texts[start : start + inputs_per_request] for start in range(0, len(texts), inputs_per_request)]
    made = []
    for group in groups:
        path, body = PROTOCOLS[config.protocol](task, group, config)
        made.append(Call(request_bytes(host, prefix + path, json.dumps(body).encode()), len(group)))
    return made


def huggingface(task: str, texts: Sequence[str], config: BodyConfig) -> tuple[str, Any]:
    """The Hugging Face task API: `{"inputs", "parameters"}` at the task's own path."""
    inputs = [task_input(task, text) for text in texts]
    body = {
        "inputs": inputs if len(inputs) > 1 else inputs[0],
        "parameters": {**_bounds(task, config.max_new_tokens), **config.parameters},
    }
    return f"/{task}", body | ({"stream": True} if config.stream else {})


def task_input(task: str, text: str) -> Any:
    """A text as one input of a task."""
    return {"question": QUESTION, "context": text} if task == "question-answering" else text


def _bounds(task: str, max_new_tokens: int) -> dict[str, Any]:
    """Greedy and of a known length: what one request of a generating task may cost."""
    bounds = {"max_new_tokens": max_new_tokens, "do_sample": False}
    if task == "text-generation":
        return bounds
    return {"generate_parameters": bounds} if task in ("translation", "summarization") else {}


def openai(task: str, texts: Sequence[str], config: BodyConfig) -> tuple[str, Any]:
    """OpenAI's completions, greedy: text-generation only."""
    if task != "text-generation":
        raise ConfigurationError(f"protocol is 'openai'; allowed for {task}: huggingface")
    body = {
        "model": "sextet",
        "prompt": list(texts) if len(texts) > 1 else texts[0],
        "max_tokens": config.max_new_tokens,
        "temperature": 0,
        **config.parameters,
    }
    return f"/{task}/v1/completions", body | ({"stream": True} if config.stream else {})


PROTOCOLS: dict[str, Protocol] = {"huggingface": huggingface, "openai": openai}
