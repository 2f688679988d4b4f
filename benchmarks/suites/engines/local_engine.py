"""LocalEngine: the slot engine in this process, without HTTP; prompts and answers are token ids."""

import threading
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from time import perf_counter

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import DecodeRequest
from pipelines.generation.open import open_engine
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.engine import SlotEngine
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session_config import SessionConfig
from pipelines.runtime.tokenizer import Tokenizer


class LocalEngine:
    """A decoder-only artifact with a slot graph."""

    def __init__(self, artifact: Path, threads: int, slots: SlotsConfig) -> None:
        opened = ModelArtifact.open(artifact)
        engine = open_engine(opened, SessionConfig(threads=threads), slots)
        assert isinstance(engine, SlotEngine), "its cache is in slots"
        self.engine, self.tokenizer = engine, Tokenizer(opened)

    def write(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """Exactly so many tokens, greedily; raises what the engine raises."""
        length = len(prompt) + new_tokens
        config = GenerationConfig(max_length=length, min_length=length, eos_token_id=())
        return self.engine.generate(DecodeRequest(tuple(prompt), config)).generations[0].token_ids

    def tokens_per_s(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, clients: int, warm_up_s: float, window_s: float
    ) -> float:
        """Of `clients` threads, each with a request under way all the time; they take the prompts in turn.

        The window begins and ends with an answer, as in the closed loop of the load generator: answers of one length
        arrive in groups, and a window that ended at any time would count a whole group more or less.
        """
        turns, lock = cycle(prompts), threading.Lock()
        answered: list[float] = []
        opens_at = perf_counter() + warm_up_s

        def ask() -> None:
            while not (answered and answered[-1] >= answered[0] + window_s):
                with lock:
                    prompt = next(turns)
                self.write(prompt, new_tokens)
                with lock:
                    if (now := perf_counter()) >= opens_at:
                        answered.append(now)

        threads = [threading.Thread(target=ask) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        closes_at = next(one for one in answered if one >= answered[0] + window_s)
        return new_tokens * sum(one < closes_at for one in answered) / (closes_at - answered[0])
