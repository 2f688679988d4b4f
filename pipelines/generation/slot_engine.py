"""SlotEngine: many requests decode together, each in slots of its own, and answer as the Engine does.

    waiting ──free slots──> chunks of the prompt ──> a token per round ──stop, cancel, error──> slots are free

A round reads prompts, a chunk altogether, then one token of every sequence whose prompt was read: that is how long a
stream waits for a newcomer. One thread does all rounds; it starts with the first request and ends with the last.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from pipelines.artifact import ModelArtifact
from pipelines.base import Cancelled, never
from pipelines.errors import InputTooLongError, InvalidInputError
from pipelines.generation.beam_search import advance_all
from pipelines.generation.continuation import prompt_logprobs
from pipelines.generation.decoder import open_decoder
from pipelines.generation.decodings import Beams, Decoding, Prompt, Sample, advance_samples, arriving
from pipelines.generation.engine import Engine
from pipelines.generation.request import Answer, Generation, Request, Step
from pipelines.generation.slot_decoder import SlotDecoder
from pipelines.generation.slot_table import SlotTable
from pipelines.generation.slots import SlotsConfig
from pipelines.generation.slotted_decoder import SlottedDecoder
from pipelines.session import InferenceSession, SessionConfig

_LAST = np.zeros(1, np.int64)  # of one token that is read, the logits are wanted


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


class SlotEngine:
    """Thread-safe. `steps` counts rounds, `step_s` their seconds, `decoder_s` those of them that the decoder took.

    Who waits longest is next, and nobody overtakes: a beam search waits until it has a slot for each beam.
    """

    def __init__(self, decoder: SlottedDecoder, prefill_chunk_tokens: int) -> None:
        self._decoder, self._chunk_tokens = decoder, prefill_chunk_tokens
        self._lock = threading.Lock()  # guards the next two, which callers touch as well
        self._waiting: deque[Decoding] = deque()
        self._awake = False
        self._table = SlotTable(decoder.slots, decoder.max_tokens)
        self._prefilling: deque[Decoding] = deque()
        self._decoding: list[Decoding] = []
        self.steps, self.step_s, self.decoder_s = 0, 0.0, 0.0

    @property
    def slots(self) -> int:
        """How many sequences are decoded together."""
        return self._decoder.slots

    @property
    def free_slots(self) -> int:
        return self._table.free

    @property
    def waiting(self) -> int:
        """How many wait for slots: a beam search, or a sample, counts one."""
        return len(self._waiting)

    def generate(self, request: Request, cancelled: Cancelled = never) -> Answer:
        """As Engine.generate; raises for what no slots can hold, as `check` does."""
        return self.generate_all([request], cancelled)[0]

    def generate_all(self, requests: Sequence[Request], cancelled: Cancelled = never) -> list[Answer]:
        """An answer for each request; they are decoded together."""
        for request in requests:
            self.check(request)
        with _Caller(cancelled) as caller:
            return [_answer(*submitted) for submitted in [self._submit(request, caller) for request in requests]]

    def stream(self, request: Request, cancelled: Cancelled = never) -> Iterator[Step]:
        """As Engine.stream."""
        assert request.config.num_beams == 1, "beams are known only at the end"
        self.check(request)
        with _Caller(cancelled) as caller:
            prompt = Prompt(request, caller)
            sample = Sample(prompt, 0)
            self._enqueue(sample)
            for step in arriving(sample.outcome):
                if caller():  # the thread may be ahead of a reader that wants no more
                    return
                yield step

    def check(self, request: Request) -> None:
        """Raises InputTooLongError or InvalidInputError for a request that does not fit, however long it waits."""
        if request.max_length > self._decoder.max_tokens:
            raise InputTooLongError(
                f"prompt and answer have up to {request.max_length} tokens; allowed: {self._decoder.max_tokens}"
            )
        if request.config.num_beams > self.slots:
            raise InvalidInputError(
                f"parameters.num_beams is {request.config.num_beams}; allowed: at most {self.slots}, the model's slots"
            )

    def _submit(self, request: Request, cancelled: Cancelled) -> tuple[Prompt, list[Sample] | Beams]:
        prompt = Prompt(request, cancelled)
        if request.config.num_beams > 1:
            beams = Beams(prompt)
            self._enqueue(beams)
            return prompt, beams
        first, *prompt.followers = samples = [
            Sample(prompt, number) for number in range(request.config.num_return_sequences)
        ]
        self._enqueue(first)
        return prompt, samples

    def _enqueue(self, decoding: Decoding) -> None:
        with self._lock:
            self._waiting.append(decoding)
            if not self._awake:
                self._awake = True
                threading.Thread(target=self._run, name="decode", daemon=True).start()

    def _run(self) -> None:
        began = time.perf_counter()
        while self._admit():
            self._prefill()
            self._step()
            ended = time.perf_counter()
            self.steps, self.step_s, began = self.steps + 1, self.step_s + ended - began, ended

    def _admit(self) -> bool:
        """Let go who left, give free slots to who waits longest; False, and the thread ends, where nobody is there."""
        for decoding in [*self._decoding, *self._prefilling]:
            if decoding.prompt.cancelled():
                self._end(decoding)
        while True:
            with self._lock:
                left = [one for one in self._waiting if one.prompt.cancelled()]
                for decoding in left:
                    self._waiting.remove(decoding)
                if not self._waiting or self._waiting[0].width > self._table.free:
                    alive = self._awake = bool(self._decoding or self._prefilling or left)
                    admitted = None
                else:
                    admitted = self._waiting.popleft()
            for decoding in left:
                self._end(decoding)
            if admitted is None:
                return alive
            self._open(admitted)

    def _open(self, decoding: Decoding) -> None:
        """Give it slots; the first one holds what any slot holds of the prompt, and the rest is read from there."""
        prompt, table, request = decoding.prompt, self._table, decoding.prompt.request
        shared = table.shared(request.source, request.prompt)
        decoding.slots = [table.take(shared) for _ in range(decoding.width)]
        slot = decoding.slots[0]
        # Without its last token nobody knows what comes next, and without all of them not how likely each one was.
        useful = len(request.prompt) if prompt.logits is not None else len(request.prompt) - 1
        shared = np.minimum(shared, 0 if request.prompt_logprobs and prompt.logits is None else useful)
        best = int(shared.argmax())
        try:
            if shared[best] > shared[slot]:
                self._copy([best], [slot], int(shared[best]))
            elif table.source(slot) == request.source:
                table.cut(slot, int(shared[slot]))
            else:
                with self._in_decoder():
                    self._decoder.open(slot, request.source)
                table.open(slot, request.source)
        except Exception as error:
            self._end(decoding, error)
            return
        missing = len(request.prompt) - int(table.lengths[slot])
        if missing == 0:
            assert prompt.logits is not None
            self._begin(decoding, prompt.logits.copy())
        elif missing == 1:  # it is read with the others' next ones
            self._decoding.append(decoding)
        else:
            self._prefilling.append(decoding)

    def _prefill(self) -> None:
        """Read prompts, a chunk altogether. They take turns, so that a short one does not wait for a long one's end."""
        budget = self._chunk_tokens
        while self._prefilling:
            decoding = self._prefilling[0]
            missing = len(decoding.prompt.request.prompt) - int(self._table.lengths[decoding.slots[0]])
            if budget < min(missing, self._chunk_tokens):
                return
            self._prefilling.popleft()
            self._read_chunk(decoding)
            budget -= min(missing, self._chunk_tokens)

    def _read_chunk(self, decoding: Decoding) -> None:
        prompt, request, slot = decoding.prompt, decoding.prompt.request, decoding.slots[0]
        start = int(self._table.lengths[slot])
        ids = np.asarray([request.prompt[start : start + self._chunk_tokens]], np.int64)
        tokens = ids.shape[1]
        likely = request.prompt_logprobs and prompt.logits is None  # else they are known: it is read once more
        logits_at = np.arange(tokens) if likely else np.asarray([tokens - 1])
        try:
            with self._in_decoder():
                logits = self._decoder.read(slot, ids, self._table.lengths[slot : slot + 1], logits_at)[0]
            if likely:
                prompt.logprobs += prompt_logprobs(request, start, logits)
        except Exception as error:
            self._end(decoding, error)
            return
        self._table.append(slot, ids[0])
        if start + tokens < len(request.prompt):
            self._prefilling.append(decoding)
        else:
            self._begin(decoding, logits[-1:])

    def _begin(self, decoding: Decoding, logits: np.ndarray) -> None:
        """The prompt was read, with these logits, (1, vocab), after its last token."""
        self._decoding.append(decoding)
        self._release(decoding.prompt, logits)
        if isinstance(decoding, Beams):
            self._advance_beams([decoding], np.repeat(logits, decoding.width, axis=0))
        elif isinstance(decoding, Sample):
            self._advance_samples([decoding], logits)

    def _release(self, prompt: Prompt, logits: np.ndarray) -> None:
        """Those that waited for a prompt to be read are next."""
        if prompt.followers:
            prompt.logits = logits.copy()
            with self._lock:
                self._waiting.extendleft(reversed(prompt.followers))
            prompt.followers = []

    def _step(self) -> None:
        """A token of every sequence that is being decoded. What fails fails for these only."""
        if not self._decoding:
            return
        readings = [decoding.reading for decoding in self._decoding]
        slots = [slot for some, _ in readings for slot in some]
        tokens = [token for _, some in readings for token in some]
        first, end = min(slots), max(slots) + 1
        # The other slots between them read a token too, and it goes where the next one of theirs will be.
        ids = np.zeros((end - first, 1), np.int64)
        ids[np.asarray(slots) - first, 0] = tokens
        try:
            with self._in_decoder():
                logits = self._decoder.read(first, ids, self._table.lengths[first:end], _LAST)[:, 0]
        except Exception as error:
            for decoding in list(self._decoding):
                self._end(decoding, error)
            return
        self._table.append_each(slots, tokens)
        for decoding, (some, _) in zip(self._decoding, readings, strict=True):
            self._release(decoding.prompt, logits[some[0] - first : some[0] - first + 1])
        beams = [decoding for decoding in self._decoding if isinstance(decoding, Beams)]
        samples = [decoding for decoding in self._decoding if isinstance(decoding, Sample)]
        if beams:
            self._advance_beams(beams, logits[[slot - first for one in beams for slot in one.rows]])
        samples.sort(key=lambda sample: sample.slots)
        rows = [sample.slots[0] - first for sample in samples]
        self._advance_samples(samples, logits if len(rows) == len(logits) else logits[rows])

    def _advance_samples(self, samples: Sequence[Sample], logits: np.ndarray) -> None:
        """Choose the next tokens from logits, (samples, vocab), and hand them over."""
        for sample, outcome in advance_samples(samples, logits):
            if isinstance(outcome, Exception):
                self._end(sample, outcome)
            elif outcome:
                self._end(sample)

    def _advance_beams(self, some: Sequence[Beams], logits: np.ndarray) -> None:
        """Let searches go on from logits, (beams of all of them, vocab), which may be changed."""
        for beams, outcome in zip(some, advance_all([one.search for one in some], logits), strict=True):
            if isinstance(outcome, Exception):
                self._end(beams, outcome)
                continue
            came_from, over = outcome
            if over:
                self._end(beams)
                continue
            sources, targets = beams.place(came_from)
            try:
                if targets:
                    self._copy(sources, targets, int(self._table.lengths[sources[0]]))
            except Exception as error:
                self._end(beams, error)

    def _copy(self, sources: Sequence[int], targets: Sequence[int], tokens: int) -> None:
        """Let slots hold the first tokens of others; what they hold of these already stays where it is."""
        pairs = zip(sources, targets, strict=True)
        start = min(self._table.alike(source, target, tokens) for source, target in pairs)
        if start < tokens:
            with self._in_decoder():
                self._decoder.copy(sources, targets, tokens, start)
        self._table.copy(sources, targets, tokens)

    def _end(self, decoding: Decoding, error: Exception | None = None) -> None:
        if decoding in self._decoding:
            self._decoding.remove(decoding)
        elif decoding in self._prefilling:
            self._prefilling.remove(decoding)
        for slot in decoding.slots:
            if error is not None:
                self._table.forget(slot)
            self._table.give_back(slot)
        decoding.slots = []
        decoding.end(error)
        for follower in decoding.prompt.followers:
            follower.end(error)
        decoding.prompt.followers = []

    @contextmanager
    def _in_decoder(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.decoder_s += time.perf_counter() - began


def open_engine(artifact: ModelArtifact, config: SessionConfig, slots: SlotsConfig) -> Engine | SlotEngine:
    """The engine that an artifact's graphs allow; raises ArtifactError for graphs that are no decoder."""
    if artifact.manifest.cache == "slots":
        session = InferenceSession(artifact.graph("model"), replace(config, spins=True))
        return SlotEngine(SlotDecoder(session, slots.slots, slots.max_tokens), slots.prefill_chunk_tokens)
    return Engine(open_decoder(artifact, config))


def _answer(prompt: Prompt, decoded: list[Sample] | Beams) -> Answer:
    if isinstance(decoded, Beams):
        (generations,) = arriving(decoded.outcome)
    else:
        generations = tuple(Generation(tuple(arriving(sample.outcome))) for sample in decoded)
    return Answer(generations, tuple(prompt.logprobs))
