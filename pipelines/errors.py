"""One exception tree. Every message is one line: what was wrong, where, and what is allowed.

    SextetError
    ├── InvalidInputError         the caller's input or parameter            -> 400
    │   ├── UnknownKeyError       a key that nobody reads                     -> 400
    │   ├── UnusedParametersError a parameter that this task cannot honour    -> 400
    │   └── InputTooLongError     more than the model, or a limit, can take   -> 422
    ├── ArtifactError             a model folder that must not be served
    ├── CheckpointError           a checkpoint that must not be exported
    ├── ConfigurationError        cluster.yaml or a command-line option
    ├── TrainingError             a training that had to stop, and what is kept of it
    ├── OverloadedError           the queue is full, or too slow for a deadline -> 429
    ├── DeadlineExceededError     a deadline that ran out                     -> 408
    └── GenerationError           decoding failed for this request            -> 500

Ray pickles exceptions by their `args`, so each passes all of its arguments to `super().__init__`.
"""

from collections.abc import Sequence
from typing import Self

Path = tuple[str | int, ...]
_SHOWN = 60  # characters of a name, and names, that are repeated to whoever sent them


class SextetError(Exception):
    """Base of every error that a user of Sextet may see; `str(error)` is one line for people."""

    exit_status = 1
    """Of a command that ends with it."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class InvalidInputError(SextetError):
    """An input or a parameter that the caller has to change.

    `path` is where: names and indices from the outermost on, as `("inputs", 3, "text")`; empty for the whole body.
    `problem` says what is wrong there and what is allowed. Without a path (None) `problem` is the whole message.
    """

    def __init__(self, problem: str, path: Path | None = None) -> None:
        super().__init__(problem, path)
        self.problem, self.path = problem, path

    def __str__(self) -> str:
        return self.problem if self.path is None else f"{place(self.path)} {self.problem}"

    def at(self, path: Path | None) -> Self:
        """The same error at another place."""
        return type(self)(self.problem, path)


class UnknownKeyError(InvalidInputError):
    """A key that nobody reads; it is the last element of `path`, the message begins with what it stands in."""

    def __str__(self) -> str:
        return f"{place((self.path or ())[:-1])} {self.problem}"


class UnusedParametersError(InvalidInputError):
    """Parameters that the task cannot honour, worded as transformers does: clients retry on that text."""

    def __init__(self, names: Sequence[str], path: Path | None = None) -> None:
        names = [name if len(name) <= _SHOWN else f"{name[: _SHOWN - 3]}..." for name in names[:_SHOWN]]
        super().__init__(f"The following `model_kwargs` are not used by the model: {names}", path)
        self.args = (names, path)
        self.names = names

    def __str__(self) -> str:
        return self.problem

    def at(self, path: Path | None) -> Self:
        return type(self)(self.names, path)


class InputTooLongError(InvalidInputError):
    """A text that has more tokens than the model reads, where the caller forbade truncation; or more than a limit."""


class ArtifactError(SextetError):
    """A model folder that is missing, altered, made for another task, or failed its parity check."""


class CheckpointError(SextetError):
    """A checkpoint that cannot, or must not, be turned into an artifact."""


class ConfigurationError(SextetError):
    """A key or a value of cluster.yaml, or a command-line option, that is not allowed."""


class TrainingError(SextetError):
    """A training that could not go on; what was trained until then is kept."""


class OverloadedError(SextetError):
    """The request was not admitted; `retry_after_s` says when a retry has a chance, `reason` in a word why."""

    def __init__(self, message: str, retry_after_s: float, reason: str = "overloaded") -> None:
        super().__init__(message, retry_after_s, reason)
        self.retry_after_s, self.reason = retry_after_s, reason


class DeadlineExceededError(SextetError):
    """The request's own deadline ran out before its answer was ready."""


class GenerationError(SextetError):
    """Decoding failed for this request; the replica goes on."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type where it has none: a part of a message of ours."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def place(path: Path) -> str:
    """A path as people write it: `inputs[3].text`; `the body` for the empty one."""
    words = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in path)
    return words.removeprefix(".")[: 4 * _SHOWN] or "the body"
