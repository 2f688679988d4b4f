"""ServedModel: answers with a running cluster, through its ingress, as bulk: requests of others go before.

A list of inputs is a request. What the cluster refuses because it is busy is asked again when it says so; what it
refuses because of an input is halved until that input stands alone.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

import msgspec

from batch.local_model import Refused
from deployments.ask import AskError, reason
from deployments.http.request import BACKGROUND
from pipelines.errors import SextetError
from pipelines.schema import encode
from pipelines.tasks import TASKS

ENCODER_INPUTS, GENERATOR_INPUTS = 64, 4  # of a request
CHARACTERS = 2**20  # of a request, below what an ingress takes by default
IN_FLIGHT = 4
TIMEOUT_S = 300.0
BUSY = (408, 429, 502, 503, 504)
OF_INPUTS = (400, 413, 422, 500)
PATIENCE_S = 600.0
"""How long a cluster may answer nothing before the run ends; the same command goes on with it later."""
PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


class BusyError(SextetError):
    """The cluster answered nothing for PATIENCE_S: the same command goes on later."""

    exit_status = 75


@dataclass(frozen=True)
class ServedModel:
    """A task at the ingress `url`; `model` is a name in its cluster.yaml, None the default of the task."""

    task: str
    url: str
    model: str | None
    key: str | None = field(repr=False)  # Ray Data logs what an actor is made of
    parameters: dict[str, Any]

    @property
    def route(self) -> str:
        """The path of the model's application."""
        return f"/{self.task}/{self.model}" if self.model else f"/{self.task}"

    @property
    def address(self) -> str:
        """Where requests go."""
        return f"{self.url.rstrip('/')}{self.route}"

    def open(self) -> "Client":
        return Client(self)


class Client:
    """Answers lists of inputs; thread-safe."""

    def __init__(self, model: ServedModel) -> None:
        self._address, self._url = model.address, urlsplit(model.address)
        self._parameters = model.parameters
        self._headers = {"content-type": "application/json", "priority": BACKGROUND}
        if model.key:
            self._headers["authorization"] = f"Bearer {model.key}"
        self._most = GENERATOR_INPUTS if TASKS[model.task].generates else ENCODER_INPUTS
        self._threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="ask")
        self._answered_at = time.monotonic()

    def answers(self, inputs: Sequence[Any]) -> list[Any]:
        """An answer for each input, in order, or Refused. Raises AskError where the cluster refuses all of them."""
        self._answered_at = time.monotonic()
        return list(chain.from_iterable(self._threads.map(self._ask, self._lists(inputs))))

    def _lists(self, inputs: Sequence[Any]) -> list[list[Any]]:
        lists: list[list[Any]] = []
        characters = CHARACTERS
        for one in inputs:
            length = len(one) if isinstance(one, str) else sum(map(len, one.values()))
            if characters + length > CHARACTERS or len(lists[-1]) == self._most:
                lists.append([])
                characters = 0
            lists[-1].append(one)
            characters += length
        return lists

    def _ask(self, inputs: list[Any]) -> list[Any]:
        body = encode({"inputs": inputs, "parameters": self._parameters})
        pause_s = PAUSE_S
        while True:
            status, answer, retry_after_s = self._exchange(body)
            if status == 200:
                self._answered_at = time.monotonic()
                found = msgspec.json.decode(answer)
                if not isinstance(found, list) or len(found) != len(inputs):
                    raise AskError(
                        f"{self._address} did not answer a list of {len(inputs)} inputs with as many answers"
                    )
                return found
            if status in OF_INPUTS:
                self._answered_at = time.monotonic()
                if len(inputs) == 1:
                    return [Refused(_words(answer))]
                half = len(inputs) // 2
                return self._ask(inputs[:half]) + self._ask(inputs[half:])
            if status is not None and status not in BUSY:
                raise AskError(f"{self._address} answered {status}: {_words(answer)}")
            if time.monotonic() - self._answered_at > PATIENCE_S:
                raise BusyError(f"{self._address} has answered nothing for {PATIENCE_S:.0f} s: {_words(answer)}")
            time.sleep(min(max(pause_s, retry_after_s), LONGEST_PAUSE_S))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _exchange(self, body: bytes) -> tuple[int | None, bytes, float]:
        """Status, body, and after how many seconds to ask again; no status where the connection failed."""
        kind = HTTPSConnection if self._url.scheme == "https" else HTTPConnection
        connection = kind(self._url.netloc, timeout=TIMEOUT_S)
        try:
            connection.request("POST", self._url.path, body, self._headers)
            response: HTTPResponse = connection.getresponse()
            after = response.headers.get("retry-after", "")
            return response.status, response.read(), float(after) if after.isdecimal() else 0.0
        except (OSError, HTTPException) as error:
            return None, str(error).encode() or type(error).__name__.encode(), 0.0
        finally:
            connection.close()


def _words(answer: bytes) -> str:
    return " ".join(reason(answer).split())[:500]
