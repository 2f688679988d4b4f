"""PlainEngine: decodes on graphs without KV cache slots, whose cache belongs to one request at a time.

    prefill (the prompt, once) -> step (one token per row) -> choose -> stop?   ... until every row has stopped

Up to `slots` requests run and take turns, one forward each. Each has a cache of its own, so no answer depends on
another request.
"""

import time
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from pipelines.generation.decoding.beam_search import BeamSearch
from pipelines.generation.decoding.request import Answer, DecodeRequest, Generation, PromptScores, Step
from pipelines.generation.decoding.sequence_state import SequenceState, score_prompt
from pipelines.generation.engine import PROMPT_TOKEN, DecodeEngine, Job, Line, Scheduled, Share, Steps
from pipelines.generation.plain.decoder import Decoder
from pipelines.generation.plain.kv_cache import KvCache

Forwards = Generator[tuple[float, tuple[Step, ...]], None, Answer]
"""The forwards of a request: each yields its work and the new steps of the first sequence; the return is the answer."""


@dataclass(eq=False)
class _Run:
    """A request from the queue to its end."""

    job: Job
    number: int = 0
    forwards: Forwards | None = None
    first_token_at: float | None = None

    @property
    def share(self) -> Share:
        return self.job.share

    def wrote(self) -> None:
        """One of its sequences has its first token."""
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()


class PlainEngine(DecodeEngine[_Run]):
    """Decodes on one `decoder`, which only the decode thread calls."""

    def __init__(self, decoder: Decoder, slots: int = 2) -> None:
        super().__init__()
        self._decoder, self._slots = decoder, slots
        self._running: list[_Run] = []

    @property
    def slots(self) -> int:
        return self._slots

    def check(self, request: DecodeRequest) -> None:
        """Every request fits: its length was resolved for the model's window."""

    def _queued(self, job: Job) -> tuple[list[_Run], int]:
        return [_Run(job)], 1

    def _round(self) -> bool:
        with self._lock:
            left = self._waiting.take(lambda one: one.job.cancelled())
            while len(self._running) < self._slots and self._waiting:
                admitted = self._waiting.ordered()[0][0]
                self._waiting.remove(admitted)
                self._running.append(admitted)
            alive = self._is_awake = bool(self._running or left)
        for one in left:
            self._end(one, Answer(()))
        for run in list(self._running):
            self._advance(run)
        return alive

    def _fail(self, error: Exception) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, Line()
        for run in (*self._running, *waiting):
            self._end(run, error)

    def _advance(self, run: _Run) -> None:
        """One forward of a request."""
        if run.forwards is None:
            run.job.put(Scheduled())
            run.forwards = self._decode(run)
        began = time.perf_counter()
        try:
            work, steps = next(run.forwards)
        except StopIteration as ended:
            self._end(run, ended.value)
        except Exception as error:
            self._end(run, error)
        else:
            seconds = time.perf_counter() - began
            self.model_s += seconds
            self._did(run.share, work)
            self._learn("new_token_s" if steps else "prompt_token_s", seconds, max(1, round(work)))
            if steps and run.job.streams:
                run.job.put(Steps(steps))

    def _end(self, run: _Run, outcome: Answer | Exception) -> None:
        if run in self._running:
            self._running.remove(run)
        run.forwards = None
        run.job.put(outcome)
        self._sequence_ended(run.share)

    def _decode(self, run: _Run) -> Forwards:
        job, request, scores = run.job, run.job.request, PromptScores()

        def collect(start: int, logits: np.ndarray) -> None:
            score_prompt(scores, request, start, logits)

        on_logits = collect if request.prompt_logprobs else None
        logits, cache = self._decoder.prefill(request.prompt, request.source, job.cancelled, on_logits)
        yield max(1.0, PROMPT_TOKEN * (len(request.prompt) + len(request.source))), ()
        if request.config.num_beams > 1:
            generations = yield from self._search(run, logits, cache)
        else:
            # All samples continue from one prefilled cache: a step makes new arrays and does not write to its input.
            generations = ()
            for sequence in range(request.config.num_return_sequences):
                steps = yield from self._sample(run, logits.copy(), cache, sequence)
                generations += (Generation(steps),)
        return Answer(generations, tuple(scores.logprobs), tuple(scores.ranks), run.first_token_at)

    def _sample(
        self, run: _Run, logits: np.ndarray, cache: KvCache, sequence: int
    ) -> Generator[tuple[float, tuple[Step, ...]], None, tuple[Step, ...]]:
        """Greedy or sampled steps from a prefilled cache of one row."""
        state, steps = SequenceState(run.job.request, sequence), []  # type: tuple[SequenceState, list[Step]]
        while not run.job.cancelled():
            step = state.advance(logits)
            run.wrote()
            steps.append(step)
            yield 1.0, (step,) if sequence == 0 else ()
            if step.finish_reason is not None:
                break
            with self._masks.beside(() if state.guide is None else (state.guide,)):
                logits, cache = self._decoder.step(np.asarray([step.token_id]), cache)
        return tuple(steps)

    def _search(
        self, run: _Run, logits: np.ndarray, cache: KvCache
    ) -> Generator[tuple[float, tuple[Step, ...]], None, tuple[Generation, ...]]:
        search = BeamSearch(run.job.request)
        beams = run.job.request.config.num_beams
        logits = np.repeat(logits, beams, axis=0)
        cache = cache.select(np.zeros(beams, np.int64))
        while True:
            came_from, over = search.advance(logits)
            run.wrote()
            if over or run.job.cancelled():
                return search.generations()
            if (came_from != np.arange(len(came_from))).any():
                cache = cache.select(came_from)
            logits, cache = self._decoder.step(search.last_tokens, cache)
            yield float(beams), ()
