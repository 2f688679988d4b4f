"""Token classification: the entities of a text."""

import warnings
from collections.abc import Sequence
from operator import itemgetter
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np
from msgspec import Meta

from pipelines.misfit import require
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.encoder import activate
from pipelines.runtime.rows import EncoderRow
from pipelines.runtime.session_config import SessionConfig
from pipelines.runtime.tokenizer import Tokenizer
from pipelines.schema import OneOrMore, Parameters, Text, parse
from pipelines.tasks.pipeline import EncoderPipeline
from pipelines.tasks.task import Example, Head, Task

Aggregation = Literal["none", "simple", "first", "average", "max"]
MAX_IGNORED_LABELS = 1000
MAX_LABEL_CHARACTERS = 256
MAX_STRIDE = 16_384


class Entity(TypedDict):
    """`entity_group` with an aggregation strategy, `entity` and `index` without; `start` and `end` are characters."""

    entity_group: NotRequired[str]
    entity: NotRequired[str]
    score: float
    index: NotRequired[int]
    word: str
    start: int
    end: int


class TokenClassificationParameters(Parameters, frozen=True):
    """`aggregation_strategy` None is "none", but may be combined with a `stride`, as in transformers.

    `stride` None cuts a long text to the model's length; a number splits it into windows that overlap by so many
    tokens.
    """

    aggregation_strategy: Aggregation | None = None
    ignore_labels: Annotated[
        OneOrMore[Annotated[str, Meta(max_length=MAX_LABEL_CHARACTERS)]], Meta(max_length=MAX_IGNORED_LABELS)
    ] = ("O",)
    stride: Annotated[int, Meta(ge=0, le=MAX_STRIDE)] | None = None

    def __post_init__(self) -> None:
        if self.stride is not None:
            grouping = "simple, first, average, max, which a stride needs"
            strategy = self.aggregation_strategy
            require(strategy != "none", ("aggregation_strategy",), strategy, grouping)


class TokenClassificationPipeline(EncoderPipeline[str, TokenClassificationParameters, np.ndarray]):
    """An answer is a list of `{"entity_group", "score", "word", "start", "end"}`; without aggregation one
    `{"entity", "score", "index", "word", "start", "end"}` per token. `start` and `end` are characters of the text.

    Tokens are joined to words where the tokenizer marks continuations (WordPiece's `##`). For all others (BPE,
    Unigram) the strategies first, average and max warn and split at spaces, as transformers does: a word is then all
    characters between two spaces, punctuation included.
    """

    task = "token-classification"
    parameters_type = TokenClassificationParameters

    def __init__(self, artifact: ModelArtifact, config: SessionConfig) -> None:
        super().__init__(artifact, config)
        self._tokenizer = self._encoder.tokenizer
        self._labels = artifact.manifest.labels
        self._groups = [label.split("-", 1)[-1] for label in self._labels]
        self._begins = np.array([label.startswith("B-") for label in self._labels])
        tags = [label[2:] if label.startswith(("B-", "I-")) else label for label in self._labels]
        self._tags = np.array([tags.index(tag) for tag in tags])  # equal numbers for labels of one entity

    def parse(self, raw: Any) -> str:
        text: str = parse(raw, str)
        return text

    def preprocess(self, inputs: Sequence[str], parameters: TokenClassificationParameters) -> list[list[EncoderRow]]:
        max_length = self._tokenizer.settings.max_length
        if parameters.stride is None:
            return [[row] for row in self._encoder.rows(self._tokenizer.encode(inputs, max_length=max_length))]
        allowed = f"below {max_length}, the model's length"
        require(parameters.stride < max_length, ("parameters", "stride"), parameters.stride, allowed)
        windows = self._tokenizer.windows(inputs, max_length=max_length, stride=parameters.stride)
        return [self._encoder.rows(encodings) for encodings in windows]

    def forward(self, rows: Sequence[EncoderRow]) -> list[np.ndarray]:
        """The logits of each row, (tokens, labels) float32."""
        return self._encoder.run_tokens(rows)["logits"]

    def postprocess(
        self,
        given: str,
        rows: Sequence[EncoderRow],
        outputs: Sequence[np.ndarray],
        parameters: TokenClassificationParameters,
    ) -> list[Entity]:
        entities: list[Entity] = []
        for row, logits in zip(rows, outputs, strict=True):
            kept = np.flatnonzero(np.array(row.encoding.special_tokens_mask) == 0)
            if len(kept):
                tokens = _Tokens(self._tokenizer, given, row, kept)
                entities += self._entities(tokens, activate(logits[kept], "softmax"), parameters)
        return _without_overlaps(entities) if len(rows) > 1 else entities

    def _entities(
        self, tokens: "_Tokens", scores: np.ndarray, parameters: TokenClassificationParameters
    ) -> list[Entity]:
        """The entities of one window; `scores` are (tokens, labels)."""
        strategy = parameters.aggregation_strategy or "none"
        if strategy == "none":
            return self._single_tokens(tokens, scores, parameters.ignore_labels)
        # A unit is labelled as a whole: the tokens from one start to the next.
        starts = np.arange(len(scores))
        if strategy != "simple":
            if not self._tokenizer.marks_words:
                warnings.warn(
                    f"the tokenizer of {self.artifact.path} does not mark words: aggregation_strategy {strategy!r} "
                    "takes for a word what stands between two spaces",
                    stacklevel=2,
                )
            # A text, or a window, may begin with a token that continues a word.
            starts = np.flatnonzero([at == 0 or not tokens.continues(at) for at in range(len(tokens))])
            scores = _word_scores(scores, starts, strategy)
        labels, best = scores.argmax(axis=-1), scores.max(axis=-1)  # (units,)
        joined = np.zeros(len(labels), np.bool_)
        joined[1:] = (self._tags[labels[1:]] == self._tags[labels[:-1]]) & ~self._begins[labels[1:]]
        firsts = np.flatnonzero(~joined)  # (entities,) the first unit of each
        ends = np.append(firsts[1:], len(labels))
        means = np.add.reduceat(best, firsts) / (ends - firsts)
        bounds = [*starts.tolist(), len(tokens)]
        entities: list[Entity] = []
        for first, end, score in zip(firsts.tolist(), ends.tolist(), means.tolist(), strict=True):
            group = self._groups[labels[first]]
            if group in parameters.ignore_labels:
                continue
            if strategy == "simple":
                words = tokens.strings(first, end)
            else:
                words = [self._tokenizer.join(tokens.strings(*bounds[unit : unit + 2])) for unit in range(first, end)]
            entities.append(
                {
                    "entity_group": group,
                    "score": score,
                    "word": self._tokenizer.join(words),
                    "start": tokens.offsets[bounds[first]][0],
                    "end": tokens.offsets[bounds[end] - 1][1],
                }
            )
        return entities

    def _single_tokens(self, tokens: "_Tokens", scores: np.ndarray, ignore_labels: Sequence[str]) -> list[Entity]:
        best = zip(scores.argmax(axis=-1).tolist(), scores.max(axis=-1).tolist(), strict=True)
        return [
            {
                "entity": self._labels[label],
                "score": score,
                "index": tokens.indices[position],
                "word": tokens.string(position),
                "start": tokens.offsets[position][0],
                "end": tokens.offsets[position][1],
            }
            for position, (label, score) in enumerate(best)
            if self._labels[label] not in ignore_labels
        ]


class _Tokens:
    """The tokens of a window that are not special, by position: their places in the text and their strings."""

    def __init__(self, tokenizer: Tokenizer, text: str, row: EncoderRow, kept: np.ndarray) -> None:
        self._tokenizer = tokenizer
        self._unknown = tokenizer.settings.unk_token_id
        self._text = text
        self._ids: list[int] = row.input_ids[kept].tolist()
        self.indices: list[int] = kept.tolist()  # in the row, special tokens counted
        offsets = row.encoding.offsets
        self.offsets: list[tuple[int, int]] = [offsets[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self._ids)

    def string(self, position: int) -> str:
        """As the vocabulary writes it; an unknown token as the text does."""
        if self._ids[position] == self._unknown:
            start, end = self.offsets[position]
            return self._text[start:end]
        return self._tokenizer.token(self._ids[position])

    def strings(self, start: int, stop: int) -> list[str]:
        return [self.string(position) for position in range(start, stop)]

    def continues(self, position: int) -> bool:
        """Whether the token continues a word. A marked one is longer than its text (`##ing`), which also makes
        continuations of accents that the tokenizer stripped: transformers judges the same way.
        """
        if self._ids[position] == self._unknown:
            return False
        start, end = self.offsets[position]
        if self._tokenizer.marks_words:
            return len(self._tokenizer.token(self._ids[position])) != end - start
        return start > 0 and " " not in self._text[start - 1 : start + 1]


def _word_scores(scores: np.ndarray, starts: np.ndarray, strategy: Aggregation) -> np.ndarray:
    """The scores of words, (words, labels), from those of tokens, (tokens, labels); words begin at `starts`."""
    lengths = np.diff(np.append(starts, len(scores)))
    chosen: np.ndarray
    if strategy == "first":
        chosen = scores[starts]
    elif strategy == "average":
        chosen = np.add.reduceat(scores, starts, axis=0) / lengths[:, None]
    else:
        word = np.repeat(np.arange(len(starts)), lengths)
        surest_first = np.lexsort((-scores.max(axis=-1), word))  # stable, so each word's tokens stay at its start
        chosen = scores[surest_first[starts]]
    return chosen


def _without_overlaps(entities: list[Entity]) -> list[Entity]:
    """Entities sorted by start; of those that overlap, from two windows, the longest, then the highest score.

    As in transformers, the first entity is also compared with itself, which doubles it where it is empty.
    """
    if not entities:
        return []
    entities = sorted(entities, key=itemgetter("start"))
    resolved = []
    current = entities[0]
    for entity in entities:
        if current["start"] <= entity["start"] < current["end"]:
            current = max(current, entity, key=lambda one: (one["end"] - one["start"], one["score"]))
        else:
            resolved.append(current)
            current = entity
    return [*resolved, current]


TASK = Task(
    name=TokenClassificationPipeline.task,
    pipeline=TokenClassificationPipeline,
    head=Head(
        auto_class="AutoModelForTokenClassification",
        classes=("ForTokenClassification",),
        peft_type="TOKEN_CLS",
        modules=("classifier", "score"),
    ),
    title={"en": "Token classification", "ko": "개체명 인식"},
    summary={
        "en": "Marks the names of people, places and organizations.",
        "ko": "사람, 장소, 기관의 이름을 표시합니다.",
    },
    examples=(
        Example("ko", "정조는 1789년 아버지의 무덤을 서울에서 수원으로 옮겼다.", {"aggregation_strategy": "simple"}),
        Example(
            "en",
            "Anna Smith flew from Paris to Seoul to meet the people of Samsung.",
            {"aggregation_strategy": "simple"},
        ),
    ),
    input_type=Text,
    answer_type=list[Entity],
    columns=("text", "entities"),
    in_words=lambda answer: ", ".join(f"{one['word']} = {one['entity_group']}" for one in answer) or "no entities",
    labelled=True,
    client="token_classification",
    form=("aggregation_strategy", "stride"),
)
