"""Completion: answers to a prompt with the semantics of OpenAI's API, on a loaded text-generation pipeline.

It shares the model with `TextGenerationPipeline`, which follows text-generation-inference and transformers. The
differences: by default it samples at temperature 1 from the whole vocabulary, and an answer may fill the window;
penalties count the tokens of the answer alone; the text ends before its stop string.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

from msgspec import Meta

from pipelines.errors import GenerationError, InputTooLongError, InvalidInputError
from pipelines.generation.decoding.guide import Constraint, Grammar
from pipelines.generation.decoding.request import Answer, Step
from pipelines.generation.decoding.stopping import StopStrings
from pipelines.generation.text.detokenizer import Detokenizer, StopFilter
from pipelines.misfit import require
from pipelines.runtime.tokenizer import clean_up_spaces
from pipelines.schema import Parameters, parse
from pipelines.tasks.generator import (
    MAX_FINAL_TOKENS,
    SEED_BITS,
    Count,
    Factor,
    GeneratorPipeline,
    Penalty,
    Probability,
    Sequences,
    Stop,
    TokenId,
)
from pipelines.tasks.pipeline import StepWriter
from pipelines.tasks.text_generation import PromptRow, TextGenerationPipeline

TokenIds = tuple[int, ...]
Prompt = str | TokenIds
FinishReason = Literal["stop", "length"]

MAX_TOP_LOGPROBS = 20
MAX_PROMPT_IDS = 65_536
MAX_BIASES = 1024
MAX_SALT_CHARACTERS = 1024
Bias = Annotated[float, Meta(ge=-100, le=100)]
_LARGEST_SEED = 2**63 - 1
_NEUTRAL: Mapping[str, Any] = {"do_sample": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None}


class Sampling(Parameters, frozen=True):
    """Sampling parameters of OpenAI's API, and vLLM's where OpenAI has none. `max_tokens` None fills the window.

    A `temperature` of 0 is greedy. `seed` None draws a new one for each prompt. `logit_bias` is added to the logits of
    tokens, named by their ids. An answer ends with one of `stop_token_ids` as with the model's own end, which
    `ignore_eos` takes for any other token; it has at least `min_tokens` before. `prompt_logprobs` asks for the logprob
    and the rank of each prompt token, and for so many of the most likely ones. Requests share the prefix cache with
    those of the same `cache_salt` only.
    """

    max_tokens: Count | None = None
    n: Sequences = 1
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Probability = 1.0
    top_k: Count = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Factor | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    seed: Annotated[int, Meta(ge=-_LARGEST_SEED, le=_LARGEST_SEED)] | None = None
    stop: Stop = ()
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=MAX_BIASES)] | None = None
    stop_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_FINAL_TOKENS)] = ()
    min_tokens: Count = 0
    ignore_eos: bool = False
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=MAX_SALT_CHARACTERS)] | None = None


class CompletionParameters(Sampling, frozen=True):
    """`max_tokens` may be 0 with `echo` or `prompt_logprobs` only. `constraint` is what the answer is held to;
    `shown_tokens` are special tokens whose text the answer keeps.
    """

    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] = 0
    echo: bool = False
    constraint: Constraint | None = None
    shown_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        scores = self.echo or self.prompt_logprobs is not None
        require(self.max_tokens != 0 or scores, ("max_tokens",), self.max_tokens, "an integer from 1")
        most = self.min_tokens if self.max_tokens is None else self.max_tokens
        require(self.min_tokens <= most, ("min_tokens",), self.min_tokens, f"at most max_tokens, {most}")
        for name in ("min_tokens", "ignore_eos") if self.constraint is not None else ():
            value = getattr(self, name)
            require(not value, (name,), value, "only without a grammar, which says when an answer is complete")

    @property
    def choices(self) -> int:
        return self.n

    @property
    def compiles(self) -> bool:
        return self.constraint is not None

    @property
    def decoding(self) -> dict[str, Any]:
        """The fields of GenerationConfig that these parameters set."""
        chosen: dict[str, Any] = {
            "presence_penalty": self.presence_penalty,
            "count_penalty": self.frequency_penalty,
        }
        if self.repetition_penalty is not None:
            chosen["repetition_penalty"] = self.repetition_penalty
        if self.temperature > 0:
            chosen |= {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
            chosen |= {"min_p": self.min_p} if self.min_p else {}
        return chosen


@dataclass(frozen=True)
class ScoredToken:
    """A token's text and logprob (None for the first of a prompt), and the most likely tokens, best first.

    `offset` is its start in the answered text, in characters.
    """

    text: str
    offset: int
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class PromptToken:
    """A prompt token, and before it those that were asked for: each an id, its text and its logprob."""

    rank: int
    token: tuple[int, str, float]
    top: tuple[tuple[int, str, float], ...]


@dataclass(frozen=True)
class ChoiceDelta:
    """Text that a choice gained: one token's or the whole answer's. `completion_tokens` counts all tokens so far,
    `cached_tokens` those of the prompt that were in the prefix cache.

    `prompt` has what `prompt_logprobs` asks for, with None for the first token.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    tokens: tuple[ScoredToken, ...] = ()
    finish_reason: FinishReason | None = None
    prompt: tuple[PromptToken | None, ...] = ()
    cached_tokens: int = 0


class CompletionPipeline(GeneratorPipeline[Prompt, CompletionParameters, PromptRow]):
    """Answers a prompt with its choices, each one ChoiceDelta; `stream` gives one choice as deltas."""

    task = TextGenerationPipeline.task
    parameters_type = CompletionParameters

    def __init__(self, model: TextGenerationPipeline) -> None:
        super().__init__(model.artifact, model.generator)
        self.adapter = model.adapter
        self._vocab_size = int(model.artifact.config()["vocab_size"])
        self._clean_up = clean_up_spaces if self.tokenizer.settings.clean_up_tokenization_spaces else None

    def parse(self, raw: Any) -> Prompt:
        """A text, or a tuple of token ids."""
        if not isinstance(raw, tuple):
            text: str = parse(raw, str)
            return text
        for token_id in raw:
            if not isinstance(token_id, int) or not 0 <= token_id < self._vocab_size:
                raise InvalidInputError(
                    f"has the token {token_id!r}; allowed: 0 to {self._vocab_size - 1}", ("inputs",)
                )
        return raw

    def preprocess(self, inputs: Sequence[Prompt], parameters: CompletionParameters) -> list[list[PromptRow]]:
        """`n` rows for each prompt."""
        texts = [one for one in inputs if isinstance(one, str)]
        encodings = iter(self.tokenizer.encode(texts, offsets=False) if texts else ())
        prompts = [tuple(next(encodings).ids) if isinstance(one, str) else one for one in inputs]
        grammar = None if parameters.constraint is None else self.generator.grammar(parameters.constraint)
        return [self._rows(given, ids, parameters, grammar) for given, ids in zip(inputs, prompts, strict=True)]

    def postprocess(
        self, given: Prompt, rows: Sequence[PromptRow], outputs: Sequence[Answer], parameters: CompletionParameters
    ) -> list[ChoiceDelta]:
        """The choices, whole."""
        return [self._choice(row, answer, parameters) for row, answer in zip(rows, outputs, strict=True)]

    def stream(self, row: PromptRow, parameters: CompletionParameters) -> tuple[PromptRow, StepWriter]:
        """One delta per token, of whole characters only, the last one with its `finish_reason`.

        Raises InvalidInputError for what only the whole answer has.
        """
        if parameters.echo and parameters.logprobs:
            raise InvalidInputError("is true; allowed with stream and logprobs: false", ("parameters", "echo"))
        if parameters.prompt_logprobs is not None:
            problem = f"is {parameters.prompt_logprobs}; allowed with stream: null"
            raise InvalidInputError(problem, ("parameters", "prompt_logprobs"))
        if parameters.max_tokens == 0:
            raise InvalidInputError("is 0; allowed with stream: from 1", ("parameters", "max_tokens"))
        return row, self._writer(row, parameters)

    def _rows(
        self, given: Prompt, ids: tuple[int, ...], parameters: CompletionParameters, grammar: Grammar | None
    ) -> list[PromptRow]:
        defaults, window = self.generator.defaults, self.generator.window
        if not ids:
            if defaults.bos_token_id is None:
                raise InvalidInputError("has no tokens; allowed: a text of at least one", ("inputs",))
            ids = (defaults.bos_token_id,)
        room = window - len(ids)
        if room < 1:
            raise InputTooLongError(f"has {len(ids)} tokens; allowed: at most {window - 1}", ("inputs",))
        budget = room if parameters.max_tokens is None else max(1, parameters.max_tokens)
        if budget > room:
            raise InputTooLongError(
                f"is {budget}; allowed: at most {room}, as the model has a window of {window} tokens and the prompt "
                f"has {len(ids)}",
                ("parameters", "max_tokens"),
            )
        if parameters.min_tokens > budget:
            problem = f"is {parameters.min_tokens}; allowed: at most {budget}, as no more tokens fit"
            raise InputTooLongError(problem, ("parameters", "min_tokens"))
        ends = () if parameters.ignore_eos else defaults.eos_token_id
        config = replace(
            defaults,
            **_NEUTRAL,
            typical_p=1.0,
            num_return_sequences=1,
            max_new_tokens=budget,
            min_new_tokens=parameters.min_tokens or defaults.min_new_tokens,
            eos_token_id=(*ends, *self._known(parameters.stop_token_ids)),
            logit_bias=self._biases(parameters.logit_bias or {}),
        )
        config = config.with_request(parameters.decoding).for_prompt(len(ids), window)
        config = config if grammar is None else config.guided()
        row = PromptRow(
            prompt=ids,
            config=config,
            stop=StopStrings(parameters.stop, self._decode_all) if parameters.stop else None,
            logprobs=parameters.logprobs,
            top_tokens=parameters.top_logprobs if parameters.logprobs else 0,
            prompt_logprobs=(parameters.echo and parameters.logprobs) or parameters.prompt_logprobs is not None,
            prompt_top=parameters.prompt_logprobs,
            grammar=grammar,
            cache_salt=parameters.cache_salt or "",
            adapter=self.adapter,
            text=given if isinstance(given, str) else self._decode(given),
        )
        seed = secrets.randbits(SEED_BITS) if parameters.seed is None else parameters.seed
        return [replace(row, seed=(seed + choice) % 2**64) for choice in range(parameters.n)]

    def _choice(self, row: PromptRow, answer: Answer, parameters: CompletionParameters) -> ChoiceDelta:
        if not answer.generations:
            raise GenerationError("decoding was cancelled before its first token")
        echoed = self._echoed(row, answer) if parameters.echo and parameters.logprobs else ()
        prompt = self._ranked(row, answer) if row.prompt_top is not None else ()
        if parameters.max_tokens == 0:
            echo = row.text if parameters.echo else ""
            return ChoiceDelta(echo, len(row.prompt), 0, echoed, "length", prompt)
        deltas, write = [], self._writer(row, parameters)
        for step in answer.generations[0].steps:
            delta, is_last = write(step)
            deltas.append(delta)
            if is_last:
                break
        if not deltas:
            raise GenerationError("decoding was cancelled before its first token")
        tokens = (*echoed, *(token for delta in deltas for token in delta.tokens))
        return replace(deltas[-1], text="".join(delta.text for delta in deltas), tokens=tokens, prompt=prompt)

    def _ranked(self, row: PromptRow, answer: Answer) -> tuple[PromptToken | None, ...]:
        def described(token_id: int, logprob: float) -> tuple[int, str, float]:
            return token_id, self._decode_all([token_id]), logprob

        following = zip(row.prompt[1:], answer.prompt_logprobs, answer.prompt_ranks, strict=True)
        return (
            None,
            *(
                PromptToken(ranked.rank, described(token_id, logprob), tuple(described(*one) for one in ranked.top))
                for token_id, logprob, ranked in following
            ),
        )

    def _known(self, tokens: Sequence[int]) -> Sequence[int]:
        for index, token in enumerate(tokens):
            allowed = f"0 to {self._vocab_size - 1}"
            require(0 <= token < self._vocab_size, ("parameters", "stop_token_ids", index), token, allowed)
        return tokens

    def _biases(self, given: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
        for name in given:
            known = name.isascii() and name.isdigit() and len(name) < 10 and int(name) < self._vocab_size
            require(known, ("parameters", "logit_bias"), name, f"the ids of tokens, 0 to {self._vocab_size - 1}")
        return tuple({int(name): bias for name, bias in given.items()}.items())

    def _echoed(self, row: PromptRow, answer: Answer) -> tuple[ScoredToken, ...]:
        detokenizer, offset = Detokenizer((), self._decode_all), 0
        echoed = []
        for token_id, logprob in zip(row.prompt, (None, *answer.prompt_logprobs), strict=True):
            echoed.append(ScoredToken(detokenizer.push(token_id), offset, logprob))
            offset += len(echoed[-1].text)
        return tuple(echoed)

    def _writer(self, row: PromptRow, parameters: CompletionParameters) -> Callable[[Step], tuple[ChoiceDelta, bool]]:
        """Steps of a row to deltas, each of which is the last where it has a `finish_reason`."""
        is_free = row.grammar is None and not parameters.shown_tokens
        decode = partial(self._decode_showing, parameters.shown_tokens) if parameters.shown_tokens else self._decode
        detokenizer = Detokenizer(row.prompt, decode, self._clean_up if is_free else None)
        visible = StopFilter(parameters.stop)
        echo = row.text if parameters.echo else ""
        offset = len(echo)
        count = cached = 0

        def write(step: Step) -> tuple[ChoiceDelta, bool]:
            nonlocal echo, offset, count, cached
            count += 1
            cached = max(cached, step.cached_tokens)
            top = tuple((detokenizer.peek(token_id), logprob) for token_id, logprob in step.top)
            text = detokenizer.push(step.token_id)
            if step.finish_reason is not None:
                text += detokenizer.finish()
            tokens = (ScoredToken(text, offset, step.logprob, top),) if parameters.logprobs else ()
            offset += len(text)
            shown = visible.push(text)
            reason: FinishReason | None = None
            if visible.stopped or step.finish_reason in ("eos_token", "stop_sequence"):
                reason = "stop"
            elif step.finish_reason is not None:
                reason = "length"
            if reason is not None:
                shown += visible.finish()
            before, echo = echo, ""
            delta = ChoiceDelta(before + shown, len(row.prompt), count, tokens, reason, cached_tokens=cached)
            return delta, reason is not None

        return write

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def _decode_showing(self, shown: Sequence[int], ids: Sequence[int]) -> str:
        hidden = self.tokenizer.special_ids.difference(shown)
        return self._decode_all([token for token in ids if token not in hidden])

    def _decode_all(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
