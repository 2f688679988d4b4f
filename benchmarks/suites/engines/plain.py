"""What KV cache slots give: the same model on Optimum's graph, whose requests take turns, in this process."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import DecodeRequest
from pipelines.generation.open import open_engine
from pipelines.generation.slots.config import SlotsConfig
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session_config import SessionConfig

TAKING_TURNS = 4
"""Streams of the plain graph: its rate does not grow with them, and all sixteen would take a minute."""


def slots_over_plain(
    slots: Path, plain: Path, config: SlotsConfig, threads: int, prompts: Sequence[list[int]], tokens: int
) -> float:
    """New tokens/s of one stream for each prompt, in slots over the plain graph."""
    return _tokens_per_s(slots, config, threads, prompts, tokens) / _tokens_per_s(
        plain, config, threads, prompts[:TAKING_TURNS], tokens
    )


def _tokens_per_s(
    artifact: Path, config: SlotsConfig, threads: int, prompts: Sequence[list[int]], tokens: int
) -> float:
    engine = open_engine(ModelArtifact.open(artifact), SessionConfig(threads=threads), config)
    requests = [_request(prompt, tokens) for prompt in prompts]
    engine.generate_all([_request(prompt, 1) for prompt in prompts[:2]])  # warm
    began = perf_counter()
    engine.generate_all(requests)
    return len(requests) * tokens / (perf_counter() - began)


def _request(prompt: Sequence[int], tokens: int) -> DecodeRequest:
    return DecodeRequest(tuple(prompt), GenerationConfig(max_length=len(prompt) + tokens, eos_token_id=()))
