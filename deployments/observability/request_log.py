"""RequestLog: a line of JSON for requests that are slow, or drawn from all: never a text, never a key.

    {"time": "2026-01-31T12:00:00.123456+00:00", "id": "5f0c...", "task": "translation", "model": "...",
     "version": "...", "replica": "...", "protocol": "openai", "client": "alice", "status": 200, "reason": "",
     "read_tokens": 12, "written_tokens": 30, "queue_s": 0.001, "tokenization_s": 0.0002, "inference_s": 0.9,
     "first_token_s": 0.1, "total_s": 0.91}

`id` is the x-request-id of the answer, `client` the name of the key; `first_token_s` is null of an encoder. The loop
that serves only puts lines into a queue; a thread writes them to a file that is cut off before it fills the disk.
"""

import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from queue import Queue
from typing import Any

from starlette.requests import Request

from deployments.config import RequestLogConfig, TaskConfig
from deployments.http.request import CLIENT_HEADER, Observer, Timings
from deployments.observability.metrics import protocol_name
from pipelines.runtime.artifact import ModelArtifact
from pipelines.schema import encode

OK = 200
MAX_ID_CHARACTERS = 256
FILE_BYTES, FILES = 64 * 2**20, 4
WAITING_LINES = 10_000  # further ones are dropped: a disk that hangs must not take the memory
ID_HEADER = "x-request-id"


class RequestLog(Observer):
    """Calls `write` with the line of each request that the configuration asks for."""

    def __init__(self, artifact: ModelArtifact, replica: str, write: Callable[[str], None]) -> None:
        manifest = artifact.manifest
        self._write = write
        self._model = {
            "task": manifest.task,
            "model": artifact.name,
            "version": artifact.version,
            "replica": replica,
        }
        self._config = RequestLogConfig()

    def configured(self, config: TaskConfig) -> None:
        self._config = config.request_log

    def request(self, request: Request, timings: Timings) -> None:
        total_s, slower_than_s = timings.total_s(), self._config.slower_than_s
        is_slow = slower_than_s is not None and total_s > slower_than_s
        if is_slow or (self._config.sample and random.random() < self._config.sample):
            self._write(self._line(request, timings, total_s))

    def _line(self, request: Request, timings: Timings, total_s: float) -> str:
        failure, adapter, first_token_s = timings.failure, timings.adapter, timings.first_token_s
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(),
            "id": request.headers.get(ID_HEADER, "")[:MAX_ID_CHARACTERS],
            **self._model,
            **({} if adapter is None else {"model": adapter.name, "version": adapter.version}),
            "protocol": protocol_name(type(timings.protocol).__module__),
            "client": request.headers.get(CLIENT_HEADER, ""),
            "status": OK if failure is None else failure.status,
            "reason": "" if failure is None else failure.reason,
            "read_tokens": timings.read_tokens,
            "written_tokens": timings.written_tokens,
            "queue_s": round(timings.queue_s, 6),
            "tokenization_s": round(timings.tokenization_s, 6),
            "inference_s": round(timings.inference_s, 6),
            "first_token_s": None if first_token_s is None else round(first_token_s, 6),
            "total_s": round(total_s, 6),
        }
        return encode(line).decode()


class LogFile:
    """Lines to a file, by a thread of its own; old lines go where the file has FILE_BYTES, FILES of them are kept."""

    def __init__(self, file: Path) -> None:
        lines: Queue[logging.LogRecord] = Queue(WAITING_LINES)
        handler = RotatingFileHandler(file, maxBytes=FILE_BYTES, backupCount=FILES - 1, encoding="utf-8", delay=True)
        self._queue, self._handler, self._listener = _Dropping(lines), handler, QueueListener(lines, handler)
        self._listener.start()

    def write(self, line: str) -> None:
        self._queue.handle(logging.LogRecord("request", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._listener.stop()
        self._handler.close()


class _Dropping(QueueHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """The queue is full: the line is dropped."""
