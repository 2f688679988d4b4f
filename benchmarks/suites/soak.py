"""Soak: ten minutes at 70% of the server's capacity, and how much the memory of a replica grew.

    python -m benchmarks.suites.soak                      what `make soak` does
    python -m benchmarks.suites.soak --duration-s 20      whether it works

Writes benchmarks/results/soak.json with its page, and docs/performance.md; prints one line of JSON last.
"""

import argparse
import json
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.figures.page import write_page
from benchmarks.figures.report import write_report
from benchmarks.figures.result import Result, default_path
from benchmarks.load.bodies import BodyConfig, calls
from benchmarks.load.generator import Load, measure
from benchmarks.load.texts import Lengths, counter, synthetic
from benchmarks.scenarios import OFFLINE_CONCURRENCY, ScenarioConfig, bottlenecks, soak
from benchmarks.suites.cluster import CLASSIFY, measured_cluster, running
from benchmarks.suites.shapes import MINILM_L6, ensure
from benchmarks.suites.suite import say
from pipelines.errors import SextetError
from pipelines.runtime.artifact import ModelArtifact

TASK = CLASSIFY
LENGTHS = "lognormal:24,200"
THREADS = 2
SHARE = 0.7  # of the capacity
CAPACITY_S = 10.0
DURATION_S = 600.0
WARM_UP_SHARE = 0.05  # of the duration, after which memory arenas have grown to their size


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and errors of a replica under a load that it can bear.")
    parser.add_argument("--duration-s", type=float, default=DURATION_S)
    duration_s = parser.parse_args().duration_s
    try:
        result = run(duration_s)
    except SextetError as error:
        sys.exit(f"soak: {error}")
    if duration_s >= DURATION_S:
        path = default_path(result.name)
        result.write(path)
        write_page(result, path.with_suffix(".html"))
        write_report()
    print(json.dumps(result.headline()))


def run(duration_s: float) -> Result:
    """Raises a SextetError where the model or the cluster cannot be made."""
    artifact = ModelArtifact.open(ensure(MINILM_L6, say))
    texts = synthetic(Lengths.parse(LENGTHS), 512, 0, counter(artifact), artifact.manifest.tokenizer.max_length)
    with (
        tempfile.TemporaryDirectory(prefix="sextet-soak-") as folder,
        running(measured_cluster({TASK.name: artifact.path}, THREADS), Path(folder)) as cluster,
    ):
        made = calls(f"127.0.0.1:{cluster.port}", "", TASK, texts, 1, BodyConfig())
        load = Load("127.0.0.1", cluster.port, made, duration_s=min(CAPACITY_S, duration_s), warm_up_s=2.0)
        capacity_per_s = measure(replace(load, concurrency=OFFLINE_CONCURRENCY)).per_s["requests"]
        rate_per_s = SHARE * capacity_per_s
        say(f"capacity {capacity_per_s:.1f} requests/s; holding {rate_per_s:.1f}/s for {duration_s:.0f} s")
        load = replace(load, duration_s=duration_s, warm_up_s=WARM_UP_SHARE * duration_s)
        config = ScenarioConfig(load, rates=(rate_per_s,), processes=1, task=TASK.name, server_pid=cluster.process_id)
        outcome = soak(config, None, say)
    growth = outcome.figures.pop("memory_growth", [])
    return Result(
        name="soak",
        scenario="soak",
        command="make soak"
        if duration_s >= DURATION_S
        else shlex.join(["python", "-m", "benchmarks.suites.soak", *sys.argv[1:]]),
        load={
            "task": TASK.name,
            "model": MINILM_L6.name,
            "lengths": LENGTHS,
            "rate_per_s": rate_per_s,
            "threads": THREADS,
        },
        figures={"soak_memory_growth": growth, **outcome.figures} if growth else outcome.figures,
        points=outcome.points,
        memory=outcome.memory,
        warnings=bottlenecks(outcome.points),
    )


if __name__ == "__main__":
    main()
