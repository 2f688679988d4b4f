"""SlotEngine: many requests decode together, each in a slot of its own, and answer as the Engine does.

    waiting ──a free slot──> a chunk of the prompt per round ──> a token per round ──stop, cancel, error──> slot is free

A round reads at most one chunk of one prompt, then one token of every sequence that has its first one: that is how
long a stream waits for a newcomer. One thread does all rounds; it starts with the first request and ends with the last.
"""

import heapq
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from queue import SimpleQueue

import numpy as np

from pipelines.artifact import ModelArtifact
from pipelines.base import Cancelled, never
from pipelines.errors import InputTooLongError
from pipelines.generation.continuation import Continuation, prompt_logprobs
from pipelines.generation.decoder import CausalDecoder, open_decoder
from pipelines.generation.engine import Engine
from pipelines.generation.request import Answer, Generation, Request, Step
from pipelines.generation.seq2seq_slots import Seq2SeqDecoder, Seq2SeqSessions, SlotEncoderDecoder
from pipelines.generation.slot_decoder import SlotDecoder
from pipelines.generation.slots import SlotsConfig
from pipelines.generation.slotted_decoder import SlottedDecoder
from pipelines.session import InferenceSession, SessionConfig


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


class _Sequence:
    """One sequence of a request, from the queue to its end; `arrived` takes it to the thread that waits for it."""

    def __init__(self, request: Request, number: int, cancelled: Cancelled) -> None:
        self.request, self.cancelled = request, cancelled
        self.continuation = Continuation(request, number)
        self.prompt_logprobs: list[float] = []
        self.slot = -1
        self.arrived: SimpleQueue[Step | Exception | None] = SimpleQueue()

    def steps(self) -> Iterator[Step]:
        """Steps as they come; raises what the engine failed with."""
        while (arrived := self.arrived.get()) is not None:
            if isinstance(arrived, Exception):
                raise arrived
            yield arrived


class SlotEngine:
    """Thread-safe. `alone` decodes, in the caller's thread, what has no place in slots: beams, which share a past."""

    def __init__(self, decoder: SlottedDecoder, alone: Engine, prefill_chunk_tokens: int) -> None:
        self._decoder, self._alone, self._chunk_tokens = decoder, alone, prefill_chunk_tokens
        self._lock = threading.Lock()  # guards the next two, which callers touch as well
        self._waiting: deque[_Sequence] = deque()
        self._awake = False
        self._free = list(range(decoder.slots))  # a heap: low slots first keeps a step's rows together
        self._lengths = np.zeros(decoder.slots, np.int64)  # tokens that each slot holds
        self._prefilling: deque[_Sequence] = deque()
        self._decoding: list[_Sequence] = []

    @property
    def slots(self) -> int:
        """How many sequences are decoded together."""
        return self._decoder.slots

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def generate(self, request: Request, cancelled: Cancelled = never) -> Answer:
        """As Engine.generate."""
        return self.generate_all([request], cancelled)[0]

    def generate_all(self, requests: Sequence[Request], cancelled: Cancelled = never) -> list[Answer]:
        """An answer for each request; they are decoded together."""
        with _Caller(cancelled) as caller:
            submitted = [self._submit(one, caller) if one.config.num_beams == 1 else None for one in requests]
            return [
                self._alone.generate(request, cancelled) if sequences is None else _answer(sequences)
                for request, sequences in zip(requests, submitted, strict=True)
            ]

    def stream(self, request: Request, cancelled: Cancelled = never) -> Iterator[Step]:
        """As Engine.stream."""
        assert request.config.num_beams == 1, "beams are known only at the end"
        with _Caller(cancelled) as caller:
            (sequence,) = self._submit(request, caller, sequences=1)
            for step in sequence.steps():
                if caller():  # the thread may be ahead of a reader that wants no more
                    return
                yield step

    def _submit(self, request: Request, cancelled: Cancelled, sequences: int | None = None) -> list[_Sequence]:
        if request.max_length > self._decoder.max_tokens:
            raise InputTooLongError(
                f"prompt and answer have up to {request.max_length} tokens; allowed: {self._decoder.max_tokens}"
            )
        count = sequences or request.config.num_return_sequences
        made = [_Sequence(request, number, cancelled) for number in range(count)]
        with self._lock:
            self._waiting.extend(made)
            if not self._awake:
                self._awake = True
                threading.Thread(target=self._run, name="decode", daemon=True).start()
        return made

    def _run(self) -> None:
        while self._admit():
            self._prefill()
            self._step()

    def _admit(self) -> bool:
        """Let go who left, give free slots to who waits longest; False, and the thread ends, where nobody is there."""
        for sequence in [*self._decoding, *self._prefilling]:
            if sequence.cancelled():
                self._end(sequence)
        with self._lock:
            for sequence in [one for one in self._waiting if one.cancelled()]:
                self._waiting.remove(sequence)
                sequence.arrived.put(None)
            while self._waiting and self._free:
                sequence = self._waiting.popleft()
                sequence.slot = heapq.heappop(self._free)
                self._prefilling.append(sequence)
            self._awake = bool(self._decoding or self._prefilling)
            return self._awake

    def _prefill(self) -> None:
        """A chunk of one prompt. Prompts take turns, so that a short one does not wait for the end of a long one."""
        if not self._prefilling:
            return
        sequence = self._prefilling.popleft()
        slot, request = sequence.slot, sequence.request
        start = int(self._lengths[slot])
        ids = np.asarray([request.prompt[start : start + self._chunk_tokens]], np.int64)
        tokens = ids.shape[1]
        logits_at = np.arange(tokens) if request.prompt_logprobs else np.asarray([tokens - 1])
        try:
            if start == 0:
                self._decoder.open(slot, request.source)
            logits = self._decoder.read(slot, ids, self._lengths[slot : slot + 1], logits_at)[0]
            if request.prompt_logprobs:
                sequence.prompt_logprobs += prompt_logprobs(request, start, logits)
        except Exception as error:
            self._end(sequence, error)
            return
        self._lengths[slot] += tokens
        if start + tokens < len(request.prompt):
            self._prefilling.append(sequence)
        else:
            self._decoding.append(sequence)
            self._advance(sequence, logits[-1:])

    def _step(self) -> None:
        """A token of every sequence that is being decoded. What fails fails for these only."""
        if not self._decoding:
            return
        rows = 1 + max(one.slot for one in self._decoding)
        # The other slots below read a token too, and it goes where the next one of theirs will be.
        ids = np.zeros((rows, 1), np.int64)
        for one in self._decoding:
            ids[one.slot] = one.continuation.last_token
        try:
            logits = self._decoder.read(0, ids, self._lengths[:rows], np.zeros(1, np.int64))
        except Exception as error:
            for sequence in list(self._decoding):
                self._end(sequence, error)
            return
        for sequence in list(self._decoding):
            self._lengths[sequence.slot] += 1
            self._advance(sequence, logits[sequence.slot])

    def _advance(self, sequence: _Sequence, logits: np.ndarray) -> None:
        """Choose the next token from (1, vocab) logits, and hand it over."""
        try:
            step = sequence.continuation.advance(logits)
        except Exception as error:
            self._end(sequence, error)
            return
        sequence.arrived.put(step)
        if step.finish_reason is not None:
            self._end(sequence)

    def _end(self, sequence: _Sequence, error: Exception | None = None) -> None:
        if sequence in self._decoding:
            self._decoding.remove(sequence)
        elif sequence in self._prefilling:
            self._prefilling.remove(sequence)
        self._lengths[sequence.slot] = 0
        heapq.heappush(self._free, sequence.slot)
        sequence.arrived.put(error)


def open_engine(artifact: ModelArtifact, config: SessionConfig, slots: SlotsConfig) -> Engine | SlotEngine:
    """The engine that an artifact's graphs allow; raises ArtifactError for graphs that are no decoder."""
    if artifact.manifest.cache == "slots":
        if "decoder" in artifact.manifest.graphs:
            sessions = Seq2SeqSessions.of(artifact, config)
            longest = artifact.manifest.tokenizer.max_length
            both = SlotEncoderDecoder(sessions, slots.slots, slots.max_tokens, longest)
            return SlotEngine(both, Engine(Seq2SeqDecoder(sessions)), slots.prefill_chunk_tokens)
        session = InferenceSession(artifact.graph("model"), config)
        decoder = SlotDecoder(session, slots.slots, slots.max_tokens)
        return SlotEngine(decoder, Engine(CausalDecoder(session)), slots.prefill_chunk_tokens)
    return Engine(open_decoder(artifact, config))


def _answer(sequences: Sequence[_Sequence]) -> Answer:
    generations = tuple(Generation(tuple(sequence.steps())) for sequence in sequences)
    return Answer(generations, tuple(sequences[0].prompt_logprobs))
