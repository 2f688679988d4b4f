"""SlotEngine: many requests decode together, each in slots of its own, and answer as the Engine does."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipelines.errors import InputTooLongError, InvalidInputError
from pipelines.generation.decoding.request import Answer, Cancelled, Generation, Request, Step, never
from pipelines.generation.plain.decoder import open_decoder
from pipelines.generation.plain.engine import Engine
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.decoding_loop import DecodingLoop
from pipelines.generation.slots.decodings import Beams, Prompt, Sample, arriving
from pipelines.generation.slots.seq2seq_slots import Seq2SeqSessions, SlotEncoderDecoder
from pipelines.generation.slots.slot_decoder import SlotDecoder
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession, SessionConfig


class _Caller:
    """Whoever waits for sequences: gone when `cancelled()` says so, or when it left the block."""

    def __init__(self, cancelled: Cancelled) -> None:
        self._cancelled, self._left = cancelled, False

    def __enter__(self) -> "_Caller":
        return self

    def __exit__(self, *_error: object) -> None:
        self._left = True

    def __call__(self) -> bool:
        return self._left or self._cancelled()


class SlotEngine(DecodingLoop):
    """What callers see of the loop; thread-safe."""

    def generate(self, request: Request, cancelled: Cancelled = never) -> Answer:
        """As Engine.generate; raises for what no slots can hold, as `check` does."""
        return self.generate_all([request], cancelled)[0]

    def generate_all(self, requests: Sequence[Request], cancelled: Cancelled = never) -> list[Answer]:
        """An answer for each request; they are decoded together."""
        for request in requests:
            self.check(request)
        with _Caller(cancelled) as caller:
            asked = [_decodings(request, caller) for request in requests]
            self.enqueue(*(decodings[0] for _, decodings in asked))
            return [_answer(*one) for one in asked]

    def stream(self, request: Request, cancelled: Cancelled = never) -> Iterator[Step]:
        """As Engine.stream."""
        assert request.config.num_beams == 1, "beams are known only at the end"
        self.check(request)
        with _Caller(cancelled) as caller:
            prompt = Prompt(request, caller)
            sample = Sample(prompt, 0, streams=True)
            self.enqueue(sample)
            for step in sample.steps():
                if caller():  # the thread may be ahead of a reader that wants no more
                    return
                yield step

    def check(self, request: Request) -> None:
        """Raises InputTooLongError or InvalidInputError for a request that does not fit, however long it waits."""
        if request.max_length > self._decoder.max_tokens:
            raise InputTooLongError(
                f"prompt and answer have up to {request.max_length} tokens; allowed: {self._decoder.max_tokens}"
            )
        if max(request.prompt) >= self._decoder.vocab:
            allowed = f"0 to {self._decoder.vocab - 1}, which the model knows"
            raise InvalidInputError(f"has the token {max(request.prompt)}; allowed: {allowed}", ("inputs",))
        if request.config.num_beams > self.slots:
            beams = f"is {request.config.num_beams}; allowed: at most {self.slots}, the model's slots"
            raise InvalidInputError(beams, ("parameters", "num_beams"))


def open_engine(artifact: ModelArtifact, config: SessionConfig, slots: SlotsConfig) -> Engine | SlotEngine:
    """The engine that an artifact's graphs allow; raises ArtifactError for graphs that are no decoder."""
    if artifact.manifest.cache == "slots":
        if "decoder" in artifact.manifest.graphs:
            sessions = Seq2SeqSessions.of(artifact, config)
            longest = artifact.manifest.tokenizer.max_length
            both = SlotEncoderDecoder(sessions, slots.slots, slots.max_tokens, longest)
            return SlotEngine(both, slots.prefill_chunk_tokens)
        session = InferenceSession(artifact.graph("model"), replace(config, spins=True))
        return SlotEngine(SlotDecoder(session, slots.slots, slots.max_tokens), slots.prefill_chunk_tokens)
    return Engine(open_decoder(artifact, config))


def _decodings(request: Request, cancelled: Cancelled) -> tuple[Prompt, list[Sample] | list[Beams]]:
    """What decodes a request; all but the first follow it."""
    prompt = Prompt(request, cancelled)
    if request.config.num_beams > 1:
        return prompt, [Beams(prompt)]
    _, *prompt.followers = samples = [Sample(prompt, number) for number in range(request.config.num_return_sequences)]
    return prompt, samples


def _answer(prompt: Prompt, decodings: list[Sample] | list[Beams]) -> Answer:
    generations: list[Generation] = []
    for one in decodings:
        if isinstance(one, Beams):
            (found,) = arriving(one.outcome)
            generations += found
        else:
            generations.append(Generation(tuple(one.steps())))
    return Answer(tuple(generations), tuple(prompt.logprobs))
