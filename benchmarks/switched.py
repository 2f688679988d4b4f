"""A replica that is observed or not, as each request asks: what observing costs, with everything else the same."""

from typing import Any

from ray.serve import Application
from starlette.requests import Request

from deployments.app import observed_by
from deployments.http.request import Timings
from deployments.observability import replica
from deployments.observability.replica import Observers
from pipelines.runtime.artifact import ModelArtifact
from pipelines.scheduling.scheduler import BatchReport

UNOBSERVED = "x-unobserved"
"""The header of requests of which nothing is observed."""


def build(args: dict[str, Any]) -> Application:
    """The application of one model, as deployments.app has it, with a SwitchedObserver."""
    return observed_by(SwitchedObserver, args)


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
