"""Translation and summarization: a text becomes another text.

The model is an encoder-decoder, or a decoder-only instruct model with the prompt template of the manifest.
"""

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from msgspec.structs import force_setattr
from msgspec.structs import replace as replaced

from pipelines.errors import ArtifactError, GenerationError, InputTooLongError, InvalidInputError
from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import Answer, DecodeRequest
from pipelines.generation.decoding.stopping import StopCriterion
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.text.prompt_template import PromptTemplate
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session_config import SessionConfig
from pipelines.schema import parse
from pipelines.tasks.generator import SEED_BITS, Generator, GeneratorPipeline, SearchParameters
from pipelines.tasks.task import Head

_logger = logging.getLogger(__name__)
HEAD = Head(
    auto_class="AutoModelForSeq2SeqLM",
    classes=("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "MTModel"),
    peft_type="SEQ_2_SEQ_LM",
)
_DEFAULTS = {"max_new_tokens": 256, "num_beams": 4}  # transformers.pipeline's for encoder-decoders
_INSTRUCT_DEFAULTS = {"max_new_tokens": 256}
_ANSWER_LENGTHS = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}
_CUTTING = ("longest_first", "only_first")


class Text2TextParameters(SearchParameters, frozen=True):
    """Arguments of `model.generate` may stand beside the others, or in `generate_parameters` (alias:
    `generation_parameters`).

    `truncation`: `longest_first` and `only_first` cut a text that is too long; `do_not_truncate`, the default, and
    `only_second`, as there is no second text, refuse it.
    """

    truncation: Literal["do_not_truncate", "longest_first", "only_first", "only_second"] = "do_not_truncate"
    clean_up_tokenization_spaces: bool = False
    generate_parameters: SearchParameters | None = None
    generation_parameters: SearchParameters | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.generation_parameters is not None:
            if self.generate_parameters is not None:
                raise InvalidInputError("has both generate_parameters and its alias; allowed: one of them", ())
            force_setattr(self, "generate_parameters", self.generation_parameters)
            force_setattr(self, "generation_parameters", None)
        nested = self.generate_parameters or SearchParameters()
        for name in SearchParameters.__struct_fields__:
            if getattr(self, name) is not None and getattr(nested, name) is not None:
                raise InvalidInputError("stands in generate_parameters too; allowed: one of them", (name,))

    @property
    def search(self) -> SearchParameters:
        """The arguments of `model.generate` from both places."""
        nested = self.generate_parameters or SearchParameters()
        names = SearchParameters.__struct_fields__
        return replaced(nested, **{name: getattr(self, name) for name in names if getattr(self, name) is not None})

    @property
    def choices(self) -> int:
        return self.search.choices


@dataclass(frozen=True)
class Framing:
    """How a text is presented to the model: decoding config, prefix, ids around it and template fields."""

    config: GenerationConfig
    prefix: str = ""
    before: tuple[int, ...] | None = None  # ids around the text's own, instead of the tokenizer's special ones
    after: tuple[int, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)


ParametersT = TypeVar("ParametersT", bound=Text2TextParameters)


class Text2TextPipeline(GeneratorPipeline[str, ParametersT, DecodeRequest]):
    """An answer is a list of `{"<name>_text"}`, one unless `num_return_sequences` asks for more.

    Decoding is that of `transformers.pipeline`: four beams and 256 new tokens unless the checkpoint says something
    else. An instruct model answers greedily by default, and all lengths are those of its answer. From Python, a list
    of texts has one flat list of answers, as in transformers.
    """

    answer_key: ClassVar[str]

    def __init__(
        self,
        artifact: ModelArtifact,
        config: SessionConfig,
        slots: SlotsConfig | None = None,
        adapters: Mapping[str, Path] | None = None,
    ) -> None:
        template = artifact.manifest.prompt_template
        defaults = _DEFAULTS if template is None else _INSTRUCT_DEFAULTS
        super().__init__(artifact, Generator(artifact, config, slots or SlotsConfig(), defaults, adapters=adapters))
        if template is None and not self.generator.encodes_source:
            raise ArtifactError(f"{artifact.path} is a decoder-only model without a prompt template; export it again")
        self._template = None if template is None else PromptTemplate(template, self.tokenizer)
        self._defaults = self.generator.defaults
        if template is not None:  # chat checkpoints sample by default, which suits conversations
            self._defaults = replace(self._defaults, do_sample=False)

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        answers = super().__call__(inputs, **parameters)
        if isinstance(inputs, list) and all(len(answer) == 1 for answer in answers):
            return [answer for (answer,) in answers]
        return answers

    def parse(self, raw: Any) -> str:
        text: str = parse(raw, str)
        return text

    def preprocess(self, inputs: Sequence[str], parameters: ParametersT) -> list[list[DecodeRequest]]:
        task, search = self._framing(parameters), parameters.search
        if self._template is not None:
            return [[self._instructed(text, task, parameters, search)] for text in inputs]
        return [[self._encoded(ids, task, search)] for ids in self._sources(inputs, task, parameters)]

    def postprocess(
        self, given: str, rows: Sequence[DecodeRequest], outputs: Sequence[Answer], parameters: ParametersT
    ) -> list[dict[str, Any]]:
        (request,), (answer,) = rows, outputs
        if not answer.generations:
            raise GenerationError("decoding was cancelled before its end")
        texts = []
        for generation in answer.generations:
            ids = generation.token_ids
            if generation.steps and generation.steps[-1].finish_reason == "stop_sequence":
                ids = ids[:-1]  # the token that completed the stop is no part of the answer
            # The start token is decoded too, as in transformers: it is not special in every checkpoint.
            start = () if self._template else request.prompt
            text = self.tokenizer.decode(
                [*start, *ids], clean_up_tokenization_spaces=parameters.clean_up_tokenization_spaces
            )
            texts.append(text.strip() if self._template else text)
        return [{self.answer_key: text} for text in texts]

    def _framing(self, parameters: ParametersT) -> Framing:
        """The framing of a request's texts."""
        return Framing(self._defaults, self._prefix(self.task))

    def _prefix(self, task: str) -> str:
        specific = self.generator.prefix_of(task)
        return (self.artifact.config().get("prefix") or "") if specific is None else specific

    def _sources(self, inputs: Sequence[str], task: Framing, parameters: ParametersT) -> list[tuple[int, ...]]:
        """The encoder's ids for every text; raises InputTooLongError."""
        tokenizer = self.tokenizer
        own = () if task.before is None else (*task.before, *task.after)
        longest = tokenizer.settings.max_length
        encodings = tokenizer.encode(
            [task.prefix + text for text in inputs],
            max_length=longest - len(own) if parameters.truncation in _CUTTING else None,
            add_special_tokens=task.before is None,
            offsets=False,
        )
        sources = [(*(task.before or ()), *encoding.ids, *task.after) for encoding in encodings]
        readable = tokenizer.settings.readable
        for source in sources:
            if len(source) > readable:
                raise InputTooLongError(
                    f"has {len(source)} tokens; allowed: at most {readable}, or parameters.truncation: longest_first",
                    ("inputs",),
                )
            if len(source) > longest:
                _logger.warning(
                    "a text of %d tokens is read whole; the model was trained on %d (parameters.truncation cuts there)",
                    len(source),
                    longest,
                )
            if not source:
                raise InvalidInputError("has no tokens; allowed: a text of at least one", ("inputs",))
        return sources

    def _encoded(self, source: tuple[int, ...], task: Framing, search: SearchParameters) -> DecodeRequest:
        asked = search.chosen()
        start = self.generator.decoder_start_token_id
        assert start is not None
        config = self.generator.resolved(task.config.with_request(asked), 1, asked)
        return DecodeRequest(prompt=(start,), source=source, config=config, seed=_seed(search))

    def _instructed(self, text: str, task: Framing, parameters: ParametersT, search: SearchParameters) -> DecodeRequest:
        assert self._template is not None
        task.config.with_request(search.chosen())
        # The prompt is the instruction and the text; callers mean the length of the answer.
        asked = {_ANSWER_LENGTHS.get(name, name): value for name, value in search.chosen().items()}
        config = task.config.with_request(asked)
        window = self.generator.window
        # A cut text leaves room for the answer, but not for a default budget of the whole window.
        answer = min(config.max_new_tokens or window, window // 2)
        cut = parameters.truncation in _CUTTING
        ids = self._template.encode({**task.fields, "text": text}, window - answer if cut else None)
        remedy = "" if cut else ", or parameters.truncation: longest_first"
        resolved = self.generator.resolved(config, len(ids), asked, remedy)
        stop = self._ends_at(len(ids), resolved)
        return DecodeRequest(tuple(ids), resolved, seed=_seed(search), stop=stop, adapter=self.adapter)

    def _ends_at(self, prompt_tokens: int, config: GenerationConfig) -> StopCriterion | None:
        """A criterion that ends an instruct model's answer before its end of sequence; None: no criterion."""
        return None


def _seed(search: SearchParameters) -> int:
    return secrets.randbits(SEED_BITS) if search.seed is None else search.seed
