"""Footprint: what it costs to run Sextet at all, before any load.

    python -m benchmarks.suites.footprint cluster.yaml

Starts the real cluster with `sextet serve` and measures the seconds until it is ready, the resident memory of each
replica above its model files, and the latency of one request at a time over HTTP against the same artifact called
in-process with the same threads. Then it runs `make serve` in a clone. Writes benchmarks/results/footprint.json and
docs/performance.md, and prints one line of JSON last.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pipelines
from benchmarks.figures.report import write_report
from benchmarks.figures.result import default_path, describe
from benchmarks.load.asker import Asker
from benchmarks.replicas import find, resident_bytes
from benchmarks.suites.cluster import running
from benchmarks.suites.fresh import fresh_serve_s
from benchmarks.suites.suite import say
from deployments.config import located, user_configs
from pipelines.errors import SextetError
from pipelines.tasks import TASKS

MIB = 2**20
NEW_TOKENS = 32  # of a task that generates
FEWEST, MOST = 10, 200  # repetitions of a request
ENOUGH_S = 5.0  # no repetition begins later, unless there are too few


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds to ready, memory per replica, latency against in-process.")
    parser.add_argument("cluster", nargs="?", type=Path, default=Path("cluster.yaml"))
    parser.add_argument("--no-fresh", action="store_true", help="leave out the start from a clone; nothing is written")
    args = parser.parse_args()
    try:
        result = run(args.cluster)
        if not args.no_fresh:
            result["figures"]["fresh_serve_s"] = [fresh_serve_s(say)]
    except (SextetError, OSError, HTTPException) as error:
        sys.exit(f"footprint: {error}")
    if not args.no_fresh:
        default_path("footprint").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        write_report()
    medians = {name: statistics.median(values) for name, values in result["figures"].items()}
    print(json.dumps({"name": result["name"], **medians}))


def run(cluster: Path) -> dict[str, Any]:
    """The figures of a cluster.yaml; raises SextetError, or OSError and HTTPException where a task does not answer."""
    configuration = located(cluster)
    configured = user_configs(configuration)
    with (
        tempfile.TemporaryDirectory(prefix="sextet-bench-") as folder,
        running(configuration, Path(folder)) as serving,
    ):
        served_ms = {task: _served_ms(task, serving.port) for task in configured}
        memory = {task: resident_bytes(process_id) or 0 for process_id, task in find(serving.process_id).items()}
        stopping_at = time.perf_counter()
    stop_s = time.perf_counter() - stopping_at
    rows: list[dict[str, Any]] = []
    for task, user_config in configured.items():
        artifact = Path(user_config["model"])
        files_mib = sum(file.stat().st_size for file in artifact.glob("*.onnx*")) / MIB
        in_process_ms = _in_process_ms(task, artifact, user_config.get("threads") or 1)
        rows.append(
            {
                "task": task,
                "model_files_mib": files_mib,
                "resident_mib": memory[task] / MIB,
                "above_files_mib": memory[task] / MIB - files_mib,
                "in_process_p50_ms": in_process_ms,
                "served_p50_ms": served_ms[task],
                "added_p50_ms": served_ms[task] - in_process_ms,
            }
        )
    return {
        "name": "footprint",
        "command": "make measure",
        "machine": describe(),
        "ready_s": serving.ready_s,
        "stop_s": stop_s,
        "figures": {
            "restart_s": [serving.ready_s],
            "replica_overhead_mib": [max(row["above_files_mib"] for row in rows)],
        },
        "tasks": rows,
    }


def payload(task: str) -> tuple[Any, dict[str, Any]]:
    """Input and parameters of the task's first example, with NEW_TOKENS where it generates."""
    example = TASKS[task].examples[0]
    return example.inputs, {**example.parameters, **TASKS[task].bounded(NEW_TOKENS)}


def _served_ms(task: str, port: int) -> float:
    inputs, parameters = payload(task)
    body = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    asker = Asker(port)
    return _p50_ms(lambda: asker.ask(f"/{task}", body))


def _in_process_ms(task: str, artifact: Path, threads: int) -> float:
    inputs, parameters = payload(task)
    pipeline = pipelines.load(artifact, threads=threads)
    return _p50_ms(lambda: pipeline(inputs, **parameters))


def _p50_ms(call: Callable[[], Any]) -> float:
    """Median milliseconds of the calls that fit into ENOUGH_S, after a tenth of that as warm-up."""
    _times_ms(call, ENOUGH_S / 10, 3)
    gc.collect()
    return statistics.median(_times_ms(call, ENOUGH_S, FEWEST))


def _times_ms(call: Callable[[], Any], enough_s: float, fewest: int) -> list[float]:
    times_ms: list[float] = []
    ends_at = time.perf_counter() + enough_s
    while len(times_ms) < fewest or (len(times_ms) < MOST and time.perf_counter() < ends_at):
        started_at = time.perf_counter()
        call()
        times_ms.append(1000 * (time.perf_counter() - started_at))
    return times_ms


if __name__ == "__main__":
    main()
