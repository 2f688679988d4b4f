"""SimulatedEngine: a decode engine in simulated time, whose rounds take what DecodeCost says.

Queue, shares and turns are those of pipelines.generation. As in slots/engine.py, a round reads a chunk of prompts and
decodes a token of each sequence. Rounds in which nothing else happens are one event.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from pipelines.generation.decoding.request import Answer, DecodeRequest, Generation, Step
from pipelines.generation.engine import PROMPT_TOKEN, DecodeEngine, Job, Scheduled
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.turns import Turns, candidates
from pipelines.schema import check_fields
from planning.simulated.loop import SimulatedLoop, Timer

MOST_ALIKE = 32
"""Rounds in one event: a caller that leaves is noticed after it."""
_STEP = Step(0)
_ALMOST = 1e-9  # of a round: rounding of times


@dataclass(frozen=True)
class DecodeCost:
    """A round with n sequences takes `step_s + n * sequence_s` seconds, and `prompt_token_s` for each prompt token that
    it reads. Models that search with `beams` need as many slots for each answer.
    """

    prompt_token_s: Annotated[float, Meta(ge=0, le=3600)]
    step_s: Annotated[float, Meta(gt=0, le=3600)]
    sequence_s: Annotated[float, Meta(ge=0, le=3600)]
    beams: Annotated[int, Meta(ge=1, le=1024)] = 1

    def __post_init__(self) -> None:
        check_fields(self)

    def round_s(self, sequences: int, prompt_tokens: int = 0) -> float:
        """Seconds of a round."""
        decoding_s = self.step_s + sequences * self.sequence_s if sequences else 0.0
        return decoding_s + prompt_tokens * self.prompt_token_s


class _One:
    """The part of a GenerationConfig that schedulers read: one sequence, no beams."""

    n_sequences = num_beams = 1


@dataclass(eq=False, slots=True)
class SizedPrompt:
    """A request of which only sizes are known, and a slot for each of its `beams`. `first_token_at` is when it had its
    first token.
    """

    n_tokens: int
    max_new_tokens: int
    beams: int = 1
    first_token_at: float = math.nan
    grammar = None
    adapter = 0
    config = _One


class _Sequence:
    """One sequence, in the queue, in a slot or paused."""

    __slots__ = ("is_new", "job", "new_left", "number", "parked", "prompt_left", "share", "turn_tokens", "width")

    def __init__(self, job: Job) -> None:
        request: Any = job.request
        self.width = request.beams
        self.job, self.share, self.number = job, job.share, 0
        self.prompt_left, self.new_left = request.n_tokens, request.max_new_tokens
        self.turn_tokens, self.parked, self.is_new = 0, False, False


class SimulatedEngine(DecodeEngine[Any]):
    """`speed` is that of its machine."""

    def __init__(self, loop: SimulatedLoop, cost: DecodeCost, config: SlotsConfig, speed: float = 1.0) -> None:
        super().__init__()
        self._loop, self._speed, self._cost = loop, speed, cost
        self._slots, self._chunk_tokens = config.slots, config.prefill_chunk_tokens
        self._turns = Turns(config.turn_tokens, config.slots if config.max_paused is None else config.max_paused)
        self._prefilling: deque[_Sequence] = deque()
        self._decoding: list[_Sequence] = []
        self._began_at, self._each_s, self._rounds = 0.0, 0.0, 0  # of the rounds that run
        self._ending: Timer | None = None

    @property
    def slots(self) -> int:
        return self._slots

    def check(self, request: DecodeRequest) -> None:
        """Sizes are checked where they come from."""

    def start(self, *jobs: Job) -> None:
        super().start(*jobs)
        if self._rounds > 1:  # what comes is looked at after the round that runs now
            done = max(1, math.ceil((self._loop.time() - self._began_at) / self._each_s - _ALMOST))
            self._end_after(min(done, self._rounds))

    def _queued(self, job: Job) -> tuple[list[Any], int]:
        return [_Sequence(job)], 1

    def _wake(self) -> None:
        self._loop.call_soon(self._round)

    def _fail(self, error: Exception) -> None:
        raise error

    def _round(self) -> bool:
        """Begin the next round, and those after it that are alike; False where nothing is left."""
        for one in [*self._decoding, *self._prefilling]:
            if one.job.cancelled():
                self._leave(one)
        self._admit()
        if not (self._decoding or self._prefilling):
            self._is_awake = bool(self._waiting)
            assert not self._is_awake, "a free slot was not given away"
            return False
        read = self._read_prompts()
        stepping = sum(one.width for one in self._decoding)
        self._each_s = self._cost.round_s(stepping, read) / self._speed
        self._rounds = 1 if read or self._prefilling else self._alike()
        self._began_at = self._loop.time()
        if read:
            self._learn("prompt_token_s", read * self._cost.prompt_token_s / self._speed, read)
        if stepping:
            self._learn("new_token_s", self._cost.round_s(stepping) / self._speed, stepping)
        self._end_after(self._rounds)
        return True

    def _end_after(self, rounds: int) -> None:
        if self._ending is not None:
            self._ending.cancel()
        self._rounds = rounds
        self._ending = self._loop.call_at(self._began_at + rounds * self._each_s, self._ended)

    def _ended(self) -> None:
        """The rounds are over: each sequence has a token of each."""
        rounds, self._rounds, self._ending = self._rounds, 0, None
        for one in list(self._decoding):
            self._did(one.share, rounds * one.width)
            one.turn_tokens += rounds
            self._wrote(one, rounds + one.is_new)  # the prompt's last token gives one, too
            one.is_new = False
        self._round()

    def _wrote(self, one: _Sequence, tokens: int) -> None:
        prompt: Any = one.job.request
        if math.isnan(prompt.first_token_at):
            prompt.first_token_at = self._loop.time()
        one.new_left -= tokens
        if one.new_left <= 0:
            self._leave(one)
            one.job.put(Answer((Generation((_STEP,) * prompt.max_new_tokens),)))

    def _admit(self) -> None:
        """Give free slots to those that wait, in their order; pause those whose turn is over for others."""
        for one in self._waiting.take(lambda one: one.job.cancelled()):
            self._sequence_ended(one.share)
        while waiting := candidates(self._waiting):
            free = self._slots - sum(one.width for one in (*self._decoding, *self._prefilling))
            chosen: Any = waiting[0]
            if chosen.width > free:
                found = self._turns.room(waiting, self._decoding, free)  # type: ignore[arg-type]
                if found is None:
                    return
                chosen, paused = found
                for one in paused:
                    self._pause(one)
            self._waiting.remove(chosen)
            if chosen.parked:
                chosen.parked, chosen.turn_tokens = False, 0
                self._decoding.append(chosen)
            else:
                chosen.job.put(Scheduled())
                self._prefilling.append(chosen)

    def _pause(self, one: Any) -> None:
        one.parked = True
        self._decoding.remove(one)
        self._waiting.put(one)

    def _read_prompts(self) -> int:
        """Give the chunk of a round to prompts, in turn; returns the tokens that it reads."""
        left = self._chunk_tokens
        for _ in range(len(self._prefilling)):
            if not left:
                break
            one = self._prefilling.popleft()
            read = min(left, one.prompt_left)
            left -= read
            self._did(one.share, PROMPT_TOKEN * read)
            if read < one.prompt_left:
                one.prompt_left -= read
                self._prefilling.append(one)
            else:
                one.is_new = True
                self._decoding.append(one)
        return self._chunk_tokens - left

    def _alike(self) -> int:
        """Rounds until a sequence ends, or one that others wait for has had its turn."""
        rounds = min(MOST_ALIKE, *(one.new_left for one in self._decoding))
        if self._waiting:
            turn = self._turns.turn_tokens
            rest = [turn - one.turn_tokens for one in self._decoding if one.turn_tokens < turn]
            # Shares change in every round: whoever may be paused already is looked at again soon.
            rounds = min([rounds, *rest, max(1, turn // 8)])
        return max(1, int(rounds))

    def _leave(self, one: _Sequence) -> None:
        if one in self._decoding:
            self._decoding.remove(one)
        else:
            self._prefilling.remove(one)
        self._sequence_ended(one.share)
