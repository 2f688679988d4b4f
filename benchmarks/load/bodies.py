"""Bodies: the requests of a load, in the format of a protocol.

A protocol is one function from (task, texts, settings) to a path and a JSON body, entered in PROTOCOLS. A request has
one text, or a list of texts.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.load.client import request_bytes
from benchmarks.load.generator import Call
from pipelines.errors import ConfigurationError
from pipelines.tasks import TASKS
from pipelines.tasks.task import Task

OTHER_TEXT = "What is it about?"  # the first text of an input that has two; the second is the load's


@dataclass(frozen=True)
class BodyConfig:
    """What each request has besides its texts. `parameters` override those that bound the length of an answer."""

    protocol: str = "huggingface"
    stream: bool = False
    max_new_tokens: int = 32
    parameters: Mapping[str, Any] = field(default_factory=dict)


Protocol = Callable[[Task, Sequence[str], BodyConfig], tuple[str, Any]]


def calls(
    host: str, prefix: str, task: Task, texts: Sequence[str], inputs_per_request: int, config: BodyConfig
) -> list[Call]:
    """Requests of `inputs_per_request` texts each, fewer in the last one, at paths that begin with `prefix`."""
    if config.protocol not in PROTOCOLS:
        raise ConfigurationError(f"protocol is {config.protocol!r}; allowed: {', '.join(PROTOCOLS)}")
    if config.stream and (not task.streams or inputs_per_request > 1):
        streaming = ", ".join(one.name for one in TASKS.values() if one.streams)
        raise ConfigurationError(f"--stream takes one input per request and a --task that streams: {streaming}")
    groups = [texts[start : start + inputs_per_request] for start in range(0, len(texts), inputs_per_request)]
    made = []
    for group in groups:
        path, body = PROTOCOLS[config.protocol](task, group, config)
        made.append(Call(request_bytes(host, prefix + path, json.dumps(body).encode()), len(group)))
    return made


def huggingface(task: Task, texts: Sequence[str], config: BodyConfig) -> tuple[str, Any]:
    """The Hugging Face task API: `{"inputs", "parameters"}` at the task's own path."""
    inputs = [task_input(task, text) for text in texts]
    body = {
        "inputs": inputs if len(inputs) > 1 else inputs[0],
        "parameters": {**task.bounded(config.max_new_tokens), **config.parameters},
    }
    return f"/{task.name}", body | ({"stream": True} if config.stream else {})


def task_input(task: Task, text: str) -> Any:
    """A text as one input of a task."""
    return task.as_input([*[OTHER_TEXT] * (len(task.text_fields) - 1), text])


def openai(task: Task, texts: Sequence[str], config: BodyConfig) -> tuple[str, Any]:
    """OpenAI's completions, greedy, of a task that streams."""
    if not task.streams:
        raise ConfigurationError(f"protocol is 'openai'; allowed for {task.name}: huggingface")
    body = {
        "model": "sextet",
        "prompt": list(texts) if len(texts) > 1 else texts[0],
        "max_tokens": config.max_new_tokens,
        "temperature": 0,
        **config.parameters,
    }
    return f"/{task.name}/v1/completions", body | ({"stream": True} if config.stream else {})


PROTOCOLS: dict[str, Protocol] = {"huggingface": huggingface, "openai": openai}
