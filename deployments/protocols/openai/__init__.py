"""OpenAI's API, of tasks that go on from a prompt: chat and text completions, and the list of models."""

from typing import Any

from deployments.cluster.platform import Platform
from deployments.protocols.openai.call_format import CallFormat
from deployments.protocols.openai.chat import ChatBody, ChatCompletions
from deployments.protocols.openai.chat_template import ChatTemplate
from deployments.protocols.openai.completions import CompletionBody, Completions
from deployments.protocols.openai.protocol import model_card
from deployments.protocols.protocol import Mounted, Operation
from pipelines.tasks import TASKS
from pipelines.tasks.completion import CompletionPipeline
from pipelines.tasks.pipeline import Pipeline
from pipelines.tasks.task import Task

NAME = "openai"
CHAT, COMPLETIONS, MODELS = ChatCompletions.path, Completions.path, "/v1/models"


def mount(pipeline: Pipeline[Any, Any, Any, Any], platform: Platform | None) -> Mounted:
    if NAME not in TASKS[pipeline.task].protocols:
        return Mounted()
    completion = CompletionPipeline(pipeline)  # type: ignore[arg-type]
    manifest = pipeline.artifact.manifest
    template = ChatTemplate(manifest.chat_template, completion.tokenizer) if manifest.chat_template else None
    format = CallFormat.of(manifest.chat_template or "") if template is not None and template.knows_tools else None
    completions = Completions(completion)
    cards = {name: model_card(name) for name in (pipeline.artifact.name, *pipeline.adapted())}
    return Mounted(
        {CHAT: ChatCompletions(completion, template, format), COMPLETIONS: completions},
        {MODELS: {"object": "list", "data": list(cards.values())}}
        | {f"{MODELS}/{name}": card for name, card in cards.items()},
        prefix="/v1/",
        errors=completions,
    )


def operations(task: Task, platform: Platform | None) -> list[Operation]:
    if NAME not in task.protocols:
        return []
    return [
        Operation(f"/{task.name}{CHAT}", "OpenAI's chat completions", ChatBody, streams=True),
        Operation(f"/{task.name}{COMPLETIONS}", "OpenAI's completions", CompletionBody, streams=True),
        Operation(f"/{task.name}{MODELS}", "The model that is loaded, as OpenAI lists models."),
    ]
