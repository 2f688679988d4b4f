"""What structured output costs a step, and what prompt lookup gives: on the engine in this process, without HTTP."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from time import perf_counter

from benchmarks import Say
from benchmarks.load.schemas import document, misfit
from benchmarks.suites.engines.local_engine import LocalEngine
from benchmarks.suites.suite import Rates
from deployments.guidance.compiler import LlGuidance
from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.guide import Constraint
from pipelines.generation.decoding.request import DecodeRequest
from pipelines.generation.slots.config import SlotsConfig
from pipelines.runtime.artifact import ModelArtifact

LOOKUP_TOKENS = 8
SCHEMAS = 100  # in a repetition
LONGEST_DOCUMENT = 150  # tokens
COPIES = 4  # texts that are rewritten, one after the other
_NAMED = {"type": "object", "properties": {"name": {"type": "string"}, "born": {"type": "integer"}}}
SCHEMA = {"type": "array", "minItems": 100, "items": {**_NAMED, "required": ["name", "born"]}}
"""Of a document that does not end within a measurement."""


def measure(
    rates: Rates,
    artifact: Path,
    slots: SlotsConfig,
    threads: int,
    prompts: Sequence[list[int]],
    tokens: int,
    say: Say,
    repetition: int = 0,
) -> None:
    """`prompts` are as many as slots; each row writes `tokens`. Every repetition has random schemas of its own."""
    plain = LocalEngine(artifact, threads, slots)
    looking = LocalEngine(artifact, threads, replace(slots, lookup_tokens=LOOKUP_TOKENS))
    opened = ModelArtifact.open(artifact)
    eos = int(opened.generation_config()["eos_token_id"])
    compiler = LlGuidance(opened, [eos])
    grammar = compiler.compile(Constraint("json_schema", json.dumps(SCHEMA)))
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
    if (valid := _valid(plain, compiler, eos, prompts[0], Random(repetition))) is not None:
        rates.note(guided_valid=valid)
    names = ("guided_overhead", "guided_valid", "lookup_speedup", "lookup_crowd")
    say(", ".join(f"{name} {rates.figures[name][-1]:.2f}" for name in names if name in rates.figures))


def _valid(local: LocalEngine, compiler: LlGuidance, eos: int, prompt: Sequence[int], random: Random) -> float | None:
    """Of the answers to random schemas that end by themselves, the share that are documents of their schema."""
    schemas = [document(random) for _ in range(SCHEMAS)]
    config = GenerationConfig(max_length=len(prompt) + LONGEST_DOCUMENT, eos_token_id=(eos,), do_sample=True)
    requests = [
        DecodeRequest(
            tuple(prompt),
            replace(config, temperature=random.choice((0.5, 1.5))),
            seed=number,
            grammar=compiler.compile(Constraint("json_schema", json.dumps(schema))),
        )
        for number, schema in enumerate(schemas)
    ]
    answers = [answer.generations[0] for answer in local.engine.generate_all(requests)]
    ended = [
        misfit(local.tokenizer.decode(answer.token_ids), schema) is None
        for answer, schema in zip(answers, schemas, strict=True)
        if answer.finish_reason == "eos_token"
    ]
    return sum(ended) / len(ended) if ended else None


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
