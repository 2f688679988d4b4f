"""Replicas to compare with: some do nothing, which shows what the ingress and Ray Serve cost; one can be unobserved."""

import asyncio
from typing import Any

from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response

from deployments.app import LIFE, costs, on_ending, reserved_gpus
from deployments.http.request import Timings
from deployments.observability import replica
from deployments.observability.replica import Observers
from deployments.task_server import TaskServer
from pipelines.runtime.artifact import ModelArtifact
from pipelines.scheduling.scheduler import BatchReport

ANSWER = b'[[{"label":"noop","score":1.0}]]'
WAIT_HEADER = "x-noop-wait-seconds"
UNOBSERVED = "x-unobserved"


class Noop:
    """Reads the body and answers at once, or after as many seconds as the header says."""

    async def __call__(self, request: Request) -> Response:
        await request.body()
        if wait_s := request.headers.get(WAIT_HEADER):
            await asyncio.sleep(float(wait_s))
        return Response(ANSWER, media_type="application/json")


class Named:
    """In the place of a task's replica: it answers POSTs at once with `answer`."""

    def __init__(self, answer: str) -> None:
        self._answer = answer.encode()

    async def __call__(self, request: Request) -> Response:
        if request.method != "POST":  # what the launcher knows a task by
            return Response(status_code=405)
        await request.body()
        return Response(self._answer, media_type="application/json")


app = serve.deployment(Noop, name="noop").bind()


def named(args: dict[str, Any]) -> Application:
    """For `args: {answer: JSON}`."""
    return serve.deployment(Named, name="named").bind(args["answer"])


def switched(args: dict[str, Any]) -> Application:
    """A task's replica as deployments.app has it, which observes nothing of requests with the header UNOBSERVED:
    `args: {task, model}`.
    """
    deployment = serve.deployment(TaskServer, name=args["task"], **LIFE)
    return deployment.bind(args["task"], SwitchedObserver, None, reserved_gpus, on_ending, costs, args["model"])


class SwitchedObserver(Observers):
    """Tells the observers of a replica what happens, but for requests with the header UNOBSERVED and the batches that
    follow them: both are measured in the same replica, whose batches cost the same.
    """

    def __init__(self, artifact: ModelArtifact) -> None:
        super().__init__((replica.observe(artifact),))
        self._is_on = True

    def batch(self, report: BatchReport) -> None:
        if self._is_on:
            super().batch(report)

    def request(self, request: Request, timings: Timings) -> None:
        self._is_on = UNOBSERVED not in request.headers
        if self._is_on:
            super().request(request, timings)

    def headers(self, request: Request, timings: Timings) -> list[tuple[bytes, bytes]]:
        return super().headers(request, timings) if self._is_on else []
