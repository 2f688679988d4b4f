"""ReplicaRecorder: what a simulated replica says of its load: the Recorder of real ones, told of simulated requests."""

from typing import Any

from deployments.config import TaskConfig
from deployments.scaling.recorder import OVERLOADED, Recorder
from deployments.scaling.signals import ReplicaSignals
from pipelines.scheduling.scheduler import BatchingConfig, Completed, Scheduler
from planning.simulated.loop import SimulatedLoop


class ReplicaRecorder:
    """What one simulated replica records of itself."""

    def __init__(self, loop: SimulatedLoop, batching: BatchingConfig) -> None:
        self._recorder: Any = Recorder(loop.time)  # its Timings are those of HTTP
        self._recorder.configured(TaskConfig("model", batching=batching))
        self.batch = self._recorder.batch

    def started(self, scheduler: Scheduler[Any, Any]) -> None:
        self._recorder.started(scheduler, {})

    def answered(self, completed: Completed[Any], latency_s: float) -> None:
        """A request has been answered, `latency_s` after it arrived."""
        self._recorder.request(_NO_REQUEST, _Timed(completed, latency_s))

    def refused(self) -> None:
        """A request was refused."""
        self._recorder.request(_NO_REQUEST, _Refused)

    def signals(self) -> ReplicaSignals:
        found = ReplicaSignals.of_metrics(self._recorder.signals())
        assert found is not None
        return found


_NO_REQUEST: Any = None


class _Failure:
    status = OVERLOADED


class _Refused:
    """The Timings of a refused request, as far as a Recorder reads them."""

    failure = _Failure


class _Timed:
    """The Timings of an answered request, as far as a Recorder reads them."""

    __slots__ = ("_total_s", "inference_s", "queue_s", "written_tokens")
    failure = first_token_s = None
    is_stream = False
    protocol = "simulated"
    gaps_s = ()

    def __init__(self, completed: Completed[Any], total_s: float) -> None:
        self.queue_s, self.inference_s = completed.queue_s, completed.inference_s
        self.written_tokens, self._total_s = completed.written_tokens, total_s

    def total_s(self) -> float:
        return self._total_s
