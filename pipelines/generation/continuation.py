"""Continuation: one sequence that grows, from the logits of a step to its next token, greedily or by sampling."""

import numpy as np

from pipelines.generation.logits import log_softmax, logits_processors
from pipelines.generation.request import Request, Step
from pipelines.generation.sampling import Sampler, top, warpers
from pipelines.generation.stopping import FinishReason, finish_reason


class Continuation:
    """The `sequence`-th answer to a request. What it chooses depends on nothing but the request and the logits."""

    def __init__(self, request: Request, sequence: int = 0) -> None:
        self._request = request
        self._processors = logits_processors(request.config, len(request.prompt))
        self._warpers = warpers(request.config)
        self._sampler = Sampler(request.seed, sequence)
        self._read = list(request.prompt)
        self._ids = np.empty((1, request.max_length), np.int64)  # the same, as the processors take it
        self._ids[0, : len(self._read)] = self._read

    @property
    def last_token(self) -> int:
        return self._read[-1]

    def advance(self, logits: np.ndarray) -> Step:
        """Choose the next token from the model's logits, (1, vocab), which may be changed."""
        # Processors and warpers change what they are given; the logprobs are the model's own.
        scores = logits.copy() if self._request.logprobs else logits
        for process in self._processors:
            process(self._ids[:, : len(self._read)], scores)
        for warp in self._warpers:
            warp(scores)
        config = self._request.config
        token = self._sampler.draw(scores[0]) if config.do_sample else int(scores[0].argmax())
        self._ids[0, len(self._read)] = token
        self._read.append(token)
        reason = finish_reason(
            self._read,
            eos_token_id=config.eos_token_id,
            max_length=self._request.max_length,
            stop=self._request.stop,
        )
        return _step(self._request, logits[0], token, reason)


def _step(request: Request, logits: np.ndarray, token: int, reason: FinishReason | None) -> Step:
    """A step with the logprobs that were asked for; `logits`, (vocab,), as the model gave them."""
    if not request.logprobs:
        return Step(token, finish_reason=reason)
    logprobs = log_softmax(logits)
    best = tuple((int(index), float(logprobs[index])) for index in top(logprobs, request.top_tokens))
    return Step(token, float(logprobs[token]), best, reason)


def prompt_logprobs(request: Request, start: int, logits: np.ndarray) -> list[float]:
    """The logprob of each prompt token that follows one of `logits`, (tokens, vocab), which begin at `start`."""
    following = request.prompt[start + 1 : start + 1 + len(logits)]
    logprobs = log_softmax(logits[: len(following)])
    found: list[float] = logprobs[np.arange(len(following)), list(following)].tolist()
    return found
