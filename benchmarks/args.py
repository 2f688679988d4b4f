"""BenchArgs: the options of `sextet bench SCENARIO`. Light: it imports no package of the extra `bench`."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pipelines.tasks import TASKS

SCENARIO_HELP = {
    "single-stream": "One request at a time: latency.",
    "offline": "As fast as it goes: throughput.",
    "server": "Poisson arrivals: the highest rate whose p99 latency meets --slo-ms.",
    "sweep": "A curve over a list of concurrencies or rates.",
    "soak": "One rate held for --duration-s: errors, and the memory of the replicas on this machine.",
}

_CHATTING = [name for name, task in TASKS.items() if task.chats]


@dataclass(frozen=True)
class BenchArgs:
    """What to send and how; the text of each field is its help. Durations are in seconds unless named otherwise."""

    scenario: str
    url: Annotated[str, "The ingress."] = "http://127.0.0.1:8000"
    task: Annotated[str, f"One of {', '.join(TASKS)}."] = next(iter(TASKS))
    protocol: Annotated[str, f"The API to speak: huggingface, or openai ({', '.join(_CHATTING)})."] = "huggingface"
    texts: Annotated[Path | None, "A file with one text per line, instead of --lengths."] = None
    lengths: Annotated[str, "Tokens of synthetic texts: fixed:N, uniform:LOW-HIGH or lognormal:MEDIAN,P95."] = (
        "lognormal:24,200"
    )
    n_texts: Annotated[int, "How many different texts are sent, over and over."] = 1000
    inputs_per_request: Annotated[int, "Texts in one request."] = 1
    stream: Annotated[bool, "Server-sent events: ttft, inter-token latency, tokens/s."] = False
    max_new_tokens: Annotated[int, "Of the generating tasks, decoded greedily."] = 32
    parameters: Annotated[str, "A JSON object for the body's parameters."] = "{}"
    artifact: Annotated[Path | None, "The served artifact: its tokenizer measures lengths, --against raw runs it."] = (
        None
    )
    against: Annotated[str | None, "raw: measure the artifact in this process too."] = None
    threads: Annotated[int, "Of the raw pipeline; as many as cores if absent."] = field(
        default_factory=lambda: len(os.sched_getaffinity(0))
    )
    concurrency: Annotated[str, "Requests under way at once; for sweep a list 1,2,4."] = ""
    rate: Annotated[str, "Requests per second; for sweep a list 10,20,40."] = ""
    slo_ms: Annotated[float | None, "The objective for the p99 latency; goodput counts by it."] = None
    duration_s: Annotated[float, "Of each measurement."] = 10.0
    warm_up_s: Annotated[float, "Sent before each measurement and not counted."] = 2.0
    repetitions: Annotated[int, "How often everything is measured: their spread is the noise."] = 3
    seed: Annotated[int, "Of texts, lengths and arrivals."] = 0
    timeout_s: Annotated[float, "After which a request has failed."] = 60.0
    processes: Annotated[int | None, "Load generators; as many as needed if absent."] = None
    output: Annotated[Path | None, "The result file; the page and plots lie beside it."] = None
