"""Question answering: the spans of a context that answer a question."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np
from msgspec import Meta
from tokenizers import Encoding

from pipelines.misfit import require
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.rows import EncoderRow
from pipelines.runtime.session_config import SessionConfig
from pipelines.schema import Body, Parameters, Text, parse
from pipelines.tasks.pipeline import EncoderPipeline
from pipelines.tasks.task import Example, Head, Task

MAX_ANSWERS = 100
MAX_ANSWER_TOKENS = 512
MAX_WINDOW_TOKENS = 16_384
_DEFAULT_SEQ_LEN = 384
_DEFAULT_STRIDE = 128
_MASKED = np.float32(-10000.0)
_NO_NULL_SCORE = 1_000_000  # transformers' initial value of the smallest null score


class Question(Body, frozen=True):
    """One input."""

    question: Text
    context: Text


class Span(TypedDict):
    """An answer; `start` and `end` are characters of the context."""

    score: float
    start: int
    end: int
    answer: str


class SpanLogits(NamedTuple):
    """The output of one row: start and end logits, each (tokens,) float32."""

    start: np.ndarray
    end: np.ndarray


Length = Annotated[int, Meta(ge=1, le=MAX_WINDOW_TOKENS)]


class QuestionAnsweringParameters(Parameters, frozen=True):
    """Lengths are in tokens. `max_seq_len` None: the model's length, at most 384; `doc_stride` None: 128, at most half
    of `max_seq_len`. `max_question_len` bounds slow tokenizers only: as in transformers, it changes nothing here.
    """

    top_k: Annotated[int, Meta(ge=1, le=MAX_ANSWERS)] = 1
    doc_stride: Annotated[int, Meta(ge=0, le=MAX_WINDOW_TOKENS)] | None = None
    max_answer_len: Annotated[int, Meta(ge=1, le=MAX_ANSWER_TOKENS)] = 15
    max_seq_len: Length | None = None
    max_question_len: Length = 64
    handle_impossible_answer: bool = False
    align_to_words: bool = True


class QuestionAnsweringPipeline(EncoderPipeline[Question, QuestionAnsweringParameters, SpanLogits]):
    """A long context is read in windows that overlap by `doc_stride` tokens; equal answers of all windows add up.

    An answer is `{"score", "start", "end", "answer"}`, `start` and `end` in characters of the context, or a list of
    them where there is another number of answers than one.
    """

    task = "question-answering"
    parameters_type = QuestionAnsweringParameters

    def __init__(self, artifact: ModelArtifact, config: SessionConfig) -> None:
        super().__init__(artifact, config)
        settings = self._encoder.tokenizer.settings
        self._max_length = settings.max_length
        self._cls_token_id = settings.cls_token_id
        # A model that pads on the left was trained with the context in front of the question.
        self._question_first = settings.padding_side == "right"

    def __call__(self, inputs: Any = None, **parameters: Any) -> Any:
        """As `transformers.pipeline`: `question=` and `context=` may replace the input, and a list of one input has the
        answer of that input, not a list.
        """
        if inputs is None:
            inputs = {name: parameters.pop(name) for name in Question.__struct_fields__ if name in parameters}
        if isinstance(inputs, list) and len(inputs) == 1:
            (inputs,) = inputs
        return super().__call__(inputs, **parameters)

    def parse(self, raw: Any) -> Question:
        """`{"question", "context"}`, neither of them empty."""
        question: Question = parse(raw, Question)
        return question

    def preprocess(self, inputs: Sequence[Question], parameters: QuestionAnsweringParameters) -> list[list[EncoderRow]]:
        max_seq_len = parameters.max_seq_len or min(self._max_length, _DEFAULT_SEQ_LEN)
        stride = min(max_seq_len // 2, _DEFAULT_STRIDE) if parameters.doc_stride is None else parameters.doc_stride
        require(stride <= max_seq_len, ("parameters", "doc_stride"), stride, f"at most max_seq_len, {max_seq_len}")
        windows = self._encoder.tokenizer.windows(
            [(one.question, one.context) if self._question_first else (one.context, one.question) for one in inputs],
            max_length=max_seq_len,
            stride=stride,
            sequence=self._context_sequence,
        )
        longest = max((len(encoding) for encodings in windows for encoding in encodings), default=0)
        fits = longest <= self._max_length  # a larger max_seq_len is harmless where no context needs windows
        allowed = f"at most {self._max_length}, the length of the model"
        require(fits, ("parameters", "max_seq_len"), max_seq_len, allowed)
        return [self._encoder.rows(encodings) for encodings in windows]

    def forward(self, rows: Sequence[EncoderRow]) -> list[SpanLogits]:
        outputs = self._encoder.run_tokens(rows)
        return list(map(SpanLogits, outputs["start_logits"], outputs["end_logits"]))

    def postprocess(
        self,
        given: Question,
        rows: Sequence[EncoderRow],
        outputs: Sequence[SpanLogits],
        parameters: QuestionAnsweringParameters,
    ) -> Span | list[Span]:
        answers: dict[str, Span] = {}  # by the lower-cased text: two windows may find the same answer
        null_score: float = _NO_NULL_SCORE
        # Aligning to words makes several spans one: search for more than asked.
        top_k = parameters.top_k * 2 + 10 if parameters.align_to_words else parameters.top_k
        for row, logits in zip(rows, outputs, strict=True):
            candidates = self._candidates(row)
            start, end = (_probabilities(one, candidates) for one in logits)
            null_score = min(null_score, float(start[0] * end[0]))
            start[0] = end[0] = 0.0  # the first token stands for "no answer"
            for first, last, score in _best_spans(start, end, candidates, top_k, parameters.max_answer_len):
                begin, stop = self._characters(row.encoding, first, last, parameters.align_to_words)
                text = given.context[begin:stop]
                known = answers.setdefault(text.lower(), {"score": 0.0, "start": begin, "end": stop, "answer": text})
                known["score"] += score
        found = list(answers.values())
        if parameters.handle_impossible_answer:
            found.append({"score": null_score, "start": 0, "end": 0, "answer": ""})
        found = sorted(found, key=lambda answer: answer["score"], reverse=True)[: parameters.top_k]
        return found[0] if len(found) == 1 else found

    @property
    def _context_sequence(self) -> int:
        return 1 if self._question_first else 0

    def _candidates(self, row: EncoderRow) -> np.ndarray:
        """The tokens that an answer may start or end with, (tokens,) bool: the context and the classification token.

        With the context in front, transformers allows every token; so does this.
        """
        if not self._question_first:
            return np.ones(row.n_tokens, np.bool_)
        candidates: np.ndarray = np.array([sequence == 1 for sequence in row.encoding.sequence_ids])
        if self._cls_token_id is not None:
            candidates |= row.input_ids == self._cls_token_id
        return candidates

    def _characters(self, encoding: Encoding, first: int, last: int, align_to_words: bool) -> tuple[int, int]:
        """The characters of the context that the tokens from `first` to `last` stand for.

        Aligned, they are those of the words in which the two tokens lie, as far as the window holds these words.
        """
        if align_to_words:
            words = encoding.token_to_word(first), encoding.token_to_word(last)
            if None not in words:
                spans = [encoding.word_to_chars(word, self._context_sequence) for word in words]
                if None not in spans:
                    return spans[0][0], spans[1][1]
        offsets = encoding.offsets
        return offsets[first][0], offsets[last][1]


def _probabilities(logits: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Softmax over the candidate tokens, (tokens,) float32."""
    masked = np.where(candidates, logits, _MASKED)
    exponentials: np.ndarray = np.exp(masked - masked.max())
    exponentials /= exponentials.sum()
    return exponentials


def _best_spans(
    start: np.ndarray, end: np.ndarray, candidates: np.ndarray, top_k: int, max_answer_len: int
) -> Iterator[tuple[int, int, float]]:
    """At most `top_k` spans (first token, last token, score), best first."""
    n_tokens = len(start)
    longest = min(max_answer_len, n_tokens)
    lasts = np.arange(n_tokens)[:, None] + np.arange(longest)  # (first tokens, lengths)
    scores = start[:, None] * np.append(end, np.zeros(longest, np.float32))[lasts]
    if np.count_nonzero(scores) <= top_k:
        # Fewer spans have a score than are wanted. transformers then fills the list up with pairs of score 0, whose
        # order comes from a partial sort of all pairs of tokens: only the same sort chooses the same ones.
        lasts = np.broadcast_to(np.arange(n_tokens), (n_tokens, n_tokens))
        scores = np.tril(np.triu(np.outer(start, end)), longest - 1)
    negated = -scores.ravel()
    if top_k == 1:
        best = negated.argmin(keepdims=True)
    elif len(negated) <= top_k:
        best = negated.argsort()
    else:
        best = negated.argpartition(top_k)[:top_k]
        best = best[negated[best].argsort()]
    firsts, lasts = best // scores.shape[1], lasts.ravel()[best]
    allowed = candidates[firsts] & candidates[lasts]
    yield from zip(firsts[allowed].tolist(), lasts[allowed].tolist(), (-negated[best[allowed]]).tolist(), strict=True)


TASK = Task(
    name=QuestionAnsweringPipeline.task,
    pipeline=QuestionAnsweringPipeline,
    head=Head(
        auto_class="AutoModelForQuestionAnswering",
        classes=("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
        peft_type="QUESTION_ANS",
        modules=("qa_outputs",),
    ),
    title={"en": "Question answering", "ko": "질의응답"},
    summary={
        "en": "Finds the words of a text that answer a question.",
        "ko": "질문의 답이 되는 부분을 글에서 찾습니다.",
    },
    examples=(
        Example(
            "en",
            {
                "question": "Who designed the crane?",
                "context": "The Suwon Hwaseong Fortress was built between 1794 and 1796 under King Jeongjo of the "
                "Joseon dynasty. Its wall is 5.7 kilometres long and has four gates. The architect Jeong Yak-yong "
                "designed a crane that lifted stones of seven tonnes. The fortress became a UNESCO World Heritage Site "
                "in 1997.",
            },
        ),
        Example(
            "ko",
            {
                "question": "김민수는 어디에서 태어났나요?",
                "context": "김민수는 1998년 부산에서 태어나 런던에서 공부했다. 지금은 서울에서 일한다.",
            },
        ),
    ),
    input_type=Question,
    answer_type=Span | list[Span],
    text_fields=Question.__struct_fields__,
    columns=("question", "context", "answers"),
    in_words=lambda answer: f"{answer['answer']} ({answer['score']:.2f})",
    client="question_answering",
    form=("top_k", "max_answer_len", "handle_impossible_answer", "align_to_words"),
)
