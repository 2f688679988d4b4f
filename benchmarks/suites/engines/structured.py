"""What structured output costs a step, and what prompt lookup gives: on the engine in this process, without HTTP."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from benchmarks import Say
from benchmarks.suites.engines.local_engine import LocalEngine
from benchmarks.suites.suite import Rates
from deployments.guidance.compiler import LlGuidance
from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.guide import Constraint
from pipelines.generation.decoding.request import DecodeRequest
from pipelines.generation.slots.config import SlotsConfig
from pipelines.runtime.artifact import ModelArtifact

LOOKUP_TOKENS = 8
COPIES = 4  # texts that are rewritten, one after the other
_NAMED = {"type": "object", "properties": {"name": {"type": "string"}, "born": {"type": "integer"}}}
SCHEMA = {"type": "array", "minItems": 100, "items": {**_NAMED, "required": ["name", "born"]}}
"""Of a document that does not end within a measurement."""


def measure(
    rates: Rates, artifact: Path, slots: SlotsConfig, threads: int, prompts: Sequence[list[int]], tokens: int, say: Say
) -> None:
    """`prompts` are as many as slots; each row writes `tokens`."""
    plain = LocalEngine(artifact, threads, slots)
    looking = LocalEngine(artifact, threads, replace(slots, lookup_tokens=LOOKUP_TOKENS))
    opened = ModelArtifact.open(artifact)
    eos = int(opened.generation_config()["eos_token_id"])
    grammar = LlGuidance(opened, [eos]).compile(Constraint("json_schema", json.dumps(SCHEMA)))
    free = [_request(prompt, tokens) for prompt in prompts]
    guided = [replace(one, grammar=grammar, config=replace(one.config, eos_token_id=(eos,))) for one in free]
    copied = [_request([*prompt, *prompt[: len(prompt) // 2]], tokens) for prompt in prompts[:COPIES]]
    for local in (plain, looking):  # warm
        local.engine.generate_all(free)
    rates.note(
        guided_overhead=_seconds(plain, [guided]) / _seconds(plain, [free]),
        lookup_speedup=_seconds(plain, [[one] for one in copied]) / _seconds(looking, [[one] for one in copied]),
        lookup_crowd=_seconds(plain, [free]) / _seconds(looking, [free]),
    )
    names = ("guided_overhead", "lookup_speedup", "lookup_crowd")
    say(", ".join(f"{name} {rates.figures[name][-1]:.2f}" for name in names))


def _request(prompt: Sequence[int], tokens: int) -> DecodeRequest:
    length = len(prompt) + tokens
    return DecodeRequest(tuple(prompt), GenerationConfig(max_length=length, eos_token_id=()))


def _seconds(local: LocalEngine, batches: Sequence[Sequence[DecodeRequest]]) -> float:
    """Of decoding batch after batch. The prompts are in the prefix cache: each was asked for one token before."""
    total = 0.0
    for batch in batches:
        firsts = [replace(one.config, max_length=len(one.prompt) + 1) for one in batch]
        local.engine.generate_all([replace(one, config=first) for one, first in zip(batch, firsts, strict=True)])
        began = perf_counter()
        local.engine.generate_all(batch)
        total += perf_counter() - began
    return total
