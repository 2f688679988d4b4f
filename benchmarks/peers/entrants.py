"""Entrants: the writers of one checkpoint that run here and agree with our engine, and the time that they take."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from benchmarks import Say
from benchmarks.peers.peer import PeerError
from benchmarks.peers.writers import Running, Writer, WriterModel, writing
from benchmarks.suites.suite import Rates

SAME_START = 0.5
"""Of the answers that have to begin as ours do, which rounding may change at any place: below, it is another model."""


class Entrants:
    """A writer that fails is dropped, and `Rates.missing` says why."""

    def __init__(self, model: WriterModel, rates: Rates, say: Say) -> None:
        self._model, self._rates, self._say = model, rates, say
        self._running: dict[str, Running] = {}

    @property
    def names(self) -> list[str]:
        return list(self._running)

    def enter(self, stack: ExitStack, writer: Writer, alike: Callable[[Running], float]) -> None:
        """Start a writer until `stack` ends; `alike` returns the share of its answers that begin as ours do."""
        try:
            running = stack.enter_context(writing(writer, self._model))
            share = alike(running)
        except PeerError as error:
            self._drop(writer.name, self._model.name, str(error))
            return
        if share < SAME_START:
            self._drop(writer.name, self._model.name, f"another model: {share:.0%} of its answers begin as ours")
            return
        self._say(f"{writer.name}, {self._model.name}: {share:.0%} of its answers begin as ours")
        self._running[writer.name] = running

    def seconds(
        self,
        name: str,
        workload: str,
        batches: Sequence[Sequence[Sequence[int]]],
        new_tokens: int,
        *,
        beams: int = 1,
        exact: bool = True,
    ) -> float | None:
        """The seconds that a writer takes for batches of prompts, one after another; None where it failed."""
        try:
            return sum(
                self._running[name].write(batch, new_tokens, beams=beams, exact=exact).seconds for batch in batches
            )
        except PeerError as error:
            self._drop(name, workload, str(error))
            return None

    def _drop(self, name: str, workload: str, reason: str) -> None:
        self._say(f"{workload}, {name}: {reason}")
        self._rates.missing[workload, name] = reason
        self._running.pop(name, None)
