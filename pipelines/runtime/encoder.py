"""Encoder: the tokenizer and the graph of a model that reads a text once."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol

import numpy as np
from tokenizers import Encoding

from pipelines.errors import ArtifactError, ConfigurationError, InvalidInputError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.nvidia.memory import PinnedFeeds
from pipelines.runtime.packed_session import PackedSession
from pipelines.runtime.rows import EncoderRow, Feeds, PackedRows, RowLayout
from pipelines.runtime.session import ElasticSession
from pipelines.runtime.session_config import Engine, SessionConfig
from pipelines.runtime.tokenizer import Tokenizer

Activation = Literal["sigmoid", "softmax", "none"]
_USUAL = (16, 128)  # rows and tokens that a TensorRT engine is fastest for


class RowSession(Protocol):
    """Runs batches of rows on a graph of one layout."""

    @property
    def layout(self) -> RowLayout: ...

    def run(self, rows: Sequence[EncoderRow]) -> Mapping[str, np.ndarray]:
        """Every output by name."""

    def warm_up(self, lengths: Sequence[int]) -> None:
        """Prepare for batches of rows of these lengths, ascending, before the first of them is timed."""

    def release_memory(self) -> None:
        """Give back to the system what the largest batches took."""


class Encoder:
    """Makes rows of encodings, and runs batches of rows; thread-safe."""

    def __init__(self, artifact: ModelArtifact, config: SessionConfig) -> None:
        self.tokenizer = Tokenizer(artifact)
        self._pad_token_id = self.tokenizer.settings.pad_token_id
        self._session = _open(artifact, config, self._pad_token_id)
        layout = self._session.layout
        if unknown := [name for name in layout.names if name not in layout.inputs]:
            graph = artifact.graph("model")
            raise ArtifactError(f"{graph} takes {', '.join(unknown)}; an encoder takes {', '.join(layout.inputs)}")
        self._types = self.tokenizer.settings.token_type_ids and "token_type_ids" in layout.names

    @property
    def is_packed(self) -> bool:
        """Whether a batch has no padding, so that its cost depends on its tokens alone."""
        return not isinstance(self._session.layout, PaddedRows)

    def rows(self, encodings: Sequence[Encoding]) -> list[EncoderRow]:
        """One row per encoding; raises InvalidInputError for one without tokens, which no graph can run."""
        if not all(map(len, encodings)):
            raise InvalidInputError("has no tokens; allowed: a text of at least one", ("inputs",))
        return [
            EncoderRow(
                encoding,
                np.array(encoding.ids, np.int64),
                np.array(encoding.type_ids, np.int64) if self._types else None,
                len(encoding),
            )
            for encoding in encodings
        ]

    def run(self, rows: Sequence[EncoderRow]) -> dict[str, np.ndarray]:
        """The outputs of a graph whose head reads whole rows, in float32: (rows, ...)."""
        return {name: output.astype(np.float32, copy=False) for name, output in self._session.run(rows).items()}

    def run_tokens(self, rows: Sequence[EncoderRow]) -> dict[str, list[np.ndarray]]:
        """The outputs of a graph whose head reads each token, in float32: of each row (tokens, ...), unpadded."""
        return {name: self._session.layout.by_row(output, rows) for name, output in self.run(rows).items()}

    def warm_up(self, lengths: Iterable[int]) -> None:
        """Prepare for batches of rows of `lengths`, in tokens, before the first of them is timed."""
        self._session.warm_up(sorted(lengths))

    def release_memory(self) -> None:
        """Give back to the system what the largest batches took, beside other runs."""
        self._session.release_memory()

    def blank_row(self, n_tokens: int) -> EncoderRow:
        """A row of so many padding tokens, to measure the cost of that length."""
        return EncoderRow.blank(n_tokens, self._pad_token_id)


class PaddedRows(RowLayout):
    """Feeds of (rows, longest) int64, padded on the right.

    Padding on the right fits every encoder, whatever side its tokenizer pads: positions count from each row's start,
    and masked padding does not change the tokens before it.
    """

    inputs = ("input_ids", "attention_mask", "token_type_ids")

    def feeds(self, rows: Sequence[EncoderRow]) -> Feeds:
        lengths = np.array([row.n_tokens for row in rows])
        real = np.arange(lengths.max()) < lengths[:, None]  # (rows, longest)
        feeds = {}
        if "input_ids" in self.names:
            feeds["input_ids"] = _spread([row.input_ids for row in rows], real, fill=self._pad_token_id)
        if "attention_mask" in self.names:
            feeds["attention_mask"] = real.astype(np.int64)
        if "token_type_ids" in self.names:
            given = [row.token_type_ids for row in rows if row.token_type_ids is not None]
            # All rows of a model come from one tokenizer: either each has type ids or none has.
            feeds["token_type_ids"] = _spread(given, real, fill=0) if given else np.zeros(real.shape, np.int64)
        return feeds

    def by_row(self, output: np.ndarray, rows: Sequence[EncoderRow]) -> list[np.ndarray]:
        return [output[index, : row.n_tokens] for index, row in enumerate(rows)]


def layout_of(names: Collection[str], pad_token_id: int) -> RowLayout:
    """The layout of a graph, told by the names of its inputs."""
    return (PackedRows if "batch_shape" in names else PaddedRows)(names, pad_token_id)


class PaddedSession:
    """Runs batches of padded rows, on any provider."""

    def __init__(self, session: ElasticSession, pad_token_id: int, pinned: PinnedFeeds | None) -> None:
        """`pinned` is for a GPU."""
        self.layout = PaddedRows(session.input_names, pad_token_id)
        self._session = session
        self._pinned = pinned

    def run(self, rows: Sequence[EncoderRow]) -> Mapping[str, np.ndarray]:
        feeds = self.layout.feeds(rows)
        return self._session.run(feeds if self._pinned is None else self._pinned(feeds))

    def warm_up(self, lengths: Sequence[int]) -> None:
        """Run a row of each length: the first run of a length allocates its memory."""
        for n_tokens in lengths:
            self._session.warm_up(self.layout.feeds([EncoderRow.blank(n_tokens)]))

    def release_memory(self) -> None:
        self._session.release_memory(self.layout.feeds([EncoderRow.blank(1)]))


def _open(artifact: ModelArtifact, config: SessionConfig, pad_token_id: int) -> RowSession:
    graph, manifest = artifact.graph("model"), artifact.manifest
    if manifest.rows == "packed":
        if config.device != manifest.device:
            raise ConfigurationError(
                f"{artifact.path} was exported for {manifest.device}, with packed rows, and device is "
                f"{config.device!r}; export it with --device {config.device}"
            )
        return PackedSession.open(graph, config, pad_token_id, manifest.tokenizer.max_length)
    if config.device == "tensorrt":
        longest = manifest.tokenizer.max_length
        usual = (min(_USUAL[0], config.max_rows), min(_USUAL[1], longest))
        config = replace(config, engine=Engine(config.max_rows, longest, usual, manifest.precision == "fp16"))
    pinned = None if config.device == "cpu" else PinnedFeeds()
    return PaddedSession(ElasticSession.open(graph, config), pad_token_id, pinned)


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
