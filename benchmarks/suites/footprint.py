"""Footprint: what it costs to run Sextet at all, before any load.

    python -m benchmarks.suites.footprint cluster.yaml

Starts the real cluster with `sextet serve` and measures the seconds until it is ready, the resident memory of each
replica above its model files, and the latency of one request at a time over HTTP against the same artifact called
in-process with the same threads. Writes benchmarks/results/footprint.json and docs/performance.md.
"""

import argparse
import gc
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import yaml

import pipelines
from benchmarks.figures.machine import describe
from benchmarks.figures.report import RESULTS, write_report
from benchmarks.load.payloads import PAYLOADS
from benchmarks.suites.cluster import free_port
from benchmarks.suites.replicas import find, resident_bytes

MIB = 2**20
REPETITIONS = {"translation": 60, "summarization": 10, "text-generation": 15}
DEFAULT_REPETITIONS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds to ready, memory per replica, latency against in-process.")
    parser.add_argument("cluster", nargs="?", type=Path, default=Path("cluster.yaml"))
    cluster = parser.parse_args().cluster
    port = free_port()
    command = [sys.executable, "-m", "sextet", "serve", str(cluster), "--port", str(port)]
    started = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        ready_s = _seconds_until_ready(server, started)
        served = {task: _served(task, port) for task in PAYLOADS}
        memory = _replica_memory(server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        stopping = time.perf_counter()
        server.communicate(timeout=60)
    stop_s = time.perf_counter() - stopping

    rows = []
    for task, config in _user_configs(cluster).items():
        artifact = cluster.parent / config["model"]
        files_mib = sum(file.stat().st_size for file in artifact.glob("*.onnx*")) / MIB
        in_process_ms = _in_process(task, artifact, config.get("threads") or 1)
        rows.append(
            {
                "task": task,
                "model_files_mib": files_mib,
                "resident_mib": memory[task] / MIB,
                "above_files_mib": memory[task] / MIB - files_mib,
                "in_process_p50_ms": in_process_ms,
                "served_p50_ms": served[task],
                "added_p50_ms": served[task] - in_process_ms,
            }
        )
    result = {
        "name": "footprint",
        "command": "make measure",
        "machine": describe(),
        "ready_s": ready_s,
        "stop_s": stop_s,
        "tasks": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "footprint.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_report()
    print(json.dumps(result))


def _seconds_until_ready(server: "subprocess.Popen[str]", started: float) -> float:
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith("ready "):
            return time.perf_counter() - started
    sys.exit("footprint: sextet serve ended before it was ready; its own message is above")


def _served(task: str, port: int) -> float:
    payload = PAYLOADS[task]
    body = json.dumps({"inputs": payload.inputs, "parameters": payload.parameters}).encode()
    connection = HTTPConnection("127.0.0.1", port)

    def request() -> None:
        connection.request("POST", f"/{task}", body, {"content-type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            sys.exit(f"footprint: {task} answered {response.status}: {answer.decode()}")

    return _p50_ms(request, REPETITIONS.get(task, DEFAULT_REPETITIONS))


def _in_process(task: str, artifact: Path, threads: int) -> float:
    payload = PAYLOADS[task]
    pipeline = pipelines.load(artifact, threads=threads)
    return _p50_ms(lambda: pipeline(payload.inputs, **payload.parameters), REPETITIONS.get(task, DEFAULT_REPETITIONS))


def _p50_ms(call: Callable[[], Any], repetitions: int) -> float:
    """Median milliseconds of `repetitions` calls, after a tenth of them as warm-up."""
    for _ in range(max(3, repetitions // 10)):
        call()
    gc.collect()
    times_ms = []
    for _ in range(repetitions):
        started = time.perf_counter()
        call()
        times_ms.append((time.perf_counter() - started) * 1000)
    return statistics.median(times_ms)


def _replica_memory(server_pid: int) -> dict[str, int]:
    """Resident bytes of each task's replica."""
    return {task: resident_bytes(process_id) or 0 for process_id, task in find(server_pid).items()}


def _user_configs(cluster: Path) -> dict[str, dict[str, Any]]:
    applications = yaml.safe_load(cluster.read_text(encoding="utf-8"))["applications"]
    deployments = (deployment for application in applications for deployment in application.get("deployments", []))
    return {one["name"]: one["user_config"] for one in deployments if one["name"] in PAYLOADS}


if __name__ == "__main__":
    main()
