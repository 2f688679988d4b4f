"""SlotEngine: many sequences decode in one batch, each in a KV cache slot of its own.

    waiting ──free slots──> prefill chunks ──> one token per round ──stop, cancel, error──> slots are free
       ^                                              │
       └────── paused after its turn, cache kept ─────┘   where a request waits that has used less

A round prefills at most one chunk of sources and prompts, then decodes one token of every sequence whose prompt is
read: the chunk bounds how long a stream waits for new requests. Answers are bit for bit independent of earlier and
concurrent requests: rows do not touch each other, and a paused cache is restored exactly.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.errors import InputTooLongError, InvalidInputError
from pipelines.generation.decoding.beam_search import advance_all
from pipelines.generation.decoding.request import DecodeRequest
from pipelines.generation.decoding.sequence_state import score_prompt
from pipelines.generation.decoding.step_logits import HostLogits, StepLogits
from pipelines.generation.engine import PROMPT_TOKEN, DecodeEngine, Job, Line
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.decodings import Beams, Decoding, Sample, SharedPrompt, advance_samples, decodings_of
from pipelines.generation.slots.prompt_batch import PromptBatch
from pipelines.generation.slots.prompt_lookup import PromptLookup
from pipelines.generation.slots.slot_model import SlotModel
from pipelines.generation.slots.slot_table import SlotTable
from pipelines.generation.slots.turns import Turns, candidates

SWAP_TOKENS = 16  # copying so many cached tokens counts as one token of a round's budget


class SlotEngine(DecodeEngine[Decoding]):
    """`prefill_chunk_tokens` bounds the prompt tokens of a round; `turns` says when a sequence is paused.

    A beam search waits for a slot for each beam; requests that have used as much do not overtake it.
    """

    def __init__(self, model: SlotModel, prefill_chunk_tokens: int, turns: SlotsConfig | None = None) -> None:
        super().__init__()
        turns = turns or SlotsConfig()
        self._model, self._chunk_tokens = model, prefill_chunk_tokens
        self._prefix_cache = turns.prefix_cache
        self._turns = Turns(turns.turn_tokens, model.slots if turns.max_paused is None else turns.max_paused)
        self._table = SlotTable(model.slots, model.max_tokens, model.adapters)
        self.cache, self.release_memory = self._table.state, model.release_memory
        self._prefilling: deque[Decoding] = deque()
        self._decoding: list[Decoding] = []
        self._opening: dict[int, tuple[int, ...]] = {}  # slots taken in this round, with their sources
        self._lookup = PromptLookup(turns.lookup_tokens if model.reads_ahead else 0)
        self._budget = 0  # source and prompt tokens that this round may still read

    @property
    def slots(self) -> int:
        return self._model.slots

    @property
    def free_slots(self) -> int:
        return self._table.free

    def check(self, request: DecodeRequest) -> None:
        if request.max_length > self._model.max_tokens:
            raise InputTooLongError(
                f"prompt and answer have up to {request.max_length} tokens; allowed: {self._model.max_tokens}"
            )
        if max(request.prompt) >= self._model.vocab:
            allowed = f"0 to {self._model.vocab - 1}, which the model knows"
            raise InvalidInputError(f"has the token {max(request.prompt)}; allowed: {allowed}", ("inputs",))
        if request.config.num_beams > self.slots:
            beams = f"is {request.config.num_beams}; allowed: at most {self.slots}, the model's slots"
            raise InvalidInputError(beams, ("parameters", "num_beams"))

    def _queued(self, job: Job) -> tuple[list[Decoding], int]:
        decodings = decodings_of(job)
        return decodings[:1], len(decodings)

    def _round(self) -> bool:
        self._budget = self._chunk_tokens
        for decoding in [*self._decoding, *self._prefilling]:
            if decoding.prompt.cancelled():
                self._end(decoding)
        if not self._admit():
            return False
        self._read_sources()
        self._close_up()
        self._prefill()
        self._step()
        return True

    def _fail(self, error: Exception) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, Line()
        for decoding in (*self._decoding, *self._prefilling, *waiting):
            self._end(decoding, error)

    def _admit(self) -> bool:
        """Give free slots to waiting decodings in their order; False where nothing is left, and the thread ends."""
        while True:
            with self._lock:
                left = self._waiting.take(lambda one: one.prompt.cancelled())
                waiting = candidates(self._waiting) if self._budget > 0 else []
                if not waiting:
                    alive = self._is_awake = bool(self._decoding or self._prefilling or self._waiting or left)
            for decoding in left:
                self._end(decoding)
            if not waiting:
                return alive
            admitted = waiting[0] if waiting[0].width <= self._table.free else self._make_room(waiting)
            if admitted is None:
                return True
            with self._lock:
                self._waiting.remove(admitted)
            try:
                if admitted.parked:
                    self._resume(admitted)
                else:
                    self._open(admitted)
            except Exception as error:
                self._end(admitted, error)

    def _make_room(self, waiting: Sequence[Decoding]) -> Decoding | None:
        """Pause sequences whose turn is over for the first decoding that has used less; None where none may be."""
        found = self._turns.room(waiting, self._decoding, self._table.free)
        if found is None:
            return None
        candidate, paused = found
        for one in paused:
            self._pause(one)
        return candidate if candidate.width <= self._table.free else None

    def _pause(self, decoding: Decoding) -> None:
        """Copy a sequence's cache out of its slots, and queue it for its next turn."""
        try:
            parked = [
                (self._model.save(slot, int(self._table.lengths[slot])), self._table.save(slot))
                for slot in decoding.slots
            ]
        except Exception as error:
            self._end(decoding, error)
            return
        self._budget -= sum(len(held.ids) for _, held in parked) // SWAP_TOKENS
        self._decoding.remove(decoding)
        for slot in decoding.slots:
            self._table.give_back(slot)
        decoding.slots, decoding.parked = [], parked
        with self._lock:
            self._waiting.put(decoding)

    def _resume(self, decoding: Decoding) -> None:
        """Give a paused sequence slots, and restore its cache in them."""
        untouched = np.zeros(self.slots, np.int64)
        for saved, held in decoding.parked:
            slot = self._table.take(untouched)
            decoding.slots.append(slot)
            self._model.restore(slot, saved)
            self._table.restore(slot, held)
            self._budget -= len(held.ids) // SWAP_TOKENS
        decoding.parked, decoding.turn_tokens = [], 0
        self._decoding.append(decoding)

    def _open(self, decoding: Decoding) -> None:
        """Give a decoding its slots; the longest prefix of the prompt in any slot is reused, the rest is to prefill."""
        prompt, table, request = decoding.prompt, self._table, decoding.prompt.request
        # Followers reuse the prefill of their own request, with and without the prefix cache.
        shared = table.shared(request.cache_key, request.prompt)
        if not self._prefix_cache and prompt.logits is None:
            shared[:] = 0
        for _ in range(decoding.width):
            decoding.slots.append(table.take(shared))
        decoding.open()
        prompt.start()
        slot = decoding.slots[0]
        # The logits after the last prompt token are needed, so that token is always read; logprobs of the prompt need
        # all tokens. GEMV and GEMM kernels round differently, so the last token is read together with the one before.
        most = max(0, len(request.prompt) - 2)
        if prompt.logits is None:
            shared = np.minimum(shared, 0 if request.prompt_logprobs else most)
        shared[shared == len(request.prompt) - 1] = most
        best = int(shared.argmax())
        if shared[best] > shared[slot]:
            self._copy([best], [slot], int(shared[best]))
        elif table.key(slot) == request.cache_key:
            table.cut(slot, int(shared[slot]))
        else:
            self._opening[slot] = request.source
            self._budget -= len(request.source)
            self._did(decoding.share, PROMPT_TOKEN * len(request.source))
            table.open(slot, request.cache_key)
        decoding.cached_tokens = table.begin(slot, len(request.prompt))
        missing = len(request.prompt) - decoding.cached_tokens
        if missing == 0:
            assert prompt.logits is not None
            self._decoding.append(decoding)
            self._advance([decoding], HostLogits(prompt.logits.copy()), {slot: 0})
        elif missing == 1:  # a prompt of one token: the next step reads it
            self._decoding.append(decoding)
        else:
            self._prefilling.append(decoding)

    def _read_sources(self) -> None:
        """Encode the sources of new sequences into their slots, all in one call."""
        opening, self._opening = self._opening, {}
        if opening:
            with self._in_model():
                failed = self._model.open(opening)
            for slot, error in failed.items():
                self._end(self._owner(slot), error)

    def _owner(self, slot: int) -> Decoding:
        return next(one for one in (*self._decoding, *self._prefilling) if slot in one.slots)

    def _close_up(self) -> None:
        """Move sequences from the last slots into free ones before them: a step reads all rows in between."""
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
        """Prefill prompts, one chunk in all. Prompts take turns, so that a short one need not wait for a long one."""
        while self._prefilling:
            waiting, run_tokens = list(self._prefilling), self._model.run_tokens
            batch = PromptBatch.next(waiting, self._table, self._budget, self._chunk_tokens, run_tokens)
            if self._budget < batch.ids.size:
                return
            self._prefilling.rotate(-1)
            self._budget -= batch.ids.size
            try:
                self._read_prompts(batch)
            except Exception as error:
                for decoding in batch.decodings:
                    self._end(decoding, error)

    def _read_prompts(self, batch: PromptBatch) -> None:
        """Prefill the tokens of a batch, and begin to decode from the prompts that are read."""
        shown, first = batch.shown, batch.first
        logits_at = np.concatenate([row * batch.ids.shape[1] + some for row, some in enumerate(shown)])
        began = time.perf_counter()
        with self._in_model():
            logits = self._model.read(first, batch.ids, batch.lengths, logits_at, batch.counts)
        ends = np.cumsum([len(some) for some in shown]).tolist()
        read: list[Decoding] = []
        for row, (decoding, end) in enumerate(zip(batch.decodings, ends, strict=True)):
            try:
                self._took(decoding, batch, row, logits, range(end - len(shown[row]), end))
            except Exception as error:
                self._end(decoding, error)
                continue
            if decoding not in self._prefilling:
                read.append(decoding)
        self._learn("prompt_token_s", time.perf_counter() - began, int(batch.counts.sum()))
        self._advance(read, logits, {first + row: end - 1 for row, end in enumerate(ends)})

    def _took(self, decoding: Decoding, batch: PromptBatch, row: int, logits: StepLogits, shown: range) -> None:
        """Note that the tokens of a row of a batch were read; `shown` are the rows of its logits."""
        prompt, start, tokens = decoding.prompt, int(batch.lengths[row]), int(batch.counts[row])
        if prompt.request.prompt_logprobs and prompt.logits is None:
            score_prompt(prompt.scores, prompt.request, start, logits.rows(shown))
        self._did(decoding.share, PROMPT_TOKEN * tokens)
        self._table.append(batch.first + row, batch.ids[row, :tokens])
        if start + tokens == len(prompt.request.prompt):
            self._prefilling.remove(decoding)
            self._decoding.append(decoding)

    def _release(self, prompt: SharedPrompt, logits: StepLogits, row: int) -> None:
        """Queue the samples that waited for this prefill."""
        if prompt.followers:
            prompt.logits = logits.rows([row]).copy()
            with self._lock:
                self._queue(prompt.followers)
            prompt.followers = []

    def _step(self) -> None:
        """Decode one token of every running sequence. An error of the model ends these sequences only."""
        if not self._decoding or self._read_ahead():
            return
        readings = [decoding.reading for decoding in self._decoding]
        slots = [slot for some, _ in readings for slot in some]
        tokens = [token for _, some in readings for token in some]
        first, end = self._model.step_rows(min(slots), max(slots) + 1)
        # Slots in between read a token too, written where their next token overwrites it.
        ids = np.zeros((end - first, 1), np.int64)
        ids[np.asarray(slots) - first, 0] = tokens
        rows = {slot: row for row, slot in enumerate(sorted(slots))}
        began = time.perf_counter()
        try:
            guides = [guide for decoding in self._decoding for guide in decoding.guides]
            with self._masks.beside(guides), self._in_model():
                logits = self._model.read(first, ids, self._table.lengths[first:end], np.asarray([*rows]) - first)
        except Exception as error:
            for decoding in list(self._decoding):
                self._end(decoding, error)
            return
        self._table.append_each(slots, tokens)
        for decoding, (some, _) in zip(self._decoding, readings, strict=True):
            decoding.turn_tokens += 1
            self._did(decoding.share, len(some))
        self._advance(list(self._decoding), logits, rows)
        self._learn("new_token_s", time.perf_counter() - began, len(slots))

    def _read_ahead(self) -> bool:
        """Decode several tokens of the only running sequence, as far as a guess is right; False where there is none.

        Several sequences share a step: there, a read of each by itself would cost more than it saves.
        """
        one, *others = self._decoding
        if others or not isinstance(one, Sample):
            return False
        (slot,), (last,) = one.reading
        held = int(self._table.lengths[slot])
        guess = self._lookup.guess(one, one.prompt.request.max_length - held - 1)
        if not len(guess):
            return False
        began, tokens = time.perf_counter(), [last, *guess.tolist()]
        try:
            with self._masks.beside(one.guides), self._in_model():
                lengths, places = self._table.lengths[slot : slot + 1], np.arange(len(tokens))
                logits = self._model.read(slot, np.asarray([tokens]), lengths, places)
        except Exception as error:
            self._end(one, error)
            return True
        kept = 0
        for place, token in enumerate(tokens):
            self._table.append_each([slot], [token])
            one.turn_tokens += 1
            self._did(one.share, 1)
            self._advance([one], logits, {slot: place})
            if one not in self._decoding or tokens[place + 1 : place + 2] != [one.state.last_token]:
                break
            kept += 1
        self._lookup.learn(one, kept)
        self._learn("new_token_s", time.perf_counter() - began, kept + 1)
        return True

    def _advance(self, some: Sequence[Decoding], logits: StepLogits, rows: Mapping[int, int]) -> None:
        """Choose the next tokens of decodings from the logits; `rows` says in which row those of each slot are.

        Decodings that are complete, or fail, end.
        """
        for one in some:
            self._release(one.prompt, logits, rows[one.slots[0]])
        beams = [one for one in some if isinstance(one, Beams)]
        samples = sorted((one for one in some if isinstance(one, Sample)), key=lambda one: rows[one.slots[0]])
        if beams:
            self._advance_beams(beams, logits.rows([rows[slot] for one in beams for slot in one.rows]))
        for sample, outcome in advance_samples(samples, logits, [rows[one.slots[0]] for one in samples]):
            if isinstance(outcome, Exception):
                self._end(sample, outcome)
            elif outcome:
                self._end(sample)

    def _advance_beams(self, some: Sequence[Beams], logits: np.ndarray) -> None:
        """Advance beam searches by a token, from logits, (all beams, vocab) float32, which it may overwrite."""
        for beams, outcome in zip(some, advance_all([one.search for one in some], logits), strict=True):
            if isinstance(outcome, Exception):
                self._end(beams, outcome)
                continue
            beams.prompt.wrote()
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
        """Copy the first `tokens` tokens of some slots to others, without those that the targets hold already."""
        start = min(self._table.alike(source, target, tokens) for source, target in zip(sources, targets, strict=True))
        if start < tokens or tokens == 0:  # without tokens, a source may still have to be copied
            with self._in_model():
                self._model.copy(sources, targets, tokens, start)
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
        decoding.slots, decoding.parked = [], []
        followers, decoding.prompt.followers = decoding.prompt.followers, []
        for one in (decoding, *followers):
            one.end(error)
        self._sequence_ended(decoding.share, 1 + len(followers))
