"""Engine: requests in token ids to generations in token ids; it knows no text and no tokenizer.

    prefill (the prompt, once) -> step (one token per row) -> choose -> stop?   ... until every row has stopped

Requests are decoded one after the other, so that an answer never depends on its neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.base import Cancelled, never
from pipelines.generation.beam_search import BeamSearch, Hypothesis
from pipelines.generation.config import GenerationConfig
from pipelines.generation.decoder import Decoder
from pipelines.generation.kv_cache import KvCache
from pipelines.generation.logits import log_softmax, logits_processors
from pipelines.generation.sampling import Sampler, top, warpers
from pipelines.generation.stopping import FinishReason, StopCriterion, finish_reason


@dataclass(frozen=True)
class Request:
    """One prompt to go on from, and everything that decides how; a row of a batch.

    `source` is what an encoder reads first, empty for decoder-only models. `config` is resolved for this prompt.
    `top_tokens` is how many alternatives to report beside each token; it and `prompt_logprobs` need `logprobs`.
    """

    prompt: tuple[int, ...]
    config: GenerationConfig
    source: tuple[int, ...] = ()
    seed: int = 0
    stop: StopCriterion | None = None
    logprobs: bool = False
    top_tokens: int = 0
    prompt_logprobs: bool = False

    @property
    def n_tokens(self) -> int:
        """What this request may hold in the cache at its end: source, prompt and answer of all its sequences."""
        return len(self.source) + self.max_length * self.config.n_sequences

    @property
    def max_length(self) -> int:
        """Prompt and answer together, in tokens."""
        assert self.config.max_length is not None, "the config of a request is resolved"
        return self.config.max_length


@dataclass(frozen=True)
class Step:
    """One new token. `logprob` is the model's own, before penalties and sampling; None where nobody asked for it.

    `top` are the most likely tokens and their logprobs, best first. `finish_reason` is set on a sequence's last step.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Generation:
    """One finished sequence, without its prompt; `finish_reason` is None where decoding was cancelled."""

    steps: tuple[Step, ...]

    @property
    def token_ids(self) -> list[int]:
        return [step.token_id for step in self.steps]

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.steps[-1].finish_reason if self.steps else None


@dataclass(frozen=True)
class Answer:
    """What became of a request: its sequences, best first, and the logprob of each prompt token after the first."""

    generations: tuple[Generation, ...]
    prompt_logprobs: tuple[float, ...] = ()


class Engine:
    """Decodes on one model. Thread-safe: all state of a request lives in the call that decodes it."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def generate(self, request: Request, cancelled: Cancelled = never) -> Answer:
        """Decode to the end; what there is so far where `cancelled()` turned true, which is asked at every step."""
        prompt_logprobs: list[float] = []
        logits, cache = self._prefill(request, cancelled, prompt_logprobs)
        if request.config.num_beams > 1:
            generations = self._search(request, logits, cache, cancelled)
        else:
            # All samples go on from the one prefilled cache: a step makes new arrays and leaves its input alone.
            generations = tuple(
                Generation(tuple(self._decode(request, logits, cache, sequence, cancelled)))
                for sequence in range(request.config.num_return_sequences)
            )
        return Answer(generations, tuple(prompt_logprobs))

    def stream(self, request: Request, cancelled: Cancelled = never) -> Iterator[Step]:
        """The steps of the first sequence as they come, without beams; ends early where `cancelled()` turns true."""
        assert request.config.num_beams == 1, "beams are known only at the end"
        logits, cache = self._prefill(request, cancelled, [])
        yield from self._decode(request, logits, cache, 0, cancelled)

    def _prefill(
        self, request: Request, cancelled: Cancelled, prompt_logprobs: list[float]
    ) -> tuple[np.ndarray, KvCache]:
        """Logits after the prompt, (1, vocab), and its cache; fills `prompt_logprobs` where they are asked for."""

        def collect(start: int, logits: np.ndarray) -> None:
            following = request.prompt[start + 1 : start + 1 + len(logits)]
            logprobs = log_softmax(logits[: len(following)])
            prompt_logprobs.extend(logprobs[np.arange(len(following)), list(following)].tolist())

        on_logits = collect if request.prompt_logprobs else None
        return self._decoder.prefill(request.prompt, request.source, cancelled, on_logits)

    def _decode(
        self, request: Request, logits: np.ndarray, cache: KvCache, sequence: int, cancelled: Cancelled
    ) -> Iterator[Step]:
        """Greedy or sampled steps from a prefilled cache of one row."""
        config = request.config
        processors = logits_processors(config, len(request.prompt))
        chain = warpers(config)
        sampler = Sampler(request.seed, sequence)
        read = list(request.prompt)
        ids = np.empty((1, request.max_length), np.int64)  # the same, as the processors take it
        ids[0, : len(read)] = read
        while not cancelled():
            # Processors and warpers change what they are given; the logprobs are the model's own.
            scores = logits.copy() if request.logprobs else logits
            for process in processors:
                process(ids[:, : len(read)], scores)
            for warp in chain:
                warp(scores)
            token = sampler.draw(scores[0]) if config.do_sample else int(scores[0].argmax())
            ids[0, len(read)] = token
            read.append(token)
            reason = finish_reason(
                read, eos_token_id=config.eos_token_id, max_length=request.max_length, stop=request.stop
            )
            yield _step(request, logits[0], token, reason)
            if reason is not None:
                return
            logits, cache = self._decoder.step(ids[:, len(read) - 1], cache)

    def _search(
        self, request: Request, logits: np.ndarray, cache: KvCache, cancelled: Cancelled
    ) -> tuple[Generation, ...]:
        search = BeamSearch(
            request.prompt,
            request.config,
            logits_processors(request.config, len(request.prompt)),
            warpers(request.config),
            Sampler(request.seed),
            request.stop,
        )
        return tuple(
            _generation(hypothesis, len(request.prompt))
            for hypothesis in search.run(self._decoder, logits, cache, cancelled)
        )


def _step(request: Request, logits: np.ndarray, token: int, reason: FinishReason | None) -> Step:
    """A step with the logprobs that were asked for; `logits`, (vocab,), as the model gave them."""
    if not request.logprobs:
        return Step(token, finish_reason=reason)
    logprobs = log_softmax(logits)
    best = tuple((int(index), float(logprobs[index])) for index in top(logprobs, request.top_tokens))
    return Step(token, float(logprobs[token]), best, reason)


def _generation(hypothesis: Hypothesis, prompt_tokens: int) -> Generation:
    *before, last = hypothesis.ids[prompt_tokens:]
    return Generation((*map(Step, before), Step(last, finish_reason=hypothesis.finish_reason)))
