"""LlGuidance: compiles constraints with llguidance, for the vocabulary of one model.

llguidance is a library in Rust that knows, in microseconds, which tokens a grammar allows next: JSON Schema, regular
expressions and context-free grammars. It is imported with the first constraint, as is the vocabulary: both take time
and memory that most replicas never need.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from deployments.guidance.checker import Checker
from deployments.guidance.formats import exact
from pipelines.errors import GenerationError, InvalidInputError, first_line
from pipelines.generation.decoding.guide import Constraint, Guide
from pipelines.runtime.artifact import ModelArtifact

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

KEPT = 64  # constraints that were compiled, or refused: clients ask with the same few schemas again and again
# Between the tokens of JSON. Without a bound a weak model may write spaces for ever.
WHITESPACE = r"[ ]{1,4}|\n[ \t]{0,32}"
JSON_OPTIONS = {"whitespace_pattern": WHITESPACE, "lenient": False, "coerce_one_of": False}
_METASPACE = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ],
}
_LEXER_STATES = 20_000  # of one answer, each of a kilobyte or two; llguidance's own bound is 250,000


class LlGuidance:
    """A `GrammarCompiler` for one artifact, whose answers end with one of `eos`; thread-safe."""

    def __init__(self, artifact: ModelArtifact, eos: Sequence[int]) -> None:
        self._artifact, self._eos = artifact, list(eos)
        self._checker = Checker()
        self._lock, self._compiling = threading.Lock(), threading.Lock()
        self._kept: OrderedDict[Constraint, LlGrammar | InvalidInputError] = OrderedDict()

    def compile(self, constraint: Constraint) -> "LlGrammar":
        """Raises InvalidInputError with the place of what cannot be compiled, within seconds; the next time at once."""
        known = self._known(constraint)
        if known is None:
            with self._compiling:
                known = self._known(constraint) or self._keep(constraint)
        if isinstance(known, InvalidInputError):
            raise known.at(known.path)
        return known

    def _known(self, constraint: Constraint) -> "LlGrammar | InvalidInputError | None":
        with self._lock:
            known = self._kept.get(constraint)
            if known is not None:
                self._kept.move_to_end(constraint)
            return known

    def _keep(self, constraint: Constraint) -> "LlGrammar | InvalidInputError":
        try:
            outcome: LlGrammar | InvalidInputError = self._compiled(constraint)
        except InvalidInputError as error:
            outcome = error
        with self._lock:
            self._kept[constraint] = outcome
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return outcome

    def _compiled(self, constraint: Constraint) -> "LlGrammar":
        from llguidance import LLMatcher, LLParserLimits

        for part in (*constraint.parts, constraint):
            source = _source(part)
            schema = json.loads(part.text) if part.kind == "json_schema" else None
            problem, inside = self._checker.problem(source, schema)
            if problem is not None:
                raise _refused(problem, part, inside)
        limits = LLParserLimits(max_lexer_states=_LEXER_STATES, verbose_errors=False)
        matcher = LLMatcher(self._vocabulary, source, log_level=0, limits=limits)
        if matcher.is_error():
            raise _refused(matcher.get_error(), constraint)
        return LlGrammar(matcher, self._vocabulary.vocab_size)

    @cached_property
    def _vocabulary(self) -> "LLTokenizer":
        from llguidance import LLTokenizer

        if not self._eos:
            raise InvalidInputError("needs a model with a token that ends its answers", ("parameters", "grammar"))
        text = (self._artifact.path / "tokenizer.json").read_text(encoding="utf-8")
        settings = json.loads(text) | {"truncation": None, "padding": None}
        if (settings["decoder"] or {}).get("type") == "Metaspace" and "<0x0A>" not in text:
            settings["decoder"] = _METASPACE  # the same, in the words that llguidance knows
        size = int(self._artifact.config()["vocab_size"])
        try:
            return LLTokenizer(json.dumps(settings), n_vocab=size, eos_token=self._eos)
        except Exception as error:  # of a kind of tokenizer that the library does not know
            reason = f"is not possible with this model's tokenizer: {first_line(error)}"
            raise InvalidInputError(reason, ("parameters", "grammar")) from None


class LlGrammar:
    """A compiled constraint of a vocabulary of `size` tokens."""

    def __init__(self, matcher: "LLMatcher", size: int) -> None:
        self._matcher, self._size = matcher, size

    def start(self) -> "LlGuide":
        return LlGuide(self._matcher.deep_copy(), self._size)


class LlGuide(Guide):
    """A sequence that llguidance follows."""

    def __init__(self, matcher: "LLMatcher", size: int) -> None:
        super().__init__()
        self._matcher, self._size = matcher, size
        self._bits = np.empty(4 * -(-size // 32), np.uint8)  # one bit for each token, the lowest first

    def _forbidden(self) -> np.ndarray:
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)  # drops the GIL
        if self._matcher.is_error():
            problem = _line_of(self._matcher.get_error())
            raise InvalidInputError(f"the grammar takes too much to follow: {problem}; allowed: a simpler one")
        return np.unpackbits(self._bits, count=self._size, bitorder="little").view(bool) ^ True

    def _append(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise GenerationError(f"the grammar did not follow: {_line_of(self._matcher.get_error())}")


def _source(constraint: Constraint) -> str:
    """The constraint as llguidance takes it."""
    from llguidance import LLMatcher

    if constraint.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(exact(constraint.text), overrides=JSON_OPTIONS)  # type: ignore[arg-type]
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(constraint.text)
    return LLMatcher.grammar_from_lark(constraint.text)


def _refused(problem: str, constraint: Constraint, inside: Sequence[str | int] = ()) -> InvalidInputError:
    what = "a regular expression" if constraint.kind == "regex" else "a JSON Schema"
    reason = f"cannot be compiled: {_line_of(problem)}; allowed: {what} that llguidance takes"
    return InvalidInputError(reason, (*constraint.path, *inside))


def _line_of(problem: str) -> str:
    """A message of llguidance in one line: of several, the one that says what is wrong."""
    lines = problem.strip().splitlines() or [""]
    return next((line for line in lines if line.startswith("error: ")), lines[0]).removeprefix("error: ")
