"""Generation: the figures of models that write, in one run.

    python -m benchmarks.suites.generation                what `make bench-generation` does
    python -m benchmarks.suites.generation --quick        one repetition of seconds, to see whether it works
    python -m benchmarks.suites.generation --only larger  the parts of these names: minutes, where the machine is shared

SmolLM2-135M and a model of Qwen2-0.5B's shape are served as cluster.yaml says, with sixteen slots, and measured in turn
with other engines on the same weights, prompts and lengths: one server at a time on the machine, started anew in every
repetition. No prompt is repeated while a KV cache slot may still hold it, so each is prefilled whole. Writes
benchmarks/results/generation.json and docs/performance.md, and prints one line of JSON last.
"""

import tempfile
import threading
from collections.abc import Sequence
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
from benchmarks.peers.entrants import SAME_START, Entrants
from benchmarks.peers.installation import ensure as ensure_installed
from benchmarks.peers.peer import PeerError
from benchmarks.peers.servers import LLAMA_CPP, OPENVINO_GENAI, VLLM, WRITER_SERVERS
from benchmarks.peers.writers import CTRANSLATE2, GENAI, WRITERS, WriterModel
from benchmarks.peers.writers import Running as RunningWriter
from benchmarks.suites.cluster import TRANSLATE, WRITE, Running, measured_cluster, running, shipped_user_config
from benchmarks.suites.engines import structured
from benchmarks.suites.engines.contestants import Contestant, HttpSeat, Prompt, Seat, other, ours
from benchmarks.suites.engines.gguf_file import ensure_gguf
from benchmarks.suites.engines.goodput import MIXTURES, Mixture, curve, goodput
from benchmarks.suites.engines.local_engine import LocalEngine
from benchmarks.suites.engines.plain import slots_over_plain
from benchmarks.suites.gpu.models import QWEN2, QWEN3, write_decoder
from benchmarks.suites.shapes import ensure_export, ensure_without_slots, packaged_gguf, starter
from benchmarks.suites.suite import SEXTET, Options, Rates, Repeated, main
from pipelines.generation.slots.config import SlotsConfig
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.tokenizer import Tokenizer
from pipelines.tasks.task import Task

MODELS = ROOT / "models" / "bench"
THREADS = 2
SLOTS = SlotsConfig(slots=16, max_tokens=2304, prefill_chunk_tokens=128)
CLIENTS = 16
NEW_TOKENS = 64
SHORT, MIDDLE, LONG = 64, 512, 2000  # tokens of prompts
PROMPTS = {SHORT: 256, MIDDLE: 128, LONG: 24}  # more than slots, so that none is repeated while a slot may hold it
MIXED = 256
LONG_TOKENS, SHORT_TOKENS = 1000, 16
SENTENCES = 512
MOST_TRANSLATED = 48  # new tokens of a sentence
PLAIN_PRECISION = "int8"  # int4 is for slots alone
SMOLLM2, QWEN = "SmolLM2", "Qwen2-0.5B shape"
RIVALS_ALONE = (OPENVINO_GENAI, GENAI, LLAMA_CPP)
RIVALS = (*RIVALS_ALONE, VLLM)
SERVERS = (OPENVINO_GENAI, LLAMA_CPP)  # those with a server of their own, or a small one
ONCE = (VLLM,)  # it starts for minutes, and is the slowest: measured in the first repetition, and not in an open loop


@dataclass(frozen=True)
class Pace(Repeated):
    """How long and how often. The larger model is measured `repetitions_larger` times, goodput `goodputs` times."""

    repetitions: int = 3
    repetitions_larger: int = 2
    goodputs: int = 2
    waits: int = 2
    window_s: float = 8.0
    alone_s: float = 5.0
    open_s: float = 15.0
    warm_up_s: float = 3.0
    short_prompts: int = 20
    plain_tokens: int = 32


QUICK = Pace(
    repetitions=1,
    repetitions_larger=1,
    goodputs=1,
    waits=1,
    window_s=1.0,
    alone_s=1.0,
    open_s=3.0,
    warm_up_s=0.5,
    short_prompts=3,
    plain_tokens=4,
)


@dataclass(frozen=True)
class Measured:
    """A model, our artifact of it, and the engines it is measured with."""

    model: WriterModel
    artifact: Path
    contestants: Sequence[Contestant]


class GenerationRates(Rates):
    """Figures compare workloads of several parts, of this run or of an earlier one that this run completes."""

    def complete(self, name: str) -> None:
        super().complete(name)
        self.finish()

    def finish(self) -> None:
        """Make the figures and entries of all rates that are there."""
        _compare(self)
        self.peers = self.entries()


WAITING, SMALLER, LARGER, PLAIN, TRANSLATED = PARTS = ("waiting", "smollm2", "larger", "plain", TRANSLATE.name)


def run(options: Options, say: Say) -> Rates:
    """The figures of the parts that `options` choose."""
    pace, rates, parts = options.pace(Pace(), QUICK), GenerationRates(), options.chosen(PARTS)
    installed = {one.name: one for one in (*WRITERS, *WRITER_SERVERS)}
    if options.peers:
        ensure_installed([installed[name] for name in (*RIVALS, CTRANSLATE2)], say)
    written, translated = artifact_of(WRITE, say), artifact_of(TRANSLATE, say)
    local = LocalEngine(written, THREADS, SLOTS)
    if WAITING in parts:
        _measure_waiting(rates, pace, local, say)
    smollm2 = _smollm2(written)
    probe = _prompts(local.tokenizer, 1, SHORT)[0]
    rivals = [other(installed[name], probe) for name in RIVALS] if options.peers else []
    first = Measured(smollm2, written, [ours(written, SLOTS, lambda tally: rates.keep_tally(tally, SMOLLM2)), *rivals])
    for repetition in range(pace.repetitions if SMALLER in parts else 0):
        say(f"{SMOLLM2}, repetition {repetition + 1} of {pace.repetitions}")
        batch = _prompts(local.tokenizer, SLOTS.slots, SHORT, MIXED * repetition)
        structured.measure(rates, written, SLOTS, THREADS, batch, NEW_TOKENS, say, repetition)
        _measure_model(rates, pace, first, repetition, local, say)
    if LARGER in parts:
        larger = _larger(options, rates, [one for one in rivals if one.name in RIVALS_ALONE], say)
        for repetition in range(pace.repetitions_larger):
            say(f"{QWEN}, repetition {repetition + 1} of {pace.repetitions_larger}")
            _measure_model(rates, pace, larger, repetition, None, say)
    if PLAIN in parts:
        _measure_plain(rates, pace, say)
    if TRANSLATED in parts:
        _measure_translations(rates, pace, options, translated, say)
    rates.finish()
    rates.load = {"clients": CLIENTS, "new_tokens": NEW_TOKENS, "threads": THREADS, **vars(SLOTS), "pace": vars(pace)}
    return rates


def artifact_of(task: Task, say: Say, precision: str | None = None) -> Path:
    """The model that cluster.yaml serves for a task, or the same in another precision; exported where missing."""
    shipped = shipped_user_config(task)
    source = shipped["source"]
    output = MODELS / f"{task.name}-{precision}" if precision else Path(shipped["model"])
    return ensure_export(source["checkpoint"], task.name, precision or source["precision"], output, say)


def _smollm2(artifact: Path) -> WriterModel:
    return WriterModel(SMOLLM2, starter("smollm2"), artifact / "tokenizer.json", THREADS, packaged_gguf())


def _larger(options: Options, rates: Rates, rivals: Sequence[Contestant], say: Say) -> Measured:
    """Qwen2-0.5B's shape with random weights, in the precision that cluster.yaml has for SmolLM2."""
    checkpoint = write_decoder(QWEN2)
    precision = shipped_user_config(WRITE)["source"]["precision"]
    artifact = ensure_export(str(checkpoint), WRITE.name, precision, MODELS / f"{QWEN2.name}-{precision}", say)
    gguf = ensure_gguf(QWEN2) if options.peers else None
    model = WriterModel(QWEN, checkpoint, artifact / "tokenizer.json", THREADS, gguf)
    return Measured(model, artifact, [ours(artifact, SLOTS, lambda tally: rates.keep_tally(tally, QWEN)), *rivals])


def _compare(rates: Rates) -> None:
    alone = [rates.over_best(_alone(model, SHORT), RIVALS_ALONE) for model in (SMOLLM2, QWEN)]
    rates.compare("one_stream_over_best", [min(both) for both in zip(*alone, strict=False)])
    rates.compare("one_stream_long_over_best", rates.over_best(_alone(SMOLLM2, LONG), RIVALS_ALONE))
    for tokens in (SHORT, MIDDLE):
        rates.compare(f"served16_over_best_ctx{tokens}", rates.over_best(_sixteen(SMOLLM2, tokens), RIVALS))
    rates.compare("served16_over_best_larger", rates.over_best(_sixteen(QWEN, SHORT), RIVALS_ALONE))
    rates.compare("goodput_over_best", rates.over_best(GOODPUT, SERVERS))
    workload = _sixteen(SMOLLM2, SHORT)
    rates.ratio("served_over_engine", (workload, SEXTET), (workload, IN_PROCESS))
    for name in ("greedy", "beam4"):
        rates.ratio(f"translation_{name}_over_ct2", (_translation(name), SEXTET), (_translation(name), CTRANSLATE2))


IN_PROCESS = "Sextet, in-process"
GOODPUT = f"{SMOLLM2}, open loop, mixed lengths, requests/s within the service level"


def _alone(model: str, tokens: int) -> str:
    return f"{model}, one stream, prompts of {tokens}, tokens/s"


def _sixteen(model: str, tokens: int) -> str:
    return f"{model}, {CLIENTS} at once, prompts of {tokens}, tokens/s"


def _translation(name: str) -> str:
    return f"translation, {CLIENTS} at once, {name}, sentences/s"


def _prompts(tokenizer: Tokenizer, count: int, tokens: int, seed: int = 0) -> list[list[int]]:
    return passages(count, tokens, seed, lambda text: tokenizer.encode([text])[0].ids)


def _measure_model(
    rates: Rates, pace: Pace, measured: Measured, repetition: int, local: LocalEngine | None, say: Say
) -> None:
    """Each engine in turn, alone on the machine; `local` is measured as well where it is given."""
    model = measured.model
    tokenizer = Tokenizer(ModelArtifact.open(measured.artifact))
    loads = [
        (_alone(model.name, SHORT), SHORT, 1, pace.alone_s),
        (_sixteen(model.name, SHORT), SHORT, CLIENTS, pace.window_s),
    ]
    if model.name == SMOLLM2:
        loads.append((_sixteen(model.name, MIDDLE), MIDDLE, CLIENTS, 1.5 * pace.window_s))
        loads.append((_alone(model.name, LONG), LONG, 1, pace.alone_s))
    prompts = {tokens: _prompts(tokenizer, PROMPTS[tokens], tokens, MIXED * repetition) for _, tokens, *_ in loads}
    first: list[int] = []
    for contestant in measured.contestants:
        is_over = repetition > 0 and contestant.name in ONCE
        if is_over or any((workload, contestant.name) in rates.missing for workload, *_ in loads):
            continue
        try:
            with contestant.seated(model) as seat:
                first = first or seat.first_tokens(prompts[SHORT][:CLIENTS])
                if model.name == SMOLLM2:  # four bits change every choice of random weights
                    _check(contestant.name, seat, prompts[SHORT][:CLIENTS], first)
                for workload, tokens, at_once, window_s in loads:
                    rate = seat.tokens_per_s(prompts[tokens], NEW_TOKENS, at_once, pace.warm_up_s, window_s)
                    _keep(rates, workload, {contestant.name: rate}, say)
                in_turn = contestant.name not in ONCE and repetition < pace.goodputs
                if model.name == SMOLLM2 and in_turn and isinstance(seat, HttpSeat):
                    measure_goodput(rates, pace, contestant.name, seat, prompts[LONG], repetition, say)
        except PeerError as error:
            if contestant.name == SEXTET:
                raise
            say(f"{model.name}, {contestant.name}: {error}")
            for workload, *_ in loads:
                rates.missing[workload, contestant.name] = str(error)
    if local is not None:
        rate = local.tokens_per_s(prompts[SHORT], NEW_TOKENS, CLIENTS, pace.warm_up_s, pace.window_s)
        _keep(rates, _sixteen(model.name, SHORT), {IN_PROCESS: rate}, say)


def _check(name: str, seat: Seat, prompts: Sequence[Prompt], ours_first: Sequence[int]) -> None:
    """Raises PeerError for another model than ours."""
    theirs = ours_first if name == SEXTET else seat.first_tokens(prompts)
    share = sum(one == mine for one, mine in zip(theirs, ours_first, strict=True)) / len(ours_first)
    if share < SAME_START:
        raise PeerError(f"another model: {share:.0%} of its answers begin as ours")


def measure_goodput(
    rates: Rates, pace: Pace, name: str, seat: HttpSeat, texts: Sequence[Prompt], seed: int, say: Say
) -> None:
    """A server that does not answer all of its clients keeps the level at no rate, as one that is too slow for it.

    What it did in other loads stands. Raises PeerError where that server is ours.
    """
    tokens = [token for text in texts for token in text]
    try:
        points = curve(
            seat, lambda part: Mixture.drawn(tokens, MIXED, MIXTURES * seed + part), pace.open_s, pace.warm_up_s
        )
    except PeerError as error:
        if name == SEXTET:
            raise
        say(f"{name} keeps the service level at no rate: {error}")
        rates.raw.append({"measurement": "no service level", "server": name, "repetition": seed, "error": str(error)})
        points = []
    rates.raw += [{"measurement": GOODPUT, "server": name, "repetition": seed, **one.figures()} for one in points]
    _keep(rates, GOODPUT, {name: goodput(points)}, say)


def _measure_plain(rates: Rates, pace: Pace, say: Say) -> None:
    checkpoint, made = str(write_decoder(QWEN3)), MODELS / f"{QWEN3.name}-{PLAIN_PRECISION}"
    slots = ensure_export(checkpoint, WRITE.name, PLAIN_PRECISION, made, say)
    plain = ensure_without_slots(checkpoint, WRITE.name, PLAIN_PRECISION, Path(f"{made}-plain"), say)
    tokenizer = Tokenizer(ModelArtifact.open(slots))
    for repetition in range(pace.repetitions_larger):
        prompts = _prompts(tokenizer, SLOTS.slots, SHORT, MIXED * repetition)
        rates.note(slots_over_plain=slots_over_plain(slots, plain, SLOTS, THREADS, prompts, pace.plain_tokens))
        say(f"{QWEN3.name}, slots over the plain graph: {rates.figures['slots_over_plain'][-1]:.1f}")


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
    prompts = _prompts(local.tokenizer, PROMPTS[SHORT], SHORT)
    long = iter(_prompts(local.tokenizer, pace.waits * (pace.short_prompts + 1) + 1, LONG_TOKENS))
    short = iter(prompt[-SHORT_TOKENS:] for prompt in _prompts(local.tokenizer, PROMPTS[SHORT], 2 * SHORT_TOKENS))
    chunks = -(-LONG_TOKENS // SLOTS.prefill_chunk_tokens)
    local.write(next(long), 1)
    for _ in range(pace.waits):
        began_at = perf_counter()
        local.write(next(long), 1)
        chunk_s = (perf_counter() - began_at) / chunks
        waits = [_wait_beside(local, next(long), next(short), chunk_s) for _ in range(pace.short_prompts)]
        rates.note(ttft_p99_chunks=float(np.percentile(waits, 99)) / chunk_s)
        before = (local.engine.rounds, local.engine.round_s, local.engine.model_s)
        local.tokens_per_s(prompts, NEW_TOKENS, CLIENTS, 0.0, pace.window_s)
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


def _measure_translations(rates: Rates, pace: Pace, options: Options, artifact: Path, say: Say) -> None:
    """Our server, and CTranslate2 in batches of sixteen, in turn. Both engines idle while the other is measured."""
    model = WriterModel(TRANSLATE.name, starter("translation-en-fr"), artifact / "tokenizer.json", THREADS)
    entrants = Entrants(model, rates, say)
    with ExitStack() as stack:
        if options.peers:
            (writer,) = [one for one in WRITERS if one.name == CTRANSLATE2]
            entrants.enter(stack, writer, lambda running: _translates_alike(artifact, running))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sextet-bench-")))
        cluster = stack.enter_context(running(measured_cluster({TRANSLATE.name: artifact}), folder))
        for repetition in range(pace.repetitions):
            _measure_translation(rates, pace, repetition, entrants, artifact, cluster, say)


def _measure_translation(
    rates: Rates, pace: Pace, repetition: int, entrants: Entrants, artifact: Path, cluster: Running, say: Say
) -> None:
    tokenizer = Tokenizer(ModelArtifact.open(artifact))
    texts = sentences(SENTENCES, repetition)
    sources = [one.ids for one in tokenizer.encode(texts)]
    batches = [sources[start : start + CLIENTS] for start in range(0, len(sources), CLIENTS)]
    for name, beams in (("greedy", 1), ("beam4", 4)):
        asked = {"num_beams": beams, "max_new_tokens": MOST_TRANSLATED, "do_sample": False}
        body = BodyConfig(parameters={str(TRANSLATE.generate_key): asked})
        made = calls(f"127.0.0.1:{cluster.port}", "", TRANSLATE, texts, 1, body)
        load = Load("127.0.0.1", cluster.port, made, pace.window_s, pace.warm_up_s, concurrency=CLIENTS)
        tally = rates.keep_tally(measure(load), f"{TRANSLATE.name}, {name}")
        per_s: dict[str, float] = {SEXTET: tally.per_s["inputs"]}
        how: dict[str, Any] = {"new_tokens": MOST_TRANSLATED, "beams": beams, "exact": False}
        for engine in entrants.names:
            entrants.seconds(engine, _translation(name), batches[:1], **how)
            if seconds := entrants.seconds(engine, _translation(name), batches, **how):
                per_s[engine] = len(sources) / seconds
        _keep(rates, _translation(name), per_s, say)


def _keep(rates: Rates, workload: str, per_s: dict[str, float], say: Say) -> None:
    rates.keep(workload, per_s)
    say(f"{workload}: " + ", ".join(f"{engine} {rate:.1f}" for engine, rate in per_s.items()))


if __name__ == "__main__":
    main("generation", "The figures of models that write, against other engines.", run, GENERATION_FIGURES, PARTS)
