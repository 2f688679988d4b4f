"""Generation: the figures of models that write, in one run.

    python -m benchmarks.suites.generation                what `make bench-generation` does
    python -m benchmarks.suites.generation --quick        one repetition of seconds, to see whether it works

SmolLM2-135M and the translation starter are exported and served as cluster.yaml says (SmolLM2 with sixteen slots), and
measured in turn with other engines on the same weights, prompts and lengths. One stream alone is measured in int4 as
well, because reading the weights takes most of its time. No prompt is repeated while a KV cache slot may still hold it,
so each is prefilled whole. Writes benchmarks/results/generation.json and docs/performance.md, and prints
one line of JSON last.
"""

import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import pipelines
from benchmarks import Say
from benchmarks.figures.bars import GENERATION_FIGURES
from benchmarks.figures.result import ROOT
from benchmarks.load.bodies import BodyConfig, calls
from benchmarks.load.generator import Load, measure
from benchmarks.load.texts import passages, sentences
from benchmarks.peers.entrants import Entrants
from benchmarks.peers.writers import CTRANSLATE2, GENAI, OPTIMUM, WRITERS, WriterModel
from benchmarks.peers.writers import Running as RunningWriter
from benchmarks.suites import structured
from benchmarks.suites.cluster import TRANSLATE, WRITE, Running, measured_cluster, running, shipped_user_config
from benchmarks.suites.local_engine import LocalEngine
from benchmarks.suites.shapes import ensure_export, packaged_gguf, starter
from benchmarks.suites.suite import Options, Rates, Repeated, main
from pipelines.generation.slots.config import SlotsConfig
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.tokenizer import Tokenizer
from pipelines.tasks.task import Task

MODELS = ROOT / "models" / "bench"
THREADS = 2
SLOTS = SlotsConfig(slots=16, max_tokens=2048, prefill_chunk_tokens=128)
CLIENTS = 16
NEW_TOKENS = 64
PROMPTS, PROMPT_TOKENS = 512, (64, 256)
LONG_TOKENS, SHORT_TOKENS = 1000, 16
OVERLOAD = 1.1  # times the rate of the closed loop: Poisson arrivals that keep the slots taken
SENTENCES = 512
MOST_TRANSLATED = 48  # new tokens of a sentence
ONE_STREAM = "SmolLM2, one stream, tokens/s"


@dataclass(frozen=True)
class Pace(Repeated):
    """How long and how often."""

    repetitions: int = 3
    window_s: float = 20.0
    warm_up_s: float = 6.0
    singles: int = 8  # prompts of a single-stream measurement
    short_prompts: int = 20


QUICK = Pace(repetitions=1, window_s=3.0, warm_up_s=1.0, singles=1, short_prompts=3)


def run(options: Options, say: Say) -> Rates:
    """All figures."""
    pace, rates = options.pace(Pace(), QUICK), Rates()
    written, translated = artifact_of(WRITE, say), artifact_of(TRANSLATE, say)
    local = LocalEngine(written, THREADS, SLOTS)
    local_int4 = LocalEngine(artifact_of(WRITE, say, "int4"), THREADS, SLOTS)
    _measure_waiting(rates, pace, local, say)
    with ExitStack() as stack:
        writers, translators = Entrants(_smollm2(written), rates, say), Entrants(_marian(translated), rates, say)
        if options.peers:
            for writer in WRITERS:
                writers.enter(stack, writer, lambda running: _goes_on_alike(local, running))
            for writer in (one for one in WRITERS if one.name == CTRANSLATE2):
                translators.enter(stack, writer, lambda running: _translates_alike(translated, running))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sextet-bench-")))
        models = {WRITE.name: written, TRANSLATE.name: translated}
        configuration = measured_cluster(models, slots={WRITE.name: SLOTS})
        served = _Served(stack.enter_context(running(configuration, folder)), pace, rates)
        for repetition in range(pace.repetitions):
            say(f"repetition {repetition + 1} of {pace.repetitions}")
            batch = _batch(_prompts(local, PROMPTS, PROMPT_TOKENS[0]), repetition)
            structured.measure(rates, written, SLOTS, THREADS, batch, NEW_TOKENS, say)
            _measure_one_stream(rates, pace, repetition, {"": local, " int4": local_int4}, writers, say)
            for tokens in PROMPT_TOKENS:
                _measure_sixteen(rates, pace, repetition, local, writers, tokens, served, say)
            _measure_translation(rates, repetition, translators, translated, served, say)
    _compare(rates)
    rates.load = {"clients": CLIENTS, "new_tokens": NEW_TOKENS, "threads": THREADS, **vars(SLOTS), "pace": vars(pace)}
    rates.peers = rates.entries()
    return rates


def artifact_of(task: Task, say: Say, precision: str | None = None) -> Path:
    """The model that cluster.yaml serves for a task, or the same in another precision; exported where missing."""
    shipped = shipped_user_config(task)
    source = shipped["source"]
    output = MODELS / f"{task.name}-{precision}" if precision else Path(shipped["model"])
    return ensure_export(source["checkpoint"], task.name, precision or source["precision"], output, say)


def _compare(rates: Rates) -> None:
    rates.ratio("one_stream_over_genai", (ONE_STREAM, "Sextet int4, in-process"), (ONE_STREAM, GENAI))
    for tokens in PROMPT_TOKENS:
        workload = _sixteen(tokens)
        rates.ratio(f"served16_over_genai_ctx{tokens}", (workload, "Sextet, served"), (workload, GENAI))
    shortest = _sixteen(PROMPT_TOKENS[0])
    rates.ratio("served_over_engine", (shortest, "Sextet, served streams"), (shortest, "Sextet, in-process"))
    rates.ratio("served_over_optimum", (shortest, "Sextet, served"), (ONE_STREAM, OPTIMUM))
    for name in ("greedy", "beam4"):
        workload = _translation(name)
        rates.ratio(f"translation_{name}_over_ct2", (workload, "Sextet, served"), (workload, CTRANSLATE2))


def _sixteen(tokens: int) -> str:
    return f"SmolLM2, {CLIENTS} at once, prompts of {tokens}, tokens/s"


def _translation(name: str) -> str:
    return f"translation, {CLIENTS} at once, {name}, sentences/s"


def _prompts(local: LocalEngine, count: int, tokens: int) -> list[list[int]]:
    return passages(count, tokens, tokens, lambda text: local.tokenizer.encode([text])[0].ids)


def _batch(prompts: Sequence[list[int]], number: int) -> list[list[int]]:
    """Sixteen of `prompts`, different ones for each number."""
    start = number * CLIENTS % len(prompts)
    return list(prompts[start : start + CLIENTS])


def _smollm2(artifact: Path) -> WriterModel:
    return WriterModel("SmolLM2", starter("smollm2"), artifact / "tokenizer.json", THREADS, packaged_gguf())


def _marian(artifact: Path) -> WriterModel:
    return WriterModel(TRANSLATE.name, starter("translation-en-fr"), artifact / "tokenizer.json", THREADS)


def _goes_on_alike(local: LocalEngine, running: RunningWriter) -> float:
    """The share of first tokens that are those of our engine."""
    prompts = _batch(_prompts(local, CLIENTS, PROMPT_TOKENS[0]), 0)
    theirs = running.write(prompts, 1).tokens
    same = (one[:1] == local.write(prompt, 1) for one, prompt in zip(theirs, prompts, strict=True))
    return sum(same) / len(prompts)


def _translates_alike(artifact: Path, running: RunningWriter) -> float:
    """The share of greedy translations whose first three words are those of our pipeline."""
    texts, tokenizer = sentences(CLIENTS, 0), Tokenizer(ModelArtifact.open(artifact))
    ours = pipelines.load(artifact, threads=THREADS)(texts, generate_parameters={"num_beams": 1})
    theirs = running.write([one.ids for one in tokenizer.encode(texts)], MOST_TRANSLATED, exact=False).tokens
    pairs = zip(map(tokenizer.decode, theirs), [one["translation_text"] for one in ours], strict=True)
    same = sum(one.split()[:3] == other.split()[:3] for one, other in pairs)
    return float(same / len(texts))


def _measure_waiting(rates: Rates, pace: Pace, local: LocalEngine, say: Say) -> None:
    """Time to first token beside the prefill of a long prompt, and the share of time outside of ONNX Runtime."""
    prompts = _prompts(local, PROMPTS, PROMPT_TOKENS[0])
    long = iter(_prompts(local, pace.repetitions * (pace.short_prompts + 1) + 1, LONG_TOKENS))
    short = iter(prompt[-SHORT_TOKENS:] for prompt in _prompts(local, PROMPTS, 2 * SHORT_TOKENS))
    chunks = -(-LONG_TOKENS // SLOTS.prefill_chunk_tokens)
    local.write(next(long), 1)
    for _ in range(pace.repetitions):
        began_at = perf_counter()
        local.write(next(long), 1)
        chunk_s = (perf_counter() - began_at) / chunks
        waits = [_wait_beside(local, next(long), next(short), chunk_s) for _ in range(pace.short_prompts)]
        rates.note(ttft_p99_chunks=float(np.percentile(waits, 99)) / chunk_s)
        before = (local.engine.rounds, local.engine.round_s, local.engine.model_s)
        local.tokens_per_s(prompts, NEW_TOKENS, CLIENTS, 0.0, pace.window_s / 2)
        after = (local.engine.rounds, local.engine.round_s, local.engine.model_s)
        _, step_s, decoder_s = (now - then for now, then in zip(after, before, strict=True))
        rates.note(step_overhead=1 - decoder_s / step_s)
        say(
            f"ttft {rates.figures['ttft_p99_chunks'][-1]:.2f} chunks of {1000 * chunk_s:.0f} ms, "
            f"step overhead {rates.figures['step_overhead'][-1]:.3f}"
        )


def _wait_beside(local: LocalEngine, long: list[int], short: list[int], chunk_s: float) -> float:
    """Seconds to the first token of a short prompt that arrives while a long one is prefilled."""
    reading = threading.Thread(target=local.write, args=(long, 1))
    reading.start()
    threading.Event().wait(1.5 * chunk_s)
    began_at = perf_counter()
    local.write(short, 1)
    waited_s = perf_counter() - began_at
    reading.join()
    return waited_s


def _measure_one_stream(
    rates: Rates, pace: Pace, repetition: int, ours: dict[str, LocalEngine], writers: Entrants, say: Say
) -> None:
    per_s, tokens = {}, pace.singles * NEW_TOKENS
    prompts = _batch(_prompts(ours[""], PROMPTS, PROMPT_TOKENS[0]), repetition)
    for named, local in ours.items():
        local.write(prompts[-1], NEW_TOKENS)
        began_at = perf_counter()
        for prompt in prompts[: pace.singles]:
            local.write(prompt, NEW_TOKENS)
        per_s[f"Sextet{named}, in-process"] = tokens / (perf_counter() - began_at)
    for name in writers.names:
        writers.seconds(name, ONE_STREAM, [prompts[-1:]], NEW_TOKENS)
        if seconds := writers.seconds(name, ONE_STREAM, [[one] for one in prompts[: pace.singles]], NEW_TOKENS):
            per_s[name] = tokens / seconds
    _keep(rates, ONE_STREAM, per_s, say)


def _measure_sixteen(
    rates: Rates,
    pace: Pace,
    repetition: int,
    local: LocalEngine,
    writers: Entrants,
    tokens: int,
    served: "_Served",
    say: Say,
) -> None:
    """Over HTTP with Poisson arrivals, over HTTP as sixteen streams, in-process, and the others' batches of sixteen."""
    prompts = _prompts(local, PROMPTS, tokens)
    per_s = {"Sextet, in-process": local.tokens_per_s(prompts, NEW_TOKENS, CLIENTS, pace.warm_up_s, pace.window_s)}
    texts = [local.tokenizer.decode(prompt) for prompt in prompts]
    streams = served.load(WRITE, texts, _written(stream=True), concurrency=CLIENTS)
    per_s["Sextet, served streams"] = streams["streamed_tokens"]
    poisson = served.load(WRITE, texts, _written(), rate_per_s=OVERLOAD * streams["requests"])
    per_s["Sextet, served"] = NEW_TOKENS * poisson["requests"]
    for name in writers.of_batches:
        if seconds := writers.seconds(name, _sixteen(tokens), [_batch(prompts, repetition)], NEW_TOKENS):
            per_s[name] = CLIENTS * NEW_TOKENS / seconds
    _keep(rates, _sixteen(tokens), per_s, say)


def _measure_translation(
    rates: Rates, repetition: int, translators: Entrants, artifact: Path, served: "_Served", say: Say
) -> None:
    texts = sentences(SENTENCES, repetition)
    sources = [one.ids for one in Tokenizer(ModelArtifact.open(artifact)).encode(texts)]
    batches = [sources[start : start + CLIENTS] for start in range(0, len(sources), CLIENTS)]
    for name, beams in (("greedy", 1), ("beam4", 4)):
        asked = {"num_beams": beams, "max_new_tokens": MOST_TRANSLATED, "do_sample": False}
        body = BodyConfig(parameters={str(TRANSLATE.generate_key): asked})
        per_s = {"Sextet, served": served.load(TRANSLATE, texts, body, concurrency=CLIENTS)["inputs"]}
        how: dict[str, Any] = {"new_tokens": MOST_TRANSLATED, "beams": beams, "exact": False}
        for engine in translators.names:
            translators.seconds(engine, _translation(name), batches[:1], **how)
            if seconds := translators.seconds(engine, _translation(name), batches, **how):
                per_s[engine] = len(sources) / seconds
        _keep(rates, _translation(name), per_s, say)


def _keep(rates: Rates, workload: str, per_s: dict[str, float], say: Say) -> None:
    rates.keep(workload, per_s)
    say(f"{workload}: " + ", ".join(f"{engine} {rate:.1f}" for engine, rate in per_s.items()))


def _written(*, stream: bool = False) -> BodyConfig:
    exactly = {"min_new_tokens": NEW_TOKENS, "return_full_text": False}
    return BodyConfig(stream=stream, max_new_tokens=NEW_TOKENS, parameters=exactly)


@dataclass(frozen=True)
class _Served:
    """The cluster, and the pace at which loads are sent to it."""

    cluster: Running
    pace: Pace
    rates: Rates

    def load(self, task: Task, texts: list[str], body: BodyConfig, **how: Any) -> Mapping[str, float]:
        """Answers of each kind per second; raises SextetError where a request failed."""
        made = calls(f"127.0.0.1:{self.cluster.port}", "", task, texts, 1, body)
        load = Load(
            "127.0.0.1",
            self.cluster.port,
            made,
            duration_s=self.pace.window_s,
            warm_up_s=self.pace.warm_up_s,
            **how,
        )
        tally = self.rates.keep_tally(measure(load), f"{task.name}, {how}")
        return defaultdict(float, tally.per_s)


if __name__ == "__main__":
    main("generation", "The figures of models that write, against other engines.", run, GENERATION_FIGURES)
