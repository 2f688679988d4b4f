"""Translation: a text becomes the same text in another language."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypedDict

from msgspec import Meta

from pipelines.errors import InvalidInputError, UnusedParametersError
from pipelines.generation.slots.config import SlotsConfig
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session_config import SessionConfig
from pipelines.schema import Text
from pipelines.tasks.task import Example, Task
from pipelines.tasks.text2text import HEAD, Framing, Text2TextParameters, Text2TextPipeline

MAX_LANGUAGE_CHARACTERS = 128
LanguageName = Annotated[str, Meta(max_length=MAX_LANGUAGE_CHARACTERS)]


class Translation(TypedDict):
    """One translation."""

    translation_text: str


class TranslationParameters(Text2TextParameters, frozen=True):
    """Languages as the model names them; both or neither."""

    src_lang: LanguageName | None = None
    tgt_lang: LanguageName | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.src_lang is None) != (self.tgt_lang is None):
            raise InvalidInputError("has one of src_lang and tgt_lang; allowed: both or neither", ())


class TranslationPipeline(Text2TextPipeline[TranslationParameters]):
    """Languages are needed, refused or optional, depending on the model:

    * one with language tokens (M2M100, NLLB, mBART) needs both, as in transformers;
    * one whose config.json has tasks such as `translation_en_to_de` (T5) translates in these directions, without
      languages in the first of them, as `transformers.pipeline("translation")` does;
    * an instruct model needs those that its prompt template names;
    * any other translates in one direction, and refuses languages. (Transformers ignores them.)
    """

    task = "translation"
    parameters_type = TranslationParameters
    answer_key = "translation_text"

    def __init__(
        self,
        artifact: ModelArtifact,
        config: SessionConfig,
        slots: SlotsConfig | None = None,
        adapters: Mapping[str, Path] | None = None,
    ) -> None:
        super().__init__(artifact, config, slots, adapters)
        self._directions = {
            task: Framing(self.generator.defaults_of(task), self._prefix(task))
            for task in self.generator.tasks
            if task.startswith("translation")
        }

    def _framing(self, parameters: TranslationParameters) -> Framing:
        source, target = parameters.src_lang, parameters.tgt_lang
        if self._template is not None and self._template.fields > {"text"}:
            if source is None or target is None:
                lacks = "has no src_lang and tgt_lang; allowed: both, as names of languages"
                raise InvalidInputError(lacks, ("parameters",))
            return Framing(self._defaults, fields={"src_lang": source, "tgt_lang": target})
        if self.artifact.manifest.tokenizer.languages:
            return self._between(source, target)
        if source is None:
            return next(iter(self._directions.values()), None) or super()._framing(parameters)
        if not self._directions:
            raise UnusedParametersError(["src_lang", "tgt_lang"])
        if (framing := self._directions.get(f"translation_{source}_to_{target}")) is None:
            pairs = ", ".join(sorted(name.removeprefix("translation_") for name in self._directions))
            both = f"and tgt_lang are {source!r} and {target!r}; allowed: {pairs}"
            raise InvalidInputError(both, ("parameters", "src_lang"))
        return framing

    def _between(self, source: str | None, target: str | None) -> Framing:
        """The source's language token around the text, the target's as the forced first token of the answer."""
        tokenizer = self.artifact.manifest.tokenizer
        for name, code in (("src_lang", source), ("tgt_lang", target)):
            if code not in tokenizer.languages:
                raise InvalidInputError(
                    f"is {'missing' if code is None else repr(code)}; "
                    f"allowed: {', '.join(sorted(tokenizer.languages))}",
                    ("parameters", name),
                )
        assert source is not None
        assert target is not None
        after = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        config = replace(self._defaults, forced_bos_token_id=tokenizer.languages[target])
        own = (tokenizer.languages[source],)
        if tokenizer.language_last:
            return Framing(config, before=(), after=(*after, *own))
        return Framing(config, before=own, after=after)


TASK = Task(
    name=TranslationPipeline.task,
    pipeline=TranslationPipeline,
    head=HEAD,
    title={"en": "Translation", "ko": "번역"},
    summary={"en": "Says the same in another language.", "ko": "같은 내용을 다른 언어로 옮깁니다."},
    examples=(
        Example("en", "Where is the train station?"),
        Example("ko", "도서관은 몇 시에 문을 여나요?"),
    ),
    input_type=Text,
    answer_type=list[Translation],
    columns=("source", "target"),
    in_words=lambda answer: " ".join(answer[0][TranslationPipeline.answer_key].split()),
    generates=True,
    tensor="array_inputs",
    generate_key="generate_parameters",
    instruction=(
        "Translate the following text from {src_lang} to {tgt_lang}. Answer with the translation only.\n\n{text}"
    ),
    client="translation",
    form=("src_lang", "tgt_lang"),
)
