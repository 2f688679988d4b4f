"""Vertex AI's predict route.

    {"instances": [input, ...], "parameters": {...}}  ->  {"predictions": [answer, ...]}

An instance is one input of the Hugging Face task API, a prediction the answer to it, the parameters are the task's.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, cast

from msgspec import defstruct

from deployments.cluster.platform import Platform
from deployments.protocols.huggingface import many
from deployments.protocols.protocol import Mounted, Operation, Protocol, Reply, TaskRequest, class_name, json_reply
from pipelines.errors import Path
from pipelines.schema import Body, decode
from pipelines.tasks import TASKS
from pipelines.tasks.pipeline import Pipeline
from pipelines.tasks.task import Task

NAME = "vertex"
INSTANCES: Path = ("instances",)


class Predictions(Protocol):
    """`POST` at AIP_PREDICT_ROUTE."""

    renamed: ClassVar[Mapping[str, Path]] = {"inputs": INSTANCES}

    def read(self, body: bytes, headers: Mapping[str, str]) -> TaskRequest:
        task = TASKS[self.pipeline.task]
        given: Any = decode(body, body_type(task))
        parameters = task.pipeline.parameters_type() if given.parameters is None else given.parameters
        return TaskRequest(given.instances, parameters, is_list=True, input_path=INSTANCES)

    def write(self, request: TaskRequest, answers: Sequence[Any]) -> Reply:
        return json_reply({"predictions": list(answers)})


@cache
def body_type(task: Task) -> type[Body]:
    """The class that parses a body of the task."""
    fields: list[Any] = [("instances", many(task)), ("parameters", task.pipeline.parameters_type | None, None)]
    return cast(type[Body], defstruct(class_name(task, "Instances"), fields, bases=(Body,), frozen=True))


def mount(pipeline: Pipeline[Any, Any, Any, Any], platform: Platform | None) -> Mounted:
    if platform is None or platform.name != NAME:
        return Mounted()
    return Mounted({platform.predict_route: Predictions(pipeline)}, {platform.health_route: {"status": "ready"}})


def operations(task: Task, platform: Platform | None) -> list[Operation]:
    if platform is None or platform.name != NAME:
        return []
    predictions = defstruct(class_name(task, "Predictions"), [("predictions", list[task.answer_type])])  # type: ignore[name-defined]
    summary = "A container for Vertex AI, at AIP_PREDICT_ROUTE: the instances of its task"
    return [Operation(platform.predict_route, summary, body_type(task), (predictions,))]
