"""Ask: a client on the standard library, for `sextet ask`, and for the demonstration after a start."""

import json
import socket
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from deployments.config import check_task
from pipelines.errors import ConfigurationError, SextetError
from pipelines.tasks import TASKS
from pipelines.tasks.task import Task

TIMEOUT_S = 300.0
_open = build_opener(ProxyHandler({})).open  # a cluster is asked directly, whatever proxy the shell names


class AskError(SextetError):
    """The cluster did not answer, or answered with an error."""


class _LocalConnection(HTTPConnection):
    """To the socket of an ingress on this machine, which its owner alone can open."""

    def __init__(self, file: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._file, self._timeout_s = file, timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(str(self._file))


def ask(task: str, texts: Sequence[str], *, url: str, key: str | None = None) -> Any:
    """The cluster's answer to `texts`: one input, or several inputs where one text is an input of the task."""
    check_task(task)
    fields = TASKS[task].text_fields
    if len(fields) > 1 and len(texts) != len(fields):
        allowed = " and ".join(f"a {one}" for one in fields)
        raise ConfigurationError(f"{task} got {len(texts)} texts; allowed: {allowed}")
    several = len(fields) == 1 and len(texts) > 1
    body = {"inputs": list(texts) if several else TASKS[task].as_input(texts)}
    return post(f"{url.rstrip('/')}/{task}", body, key=key)


def usage() -> str:
    """Which texts the tasks take that need more than one, as the command line's help says it."""
    several = [task for task in TASKS.values() if len(task.text_fields) > 1]
    return "; ".join(f"{' '.join(task.text_fields).upper()} for {task.name}" for task in several)


def demonstrate(task: Task, url: str, key: str | None = None, through: Path | None = None) -> str:
    """What the task at `url` answers to its first example, in a few words; raises AskError."""
    example = task.examples[0]
    body = {"inputs": example.inputs, "parameters": dict(example.parameters)}
    return task.in_words(post(url, body, key=key, through=through))


def get(url: str, *, key: str | None = None) -> Any:
    """The decoded JSON answer; raises AskError with the server's own words."""
    return json.loads(text_at(url, key=key))


def text_at(url: str, *, key: str | None = None, timeout_s: float = 10.0, option: str = "--url") -> str:
    """The answer as text; raises AskError with the server's own words, ConfigurationError that names the option."""
    try:
        request = Request(url, headers={"authorization": f"Bearer {key}"} if key else {})
    except ValueError as error:
        raise ConfigurationError(f"{option}: {error}; allowed: an address such as http://127.0.0.1:8000") from None
    status, content = exchange(request, timeout_s)
    if status != 200:
        raise AskError(f"{url} answered {status}: {reason(content)}")
    return content.decode("utf-8", "replace")


def post(
    url: str, body: Any, timeout_s: float = TIMEOUT_S, *, key: str | None = None, through: Path | None = None
) -> Any:
    """The decoded JSON answer to a JSON body; raises AskError with the server's own words.

    `through` is the ingress's own socket, where the cluster runs here.
    """
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    try:
        request = Request(url, json.dumps(body).encode(), headers)
    except ValueError as error:
        raise ConfigurationError(f"--url: {error}; allowed: an address such as http://127.0.0.1:8000") from None
    status, content = exchange(request, timeout_s, through)
    if status != 200:
        raise AskError(f"{url} answered {status}: {reason(content)}")
    return json.loads(content)


def exchange(request: Request, timeout_s: float, through: Path | None = None) -> tuple[int, bytes]:
    """Status and body of any answer; raises AskError where there is none."""
    try:
        if through is not None:
            connection = _LocalConnection(through, timeout_s)
            try:
                data: Any = request.data
                connection.request(request.get_method(), request.selector, data, dict(request.header_items()))
                answer = connection.getresponse()
                return answer.status, answer.read()
            finally:
                connection.close()
        with _open(request, timeout=timeout_s) as response:
            return response.status, response.read()
    except HTTPError as error:
        return error.code, error.read()
    except (URLError, HTTPException, OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise AskError(f"no answer from {request.full_url} ({why}); is `sextet serve` running there?") from None


def reason(content: bytes) -> str:
    """The words of a refusal."""
    try:
        error = json.loads(content)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return content.decode("utf-8", "replace")[:200] or "nothing"
