"""Guide: which tokens may come next in an answer that is held to a grammar (structured output).

    Constraint ──GrammarCompiler.compile──> Grammar ──start──> Guide, one for each sequence

This package knows the interfaces only: whoever loads a pipeline gives it a compiler (deployments.guidance).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from pipelines.errors import Path


@dataclass(frozen=True)
class Constraint:
    """What an answer must be: a document of a JSON Schema, or a text that a regular expression or a grammar describes.

    `text` is the schema as JSON, the expression, or a grammar in llguidance's dialect of Lark, which only our own code
    writes. `path` is where it stands in a request, for errors; `parts` are constraints of the client that a grammar of
    ours has inside.
    """

    kind: Literal["json_schema", "regex", "lark"]
    text: str
    path: Path = ()
    parts: "tuple[Constraint, ...]" = ()


class Guide(ABC):
    """The guide of one sequence: it follows the answer token by token. One thread at a time calls it."""

    def __init__(self) -> None:
        self._made: np.ndarray | Exception | None = None

    def prepare(self) -> None:
        """Make the mask of the next token, where it is not made yet. Errors wait until `process`."""
        if self._made is None:
            try:
                self._made = self._forbidden()
            except Exception as error:
                self._made = error

    def process(self, ids: np.ndarray, scores: np.ndarray) -> None:
        """As a logits processor: the scores of forbidden tokens become -inf, in `scores`, (1, vocab) float32."""
        self.prepare()
        if isinstance(self._made, Exception):
            raise self._made
        np.copyto(scores, -np.inf, where=self._made)

    def append(self, token: int) -> None:
        """The answer has one more token."""
        self._made = None
        self._append(token)

    @abstractmethod
    def _forbidden(self) -> np.ndarray:
        """Which tokens may not come next, (vocab,) bool. Once the answer is complete, an end of sequence may come."""

    @abstractmethod
    def _append(self, token: int) -> None: ...


class Grammar(Protocol):
    """A compiled constraint; thread-safe."""

    def start(self) -> Guide:
        """The guide of a new answer."""


class GrammarCompiler(Protocol):
    """Compiles constraints for one model's vocabulary; thread-safe."""

    def compile(self, constraint: Constraint) -> Grammar:
        """Raises InvalidInputError with the place of what cannot be compiled. Takes up to seconds."""


class MaskThread:
    """Makes the masks of guided sequences in a thread of its own while the model runs."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    @contextmanager
    def beside(self, guides: Sequence[Guide]) -> Iterator[None]:
        """The masks are made while the block runs, and ready after it."""
        if not guides:
            yield
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        made = self._thread.submit(_prepare_all, guides)
        try:
            yield
        finally:
            made.result()


def _prepare_all(guides: Sequence[Guide]) -> None:
    for guide in guides:
        guide.prepare()
