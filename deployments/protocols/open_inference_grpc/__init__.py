"""The Open Inference Protocol over gRPC: what replicas answer of it. HAProxy leads clients here (ingress/grpc).

    POST /grpc/ModelInfer          one message in, one out
    POST /grpc/ModelStreamInfer    a stream of them

The gateway answers what belongs to no model's replica: server.py.
"""

from typing import Any

from deployments.cluster.platform import Platform
from deployments.protocols.open_inference_grpc.infer import Infer, Streamed
from deployments.protocols.open_inference_grpc.stream import ONE, Stream
from deployments.protocols.protocol import Mounted, Operation
from pipelines.tasks.pipeline import Pipeline
from pipelines.tasks.task import Task


def mount(pipeline: Pipeline[Any, Any, Any, Any], platform: Platform | None) -> Mounted:
    protocols = {"/grpc/ModelInfer": Infer(pipeline), ONE: Streamed(pipeline)}
    return Mounted(protocols, conversations={"/grpc/ModelStreamInfer": Stream}, listed=False)


def operations(task: Task, platform: Platform | None) -> list[Operation]:
    """None: OpenAPI describes HTTP."""
    return []
