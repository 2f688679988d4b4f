"""Text generation: the model continues a prompt; the answer comes at once or token by token."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta
from tokenizers import Encoding

from pipelines.errors import ArtifactError, GenerationError, InvalidInputError, UnusedParametersError
from pipelines.generation.decoding.request import Answer, DecodeRequest, Generation, Step
from pipelines.generation.decoding.stopping import StopStrings
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.text.detokenizer import Detokenizer
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session_config import SessionConfig
from pipelines.runtime.tokenizer import clean_up_spaces
from pipelines.schema import Text, parse
from pipelines.tasks.constraint import GrammarParameter
from pipelines.tasks.generator import (
    SEED_BITS,
    CompilerOf,
    GenerateParameters,
    Generator,
    GeneratorPipeline,
    Length,
    Penalty,
    Stop,
)
from pipelines.tasks.pipeline import StepWriter
from pipelines.tasks.task import Example, Head, Task

_DEFAULTS = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}  # transformers.pipeline's
MAX_BEST_OF = 8
MAX_TOP_TOKENS = 20


class Generated(TypedDict):
    """One text; `details` where they were asked for."""

    generated_text: str
    details: NotRequired[dict[str, Any]]


class TextGenerationParameters(GenerateParameters, frozen=True):
    """Named as in text-generation-inference. `top_n_tokens` and `decoder_input_details` imply `details`.

    `presence_penalty` and `count_penalty` are OpenAI's presence_penalty and frequency_penalty.

    `grammar` holds the answer to a JSON Schema or a regular expression.

    `watermark` and `adapter_id` exist because clients send their neutral values; other values are refused.
    """

    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    count_penalty: Penalty | None = None
    stop: Stop = ()
    truncate: Length | None = None
    return_full_text: bool = True
    best_of: Annotated[int, Meta(ge=1, le=MAX_BEST_OF)] = 1
    details: bool = False
    decoder_input_details: bool = False
    top_n_tokens: Annotated[int, Meta(ge=0, le=MAX_TOP_TOKENS)] = 0
    watermark: bool = False
    adapter_id: Any = None
    grammar: GrammarParameter | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if refused := [name for name in ("watermark", "adapter_id") if getattr(self, name)]:
            raise UnusedParametersError(refused, ())
        if self.grammar is not None and self.min_new_tokens:
            raise InvalidInputError(
                f"is {self.min_new_tokens}; allowed with grammar: 0, as the grammar says when an answer is complete",
                ("min_new_tokens",),
            )

    @property
    def compiles(self) -> bool:
        return self.grammar is not None

    @property
    def choices(self) -> int:
        return self.best_of

    @property
    def wants_details(self) -> bool:
        return self.details or self.decoder_input_details or self.top_n_tokens > 0


@dataclass(frozen=True)
class PromptRow(DecodeRequest):
    """A decode request and its prompt as text."""

    text: str = ""


class TextGenerationPipeline(GeneratorPipeline[str, TextGenerationParameters, PromptRow]):
    """Without parameters it samples as `transformers.pipeline` does (256 tokens, temperature 0.7).

    The default budget is cut to the model's window; a requested budget that does not fit is refused, and so is a prompt
    that fills the window, unless `truncate` keeps its last tokens only. The text includes the stop string and no
    special tokens. Logprobs are the model's, before penalties and sampling.
    """

    task = "text-generation"
    parameters_type = TextGenerationParameters

    def __init__(
        self,
        artifact: ModelArtifact,
        config: SessionConfig,
        slots: SlotsConfig | None = None,
        compiler: CompilerOf | None = None,
        adapters: Mapping[str, Path] | None = None,
    ) -> None:
        slots = slots or SlotsConfig()
        super().__init__(artifact, Generator(artifact, config, slots, _DEFAULTS, compiler, adapters))
        if self.generator.defaults.num_beams > 1:
            raise ArtifactError(f"{artifact.path}: generation_config.json sets num_beams, which cannot be streamed")
        if artifact.config().get("prefix") or self.generator.prefix_of(self.task):
            raise ArtifactError(f"{artifact.path}: config.json sets a prefix, which text-generation does not support")

    def parse(self, raw: Any) -> str:
        text: str = parse(raw, str)
        return text

    def preprocess(self, inputs: Sequence[str], parameters: TextGenerationParameters) -> list[list[PromptRow]]:
        encodings = self.tokenizer.encode(inputs, offsets=False)
        grammar = None
        if parameters.grammar is not None:
            constraint = parameters.grammar.constraint
            grammar = self.generator.grammar(replace(constraint, path=("parameters", "grammar", *constraint.path)))
        rows = [self._row(text, encoding, parameters) for text, encoding in zip(inputs, encodings, strict=True)]
        if grammar is not None:
            rows = [replace(row, grammar=grammar, config=row.config.guided()) for row in rows]
        return [[row] for row in rows]

    def postprocess(
        self, given: str, rows: Sequence[PromptRow], outputs: Sequence[Answer], parameters: TextGenerationParameters
    ) -> list[dict[str, Any]]:
        (row,), (answer,) = rows, outputs
        if not answer.generations:
            raise GenerationError("decoding was cancelled before its first token")
        best, *others = sorted(answer.generations, key=_mean_logprob, reverse=True)
        result: dict[str, Any] = {"generated_text": self._text(row, best.token_ids, parameters)}
        if parameters.wants_details:
            prefill = self._prefill(row, answer)
            result["details"] = self._details(row, best.steps) | {"prefill": prefill} | self._tokens(row, best)
            if others:
                result["details"]["best_of_sequences"] = [
                    {"generated_text": self._text(row, other.token_ids, parameters)}
                    | self._details(row, other.steps)
                    | {"prefill": prefill}
                    | self._tokens(row, other)
                    for other in others
                ]
        return [result]

    def stream(self, row: PromptRow, parameters: TextGenerationParameters) -> tuple[PromptRow, StepWriter]:
        """One event per token, the last one with the whole text and the details.

        A token's `text` has whole characters only: it may be "", and the next one hold more. Joined, they are the
        generated text without its prompt. Raises InvalidInputError for `best_of` above 1 and `decoder_input_details`,
        which a stream cannot have.
        """
        if parameters.best_of > 1:
            raise InvalidInputError(f"is {parameters.best_of}; allowed with stream: 1", ("parameters", "best_of"))
        if parameters.decoder_input_details:
            raise InvalidInputError("is true; allowed with stream: false", ("parameters", "decoder_input_details"))
        detokenizer = self._detokenizer(row)
        steps: list[Step] = []

        def write(step: Step) -> tuple[dict[str, Any], bool]:
            steps.append(step)
            token, top_tokens = self._token(detokenizer, step)
            event = {"index": len(steps), "token": token}
            if parameters.top_n_tokens:
                event["top_tokens"] = top_tokens
            event |= {"generated_text": None, "details": None}
            is_last = step.finish_reason is not None
            if is_last:
                event["generated_text"] = self._text(row, [step.token_id for step in steps], parameters)
                event["details"] = self._details(row, steps) | {"input_length": len(row.prompt)}
            return event, is_last

        return replace(row, logprobs=True), write

    def _row(self, text: str, encoding: Encoding, parameters: TextGenerationParameters) -> PromptRow:
        ids = _last_tokens(encoding, parameters.truncate)
        if not ids:  # some tokenizers add no special token to an empty text
            if self.generator.defaults.bos_token_id is None:
                raise InvalidInputError("has no tokens; allowed: a text of at least one", ("inputs",))
            ids = [self.generator.defaults.bos_token_id]
        asked = parameters.chosen()
        config = self.generator.defaults.with_request(asked)
        if parameters.best_of > 1:
            if not config.do_sample:
                allowed = f"is {parameters.best_of}; allowed with do_sample false: 1"
                raise InvalidInputError(allowed, ("parameters", "best_of"))
            config = replace(config, num_return_sequences=parameters.best_of)
        remedy = ", or parameters.truncate to keep the last tokens only"
        return PromptRow(
            prompt=tuple(ids),
            config=self.generator.resolved(config, len(ids), asked, remedy),
            seed=secrets.randbits(SEED_BITS) if parameters.seed is None else parameters.seed,
            stop=StopStrings(parameters.stop, self._decode_all) if parameters.stop else None,
            logprobs=parameters.wants_details or parameters.best_of > 1,
            top_tokens=parameters.top_n_tokens,
            prompt_logprobs=parameters.decoder_input_details,
            adapter=self.adapter,
            text=text,
        )

    def _text(self, row: PromptRow, new: Sequence[int], parameters: TextGenerationParameters) -> str:
        """The text that decoding adds to the prompt; spaces are cleaned up in the whole text, as in transformers, where
        no grammar says what they are.
        """
        tidy = _as_it_is if row.grammar is not None else clean_up_spaces
        prompt = tidy(self._decode(row.prompt))
        text = tidy(self._decode([*row.prompt, *new]))[len(prompt) :]
        return row.text + text if parameters.return_full_text else text

    def _details(self, row: PromptRow, steps: Sequence[Step]) -> dict[str, Any]:
        return {
            "finish_reason": steps[-1].finish_reason,
            "generated_tokens": len(steps),
            "seed": row.seed if row.config.do_sample else None,
        }

    def _prefill(self, row: PromptRow, answer: Answer) -> list[dict[str, Any]]:
        """The prompt's tokens where `decoder_input_details` asks for them; the first has no logprob."""
        if not row.prompt_logprobs:
            return []
        detokenizer = Detokenizer((), self._decode_all)
        return [
            {"id": token_id, "text": detokenizer.push(token_id), "logprob": logprob}
            for token_id, logprob in zip(row.prompt, (None, *answer.prompt_logprobs), strict=True)
        ]

    def _tokens(self, row: PromptRow, generation: Generation) -> dict[str, Any]:
        detokenizer = self._detokenizer(row)
        described = [self._token(detokenizer, step) for step in generation.steps]
        tokens: dict[str, Any] = {"tokens": [token for token, _ in described]}
        return tokens | ({"top_tokens": [top for _, top in described]} if row.top_tokens else {})

    def _token(self, detokenizer: Detokenizer, step: Step) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A step's token, and the most likely tokens of the step."""
        top = [self._described(index, detokenizer.peek(index), logprob) for index, logprob in step.top]
        text = detokenizer.push(step.token_id)
        if step.finish_reason is not None:
            text += detokenizer.finish()
        return self._described(step.token_id, text, step.logprob), top

    def _described(self, token_id: int, text: str, logprob: float | None) -> dict[str, Any]:
        special = token_id in self.tokenizer.special_ids
        return {"id": token_id, "text": text, "logprob": logprob, "special": special}

    def _detokenizer(self, row: PromptRow) -> Detokenizer:
        return Detokenizer(row.prompt, self._decode, None if row.grammar is not None else clean_up_spaces)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def _decode_all(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _as_it_is(text: str) -> str:
    return text


def _last_tokens(encoding: Encoding, count: int | None) -> list[int]:
    """The ids of an encoding, or the last `count` of them; special tokens at its beginning stay."""
    ids: list[int] = encoding.ids
    if count is None or len(ids) <= count:
        return ids
    kept = min(encoding.special_tokens_mask.index(0) if 0 in encoding.special_tokens_mask else 0, count - 1)
    return ids[:kept] + ids[len(ids) - count + kept :]


def _mean_logprob(generation: Generation) -> float:
    """The score that best_of compares: the logprob per token, which does not favour short answers."""
    logprobs = [step.logprob for step in generation.steps if step.logprob is not None]
    return sum(logprobs) / len(logprobs) if logprobs else 0.0


TASK = Task(
    name=TextGenerationPipeline.task,
    pipeline=TextGenerationPipeline,
    head=Head(
        auto_class="AutoModelForCausalLM",
        classes=("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "MTModel"),
        peft_type="CAUSAL_LM",
    ),
    title={"en": "Text generation", "ko": "텍스트 생성"},
    summary={
        "en": "Answers a message, or goes on from a text, token by token.",
        "ko": "메시지에 답하거나 글을 이어 씁니다. 토큰 하나씩 보여 줍니다.",
    },
    examples=(
        Example("en", "The capital of France is", {"max_new_tokens": 12, "do_sample": False}),
        Example("ko", "대한민국의 수도는", {"max_new_tokens": 12, "do_sample": False}),
    ),
    input_type=Text,
    answer_type=list[Generated],
    columns=("text",),
    in_words=lambda answer: " ".join(answer[0]["generated_text"].split()),
    generates=True,
    guided=True,
    streams=True,
    root_paths=("/v1",),  # OpenAI's clients
    tensor="array_inputs",
    protocols=("openai",),
    client="text_generation",
    form=("max_new_tokens", "do_sample", "temperature", "top_p", "seed", "grammar"),
    chats=(
        Example("en", "Write a haiku about rivers.", {"max_tokens": 160, "temperature": 0.7}),
        Example("ko", "하늘이 왜 파란지 두 문장으로 설명해 주세요.", {"max_tokens": 160, "temperature": 0.7}),
    ),
)
