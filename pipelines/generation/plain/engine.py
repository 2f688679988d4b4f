"""Engine: requests in token ids to generations in token ids; it knows no text and no tokenizer.

    prefill (the prompt, once) -> step (one token per row) -> choose -> stop?   ... until every row has stopped

Requests are decoded one after the other, so that an answer never depends on its neighbours.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from pipelines.generation.decoding.beam_search import BeamSearch
from pipelines.generation.decoding.continuation import Continuation, prompt_logprobs
from pipelines.generation.decoding.request import Answer, Cancelled, Generation, Request, Step, never
from pipelines.generation.plain.decoder import Decoder
from pipelines.generation.plain.kv_cache import KvCache


class Engine:
    """Decodes on one model. Thread-safe: all state of a request lives in the call that decodes it."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def generate(self, request: Request, cancelled: Cancelled = never) -> Answer:
        """Decode to the end; what there is so far where `cancelled()` turned true, which is asked at every step."""
        of_prompt: list[float] = []
        logits, cache = self._prefill(request, cancelled, of_prompt)
        if request.config.num_beams > 1:
            generations = self._search(request, logits, cache, cancelled)
        else:
            # All samples go on from the one prefilled cache: a step makes new arrays and leaves its input alone.
            generations = tuple(
                Generation(tuple(self._decode(request, logits.copy(), cache, sequence, cancelled)))
                for sequence in range(request.config.num_return_sequences)
            )
        return Answer(generations, tuple(of_prompt))

    def generate_all(self, requests: Sequence[Request], cancelled: Cancelled = never) -> list[Answer]:
        """An answer for each request, one after the other."""
        return [self.generate(request, cancelled) for request in requests]

    def stream(self, request: Request, cancelled: Cancelled = never) -> Iterator[Step]:
        """The steps of the first sequence as they come, without beams; ends early where `cancelled()` turns true."""
        assert request.config.num_beams == 1, "beams are known only at the end"
        logits, cache = self._prefill(request, cancelled, [])
        yield from self._decode(request, logits, cache, 0, cancelled)

    def _prefill(self, request: Request, cancelled: Cancelled, of_prompt: list[float]) -> tuple[np.ndarray, KvCache]:
        """Logits after the prompt, (1, vocab), and its cache; fills `of_prompt` where logprobs are asked for."""

        def collect(start: int, logits: np.ndarray) -> None:
            of_prompt.extend(prompt_logprobs(request, start, logits))

        on_logits = collect if request.prompt_logprobs else None
        return self._decoder.prefill(request.prompt, request.source, cancelled, on_logits)

    def _decode(
        self, request: Request, logits: np.ndarray, cache: KvCache, sequence: int, cancelled: Cancelled
    ) -> Iterator[Step]:
        """Greedy or sampled steps from a prefilled cache of one row."""
        continuation = Continuation(request, sequence)
        while not cancelled():
            step = continuation.advance(logits)
            yield step
            if step.finish_reason is not None:
                return
            logits, cache = self._decoder.step(np.asarray([step.token_id]), cache)

    def _search(
        self, request: Request, logits: np.ndarray, cache: KvCache, cancelled: Cancelled
    ) -> tuple[Generation, ...]:
        search = BeamSearch(request)
        logits = np.repeat(logits, request.config.num_beams, axis=0)
        cache = cache.select(np.zeros(len(logits), np.int64))
        while True:
            came_from, over = search.advance(logits)
            if over or cancelled():
                return search.generations()
            if (came_from != np.arange(len(came_from))).any():
                cache = cache.select(came_from)
            logits, cache = self._decoder.step(search.last_tokens, cache)
