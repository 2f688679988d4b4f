"""DecodingLoop: rounds over the slots of a decoder, for as long as there is something to decode.

    waiting ──free slots──> chunks of the prompt ──> a token per round ──stop, cancel, error──> slots are free

A round reads sources and prompts, a chunk altogether, then one token of every sequence whose prompt was read: that is
how long a stream waits for newcomers. One thread does all rounds; it starts with the first request and ends with the
last.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from pipelines.generation.decoding.beam_search import advance_all
from pipelines.generation.decoding.continuation import prompt_logprobs
from pipelines.generation.slots.decodings import Beams, Decoding, Prompt, Sample, advance_samples
from pipelines.generation.slots.slot_table import SlotTable
from pipelines.generation.slots.slotted_decoder import SlottedDecoder

_LAST = np.zeros(1, np.int64)  # of one token that is read, the logits are wanted


class DecodingLoop:
    """`steps` counts rounds, `step_s` their seconds, `decoder_s` those of them that the decoder took.

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
        self._opening: dict[int, tuple[int, ...]] = {}  # slots that were taken in this round, and their sources
        self._budget = 0  # how many tokens of sources and prompts may still be read in this round
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

    def enqueue(self, *decodings: Decoding) -> None:
        """Let them have their turns, all of them from the same round on. Any thread may call this."""
        with self._lock:
            if not self._awake:
                threading.Thread(target=self._run, name="decode", daemon=True).start()  # it raises where there is none
                self._awake = True
            self._waiting.extend(decodings)

    def _run(self) -> None:
        began = time.perf_counter()
        alive = True
        while alive:
            try:
                alive = self._admit()
                if alive:
                    self._read_sources()
                    self._close_up()
                    self._prefill()
                    self._step()
            except Exception as error:  # nobody's own: it fails all there are, but not those that come
                self._fail(error)
            ended = time.perf_counter()
            self.steps, self.step_s, began = self.steps + 1, self.step_s + ended - began, ended

    def _fail(self, error: Exception) -> None:
        with self._lock:
            waiting = list(self._waiting)
            self._waiting.clear()
        for decoding in (*self._decoding, *self._prefilling, *waiting):
            self._end(decoding, error)

    def _admit(self) -> bool:
        """Let go who left, give free slots to who waits longest; False, and the thread ends, where nobody is there."""
        self._budget = self._chunk_tokens
        for decoding in [*self._decoding, *self._prefilling]:
            if decoding.prompt.cancelled():
                self._end(decoding)
        while True:
            with self._lock:
                left = [one for one in self._waiting if one.prompt.cancelled()]
                for decoding in left:
                    self._waiting.remove(decoding)
                if not self._waiting or self._waiting[0].width > self._table.free or self._budget <= 0:
                    alive = self._awake = bool(self._decoding or self._prefilling or self._waiting or left)
                    admitted = None
                else:
                    admitted = self._waiting.popleft()
            for decoding in left:
                self._end(decoding)
            if admitted is None:
                return alive
            try:
                self._open(admitted)
            except Exception as error:
                self._end(admitted, error)

    def _open(self, decoding: Decoding) -> None:
        """Give it slots; the first one holds what any slot holds of the prompt, and the rest is read from there."""
        prompt, table, request = decoding.prompt, self._table, decoding.prompt.request
        shared = table.shared(request.source, request.prompt)
        for _ in range(decoding.width):
            decoding.slots.append(table.take(shared))
        slot = decoding.slots[0]
        # Without its last token nobody knows what comes next, and without all of them not how likely each one was. And
        # no token of a prompt is read alone (see slot_table): the last one is read with the one before it.
        most = max(0, len(request.prompt) - 2)
        if prompt.logits is None:
            shared = np.minimum(shared, 0 if request.prompt_logprobs else most)
        shared[shared == len(request.prompt) - 1] = most
        best = int(shared.argmax())
        if shared[best] > shared[slot]:
            self._copy([best], [slot], int(shared[best]))
        elif table.source(slot) == request.source:
            table.cut(slot, int(shared[slot]))
        else:
            self._opening[slot] = request.source
            self._budget -= len(request.source)
            table.open(slot, request.source)
        missing = len(request.prompt) - int(table.lengths[slot])
        if missing == 0:
            assert prompt.logits is not None
            self._begin(decoding, prompt.logits.copy())
        elif missing == 1:  # all of the prompt: it is read with the others' next ones
            self._decoding.append(decoding)
        else:
            self._prefilling.append(decoding)

    def _read_sources(self) -> None:
        """Open the slots of those who came, all at once."""
        opening, self._opening = self._opening, {}
        if opening:
            with self._in_decoder():
                failed = self._decoder.open(opening)
            for slot, error in failed.items():
                self._end(self._owner(slot), error)

    def _owner(self, slot: int) -> Decoding:
        return next(one for one in (*self._decoding, *self._prefilling) if slot in one.slots)

    def _close_up(self) -> None:
        """Let who is left move together, as a step reads all rows between them."""
        while (hole := self._table.hole()) is not None:
            last, free = hole
            owner = self._owner(last)
            try:
                self._copy([last], [free], int(self._table.lengths[last]))
            except Exception as error:
                self._end(owner, error)
                continue
            self._table.move(last, free)
            owner.slots[owner.slots.index(last)] = free

    def _prefill(self) -> None:
        """Read prompts, a chunk altogether. They take turns, so that a short one does not wait for a long one's end."""
        while self._prefilling:
            decoding = self._prefilling[0]
            missing = len(decoding.prompt.request.prompt) - int(self._table.lengths[decoding.slots[0]])
            tokens = min(missing, self._chunk_tokens)
            if missing - tokens == 1 and tokens > 1:  # the last one would be read alone
                tokens -= 1
            if self._budget < tokens:
                return
            self._prefilling.popleft()
            self._read_chunk(decoding, tokens)
            self._budget -= tokens

    def _read_chunk(self, decoding: Decoding, tokens: int) -> None:
        """Read the next `tokens` tokens of a prompt."""
        prompt, request, slot = decoding.prompt, decoding.prompt.request, decoding.slots[0]
        start = int(self._table.lengths[slot])
        ids = np.asarray([request.prompt[start : start + tokens]], np.int64)
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
        if start < tokens or tokens == 0:  # without tokens, there may still be a source
            with self._in_decoder():
                self._decoder.copy(sources, targets, tokens, start)
        self._table.copy(sources, targets, tokens)

    def _end(self, decoding: Decoding, error: Exception | None = None) -> None:
        if decoding in self._decoding:
            self._decoding.remove(decoding)
        elif decoding in self._prefilling:
            self._prefilling.remove(decoding)
        for slot in decoding.slots:
            self._opening.pop(slot, None)
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
