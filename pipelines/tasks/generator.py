"""Generator: tokenizer, engine, decoding defaults and window of a generative model, whatever its task.

`GeneratorPipeline` is the base of the tasks that it serves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from msgspec import Meta

from pipelines.errors import ArtifactError, ConfigurationError, InputTooLongError, InvalidInputError
from pipelines.generation.decoding.config import MAX_SEQUENCES, GenerationConfig
from pipelines.generation.decoding.guide import Constraint, Grammar, GrammarCompiler
from pipelines.generation.decoding.request import Answer, DecodeRequest
from pipelines.generation.open import open_engine, open_stack
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.engine import SlotEngine
from pipelines.misfit import require
from pipelines.runtime.artifact import ModelArtifact, positions
from pipelines.runtime.session_config import SessionConfig
from pipelines.runtime.tokenizer import Tokenizer
from pipelines.scheduling.scheduler import BatchingConfig, OnBatch, QueueConfig, unreported
from pipelines.scheduling.slots import SlotScheduler
from pipelines.schema import OneOrMore, Parameters
from pipelines.tasks.pipeline import InputT, ParametersT, Pipeline

DecodeRequestT = TypeVar("DecodeRequestT", bound=DecodeRequest)
CompilerOf = Callable[[ModelArtifact, Sequence[int]], GrammarCompiler]
"""Makes the grammar compiler of an artifact, whose answers end with one of some tokens."""

SEED_BITS = 32
"""Size of a drawn seed, which every JSON reader keeps exactly."""

_LARGEST_SEED = 2**64 - 1
_OF_TOKENS = (
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
_UNBOUNDED_WINDOW = 2048  # for relative positions, which have no bound: this bounds the cost of a request


# Bounds of a request's parameters. Words and ids cost time at every step of all sequences in the slots.
MAX_LENGTH = 2**31 - 1  # the model's window bounds it further
MAX_NGRAM = 1024
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_IDS = 8192
MAX_SUPPRESSED = 4096
MAX_FINAL_TOKENS = 64
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 128

Length = Annotated[int, Meta(ge=1, le=MAX_LENGTH)]
Count = Annotated[int, Meta(ge=0, le=MAX_LENGTH)]
Factor = Annotated[float, Meta(ge=1e-9, le=1e9)]  # float32 stays finite when it is multiplied with these, or divided
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Probability = Annotated[float, Meta(gt=0, le=1)]
TokenId = Annotated[int, Meta(ge=-MAX_LENGTH, le=MAX_LENGTH)]  # the model's vocabulary bounds it further
Suppressed = Annotated[OneOrMore[TokenId], Meta(max_length=MAX_SUPPRESSED)]
Word = Annotated[OneOrMore[TokenId], Meta(min_length=1, max_length=MAX_BAD_WORD_IDS)]
Sequences = Annotated[int, Meta(ge=1, le=MAX_SEQUENCES)]
Stop = Annotated[
    OneOrMore[Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]], Meta(max_length=MAX_STOPS)
]


class GenerateParameters(Parameters, frozen=True):
    """Parameters of every generative model, with the names and meanings of `model.generate`.

    None means the value of the checkpoint, then that of the task. `seed` None draws a new one for each input.
    """

    max_new_tokens: Length | None = None
    min_new_tokens: Count | None = None
    do_sample: bool | None = None
    temperature: Factor | None = None
    top_k: Count | None = None
    top_p: Probability | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    typical_p: Probability | None = None
    repetition_penalty: Factor | None = None
    renormalize_logits: bool | None = None
    no_repeat_ngram_size: Annotated[int, Meta(ge=0, le=MAX_NGRAM)] | None = None
    bad_words_ids: Annotated[OneOrMore[Word], Meta(max_length=MAX_BAD_WORDS)] | None = None
    suppress_tokens: Suppressed | None = None
    begin_suppress_tokens: Suppressed | None = None
    forced_bos_token_id: TokenId | None = None
    forced_eos_token_id: Annotated[OneOrMore[TokenId], Meta(max_length=MAX_FINAL_TOKENS)] | None = None
    seed: Annotated[int, Meta(extra_json_schema={"minimum": 0, "maximum": _LARGEST_SEED})] | None = None

    def __post_init__(self) -> None:
        ids = sum(map(len, self.bad_words_ids or ()))
        if ids > MAX_BAD_WORD_IDS:
            raise InvalidInputError(f"has {ids} ids in all; allowed: at most {MAX_BAD_WORD_IDS}", ("bad_words_ids",))
        in_range = self.seed is None or 0 <= self.seed <= _LARGEST_SEED
        require(in_range, ("seed",), self.seed, f"an integer from 0 to {_LARGEST_SEED}")

    def chosen(self) -> dict[str, Any]:
        """The fields of GenerationConfig that the caller set."""
        names = GenerationConfig.__dataclass_fields__
        given = {name: getattr(self, name) for name in self.__struct_fields__ if name in names}
        return {name: value for name, value in given.items() if value is not None}


class SearchParameters(GenerateParameters, frozen=True):
    """Further parameters of tasks that return the whole answer at once."""

    max_length: Length | None = None
    min_length: Count | None = None
    num_beams: Sequences | None = None
    num_return_sequences: Sequences | None = None
    length_penalty: Annotated[float, Meta(ge=-10, le=10)] | None = None
    early_stopping: bool | Literal["never"] | None = None

    @property
    def choices(self) -> int:
        return max(self.num_beams or 1, self.num_return_sequences or 1)


class Generator:
    """A loaded generative model; thread-safe.

    `defaults` is the config that `transformers.pipeline` decodes with for this checkpoint and task. `window` is the
    most tokens that a decoder's prompt and answer have together, at most a slot's `max_tokens`. `adapters` are
    those that may change an answer: row's `adapter` is a place in them, from 1 on.
    """

    def __init__(
        self,
        artifact: ModelArtifact,
        session: SessionConfig,
        slots: SlotsConfig,
        task_defaults: Mapping[str, Any],
        compiler: CompilerOf | None = None,
        adapters: Mapping[str, Path] | None = None,
    ) -> None:
        self.tokenizer = Tokenizer(artifact)
        self._model = artifact.generation_config()
        self._task_defaults = task_defaults
        self._specific: Mapping[str, Any] = artifact.config().get("task_specific_params") or {}
        self.encodes_source = "decoder" in artifact.manifest.graphs
        self.defaults = self.defaults_of(artifact.manifest.task)
        if self.encodes_source and self.decoder_start_token_id is None:
            raise ArtifactError(f"{artifact.path} has neither decoder_start_token_id nor bos_token_id; export it again")
        # T5 states `n_positions` and has none.
        own = "max_decoder_position_embeddings" if self.encodes_source else "n_positions"
        bound = positions(artifact.config(), ("max_position_embeddings", own))
        self.window: int = bound or max(_UNBOUNDED_WINDOW, self.defaults.max_length or 0)
        self._vocabulary = int(artifact.config()["vocab_size"])
        # Slots longer than the window would never be full; on a device they would have memory all the same.
        slots = replace(slots, max_tokens=max(2, min(slots.max_tokens, self.window)))
        stack = open_stack(artifact, session, adapters) if adapters else None
        self.adapters = () if stack is None else stack.adapters
        self._engine = open_engine(artifact, session, slots, stack)
        self._turn_tokens = slots.turn_tokens
        self._compiler = None if compiler is None else compiler(artifact, self.defaults.eos_token_id)
        if isinstance(self._engine, SlotEngine):
            self.window = min(self.window, slots.max_tokens)
            if self.defaults.num_beams > self._engine.slots:
                raise ConfigurationError(
                    f"slots is {self._engine.slots}, but {artifact.path} searches with {self.defaults.num_beams} beams "
                    "by default; allowed: a slot for each beam"
                )

    @property
    def decoder_start_token_id(self) -> int | None:
        """The first decoder token of an encoder-decoder."""
        start = self.defaults.decoder_start_token_id
        return self.defaults.bos_token_id if start is None else start

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names in `task_specific_params` of config.json, as `translation_en_to_de`, in its order."""
        return tuple(self._specific)

    def defaults_of(self, task: str) -> GenerationConfig:
        """The defaults under another name in `task_specific_params`."""
        return GenerationConfig.of_checkpoint(self._model, self._task_defaults, self._specific.get(task))

    def prefix_of(self, task: str) -> str | None:
        """The prefix of every text under a name in `task_specific_params`; None without one."""
        return (self._specific.get(task) or {}).get("prefix")

    def resolved(
        self, config: GenerationConfig, prompt_tokens: int, asked: Mapping[str, Any], remedy: str = ""
    ) -> GenerationConfig:
        """`config` with lengths in tokens for a prompt of the decoder; a default budget is cut to what fits.

        Raises InputTooLongError where no token fits after the prompt (`remedy` ends the message), or where the budget
        in `asked`, the request's own values, does not fit; InvalidInputError for token ids outside the vocabulary.
        """
        self._require_tokens(asked)
        longest = asked.get("max_length") or prompt_tokens + (asked.get("max_new_tokens") or 0)
        resolved = config.for_prompt(prompt_tokens, self.window)
        assert resolved.max_length is not None
        if prompt_tokens >= resolved.max_length and self.encodes_source:
            raise InvalidInputError(
                f"is {resolved.max_length}; allowed: an integer from {prompt_tokens + 1}, "
                "as it counts the token that every answer begins with",
                ("parameters", "max_length"),
            )
        if prompt_tokens >= resolved.max_length:
            allowed = f"at most {resolved.max_length - 1}{remedy}"
            raise InputTooLongError(f"has {prompt_tokens} tokens; allowed: {allowed}", ("inputs",))
        if longest > self.window:
            name = "max_length" if "max_length" in asked else "max_new_tokens"
            most = self.window - (0 if name == "max_length" else prompt_tokens)
            raise InputTooLongError(
                f"is {asked[name]}; allowed: at most {most}, as the model has a window of "
                f"{self.window} tokens" + ("" if self.encodes_source else f" and the prompt has {prompt_tokens}"),
                ("parameters", name),
            )
        least = next((name for name in ("min_length", "min_new_tokens") if name in asked), None)
        if least is not None and resolved.min_length > resolved.max_length:
            most = resolved.max_length - (0 if least == "min_length" else prompt_tokens)
            raise InvalidInputError(
                f"is {asked[least]}; allowed: at most {most}, where the answer ends at the latest",
                ("parameters", least),
            )
        return resolved

    def _require_tokens(self, asked: Mapping[str, Any]) -> None:
        for name in _OF_TOKENS:
            words = asked.get(name, ())
            for word in words if isinstance(words, tuple) else (words,):
                for token in word if isinstance(word, tuple) else (word,):
                    allowed = f"token ids from 0 to {self._vocabulary - 1}"
                    require(0 <= token < self._vocabulary, ("parameters", name), token, allowed)

    def grammar(self, constraint: Constraint) -> Grammar:
        """The compiled constraint; raises InvalidInputError for one that cannot be, or where there is no compiler."""
        if self._compiler is None:
            allowed = "is set; allowed: where the pipeline was loaded with a grammar compiler"
            raise InvalidInputError(allowed, constraint.path)
        return self._compiler.compile(constraint)

    def run(self, rows: Sequence[DecodeRequest]) -> list[Answer]:
        """One answer per row."""
        return self._engine.generate_all(rows)

    def release_memory(self) -> None:
        """As Pipeline.release_memory. What the slots hold stays: the next prompt may begin with it."""
        self._engine.release_memory()

    def scheduler(self, queue: QueueConfig | None, on_batch: OnBatch) -> SlotScheduler:
        """The scheduler of this model's engine."""
        return SlotScheduler(self._engine, queue, on_batch, self._turn_tokens)


class GeneratorPipeline(Pipeline[InputT, ParametersT, DecodeRequestT, Answer]):
    """A task whose `forward` decodes with a generator."""

    def __init__(self, artifact: ModelArtifact, generator: Generator) -> None:
        super().__init__(replace(artifact, adapters=tuple(generator.adapters)))
        self.generator, self.adapter = generator, 0

    @property
    def tokenizer(self) -> Tokenizer:
        return self.generator.tokenizer

    def release_memory(self) -> None:
        self.generator.release_memory()

    def adapted(self) -> dict[str, Self]:
        """They share everything with this one; a pipeline of an adapter has none."""
        found: dict[str, Self] = {}
        for number, described in enumerate(self.artifact.adapters, start=1):
            found[described.name] = one = copy(self)
            one.adapter = number
            one.artifact = replace(self.artifact, served_as=described.name, adapter=described, adapters=())
        return found

    def forward(self, rows: Sequence[DecodeRequestT]) -> list[Answer]:
        return self.generator.run(rows)

    def _answers(self, inputs: Sequence[InputT], parameters: ParametersT) -> Iterator[Any]:
        """The rows of all inputs decode together, as far as there are slots."""
        rows = self.preprocess(inputs, parameters)
        outputs = iter(self.forward(list(chain.from_iterable(rows))))
        for given, own in zip(inputs, rows, strict=True):
            yield self.postprocess(given, own, list(islice(outputs, len(own))), parameters)

    def scheduler(
        self,
        batching: BatchingConfig | None = None,
        queue: QueueConfig | None = None,
        on_batch: OnBatch = unreported,
        costs: Path | None = None,
    ) -> SlotScheduler:
        """Slots take no batches: `batching` has no effect, nor `costs`."""
        return self.generator.scheduler(queue, on_batch)
