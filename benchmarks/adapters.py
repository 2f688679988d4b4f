"""What adapters beside their base cost: tokens/s of a slot engine, with and without them, in turns.

    python -m benchmarks.adapters models/text-generation                   rank 16 on query and value, four adapters
    python -m benchmarks.adapters models/text-generation --layers all --rank 32

Adapters of random weights: the time depends on shapes alone. Each line is the median of several rounds; every round
measures all of them, in another order. Sequences begin with a short prompt, and decode greedily.

    plain       the artifact's own graph, as it is served without `adapters`
    base        the graph with adapters, no row of one
    one         every row of the same adapter
    mixed       the rows of all adapters in turn, and of the base
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from deployments.cluster.processes import resident_bytes
from deployments.host import give_memory_back
from pipelines.errors import SextetError
from pipelines.generation.adapters.graph import points_of
from pipelines.generation.adapters.lora import Lora
from pipelines.generation.adapters.point import Point
from pipelines.generation.adapters.stack import AdapterStack
from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import DecodeRequest
from pipelines.generation.open import open_engine
from pipelines.generation.slots.config import SlotsConfig
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session_config import SessionConfig

PROMPT, WINDOW, MIB = 16, 256, 2**20
USUAL = ("q_proj", "v_proj", "c_attn", "query_key_value", "qkv_proj")
"""The ends of the names of layers that PEFT adapts by default."""


def random_adapter(points: list[Point], name: str, rank: int, seed: int, *, everywhere: bool) -> Lora:
    """An adapter of small random weights on some layers, or on all."""
    rng = np.random.default_rng(seed)
    layers = {
        part.layer: (
            rng.standard_normal((rank, point.width), np.float32) * np.float32(0.01),
            rng.standard_normal((part.width, rank), np.float32) * np.float32(0.01),
        )
        for point in points
        for part in point.parts
        if everywhere or part.layer.endswith(USUAL)
    }
    return Lora(name, "", "", layers)


def requests(rows: int, adapters: tuple[int, ...], new_tokens: int) -> Iterator[DecodeRequest]:
    """Rows of these adapters in turn, each with a prompt of its own."""
    config = GenerationConfig(max_new_tokens=new_tokens).for_prompt(PROMPT, WINDOW)
    for row in range(rows):
        yield DecodeRequest(tuple(range(10 + row, 10 + row + PROMPT)), config, adapter=adapters[row % len(adapters)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapters", description=__doc__.split("\n")[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--layers", choices=("usual", "all"), default="usual")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    try:
        found = measured(args)
    except SextetError as error:
        sys.exit(str(error))
    print(json.dumps(found))


def measured(args: argparse.Namespace) -> dict[str, float]:
    """Tokens/s by rows and kind, and MiB."""
    artifact, config = ModelArtifact.open(args.artifact), SessionConfig(threads=args.threads)
    slots = SlotsConfig(max(args.rows), WINDOW, prefix_cache=False)
    give_memory_back()
    before = resident_bytes()
    plain = open_engine(artifact, config, slots)
    give_memory_back()
    plain_bytes = resident_bytes() - before
    graph = artifact.graph("model")
    points = points_of(graph)
    everywhere = args.layers == "all"
    loras = [random_adapter(points, f"a{n}", args.rank, n, everywhere=everywhere) for n in range(args.adapters)]
    stack = AdapterStack(str(graph.parent), points, loras)
    del loras
    give_memory_back()
    before = resident_bytes()
    adapted = open_engine(artifact, config, slots, stack)
    give_memory_back()
    adapted_bytes = resident_bytes() - before
    every = tuple(range(args.adapters + 1))
    kinds = {"plain": (plain, (0,)), "base": (adapted, (0,)), "one": (adapted, (1,)), "mixed": (adapted, every)}
    rates: dict[str, list[float]] = {}
    for repetition in range(args.repetitions + 1):
        for name in list(kinds)[:: -1 if repetition % 2 else 1]:
            engine, adapters = kinds[name]
            for rows in args.rows:
                if name == "mixed" and rows == 1:
                    continue
                began = perf_counter()
                answers = engine.generate_all(list(requests(rows, adapters, args.new_tokens)))
                written = sum(len(answer.generations[0].steps) for answer in answers)
                if repetition:  # the first warms up
                    rates.setdefault(f"{name}_{rows}", []).append(written / (perf_counter() - began))
    medians = {name: round(median(some), 1) for name, some in rates.items()}
    for rows in args.rows:
        ours = {name: medians[f"{name}_{rows}"] for name in kinds if f"{name}_{rows}" in medians}
        print(f"{rows:3} rows  " + "  ".join(f"{name} {rate:7.1f}" for name, rate in ours.items()) + "  tokens/s")
    memory = {
        "plain_mib": plain_bytes // MIB,
        "adapted_mib": adapted_bytes // MIB,
        "adapters_mib": sum(one.memory_bytes for one in stack.adapters) // MIB,
    }
    print("  ".join(f"{name} {value}" for name, value in memory.items()))
    return medians | memory


if __name__ == "__main__":
    main()
