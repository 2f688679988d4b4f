"""Generators on the GPU: tokens per second of streams over HTTP, and of transformers' `generate` at 64."""

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path
from typing import Any

from benchmarks import Say
from benchmarks.figures.bars import TOKENS
from benchmarks.load.asker import HOST, Asker
from benchmarks.load.bodies import BodyConfig, calls
from benchmarks.load.generator import Load, measure
from benchmarks.load.texts import passages
from benchmarks.peers import PeerThroughput
from benchmarks.peers.entrants import SAME_START
from benchmarks.peers.peer import PeerError
from benchmarks.peers.writers import TRANSFORMERS, WRITERS, Running, WriterModel, writing
from benchmarks.suites.cluster import WRITE, running
from benchmarks.suites.gpu.models import DecoderShape
from benchmarks.suites.gpu.phase import Journal, Setting
from pipelines.errors import SextetError
from pipelines.generation.slots.config import SlotsConfig
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.tokenizer import Tokenizer

TASK = WRITE
COMPARED_STREAMS = 64  # where transformers' static batches are measured
SURPLUS = 4  # prompts for each stream and window: none is repeated while a slot may hold it
SPARE_TOKENS = 64  # of a slot, beyond prompt and answer


def run(setting: Setting, say: Say) -> None:
    journal = Journal(setting.folder, "generators", {"precision": setting.models.precision, "pace": vars(setting.pace)})
    ratios: list[float] = []
    for shape in setting.models.decoders:
        ratios += _measure(setting, journal, shape, say)
        if ratios:
            journal.compare(gpu_tokens_s_over_transformers=[min(ratios)])


def _measure(setting: Setting, journal: Journal, shape: DecoderShape, say: Say) -> list[float]:
    """Our rate over that of transformers, where there is one."""
    pace, artifact = setting.pace, setting.models.artifact(shape)
    most = max(pace.streams)
    slots = SlotsConfig(most, pace.prompt_tokens + pace.new_tokens + SPARE_TOKENS, prefill_chunk_tokens=512)
    tokenizer = Tokenizer(ModelArtifact.open(artifact))
    prompts = passages(SURPLUS * most, pace.prompt_tokens, 0, lambda text: tokenizer.encode([text])[0].ids)
    texts = [tokenizer.decode(prompt) for prompt in prompts]
    compared = min(COMPARED_STREAMS, most)
    ours: dict[int, float] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sextet-gpu-")))
        cluster = stack.enter_context(running(setting.cluster({TASK.name: artifact}, 1, slots), folder))
        for streams in pace.streams:
            ours[streams] = _served(setting, journal, shape, cluster.port, texts, streams)
            journal.note(**{f"gpu_tokens_s_{shape.figure}_{streams}": ours[streams]})
            say(f"{shape.name}, {streams} streams: {ours[streams]:.0f} tokens/s")
        first = _first_tokens(cluster.port, texts[:compared])
    workload = f"{shape.name}, {compared} at once, {setting.models.precision}, {TOKENS}"
    journal.keep("peers", PeerThroughput("Sextet", workload, [ours.get(compared, ours[most])]))
    if not setting.peers:
        return []
    theirs = _transformers(setting, shape, artifact, prompts[:compared], first, workload, say)
    journal.keep("peers", theirs)
    return [ours.get(compared, ours[most]) / max(theirs.inputs_per_s)] if theirs.inputs_per_s else []


def _served(
    setting: Setting, journal: Journal, shape: DecoderShape, port: int, texts: Sequence[str], streams: int
) -> float:
    """Tokens per second of a closed loop of streams; raises SextetError where one failed."""
    pace = setting.pace
    exactly = {"min_new_tokens": pace.new_tokens, "return_full_text": False}
    body = BodyConfig(stream=True, max_new_tokens=pace.new_tokens, parameters=exactly)
    made = calls(f"{HOST}:{port}", "", TASK, texts, 1, body)
    load = Load(HOST, port, made, duration_s=pace.window_s, warm_up_s=pace.warm_up_s, concurrency=streams)
    tally = measure(load)
    point = {"label": f"{shape.name}, c={streams}", **tally.summary()}
    journal.keep("points", point)
    if point["errors"] or not tally.requests:
        raise SextetError(f"{point['label']}: of {tally.requests} requests failed {point['errors']}")
    return tally.per_s["streamed_tokens"]


def _first_tokens(port: int, texts: Sequence[str]) -> list[int]:
    """The first token that the server writes after each prompt, greedily."""
    asker, tokens = Asker(port), []
    parameters: dict[str, Any] = {"max_new_tokens": 1, "min_new_tokens": 1, "do_sample": False, "details": True}
    for text in texts:
        body = json.dumps({"inputs": text, "parameters": parameters}).encode()
        try:
            answer = json.loads(asker.ask(f"/{TASK.name}", body))
        except (OSError, HTTPException) as error:
            raise SextetError(f"a prompt was not answered: {error}") from None
        tokens.append(int(answer[0]["details"]["tokens"][0]["id"]))
    asker.close()
    return tokens


def _transformers(
    setting: Setting,
    shape: DecoderShape,
    artifact: Path,
    prompts: Sequence[list[int]],
    first: Sequence[int],
    workload: str,
    say: Say,
) -> PeerThroughput:
    """Tokens per second of `model.generate` with a static batch, if its first tokens are ours."""
    (writer,) = [one for one in WRITERS if one.name == TRANSFORMERS]
    model = WriterModel(shape.name, shape.checkpoint, artifact / "tokenizer.json", threads=1, device=setting.device)
    rates = []
    try:
        with writing(writer, model) as started:
            _check(started, prompts, first)
            for _ in range(setting.pace.repetitions):
                written = started.write(prompts, setting.pace.new_tokens)
                rates.append(len(prompts) * setting.pace.new_tokens / written.seconds)
    except PeerError as error:
        say(f"{workload}, {writer.name}: {error}")
        return PeerThroughput(writer.name, workload, missing=str(error))
    say(f"{workload}, {writer.name}: {', '.join(f'{rate:.0f}' for rate in rates)}")
    return PeerThroughput(writer.name, workload, rates, batch_size=str(len(prompts)))


def _check(started: Running, prompts: Sequence[list[int]], first: Sequence[int]) -> None:
    """Raises PeerError for another model. It also warms up."""
    theirs = [tokens[0] for tokens in started.write(prompts, 1).tokens]
    same = sum(one == other for one, other in zip(theirs, first, strict=True)) / len(first)
    if same < SAME_START:
        raise PeerError(f"another model: {same:.0%} of its answers begin as ours")
