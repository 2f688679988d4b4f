"""Encoder: the tokenizer and the graph of a model that reads a text once, and the rows of its batches."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tokenizers import Encoding

from pipelines.errors import ArtifactError, InvalidInputError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.elastic_session import ElasticSession
from pipelines.runtime.session import SessionConfig
from pipelines.runtime.tokenizer import Tokenizer

Activation = Literal["sigmoid", "softmax", "none"]
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, eq=False, slots=True)
class EncoderRow:
    """One row of an encoder's batch, unpadded; `token_type_ids` None means zeros."""

    encoding: Encoding
    input_ids: np.ndarray  # (tokens,) int64
    token_type_ids: np.ndarray | None = None  # (tokens,) int64

    @property
    def n_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def max_new_tokens(self) -> int:
        """0: an encoder writes no tokens."""
        return 0


class Encoder:
    """Makes rows of encodings, and runs batches of rows; thread-safe."""

    def __init__(self, artifact: ModelArtifact, config: SessionConfig) -> None:
        graph = artifact.graph("model")
        self.tokenizer = Tokenizer(artifact)
        self._session = ElasticSession.open(graph, config)
        if unknown := [name for name in self._session.input_names if name not in _INPUTS]:
            raise ArtifactError(f"{graph} takes {', '.join(unknown)}; an encoder takes {', '.join(_INPUTS)}")
        settings = self.tokenizer.settings
        self._pad_token_id = settings.pad_token_id
        self._types = settings.token_type_ids and "token_type_ids" in self._session.input_names

    def rows(self, encodings: Sequence[Encoding]) -> list[EncoderRow]:
        """One row per encoding; raises InvalidInputError for one without tokens, which no graph can run."""
        if not all(map(len, encodings)):
            raise InvalidInputError("has no tokens; allowed: a text of at least one", ("inputs",))
        return [
            EncoderRow(
                encoding,
                np.array(encoding.ids, np.int64),
                np.array(encoding.type_ids, np.int64) if self._types else None,
            )
            for encoding in encodings
        ]

    def run(self, rows: Sequence[EncoderRow]) -> dict[str, np.ndarray]:
        """The graph's outputs for a batch, in float32: (rows, ...), or (rows, longest row, ...) with padding."""
        outputs = self._session.run(pad(rows, self._pad_token_id, self._session.input_names))
        return {name: output.astype(np.float32, copy=False) for name, output in outputs.items()}

    def warm_up(self, lengths: Iterable[int]) -> None:
        """Run a row of each of `lengths`, in tokens: the first run of a length allocates its memory."""
        for n_tokens in lengths:
            self._session.warm_up(pad([self.blank_row(n_tokens)], self._pad_token_id, self._session.input_names))

    def blank_row(self, n_tokens: int) -> EncoderRow:
        """A row of so many padding tokens, to measure the cost of that length."""
        return EncoderRow(Encoding(), np.full(n_tokens, self._pad_token_id, np.int64))


def pad(rows: Sequence[EncoderRow], pad_token_id: int, names: Collection[str]) -> dict[str, np.ndarray]:
    """The graph inputs `names`, each (rows, longest) int64, padded on the right.

    Padding on the right fits every encoder, whatever side its tokenizer pads: positions count from each row's start,
    and masked padding does not change the tokens before it.
    """
    lengths = np.array([row.n_tokens for row in rows])
    real = np.arange(lengths.max()) < lengths[:, None]  # (rows, longest)
    feeds = {}
    if "input_ids" in names:
        feeds["input_ids"] = _spread([row.input_ids for row in rows], real, fill=pad_token_id)
    if "attention_mask" in names:
        feeds["attention_mask"] = real.astype(np.int64)
    if "token_type_ids" in names:
        given = [row.token_type_ids for row in rows if row.token_type_ids is not None]
        # All rows of a model come from one tokenizer: either each has type ids or none has.
        feeds["token_type_ids"] = _spread(given, real, fill=0) if given else np.zeros(real.shape, np.int64)
    return feeds


def _spread(values: Sequence[np.ndarray], real: np.ndarray, fill: int) -> np.ndarray:
    """The values of all rows where `real`, (rows, longest), is true; `fill` elsewhere."""
    padded = np.full(real.shape, fill, np.int64)
    padded[real] = np.concatenate(values)
    return padded


def activate(logits: np.ndarray, activation: Activation) -> np.ndarray:
    """Scores of the shape and dtype of `logits`; softmax is over the last axis."""
    if activation == "none":
        return logits
    if activation == "sigmoid":
        scores: np.ndarray = 0.5 * (1 + np.tanh(logits / 2))  # the logistic function, in a form that cannot overflow
        return scores
    scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores
