"""Generation: the figures of models that write, in one run.

    python -m benchmarks.generation                what `make bench-generation` does
    python -m benchmarks.generation --quick        the same with few repetitions: whether it works, not how fast

SmolLM2-135M and the translation starter are exported and served as cluster.yaml says, with sixteen slots, and measured
in turn with other engines on the same weights, prompts and lengths. One stream alone is measured in int4 as well: its
time is that of reading the weights. Writes benchmarks/results/generation.json and docs/performance.md, and prints one
line of JSON last.
"""

import argparse
import json
import shlex
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import pipelines
from benchmarks.bodies import BodyConfig, calls
from benchmarks.cluster import Running, cut_down, running, shipped_source
from benchmarks.generator import Load, measure
from benchmarks.peers.peer import PeerError
from benchmarks.peers.writers import CTRANSLATE2, GENAI, OPTIMUM, WRITERS, Writer, writing
from benchmarks.peers.writers import Running as RunningWriter
from benchmarks.report import ROOT, write_report
from benchmarks.result import Result, default_path
from benchmarks.scenarios import bottlenecks
from benchmarks.sentences import passages, sentences
from benchmarks.shapes import ensure_export, packaged_gguf, starter
from benchmarks.tally import Tally
from pipelines.artifact import ModelArtifact
from pipelines.errors import SextetError
from pipelines.generation.config import GenerationConfig
from pipelines.generation.request import Request
from pipelines.generation.slot_engine import SlotEngine, open_engine
from pipelines.generation.slots import SlotsConfig
from pipelines.session import SessionConfig
from pipelines.tokenizer import Tokenizer

MODELS = ROOT / "models" / "bench"
THREADS = 2
SLOTS = SlotsConfig(slots=16, max_tokens=2048, prefill_chunk_tokens=128)
CLIENTS = 16
NEW_TOKENS = 64
PROMPT_TOKENS = (64, 256)
LONG_TOKENS, SHORT_TOKENS = 1000, 16
OVERLOAD = 1.1  # times the rate of the closed loop: Poisson arrivals that keep the slots taken
MOST_TRANSLATED = 48  # new tokens of a sentence
SAME_START = 0.5  # of the prompts whose first new token a writer shares with our engine: below, it is another model
Say = Callable[[str], None]


@dataclass(frozen=True)
class Pace:
    """How long and how often."""

    repetitions: int = 3
    window_s: float = 20.0
    warm_up_s: float = 6.0
    singles: int = 3  # prompts of a single-stream measurement
    short_prompts: int = 20


QUICK = Pace(repetitions=1, window_s=3.0, warm_up_s=1.0, singles=1, short_prompts=3)


@dataclass
class Findings:
    """`figures`: one value per repetition; `rates`: tokens or sentences per second of every engine, by workload."""

    figures: dict[str, list[float]] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    rates: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    missing: dict[tuple[str, str], str] = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)

    def rate(self, workload: str, engine: str, per_s: float) -> float:
        self.rates.setdefault((workload, engine), []).append(per_s)
        return per_s

    def ratio(self, name: str, ours: tuple[str, str], theirs: tuple[str, str]) -> None:
        """Our rate over theirs, repetition by repetition; no figure where one is missing."""
        pairs = zip(self.rates.get(ours, []), self.rates.get(theirs, []), strict=False)
        if values := [one / other for one, other in pairs]:
            self.figures[name] = values

    def peers(self) -> list[dict[str, Any]]:
        """As the report shows them."""
        entries = [
            {"workload": workload, "peer": engine, "inputs_per_s": rates, "missing": None, "batch_size": None}
            for (workload, engine), rates in self.rates.items()
        ]
        entries += [
            {"workload": workload, "peer": engine, "inputs_per_s": [], "missing": reason, "batch_size": None}
            for (workload, engine), reason in self.missing.items()
        ]
        return sorted(entries, key=lambda entry: str(entry["workload"]))


class Local:
    """The engine in this process, asked in token ids."""

    def __init__(self, artifact: Path) -> None:
        opened = ModelArtifact.open(artifact)
        engine = open_engine(opened, SessionConfig(threads=THREADS), SLOTS)
        assert isinstance(engine, SlotEngine), "SmolLM2 has a slot graph"
        self.engine, self.tokenizer = engine, Tokenizer(opened)

    def write(self, prompt: Sequence[int], new_tokens: int = NEW_TOKENS) -> list[int]:
        """Exactly so many tokens, greedily; raises what the engine raises."""
        length = len(prompt) + new_tokens
        config = GenerationConfig(max_length=length, min_length=length, eos_token_id=())
        return self.engine.generate(Request(tuple(prompt), config)).generations[0].token_ids

    def tokens_per_s(self, prompts: Sequence[Sequence[int]], clients: int, pace: Pace) -> float:
        """Of `clients` threads, each with a request under way all the time: what is answered in the window."""
        answered: list[float] = []
        ends_at = perf_counter() + pace.warm_up_s + pace.window_s

        def ask(client: int) -> None:
            number = client
            while perf_counter() < ends_at:
                self.write(prompts[number % len(prompts)])
                answered.append(perf_counter())
                number += clients

        began_at = perf_counter() + pace.warm_up_s
        threads = [threading.Thread(target=ask, args=(client,)) for client in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        within = sorted(one for one in answered if one >= began_at)
        # From the first answer of the window to its last: the window's edges cut no answer in two.
        return NEW_TOKENS * (len(within) - 1) / (within[-1] - within[0]) if len(within) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description="The figures of models that write, against other engines.")
    parser.add_argument("--quick", action="store_true", help="one short repetition; nothing is written")
    parser.add_argument("--no-peers", action="store_true", help="leave the other engines out")
    args = parser.parse_args()
    pace = QUICK if args.quick else Pace()
    try:
        findings = run(pace, with_peers=not args.no_peers, say=_say)
    except SextetError as error:
        sys.exit(f"generation: {error}")
    result = Result(
        name="generation",
        scenario="generation",
        command="make bench-generation"
        if pace == Pace() and not args.no_peers
        else shlex.join(["python", "-m", "benchmarks.generation", *sys.argv[1:]]),
        load={
            "clients": CLIENTS,
            "new_tokens": NEW_TOKENS,
            "threads": THREADS,
            **vars(SLOTS),
            "pace": vars(pace),
        },
        figures=findings.figures,
        points=findings.points,
        peers=findings.peers(),
        warnings=bottlenecks(findings.points),
    )
    if not args.quick:
        result.write(default_path(result.name))
        write_report()
    print(json.dumps(result.headline()))


def run(pace: Pace, *, with_peers: bool, say: Say) -> Findings:
    """All figures."""
    findings = Findings()
    written, translated = artifact_of("text-generation", say), artifact_of("translation", say)
    local, local_int4 = Local(written), Local(artifact_of("text-generation", say, "int4"))
    prompts = {
        tokens: passages(CLIENTS, tokens, tokens, lambda text: local.tokenizer.encode([text])[0].ids)
        for tokens in PROMPT_TOKENS
    }
    _measure_engine(findings, pace, local, prompts[PROMPT_TOKENS[0]], say)
    with tempfile.TemporaryDirectory(prefix="sextet-bench-") as folder:
        models = {"text-generation": written, "translation": translated}
        with running(cut_down(models, THREADS, slots=SLOTS), Path(folder)) as cluster:
            _measure_in_turn(
                findings, pace, (local, local_int4), prompts, cluster, (written, translated), with_peers, say
            )
    smollm2 = "SmolLM2, one stream, tokens/s"
    findings.ratio("one_stream_over_genai", (smollm2, "Sextet int4, in-process"), (smollm2, GENAI))
    for tokens in PROMPT_TOKENS:
        workload = _sixteen(tokens)
        findings.ratio(f"served16_over_genai_ctx{tokens}", (workload, "Sextet, served"), (workload, GENAI))
    shortest = _sixteen(PROMPT_TOKENS[0])
    findings.ratio("served_over_engine", (shortest, "Sextet, served streams"), (shortest, "Sextet, in-process"))
    findings.ratio("served_over_optimum", (shortest, "Sextet, served"), (smollm2, OPTIMUM))
    for name in ("greedy", "beam4"):
        workload = _translation(name)
        findings.ratio(f"translation_{name}_over_ct2", (workload, "Sextet, served"), (workload, CTRANSLATE2))
    return findings


def _sixteen(tokens: int) -> str:
    return f"SmolLM2, 16 at once, prompts of {tokens}, tokens/s"


def _translation(name: str) -> str:
    return f"translation, 16 at once, {name}, sentences/s"


def _measure_engine(findings: Findings, pace: Pace, local: Local, prompts: list[list[int]], say: Say) -> None:
    """What needs nobody else: waiting for a chunk, and time outside of ONNX Runtime."""
    long = (prompts[0] * (LONG_TOKENS // len(prompts[0]) + 1))[:LONG_TOKENS]
    chunks = -(-LONG_TOKENS // SLOTS.prefill_chunk_tokens)
    local.write(long, 1)
    for _ in range(pace.repetitions):
        began_at = perf_counter()
        local.write(long, 1)
        chunk_s = (perf_counter() - began_at) / chunks
        waits = [_wait_beside(local, long, prompts[number % CLIENTS], chunk_s) for number in range(pace.short_prompts)]
        findings.note("ttft_p99_chunks", float(np.percentile(waits, 99)) / chunk_s)
        before = (local.engine.steps, local.engine.step_s, local.engine.decoder_s)
        local.tokens_per_s(prompts, CLIENTS, replace(pace, warm_up_s=0.0, window_s=pace.window_s / 2))
        _, step_s, decoder_s = (
            now - then
            for now, then in zip((local.engine.steps, local.engine.step_s, local.engine.decoder_s), before, strict=True)
        )
        findings.note("step_overhead", 1 - decoder_s / step_s)
        say(
            f"ttft {findings.figures['ttft_p99_chunks'][-1]:.2f} chunks of {1000 * chunk_s:.0f} ms, "
            f"step overhead {findings.figures['step_overhead'][-1]:.3f}"
        )


def _wait_beside(local: Local, long: list[int], prompt: list[int], chunk_s: float) -> float:
    """Seconds to the first token of a short prompt that comes while a long one is read."""
    reading = threading.Thread(target=local.write, args=(long, 1))
    reading.start()
    threading.Event().wait(1.5 * chunk_s)
    began_at = perf_counter()
    local.write(prompt[:SHORT_TOKENS], 1)
    waited_s = perf_counter() - began_at
    reading.join()
    return waited_s


def _measure_in_turn(
    findings: Findings,
    pace: Pace,
    locals_: tuple[Local, Local],
    prompts: dict[int, list[list[int]]],
    cluster: Running,
    artifacts: tuple[Path, Path],
    with_peers: bool,
    say: Say,
) -> None:
    """Every workload, on every engine in turn, repetition by repetition."""
    (local, local_int4), (written, translated) = locals_, artifacts
    smollm2, marian = starter("smollm2"), starter("translation-en-fr")
    texts = sentences(64, 0)
    sources = [one.ids for one in Tokenizer(ModelArtifact.open(translated)).encode(texts)]
    with ExitStack() as stack:
        writers: dict[str, RunningWriter] = {}
        for writer in WRITERS if with_peers else ():
            entered = _entered(stack, findings, writer, (smollm2, written / "tokenizer.json", packaged_gguf()), say)
            if entered and _is_same_model(findings, writer, entered, local, prompts[PROMPT_TOKENS[0]], say):
                writers[writer.name] = entered
        translating: dict[str, RunningWriter] = {}
        for writer in [one for one in WRITERS if one.name == CTRANSLATE2] if with_peers else ():
            entered = _entered(stack, findings, writer, (marian, translated / "tokenizer.json", None), say)
            if entered and _translates_alike(findings, entered, translated, texts, sources, say):
                translating[writer.name] = entered
        singles = {one.name for one in WRITERS if one.single}
        for repetition in range(pace.repetitions):
            say(f"repetition {repetition + 1} of {pace.repetitions}")
            _one_stream(findings, pace, {"": local, " int4": local_int4}, writers, prompts[PROMPT_TOKENS[0]], say)
            for tokens in PROMPT_TOKENS:
                _sixteen_streams(findings, pace, local, writers, singles, tokens, prompts[tokens], cluster, say)
            _translate(findings, pace, translating, texts, sources, cluster, say)


def _entered(
    stack: ExitStack, findings: Findings, writer: Writer, made_of: tuple[Path, Path, Path | None], say: Say
) -> RunningWriter | None:
    try:
        return stack.enter_context(writing(writer, made_of[0], made_of[1], THREADS, made_of[2]))
    except PeerError as error:
        say(f"{writer.name}: {error}")
        findings.missing[made_of[0].name, writer.name] = str(error)
        return None


def _is_same_model(
    findings: Findings, writer: Writer, running: RunningWriter, local: Local, prompts: list[list[int]], say: Say
) -> bool:
    """Whether it goes on from the prompts as our engine does, which rounding may change at any place."""
    firsts = [local.write(prompt, 1)[0] for prompt in prompts]
    try:
        theirs, _ = running.write(prompts, 1)
    except PeerError as error:
        findings.missing["same first tokens", writer.name] = str(error)
        return False
    same = sum(one[:1] == [first] for one, first in zip(theirs, firsts, strict=True)) / len(firsts)
    say(f"{writer.name}: {same:.0%} of {len(firsts)} first tokens are ours")
    if same < SAME_START:
        findings.missing["same first tokens", writer.name] = f"another model: {same:.0%} of the first tokens are ours"
    return same >= SAME_START


def _translates_alike(
    findings: Findings, running: RunningWriter, artifact: Path, texts: list[str], sources: list[list[int]], say: Say
) -> bool:
    """Whether its greedy translations begin as the own pipeline's do; rounding changes later words."""
    ours = pipelines.load(artifact, threads=THREADS)(texts[:CLIENTS], generate_parameters={"num_beams": 1})
    tokens, _ = running.write(sources[:CLIENTS], MOST_TRANSLATED, exact=False)
    theirs = Tokenizer(ModelArtifact.open(artifact)).decode
    pairs = zip([theirs(row) for row in tokens], [one["translation_text"] for one in ours], strict=True)
    same: float = sum(one.split()[:3] == other.split()[:3] for one, other in pairs) / CLIENTS
    say(f"{CTRANSLATE2}: {same:.0%} of {CLIENTS} translations begin as ours")
    if same < SAME_START:
        findings.missing[_translation("greedy"), CTRANSLATE2] = (
            f"another model: {same:.0%} of its translations begin as ours"
        )
    return same >= SAME_START


def _one_stream(
    findings: Findings,
    pace: Pace,
    ours: dict[str, Local],
    writers: dict[str, RunningWriter],
    prompts: list[list[int]],
    say: Say,
) -> None:
    workload = "SmolLM2, one stream, tokens/s"
    rates = {}
    for named, local in ours.items():
        local.write(prompts[0], 8)
        began_at = perf_counter()
        for prompt in prompts[: pace.singles]:
            local.write(prompt)
        rates[f"Sextet{named}, in-process"] = pace.singles * NEW_TOKENS / (perf_counter() - began_at)
    for name, writer in list(writers.items()):
        with _or_without(findings, writers, name, workload, say):
            writer.write(prompts[:1], 8)
            seconds = sum(writer.write([one], NEW_TOKENS)[1] for one in prompts[: pace.singles])
            rates[name] = NEW_TOKENS * pace.singles / seconds
    _keep(findings, workload, rates, say)


def _sixteen_streams(
    findings: Findings,
    pace: Pace,
    local: Local,
    writers: dict[str, RunningWriter],
    singles: set[str],
    tokens: int,
    prompts: list[list[int]],
    cluster: Running,
    say: Say,
) -> None:
    """Over HTTP with Poisson arrivals, over HTTP as sixteen streams, in-process, and the others' batches of sixteen."""
    texts = [local.tokenizer.decode(prompt) for prompt in prompts]
    rates = {"Sextet, in-process": local.tokens_per_s(prompts, CLIENTS, pace)}
    streams = measure(_load(pace, cluster, "text-generation", texts, _written(stream=True), concurrency=CLIENTS))
    rates["Sextet, served streams"] = _checked(findings, streams, f"{tokens} streams").per_s["streamed_tokens"]
    arriving = OVERLOAD * max(streams.per_s["requests"], 0.1)
    poisson = measure(_load(pace, cluster, "text-generation", texts, _written(), rate_per_s=arriving))
    rates["Sextet, served"] = NEW_TOKENS * _checked(findings, poisson, f"{tokens} Poisson").per_s["requests"]
    for name in [one for one in writers if one not in singles]:
        with _or_without(findings, writers, name, _sixteen(tokens), say):
            _, seconds = writers[name].write(prompts, NEW_TOKENS)
            rates[name] = CLIENTS * NEW_TOKENS / seconds
    _keep(findings, _sixteen(tokens), rates, say)


def _translate(
    findings: Findings,
    pace: Pace,
    translating: dict[str, RunningWriter],
    texts: list[str],
    sources: list[list[int]],
    cluster: Running,
    say: Say,
) -> None:
    for name, beams in (("greedy", 1), ("beam4", 4)):
        asked = {"num_beams": beams, "max_new_tokens": MOST_TRANSLATED, "do_sample": False}
        body = BodyConfig(parameters={"generate_parameters": asked})
        served = measure(_load(pace, cluster, "translation", texts, body, concurrency=CLIENTS))
        rates = {"Sextet, served": float(_checked(findings, served, f"translation {name}").per_s["inputs"])}
        groups = [sources[start : start + CLIENTS] for start in range(0, len(sources), CLIENTS)]
        for engine, writer in list(translating.items()):
            with _or_without(findings, translating, engine, _translation(name), say):
                writer.write(groups[0], MOST_TRANSLATED, beams=beams, exact=False)
                took = [writer.write(group, MOST_TRANSLATED, beams=beams, exact=False)[1] for group in groups]
                rates[engine] = len(sources) / sum(took)
        _keep(findings, _translation(name), rates, say)


@contextmanager
def _or_without(
    findings: Findings, writers: dict[str, RunningWriter], name: str, workload: str, say: Say
) -> Iterator[None]:
    """Go on without a writer that fails; the result says why."""
    try:
        yield
    except PeerError as error:
        say(f"{workload}, {name}: {error}")
        findings.missing[workload, name] = str(error)
        writers.pop(name, None)


def _keep(findings: Findings, workload: str, rates: dict[str, float], say: Say) -> None:
    for engine, per_s in rates.items():
        findings.rate(workload, engine, per_s)
    say(f"{workload}: " + ", ".join(f"{engine} {per_s:.1f}" for engine, per_s in rates.items()))


def _written(*, stream: bool = False) -> BodyConfig:
    return BodyConfig(
        stream=stream,
        max_new_tokens=NEW_TOKENS,
        parameters={"min_new_tokens": NEW_TOKENS, "return_full_text": False},
    )


def _load(pace: Pace, cluster: Running, task: str, texts: list[str], body: BodyConfig, **how: Any) -> Load:
    made = calls(f"127.0.0.1:{cluster.port}", "", task, texts, 1, body)
    return Load("127.0.0.1", cluster.port, made, duration_s=pace.window_s, warm_up_s=pace.warm_up_s, **how)


def _checked(findings: Findings, tally: Tally, label: str) -> Tally:
    """Keep what was seen; raises SextetError where nothing was answered."""
    point = {"label": label, **tally.summary()}
    findings.points.append(point)
    if point["errors"] or not tally.requests:
        raise SextetError(f"{label}: of {tally.requests} requests failed {point['errors']}")
    return tally


def artifact_of(task: str, say: Say, precision: str | None = None) -> Path:
    """The model that cluster.yaml serves for a task, under models/bench, or the same in another precision."""
    source = shipped_source(task)
    output = MODELS / (f"{task}-{precision}" if precision else task)
    return ensure_export(source["checkpoint"], task, precision or source["precision"], output, say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
